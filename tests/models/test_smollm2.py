"""A pretrained model, from the package that holds it to the tokens it is trained on and plays with.

Skipped where neither the hub nor pip's index has it: nothing else could be shown there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from atlas_ray.config import DataConfig
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.registry import get
from atlas_ray.errors import ModelUnavailable
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.conversation import EngineConversation
from atlas_ray.models.engine import EngineModel
from atlas_ray.models.pretrained import PRETRAINED, fetch_pretrained, weights_note
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.training import loop
from atlas_ray.training.data.batching import collate, pack_micro_batches
from atlas_ray.training.data.corpus import Corpus
from atlas_ray.training.data.examples import Example, training_examples
from atlas_ray.training.model.loading import load_model
from atlas_ray.training.settings import TrainConfig
from atlas_ray.trajectories.collect import to_trajectory
from atlas_ray.types import Task, Trajectory, Usage

pytestmark = pytest.mark.slow

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = Path(__file__).parents[2] / PRETRAINED["smollm2"].folder
    if here.exists():
        return here
    try:
        return fetch_pretrained("smollm2", str(tmp_path_factory.mktemp("models") / "smollm2"))
    except ModelUnavailable as error:
        pytest.skip(f"the model cannot be had: {error.what}")


@pytest.fixture(scope="module")
def trajectories() -> list[Trajectory]:
    async def expert(task: Task) -> Trajectory:
        session = LocalSession(get(task.env))
        return to_trajectory(
            await run_episode(ScriptedPolicy("expert"), session, EpisodeRequest(task, Sampling(), seed=0))
        )

    tasks = [task for env, n in {"maze": 7, "textcraft": 7, "wordle": 6}.items() for task in get(env).tasks("train", n)]
    return [asyncio.run(expert(task)) for task in tasks]


def chosen_steps(trajectory: Trajectory) -> list[int]:
    """Every other step; the last one is among them, or is not."""
    steps = len(trajectory.steps)
    return list(range(2 - steps % 2, steps + 1 - (steps > 3), 2))


def by_hand(trajectory: Trajectory, chosen: Sequence[int], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """ChatML as its documents say: all tokens, and whether each is of a chosen reply or the mark behind it."""
    parts, step = [(SYSTEM, False)], 0
    for message in trajectory.messages:
        if message.role == "assistant":
            step += message.trainable
            parts.append(("<|im_start|>assistant\n", False))
            parts.append((f"{message.content}<|im_end|>", message.trainable and step in chosen))
            parts.append(("\n", False))
        else:
            parts.append((f"<|im_start|>{message.role}\n{message.content}<|im_end|>\n", False))
    text, places = "", list[tuple[int, int]]()
    for part, carries in parts:
        if carries:
            places.append((len(text), len(text) + len(part)))
        text += part
    assert text == tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in trajectory.messages], tokenize=False
    )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [any(a <= start and end <= b for a, b in places) for start, end in found["offset_mapping"]]
    return found["input_ids"], mask


def examples_of(trajectories: Sequence[Trajectory], chat: ChatFormat) -> list[Example]:
    corpus = Corpus.of(trajectories, chat)
    return [e for t in trajectories for e in training_examples(corpus[t.id], chosen_steps(t), 2048)]


def test_what_was_fetched_says_that_its_weights_are_rounded(model: Path) -> None:
    note = weights_note(EngineModel(path=str(model)))
    source = json.loads((model / "config.json").read_text())
    assert source["model_type"] == "llama"
    assert (source["hidden_size"], source["num_hidden_layers"], source["vocab_size"]) == (576, 30, 49152)
    assert note is None or note == PRETRAINED["smollm2"].note


def test_mask_and_loss_are_those_of_a_plain_transformers_computation(
    model: Path, trajectories: list[Trajectory]
) -> None:
    from transformers import AutoModelForCausalLM

    chat = ChatFormat.load(str(model))
    examples = examples_of(trajectories, chat)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    losses = list[float]()
    for trajectory, example in zip(trajectories, examples, strict=True):
        ids, mask = by_hand(trajectory, chosen_steps(trajectory), chat.tokenizer)
        assert list(example.ids) == ids[: example.length]
        assert list(example.loss_mask) == mask[: example.length]
        assert not any(mask[example.length :])  # what is cut off carries no loss
        with torch.no_grad():
            logits = plain(torch.tensor([ids])).logits[0, :-1].float()
        nll = -logits.log_softmax(-1).gather(1, torch.tensor(ids)[1:, None])[:, 0]
        losses.append(float(nll[torch.tensor(mask)[1:]].double().sum()))
    del plain

    config = TrainConfig(data=DataConfig(path="x"), model=str(model), dtype="float32", use_gpu=False, max_length=2048)
    untrained, weights = load_model(str(model))
    module = loop.place_model(untrained, config, CPU, weights)
    module.eval()
    lengths = [example.length for example in examples]
    with torch.no_grad():
        alone = [float(module(collate([example], "token"))) for example in examples]
        # nats a token, as the loss is a mean: a sum of few nats ends in the noise of the logits' sixth digit
        tokens = [example.loss_tokens for example in examples]
        means = [[total / n for total, n in zip(sums, tokens, strict=True)] for sums in (alone, losses)]
        assert means[0] == pytest.approx(means[1], rel=1e-5, abs=1e-5)
        assert sum(alone) == pytest.approx(sum(losses), rel=1e-5)
        (packed,) = pack_micro_batches(range(6), lengths, lengths, 1, 4096)[0]
        together = float(module(collate([examples[i] for i in packed], "token")))
    assert together == pytest.approx(sum(losses[:6]), rel=1e-5)  # several trajectories in a row change nothing


class Recorder:
    """In place of an engine: it is asked to go on from token ids, and says what the expert said."""

    def __init__(self, replies: Iterator[list[int]]) -> None:
        self._replies, self.asked = replies, list[list[int]]()

    async def generate(self, ids: Sequence[int], sampling: Sampling, seed: int) -> tuple[Any, Usage]:
        self.asked.append(list(ids))
        said = next(self._replies)
        return SimpleNamespace(text="", token_ids=said, finish_reason="stop", stop_reason=None), Usage()


async def test_tokens_in_play_are_the_tokens_trained(model: Path, trajectories: list[Trajectory]) -> None:
    chat = ChatFormat.load(str(model))
    corpus = Corpus.of(trajectories, chat)
    for trajectory in trajectories:
        tokens = corpus[trajectory.id]
        replies = [tokens.ids[start:end].tolist() for start, end in tokens.spans]
        engine = Recorder(iter(replies))
        first = next(i for i, message in enumerate(trajectory.messages) if message.trainable)
        conversation = EngineConversation(engine, chat, trajectory.messages[:first], Sampling())
        for message in trajectory.messages[first:]:
            if message.role == "assistant":
                await conversation.generate(0)
            else:
                conversation.append(message)
        for asked, (start, _) in zip(engine.asked, tokens.spans, strict=True):
            assert asked == tokens.ids[:start].tolist()
