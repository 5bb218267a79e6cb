"""The package's shape: imports without circles and only down the floors, folders and files of a readable size."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import atlas_ray

ROOT = Path(atlas_ray.__file__).parent
REPOSITORY = ROOT.parent
MODULES = {
    ".".join(("atlas_ray", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in ROOT.rglob("*.py")
}
# From the lowest floor up: a package or module imports only from the floors below its own.
FLOORS = (
    ("text",),
    ("errors",),
    ("address", "chat_template", "plugins", "types", "yaml_text"),
    ("config",),
    ("runs",),
    ("cluster",),
    ("environments", "models"),
    ("rollouts",),
    ("trajectories",),
    ("selection", "training", "evaluation"),
    ("report",),
    ("recipes",),
    ("cli",),
)
MOST_FILES = 15
MOST_LINES = 400


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of what is imported anywhere in a module: in functions too, and by a type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported(node)


def imports() -> dict[str, set[str]]:
    """By module, the modules of the package that it imports."""
    trees = {name: ast.parse(file.read_text()) for name, file in MODULES.items()}
    return {name: {one for one in imported(tree) if one in MODULES and one != name} for name, tree in trees.items()}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = imports()
    assert graph["atlas_ray.cli.main"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_imports_only_go_down_the_floors() -> None:
    floor_of = {part: number for number, parts in enumerate(FLOORS) for part in parts}

    def part(module: str) -> str:
        return module.split(".")[1]

    rooms = {part(module) for module in MODULES if "." in module}
    assert rooms == floor_of.keys(), "every room and top-level module stands on one floor"
    upward = [
        f"{module} -> {other}"
        for module, others in imports().items()
        for other in others
        if "." in module and "." in other and part(module) != part(other)
        if floor_of[part(other)] >= floor_of[part(module)]
    ]
    assert sorted(upward) == []


def source_files() -> list[Path]:
    folders = ("atlas_ray", "tests", "bench", "jobs")
    return [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py") if file.name != "__init__.py"]


def test_no_folder_of_the_package_has_too_many_files_side_by_side() -> None:
    folders: dict[Path, int] = {}
    for file in source_files():
        if file.is_relative_to(ROOT):
            folders[file.parent] = folders.get(file.parent, 0) + 1
    assert folders[ROOT / "cli"]
    assert {str(folder.relative_to(ROOT)): n for folder, n in folders.items() if n > MOST_FILES} == {}


def test_no_file_is_too_long() -> None:
    lines = {str(file.relative_to(REPOSITORY)): len(file.read_text().splitlines()) for file in source_files()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_no_module_asks_which_selector_one_is() -> None:
    asked = [
        f"{name}:{node.lineno}"
        for name, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        if re.search(r"\w+Selector\b", ast.unparse(node.args[1]))
    ]
    assert asked == []
