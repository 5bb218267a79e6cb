"""Data as scripts, since a page opened from disk may load scripts but not fetch files.

Flows in: rows that JSON can hold; flows out: `data/NAME.js`, each `atlasData("NAME", [...]);` with one row a line, and
the numbers by which the page finds a row or a word. Every character that HTML or old JavaScript could take for its own
is escaped, so that untrusted text stays text whatever reads the file.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from atlas_ray.runs.folder import RunFolder

DATA = "data"
ROWS_PER_SHARD = 200
SHARD_CHARACTERS = 1_000_000
WORD_SHARD_CHARACTERS = 200_000
LONGEST_WORD = 32
_WORD = re.compile(r"[^\W_]+")
_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&"})


def encode(value: Any) -> str:
    """JSON in pure ASCII without `<`, `>` and `&`; U+2028 and U+2029 are escaped as all that is not ASCII."""
    return json.dumps(value, separators=(",", ":")).translate(_ESCAPES)


def decode(script: str) -> tuple[str, Any]:
    """The name and the rows of a script that this module wrote."""
    body = script.removeprefix("atlasData(").removesuffix(");\n")
    name, rows = json.loads(f"[{body}]")
    return name, rows


class RowShards:
    """Writes rows in scripts `NAME-0`, `NAME-1`, ..., each of at most so many rows and, but for one row, characters.

    Attributes:
        starts: The number of the first row of each script.
    """

    def __init__(
        self, folder: RunFolder, name: str, most: int | None = ROWS_PER_SHARD, characters: int = SHARD_CHARACTERS
    ) -> None:
        self._folder, self._name, self._most, self._characters = folder, name, most, characters
        self._rows: list[str] = []
        self._size = 0
        self._count = 0
        self.starts: list[int] = []

    def add(self, row: Any) -> None:
        """Takes the next row; it is held in memory until its script is full."""
        text = encode(row)
        if self._rows and (len(self._rows) == self._most or self._size + len(text) > self._characters):
            self.close()
        self._rows.append(text)
        self._size += len(text)

    def close(self) -> None:
        """Writes what is held."""
        if self._rows:
            write_rows(self._folder, f"{self._name}-{len(self.starts)}", self._rows)
            self.starts.append(self._count)
            self._count += len(self._rows)
            self._rows, self._size = [], 0


class WordIndex:
    """Which rows hold which word of their full text, in scripts that are loaded for the words asked for."""

    def __init__(self) -> None:
        self._rows: dict[str, array[int]] = {}

    def add(self, row: int, texts: Iterable[str]) -> None:
        """Notes the words of row `row`; rows come in ascending order."""
        for word in set().union(*(words(text) for text in texts)):
            self._rows.setdefault(word, array("I")).append(row)

    def write(self, folder: RunFolder, name: str) -> list[str]:
        """Writes `NAME-0`, `NAME-1`, ...: rows of a word and its row numbers, each as the distance from the one before.

        Returns:
            The first word of each script; words are ordered as JavaScript compares them, by UTF-16 units.
        """
        ordered = sorted(self._rows, key=lambda word: word.encode("utf-16-be", "surrogatepass"))
        shards = RowShards(folder, name, None, WORD_SHARD_CHARACTERS)
        for word in ordered:
            shards.add([word, *(after - before for before, after in pairwise([0, *self._rows[word]]))])
        shards.close()
        return [ordered[start] for start in shards.starts]


def words(text: str) -> set[str]:
    """Runs of letters and digits in lower case, cut at `LONGEST_WORD`; assets/data.js finds the same in a query."""
    return {word[:LONGEST_WORD] for word in _WORD.findall(text.lower())}


def write_rows(folder: RunFolder, name: str, rows: Iterable[str]) -> None:
    """Writes one script of encoded rows."""
    body = ",\n".join(rows)
    folder.write_bytes(f"{DATA}/{name}.js", f'atlasData("{name}",[\n{body}\n]);\n'.encode("ascii"))


def write_meta(folder: RunFolder, meta: Mapping[str, Any]) -> None:
    """Writes the script that the page starts from."""
    folder.write_bytes(f"{DATA}/meta.js", f'atlasData("meta",{encode(meta)});\n'.encode("ascii"))
