"""What a job is sent from this machine: the source tree without what is large, and paths that mean the same there.

A job works in a copy of the source tree on some node. Flows in: the tree, and the job's arguments; flows out: what is
to be left out, and the arguments with every path of this machine made one of the copy's, or absolute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_ray.errors import UserError

# What a node does not need of this folder; /runs is not atlas_ray/runs.
_EXCLUDED = ["/.venv", "/runs", "/.git", "/bench", "**/__pycache__", "/.*_cache"]
_LARGE = 10 << 20  # bytes of a file that is a model, data or the like
_MOST = 100 << 20  # bytes that Ray takes in all
_NAMED = 5  # files that a message names
_RECIPES = ("run", "report")  # stages whose first argument is a recipe
_FILES, _PLACES = ("-c", "--config"), ("--data", "--run")
_VALUED = (*_FILES, *_PLACES, "-s", "--set", "--with", "--only", "--jobs", "--max-cost")


@dataclass(frozen=True, slots=True)
class JobFiles:
    """What is sent of a source tree.

    Attributes:
        root: The tree.
        sizes: Bytes of every file that is sent.
        excludes: Ray's patterns of what is not.
        large: What is left out besides what nobody would miss, with bytes: large files and virtual environments.
    """

    root: Path
    sizes: dict[Path, int]
    excludes: list[str]
    large: dict[Path, int]

    @classmethod
    def of(cls, root: Path) -> JobFiles:
        """What is to be sent of a tree; its .gitignore and .rayignore hold, as they do for Ray.

        Raises:
            UserError: If that is more than Ray takes.
        """
        found = _files(root, _EXCLUDED)
        environments = {file.parent for file in found if file.name == "pyvenv.cfg"}
        large = {file: size for file, size in found.items() if size >= _LARGE and environments.isdisjoint(file.parents)}
        large |= {place: sum(n for file, n in found.items() if place in file.parents) for place in environments}
        sent = {f: n for f, n in found.items() if f not in large and environments.isdisjoint(f.parents)}
        if (total := sum(sent.values())) > _MOST:
            raise UserError(
                f"{root} holds {_told(total)} to be sent with the job, and Ray takes {_told(_MOST)}; the largest: "
                + _named(sent, root),
                f"name in {root / '.rayignore'} what the job does not need, as in a .gitignore",
            )
        return cls(root, sent, [*_EXCLUDED, *(f"/{_escaped(place.relative_to(root))}" for place in large)], large)

    def left_out(self) -> str:
        """What is left out besides what nobody would miss, in words; empty where nothing is."""
        if not self.large:
            return ""
        where = "a job reads large files from storage that every node sees"
        return f"not sent with the job, for size: {_named(self.large, self.root)}; {where}"

    def arguments(self, stage: str, given: Sequence[str]) -> list[str]:
        """A job's arguments, with paths as they are in the copy of the tree, or absolute where they are not in it.

        Raises:
            UserError: If a configuration or recipe does not exist, or is not sent; or if a path names nothing here and
                something else in the tree.
        """
        done, option, recipe = list[str](), "", stage in _RECIPES
        for word in given:
            name, sign, value = word.partition("=")
            if option:
                done.append(self._value(option, word))
                option = ""
            elif word.startswith("--") and sign and name in _VALUED:
                done.append(f"{name}={self._value(name, value)}")
            elif word.startswith("-"):
                done.append(word)
                option = word if word in _VALUED else ""
            else:
                named = not Path(word).suffix and Path(word).name == word  # a recipe of the package
                done.append(self._file(word) if recipe and not (named and not Path(word).exists()) else word)
                recipe = False
        return done

    def _value(self, option: str, value: str) -> str:
        if option in _FILES:
            return self._file(value)
        if option in _PLACES:
            return self._place(value, made=option == "--run")
        key, sign, setting = value.partition("=")
        made = key in ("run", "runs")
        if option in ("-s", "--set") and (made or ("/" in setting and Path(setting).exists())):
            return key + sign + self._place(setting, made)
        return value

    def _file(self, path: str) -> str:
        """A configuration or recipe, which has to be sent."""
        if Path(path).is_absolute() and not self._holds(Path(path)):
            return path  # as the nodes see it
        if not Path(path).is_file():
            raise UserError(f"there is no file {path} here ({Path.cwd()})", "check its name, or go where it lies")
        if not self._holds(Path(path)):
            raise UserError(
                f"{path} is not sent with the job: it does not lie in {self.root}, or is left out",
                "copy it there; or give its absolute path, where every node sees it",
            )
        return self._within(Path(path))

    def _place(self, path: str, made: bool = False) -> str:
        """Data, a model or a run folder: nodes may see it where it lies."""
        if "://" in path or Path(path).is_absolute():
            return path
        if Path(path).exists() or made:
            return self._within(Path(path)) if self._holds(Path(path)) and not made else str(Path(path).resolve())
        if any((self.root / path) in (file, *file.parents) for file in self.sizes):
            raise UserError(
                f"there is no {path} here ({Path.cwd()}), and a job would take {self.root / path}",
                "check its name, or give the absolute path",
            )
        return path  # of a hub

    def _holds(self, path: Path) -> bool:
        """Whether a file, or all of a folder, is sent."""
        at = path.resolve()
        files = [at] if at.is_file() else (file for file in at.rglob("*") if file.is_file())
        return self.root in at.parents and all(file in self.sizes for file in files)

    def _within(self, path: Path) -> str:
        return str(path.resolve().relative_to(self.root))


def _files(root: Path, excludes: list[str]) -> dict[Path, int]:
    """Files that Ray would send, by its own walk, and their bytes."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    found: dict[Path, int] = {}

    def take(path: Path) -> None:
        if path.is_file():
            found[path] = path.stat().st_size

    _dir_travel(root, [_get_excludes(root, excludes)], take, include_gitignore=True)
    return found


def _named(sizes: dict[Path, int], root: Path) -> str:
    most = sorted(sizes, key=lambda file: -sizes[file])[:_NAMED]
    more = f" and {len(sizes) - _NAMED} more" if len(sizes) > _NAMED else ""
    return ", ".join(f"{file.relative_to(root)} ({_told(sizes[file])})" for file in most) + more


def _told(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _escaped(path: Path) -> str:
    """As a pattern of a .gitignore that matches this path alone."""
    return "".join(f"\\{c}" if c in "*?[]!#\\ " else c for c in path.as_posix())
