"""Where a model lies, and what it may bring along: safetensors, and code only where the machine's owner allows it.

Flows in: a model folder, its URI in an object store, or a hub id; flows out: a local folder (or the id) and options for
whoever loads it, or a refusal before anything is loaded.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from atlas_ray.errors import UserError
from atlas_ray.runs.local_copy import local_copy
from atlas_ray.runs.progress import console

TRUST_VARIABLE = "ATLAS_TRUST_REMOTE_CODE"
_STRETCHING = ("linear", "dynamic")  # RoPE scaling that `max_position_embeddings` has not counted in
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
_WEIGHTS = ".safetensors"
_WIDE = 256  # from which on training in bfloat16 takes half the time or less, with AVX-512
_BESIDE = (".json", ".jinja", ".model", ".txt", ".bpe", ".tiktoken", ".py")  # configuration and tokenizer

_log = logging.getLogger(__name__)


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Keeps the collector of garbage from looking at what libraries make as they load: all of it stays, and looking is
    a seventh of the time of whatever loads transformers for a short look."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def trusted() -> bool:
    """Whether models may run code of their own: asked for in the environment of each machine, never by a recipe."""
    asked = os.environ.get(TRUST_VARIABLE) == "1"
    if asked:
        _log.warning("%s=1: code that a model brings along runs with all rights of this process", TRUST_VARIABLE)
    return asked


def weights() -> dict[str, Any]:
    """Options with which transformers loads weights."""
    return {"use_safetensors": True, "trust_remote_code": trusted()}


def local_model(model: str, *, whole: bool = True) -> str:
    """Where a model can be loaded from on this machine: brought here where it lies behind a URI, and looked at.

    Args:
        model: Folder, URI or hub id; a hub id comes back as it is.
        whole: False for the configuration and tokenizer alone, without the weights.

    Raises:
        UserError: If it cannot be found or read, its weights are pickles, or it brings code and that is not allowed.
        AtlasError: If it cannot be fetched.
    """
    if "://" not in model:
        check_model(model)
        return model
    suffixes = (*_BESIDE, _WEIGHTS) if whole else _BESIDE
    folder = str(local_copy(model, suffixes, partial(_refuse_pickles, model)))
    check_model(folder, model)
    return folder


def fetch_for_workers(model: str) -> None:
    """Fetches a model ahead of Ray's workers where this machine is the only node: its progress is seen here alone.

    Raises:
        UserError: As `local_model`.
        AtlasError: As `local_model`.
    """
    if "://" not in model:
        return
    import ray

    hosts = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
    if hosts == [socket.gethostname()]:
        local_model(model)
    else:
        console.print(f"{model} is fetched by every node that uses it, once")


def check_model(folder: str, model: str | None = None) -> None:
    """Looks at a model folder; a hub id is left to the loaders, which get the same options.

    Args:
        folder: Of a model; anything else is passed over.
        model: What the user calls it; None: the folder.

    Raises:
        UserError: If its weights are pickles, or it brings code and that is not allowed.
    """
    place, model = Path(folder), model or folder
    if not place.is_dir():
        return
    _refuse_pickles(model, sorted(file.name for file in place.iterdir()))
    bringing = [name for name in ("config.json", "tokenizer_config.json") if _brings_code(place / name)]
    if bringing and not trusted():
        raise UserError(
            f"{model} brings code of its own ({bringing[0]}: auto_map), which is not run",
            f"use a model that transformers knows; if you trust the code, set {TRUST_VARIABLE}=1 on every machine",
        )


def text_config(model: str, revision: str | None = None) -> Any:
    """What a model's configuration says of its part for text.

    Raises:
        UserError: If it has no configuration that can be read.
    """
    from transformers import AutoConfig

    try:
        place = local_model(model, whole=False)
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trusted()).get_text_config()
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 (a broken file may raise anything)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot load the configuration of {model!r}: {reason}", "check the model's name") from None


def longest(model: str, revision: str | None = None) -> int | None:
    """Tokens that the model was made for, as vLLM reckons them; None where its configuration does not say.

    Raises:
        UserError: If it has no configuration that can be read.
    """
    config = text_config(model, revision)
    positions = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if positions and rope.get("rope_type") in _STRETCHING:
        return int(positions * (rope.get("factor") or 1.0))
    return positions


def fast_in_bfloat16(width: int) -> bool:
    """Whether this machine's CPU computes a model faster in bfloat16 than in float32: if it multiplies bfloat16 itself.

    A CPU that has to emulate that takes ten times as long. Narrow models gain less, and stay the same on all machines.

    Args:
        width: Of the model's layers.
    """
    import torch

    known = torch.cpu.get_capabilities()
    return width >= _WIDE and any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))


def dtype_on_cpu(model: str, revision: str | None = None) -> Literal["bfloat16", "float32"]:
    """What an engine on this machine's CPU plays a model in, unless it is told.

    Raises:
        UserError: If the model has no configuration that can be read.
    """
    width = getattr(text_config(model, revision), "hidden_size", 0)
    return "bfloat16" if fast_in_bfloat16(width) else "float32"


def _refuse_pickles(model: str, names: Iterable[str]) -> None:
    own = [name for name in names if "/" not in name]
    pickles = [name for name in own if Path(name).suffix in _PICKLES and not name.startswith("training_args")]
    if pickles and not any(name.endswith(_WEIGHTS) for name in own):
        raise UserError(
            f"the weights of {model} are a pickle ({pickles[0]}), which can run any code when it is loaded",
            "take the model's safetensors, or convert it where you trust it: save_pretrained() writes them",
        )


def _brings_code(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text()).get("auto_map"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False  # whoever loads it says what is wrong
