"""Every way to compute a step gives the gradient of one float32 process: bfloat16 within its error, shards, adapters.

A table of cells: dtype, processes, loss, what is trained, recomputing. "sharded" is one process with a process group,
as on a lone GPU; "two" are two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from atlas_ray.training import loop
from atlas_ray.training.data.batching import token_weights
from atlas_ray.training.model import loss
from atlas_ray.training.model.lora import add_adapters
from atlas_ray.training.settings import LoraConfig
from tests.support.tiny import tiny_llama
from tests.support.training import CPU, a_config, noted_gradients, the_examples

LORA = LoraConfig(rank=4, alpha=8)
CELLS = list(product(("float32", "bfloat16"), ("token", "step", "trajectory"), ("full", "lora"), (False, True)))
# Of a gradient: one weight's, and all of them as one vector. Rounding to eight bits is 0.4 % at each product.
WITHIN = {"float32": (1e-4, 1e-5), "bfloat16": (0.06, 0.02)}
Cell = tuple[str, str, str, bool]


def a_model(tuned: str) -> Any:
    """A tiny Llama; adapters that are no longer zero, or half of their gradients would be."""
    model = tiny_llama(80)
    if tuned == "lora":
        pytest.importorskip("peft")
        add_adapters(model, LORA, seed=0)
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data = torch.randn(weight.shape, generator=generator) / 10
    return model


@contextmanager
def watched_weights() -> Iterator[list[torch.Tensor]]:
    """The weights of loss tokens that reach the loss, whatever lies between a batch and it."""
    seen, apply = list[torch.Tensor](), loss.FusedLinearCrossEntropy.apply

    def watch(*given: Any) -> Any:
        seen.append(given[4].clone())
        return apply(*given)

    loss.FusedLinearCrossEntropy.apply = watch
    try:
        yield seen
    finally:
        del loss.FusedLinearCrossEntropy.apply


def computed(cell: Cell, shard: bool | None) -> dict[str, Any]:
    """Loss, gradients and loss weights of one optimizer step of the loop."""
    dtype, objective, tuned, recomputed = cell
    options: dict[str, Any] = {"dtype": dtype, "loss": objective, "activation_checkpointing": recomputed}
    config = a_config(
        global_batch_size=7, epochs=1, max_grad_norm=1e9, lora=LORA if tuned == "lora" else None, **options
    )
    module = loop.place_model(a_model(tuned), config, CPU, shard=shard)
    assert isinstance(module, loop.FSDPModule) is bool(shard)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.0)
    gradients, steps = noted_gradients(module, optimizer), list[dict[str, Any]]()
    with watched_weights() as weights:
        loop.fit(module, [optimizer], the_examples(), config, CPU, on_step=steps.append)
    return {"loss": steps[0]["loss"], "gradients": gradients, "weights": torch.cat(weights)}


def sharded(rank: int, world: int, folder: Path) -> None:
    """All cells in one of the processes of a group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    try:
        torch.save({cell: computed(cell, True) for cell in CELLS}, folder / f"{world}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[Cell, Any]]]:
    """By form, what each of its processes computed."""
    folder = tmp_path_factory.mktemp("ranks")
    two = torch.multiprocessing.spawn(sharded, (2, folder), nprocs=2, join=False)
    sharded(0, 1, folder)
    one = {cell: computed(cell, None) for cell in CELLS}
    while not two.join():
        pass
    return {
        "one": [one],
        "sharded": [torch.load(folder / "1-0.pt")],
        "two": [torch.load(folder / f"2-{rank}.pt") for rank in range(2)],
    }


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("objective", ["token", "step", "trajectory"])
@pytest.mark.parametrize("form", ["one", "sharded", "two"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_those_of_one_float32_process(
    dtype: str, form: str, objective: str, tuned: str, recomputed: bool, found: dict[str, list[dict[Cell, Any]]]
) -> None:
    here = [process[dtype, objective, tuned, recomputed] for process in found[form]]
    expected = found["one"][0]["float32", objective, tuned, False]
    each, together = WITHIN[dtype]
    assert {process["loss"] for process in here} == {here[0]["loss"]}
    assert here[0]["loss"] == pytest.approx(expected["loss"], rel=together)
    wanted, gradients = expected["gradients"], here[0]["gradients"]
    assert gradients.keys() == wanted.keys()
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    off = {name: float((gradients[name] - g).norm() / g.norm()) for name, g in wanted.items()}
    assert max(off.values()) < each, off
    flat, wanted_flat = (torch.cat([g[name].ravel() for name in wanted]) for g in (gradients, wanted))
    assert float((flat - wanted_flat).norm() / wanted_flat.norm()) < together
    # Bit by bit: a seventh of a step is no multiple of anything that bfloat16 knows.
    reached = torch.cat([process["weights"] for process in here])
    exact = np.concatenate([token_weights(e, objective) for e in the_examples()])
    assert reached.dtype is torch.float32
    assert sorted(reached.tolist()) == sorted(exact.tolist())
