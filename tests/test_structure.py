"""The package as a graph of imports: no circles, wherever in a module an import stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import atlas_ray

ROOT = Path(atlas_ray.__file__).parent
MODULES = {
    ".".join(("atlas_ray", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in ROOT.rglob("*.py")
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of what is imported when the module runs, in functions too; not what only the type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported(node)


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        name: {one for one in imported(ast.parse(file.read_text())) if one in MODULES and one != name}
        for name, file in MODULES.items()
    }
    assert graph["atlas_ray.cli.main"]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None
