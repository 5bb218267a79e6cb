"""A model that cannot be made or loaded: an empty cell with its reason, not the end of what does not need it.

Flows in: what the loading of a stage's model, or a stage before it, ends with; flows out: `failed.json` in the stage's
folder, for reports and `atlas status`. It is there until the model has been loaded: the same command tries again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from atlas_ray.errors import AtlasError, ModelFailure, ModelUnavailable, PlacementError, UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.text import printable

FAILED = "failed.json"
AGAIN = "mend that and run the same command again: only these are tried"


@contextmanager
def loading(folder: RunFolder, model: str) -> Iterator[None]:
    """Runs a block that loads a stage's model, and writes down why it cannot be.

    Args:
        folder: The stage's.
        model: What the model is called there.

    Raises:
        ModelUnavailable: If the model is to blame: its files, its settings, or an engine that does not start with it.
            What concerns every model (no room, no Ray, no answer in time) stays the error that it is.
    """
    try:
        yield
    except PlacementError:
        raise
    except (UserError, ModelFailure) as error:
        record_failure(folder, error)
        raise unavailable({model: error}) from error
    folder.remove(FAILED)


def record_failure(folder: RunFolder, error: AtlasError) -> None:
    """Writes down why nothing is made in a folder."""
    folder.write_json(FAILED, {"what": error.what, "remedy": error.remedy})


def failure_of(folder: RunFolder) -> str | None:
    """Why an unfinished stage has nothing to show, in one line; None where it was not tried in vain."""
    if folder.finished is not None or not folder.has(FAILED):
        return None
    return printable(" ".join(str(folder.read_json(FAILED)["what"]).split()))


def unavailable(errors: Mapping[str, AtlasError]) -> ModelUnavailable:
    """One error for several models, by name."""
    lines = [f"{name}: {error.what}" + (f" ({error.remedy})" if error.remedy else "") for name, error in errors.items()]
    many = "models" if len(lines) > 1 else "model"
    return ModelUnavailable(f"{len(lines)} {many} could not be loaded:\n  " + "\n  ".join(lines), AGAIN)
