"""Where a chat template writes earlier turns anew, a trajectory is several sequences, and none is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.selection.perplexity.scores import Scored, in_order
from atlas_ray.training.data.corpus import TOKENS, Corpus, tokens_of
from atlas_ray.training.data.examples import build_examples, training_examples, with_ids, without_ids
from atlas_ray.training.stage import plan_lines
from atlas_ray.types import Selection
from tests.support.tiny import REWRITING_TEMPLATE, tiny_llama, tiny_tokenizer
from tests.support.training import TRAJECTORIES_HERE, a_config, write_data

CHAT = ChatFormat(tiny_tokenizer(REWRITING_TEMPLATE, "<|im_end|>"))
LONG = TRAJECTORIES_HERE[4]  # six steps


def base(folder: Path) -> str:
    tokenizer = tiny_tokenizer(REWRITING_TEMPLATE, "<|im_end|>")
    tiny_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_each_step_carries_loss_behind_the_prompt_it_is_given() -> None:
    tokens = tokens_of(LONG, CHAT)
    assert TOKENS.from_table(TOKENS.to_table([tokens]))[0].starts.tolist() == tokens.starts.tolist()
    examples = training_examples(tokens, [2, 5], 500)
    assert len(tokens.starts) == len(LONG.steps) == 6
    assert len(examples) == 2
    for example, step in zip(examples, (LONG.steps[1], LONG.steps[4]), strict=True):
        ((start, end),) = example.spans
        assert example.ids[:start].tolist() == CHAT.opening(LONG.messages[: step.position])
        assert end == example.length
        own = "".join(CHAT.tokenizer.convert_ids_to_tokens(example.ids[start:end].tolist()))
        assert own.endswith(f"{step.reply.removeprefix('Thought:')}<|im_end|>")  # </think>Thought: is no word here
    assert [(e.steps, e.steps_chosen, e.steps_lost) for e in examples] == [(6, 2, 0), (0, 0, 0)]
    assert examples[0].step_tokens == sum(end - start for start, end in tokens.spans)
    limit = examples[0].length
    assert [(e.length, e.steps_lost) for e in training_examples(tokens, [2, 5], limit)] == [(limit, 1)]


def test_a_run_counts_trajectories_and_finds_its_tokens_again(tmp_path: Path) -> None:
    corpus = Corpus.of(TRAJECTORIES_HERE, CHAT)
    config = a_config(model=base(tmp_path / "base"))
    chosen = [Selection(t.id, t.env, t.item_id, "x", 0.3, len(t.steps), (1, 2)) for t in TRAJECTORIES_HERE]
    prepared = build_examples(config, corpus, TRAJECTORIES_HERE, chosen)
    assert len(prepared.examples) == 2 * len(TRAJECTORIES_HERE)
    assert prepared.unselected == 0
    steps = sum(len(t.steps) for t in TRAJECTORIES_HERE)
    assert prepared.statistics.step_fraction == pytest.approx(2 * len(TRAJECTORIES_HERE) / steps)
    again = with_ids(without_ids(prepared.examples), corpus)
    assert all(a.ids.tolist() == b.ids.tolist() for a, b in zip(again, prepared.examples, strict=True))
    with pytest.raises(UserError, match="a trajectory is several sequences, and loss: trajectory weighs it as one"):
        build_examples(config.model_copy(update={"loss": "trajectory"}), corpus, TRAJECTORIES_HERE, chosen)


def test_a_plan_says_what_writing_turns_anew_costs(tmp_path: Path) -> None:
    data: DataConfig = write_data(tmp_path)
    lines = plan_lines(a_config(model=base(tmp_path / "base"), data=data))
    steps = sum(len(t.steps) for t in TRAJECTORIES_HERE)
    assert f"the chat template writes earlier turns anew: {steps} sequences" in lines
    assert lines[0].startswith(f"{len(TRAJECTORIES_HERE)} trajectories")


def test_perplexity_reads_each_step_behind_its_own_prompt() -> None:
    sequences = Scored.of(LONG, CHAT, 500)
    assert [s.steps for s in sequences] == [[1], [2], [3], [4], [5], [6]]
    found = [s.perplexities([float(s.steps[0])] * (s.spans[0][1] - s.spans[0][0])) for s in reversed(sequences)]
    assert in_order(LONG, found[1:]) == pytest.approx((*(2.718281828**n for n in range(1, 6)), 0.0))
