"""The Hugging Face hub before a run: asked once whether it answers, so that no check waits for its retries.

Flows out: a finding where it is needed and silent. What its cache holds is then still found.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from atlas_ray.errors import UserError
from atlas_ray.recipes.preflight.findings import Finding
from atlas_ray.trajectories.locate import is_hub_id

_SECONDS = 5.0


@contextmanager
def hub_asked_once(needed: bool) -> Iterator[list[Finding]]:
    """Within it the hub is asked only if it answers now; else its cache alone counts.

    Args:
        needed: Whether anything of the hub is looked for inside.

    Yields:
        What there is to say of the hub: nothing where it answers or nobody needs it.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not needed or before or (why := _silent(constants.ENDPOINT)) is None:
        yield []
        return
    constants.HF_HUB_OFFLINE = True
    try:
        words = f"no answer ({why}): only what its cache holds is found here"
        yield [Finding("hub", constants.ENDPOINT, "not checked", words)]
    finally:
        constants.HF_HUB_OFFLINE = before


def require_cached(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> None:
    """Where the hub is not asked, its cache must hold what it would be asked for.

    Raises:
        UserError: If it does not.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not is_hub_id(name) or not constants.HF_HUB_OFFLINE:
        return
    try:
        # any file of it will do: who loads it says what is missing
        snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        raise UserError(
            "not in the hub's cache, and the hub is not asked (no network, or HF_HUB_OFFLINE)",
            "fetch it where there is a network (`hf download`), or name a local folder in its place",
        ) from None


def _silent(address: str) -> str | None:
    """Why the hub cannot be reached; None where it answers."""
    if not address.startswith(("https://", "http://")):
        return "no address"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # an answer all the same
    except OSError as error:
        return str(getattr(error, "reason", error))
