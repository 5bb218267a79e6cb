"""Fenced blocks of the documentation: found, sorted by their info string, and run as a reader would run them.

`sh` and `python` run in order in a page's folder; `slow` after them: in the slow set only; `sh cluster`: the command
line is parsed, not run; `file=NAME`: the block is that file; `yaml KIND`: checked against that stage's settings;
`text` shows output; `text printed` what blocks before it print: lines, or their beginnings where they end in ` ...`.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.__main__ import NAMES as BENCHES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
KINDS = {
    "collect": ("atlas_ray.trajectories.settings", "CollectConfig"),
    "select": ("atlas_ray.selection.settings", "SelectConfig"),
    "train": ("atlas_ray.training.settings", "TrainConfig"),
    "evaluate": ("atlas_ray.evaluation.settings", "EvaluateConfig"),
    "verify": ("atlas_ray.evaluation.settings", "VerifyConfig"),
    "servers": ("atlas_ray.environments.agentgym.launcher", "LaunchConfig"),
    "recipe": ("", ""),
    "study": ("", ""),
    "part": ("", ""),  # a file that a recipe includes: checked where it is included
}
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, its info string in words, its text."""

    page: str
    line: int
    info: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        return self.info[0] if self.info else ""

    @property
    def file(self) -> str | None:
        return self._named("file")

    @property
    def episode(self) -> str | None:
        return self._named("episode")

    @property
    def marks(self) -> set[str]:
        return {word for word in self.info[1:] if "=" not in word}

    def _named(self, name: str) -> str | None:
        return next((word.removeprefix(f"{name}=") for word in self.info if word.startswith(f"{name}=")), None)


def blocks(page: Path) -> list[Block]:
    """A page's blocks in order."""
    text = page.read_text()
    found = [
        Block(page.name, text.count("\n", 0, m.start()) + 1, tuple(m[1].split()), m[2]) for m in _FENCE.finditer(text)
    ]
    assert text.count("\n```") + text.startswith("```") == 2 * len(found), f"{page.name}: a fence is not closed"
    return found


def commands(block: Block) -> list[list[str]]:
    """A shell block's commands as words; lines that end in a backslash go on, comments are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_block(block: Block, space: dict[str, Any], slow: bool, printed: io.StringIO) -> None:
    """Runs, writes or checks one block in the working directory; what it prints is kept."""
    with contextlib.redirect_stdout(printed):
        _run_block(block, space, slow)
    if "printed" in block.marks:
        lines = [line.rstrip() for line in printed.getvalue().splitlines()]
        for shown in block.text.splitlines():
            begun = shown.removesuffix("...").rstrip()
            assert any(line.startswith(begun) if shown.endswith("...") else line == shown for line in lines), shown


def _run_block(block: Block, space: dict[str, Any], slow: bool) -> None:
    if block.file:
        Path(block.file).write_text(block.text)
    if block.language == "yaml":
        check_yaml(block)
    elif block.language == "sh" and "cluster" in block.marks:
        for words in commands(block):
            parse(words)
    elif block.file or block.language not in ("sh", "python") or ("slow" in block.marks and not slow):
        return
    elif block.language == "python":
        exec(compile(block.text, f"{block.page}:{block.line}", "exec"), space)  # noqa: S102 (our own pages)
    else:
        for words in commands(block):
            run(words)


def run(words: list[str]) -> None:
    """One command: `atlas` in this process, by its entry point; `make` is parsed; anything else as it is."""
    from atlas_ray.cli.main import app

    if words[0] == "atlas":
        assert "|" not in words, "one command a line"
        app(words[1:], standalone_mode=False)
    elif words[0] == "make":
        parse(words)
    else:
        command = [sys.executable, *words[1:]] if words[0] == "python" else words
        subprocess.run(command, check=True, timeout=300)


def parse(words: list[str]) -> None:
    """Checks that a command line would be understood: verbs, options, make's targets, a job's file."""
    import typer

    from atlas_ray.cli.main import app

    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] == "make":
        targets = set(re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        known = {name for line in targets for name in line.split()} | {f"bench-{name}" for name in BENCHES}
        wanted = [w for w in words[1:] if "=" not in w]
        assert set(wanted) <= known, f"make knows no {set(wanted) - known}"
    elif words[0] == "atlas":
        command: Any = typer.main.get_command(app)
        words = words[1:]
        while hasattr(command, "commands"):
            assert words[0] in command.commands, f"atlas knows no {words[0]}"
            command, words = command.commands[words[0]], words[1:]
        context = command.make_context(command.name, list(words))
        if command.name == "submit":
            parse(["atlas", context.params["stage"], *context.args])
    elif words[:3] == ["ray", "job", "submit"]:
        job = words[words.index("--") + 1 :]
        assert job[0] == "python"
        assert (ROOT / job[1]).exists(), job[1]
    else:
        assert words[0] in ("export", "pip", "torchrun"), f"unknown command {words[0]}"


def check_yaml(block: Block) -> None:
    """Checks a configuration against the settings that its info string names."""
    from importlib import import_module

    from atlas_ray.config import validate
    from atlas_ray.recipes.settings import load_recipe
    from atlas_ray.recipes.study import load_study

    kinds = block.marks & set(KINDS)
    assert len(kinds) == 1, f"{block.page}:{block.line}: of which stage is this YAML?"
    kind = kinds.pop()
    if kind == "recipe":
        assert block.file
        load_recipe(block.file)
    elif kind == "study":
        assert block.file
        load_study(block.file)
    elif kind != "part":
        module, name = KINDS[kind]
        validate(getattr(import_module(module), name), yaml.safe_load(block.text))


def complaint(block: Block) -> str | None:
    """What is wrong with a block's info string."""
    allowed = {
        "sh": {"slow", "cluster"},
        "python": {"slow"},
        "yaml": set(KINDS),
        "text": {"printed"},
        "json": set(),
        "csv": set(),
    }
    if block.language not in allowed or block.marks - allowed[block.language]:
        return f"{block.page}:{block.line}: `{' '.join(block.info)}` is neither run nor shown as output"
    if block.language in ("json", "csv") and not block.file:
        return f"{block.page}:{block.line}: data that no example reads; give it a file="
    return None


def fail_at(block: Block, error: BaseException) -> None:
    """Says which block failed."""
    pytest.fail(f"docs/{block.page}:{block.line}: {type(error).__name__}: {error}\n{block.text}")
