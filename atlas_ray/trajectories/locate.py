"""Where the files of a data set lie: a file, a folder, the URI of one, a run folder, or a data set of the hub."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.local_copy import local_copy
from atlas_ray.trajectories.decoders import SUFFIXES

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# what lies in data folders beside the data
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "manifest.json", "finished.json", "rejected.jsonl"}


def is_run(path: str) -> bool:
    """Whether a path or URI is a run folder."""
    return RunFolder(path).exists if "://" in path else (Path(path) / "manifest.json").is_file()


def is_hub_id(path: str) -> bool:
    """Whether a name is one of the Hugging Face hub's rather than a path here."""
    return bool(_HUB_ID.fullmatch(path)) and not path.lower().endswith(SUFFIXES) and not Path(path).parent.exists()


def locate(config: DataConfig) -> Path:
    """The file or folder on this machine; what lies elsewhere is fetched.

    Raises:
        UserError: If there is none, with the closest name that does exist, or it cannot be fetched.
    """
    path = local_copy(config.path, SUFFIXES)
    if path.exists():
        return path
    if path.is_symlink():
        raise UserError(f"{path} is a link to {path.readlink()}, where nothing is", "mend the link")
    if is_hub_id(config.path):
        return _from_hub(config)
    parent = next((p for p in path.parents if p.is_dir()), Path())
    name = path.parts[len(parent.parts)] if len(path.parts) > len(parent.parts) else path.name
    close = difflib.get_close_matches(name, [p.name for p in parent.iterdir()], 1)
    hint = f"did you mean {parent / close[0]}?" if close else "give a file, a folder or a Hugging Face data set id"
    raise UserError(f"{path} does not exist", hint)


def data_files(root: Path) -> tuple[list[Path], list[Path]]:
    """The files of a data set in the order of their names, and those beside them that are of no kind that is read.

    Raises:
        UserError: If there is none.
    """
    if root.is_file():
        if not _is_read(root):
            raise UserError(f"{root} is no kind of file that is read", f"give one of {', '.join(SUFFIXES)}")
        return [root], []
    files = [
        file
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.name not in _NOT_DATA
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    if not any(map(_is_read, files)):
        raise UserError(f"the folder {root} holds no {', '.join(SUFFIXES)} file", "check `path`")
    return [file for file in files if _is_read(file)], [file for file in files if not _is_read(file)]


def _is_read(file: Path) -> bool:
    return file.name.lower().endswith(SUFFIXES)


def _from_hub(config: DataConfig) -> Path:
    """Downloads a data set's files, or finds them in the local cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{config.path} is not a local path, and huggingface_hub is not installed to look for it online",
            "check `path`, or install the extra `cpu` or `gpu`",
        ) from None
    patterns = [f"*{form}" for suffix in SUFFIXES for form in (suffix, suffix.upper())]
    try:
        return Path(
            snapshot_download(config.path, repo_type="dataset", revision=config.revision, allow_patterns=patterns)
        )
    except (OSError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{config.path} exists neither here nor could it be fetched from the Hugging Face hub: {line}",
            "check the name, `revision` and the network, or download it elsewhere and give the local path",
        ) from None
