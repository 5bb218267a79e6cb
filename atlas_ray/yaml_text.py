"""YAML as people write it: read as text in UTF-8, with a bound on what its aliases stand for. Imports nothing heavy."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import yaml

from atlas_ray.errors import UserError

_MOST_VALUES = 100_000  # once aliases are written out; a recipe of 500 arms has a tenth of them


def read_yaml(file: str | Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """What a YAML file holds: UTF-8, or UTF-16 behind a byte order mark, whatever the machine's own encoding is.

    Raises:
        UserError: If it cannot be read, is no text in these, or no YAML of a readable size.
    """
    try:
        return parse_yaml(Path(file).read_bytes(), str(file), loader)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", "check its name") from None
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{file} is no text in UTF-8: {error.reason} at byte {error.position}", "save it as UTF-8"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {error}", "mend the file") from None


def parse_yaml(text: str | bytes, where: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """What YAML says. A few lines of aliases can stand for more than a machine holds: that is seen before it is built.

    Raises:
        UserError: If it is too large or nested too deeply; `where` says what it is of.
        yaml.YAMLError: If it is no YAML.
    """
    parser = loader(text)
    try:
        node = parser.get_single_node()
        if (values := _values(node, {})) > _MOST_VALUES:
            many = f"{values:,}" if values < math.inf else "no end of"
            raise UserError(
                f"{where} holds {many} values once its aliases are written out, and {_MOST_VALUES:,} are read at most",
                "write the values themselves in place of aliases (`*name`) of aliases",
            )
        return parser.construct_document(node) if node is not None else None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be read", "close the brackets that are not meant") from None
    finally:
        parser.dispose()


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """How many values a node stands for; each is looked at once, however many aliases name it."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # where it is a part of itself
        parts = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = sum(_values(part, known) for part in parts)
    return known[id(node)]
