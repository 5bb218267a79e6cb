"""Perplexity of 200 trajectories: ours against one forward a step, and against vLLM's `prompt_logprobs`, warm.

    python -m bench perplexity [per_step | vllm] [--dtype bfloat16] [--runs 3] [--hidden 128] [--layers 2]

Trajectories have 18 to 22 steps of 45 to 55 tokens and observations of 10 to 20; the model is an untrained Llama whose
output head weighs against its layers about as in an 8B model. One forward a trajectory of T equal steps needs 1/T of
the token positions that T forwards over growing prefixes need, T (T + 1) / 2 against T: the ratio is (T + 1) / 2 at
most, here about 10.5. The floor is the pace of a large matrix product. Loading, rendering of a first trajectory and
vLLM's first call are left out on both sides; a run alternates between the two every 40 trajectories, so that a busy
machine slows both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

from atlas_ray.config import EngineConfig
from atlas_ray.selection.budget import budget, top_k
from atlas_ray.selection.perplexity.scores import Scores
from atlas_ray.selection.perplexity.torch_engine import TorchScorer
from atlas_ray.types import Message, Trajectory
from bench.peaks import gemm_flops
from bench.table import Entry, named, parse, write_bench

_WORDS = ["".join(letters) for letters in product("bdfgkmnprs", "aeiou", "lmnpr", "bdgkm", "aeo")]
_SLICE = 40  # trajectories
Score = Callable[[Sequence[Trajectory]], list[Scores]]


def trajectories(number: int, vocabulary: int) -> list[Trajectory]:
    """Conversations of random words; one word is one token, one with and one without a space before it."""
    rng = random.Random(0)
    known = rng.sample(_WORDS, vocabulary // 2)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choices(known, k=rng.randint(low, high)))

    found = []
    for i in range(number):
        turns = [Message("user", words(80, 120)), Message("assistant", "OK"), Message("user", words(10, 20))]
        for _ in range(rng.randint(18, 22)):
            turns += [Message("assistant", words(44, 54), True), Message("user", words(10, 20))]
        found.append(Trajectory(f"maze/maze_{i}", "maze", f"maze_{i}", tuple(turns), 1.0))
    return found


def write_model(folder: str, data: Sequence[Trajectory], hidden: int, layers: int) -> tuple[float, float]:
    """A Llama whose logits differ enough to rank steps by; returns the millions of weights of its layers and head."""
    from transformers import AutoModelForCausalLM

    from atlas_ray.models.tiny import write_untrained

    shape = {"hidden_size": hidden, "layers": layers, "heads": hidden // 64}
    parameters = write_untrained(folder, data, **shape, context=4096, seed=0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data *= 10
    model.save_pretrained(folder)
    head = model.lm_head.weight.numel()
    return (parameters - 2 * head) / 1e6, head / 1e6


def per_step(model: str, dtype: str) -> Score:
    """The rival: plain transformers, one forward a step over all before it, logits of the step's tokens alone."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    from atlas_ray.models.chat import ChatFormat

    chat = ChatFormat.load(model)
    lm: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def of(ids: list[int], start: int, end: int) -> float:
        row = torch.tensor([ids[:end]])
        with torch.inference_mode():
            logits = lm(row, use_cache=False, logits_to_keep=end - start + 1).logits[0, :-1]
        return math.exp(cross_entropy(logits.float(), row[0, start:]).item())

    def score(data: Sequence[Trajectory]) -> list[Scores]:
        found = []
        for trajectory in data:
            (rendered,) = chat.render(trajectory.messages)
            spans = [rendered.spans[step.position] for step in trajectory.steps]
            found.append(Scores(tuple(of(rendered.ids, *span) for span in spans if span)))
        return found

    return score


@contextmanager
def by_vllm(model: str, config: EngineConfig) -> Iterator[Score]:
    """The other rival: all trajectories at once in a warm engine, which ends with the block."""
    from atlas_ray.models.engine import EngineSpec
    from atlas_ray.selection.perplexity.vllm_engine import VllmScorer

    with asyncio.Runner() as runner:
        engine = runner.run(EngineSpec("base", model, config).build())
        try:
            scorer = VllmScorer(engine)
            yield lambda data: runner.run(scorer.score(data))
        finally:
            runner.run(engine.close())


def floor_of(model: str, data: Sequence[Trajectory], dtype: str, device: str = "cpu") -> float:
    """Steps a second if one forward a trajectory went at the pace of a large matrix product."""
    from atlas_ray.config import DataConfig
    from atlas_ray.models.chat import ChatFormat
    from atlas_ray.training.estimate import Flops, meta_model
    from atlas_ray.training.settings import TrainConfig

    chat, flops = ChatFormat.load(model), Flops.of(meta_model(TrainConfig(data=DataConfig(path=""), model=model)))
    forward = 0.0
    for trajectory in data:
        (rendered,) = chat.render(trajectory.messages)
        scored = sum(end - start for start, end in filter(None, rendered.spans))
        forward += flops.of_example(len(rendered.ids), scored) / 3  # the backward pass is two more
    return sum(len(t.steps) for t in data) * gemm_flops(dtype, device) / forward


def compare(
    ours: Score, rival: Score, data: Sequence[Trajectory], runs: int, *, name: str, against: str, floor: float | None
) -> Entry:
    """Steps a second of both, warm; a run alternates between them slice by slice. Says how far they agree."""
    seconds: dict[Score, list[float]] = {ours: [], rival: []}
    scores: dict[Score, list[tuple[float, ...]]] = {ours: [], rival: []}
    for score in seconds:
        score(data[:4])
    for run in range(runs):
        spent = {ours: 0.0, rival: 0.0}
        for i, at in enumerate(range(0, len(data), _SLICE)):
            for score in (ours, rival) if (i + run) % 2 else (rival, ours):
                begun = time.perf_counter()
                found = score(data[at : at + _SLICE])
                spent[score] += time.perf_counter() - begun
                if run == 0:
                    scores[score] += [one.steps for one in found]
        for score, total in spent.items():
            seconds[score].append(total)
    pairs = list(zip(scores[ours], scores[rival], strict=True))
    off = max(abs(a / b - 1) for t, u in pairs for a, b in zip(t, u, strict=True))
    same = sum(top_k(t, budget(0.3, len(t))) == top_k(u, budget(0.3, len(u))) for t, u in pairs)
    print(f"{name}: largest relative difference {off:.1e}; the same steps in {same} of {len(data)} trajectories")
    steps = sum(len(t.steps) for t in data)
    rates = {score: [steps / total for total in found] for score, found in seconds.items()}
    return Entry(name, rates[ours], rates[rival], against=against, unit="steps/s", floor=floor)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("entry", nargs="?", choices=["per_step", "vllm"], help="both where left out")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=1000)
    parser.add_argument("--trajectories", type=int, default=200)
    args = parse(parser, arguments, runs=1, trajectories=6, hidden=64, layers=1)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as both engines have it in a worker
    data, found = trajectories(args.trajectories, args.vocabulary), []
    with tempfile.TemporaryDirectory() as model:
        layers, head = write_model(model, data, args.hidden, args.layers)
        steps = sum(len(t.steps) for t in data)
        print(f"{len(data)} trajectories, {steps} steps; layers {layers:.2f} M, head {head:.2f} M, {args.dtype}")
        ours, floor = TorchScorer(model, args.dtype).score, floor_of(model, data, args.dtype)
        if args.entry != "vllm":
            rival, against = per_step(model, args.dtype), named("transformers", "a forward a step, logits of its own")
            found.append(compare(ours, rival, data, args.runs, name="per_step", against=against, floor=floor))
        if args.entry != "per_step":
            against = named("vllm", "prompt_logprobs=0, all at once")
            with by_vllm(model, EngineConfig(dtype=args.dtype)) as rival:
                found.append(compare(ours, rival, data, args.runs, name="vllm", against=against, floor=floor))
    write_bench("perplexity", found, args.tiny)


if __name__ == "__main__":
    main()
