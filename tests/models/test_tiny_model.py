"""The tiny model's tokenizer loses nothing, and its files are what vLLM and transformers load."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from atlas_ray.environments import registry
from atlas_ray.models.tiny import build_tokenizer, write_untrained
from atlas_ray.types import Message, Trajectory

ENVS = ("maze", "textcraft", "wordle", "blocksworld")


def texts(env: str, tasks: range) -> list[str]:
    """Everything said in some expert episodes."""
    spec, found = registry.get(env), list[str]()
    assert spec.simulator is not None
    for index in tasks:
        simulator = spec.simulator()
        opening = simulator.reset(index)
        found += [opening.instruction, opening.observation]
        for turn in range(spec.max_rounds):
            decision = simulator.expert(random.Random(f"{index}/{turn}"))
            result = simulator.step(decision.action)
            found += [decision.reply, result.observation]
            if result.done:
                break
    return found


def test_the_worlds_are_closed_and_small() -> None:
    train = {
        text for env in ENVS for text in texts(env, range(registry.get(env).n_test, registry.get(env).n_test + 140))
    }
    tokenizer = build_tokenizer(train, 1024)
    assert len(tokenizer) < 400
    unknown = tokenizer.unk_token_id
    for env in ENVS:
        # a count in an inventory may be new; nothing is decided by it
        for text in (t for t in texts(env, range(30)) if not t.startswith("Inventory")):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert unknown not in ids, text
            assert tokenizer.decode(ids) == text


def test_digits_stand_alone_and_words_are_whole() -> None:
    tokenizer = build_tokenizer(["craft 12 planks\nmove up"], 64)
    assert tokenizer.tokenize("craft 12 planks\nmove up") == ["craft", " 1", "2", " planks", "\n", "move", " up"]


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    data = [Trajectory("maze/maze_0", "maze", "maze_0", (Message("user", "go up"), Message("assistant", "OK", True)))]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_untrained(tmp_path / name, data, hidden_size=32, layers=1, heads=1, context=64, seed=seed)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"]
    assert weights["a"] != weights["c"]
