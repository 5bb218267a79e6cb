"""File systems behind paths and URIs (local, `s3://`, `gs://`, whatever pyarrow opens), and their errors in sentences.

Flows in: a path or URI; flows out: a pyarrow file system and the path on it. The credentials, the region and an
S3-compatible server's address (`AWS_ENDPOINT_URL`) come from the environment.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from atlas_ray.address import refuse_credentials
from atlas_ray.errors import AtlasError, StorageTimeout, UserError

CONTACT_SECONDS = 30.0
_REMEDY = "check space, permissions and the address, then run again"
_CREDENTIALS = (
    "check what this machine may do there: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE, or the node's"
    " role), AWS_REGION; GOOGLE_APPLICATION_CREDENTIALS for gs://"
)
_DENIED = re.compile(
    r"access.?denied|permission.?denied|forbidden|unauthorized|http status 40[13]|invalid.?access.?key"
    r"|signature.?does.?not.?match|expired.?token|invalid.?client.?token|unrecognized.?client|no.?credentials",
    re.I,
)
_Answer = TypeVar("_Answer")


def open_store(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path on it.

    Raises:
        UserError: If no file system is known for it, or it holds credentials.
    """
    refuse_credentials(uri)
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).resolve())
    try:
        fs, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise UserError(f"cannot open {uri!r}: {first_line(error)}", "give a path or an s3:// or gs:// URI") from None
    return fs, path


@contextmanager
def explained(uri: str, verb: str = "write to") -> Iterator[None]:
    """Turns a storage error into one sentence with a remedy.

    Raises:
        UserError: If the store refuses this machine.
        AtlasError: If it fails otherwise.
    """
    try:
        yield
    except OSError as error:
        what = f"cannot {verb} {uri}: {first_line(error)}"
        if isinstance(error, PermissionError) or _DENIED.search(str(error)):
            raise UserError(what, _CREDENTIALS if "://" in uri else "check its permissions") from error
        raise AtlasError(what, _REMEDY) from error


def in_time(uri: str, ask: Callable[[], _Answer]) -> _Answer:
    """A question's answer; the clients of a store that is silent would try for many minutes.

    Raises:
        StorageTimeout: If there is none within `CONTACT_SECONDS`.
    """
    asked: Future[_Answer] = Future()

    def put() -> None:
        try:
            asked.set_result(ask())
        except Exception as error:  # noqa: BLE001 (handed on)
            asked.set_exception(error)

    threading.Thread(target=put, daemon=True).start()
    try:
        return asked.result(CONTACT_SECONDS)
    except TimeoutError:
        raise StorageTimeout(f"cannot reach {uri}: no answer within {CONTACT_SECONDS:.0f} s", _REMEDY) from None


def first_line(error: BaseException) -> str:
    """An error's first line, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
