"""Masked fine-tuning against TRL's SFTTrainer: trajectory tokens a second and peak memory, in one run.

Both train the same model on the same trajectories with the same mask, global batches, optimizer and learning rates, and
must arrive at the same losses. TRL is given whole trajectories with labels of -100, those of a global batch sorted by
length so that it pads little, in each of its settings below; the one that is fastest in the first turn counts, and runs
again. Its own packing is none of them, for it moves trajectories from one global batch to another; nor is compiling,
which made it slower on CPU (5.9 s a step, not 4.7). Every run is a process of its own, in turn; memory is its peak.

It runs on CPU; with `--device cuda` layers of Llama-3.1-8B's shape on one GPU, as many as fit, and says how much of the
GPU's peak is used (MFU). Floors: throughput if all that training has to multiply went at the pace of a large matrix
product; memory of weights, gradients and moments alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from bench.peaks import gemm_flops
from bench.rendering import SHAPES
from bench.table import Entry, named, parse, write_bench

SEED = 30  # of 300 tried, the one whose share of tokens behind a last chosen step is nearest to their mean
RATIO = 0.3
RUNS = 3
LOSS_TOLERANCE = {"cpu": 1e-3, "cuda": 2e-2}  # bfloat16 rounds otherwise in packed than in padded batches


class Rival(NamedTuple):
    """A setting of TRL: trajectories a forward pass, passes a step, and whether a pass is one row without padding."""

    batch: int
    accumulation: int
    padding_free: bool = False

    def __str__(self) -> str:
        return f"{self.batch}x{self.accumulation}{' padding-free' * self.padding_free}"


@dataclass(frozen=True)
class Setup:
    """What both train.

    Attributes:
        trajectories: Their number.
        tokens: Of all of them, or `longest`: of the longest one.
        steps: Optimizer steps; the first `warm_up` are not timed.
        micro_batch_tokens: Ours.
        rivals: TRL's settings.
        reserve: GPU memory left to activations and logits when layers are counted, bytes.
    """

    shape: dict[str, Any]
    trajectories: int
    global_batch_size: int
    steps: int
    warm_up: int
    dtype: str
    micro_batch_tokens: int
    rivals: tuple[Rival, ...]
    tokens: int = 0
    longest: int = 0
    reserve: float = 0.0


def setup_of(device: str, tiny: bool, small_vocabulary: bool = False) -> Setup:
    """5 M parameters and 27k tokens on CPU; Llama-3.1-8B's shape and vocabulary, up to 8192 tokens, on a GPU.

    The vocabulary is the least that a Llama has, 32,000: agents are tuned with the tokenizer that they come with, and
    it alone costs a trainer the gigabytes that small models take. So small a model is then mostly its head, where what
    carries no loss costs us nothing; with `small_vocabulary` it is mostly its layers, as large models are, and what is
    gained there is no more than the tokens behind the last chosen steps, padding and the rest of the head.
    """
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 256}
    if device == "cpu" and not tiny:
        small = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 32_000}
    if small_vocabulary:
        small = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 5, "vocab_size": 4096}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
    if tiny:
        return Setup(small | heads, 6, 2, 3, 1, "float32", 256, (Rival(1, 2), Rival(2, 1, True)), tokens=900)
    if device == "cpu":
        rivals = (Rival(8, 1), Rival(1, 8), Rival(2, 4), Rival(2, 4, True))
        return Setup(small | heads, 16, 8, 2, 0, "float32", 1024, rivals, tokens=27_000)
    large = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0, "tie_word_embeddings": False}
    on_gpu = (Rival(2, 8), Rival(1, 16), Rival(2, 8, True))
    return Setup(large | heads, 64, 16, 4, 1, "bfloat16", 16384, on_gpu, longest=8192, reserve=16e9)


def examples_of(setup: Setup, seed: int = SEED) -> tuple[list[Any], list[np.ndarray]]:
    """Synthetic trajectories of random tokens with 30 % of the steps chosen at random, as `random` chooses them.

    They are a small AgentTraj-L: environments by their share, each with its steps and proportions of texts; only the
    lengths are scaled to `setup.tokens`.

    Returns:
        Examples as training cuts them, and the token ids of the whole trajectories.
    """
    from atlas_ray.selection.budget import budget
    from atlas_ray.training.data.examples import Example

    rng = np.random.default_rng(seed)
    shares = np.cumsum([shape.trajectories for shape in SHAPES.values()])
    quantiles = (np.arange(setup.trajectories) + 0.5) / setup.trajectories * shares[-1]
    shapes = [list(SHAPES.values())[k] for k in np.searchsorted(shares, quantiles)]
    steps = [min(shape.most, max(1, round(rng.normal(shape.steps, shape.steps / 3)))) for shape in shapes]
    words = [s.opening + n * (s.observation + s.reply) for s, n in zip(shapes, steps, strict=True)]
    scale = setup.longest / max(words) if setup.longest else setup.tokens / sum(words)
    examples, wholes = [], []
    for number in rng.permutation(setup.trajectories):
        shape, n = shapes[number], steps[number]
        ends = np.array([shape.opening + (k + 1) * (shape.observation + shape.reply) for k in range(n)])
        spans = (np.stack([ends - shape.reply, ends], axis=1) * scale).astype(np.int32)
        ids = rng.integers(5, setup.shape["vocab_size"], spans[-1, 1]).astype(np.int32)
        chosen = spans[np.sort(rng.choice(n, budget(RATIO, n), replace=False))]
        kept, every = ids[: chosen[-1, 1]], int(np.diff(spans).sum())
        examples.append(Example(str(number), kept, chosen, n, len(chosen), 0, every))
        wholes.append(ids)
    return examples, wholes


def a_model(setup: Setup, layers: int, device: str) -> Any:
    """Random weights, in float32, drawn where they will stand."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    shape = setup.shape | {"num_hidden_layers": layers}
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(max_position_embeddings=8192, **shape)).float()


def fitting_layers(setup: Setup, device: str) -> int:
    """As many layers as full fine-tuning has room for: weights, gradients and two moments, all of 4 bytes."""
    wanted = int(setup.shape["num_hidden_layers"])
    if device == "cpu":
        return wanted
    import torch

    hidden, inner = setup.shape["hidden_size"], setup.shape["intermediate_size"]
    shared = setup.shape["num_key_value_heads"] / setup.shape["num_attention_heads"]
    layer = hidden * (2 * hidden + 2 * shared * hidden + 3 * inner)
    room = torch.cuda.mem_get_info()[1] - setup.reserve - 16 * 2 * setup.shape["vocab_size"] * hidden
    # beside the 16 bytes a weight: its bfloat16 copy, and the layer's input kept for recomputation
    return max(1, min(wanted, int(room / (18 * layer + 2 * setup.micro_batch_tokens * hidden))))


def train_config(setup: Setup, device: str) -> Any:
    """The settings that both follow."""
    from atlas_ray.config import DataConfig
    from atlas_ray.training.settings import TrainConfig

    return TrainConfig(
        data=DataConfig(path="synthetic"),
        epochs=setup.steps * setup.global_batch_size / setup.trajectories,
        global_batch_size=setup.global_batch_size,
        micro_batch_tokens=setup.micro_batch_tokens,
        dtype=setup.dtype,  # type: ignore[arg-type]
        learning_rate=1e-3 if device == "cpu" else 2e-5,
        use_gpu=device == "cuda",
        seed=SEED,
    )


def run_ours(setup: Setup, device: str) -> dict[str, Any]:
    """One run of the loop."""
    import torch

    from atlas_ray.training import loop

    where, layers = torch.device(device), fitting_layers(setup, device)
    if device == "cuda":
        torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    config = train_config(setup, device)
    examples, _ = examples_of(setup)
    module = loop.place_model(a_model(setup, layers, device), config, where)
    steps: list[dict[str, Any]] = []
    flops = loop.Flops.of(module.model)
    started = [time.monotonic()]

    def note(metrics: dict[str, Any]) -> None:
        steps.append(metrics)
        started.append(time.monotonic())

    loop.fit(module, loop.make_optimizers(module, config), examples, config, where, on_step=note)
    seconds = started[-1] - started[setup.warm_up]
    timed = batches_of(setup)[setup.warm_up :]
    work = sum(flops.of_example(examples[i].length, examples[i].loss_tokens) for batch in timed for i in batch)
    return {
        "seconds": seconds,
        "losses": [s["loss"] for s in steps],
        "flops": work / seconds,
        "trained_tokens": sum(examples[i].length for batch in timed for i in batch),
    }


def batches_of(setup: Setup) -> list[list[int]]:
    """Examples of each step."""
    from atlas_ray.training.data.batching import global_batch_of

    return [
        global_batch_of(step, setup.trajectories, setup.global_batch_size, SEED) for step in range(1, setup.steps + 1)
    ]


def peak_memory(device: str) -> float:
    """Of this process, in GB: resident on CPU, allocated on the GPU."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    import torch

    return torch.cuda.max_memory_allocated() / 1e9


def in_own_process(arguments: list[str], module: str = "bench.training") -> dict[str, Any] | None:
    """Runs a part of a benchmark and reads the figures that it prints last; None where it ran out of GPU memory."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    if done.returncode and "CUDA out of memory" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def compare(setup: Setup, device: str, arguments: list[str], runs: int) -> list[Entry]:
    """Runs all in turn, prints what came of it and returns throughput and memory.

    Args:
        arguments: Of this script, that make a process choose this setup.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", *map(str, setup.rivals))}
    best = ""
    for turn in range(runs):
        for name in ["ours", best] if turn else list(found):
            run = in_own_process([*arguments, "--one", name])
            if run is not None:
                found[name].append(run)
            elif name == "ours":
                raise SystemExit("ours ran out of GPU memory: raise the setup's reserve")
            else:
                print(f"TRL {name} runs out of GPU memory")
        rivals = [name for name, done in found.items() if name != "ours" and done]
        if not rivals:
            raise SystemExit("TRL runs out of GPU memory in every setting")
        best = min(rivals, key=lambda name: found[name][0]["seconds"])
    timed = batches_of(setup)[setup.warm_up :]
    _, wholes = examples_of(setup)
    tokens = sum(len(wholes[i]) for batch in timed for i in batch)
    speed = {name: [tokens / run["seconds"] for run in done] for name, done in found.items() if done}
    memory = {name: [run["memory"] for run in done] for name, done in found.items() if done}
    print(f"\nvocabulary {setup.shape['vocab_size']:,}, width {setup.shape['hidden_size']:,}")
    for name, figures in speed.items():
        title = "ours" if name == "ours" else f"TRL, batch x accumulation {name}"
        print(f"{title}: {median(figures):,.0f} trajectory tokens/s, {median(memory[name]):.2f} GB")
    off = max(abs(a - b) for a, b in zip(found["ours"][0]["losses"], found[best][0]["losses"], strict=True))
    print(f"losses differ by at most {off:.1e} over {setup.steps} steps")
    if off > LOSS_TOLERANCE[device]:
        raise SystemExit("the losses differ: nothing here can be compared")
    trained = found["ours"][0]["trained_tokens"]
    print(f"ours: {trained:,} of {tokens:,} trajectory tokens go through the model")
    print(_use_of_peak(median(run["flops"] for run in found["ours"]), device, setup))
    fastest = named("trl", f"SFTTrainer, batch x accumulation {best}")
    reached = median(run["flops"] for run in found["ours"]) / gemm_flops(setup.dtype, device)
    return [
        Entry(
            "throughput",
            speed["ours"],
            speed[best],
            against=fastest,
            unit="trajectory tokens/s",
            floor=median(speed["ours"]) / reached,
        ),
        Entry(
            "memory",
            memory["ours"],
            memory[best],
            against=fastest,
            unit="GB",
            better="lower",
            floor=_states(setup, device),
        ),
    ]


def _states(setup: Setup, device: str) -> float:
    """GB of weights, gradients and moments."""
    from atlas_ray.training.estimate import ModelShape, memory_of

    shape = ModelShape.of(a_model(setup, fitting_layers(setup, device), "meta"))
    return memory_of(train_config(setup, device), shape, device == "cuda").states / 1e9


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all in turn, or one competitor where `--one` names it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small-vocabulary", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", help="ours, or one of TRL's settings: 8x1, 1x8, '2x4 padding-free'")
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parse(parser, arguments, runs=1)
    if options.one:
        setup = setup_of(options.device, options.tiny, options.small_vocabulary)
        if options.one == "ours":
            figures = run_ours(setup, options.device)
        else:
            from bench.training_trl import run_trl

            figures = run_trl(setup, options.device, next(r for r in setup.rivals if str(r) == options.one))
        print(json.dumps(figures | {"memory": peak_memory(options.device)}))
        return

    named("trl", "which is the rival")  # is it there?
    same = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    entries = compare(setup_of(options.device, options.tiny), options.device, same, options.runs)
    if options.device == "cpu" and not options.tiny:
        small = setup_of("cpu", tiny=False, small_vocabulary=True)
        extra = compare(small, "cpu", [*same, "--small-vocabulary"], options.runs)
        entries += [replace(entry, name=f"{entry.name}, small vocabulary") for entry in extra]
    write_bench("training" if options.device == "cpu" else "training-gpu", entries, options.tiny)


def _use_of_peak(flops: float, device: str, setup: Setup) -> str:
    from atlas_ray.training.estimate import peak_flops

    if device == "cpu":
        return f"ours: {flops / 1e9:.1f} GFLOP/s"
    import torch

    name, layers = torch.cuda.get_device_name(), fitting_layers(setup, device)
    used = f"ours: {flops / 1e12:.0f} TFLOP/s with {layers} layers on {name}"
    if (peak := peak_flops(name)) is None:
        return f"{used}, whose peak is not known"
    return f"{used}: MFU {flops / peak:.1%} of {peak / 1e12:.0f} TFLOP/s (bfloat16, dense)"


if __name__ == "__main__":
    main()
