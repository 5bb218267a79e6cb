"""Labels that other trainers' own code builds from an export are our masks, token by token, or differ by a named rule.

Their packages are installed without their dependencies, most of which need a GPU, into a folder of the session; what
their data code imports of those is installed beside them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import pytest

from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.training.data.corpus import tokens_of
from atlas_ray.training.data.examples import training_examples
from atlas_ray.training.export.forms import chosen_only, step_by_step
from atlas_ray.training.export.stage import export
from atlas_ray.training.settings import ExportConfig
from atlas_ray.trajectories.formats.openai import to_open_row
from atlas_ray.types import Selection, Trajectory
from tests.support.conversations import random_choice, random_trajectory
from tests.support.other_trainers import Pair
from tests.support.tool_formats import HELD, tool_tokenizer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
PACKAGES = ("trl==1.16.0", "axolotl==0.19.0", "llamafactory==0.9.5", "tinker==0.38.0")
NEEDED = (
    "datasets",
    "multiprocess",
    "xxhash",
    "addict",
    "colorama",
    "distro",
    "omegaconf",
    "antlr4-python3-runtime==4.9.3",
    "orjson",
)
COUNT = 200
Masked = tuple[list[int], list[bool]]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *PACKAGES, *NEEDED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install them: {done.stderr.strip().splitlines()[-1]}")
    return folder


class Family:
    """Trajectories that a template has a place for, a selection of them, and the template's tokenizer on disk."""

    def __init__(self, name: str, folder: Path, **options: Any) -> None:
        self.chat = ChatFormat(tool_tokenizer(name))
        self.model = str(folder / "model")
        self.chat.tokenizer.save_pretrained(self.model)
        self.folder = folder
        rng, held = Random(name), HELD[name] | options
        self.trajectories = [random_trajectory(rng, n, special=False, **held) for n in range(COUNT)]
        self.chosen = {t.id: tuple(random_choice(rng, t.steps)) for t in self.trajectories}
        data, select = folder / "data.jsonl", RunFolder(str(folder / "select"))
        data.write_text("".join(json.dumps(to_open_row(t)) + "\n" for t in self.trajectories))
        select.begin(
            SelectConfig.model_validate({"data": {"path": str(data)}, "selector": {"name": "all"}}), stage="select"
        )
        made = [
            Selection(t.id, t.env, t.item_id, "all", None, len(t.steps), self.chosen[t.id]) for t in self.trajectories
        ]
        select.write_shard(SELECTIONS, made)
        select.finish()

    def masks(self, trajectory: Trajectory) -> list[Masked]:
        tokens = tokens_of(trajectory, self.chat)
        return [(e.ids.tolist(), e.loss_mask.tolist()) for e in training_examples(tokens, None, 1 << 20)]

    @property
    def ours(self) -> list[Masked]:
        """Sequences of training."""
        tokens = ((tokens_of(t, self.chat), self.chosen[t.id]) for t in self.trajectories)
        return [(e.ids.tolist(), e.loss_mask.tolist()) for t, c in tokens for e in training_examples(t, c, 1 << 20)]

    @property
    def by_step(self) -> list[Masked]:
        """One for each chosen step."""
        whole = (chosen_only(t, self.chosen[t.id]) for t in self.trajectories)
        return [masked for t in whole for one in step_by_step(t) for masked in self.masks(one)]

    def theirs(self, trainer: str, packages: Path, format_: str = "", **options: Any) -> list[Pair]:
        place, out = str(self.folder / f"export-{trainer}"), self.folder / f"{trainer}.json"
        settings = {
            "out": place,
            "format": format_ or trainer,
            "model": self.model,
            "selection": str(self.folder / "select"),
        }
        plain = {"data": {"path": str(self.folder / "data.jsonl")}, "max_length": 100_000}
        export(ExportConfig.model_validate(settings | plain | options))
        counts = json.loads(Path(place, "manifest.json").read_text())["counts"]
        assert counts.get("refused", 0) == 0, counts
        command = [sys.executable, "-m", "tests.support.other_trainers", trainer, place, self.model, str(out)]
        offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{packages}", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=os.environ | offline, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return [(ids, labels) for ids, labels in json.loads(out.read_text())]


def masked(pairs: list[Pair]) -> list[Masked]:
    """Labels as masks: each is its own token, or none."""
    assert all(label in (-100, token) for ids, labels in pairs for token, label in zip(ids, labels, strict=True))
    return [(ids, [label != -100 for label in labels]) for ids, labels in pairs]


def differences(pairs: list[Pair], ours: list[Masked], chat: ChatFormat) -> tuple[set[str], set[str], set[str]]:
    """The texts that only we learn, those that only they learn, and what of these stands behind all of ours.

    Theirs are the same tokens, and may go on behind the end of ours with what a template writes there.
    """
    assert len(pairs) == len(ours)
    found: tuple[set[str], set[str], set[str]] = (set(), set(), set())
    for (ids, theirs), (own, mask) in zip(masked(pairs), ours, strict=True):
        assert ids[: len(own)] == own
        padded = [*mask, *[False] * (len(ids) - len(own))]
        only = [
            0 if a == b else 1 if a else 2 if place < len(own) else 3
            for place, (a, b) in enumerate(zip(padded, theirs, strict=True))
        ]
        for kind, group in groupby(range(len(ids)), key=only.__getitem__):
            if kind:
                found[kind - 1].add(chat.tokenizer.decode([ids[place] for place in group]))
    return found


@pytest.mark.parametrize("name", ["llama-3.1", "qwen3", "mistral-v0.3", "gpt-oss"])
@pytest.mark.parametrize("trainer", ["trl", "tinker", "llamafactory_tokens"])
def test_rows_of_tokens_are_taken_as_they_are(trainer: str, name: str, tmp_path: Path, packages: Path) -> None:
    family = Family(name, tmp_path)
    theirs = masked(family.theirs(trainer, packages, format_="tinker" if trainer == "tinker" else "trl"))
    assert sorted(theirs) == sorted(family.ours)
    assert len(theirs) >= COUNT


@pytest.mark.parametrize("name", ["llama-3.1", "phi-4-mini", "smollm2"])
def test_axolotl_masks_the_same_tokens(name: str, tmp_path: Path, packages: Path) -> None:
    family = Family(name, tmp_path)
    assert differences(family.theirs("axolotl", packages), family.ours, family.chat) == (set(), set(), set())


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("qwen3", {"<think>\n", "<think>\n\n</think>\n\n"}),
        ("gpt-oss", {"<|channel|>", "<|channel|>final<|message|>"}),
        ("mistral-v0.3", {" "}),
    ],
)
def test_axolotl_leaves_out_what_a_template_writes_before_every_last_reply(
    name: str, written: set[str], tmp_path: Path, packages: Path
) -> None:
    """Its rule: a turn begins where it differs from one without a text. These templates write earlier turns anew."""
    family = Family(name, tmp_path)
    found = differences(family.theirs("axolotl", packages, rows="step"), family.by_step, family.chat)
    assert found == (written, set(), set())


@pytest.mark.parametrize("name", ["smollm2", "qwen3"])
def test_llamafactory_masks_the_same_tokens_and_a_line_break_behind_them(
    name: str, tmp_path: Path, packages: Path
) -> None:
    """Its rule: what the template writes behind a reply is learnt with it.

    Forms of tools are its own, and so is the template where it cannot guess the tokenizer's (Llama's, Phi's).
    """
    family = Family(name, tmp_path, tools=False)
    assert differences(family.theirs("llamafactory", packages), family.by_step, family.chat) == (set(), set(), {"\n"})
