"""What one GPU does with this package, in ten minutes and without downloads: `make gpu-check`.

    python -m bench gpu [--device cuda | cpu] [--tiny] [--runs 2] [--layers 32] [--only training ...]

`training`: bfloat16 fine-tuning of Llama-3.1-8B's shape from random weights, as many layers as fit, on the road that a
run on this GPU takes: operations a second beside the data sheet's (MFU) and beside what a matrix product reaches here
(the floor), and peak memory beside the estimate of `atlas train --dry-run`. `numerics`: loss and gradients of two such
layers in bfloat16, as they are trained, beside plain float32. `rollouts`: maze episodes on a vLLM engine with random
weights of that shape, many at once beside one after another. `perplexity`: the torch scorer beside vLLM's
`prompt_logprobs`, warm, on that model.

Every part is a process of its own. Without a GPU the same script runs small, on CPU. It ends with 1 where the numerics
are off or memory exceeds the estimate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

from bench import perplexity, rollouts, training, training_setup
from bench.peaks import gemm_flops
from bench.table import Entry, named, parse, write_bench

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 0.01, 0.05  # of bfloat16, relative to float32
_NUMERICS_LAYERS = 2


@dataclass(frozen=True)
class Size:
    """How much of each part is run.

    Attributes:
        episodes: At once; `alone` one after another.
        trajectories: To score.
        shape: Of the engine's model.
        dtype: Of the engine and of scoring.
    """

    episodes: int
    alone: int
    trajectories: int
    shape: dict[str, Any]
    dtype: str


def size_of(device: str, layers: int | None = None) -> Size:
    """An 8 B model and 256 episodes on a GPU; a model of a few hundred thousand weights on CPU."""
    if device == "cuda":
        shape = training_setup.setup_of(device, tiny=False).shape
        return Size(256, 4, 200, shape | ({} if layers is None else {"num_hidden_layers": layers}), "bfloat16")
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": False}
    shape = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": layers or 2, "vocab_size": 2048}
    return Size(8, 2, 8, shape | heads, "float32")


def train(device: str, tiny: bool) -> dict[str, Any]:
    """Trains, and says how fast, in how much memory, and what was expected."""
    import torch

    from atlas_ray.training.estimate import ModelShape, memory_of, peak_flops

    setup = training_setup.setup_of(device, tiny)
    peak = gemm_flops(device, setup.dtype)
    layers = training_setup.fitting_layers(setup, device)
    found = training.run_ours(setup, device)
    shape = ModelShape.of(training_setup.a_model(setup, layers, "meta"))
    expected = memory_of(training_setup.train_config(setup, device), shape, device == "cuda")
    memory = training.peak_memory(device)
    sheet = peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    return {
        "flops": found["flops"],
        "gemm": peak,
        "sheet": sheet,
        "memory": memory,
        "expected": expected.total / 1e9,
        "states": expected.states / 1e9,
        "layers": layers,
    }


def numerics(device: str, tiny: bool) -> dict[str, Any]:
    """Relative differences of the loss and of the gradients in bfloat16, as they are trained, from float32's."""
    import torch

    setup = training_setup.setup_of(device, tiny)
    setup = replace(setup, trajectories=4, longest=min(setup.longest, 2048), tokens=min(setup.tokens, 600))
    plain = _gradients(replace(setup, dtype="float32"), device)
    if device == "cuda":  # the road of a lone GPU under Ray Train
        torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    trained = _gradients(replace(setup, dtype="bfloat16"), device)
    off = sum(float((trained[1][name] - g).square().sum()) for name, g in plain[1].items())
    whole = sum(float(g.square().sum()) for g in plain[1].values())
    return {"loss": abs(trained[0] / plain[0] - 1), "gradients": (off / whole) ** 0.5}


def _gradients(setup: training_setup.Setup, device: str) -> tuple[float, dict[str, Any]]:
    """Loss of all examples in one pass, and the gradients by name, on CPU."""
    import torch
    from torch.distributed.tensor import DTensor

    from atlas_ray.training import loop
    from atlas_ray.training.data.batching import collate

    config, where = training_setup.train_config(setup, device), torch.device(device)
    module = loop.place_model(training_setup.a_model(setup, _NUMERICS_LAYERS, device), config, where)
    examples, _ = training_setup.examples_of(setup)
    with loop.autocast(module, config, where):
        loss = module(collate(examples, config.loss).to(where))
    loss.backward()
    found = {}
    for name, weight in module.named_parameters():
        gradient: Any = weight.grad
        if isinstance(gradient, DTensor):
            gradient = gradient.full_tensor()
        found[name] = gradient.float().cpu()
    return loss.item(), found


def write_model(folder: str, size: Size, device: str) -> None:
    """Random weights of the shape, and a tokenizer of as many words, among them those of the maze and of scoring."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from atlas_ray.models.tiny import build_tokenizer

    told = [message.content for t in (*_data(size), *rollouts.maze_words()) for message in t.messages]
    known = len(build_tokenizer(told, 8192))
    letters = product("abcdefghijklmnopqrstuvwxyz", repeat=4)
    filler = islice(("zq" + "".join(word) for word in letters), max(0, size.shape["vocab_size"] - known))
    tokenizer = build_tokenizer([*told, " ".join(filler)], 8192)
    dtype = getattr(torch, size.dtype)
    torch.manual_seed(training_setup.SEED)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.device(device):
        config = LlamaConfig(max_position_embeddings=8192, **size.shape | {"vocab_size": len(tokenizer)}, **ids)
        model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder, max_shard_size="4GB")
    tokenizer.save_pretrained(folder)


def _data(size: Size) -> list[Any]:
    return perplexity.trajectories(size.trajectories, 1000)


def roll_out(folder: str, size: Size) -> dict[str, Any]:
    """Episodes and tokens a second of the pool, many at once and one after another."""
    from atlas_ray.cluster.connection import connect
    from atlas_ray.config import EngineConfig, RayConfig
    from atlas_ray.models.engine import EngineSpec
    from atlas_ray.rollouts.pool import RolloutPool

    connect(RayConfig())
    config = EngineConfig(max_num_seqs=size.episodes, max_model_len=4096, dtype=size.dtype)  # type: ignore[arg-type]
    spec = EngineSpec("random", folder, config)
    with RolloutPool(spec, EngineConfig(episodes_in_flight=size.episodes)) as pool:
        rollouts.play(pool, size.alone, size.alone)  # what is compiled at first use
        pool.load(spec)
        seconds, tokens = rollouts.play(pool, size.episodes, size.episodes)
        pool.load(spec)
        alone, _ = rollouts.play(pool, size.alone, 1)
    return {
        "together": size.episodes / seconds,
        "tokens": tokens / seconds,
        "alone": size.alone / alone,
    }


def score(folder: str, size: Size, runs: int, device: str) -> dict[str, Any]:
    """Steps a second of the torch scorer, of vLLM, and at most."""
    from atlas_ray.config import EngineConfig
    from atlas_ray.selection.perplexity.torch_engine import TorchScorer

    # half of a GPU: the torch scorer holds the same weights there
    config = EngineConfig(dtype=size.dtype, max_model_len=4096, gpu_memory_utilization=0.5)  # type: ignore[arg-type]
    ours, data = TorchScorer(folder, size.dtype).score, _data(size)  # type: ignore[arg-type]
    floor = perplexity.floor_of(folder, data, size.dtype, device)
    with perplexity.by_vllm(folder, config) as rival:
        entry = perplexity.compare(ours, rival, data, runs, name="perplexity", against="", floor=floor)
    return {"ours": list(entry.ours), "rival": list(entry.rival), "floor": floor}


PARTS = ("training", "numerics", "rollouts", "perplexity")


def entries_of(part: str, found: dict[str, Any]) -> list[Entry]:
    """A part's figures beside what they are held against."""
    if part == "training":
        print(f"training: {found['layers']} layers")
        peaks = {"floor": (found["gemm"], "a large matrix product"), "mfu": (found["sheet"], "data sheet")}
        reached, most = found["flops"] / 1e12, found["gemm"] / 1e12
        pace = [
            Entry(f"training.{name}", [reached], [peak / 1e12], against=against, unit="TFLOP/s", floor=most)
            for name, (peak, against) in peaks.items()
            if peak
        ]
        held, plan, states = [found["memory"]], [found["expected"]], found["states"]
        memory = Entry("training.memory", held, plan, against="the plan", unit="GB", better="lower", floor=states)
        return [*pace, memory]
    if part == "numerics":
        limits = {"loss": LOSS_TOLERANCE, "gradients": GRADIENT_TOLERANCE}
        return [
            Entry(f"numerics.{name}", [found[name]], [limit], against="limit", unit="off float32", better="lower")
            for name, limit in limits.items()
        ]
    if part == "rollouts":
        print(f"rollouts: {found['tokens']:,.0f} generated tokens/s")
        rates = [found["together"]], [found["alone"]]
        return [Entry("rollouts", *rates, against="ours, one at a time", unit="episodes/s")]
    against, rates = named("vllm", "prompt_logprobs=0, all at once"), (found["ours"], found["rival"])
    return [Entry("perplexity", *rates, against=against, unit="steps/s", floor=found["floor"])]


def about(device: str) -> str:
    """The machine."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores"
    return f"{name}, torch {torch.__version__}"


def faults(entries: Sequence[Entry], device: str) -> list[str]:
    """What must not be, in words. On CPU the estimate reckons a whole process, and is not held to."""
    held = {"numerics.loss", "numerics.gradients"} | ({"training.memory"} if device == "cuda" else set())
    return [f"{e.name}: {e.ours[0]:.3g} exceeds {e.rival[0]:.3g}" for e in entries if e.name in held and e.ratio < 1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the parts, or one of them where `--one` names it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="a GPU where there is one")
    parser.add_argument("--layers", type=int, help="of the engine's model; all 32 of an 8 B model where left out")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--runs", type=int, default=2, help="of the scorers")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=[*PARTS, "model"], help=argparse.SUPPRESS)
    options = parse(parser, arguments, device="cpu", runs=1)
    device = options.device or _device()
    tiny, size = device == "cpu", size_of(device, options.layers)
    if options.one:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as engines have it in a worker
        run: dict[str, Callable[[], Any]] = {
            "model": lambda: write_model(options.folder, size, device),
            "training": lambda: train(device, tiny),
            "numerics": lambda: numerics(device, tiny),
            "rollouts": lambda: roll_out(options.folder, size),
            "perplexity": lambda: score(options.folder, size, options.runs, device),
        }
        print(json.dumps(run[options.one]()), flush=True)
        return

    entries: list[Entry] = []
    with tempfile.TemporaryDirectory() as folder:
        same = ["--device", device, "--folder", folder, "--runs", str(options.runs)]
        same += [] if options.layers is None else ["--layers", str(options.layers)]
        if {"rollouts", "perplexity"} & set(options.only):
            _room_for(folder, size)
            _run("model", same)
        for part in options.only:
            found = _run(part, same)
            entries += entries_of(part, found)
    write_bench("gpu", entries, options.tiny)
    print(about(device))
    if wrong := faults(entries, device):
        raise SystemExit("gpu-check: " + "; ".join(wrong))


def _run(part: str, same: list[str]) -> dict[str, Any]:
    begun = time.monotonic()
    found = training.in_own_process(["--one", part, *same], "bench.gpu")
    if part != "model" and found is None:
        raise SystemExit(f"{part} ran out of GPU memory: is something else on this GPU? --layers makes it smaller")
    print(f"{part}: {time.monotonic() - begun:.0f} s", flush=True)
    return found or {}


def _room_for(folder: str, size: Size) -> None:
    s = size.shape
    weights = s["num_hidden_layers"] * s["hidden_size"] * (3 * s["intermediate_size"] + 3 * s["hidden_size"])
    need = 2.2 * (weights + 2 * s["vocab_size"] * s["hidden_size"])
    if (free := shutil.disk_usage(folder).free) < need:
        have, want = free / 1e9, need / 1e9
        raise SystemExit(f"{folder} has {have:.0f} GB free, the model takes {want:.0f}: set TMPDIR, or --layers")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
