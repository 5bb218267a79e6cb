"""The training stage: what it refuses, what it writes, and that workers share the work exactly."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.training.data.corpus import Corpus
from atlas_ray.training.data.examples import build_examples
from atlas_ray.training.metrics import METRICS, read_checkpoints, read_metrics
from atlas_ray.training.settings import LoraConfig
from atlas_ray.training.stage import train, train_agent
from atlas_ray.types import Selection
from tests.support.solo import run_alone
from tests.support.tiny import LLAMA_TEMPLATE, tiny_tokenizer
from tests.support.training import (
    SELECTIONS_HERE,
    TRAJECTORIES_HERE,
    a_config,
    a_trajectory,
    curve,
    run_locally,
    the_examples,
    undisturbed,
    write_base,
    write_data,
    written_curve,
)

CHAT = ChatFormat(tiny_tokenizer())
CORPUS = Corpus.of(TRAJECTORIES_HERE, CHAT)


def test_trajectories_without_a_selection_are_left_out_and_counted(tmp_path: Path) -> None:
    config = a_config(model=write_base(tmp_path / "base"))
    failed = Selection("maze/maze_1", "maze", "maze_1", "llm", 0.3, 3, (), error="no answer")
    prepared = build_examples(config, CORPUS, TRAJECTORIES_HERE, [SELECTIONS_HERE[0], failed, *SELECTIONS_HERE[3:]])
    assert [e.trajectory_id for e in prepared.examples] == [f"maze/maze_{i}" for i in (0, 3, 4, 5, 6)]
    assert prepared.unselected == 2
    assert build_examples(config, CORPUS, TRAJECTORIES_HERE, None).statistics.loss_token_fraction == 1


def test_chat_template_of_the_settings_is_used_and_exported(tmp_path: Path) -> None:
    base, bare = write_base(tmp_path / "base"), tmp_path / "bare"
    shutil.copytree(base, bare)
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.chat_template = None
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(bare)
    common = {"global_batch_size": 4, "epochs": 1}
    with pytest.raises(UserError, match="has no chat template"):
        run_alone(a_config(run=str(tmp_path / "no"), model=str(bare), **common), TRAJECTORIES_HERE, None)
    models = {"own": (base, None), "given": (str(bare), LLAMA_TEMPLATE)}
    for run, (model, template) in models.items():
        config = a_config(run=str(tmp_path / run), model=model, chat_template=template, **common)
        run_alone(config, TRAJECTORIES_HERE, None)
    own, given = (tmp_path / run / "model" for run in models)
    assert (own / "model.safetensors").read_bytes() == (given / "model.safetensors").read_bytes()
    messages = TRAJECTORIES_HERE[0].messages
    assert ChatFormat.load(str(given)).render(messages) == ChatFormat.load(str(own)).render(messages)


def test_unusable_data_or_selection_is_refused(tmp_path: Path) -> None:
    config = a_config(model=write_base(tmp_path / "base"))
    with pytest.raises(UserError, match="of 7 trajectories 0 have a selection"):
        build_examples(config, CORPUS, TRAJECTORIES_HERE, [])
    other = Selection("maze/maze_0", "maze", "maze_0", "gold", 0.3, 9, (1,))
    with pytest.raises(UserError, match="maze/maze_0 has 2 steps, 9 where it was selected"):
        build_examples(config, CORPUS, TRAJECTORIES_HERE, [other])
    uncut, long = config.model_copy(update={"max_length": 99_999}), [a_trajectory(0, 200)]
    with pytest.raises(UserError, match="tokens, the model's context 2048"):
        build_examples(uncut, Corpus.of(long, CHAT), long, None)
    with pytest.raises(UserError, match="holds no selection"):
        train_agent(a_config(run=str(tmp_path / "run"), data=write_data(tmp_path), selection=str(tmp_path / "none")))


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


def test_passes_are_repeated_until_as_many_tokens_carried_loss_as_all_steps_have(
    ray_cluster: None, tmp_path: Path
) -> None:
    data, selection = write_data(tmp_path), RunFolder(str(tmp_path / "selection"))
    selection.begin(SelectConfig(data=data), stage="select")
    selection.write_shard(SELECTIONS, SELECTIONS_HERE)
    selection.finish()
    base = write_base(tmp_path / "base")
    settings = {"model": base, "data": data, "selection": selection.uri, "match_loss_tokens": True}
    config = a_config(run=str(tmp_path / "run"), **settings)
    figures = train_agent(config)
    seen = [json.loads(line)["loss_tokens"] for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    asked = config.epochs * figures["loss_tokens"] / figures["loss_token_fraction"]
    assert 0.25 < figures["loss_token_fraction"] < 0.9
    assert asked <= sum(seen) < asked + max(seen)
    assert figures["train_steps"] == len(seen) > 6


def exported_types(folder: Path) -> tuple[Any, set[torch.dtype]]:
    """The type that `config.json` names, and those of the weights."""
    from safetensors.torch import load_file

    model = folder / "model"
    types = {weight.dtype for file in model.glob("*.safetensors") for weight in load_file(file).values()}
    return json.loads((model / "config.json").read_text())["dtype"], types


def test_two_workers_in_bfloat16_train_as_one_process(ray_cluster: None, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", torch.bfloat16)
    options: dict[str, Any] = {"model": base, "dtype": "bfloat16", "epochs": 4, "learning_rate": 3e-3}
    alone, two = (a_config(run=str(tmp_path / name), **options) for name in ("alone", "two"))
    run_alone(alone, TRAJECTORIES_HERE, SELECTIONS_HERE)
    train(two.model_copy(update={"num_workers": 2}), TRAJECTORIES_HERE, SELECTIONS_HERE)
    losses, expected = ([m["loss"] for m in read_metrics(RunFolder(c.run))] for c in (two, alone))
    assert len(losses) == 12
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    assert exported_types(tmp_path / "two") == ("bfloat16", {torch.bfloat16})
    assert [saved["step"] for saved in read_checkpoints(RunFolder(two.run))] == [3, 6, 9, 12]
    assert not (tmp_path / "two" / "checkpoints").exists()


@pytest.mark.slow
def test_two_workers_that_share_sequences_train_as_one_process(ray_cluster: None, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base, data = write_base(tmp_path / "base"), write_data(tmp_path)
    alone, two = (a_config(run=str(tmp_path / name), model=base, data=data, epochs=3) for name in ("alone", "two"))
    run_alone(alone, TRAJECTORIES_HERE, None)
    figures = train_agent(two.model_copy(update={"num_workers": 2, "context_parallel": 2}))
    assert figures["train_steps"] == 9
    found, expected = (curve(read_metrics(RunFolder(config.run))) for config in (two, alone))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    exported, wanted = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("two", "alone"))
    torch.testing.assert_close(exported, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("written", ["float32", "bfloat16"])
def test_an_exported_configuration_names_the_type_of_its_weights(
    tmp_path: Path, written: str, lora: LoraConfig | None
) -> None:
    if lora is not None:
        pytest.importorskip("peft")
    base = write_base(tmp_path / "base", getattr(torch, written))
    config = a_config(run=str(tmp_path / "run"), model=base, epochs=1, dtype="bfloat16", lora=lora)
    run_alone(config, TRAJECTORIES_HERE, SELECTIONS_HERE)
    assert exported_types(tmp_path / "run") == (written, {getattr(torch, written)})


@pytest.mark.slow
def test_two_workers_train_as_one(ray_cluster: None, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_base(tmp_path / "base")
    config = a_config(
        run=str(tmp_path / "run"), model=str(tmp_path / "base"), num_workers=2, epochs=3, keep_checkpoint=True
    )
    train(config, TRAJECTORIES_HERE, SELECTIONS_HERE)
    module, _, _ = run_locally(config, AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    np.testing.assert_allclose(written_curve(tmp_path), undisturbed(config), rtol=1e-4)
    written = (tmp_path / "run" / METRICS).read_text()
    shutil.rmtree(tmp_path / "run" / "model")
    train(config, TRAJECTORIES_HERE, SELECTIONS_HERE)  # as after a kill between the last step and the export
    assert (tmp_path / "run" / METRICS).read_text() == written
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(exported.state_dict(), module.model.state_dict(), rtol=1e-3, atol=1e-4)
