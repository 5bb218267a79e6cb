"""Errors that say what is wrong, where, and what to do. The command line prints them without a traceback."""

from __future__ import annotations

from collections.abc import Sequence

from atlas_ray.text import printable


class AtlasError(Exception):
    """A failure with a message for people: `what`, where it happened, and the remedy. Exit code 1."""

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(what, remedy)

    def __str__(self) -> str:
        return printable(f"{self.what}\n  {self.remedy}" if self.remedy else self.what)


class UserError(AtlasError):
    """The user's own mistake: a wrong key, a missing file, an unknown name. Exit code 2."""

    exit_code = 2


class ConfigurationChanged(UserError):
    """A run folder holds a run of another configuration: the whole recipe is not the one that was begun."""


class PlacementError(UserError):
    """The cluster has no room for what a stage asks for, whichever model it is."""


class ModelUnavailable(AtlasError):
    """A model cannot be loaded; the reason is written down, and what does not need it is done or goes on."""


class TooManyFailed(AtlasError):
    """So much of a stage's work has failed that the stage has; what is done is kept, and the same command goes on."""


def together(problems: Sequence[UserError]) -> UserError:
    """One error of several, each with its own remedy.

    Args:
        problems: One or more.
    """
    if len(problems) == 1:
        return problems[0]
    lines = [f"{number}. {p.what}\n     {p.remedy}" for number, p in enumerate(problems, 1)]
    return UserError("\n  ".join([f"{len(problems)} things are wrong:", *lines]), "nothing was run; mend all of them")


class Stopped(AtlasError):
    """A SIGTERM ended a stage in good order; nothing is lost. Exit code 143, as a shell's for SIGTERM."""

    exit_code = 143


class Unresponsive(AtlasError):
    """What a call waits for is silent or gone, and the call cannot be taken back: leave without waiting for its end."""


class StorageTimeout(Unresponsive):
    """A store is silent."""


class RayLost(Unresponsive):
    """Ray has died under this process."""


def is_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C began what ended in an error: cleaning up may fail on its own account."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


class DataError(AtlasError):
    """One row of a data set is unusable; it goes to `rejected.jsonl` with this message."""


class EnvironmentFailure(AtlasError):
    """An environment server failed (unreachable, 500, lost id): infrastructure, not the policy's doing."""


class ReplayMismatch(EnvironmentFailure):
    """An episode that a server lost did not repeat itself when it was played again."""


class ModelFailure(AtlasError):
    """A model endpoint or engine failed: infrastructure, not the policy's doing."""


class ContextOverflow(AtlasError):
    """The conversation no longer fits the model's context: the policy's own outcome."""
