"""Step perplexity: by hand, against one pass a step, and through Ray with different numbers of workers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.perplexity import PerplexityScorer, _batches, select_perplexity
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.settings import PerplexitySelector
from atlas_ray.types import Message, Trajectory
from tests.test_selection import config_of, data_in
from tests.tiny import tiny_llama, tiny_tokenizer


def expert(replies: list[str], number: int = 0) -> Trajectory:
    turns = [Message("user", "You see the wall"), Message("assistant", "OK"), Message("user", "go now")]
    for reply in replies:
        turns += [Message("assistant", reply, True), Message("user", "the wall is here")]
    return Trajectory(f"maze/maze_{number}", "maze", f"maze_{number}", tuple(turns), 1.0)


TRAJECTORIES = [
    expert(["Thought: I see Action: go left", "Action: win", "Thought: go up Action: a b c d e f"], 1),
    expert(["Action: go"], 2),
    expert(["Action: right"] * 9, 3),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model"))
    tokenizer = tiny_tokenizer()
    lm = tiny_llama(len(tokenizer))
    lm.get_input_embeddings().weight.data *= 20  # far from uniform, so that a shift by one would show
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def step_by_step(model: str, trajectory: Trajectory) -> list[float]:
    """Eq. 5 as it is written: one pass a step over all before it and its own tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    lm, chat, found = AutoModelForCausalLM.from_pretrained(model), ChatFormat.load(model), []
    for step in trajectory.steps:
        rendered = chat.render(trajectory.messages[: step.position + 1])
        start, end = rendered.spans[-1] or (0, 0)
        with torch.no_grad():
            logp = lm(torch.tensor([rendered.ids])).logits[0].log_softmax(-1)
        nll = [-logp[i - 1, rendered.ids[i]].item() for i in range(start, end)]
        found.append(math.exp(sum(nll) / len(nll)))
    return found


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_one_pass_a_trajectory_equals_one_pass_a_step(model: str, batch_tokens: int) -> None:
    scores = PerplexityScorer(model, batch_tokens=batch_tokens).score(TRAJECTORIES)
    for trajectory, found in zip(TRAJECTORIES, scores, strict=True):
        assert list(found) == pytest.approx(step_by_step(model, trajectory), rel=1e-3)


def test_a_uniform_model_finds_every_step_as_hard_as_its_vocabulary(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    lm = tiny_llama(len(tokenizer))
    lm.get_input_embeddings().weight.data.zero_()  # tied: all logits are zero
    lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scores = PerplexityScorer(str(tmp_path), dtype="bfloat16").score(TRAJECTORIES[:1])
    assert scores[0] == pytest.approx([len(tokenizer)] * 3, rel=1e-4)


def test_steps_beyond_max_length_get_no_score(model: str) -> None:
    long = TRAJECTORIES[2]
    whole = PerplexityScorer(model).score([long])[0]
    ends = [span[1] for span in ChatFormat.load(model).render(long.messages).spans[2:] if span]
    config = PerplexitySelector(ratio=1.0, model=model)
    for max_length, within in ((ends[3], 4), (ends[3] - 1, 3)):
        found = PerplexityScorer(model, max_length=max_length).score([long, TRAJECTORIES[1]])[0]
        assert found[:within] == pytest.approx(whole[:within], rel=1e-5)
        assert found[within:] == (0.0,) * (9 - within)
        assert select_perplexity(long, config, found).chosen == tuple(range(1, within + 1))
    none = PerplexityScorer(model, max_length=16).score([long])[0]
    assert "too long" in (select_perplexity(long, config, none).error or "")


def test_the_hardest_steps_are_chosen() -> None:
    config = PerplexitySelector(ratio=0.5, model="m")
    found = select_perplexity(expert(["a"] * 4), config, (2.0, 9.0, 3.0, 9.0))
    assert (found.chosen, found.scores, found.model) == ((2, 4), (2.0, 9.0, 3.0, 9.0), "m")
    assert "not a number" in (select_perplexity(expert(["a"]), config, (math.nan,)).error or "")


def test_batches_hold_like_lengths_within_the_limit() -> None:
    assert list(_batches([5, 90, 4, 6, 100], 200)) == [[4, 1], [3, 0, 2]]
    assert list(_batches([300, 10, 10], 100)) == [[0], [1, 2]]
    assert list(_batches([], 100)) == []


def test_a_model_that_cannot_be_loaded_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load"):
        PerplexityScorer(str(tmp_path))


@pytest.mark.slow
def test_one_worker_and_three_choose_the_same(model: str, tmp_path: Path) -> None:
    many = [expert(["Action: go left", "Thought: a b Action: c", "Action: d"] * (1 + i % 7), i) for i in range(70)]
    data = data_in(tmp_path / "data", many)
    found = []
    for workers in (1, 3):
        section = {"name": "perplexity", "model": model, "workers": workers, "batch_tokens": 512}
        folder = select_steps(config_of(tmp_path / f"of{workers}", data, section))
        found.append(folder.read(SELECTIONS))
    assert found[0] == found[1]
    assert len(found[0]) == 70
    assert not any(s.error for s in found[0])


@pytest.mark.slow
def test_a_model_that_no_worker_can_load_stops_the_stage(tmp_path: Path) -> None:
    data = data_in(tmp_path / "data", TRAJECTORIES)
    section = {"name": "perplexity", "model": str(tmp_path / "nothing")}
    with pytest.raises(UserError, match="cannot load"):
        select_steps(config_of(tmp_path / "run", data, section))
