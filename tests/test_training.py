"""Training: batches lose nothing, loss and gradients are exact, a run that is killed ends as if it had not been."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.config import DataConfig, SelectConfig, TrainConfig
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.training import loop
from atlas_ray.training.batching import collate, global_batch_of, plan, total_steps
from atlas_ray.training.distributed import METRICS, train, train_agent
from atlas_ray.training.examples import prepare
from atlas_ray.training.masking import Example, training_example
from atlas_ray.types import Message, Selection, Trajectory
from tests.tiny import WORDS, tiny_llama, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def a_trajectory(number: int, turns: int) -> Trajectory:
    words = [WORDS[(7 * number + 3 * k) % len(WORDS)] for k in range(turns)]
    messages = [
        message
        for k, word in enumerate(words)
        for message in (
            Message("user", f"see {word} " * (1 + (number + k) % 3)),
            Message("assistant", f"Thought: {word}\nAction: go {words[k - 1]}", True),
        )
    ]
    return Trajectory(f"maze/maze_{number}", "maze", f"maze_{number}", tuple(messages))


TRAJECTORIES_HERE = [a_trajectory(number, 2 + number % 5) for number in range(7)]
CHOSEN = {t.id: (1, len(t.steps)) if number % 2 else (2,) for number, t in enumerate(TRAJECTORIES_HERE)}
SELECTIONS_HERE = [
    Selection(t.id, t.env, t.item_id, "gold", 0.3, len(t.steps), CHOSEN[t.id]) for t in TRAJECTORIES_HERE
]


def the_examples() -> list[Example]:
    chat = ChatFormat(tiny_tokenizer())
    return [training_example(t, CHOSEN[t.id], chat, 500) for t in TRAJECTORIES_HERE]


def a_config(**options: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "data": DataConfig(path="data"),
        "dtype": "float32",
        "learning_rate": 1e-3,
        "global_batch": 3,
        "micro_batch_tokens": 120,
        "use_gpu": False,
        "max_length": 500,
        "epochs": 2,
    }
    return TrainConfig(**plain | options)


def write_base(folder: Path) -> str:
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# --- batches


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    global_batch=st.integers(1, 12),
    ranks=st.integers(1, 4),
    budget=st.integers(16, 600),
    seed=st.integers(0, 9),
)
def test_every_token_goes_through_once_an_epoch(
    lengths: list[int], global_batch: int, ranks: int, budget: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    examples = [
        Example(str(i), rng.integers(5, 99, n).astype(np.int32), rng.random(n) < 0.5, 1, 1, 0, n)
        for i, n in enumerate(lengths)
    ]
    per_epoch = total_steps(len(examples), global_batch, 1)
    for epoch in range(2):
        seen: Counter[str] = Counter()
        tokens, targets = 0, 0
        for step in range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1):
            batch = global_batch_of(step, len(examples), global_batch, seed)
            assert 1 <= len(batch) <= global_batch
            shares = plan(batch, lengths, ranks, budget)
            assert len({len(share) for share in shares}) == 1
            assert len(shares) == ranks
            for micro_batch in (m for share in shares for m in share):
                ids, loss_mask = collate([examples[i] for i in micro_batch], 0)
                assert ids.numel() <= budget or len(micro_batch) <= 1
                tokens, targets = tokens + int((ids != 0).sum()), targets + int(loss_mask.sum())
                seen.update(examples[i].trajectory_id for i in micro_batch)
        assert seen == {e.trajectory_id: 1 for e in examples}
        assert (tokens, targets) == (sum(lengths), sum(e.loss_tokens for e in examples))


def test_orders_differ_by_epoch_and_seed_and_repeat() -> None:
    first = [global_batch_of(step, 64, 64, seed) for step, seed in ((1, 0), (2, 0), (1, 1))]
    assert first == [global_batch_of(step, 64, 64, seed) for step, seed in ((1, 0), (2, 0), (1, 1))]
    assert len({tuple(order) for order in first}) == 3


def test_ranks_share_tokens_evenly() -> None:
    lengths = [1000, 400, 300, 200, 100]
    shares = plan(range(5), lengths, 2, 10_000)
    assert [sum(lengths[i] for m in share for i in m) for share in shares] == [1000, 1000]


def test_steps_round_up() -> None:
    assert [total_steps(10, 4, e) for e in (0.1, 1, 1.5, 3)] == [1, 3, 5, 9]


def test_padding_stands_to_the_right_without_loss() -> None:
    short, long = sorted(the_examples(), key=lambda e: e.length)[:: len(TRAJECTORIES_HERE) - 1]
    ids, loss_mask = collate([long, short], 1)
    assert ids.shape == loss_mask.shape == (2, long.length)
    assert ids[1, : short.length].tolist() == short.ids.tolist()
    assert set(ids[1, short.length :].tolist()) == {1}
    assert not loss_mask[1, short.length :].any()
    assert [t.tolist() for t in collate([], 1)] == [[[1]], [[False]]]


# --- loss


def test_hand_computed_loss() -> None:
    """A model that knows only the last token: P(1|0) = 1/2, P(2|1) = 1/4, P(0|2) = 1/8."""
    p = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.125, 0.5, 0.375]])

    class Bigram(torch.nn.Module):
        config = SimpleNamespace()

        def get_decoder(self) -> Any:
            return lambda input_ids, use_cache: SimpleNamespace(
                last_hidden_state=torch.nn.functional.one_hot(input_ids, 3).float()
            )

        def get_output_embeddings(self) -> Any:
            return lambda states: states @ p.log()

    module = loop.StepLoss(Bigram())
    ids = torch.tensor([[0, 1, 2, 0, 1]])
    masks = {(1,): 2, (2,): 4, (3,): 8, (1, 2, 3): 64, (): 1, (0,): 1}
    for targets, inverse_probability in masks.items():
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, list(targets)] = True
        assert module(ids, mask).item() == pytest.approx(math.log(inverse_probability), abs=1e-6)


def test_logits_in_parts_are_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    module = loop.StepLoss(tiny_llama(99))
    ids = torch.randint(0, 99, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = ids % 2 == 0
    whole = module(ids, mask)
    whole.backward()
    gradients = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    monkeypatch.setattr(loop, "LOGIT_ROWS", 7)
    parts = module(ids, mask)
    parts.backward()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close([p.grad for p in module.parameters()], gradients, rtol=1e-4, atol=1e-6)


def test_a_model_that_changes_its_logits_is_refused() -> None:
    with pytest.raises(UserError, match="final_logit_softcapping"):
        loop.StepLoss(tiny_llama(99, final_logit_softcapping=30.0))


def reference(examples: list[Example], model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one global batch by plain transformers: trajectory by trajectory, labels of -100."""
    count = sum(e.loss_tokens for e in examples)
    total = 0.0
    for e in examples:
        ids = torch.tensor(e.ids.tolist())[None]
        labels = torch.where(torch.tensor(e.loss_mask.tolist()), ids[0], -100)[None]
        loss = model(input_ids=ids, labels=labels).loss * e.loss_tokens / count
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters()}


def a_recorder() -> Any:
    """Makes optimizers that change nothing, with the gradients they are given; nested, so that it travels by value."""

    def recorder(module: Any) -> tuple[Any, dict[str, Any]]:
        import torch

        optimizer, seen = torch.optim.SGD(module.parameters(), lr=0.0), {}

        def note(*_: Any) -> None:
            for name, p in module.named_parameters():
                full = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
                seen[name.removeprefix("model.")] = full.clone()

        optimizer.register_step_pre_hook(note)
        return [optimizer], seen

    return recorder


def assert_equal_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("micro_batch_tokens", [16, 120, 10_000])
def test_loss_and_gradients_equal_plain_transformers(micro_batch_tokens: int) -> None:
    examples = the_examples()
    config = a_config(global_batch=7, epochs=1, clip=1e9, micro_batch_tokens=micro_batch_tokens)
    module = loop.prepare(tiny_llama(80), config, CPU)
    optimizers, seen = a_recorder()(module)
    steps: list[dict[str, Any]] = []
    loop.fit(module, optimizers, examples, config, CPU, on_step=steps.append)
    loss, gradients = reference(examples, tiny_llama(80))
    assert [s["loss"] for s in steps] == [pytest.approx(loss, abs=1e-5)]
    assert steps[0]["loss_tokens"] == sum(e.loss_tokens for e in examples)
    assert_equal_gradients(seen, gradients)


def test_the_reference_notices_a_mask_that_is_off_by_one() -> None:
    examples = the_examples()
    loss, _ = reference(examples, tiny_llama(80))
    for e in examples:
        e.loss_mask[:] = np.roll(e.loss_mask, -1)
    shifted, _ = reference(examples, tiny_llama(80))
    assert abs(loss - shifted) > 1e-3


def test_two_ranks_equal_plain_transformers(ray_cluster: None, tmp_path: Path) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    examples, base = the_examples(), write_base(tmp_path / "base")
    config = a_config(global_batch=7, epochs=1, clip=1e9)
    recorder = a_recorder()

    def work(_: dict[str, Any]) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        from atlas_ray.training import loop

        torch.set_num_threads(1)
        module = loop.prepare(AutoModelForCausalLM.from_pretrained(base), config, torch.device("cpu"))
        (optimizers, seen), steps = recorder(module), []
        loop.fit(module, optimizers, examples, config, torch.device("cpu"), on_step=steps.append)
        return steps, {k: v.numpy() for k, v in seen.items()}, type(module).__name__

    trainer = TorchTrainer(
        work,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path / "ray")),
    )
    steps, found, kind = trainer.fit().return_value
    tokenizer_size = len(tiny_tokenizer())
    loss, gradients = reference(examples, tiny_llama(tokenizer_size))
    assert kind == "FSDPStepLoss"
    assert [s["loss"] for s in steps] == [pytest.approx(loss, abs=1e-5)]
    assert_equal_gradients({k: torch.from_numpy(v) for k, v in found.items()}, gradients)


# --- the loop


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [loop.schedule(step, 10, 0.2) for step in range(1, 11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[3:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(1, 8)])
    assert loop.schedule(1, 1, 0.0) == 1.0


def run_locally(config: TrainConfig, model: Any = None, **options: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
    module = loop.prepare(model or tiny_llama(80), config, CPU)
    optimizers, steps = loop.make_optimizers(module, config), list[dict[str, Any]]()
    loop.fit(module, optimizers, the_examples(), config, CPU, on_step=steps.append, **options)
    return module, optimizers, steps


@pytest.mark.parametrize(("dtype", "optimizer"), [("float32", "adam"), ("bfloat16", "adam"), ("float32", "muon")])
def test_training_learns_and_reports(dtype: str, optimizer: str) -> None:
    checkpoints: list[int] = []
    config = a_config(dtype=dtype, optimizer=optimizer, epochs=8, checkpoint_steps=5, learning_rate=5e-3)
    module, _, steps = run_locally(config, on_checkpoint=checkpoints.append)
    assert [s["step"] for s in steps] == list(range(1, 25))
    assert checkpoints == sorted({*range(5, 25, 5), *range(3, 25, 3)})
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    assert steps[-1]["eta_seconds"] == 0 < steps[0]["eta_seconds"]
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_resuming_repeats_an_undisturbed_run_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    config = a_config(optimizer=optimizer, epochs=3, checkpoint_steps=4)
    whole, _, steps = run_locally(config)

    class StopError(Exception):
        pass

    module = loop.prepare(tiny_llama(80), config, CPU)
    optimizers = loop.make_optimizers(module, config)

    def stop(step: int) -> None:
        if step == 4:
            loop.save_state(tmp_path / "state", module, optimizers, step)
            raise StopError

    first: list[dict[str, Any]] = []
    with pytest.raises(StopError):
        loop.fit(module, optimizers, the_examples(), config, CPU, on_step=first.append, on_checkpoint=stop)

    module = loop.prepare(tiny_llama(80, seed=1), config, CPU)
    optimizers = loop.make_optimizers(module, config)
    done = loop.load_state(tmp_path / "state", module, optimizers)
    second: list[dict[str, Any]] = []
    loop.fit(module, optimizers, the_examples(), config, CPU, on_step=second.append, done=done)
    assert done == 4
    assert curve(first + second) == curve(steps)
    torch.testing.assert_close(module.state_dict(), whole.state_dict(), rtol=0, atol=0)


def curve(steps: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(s[k] for k in ("step", "loss", "grad_norm", "learning_rate", "tokens")) for s in steps]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = tiny_llama(80)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(AtlasError, match="loss is nan at step 1"):
        run_locally(a_config(), model)


# --- the stage


def test_trajectories_without_a_selection_are_left_out_and_counted(tmp_path: Path) -> None:
    config = a_config(model=write_base(tmp_path / "base"))
    failed = Selection("maze/maze_1", "maze", "maze_1", "llm", 0.3, 3, (), error="no answer")
    prepared = prepare(config, TRAJECTORIES_HERE, [SELECTIONS_HERE[0], failed, *SELECTIONS_HERE[3:]])
    assert [e.trajectory_id for e in prepared.examples] == [f"maze/maze_{i}" for i in (0, 3, 4, 5, 6)]
    assert prepared.unselected == 2
    assert prepare(config, TRAJECTORIES_HERE, None).statistics.loss_token_fraction == 1


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    config = a_config(model=write_base(tmp_path / "base"))
    with pytest.raises(UserError, match="of 7 trajectories 0 have a selection"):
        prepare(config, TRAJECTORIES_HERE, [])
    other = Selection("maze/maze_0", "maze", "maze_0", "gold", 0.3, 9, (1,))
    with pytest.raises(UserError, match="maze/maze_0 has 2 steps, 9 where it was selected"):
        prepare(config, TRAJECTORIES_HERE, [other])
    with pytest.raises(UserError, match="tokens, the model's context 2048"):
        prepare(config.model_copy(update={"max_length": 99_999}), [a_trajectory(0, 200)], None)
    with pytest.raises(UserError, match="holds no selection"):
        train_agent(a_config(run=str(tmp_path / "run"), data=write_data(tmp_path), selection=str(tmp_path / "none")))


def write_data(folder: Path) -> DataConfig:
    RunFolder(str(folder / "data")).write_shard(TRAJECTORIES, TRAJECTORIES_HERE)
    return DataConfig(path=str(folder / "data" / "trajectories"))


def test_the_stage_trains_as_the_loop_and_exports_its_model(ray_cluster: None, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data, selection = write_data(tmp_path), RunFolder(str(tmp_path / "selection"))
    selection.begin(SelectConfig(data=data), stage="select")
    selection.write_shard(SELECTIONS, SELECTIONS_HERE)
    selection.finish()
    base = write_base(tmp_path / "base")
    config = a_config(run=str(tmp_path / "run"), model=base, data=data, selection=selection.uri)
    figures = train_agent(config)
    module, _, steps = run_locally(config, AutoModelForCausalLM.from_pretrained(base))
    written = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert curve(written) == curve(steps)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(exported.state_dict(), module.model.state_dict(), rtol=0, atol=0)
    chat = ChatFormat(AutoTokenizer.from_pretrained(tmp_path / "run" / "model"))
    assert set(chat.stop_ids) <= set(exported.generation_config.eos_token_id)
    assert figures["train_steps"] == 6
    assert figures["loss_tokens"] == sum(e.loss_tokens for e in the_examples())
    assert (figures["dropped"], figures["steps_lost"]) == (0, 0)
    started = time.monotonic()
    assert train_agent(config) == figures
    assert time.monotonic() - started < 1


def long_config(folder: Path, **options: Any) -> TrainConfig:
    return a_config(
        run=str(folder / "run"), model=str(folder / "base"), epochs=40, checkpoint_steps=5, global_batch=4, **options
    )


def written_curve(folder: Path) -> list[tuple[Any, ...]]:
    return curve([json.loads(line) for line in (folder / "run" / METRICS).read_text().splitlines()])


def undisturbed(config: TrainConfig) -> list[tuple[Any, ...]]:
    from transformers import AutoModelForCausalLM

    return curve(run_locally(config, AutoModelForCausalLM.from_pretrained(config.model))[2])


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(ray_cluster: None, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    write_base(tmp_path / "base")
    config = long_config(tmp_path)
    killed: list[int] = []

    def kill(metrics: dict[str, Any]) -> None:
        if metrics["step"] >= 12 and not killed:
            for process in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in process.name() or "RayTrainWorker" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
                    killed.append(metrics["step"])

    train(config, TRAJECTORIES_HERE, SELECTIONS_HERE, kill)
    assert killed
    assert killed[0] < total_steps(7, 4, 40)
    assert written_curve(tmp_path) == undisturbed(config)


DRIVER = """
import json, sys
from atlas_ray.config import TrainConfig
from atlas_ray.training.distributed import train
from tests.test_training import TRAJECTORIES_HERE, SELECTIONS_HERE

if __name__ == "__main__":
    train(TrainConfig.model_validate_json(sys.argv[1]), TRAJECTORIES_HERE, SELECTIONS_HERE)
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_stopped(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    config = long_config(tmp_path)
    command = [sys.executable, "-c", DRIVER, config.model_dump_json()]
    metrics = tmp_path / "run" / METRICS
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(Path.cwd())}
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 12):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "run" / "finished.json").exists()
    kept = [*(tmp_path / "run").glob("checkpoints-*/checkpoint_*")]
    assert kept
    before = metrics.read_text().splitlines()
    subprocess.run(command, env=environment, check=True, timeout=180)
    assert metrics.read_text().splitlines()[:5] == before[:5]  # with the first run's own times: it went on
    assert written_curve(tmp_path) == undisturbed(config)


@pytest.mark.slow
def test_two_workers_train_as_one(ray_cluster: None, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_base(tmp_path / "base")
    config = a_config(run=str(tmp_path / "run"), model=str(tmp_path / "base"), workers=2, epochs=3)
    train(config, TRAJECTORIES_HERE, SELECTIONS_HERE)
    module, _, _ = run_locally(config, AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    np.testing.assert_allclose(written_curve(tmp_path), undisturbed(config), rtol=1e-4)
    written = (tmp_path / "run" / METRICS).read_text()
    shutil.rmtree(tmp_path / "run" / "model")
    train(config, TRAJECTORIES_HERE, SELECTIONS_HERE)  # as after a kill between the last step and the export
    assert (tmp_path / "run" / METRICS).read_text() == written
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(exported.state_dict(), module.model.state_dict(), rtol=1e-3, atol=1e-4)


UNDER_TORCHRUN = """
import json, sys, torch, torch.distributed as dist
from atlas_ray.training import loop
from tests.test_training import a_config, the_examples
from tests.tiny import tiny_llama

dist.init_process_group("gloo")
torch.set_num_threads(1)
config = a_config()
module = loop.prepare(tiny_llama(80), config, loop.local_device(use_gpu=False))
optimizers, steps = loop.make_optimizers(module, config), []
loop.fit(module, optimizers, the_examples(), config, torch.device("cpu"), on_step=steps.append)
if dist.get_rank() == 0:
    json.dump(steps, open(sys.argv[1], "w"))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_loop_runs_under_torchrun(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNDER_TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path / "steps.json")],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        check=True,
        timeout=180,
    )
    steps = json.loads((tmp_path / "steps.json").read_text())
    np.testing.assert_allclose(curve(steps), curve(run_locally(a_config())[2]), rtol=1e-4)
