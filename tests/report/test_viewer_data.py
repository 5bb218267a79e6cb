"""The viewer's data: scripts that hold what they were given and nothing that runs, whole and bounded."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.errors import AtlasError
from atlas_ray.report import records, shards
from atlas_ray.report.shards import ROWS_PER_SHARD, RowShards, WordIndex, decode, encode, words
from atlas_ray.report.site import ASSETS, asset_names
from atlas_ray.runs.folder import RunFolder
from atlas_ray.types import Message
from tests.support.viewer_records import (
    GOLD,
    HOSTILE_ID,
    IMAGE,
    SCRIPT,
    episode,
    selection,
    site,
    trajectory,
    write,
    write_to,
)

PACKAGE = Path(shards.__file__).parent


def rows(where: Path, name: str) -> list[Any]:
    found, held = decode((where / "data" / f"{name}.js").read_text())
    assert found == name
    return held


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_what_is_encoded_comes_back_and_holds_nothing_that_html_reads(value: Any) -> None:
    text = encode(value)
    assert text.isascii()
    assert not set("<>&\n") & set(text)
    assert decode(f'atlasData("x",{text});\n') == ("x", value)


def test_every_script_is_inert(tmp_path: Path) -> None:
    write(tmp_path, site())
    for script in (tmp_path / "data").iterdir():
        assert not set(script.read_bytes()) & set(b"<>&")
        assert re.match(rf'atlasData\("{script.stem}",', script.read_text())


def test_a_line_and_a_record_hold_all_of_a_trajectory(tmp_path: Path) -> None:
    write(tmp_path, site(many=3))
    lines = rows(tmp_path, "trajectories-index")
    assert [line[0] for line in lines] == [
        HOSTILE_ID,
        *(f"maze/maze_{i}" for i in range(3)),
        "wordle/wordle_7",
        "wordle/wordle_8",
    ]
    assert lines[1] == ["maze/maze_0", 1, 0, 5, [2, 2, None], "maze_0 starts"]
    assert [line[2] for line in lines] == [0, 0, 0, 0, 2, 3]  # success, failure, not recorded
    assert lines[5][4] == [2, -1, None]  # llm failed
    hostile = rows(tmp_path, "trajectories-0")[0]
    assert (
        hostile["turns"][3] == ["step", f"step 1 of {HOSTILE_ID.partition('/')[2]}", "go 1"]
        or len(hostile["turns"]) == 13
    )
    assert hostile["turns"][4] == ["user", f"door 1 opens {SCRIPT} {IMAGE} \u2028 line"]
    assert hostile["gold"] == [[g.step, g.rank, str(g.category)] for g in GOLD]
    assert hostile["selections"][0] == {
        "chosen": [2, 4],
        "scores": [0, 2, 0, 1, 0],
        "categories": [[2, "Plan Creation"]],
    }
    assert hostile["selections"][1] == {"chosen": [3], "plan": IMAGE, "reason": f"because {SCRIPT} {IMAGE}"}
    assert hostile["selections"][2] is None


@pytest.mark.parametrize(
    ("reply", "turn"),
    [
        ("Thought: a\nAction: b", ["step", "a", "b"]),
        ("Action: b", ["step", "", "b"]),
        ("no form at all", ["step", "", "no form at all", "no form at all"]),
        ("Note. Action: b", ["step", "", "Note. Action: b", "Note. Action: b"]),
        ("Thought: only", ["step", "only", "", "Thought: only"]),
    ],
)
def test_a_reply_without_form_is_kept_as_it_was_written(reply: str, turn: list[str]) -> None:
    assert records._turns([Message("assistant", reply, True)]) == [turn]


def test_scores_that_json_has_no_number_for_are_none() -> None:
    t = trajectory("maze", "maze_1")
    record = records.trajectory_record(t, [selection("value", t, 1, scores=(float("nan"), float("-inf"), 1 / 3, 0, 0))])
    assert record["selections"][0]["scores"] == [None, None, 0.3333, 0, 0]


def test_rows_are_cut_by_number_and_by_size(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    many = RowShards(folder, "many")
    for i in range(2 * ROWS_PER_SHARD + 1):
        many.add([i])
    many.close()
    assert many.starts == [0, ROWS_PER_SHARD, 2 * ROWS_PER_SHARD]
    assert rows(tmp_path, "many-2") == [[2 * ROWS_PER_SHARD]]
    large = RowShards(folder, "large")
    for _ in range(3):
        large.add("x" * 600_000)
    large.close()
    assert large.starts == [0, 1, 2]


def test_the_word_index_knows_every_row_of_every_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "WORD_SHARD_CHARACTERS", 20_000)
    texts = [f"Row {i} says word{i % 7} and Ünïcode_{i}" for i in range(5000)]
    index = WordIndex()
    for i, text in enumerate(texts):
        index.add(i, [text])
    firsts = index.write(RunFolder(str(tmp_path)), "w")
    held = [row for i in range(len(firsts)) for row in rows(tmp_path, f"w-{i}")]
    assert len(firsts) > 1
    assert [rows(tmp_path, f"w-{i}")[0][0] for i in range(len(firsts))] == firsts
    assert [row[0] for row in held] == sorted({w for text in texts for w in words(text)})
    by_word = {row[0]: list(itertools.accumulate(row[1:])) for row in held}
    assert by_word["word3"] == [i for i in range(5000) if i % 7 == 3]
    assert by_word["ünïcode"] == list(range(5000))
    assert by_word["4999"] == [4999]


def test_words_are_letters_and_digits_of_bounded_length() -> None:
    assert words("Maze_17: GO left-2!") == {"maze", "17", "go", "left", "2"}
    assert words("x" * 99) == {"x" * 32}


def test_the_same_tasks_of_every_model_are_kept_and_the_page_says_so(tmp_path: Path) -> None:
    from atlas_ray.types import StopReason

    played = {
        name: [episode(name, "maze", f"maze_{i}", StopReason.DONE, success=True) for i in order]
        for name, order in (("a", range(50)), ("b", reversed(range(50))))
    }
    page = write(tmp_path, site(many=1, episodes=played, episodes_per_model=10)).read_text()
    kept = [[line[0] for line in rows(tmp_path, "episodes-index") if line[3] == model] for model in (0, 1)]
    assert len(kept[0]) == 10
    assert kept[0] == kept[1]
    assert "At most 10 episodes a model can be read here" in page
    assert "80 are left out" in page


def test_an_earlier_report_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path, site(many=900))
    assert (tmp_path / "data" / "trajectories-4.js").exists()
    write(tmp_path, site(many=1))
    assert not (tmp_path / "data" / "trajectories-1.js").exists()


def test_the_folder_may_be_an_object_store(tmp_path: Path) -> None:
    page = write(tmp_path, site(many=2))
    store = RunFolder("fsspec+memory://bucket/report")
    store.write_bytes("data/trajectories-9.js", b"of an earlier report")
    write_to(store, site(many=2))
    assert not store.has("data/trajectories-9.js")
    for name in ("index.html", "data/meta.js", "data/episodes-0.js", "assets/app.js"):
        assert store.read_bytes(name) == (page.parent / name).read_bytes()


def test_tables_figures_and_downloads_stand_on_the_page(tmp_path: Path) -> None:
    page = write(tmp_path, site(many=1)).read_text()
    assert "Table 1 &lt;/script&gt;" in page
    assert 'id="figures-figure2"' in page
    assert '<a href="./tables/table%201.csv">tables/table 1.csv</a>' in page
    for path in ("../secret", "/etc/passwd", ""):
        with pytest.raises(AtlasError, match="outside the report's folder"):
            write(tmp_path, site(many=1, downloads=[path]))


def test_scripts_never_read_data_as_html() -> None:
    for name in asset_names():
        text = (PACKAGE / ASSETS / name).read_text()
        assert len(text.splitlines()) < 400
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "fetch(",
        ):
            assert way not in text


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_on_every_ground(theme: str) -> None:
    css = (PACKAGE / ASSETS / "site.css").read_text()
    block = css[css.index(":root {" if theme == "light" else ':root[data-theme="dark"] {') :]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block[: block.index("}")]))
    for ground in ("paper", "wash"):
        for text in ("ink", "muted", "accent", "good", "bad", "other"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for ground in ("wash-a", "wash-b", "mark"):
        assert _contrast(colours["ink"], colours[ground]) >= 4.5, ground


def _contrast(one: str, two: str) -> float:
    """WCAG's ratio of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)
