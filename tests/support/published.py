"""Environments that others have made, as PyPI has them: each library in a virtual environment of its own.

PyPI has, of verifiers' environments, `marble-v1`, the tasksets of the library's own tests in its source archive (one
calls tools over several turns, but is a single task), and its `openenv`, which plays OpenEnv's servers. Of OpenEnv's it
has the one that `openenv init` writes, and what `openenv import` makes of other libraries': `platoon-textcraft`, an
OpenReward environment with tools and 1,100 tasks.

Left out:
- need a key or another's server: `mazebench`, `catapult-verifiers`; verifiers' `harbor`, `nemo_gym`
- need a download: verifiers' `textarena` (words, from NLTK's server), `openenv-dipg-safety` (a data set, from the hub)
- are of verifiers before 0.4, or of none: `sophistry-bench-sprint`, `korrel`, `staros-stardata`, `verifiable-labs-*`,
  `primebeaker`
- cannot be had: `koan-verifiers`, `whetstone-envs`, `techtree`
- are no environments: `tasksets`, `harnesses` (adapters), `edtriage-client`, `openenv-agent` (clients); the one of
  `learnlens` has no server

None of Gymnasium's has observations and actions that are texts: its own taxi is put in words by `toy_text.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

# verifiers and OpenEnv agree on one version of MCP's library where OpenEnv is 0.4.1
VERIFIERS = ("verifiers[openenv]>=0.4,<0.5", "marble-v1==0.1.0", "openenv==0.4.1", "fastmcp==4.1.1")
OPENENV = ("openenv>=0.10,<0.11",)
# later ones of openreward hide the tool that ends an episode from the list that OpenEnv shows
TEXTCRAFT = ("platoon-textcraft==0.3.0", "openreward==0.1.125")


def verifiers_python(folder: Path) -> str:
    """A Python with verifiers, marble-v1, and the tasksets that verifiers tests itself by."""
    python = _python_with(folder / "venv", *VERIFIERS)
    source = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "verifiers", "-d", str(folder)]
    subprocess.run([*source, "verifiers>=0.4,<0.5"], check=True)
    [archive] = folder.glob("verifiers-*.tar.gz")
    with tarfile.open(archive) as held:
        held.extractall(folder, filter="data")
    tests = folder / archive.name.removesuffix(".tar.gz") / "tests" / "v1" / "fixtures"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(tests)], check=True)
    return python


def openenv_python(folder: Path) -> str:
    """A Python with OpenEnv, the environment `echo_env` that its `init` writes, and TextCraft, as it is imported."""
    python = _python_with(folder / "venv", *OPENENV)
    made = folder / "made"
    made.mkdir()
    write = [python, "-m", "openenv.cli"]
    init = [*write, "init", "echo_env", "--output-dir", str(made)]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    # it asks for Python 3.12, but what is played here runs in 3.11
    subprocess.run([python, "-m", "pip", "install", "-q", "--ignore-requires-python", *TEXTCRAFT], check=True)
    [source] = (folder / "venv").glob("lib/*/site-packages/platoon_textcraft")
    imported = [*write, "import", str(source), "--env-class", "TextCraftEnvironment", "--name", "textcraft_env"]
    subprocess.run([*imported, "--output-dir", str(made)], check=True, stdout=subprocess.DEVNULL)
    install = [python, "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*install, *(str(made / name) for name in ("echo_env", "textcraft_env"))], check=True)
    return python


def _python_with(folder: Path, *packages: str) -> str:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, env=os.environ | {"PYTHONPATH": ""})
    return python
