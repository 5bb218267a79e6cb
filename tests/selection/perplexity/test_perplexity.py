"""Step perplexity: by hand, against one pass a step, packed, by vLLM, and through Ray."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from atlas_ray.errors import TooManyFailed, UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.runs.tables import TRAJECTORIES as TRAJECTORY_TABLE
from atlas_ray.selection.budget import budget, top_k
from atlas_ray.selection.perplexity.scores import Scores, dtype_of, engine_of, readable, select_perplexity, workers_of
from atlas_ray.selection.perplexity.selector import PerplexitySelector
from atlas_ray.selection.perplexity.stage import PerplexityWorker
from atlas_ray.selection.perplexity.torch_engine import TorchScorer, packs
from atlas_ray.selection.perplexity.vllm_engine import VllmScorer
from atlas_ray.selection.pipeline import select_steps, settled
from atlas_ray.types import Message, Selection, Trajectory, Usage
from tests.selection.test_selection import config_of, data_in
from tests.support.tiny import tiny_llama, tiny_tokenizer

if TYPE_CHECKING:
    from atlas_ray.models.engine import VllmPolicy


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


def save(folder: Path, lm: Any) -> str:
    lm.get_input_embeddings().weight.data *= 20  # far from uniform, so that a shift by one would show
    lm.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), tiny_llama(len(tiny_tokenizer())))


def scored(model: str, trajectories: Sequence[Trajectory], **options: Any) -> list[tuple[float, ...]]:
    return [found.steps for found in TorchScorer(model, **options).score(trajectories)]


def step_by_step(model: str, trajectory: Trajectory) -> list[float]:
    """Eq. 5 as it is written: one pass a step over all before it and its own tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    lm, chat, found = AutoModelForCausalLM.from_pretrained(model), ChatFormat.load(model), []
    for step in trajectory.steps:
        (rendered,) = chat.render(trajectory.messages[: step.position + 1])
        start, end = rendered.spans[-1] or (0, 0)
        with torch.no_grad():
            logp = lm(torch.tensor([rendered.ids])).logits[0].log_softmax(-1)
        nll = [-logp[i - 1, rendered.ids[i]].item() for i in range(start, end)]
        found.append(math.exp(sum(nll) / len(nll)))
    return found


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_one_pass_a_trajectory_equals_one_pass_a_step(model: str, batch_tokens: int) -> None:
    scores = scored(model, TRAJECTORIES, batch_tokens=batch_tokens)
    for trajectory, found in zip(TRAJECTORIES, scores, strict=True):
        assert list(found) == pytest.approx(step_by_step(model, trajectory), rel=1e-3)


def test_a_uniform_model_finds_every_step_as_hard_as_its_vocabulary(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    lm = tiny_llama(len(tokenizer))
    lm.get_input_embeddings().weight.data.zero_()  # tied: all logits are zero
    lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scores = scored(str(tmp_path), TRAJECTORIES[:1], dtype="bfloat16")
    assert scores[0] == pytest.approx([len(tokenizer)] * 3, rel=1e-4)


def test_steps_beyond_max_length_get_no_score(model: str) -> None:
    long = TRAJECTORIES[2]
    whole = scored(model, [long])[0]
    ends = [span[1] for span in ChatFormat.load(model).render(long.messages)[0].spans[2:] if span]
    config = PerplexitySelector(ratio=1.0, model=model)
    for max_length, within in ((ends[3], 4), (ends[3] - 1, 3)):
        found = scored(model, [long, TRAJECTORIES[1]], max_length=max_length)[0]
        assert found[:within] == pytest.approx(whole[:within], rel=1e-5)
        assert found[within:] == (0.0,) * (9 - within)
        assert select_perplexity(long, config, Scores(found)).chosen == tuple(range(1, within + 1))
    none = scored(model, [long], max_length=16)[0]
    assert "too long" in (select_perplexity(long, config, Scores(none)).error or "")


def test_the_hardest_steps_are_chosen() -> None:
    config = PerplexitySelector(ratio=0.5, model="m")
    found = select_perplexity(expert(["a"] * 4), config, Scores((2.0, 9.0, 3.0, 9.0)))
    assert (found.chosen, found.scores, found.model) == ((2, 4), (2.0, 9.0, 3.0, 9.0), "m")
    assert "not a number" in (select_perplexity(expert(["a"]), config, Scores((math.nan,))).error or "")


def test_a_worker_to_each_gpu_in_bfloat16_unless_it_says_otherwise() -> None:
    plain, told = PerplexitySelector(), PerplexitySelector(num_workers=3, dtype="float32")
    assert [workers_of(plain, gpus, 100) for gpus in (0, 1, 8)] == [1, 1, 8]
    assert (workers_of(plain, 8, 5), workers_of(told, 8, 100), workers_of(told, 0, 100)) == (5, 3, 3)
    assert [dtype_of(plain, gpus) for gpus in (0, 0.5, 8)] == ["float32", "bfloat16", "bfloat16"]
    assert {dtype_of(told, gpus) for gpus in (0, 8)} == {"float32"}
    assert [engine_of(plain, gpus) for gpus in (0, 8)] == ["vllm", "torch"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_goes_on_in_the_number_format_in_which_it_began(tmp_path: Path) -> None:
    def dtype(clean: bool = False, **given: str) -> str:
        config = config_of(tmp_path / "run", {"path": "x"}, {"name": "perplexity", **given})
        return str(getattr(settled(config, RunFolder(config.run), clean).selector, "dtype", None))

    assert dtype() == "float32"  # no GPU here
    begun = config_of(tmp_path / "run", {"path": "x"}, {"name": "perplexity", "dtype": "bfloat16"})
    RunFolder(begun.run).begin(begun, stage="select")
    assert [dtype(), dtype(dtype="float32"), dtype(clean=True)] == ["bfloat16", "float32", "float32"]


@pytest.mark.parametrize(
    ("engine", "dtype", "gpus", "taken"),
    [
        ("auto", "float32", 0, "vllm"),
        ("auto", "bfloat16", 0, "torch"),
        ("auto", "float32", 8, "torch"),
        ("vllm", "bfloat16", 8, "vllm"),
        ("torch", "float32", 0, "torch"),
    ],
)
def test_auto_takes_the_faster_engine_where_both_agree(engine: Any, dtype: Any, gpus: int, taken: str) -> None:
    assert engine_of(PerplexitySelector(engine=engine, dtype=dtype), gpus) == taken


def test_packs_hold_like_lengths_within_the_limit() -> None:
    assert list(packs([5, 90, 4, 6, 100], 200)) == [[4, 1, 3], [0, 2]]
    assert list(packs([300, 10, 0, 10], 100)) == [[0], [1, 3]]
    assert list(packs([], 100)) == []


def test_neighbours_in_a_pack_change_nothing(model: str) -> None:
    alone = [scored(model, [t])[0] for t in TRAJECTORIES]
    for order in ([0, 1, 2], [2, 0, 1], [0, 0, 0]):
        together = scored(model, [TRAJECTORIES[i] for i in order])
        for i, found in zip(order, together, strict=True):
            assert found == pytest.approx(alone[i], rel=1e-5)


RULES = "You see the wall . go up go down go left go right win " * 5


def instructed(replies: list[str], number: int, rules: str = RULES, env: str = "maze") -> Trajectory:
    plain = expert(replies, number)
    messages = (Message("user", rules), *plain.messages[1:])
    return replace(plain, id=f"{env}/{env}_{number}", env=env, messages=messages)


WITH_RULES = [
    *(instructed(["Action: go left", f"Thought: I see Action: go {way}"], n) for n, way in enumerate(["up", "down"])),
    *(instructed(["Action: win"] * (n % 3), n, "go up . " * 20, "wordle") for n in range(1, 6)),
    instructed(["Action: go left", "Action: win"] * 4, 7),
]


@pytest.mark.parametrize("batch_tokens", [1, 200, 10_000])
def test_what_an_environments_trajectories_begin_with_is_computed_once(model: str, batch_tokens: int) -> None:
    scorer, seen = TorchScorer(model, batch_tokens=batch_tokens), list[int]()
    scorer._body.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    found = scorer.score(WITH_RULES)
    for trajectory, scores in zip(WITH_RULES, found, strict=True):
        if trajectory.steps:
            assert scores.steps == pytest.approx(step_by_step(model, trajectory), rel=1e-3)
            assert scores.steps == pytest.approx(scored(model, [trajectory])[0], rel=1e-5)
    assert sum(seen) == sum(scores.usage.prompt_tokens - scores.usage.cached_tokens for scores in found)
    shared = {
        t.env: {s.usage.cached_tokens for u, s in zip(WITH_RULES, found, strict=True) if u.env == t.env}
        for t in WITH_RULES
    }
    assert min(max(tokens) for tokens in shared.values()) >= 60
    assert all(0 in tokens for tokens in shared.values())  # the first of each pays for it
    assert scorer.score(WITH_RULES[:1])[0].usage.cached_tokens == 0


def test_steps_that_all_trajectories_begin_with_are_scored_in_each(model: str) -> None:
    alike = [instructed(["Action: go left"] * n, n) for n in (1, 2, 3)]
    one, two, three = scored(model, alike)
    assert len(three) == 3
    assert one == pytest.approx(three[:1], rel=1e-5)
    assert two == pytest.approx(three[:2], rel=1e-5)


def test_a_model_whose_states_depend_on_what_follows_shares_nothing(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    scorer = TorchScorer(save(tmp_path, tiny_llama(len(tiny_tokenizer()), rope_parameters=rope)))
    assert {found.usage.cached_tokens for found in scorer.score(WITH_RULES)} == {0}


def test_figures_count_the_tokens_that_were_computed() -> None:
    config = PerplexitySelector(model="m")
    found = [Scores((2.0, 3.0), Usage(100, cached, 0, 1)) for cached in (0, 40)]
    figures = config.figures(select_perplexity(expert(["a", "b"]), config, one) for one in found)
    assert figures == {"unscored_steps": 0, "tokens_computed": 160}


def test_a_sliding_window_slides_within_its_own_trajectory(tmp_path: Path) -> None:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "sliding_window": 7}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = MistralConfig(vocab_size=len(tiny_tokenizer()), max_position_embeddings=512, **shape, **heads)
    model = save(tmp_path, MistralForCausalLM(config))
    for trajectory, found in zip(TRAJECTORIES, scored(model, TRAJECTORIES), strict=True):
        assert list(found) == pytest.approx(step_by_step(model, trajectory), rel=1e-3)


def test_a_model_whose_tokens_would_see_other_trajectories_is_refused(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, MambaConfig, MambaForCausalLM

    vocab = len(tiny_tokenizer())
    small = {"hidden_size": 32, "num_hidden_layers": 1}
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=vocab, state_size=4, **small))
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 32}
    capped = Gemma2ForCausalLM(Gemma2Config(vocab_size=vocab, final_logit_softcapping=None, **small, **heads))
    for name, lm, why in (("mamba", recurrent, "cannot be packed"), ("gemma", capped, "attn_logit_softcapping")):
        with pytest.raises(UserError, match=why) as refused:
            TorchScorer(save(tmp_path / name, lm))
        assert "engine=vllm" in refused.value.remedy


def test_both_engines_read_what_fits_and_leave_room_for_one_token(model: str) -> None:
    assert (readable(8192, 2048), readable(1000, 2048), readable(8192, None)) == (2047, 1000, 8192)
    long = expert(["Action: go left"] * 300)  # beyond the model's context
    found = scored(model, [long])[0]
    assert 0 < found.count(0.0) < 300


@pytest.mark.asyncio(loop_scope="session")
async def test_vllm_and_torch_choose_the_same_steps(engine: VllmPolicy) -> None:
    rng = random.Random(0)
    words = [a + b + c for a in "abcdefgh" for b in "aeiou" for c in "klmnop"]
    replies = [[" ".join(rng.choices(words, k=rng.randint(2, 20))) for _ in range(4 + i % 12)] for i in range(100)]
    trajectories = [expert(r, i) for i, r in enumerate([*replies, ["Action: go"] * 200])]
    by_torch = scored(engine.spec.model, trajectories)
    by_vllm = [found.steps for found in await VllmScorer(engine).score(trajectories)]
    for one, other in zip(by_torch, by_vllm, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    chosen = [[top_k(s, budget(0.3, len(s))) for s in found[:100]] for found in (by_torch, by_vllm)]
    assert sum(a == b for a, b in zip(*chosen, strict=True)) >= 99


def test_a_model_that_cannot_be_loaded_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load"):
        TorchScorer(str(tmp_path))


@pytest.mark.slow
def test_neither_workers_nor_a_restart_change_a_score(model: str, tmp_path: Path) -> None:
    many = [expert(["Action: go left", "Thought: a b Action: c", "Action: d"] * (1 + i % 7), i) for i in range(70)]
    data = data_in(tmp_path / "data", many)

    def run(name: str, workers: int, before: list[Selection]) -> list[Selection]:
        section = {"name": "perplexity", "model": model, "engine": "torch", "num_workers": workers, "batch_tokens": 512}
        config = config_of(tmp_path / name, data, section)
        folder = RunFolder(config.run)
        folder.begin(config, stage="select")
        folder.write_shard(SELECTIONS, before)
        return select_steps(config).read(SELECTIONS)

    undisturbed = run("one", 1, [])
    assert len(undisturbed) == 70
    assert not any(s.error for s in undisturbed)
    # As if killed: some of a chunk are recorded, others not, and one carries a mark to show that it stays.
    recorded = [replace(undisturbed[0], plan="kept"), *undisturbed[5:60:3]]
    assert run("three", 3, recorded) == [recorded[0], *undisturbed[1:]]


@pytest.mark.slow
def test_a_model_that_no_worker_can_load_stops_the_stage(tmp_path: Path) -> None:
    data = data_in(tmp_path / "data", TRAJECTORIES)
    for engine in ("torch", "vllm"):
        section = {"name": "perplexity", "model": str(tmp_path / "nothing"), "engine": engine}
        with pytest.raises(UserError, match="no model"):
            select_steps(config_of(tmp_path / engine, data, section))


@pytest.mark.slow
def test_the_vllm_engine_works_in_a_worker(model: str, tmp_path: Path) -> None:
    data = data_in(tmp_path / "data", [expert(["Action: go left", "Thought: a b Action: c"] * 3, i) for i in range(20)])
    found = []
    for engine in ("torch", "vllm"):
        section = {"name": "perplexity", "model": model, "engine": engine}
        found.append(select_steps(config_of(tmp_path / engine, data, section)).read(SELECTIONS))
    for one, other in zip(*found, strict=True):
        assert (one.id, one.chosen, one.error) == (other.id, other.chosen, None)
        assert one.scores == pytest.approx(other.scores, rel=1e-4)


def test_trajectories_that_cannot_be_scored_many_times_in_a_row_end_the_run() -> None:
    def score(trajectories: Sequence[Trajectory]) -> list[Scores]:
        if any(t.item_id != "maze_1" for t in trajectories):
            raise RuntimeError("out of memory")
        return [Scores((1.0,) * len(t.steps)) for t in trajectories]

    worker = PerplexityWorker(PerplexitySelector(model="m"), "torch", "m", 1, 0.0)
    worker._score = score
    good, bad = TRAJECTORIES[:1], [TRAJECTORIES[1]]
    for block in (bad * 31, good + bad * 20, bad * 11):
        assert len(worker(TRAJECTORY_TABLE.to_table(block))) == len(block)
    with pytest.raises(TooManyFailed, match="32 selections in a row failed; the first: cannot be scored: out"):
        worker(TRAJECTORY_TABLE.to_table(bad))
