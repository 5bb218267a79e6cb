"""The control of a selector: as many loss tokens, in random steps."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.matched import MatchedRandomSelector, select_matched
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.training.data.corpus import tokens_of
from atlas_ray.trajectories import index
from atlas_ray.trajectories.index import Outline
from atlas_ray.types import Selection
from tests.selection.test_selection import config_of, data_in, expert
from tests.support.tiny import tiny_tokenizer
from tests.support.training import training_example

FIRST = {"name": "first", "ratio": 0.3}
CONFIG = MatchedRandomSelector(reference="ours", model="m")


def drawn(sizes: dict[int, int], chosen: tuple[int, ...], seed: int = 0, number: int = 0) -> tuple[int, ...]:
    """What is drawn beside a selection of the steps of a trajectory, with their tokens."""
    t = Outline(f"maze/{number}", "maze", str(number), len(sizes))
    ours = Selection(t.id, t.env, t.item_id, "ours", None, t.n_steps, chosen)
    return select_matched(t, CONFIG, seed, {t.id: ours}, sizes).chosen


@given(st.data())
def test_a_control_has_as_many_tokens_to_within_a_step(data: Any) -> None:
    sizes = dict(enumerate(data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=12)), 1))
    chosen = tuple(sorted(data.draw(st.sets(st.sampled_from(sorted(sizes)), min_size=1))))
    found = drawn(sizes, chosen, data.draw(st.integers(0, 99)))
    assert found
    assert abs(sum(sizes[t] for t in found) - sum(sizes[t] for t in chosen)) < max(sizes.values())


@pytest.mark.parametrize("prefers", ["any", "long", "short"])
def test_over_a_data_set_a_control_has_the_same_loss_tokens(prefers: str) -> None:
    draw = random.Random(7)
    ours = theirs = 0
    for number in range(3000):
        sizes = {t: round(5 + draw.lognormvariate(2.5, 0.7)) for t in range(1, draw.randint(3, 14))}
        sign = {"any": 0, "long": -1, "short": 1}[prefers]
        steps = sorted(draw.sample(sorted(sizes), len(sizes)), key=lambda t, own=sizes: sign * own[t])
        chosen = tuple(sorted(steps[: max(1, len(sizes) * 3 // 10)]))
        ours += sum(sizes[t] for t in chosen)
        theirs += sum(sizes[t] for t in drawn(sizes, chosen, number=number))
    assert theirs == pytest.approx(ours, rel=0.02)


def test_every_step_is_drawn_alike_where_all_have_the_same_tokens() -> None:
    found = [drawn(dict.fromkeys(range(1, 11), 20), (2, 5, 7), number=i) for i in range(2000)]
    assert all(len(steps) == 3 for steps in found)
    counts = [sum(t in steps for steps in found) for t in range(1, 11)]
    assert all(abs(count - 600) < 90 for count in counts)
    assert found[:50] == [drawn(dict.fromkeys(range(1, 11), 20), (2, 5, 7), number=i) for i in range(50)]
    assert found != [drawn(dict.fromkeys(range(1, 11), 20), (2, 5, 7), seed=1, number=i) for i in range(2000)]


def test_tokens_are_counted_as_training_counts_them(tmp_path: Path) -> None:
    tokenizer, data = tiny_tokenizer(), [expert(8, i) for i in range(40)]
    tokenizer.save_pretrained(str(tmp_path / "model"))
    given_data, limit = data_in(tmp_path / "data", data), 150
    ours = {s.id: s.chosen for s in select_steps(config_of(tmp_path / "ours", given_data, FIRST)).read(SELECTIONS)}
    section = {"name": "matched_random", "reference": "ours"}
    with pytest.raises(UserError, match=r"selector\.model is missing"):
        select_steps(config_of(tmp_path / "none", given_data, section))
    section |= {"model": str(tmp_path / "model"), "max_length": limit}
    found = select_steps(config_of(tmp_path / "control", given_data, section)).read(SELECTIONS)
    ours = {
        s.id: s.chosen
        for s in select_steps(config_of(tmp_path / "ours", given_data, {"name": "first"})).read(SELECTIONS)
    }
    chat, by_id = ChatFormat(tokenizer), {t.id: t for t in data}
    totals = [0, 0]
    for s in found:
        tokens = tokens_of(by_id[s.id], chat)
        pair = [training_example(tokens, steps, limit) for steps in (ours[s.id], s.chosen)]
        assert pair[1].steps_lost == 0
        totals = [total + example.loss_tokens for total, example in zip(totals, pair, strict=True)]
    assert totals[1] == pytest.approx(totals[0], rel=0.02)
    assert {t for s in found for t in s.chosen} > {1, 2}


def test_workers_draw_what_one_process_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained("model")
    given_data = data_in(Path("data"), [expert(8, i) for i in range(12)])
    select_steps(config_of(Path("ours"), given_data, FIRST))
    section = {"name": "matched_random", "reference": "ours", "model": "model"}
    here = select_steps(config_of(Path("here"), given_data, section)).read(SELECTIONS)
    monkeypatch.setattr(index, "SMALL", -1)
    workers = select_steps(config_of(Path("workers"), given_data, section)).read(SELECTIONS)
    assert {s.id: s.chosen for s in workers} == {s.id: s.chosen for s in here}
    assert not any(s.error for s in workers)


def test_without_a_reference_there_is_no_control() -> None:
    t = Outline("maze/1", "maze", "1", 3)
    failed = Selection(t.id, t.env, t.item_id, "ours", None, 3, (), error="no answer: HTTP 500")
    found = select_matched(t, CONFIG, 0, {t.id: failed}, {1: 5, 2: 5, 3: 5})
    assert found.error == "no reference: no answer: HTTP 500"
    assert drawn({1: 5, 2: 5, 3: 5}, ()) == ()
