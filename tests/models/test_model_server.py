"""vLLM's server as a process of our own: how it is asked for, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from atlas_ray.config import EngineConfig
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.models.engine import server_options
from atlas_ray.models.serving import serving


def test_the_server_is_asked_for_the_engine_of_the_configuration(tiny_models: tuple[str, str]) -> None:
    model = tiny_models[0]
    arguments, environment = server_options(model, EngineConfig(max_model_len=512, max_num_seqs=7))
    pairs = dict(pairwise(arguments))
    assert (pairs["--model"], pairs["--max-model-len"], pairs["--max-num-seqs"]) == (model, "512", "7")
    assert '"disable_any_whitespace": true' in pairs["--structured-outputs-config"]
    assert "--enable-prefix-caching" in arguments
    assert environment["VLLM_NO_USAGE_STATS"] == "1"


def test_the_server_ends_with_the_process_that_started_it(tiny_models: tuple[str, str]) -> None:
    code = f"""
from atlas_ray.config import EngineConfig
from atlas_ray.models.serving import serving
with serving({tiny_models[0]!r}, EngineConfig(max_model_len=64)): pass
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{owner.pid}/task/{owner.pid}/children")
    end = time.monotonic() + 60
    while not (pids := [pid for pid in children.read_text().split() if _is_server(pid)]):
        assert owner.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    while _is_server(pids[0]):
        assert time.monotonic() < end
        time.sleep(0.05)


def _is_server(pid: str) -> bool:
    try:
        return b"atlas_ray.models.serving" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="no-such-folder"), serving("./no-such-folder"):
        pass


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(tiny_models: tuple[str, str], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_models[0], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(AtlasError, match="ended with code"), serving(str(bare), EngineConfig(max_model_len=64)):
        pass
