"""Environments that others have made, as PyPI has them: each library in a virtual environment of its own.

PyPI has, of verifiers' environments, `marble-v1`, and the tasksets of the library's own tests in its source archive:
one calls tools over several turns, but is a single task. Of OpenEnv's it has the one that `openenv init` writes.

Left out:
- need a key or another's server: `mazebench`, `catapult-verifiers`; verifiers' `openenv`, `harbor`, `nemo_gym`
- need a download: verifiers' `textarena` (words, from NLTK's server), `openenv-dipg-safety` (a data set, from the hub)
- are of verifiers before 0.4, or of none: `sophistry-bench-sprint`, `korrel`, `staros-stardata`, `verifiable-labs-*`
- cannot be had: `koan-verifiers`, `whetstone-envs`, `techtree`

No package with MCP tools of OpenEnv's is there, and none of Gymnasium's whose observations and actions are texts: its
own taxi is put in words by `toy_text.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

VERIFIERS = ("verifiers>=0.4,<0.5", "marble-v1==0.1.0")
OPENENV = ("openenv>=0.10,<0.11",)


def verifiers_python(folder: Path) -> str:
    """A Python with verifiers, marble-v1, and the tasksets that verifiers tests itself by."""
    python = _python_with(folder / "venv", *VERIFIERS)
    source = [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "verifiers", "-d", str(folder)]
    subprocess.run([*source, VERIFIERS[0]], check=True)
    [archive] = folder.glob("verifiers-*.tar.gz")
    with tarfile.open(archive) as held:
        held.extractall(folder, filter="data")
    tests = folder / archive.name.removesuffix(".tar.gz") / "tests" / "v1" / "fixtures"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(tests)], check=True)
    return python


def openenv_python(folder: Path) -> str:
    """A Python with OpenEnv and the environment `echo_env` that its `init` writes."""
    python = _python_with(folder / "venv", *OPENENV)
    made = folder / "made"
    made.mkdir()
    init = [python, "-m", "openenv.cli", "init", "echo_env", "--output-dir", str(made)]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(made / "echo_env")], check=True)
    return python


def _python_with(folder: Path, *packages: str) -> str:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, env=os.environ | {"PYTHONPATH": ""})
    return python
