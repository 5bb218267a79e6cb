"""YAML that says more than it holds is refused at once, whoever reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_ray.config import assign
from atlas_ray.errors import UserError
from atlas_ray.yaml_text import read_yaml

LISTS = "a0: &a0 [ha]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
MERGED = "a0: &a0 {b: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (LISTS, r"recipe.yaml holds [\d,]{11,} values once its aliases are written out, and 100,000 are read at most"),
        (MERGED, r"recipe.yaml holds [\d,]{11,} values once"),
        ("a: &a [*a]", "recipe.yaml holds no end of values"),
        ("a: &a {b: *a}", "recipe.yaml holds no end of values"),
        ("a: " + "[" * 3000 + "]" * 3000, "recipe.yaml is nested too deeply"),
    ],
    ids=["lists of lists", "merged mappings", "a list in itself", "a mapping in itself", "nested"],
)
def test_a_small_file_that_stands_for_too_much_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as refused:
        read_yaml(write(tmp_path, text))
    assert refused.value.remedy


def test_a_setting_of_the_command_line_too() -> None:
    with pytest.raises(UserError, match="--set tasks is nested too deeply"):
        assign({}, "tasks=" + "[" * 3000)


def test_aliases_and_merges_are_read(tmp_path: Path) -> None:
    text = "base: &base {epochs: 1, rate: 2}\narms: [&one {<<: *base, rate: 3}, *one]"
    assert read_yaml(write(tmp_path, text))["arms"] == [{"epochs": 1, "rate": 3}] * 2
