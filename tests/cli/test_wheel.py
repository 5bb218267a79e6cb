"""The package as it is installed from its wheel, away from the checkout: recipes run by their names."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ATLAS = "import sys; from atlas_ray.cli.main import main; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_recipes_run_by_name_from_an_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(place)

    def atlas(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ATLAS, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    planned = atlas("run", "quickstart", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "collect/expert" in planned.stdout
    unknown = atlas("run", "quickstrat", "--dry-run")
    assert unknown.returncode == 2
    own = "figure2, fourteen, paper, paper-laptop, quickstart, smollm2, study, study-bases, study-budget, table1"
    assert f"recipes: {own}" in unknown.stderr


@pytest.mark.slow
def test_the_wheel_installs_into_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    program = tmp_path / "venv" / "bin"
    # bytecode of 4 GB of packages takes longer than all else, and what is not imported needs none
    install = [str(program / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*install, "torch==2.13.0"], check=True)  # the CPU build first, as the README's setup does
    subprocess.run([*install, f"{wheel}[cpu]"], check=True)
    for words in (["--help"], ["run", "quickstart", "--dry-run"], ["environments", "list"]):
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([str(program / "atlas"), *words], cwd=tmp_path, env=environment, check=True, capture_output=True)
