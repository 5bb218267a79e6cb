"""The exported model: the same probabilities in vLLM and transformers, and replies through its chat template."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.engine import VllmPolicy
from atlas_ray.models.protocol import Sampling
from atlas_ray.training.data.corpus import tokens_of
from atlas_ray.types import Message, Task, Trajectory
from tests.support.solo import run_alone
from tests.support.training import a_config, training_example

pytestmark = pytest.mark.asyncio(loop_scope="session")


def conversations(count: int) -> list[Trajectory]:
    """Talks in the words that the tiny models know."""
    rng = random.Random(0)
    words = [a + b + c for a in "abcdefgh" for b in "aeiou" for c in "klmnop"]
    made = []
    for number in range(count):
        messages = [Message("user", " ".join(rng.choices(words, k=12))), Message("assistant", "OK")]
        for _ in range(3):
            messages.append(Message("user", " ".join(rng.choices(words, k=9))))
            messages.append(Message("assistant", f"Thought: {rng.choice(words)}\nAction: move up", True))
        made.append(Trajectory(f"maze/maze_{number}", "maze", f"maze_{number}", tuple(messages)))
    return made


async def test_vllm_and_transformers_agree_on_an_exported_model(
    engine: VllmPolicy, tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    torch.set_num_threads(2)
    data = conversations(12)
    config = a_config(run=str(tmp_path), model=tiny_models[0], learning_rate=3e-3, epochs=8, global_batch_size=4)
    run_alone(config, data, None)
    folder = str(tmp_path / "model")
    model, chat = AutoModelForCausalLM.from_pretrained(folder), ChatFormat(AutoTokenizer.from_pretrained(folder))
    assert set(chat.stop_ids) <= set(GenerationConfig.from_pretrained(folder).eos_token_id)

    await engine.load(replace(engine.spec, name="trained", model=folder))
    inner = engine._engine
    assert inner is not None
    for number, trajectory in enumerate(data[:4]):
        ids = training_example(tokens_of(trajectory, chat), None, 500).ids.tolist()
        asked = SamplingParams(max_tokens=1, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY)
        [output] = [o async for o in inner.generate({"prompt_token_ids": ids}, asked, f"logprobs-{number}")]
        found = [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
        with torch.no_grad():
            predicted = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        expected = predicted.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-4)

    opening = list(data[0].messages[:3])
    conversation = engine.open(Task("maze", "maze_0"), opening, Sampling(0.0, 24))
    reply = await conversation.generate(0)
    ids = torch.tensor([chat.opening(opening)])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
    assert reply.finish == "stop"
    assert conversation._ids == made[0].tolist()
    assert "move up" in reply.text
    await engine.load(replace(engine.spec, name="tiny", model=tiny_models[0]))
