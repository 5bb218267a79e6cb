"""Units of work that fail: when going on makes no sense, and when a stage has failed with them.

Flows in: why each unit failed, as it ends, and their number at the end of a stage; flows out: an error that names the
first cause, and `failed.json` in the stage's folder, until it is finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from atlas_ray.errors import AtlasError, ModelUnavailable, Stopped, StorageTimeout, TooManyFailed
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import FAILED, record_failure

IN_A_ROW = 32  # failures, each after its retries, from which going on makes no sense
_REMEDY = "mend the cause and run the same command again: what is done is kept"


class FailureWatch:
    """How units end, one after the other.

    Args:
        units: What they are called, many of them.
    """

    def __init__(self, units: str) -> None:
        self._units, self._in_a_row, self._first = units, 0, ""

    def add(self, error: str | None) -> None:
        """Takes why a unit failed; None where it did not.

        Raises:
            TooManyFailed: If as many as make no sense have failed in a row.
        """
        if error is None:
            self._in_a_row = 0
            return
        self._first = self._first if self._in_a_row else error
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            raise TooManyFailed(f"{self._in_a_row} {self._units} in a row failed; the first: {self._first}", _REMEDY)


def check_failed(folder: RunFolder, units: str, failed: int, total: int, first: str | None, most: float) -> None:
    """Ends a stage in which too much has failed; it is not finished then.

    Args:
        folder: The stage's.
        units: What is counted.
        failed: How many of them.
        total: How many there are.
        first: Why the first one failed.
        most: Share that may fail, `max_failed`; all of them are too many in any case.

    Raises:
        TooManyFailed: If more have.
    """
    if failed and (failed == total or failed > most * total):
        folder.remove("finished.json")
        above = "" if failed == total else f", more than max_failed={most:g} allows"
        raise TooManyFailed(f"{failed} of {total} {units} failed{above}; the first: {first}", _REMEDY)


@contextmanager
def failure_recorded(folder: RunFolder) -> Iterator[None]:
    """Runs a stage in its folder, and writes down what ends it, until it is begun again."""
    folder.remove(FAILED)
    try:
        yield
    except (Stopped, StorageTimeout, ModelUnavailable):  # that of a model is written down already
        raise
    except AtlasError as error:
        with suppress(AtlasError, OSError):  # on a full disk too, what is told is the cause
            record_failure(folder, error)
        raise
