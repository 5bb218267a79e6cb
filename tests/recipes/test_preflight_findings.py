"""What a preflight found, on a terminal and in the report: whole, harmless, passed only where it was."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from atlas_ray.recipes.preflight.findings import RECORD, Finding, findings_table
from atlas_ray.recipes.report import _preflight as preflight_words
from atlas_ray.runs.folder import RunFolder


def test_the_report_says_what_became_of_it(tmp_path: Path) -> None:
    root = RunFolder(str(tmp_path))
    assert preflight_words(root) is None
    ok, failed = {"result": "ok"}, {"result": "failed"}
    for record, words in (
        ({"skipped": True, "findings": []}, "left out (--skip-preflight)"),
        ({"skipped": False, "findings": [ok, {"result": "not checked"}]}, "passed"),
        ({"skipped": False, "findings": [ok, failed]}, "1 of 2 checks failed"),
    ):
        root.write_json(RECORD, record)
        assert preflight_words(root) == words


def test_a_narrow_screen_shows_every_name_whole(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"meta-llama/Llama-3.1-{size}B-Instruct-of-some-length" for size in (8, 70)]
    found = [Finding("model", name, "failed", "no " + "weights " * 20, "copy them there") for name in names]
    Console(width=80, markup=False).print(findings_table(found))
    out = capsys.readouterr().out
    table, _, below = out.partition("1. model")
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert "failed" in table
    assert all(line.startswith("   ") for line in below.splitlines()[1:])


def test_texts_from_outside_are_spelt_out() -> None:
    found = [Finding("data", "a\x1b[2Jb", "failed", "\x1b]0;title\x07[red]x[/red]", "mend\x9b it")]
    out = io.StringIO()
    Console(file=out, width=100, markup=False).print(findings_table(found))
    assert "\x1b" not in out.getvalue()
    assert "[red]x[/red]" in out.getvalue()
