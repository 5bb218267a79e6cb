"""Masked fine-tuning against TRL's SFTTrainer: trajectory tokens a second and peak memory, in one run.

Both train the same model on the same trajectories with the same mask, global batches, optimizer and learning rates, and
must arrive at the same losses. TRL is given whole trajectories with labels of -100, those of a global batch sorted by
length so that it pads little, in each of its settings below; the one that is fastest in the first turn counts, and runs
again. Its own packing is none of them, for it moves trajectories from one global batch to another; nor is compiling,
which made it slower on CPU (5.9 s a step, not 4.7). Every run is a process of its own, in turn; memory is its peak.

It runs on CPU, where it trains three models: one that is mostly its head and one that is mostly its layers, in
float32, and one of SmolLM2-135M's shape in bfloat16; with `--device cuda` layers of Llama-3.1-8B's shape on one GPU, as
many as fit, and says how much of the GPU's peak is used (MFU). Floors: throughput if all that training has to multiply
went at the pace of a large matrix product; memory of weights, gradients and moments alone.
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
from dataclasses import replace
from statistics import median
from typing import Any

from bench.peaks import gemm_flops
from bench.table import Entry, named, parse, write_bench
from bench.training_setup import MODELS, Setup, a_model, batches_of, examples_of, fitting_layers, setup_of, train_config
from bench.training_trl import run_trl

RUNS = 3
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}  # bfloat16 rounds otherwise in packed than in padded batches


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
    if off > LOSS_TOLERANCE[setup.dtype]:
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
    parser.add_argument("--model", choices=MODELS, help="one of those on CPU; all where left out")
    parser.add_argument("--one", help="ours, or one of TRL's settings: 8x1, 1x8, '2x4 padding-free'")
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parse(parser, arguments, runs=1)
    if options.one:
        setup = setup_of(options.device, options.tiny, options.model or MODELS[0])
        if options.one == "ours":
            figures = run_ours(setup, options.device)
        else:
            figures = run_trl(setup, options.device, next(r for r in setup.rivals if str(r) == options.one))
        print(json.dumps(figures | {"memory": peak_memory(options.device)}))
        return

    named("trl", "which is the rival")  # is it there?
    same = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    several = options.device == "cpu" and not options.tiny
    entries = []
    for model in (options.model,) if options.model else MODELS if several else MODELS[:1]:
        found = compare(
            setup_of(options.device, options.tiny, model), options.device, [*same, "--model", model], options.runs
        )
        entries += [replace(entry, name=f"{entry.name}, {model}") for entry in found] if several else found
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
