"""The training loop: plain torch, one process or many (torchrun, Ray Train), no Ray.

Flows in: a Hugging Face model and examples; flows out: a trained model, and metrics per optimizer step. All that a step
draws or picks depends on (seed, step) alone, so that a resumed run repeats an undisturbed one bit for bit on CPU.
Weights, gradients and Adam's moments are float32; bfloat16 is for computing only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from atlas_ray.errors import AtlasError, UserError
from atlas_ray.models.attention import decoder_layers
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.training.data.batching import (
    Batch,
    collate,
    global_batch_of,
    loss_denominator,
    pack_micro_batches,
    total_steps,
)
from atlas_ray.training.data.examples import Example
from atlas_ray.training.estimate import Flops, recomputes
from atlas_ray.training.model.loading import Weights
from atlas_ray.training.model.loss import StepLoss
from atlas_ray.training.model.muon import Muon
from atlas_ray.training.model.quantized import quantized_weights
from atlas_ray.training.settings import TrainConfig


def rank_and_world() -> tuple[int, int]:
    """This process and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def place_model(
    model: Any,
    config: TrainConfig,
    device: torch.device,
    weights: Weights | None = None,
    shard: bool | None = None,
) -> StepLoss:
    """Puts a model on its device(s) in float32: sharded by FSDP2 over all processes where there are several, and on a
    lone GPU too if it has a process group, for FSDP's casts keep all activations in bfloat16 where autocast does not.

    Layers are turned into float32 one by one as they are sharded, so that no process holds the whole model so. Frozen
    weights, beside LoRA's adapters, are no master copies: they are kept as they are computed with.

    Args:
        weights: Of a model that is on the meta device: each process reads its own shards of them.
        shard: Whether to shard; None: as said above.
    """
    model.train()
    model.config.use_cache = False
    if recomputes(config, device.type == "cuda"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    _, world = rank_and_world()
    group = None
    if config.context_parallel > 1:
        grid = init_device_mesh(device.type, (world // config.context_parallel, config.context_parallel))
        group = grid.get_group(1)
    module = StepLoss(model, config.max_length, group)
    computed = torch.bfloat16 if config.in_bfloat16(device.type == "cuda") else torch.float32
    lone_gpu = device.type == "cuda" and dist.is_initialized() and config.optimizer != "muon"
    if not (world > 1 or lone_gpu if shard is None else shard):
        _to_trained_dtype(module, computed)
        if weights is not None:
            weights.fill(module, device, "model.")
        return module.to(device)
    held = config.shard_size or world
    # Of two dimensions, the model is sharded over the last, and gradients are summed over the first.
    copies = {"mesh_shape": (world // held, held), "mesh_dim_names": ("copy", "shard")}
    mesh = init_device_mesh(device.type, **({"mesh_shape": (world,)} if held == world else copies))  # type: ignore[arg-type]
    policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mesh": mesh, "ignored_params": quantized_weights(model)}
    if config.offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    for layer in decoder_layers(model):
        fully_shard(_to_trained_dtype(layer, computed), mp_policy=policy, **options)
    # What goes into the whole module is a batch, whose weights stay float32; what goes on is the embedding's type.
    policy = replace(policy, cast_forward_inputs=False)
    fully_shard(_to_trained_dtype(module, computed), mp_policy=policy, **options)
    if weights is not None:
        weights.fill(module, torch.device("cpu") if config.offload else device, "model.")
    return module


def _to_trained_dtype(module: nn.Module, computed: torch.dtype) -> Any:
    """Puts trained weights into float32, and frozen ones into the type that is computed with."""
    if all(p.requires_grad for p in module.parameters()):
        return module.float()
    for p in module.parameters():
        if p.is_floating_point():  # what is held in 4 bits stays so
            p.data = p.data.to(torch.float32 if p.requires_grad else computed)
    return module


def make_optimizers(module: StepLoss, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Adam (App. B.1), with decoupled weight decay where configured; the same with moments in 8 bits; or Muon for the
    layers' matrices and Adam for the rest, which trains a small model from nothing in a fraction of the steps.

    Raises:
        UserError: If Muon is asked for on several workers: it needs whole matrices; or torchao is missing.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    if config.optimizer == "adam8bit":
        return [_adam_8bit(trained, config)]
    adam = partial(torch.optim.AdamW, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    if config.optimizer == "adam":
        return [adam(trained)]
    if rank_and_world()[1] > 1:
        remedy = "set num_workers: 1 or optimizer: adam"
        raise UserError("muon needs whole matrices, which several workers split", remedy)
    matrices = [p for p in decoder_layers(module.model).parameters() if p.ndim == 2]
    held = {id(p) for p in matrices}
    rest = [p for p in module.parameters() if id(p) not in held]
    return [Muon(matrices, config.muon_learning_rate, config.weight_decay), adam(rest)]


def _adam_8bit(trained: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        remedy = "pip install 'atlas-ray[adam8bit]'"
        raise UserError("adam8bit needs torchao, which is not installed", remedy) from None
    return AdamW8bit(trained, lr=config.learning_rate, weight_decay=config.weight_decay)  # type: ignore[no-any-return]


def schedule(step: int, total: int, warmup_ratio: float) -> float:
    """Factor on the learning rate: linear warm-up, then cosine to zero (App. B.1).

    `step` counts from 1; no step is wasted on a rate of zero.
    """
    warmup = math.ceil(total * warmup_ratio)
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - 1 - warmup) / (total - warmup)))


def fit(
    module: StepLoss,
    optimizers: Sequence[torch.optim.Optimizer],
    examples: Sequence[Example],
    config: TrainConfig,
    device: torch.device,
    done: int = 0,
    validation: Sequence[Example] = (),
    *,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[dict[str, Any]], None] = lambda _: None,
    on_checkpoint: Callable[[int], None] = lambda _: None,
) -> int:
    """Trains from step `done` + 1 to the end, or until it is asked to stop.

    A step's loss is the mean over all tokens that carry loss in its global batch (or over steps or trajectories, as
    `config.loss` says): exact, however the batch is split over processes and micro-batches.

    Args:
        examples: The same on every process; each has at least one token that carries loss.
        done: Steps that the state in `module` and `optimizers` has behind it.
        validation: Held-back examples; their loss is taken at the end of each epoch and at the very end.
        stop: Whether to stop behind this step; one process that says so is enough.
        on_step: Called on every process with the step's metrics.
        on_checkpoint: Called on every process with the number of steps done: every `checkpoint_steps`, at the end of
            each epoch, at the very end, and when it is asked to stop.

    Returns:
        Steps done.

    Raises:
        AtlasError: If the loss or the gradient is no longer finite; the weights are those of the step before.
    """
    rank, world = rank_and_world()
    total = total_steps(len(examples), config.global_batch_size, config.epochs)
    epoch_steps = math.ceil(len(examples) / config.global_batch_size)
    lengths = [example.length for example in examples]
    flops = Flops.of(module.model)
    costs = [flops.of_example(example.length, example.loss_tokens) for example in examples]
    # Adam's rate stands last: Muon, where it is used, comes first.
    rates = [config.muon_learning_rate, config.learning_rate][-len(optimizers) :]
    begun = time.monotonic()
    for step in range(done + 1, total + 1):
        started = time.monotonic()
        torch.manual_seed(derive_seed(config.seed, "step", step, rank))
        batch = global_batch_of(step, len(examples), config.global_batch_size, config.seed)
        members = [examples[i] for i in batch]
        denominator = loss_denominator(members, config.loss)
        factor = schedule(step, total, config.warmup_ratio)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                # Of a compiled step the rate is a tensor, or each would be compiled anew.
                held = isinstance(group["lr"], torch.Tensor)
                group["lr"] = torch.full_like(group["lr"], rate * factor) if held else rate * factor

        nll = torch.zeros((), dtype=torch.float64, device=device)
        for packed in _micro_batches(examples, batch, lengths, costs, config):
            with autocast(module, config, device):
                loss = module(packed.to(device))
            # FSDP averages gradients over processes; the loss is a sum over all of them.
            (loss * (world / denominator)).backward()
            nll += loss.detach()
        norm = nn.utils.clip_grad_norm_(module.parameters(), config.max_grad_norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if world > 1:
            dist.all_reduce(nll)
        mean = nll.item() / denominator
        # Before the step: it would put them into every weight. All processes see the same numbers.
        for what, value in (("loss", mean), ("gradient's norm", norm.item())):
            if not math.isfinite(value):
                remedy = "lower learning_rate, or set dtype to float32"
                raise AtlasError(f"the {what} is {value} at step {step}", remedy)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        now = time.monotonic()
        tokens = sum(lengths[i] for i in batch)
        metrics = {
            "step": step,
            "total_steps": total,
            "epoch": step / epoch_steps,
            "loss": mean,
            "grad_norm": norm.item(),
            "learning_rate": config.learning_rate * factor,
            "loss_tokens": sum(example.loss_tokens for example in members),
            "tokens": tokens,
            "flops": sum(costs[i] for i in batch),
            "tokens_per_second": tokens / (now - started),
            "seconds": now - started,
            "eta_seconds": (now - begun) / (step - done) * (total - step),
        }
        epoch_ends = step % epoch_steps == 0 or step == total
        if validation and epoch_ends:
            metrics["validation_loss"] = validation_loss(module, validation, config, device)
        on_step(metrics)
        stopping = _any_process(stop(), device, world)
        if stopping or epoch_ends or step % config.checkpoint_steps == 0:
            on_checkpoint(step)
        if stopping:
            return step
    return total


def _micro_batches(
    examples: Sequence[Example],
    batch: Sequence[int],
    lengths: Sequence[int],
    costs: Sequence[float],
    config: TrainConfig,
) -> Iterator[Batch]:
    """This process's micro-batches of a global batch; processes that share sequences have parts of the same ones."""
    (rank, world), sharing = rank_and_world(), config.context_parallel
    packed = pack_micro_batches(batch, lengths, costs, world // sharing, config.micro_batch_tokens * sharing)
    for micro_batch in packed[rank // sharing]:
        yield collate([examples[i] for i in micro_batch], config.loss, sharing, rank % sharing)


def validation_loss(module: StepLoss, examples: Sequence[Example], config: TrainConfig, device: torch.device) -> float:
    """The loss, in nats, of all examples as one batch, as training counts it; every process takes part."""
    _, world = rank_and_world()
    nll = torch.zeros((), dtype=torch.float64, device=device)
    module.eval()
    with torch.no_grad():
        lengths = [example.length for example in examples]
        for packed in _micro_batches(examples, range(len(examples)), lengths, lengths, config):
            with autocast(module, config, device):
                nll += module(packed.to(device))
    module.train()
    if isinstance(module, FSDPModule):
        module.reshard()  # without a backward pass behind it nothing else does
    if world > 1:
        dist.all_reduce(nll)
    return nll.item() / loss_denominator(examples, config.loss)


def _any_process(flag: bool, device: torch.device, world: int) -> bool:
    """Whether the flag is set in any process; all get the same answer."""
    if world == 1:
        return flag
    count = torch.tensor(float(flag), device=device)
    dist.all_reduce(count)
    return bool(count.item())


def autocast(module: StepLoss, config: TrainConfig, device: torch.device) -> Any:
    """A forward pass's context. Where the model is sharded, FSDP's own policy casts instead, before weights travel."""
    if not config.in_bfloat16(device.type == "cuda") or isinstance(module, FSDPModule):
        return nullcontext()
    # Each weight is used once a pass: kept casts would only be a second copy of the model.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
