"""What a preflight finds: one line a check, with a remedy where it failed.

Flows in: checks, which may raise; flows out: findings, and their table. A check that breaks is a failed check, so that
one fault never hides another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from atlas_ray.errors import AtlasError
from atlas_ray.text import printable

Result = Literal["ok", "failed", "not checked"]
_STYLES: dict[Result, str] = {"ok": "green", "failed": "bold red", "not checked": "yellow"}
RECORD = "preflight.json"  # beside the run folders of a recipe


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: Its kind: data, items, server, prompts, model, key, GPUs, disk.
        subject: What was looked at, e.g. a path, an address, a model.
        result: `not checked` where nothing here can tell; the detail says why.
        detail: What was found.
        remedy: What to do where it failed.
    """

    check: str
    subject: str
    result: Result
    detail: str
    remedy: str = ""


def attempt(check: str, subject: str, look: Callable[[], str | Iterable[Finding]]) -> list[Finding]:
    """Runs one check.

    Args:
        look: Returns what it found, as words where all is well, or as findings; raises where something is wrong.
    """
    try:
        found = look()
        return [Finding(check, subject, "ok", found)] if isinstance(found, str) else list(found)
    except AtlasError as error:
        return [Finding(check, subject, "failed", error.what, error.remedy)]
    except Exception as error:  # noqa: BLE001 (whatever breaks here would break the run)
        return [Finding(check, subject, "failed", f"{type(error).__name__}: {error}", "see the message")]


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Those that failed."""
    return [finding for finding in findings if finding.result == "failed"]


def findings_table(findings: Sequence[Finding]) -> Group:
    """All findings, and below them each failure in full, with its remedy."""
    table = Table(title="preflight")
    for column in ("check", "subject", "result", "found"):
        table.add_column(column, no_wrap=column in ("check", "result"), overflow="fold")
    numbers = {_words(f): number for number, (f, _) in enumerate(distinct(findings), 1)}
    for f in findings:
        said = f"see {numbers[_words(f)]} below" if f.result == "failed" else f.detail
        result = Text(f.result, style=_STYLES[f.result])
        table.add_row(f.check, Text(printable(f.subject)), result, Text(printable(said)))
    below = Table.grid(padding=(0, 1))
    for line in failure_lines(findings):
        number, _, words = line.partition(" ")
        below.add_row(number, Text(words.strip()))
    return Group(table, below)


def failure_lines(findings: Iterable[Finding]) -> list[str]:
    """Each failure as a sentence with its remedy below; those that say the same are one."""
    lines = []
    for number, (f, subjects) in enumerate(distinct(findings), 1):
        lines.append(f"{number}. {f.check}, {printable(', '.join(subjects))}: {printable(f.detail)}")
        lines += [f"   {printable(f.remedy)}"] if f.remedy else []
    return lines


def distinct(findings: Iterable[Finding]) -> list[tuple[Finding, list[str]]]:
    """Failures that say something of their own, with the subjects of all that say the same."""
    found: dict[tuple[str, str, str], tuple[Finding, list[str]]] = {}
    for f in failures(findings):
        found.setdefault(_words(f), (f, []))[1].append(f.subject)
    return list(found.values())


def _words(finding: Finding) -> tuple[str, str, str]:
    return finding.check, finding.detail, finding.remedy
