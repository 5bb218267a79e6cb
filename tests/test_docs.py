"""The documentation is true: every example runs, every configuration is valid, every name in it exists."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import ray

from atlas_ray.config import DataConfig
from atlas_ray.environments import registry
from atlas_ray.environments.local import LocalSession
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import Sampling
from atlas_ray.models.tiny import write_untrained
from atlas_ray.recipes.settings import BASE
from atlas_ray.recipes.stages import opened
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.trajectories.collect import collect
from atlas_ray.trajectories.readers import read_trajectories
from tests.support.docs_blocks import DOCS, ROOT, Block, blocks, complaint, fail_at, run_block
from tests.support.local_ray import start_ray

PAGES = sorted(DOCS.glob("*.md"))
INDEX = DOCS / "index.md"


def play(page: Path, slow: bool = False) -> None:
    space: dict[str, Any] = {"__name__": "docs"}
    printed = io.StringIO()
    for block in blocks(page):
        try:
            run_block(block, space, slow, printed)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever an example raises is its failure)
            fail_at(block, error)


@pytest.fixture(scope="module")
def prepared(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What index.md's own examples leave, and the quickstart: data and models that the other pages use."""
    folder = tmp_path_factory.mktemp("docs")
    with contextlib.chdir(folder):
        play(INDEX)
        quickstart, _, _ = opened("quickstart")
        expert, base = quickstart.collections()["expert"], quickstart.tiny[BASE]
        collect(expert)
        write_untrained(  # as large as the one that the quickstart trains for minutes
            f"{quickstart.train[BASE].run}/model",
            read_trajectories(DataConfig(path=expert.run)),
            hidden_size=base.hidden_size,
            layers=base.layers,
            heads=base.heads,
            context=base.context,
            seed=0,
        )
    return folder


@pytest.fixture
def reader(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader who has followed index.md, in a folder of their own, far from a checkout."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry.ENVIRONMENTS, "_found", dict(registry.ENVIRONMENTS._found))
    monkeypatch.setenv("ATLAS_PLUGINS", "{}")  # what a page registers is gone with it
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture
def ray_of_the_page(page: Path) -> Iterator[None]:
    """Ray as a reader's command starts it, with the page's modules, where workers need those."""
    own = page.name == "own-policy.md"
    if own:
        ray.shutdown()
    yield
    if own:
        ray.shutdown()
        start_ray()


@pytest.mark.usefixtures("reader", "ray_of_the_page")
@pytest.mark.parametrize("page", [p for p in PAGES if p != INDEX], ids=lambda p: p.name)
def test_the_examples_of_a_page_run(page: Path) -> None:
    play(page)


@pytest.mark.slow
@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("page", [p for p in PAGES if "slow\n" in p.read_text()], ids=lambda p: p.name)
def test_the_long_examples_of_a_page_run(page: Path) -> None:
    play(page, slow=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_is_run_checked_or_output(page: Path) -> None:
    assert [c for block in blocks(page) if (c := complaint(block))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_index_names_every_page() -> None:
    assert {p.name for p in PAGES} - set(re.findall(r"\(([\w-]+\.md)\)", INDEX.read_text())) == {"index.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_modules_and_functions_that_are_named_exist(page: Path) -> None:
    for module, name in re.findall(r"`(atlas_ray(?:\.\w+)+)(?::(\w+(?:\.\w+)*))?`", page.read_text()):
        found: Any = import_module(module)
        for part in name.split(".") if name else []:
            assert part in getattr(found, "model_fields", {}) or hasattr(found, part), f"{module} has no {name}"
            found = getattr(found, part, None)


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        named = re.findall(r"`((?:atlas_ray|jobs|bench|tests|cluster)/[\w/.-]+)`", page.read_text())
        assert [name for name in named if not (ROOT / name).exists()] == [], page.name


def test_tests_that_are_named_exist() -> None:
    held = {file.name for file in (ROOT / "tests").rglob("test_*.py")}
    for page in PAGES:
        assert set(re.findall(r"\btest_\w+\.py", page.read_text())) <= held, page.name


def test_a_walk_through_the_code_passes_at_most_ten_files() -> None:
    sections = (DOCS / "architecture.md").read_text().split("\n\n")
    walks = [re.findall(r"^\| \d+ \| `(\S+)` \|", section, re.MULTILINE) for section in sections]
    assert [len(set(walk)) <= 10 for walk in walks if walk] == [True] * 4


@pytest.mark.parametrize(
    "item", [f"Eq. {n}" for n in range(1, 10)] + [f"Table {n}" for n in range(1, 8)] + ["Figure 2"]
)
def test_every_equation_and_table_of_the_paper_has_a_row_with_its_code(item: str) -> None:
    rows = [line for line in (DOCS / "paper-map.md").read_text().splitlines() if line.startswith(f"| {item} |")]
    assert len(rows) == 1
    assert "`atlas_ray." in rows[0]


EPISODES = [b for page in PAGES for b in blocks(page) if b.episode]


@pytest.mark.parametrize("block", EPISODES, ids=lambda b: b.episode)
async def test_an_example_episode_is_what_the_expert_plays(block: Block) -> None:
    """Line by line; one that ends in ` ...` is the beginning of one, or stands for some."""
    name = str(block.episode)
    try:
        session = LocalSession(registry.get(name))
    except UserError as error:
        pytest.skip(f"{error}: {error.remedy}")
    (task,) = registry.get(name).tasks("test", 1)
    opening = await session.reset(task)
    said = opening.observation.split("\n")
    conversation = ScriptedPolicy("expert", 0).open(task, opening.messages(), Sampling())
    for _ in range(3):
        reply = (await conversation.generate(0)).text
        result = await session.step(reply)
        said += [*reply.split("\n"), *result.observation.split("\n")]
        if result.done:
            break
    await session.close()
    heard = iter(line.rstrip() for line in said)
    for line in filter(None, map(str.rstrip, block.text.split("\n"))):
        whole = line.removesuffix("...").rstrip()
        assert any(found.startswith(whole) if line.endswith(" ...") else found == line for found in heard), line
