"""Tables 1 to 7 with our figures beside the paper's. Flows in: `PaperRuns`; flows out: a `PaperTable` for each.

A cell without a run is empty, never the paper's figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from statistics import fmean

from atlas_ray.environments.replay import replay_words
from atlas_ray.evaluation.intervals import OUTCOME_WORDS, Interval
from atlas_ray.evaluation.metrics import OVERFLOW_MARKED
from atlas_ray.report.paper.ours import (
    ArmRuns,
    ChosenSteps,
    Figure,
    PaperRuns,
    TrainingCost,
    figure,
    gain,
    mean_gain,
)
from atlas_ray.report.paper.printed import AVERAGES, TABLES, PrintedRow, PrintedTable, printed
from atlas_ray.report.tables import HELD, context_notes, task_notes

GROUPS = {average: HELD[held] for average, held in AVERAGES.items()}
_BY_TASK = ("table4", "table5")
# what Table 6 does not print, and what its gain must be held against: nearness to the goal helps by itself
_UNPRINTED = (
    PrintedRow("iterative", "from scratch, critical steps put in", "", {}, against="from_scratch"),
    PrintedRow("control", "from other step near by", "", {}, against="from_scratch"),
)


@dataclass(frozen=True, slots=True)
class PaperCell:
    """One figure of a row, ours beside the paper's.

    Attributes:
        paper: As printed, in per cent; None where the paper has none.
        fair: What ours is held against: the paper's, or for an average of some environments the paper's mean of those.
        quoted: Whether the paper takes its figure from elsewhere.
        env: Where ours was played, if in another environment than the column's: nothing is fair then.
        other_tasks: Whose tasks ours was played on, where they are not the paper's: nothing is fair then either.
    """

    column: str
    ours: Figure | None
    paper: float | None
    fair: float | None
    quoted: bool = False
    env: str | None = None
    other_tasks: str | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.ours is None or self.fair is None else self.ours.value - self.fair


@dataclass(frozen=True, slots=True)
class Claim:
    """How a row differs from the one that the paper holds it against, in points."""

    scope: str
    against: str
    difference: Interval

    @property
    def words(self) -> str:
        """What can be said at 95 %."""
        d = self.difference
        limits = f"[{d.low:+.1f}, {d.high:+.1f}]"
        return f"{self.scope}: {d.value:+.1f} points against {self.against} {limits}: {OUTCOME_WORDS[d.outcome]}"


@dataclass(frozen=True, slots=True)
class Cost:
    """What an arm's training took, over its seeds on average, and its share of what all steps take."""

    row: str
    mean: TrainingCost
    runs: int
    loss_share: float | None
    flops_share: float | None


@dataclass(frozen=True, slots=True)
class ChosenRow:
    """What a selection chose (section 4.5.2), and the points of all steps by which that is more than the row before."""

    row: str
    steps: ChosenSteps
    share: float
    gain: float | None


@dataclass(frozen=True, slots=True)
class PaperTableRow:
    """A printed row with our cells.

    Attributes:
        arm: Name of ours, or None where none stands here.
    """

    key: str
    label: str
    section: str
    arm: str | None
    cells: tuple[PaperCell, ...]
    claims: tuple[Claim, ...] = ()

    @property
    def named(self) -> str:
        """Label and section, for sentences."""
        return f"{self.section}, {self.label}" if self.section else self.label


@dataclass(frozen=True, slots=True)
class PaperTable:
    """A table with ours beside the paper's."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[PaperTableRow, ...]
    notes: tuple[str, ...]
    costs: tuple[Cost, ...] = ()
    chosen: tuple[ChosenRow, ...] = ()


def paper_tables(runs: PaperRuns) -> list[PaperTable]:
    """All seven, filled where there are runs."""
    return [_table(printed(name), runs) for name in TABLES]


def _table(given: PrintedTable, runs: PaperRuns) -> PaperTable:
    printed_rows = given.rows
    if given.name == "table6":
        kinds = {kind for starts in runs.verification.values() for kind in starts}
        printed_rows += tuple(row for row in _UNPRINTED if row.key in kinds)
    rows = tuple(_row(given, row, runs) for row in printed_rows)
    arms = {row.key: arm for row in rows if row.arm and (arm := runs.arms.get(row.arm))}
    if given.name in _BY_TASK:
        placed = runs.rows.get(given.name, {})
        arms = {key: arm for key, name in placed.items() if (arm := runs.arms.get(name))}
    notes = (*_notes(given, rows, runs, arms), *given.notes)
    chosen = tuple(_chosen(runs)) if given.name == "table3" else ()
    return PaperTable(given.name, given.title, given.columns, rows, notes, _costs(arms, runs), chosen)


def _arm(given: PrintedTable, key: str, env: str | None, runs: PaperRuns) -> ArmRuns | None:
    place = f"{env}/{key}" if given.name in _BY_TASK and env else key
    return runs.arms.get(runs.rows.get(given.name, {}).get(place, ""))


def _row(given: PrintedTable, row: PrintedRow, runs: PaperRuns) -> PaperTableRow:
    cells = tuple(_cell(given, row, column, runs) for column in given.columns)
    arm = _arm(given, row.key, None, runs)
    return PaperTableRow(
        row.key, row.label, row.section, arm.name if arm else None, cells, tuple(_claims(given, row, runs))
    )


def _cell(given: PrintedTable, row: PrintedRow, column: str, runs: PaperRuns) -> PaperCell:
    paper, quoted = row.figures.get(column), column in row.quoted
    env = runs.played_for(given.name, column)
    elsewhere = env if env != column else None
    whose = runs.other_tasks.get(env)
    comparable = paper if elsewhere is None and whose is None else None
    if given.name == "table6":
        start = runs.verification.get(env, {}).get(row.key)
        return PaperCell(column, start.figure if start else None, paper, comparable, env=elsewhere, other_tasks=whose)
    arm = _arm(given, row.key, column, runs)
    if arm is None:
        return PaperCell(column, None, paper, paper, quoted)
    if column not in AVERAGES:
        return PaperCell(column, figure(arm, env), paper, comparable, quoted, elsewhere, whose)
    ours = runs.mean(arm, members(column))
    fair = paper
    if ours is not None and any(env in runs.other_tasks for env in ours.of or members(column)):
        return PaperCell(column, ours, paper, None, quoted, other_tasks="not the paper's tasks")
    if ours is not None and ours.of:
        printed_cells = row.behind or row.figures
        known = [printed_cells[env] for env in ours.of if env in printed_cells]
        fair = fmean(known) if len(known) == len(ours.of) else None
    return PaperCell(column, ours, paper, fair, quoted)


def members(average: str) -> list[str]:
    """Environments that a printed average is of."""
    columns = printed("table1").columns
    at = columns.index("held_in_avg")
    return list(columns[:at] if average == "held_in_avg" else columns[at + 1 : -1])


def _claims(given: PrintedTable, row: PrintedRow, runs: PaperRuns) -> Iterator[Claim]:
    if row.against is None:
        return
    other = next(r for r in given.rows if r.key == row.against)
    rival = f"{other.section}, {other.label}" if other.section != row.section else other.label
    if given.name == "table6":
        for column in given.columns:
            env = runs.played_for(given.name, column)
            start = runs.verification.get(env, {}).get(row.key)
            if start is not None and start.gain is not None:
                yield Claim(env, rival, start.gain)
            if start is not None and start.over_control is not None:
                yield Claim(env, _UNPRINTED[1].label, start.over_control)
        return
    for column in given.columns if given.name in _BY_TASK else AVERAGES:
        ours, theirs = (_arm(given, r.key, column, runs) for r in (row, other))
        if ours is None or theirs is None or ours is theirs:
            continue
        if column in AVERAGES:
            if pooled := mean_gain(ours, theirs, runs.averaged(ours, members(column))):
                found, envs = pooled
                some = f" ({', '.join(envs)} alone)" if len(envs) < len(members(column)) else ""
                yield Claim(f"{GROUPS[column]}{some}", rival, found)
        else:
            env = runs.played_for(given.name, column)
            if alone := gain(ours, theirs, env):
                yield Claim(env, rival, alone)


def _chosen(runs: PaperRuns) -> Iterator[ChosenRow]:
    """Table 3's critical steps by the ratio that was allowed, those above 30 % too, which nothing is trained on."""
    placed = runs.rows.get("table3", {})
    found = [(key, c) for key, arm in placed.items() if key.startswith("critical-") and (c := runs.chosen.get(arm))]
    before: float | None = None
    for key, counted in sorted(found, key=lambda pair: pair[1].allowed):
        share = counted.chosen / counted.steps if counted.steps else 0.0
        yield ChosenRow(key, counted, share, None if before is None else 100 * (share - before))
        before = share


def _costs(arms: dict[str, ArmRuns], runs: PaperRuns) -> tuple[Cost, ...]:
    """Of every arm that was trained, against all steps on the same data with the same backbone."""
    found = []
    elsewhere = runs.arms.get(runs.rows.get("table1", {}).get("all", ""))
    for key, arm in arms.items():
        if not arm.training:
            continue
        mean = _mean_cost(list(arm.training.values()))
        rival = next((arms[k] for k in _everything(key) if k in arms and arms[k].training), None)
        # Table 7's ratios have all steps in Table 1; a key with a slash is another backbone's or one task's
        if rival is None and "/" not in key and elsewhere is not None and elsewhere.training:
            rival = elsewhere
        against = _mean_cost(list(rival.training.values())) if rival else TrainingCost()
        shares = _share(mean.loss_tokens, against.loss_tokens), _share(mean.flops, against.flops)
        found.append(Cost(key, mean, len(arm.training), *shares))
    return tuple(found)


def _everything(key: str) -> Sequence[str]:
    """Keys of the row in the same table that trains on all steps."""
    backbone, slash, _ = key.partition("/")
    return (f"{backbone}/all",) if slash else ("all", "all-100")


def _mean_cost(costs: Sequence[TrainingCost]) -> TrainingCost:
    known = {f.name: [v for cost in costs if (v := getattr(cost, f.name)) is not None] for f in fields(TrainingCost)}
    device = next(iter(known.pop("device")), None)
    means = {name: fmean(values) for name, values in known.items() if values}
    return TrainingCost(
        **{name: round(mean) if name.endswith("_tokens") else mean for name, mean in means.items()},  # type: ignore[arg-type]
        device=device,
    )


def _share(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else ours / theirs


def _not_loaded(given: PrintedTable, runs: PaperRuns) -> Iterator[str]:
    """Why cells are empty that were to be filled."""
    for name in dict.fromkeys(runs.rows.get(given.name, {}).values()):
        if name in runs.failures:
            few = "lack a seed" if name in runs.arms else "are empty"
            yield f"Cells of `{name}` {few}, for it could not be made, loaded or played: {runs.failures[name]}"
    if given.name == "table6" and runs.unverified:
        yield f"The cells of its model are empty, for it could not be made, loaded or played: {runs.unverified}"


def _notes(
    given: PrintedTable, rows: Sequence[PaperTableRow], runs: PaperRuns, arms: dict[str, ArmRuns]
) -> Iterator[str]:
    """What a reader must know of our figures here."""
    cells = [cell for row in rows for cell in row.cells if cell.ours is not None]
    yield from _not_loaded(given, runs)
    if not cells:
        yield "Nothing of this table was run."
        return
    seeds = sorted({cell.ours.seeds for cell in cells if cell.ours})
    yield f"Ours: {' or '.join(map(str, seeds))} seed(s), 95 % intervals over tasks; ± is the deviation between seeds."
    yield from _whose_tasks(given, cells, runs)
    for env, other in runs.stand_in_envs.get(given.name, {}).items():
        yield f"Stand-in: {other} for {env}."
    placed = list(arms.values())
    if given.name == "table6" and (played := runs.arms.get(runs.verified or "")):
        placed.append(played)
    for words in dict.fromkeys(arm.backbone for arm in placed if arm.backbone):
        yield f"Stand-in: {words}, for the paper's backbone."
    for words in dict.fromkeys(arm.stand_in for arm in placed if arm.stand_in):
        names = ", ".join(dict.fromkeys(f"`{arm.name}`" for arm in placed if arm.stand_in == words))
        yield f"Stand-in in {names}: {words}."
    models = dict.fromkeys(arm.model for arm in arms.values() if not arm.training)
    if models:
        yield f"Models as they are: {', '.join(models)}."
    yield from context_notes({f"`{arm.name}`": arm.context for arm in placed})
    partial = dict.fromkeys(cell.ours.of for cell in cells if cell.ours and cell.ours.of)
    for envs in partial:
        yield (
            f"An average marked ‡ is of {', '.join(envs)} alone; a difference is to the paper's mean of the same, "
            "where it prints them."
        )
    for arm in {arm.name: arm for arm in placed}.values():
        for env, causes in arm.excluded.items():
            lost = sum(sum(found.values()) for found in causes.values())
            if lost and figure(arm, env) is None:
                yield f"No episode of `{arm.name}` in {env} counts: {lost} were excluded for reasons of infrastructure."
    yield from _mark_notes(given, cells, runs)
    if any(cell.quoted for row in rows for cell in row.cells):
        yield "q: quoted by the paper from elsewhere."


def _mark_notes(given: PrintedTable, cells: Sequence[PaperCell], runs: PaperRuns) -> Iterator[str]:
    """What the marks of the cells mean, and how many of Table 6's starts replay."""
    if any(cell.ours and cell.ours.flagged for cell in cells):
        yield "†: more than 2 % of the episodes were excluded for reasons of infrastructure, or are missing."
    if any(cell.ours and cell.ours.overflowed for cell in cells):
        yield (
            f"¶: at least {OVERFLOW_MARKED:.0%} of the episodes ended because the conversation no longer fitted the "
            "model's context."
        )
    if given.name == "table6":
        for env, starts in runs.verification.items():
            replays = sum((Counter(start.replays) for start in starts.values()), Counter[str]())
            if replays:
                yield f"{env}: {replay_words(replays)} as recorded."


def _whose_tasks(given: PrintedTable, cells: Sequence[PaperCell], runs: PaperRuns) -> Iterator[str]:
    """Which environments here have other tasks than the paper's, by whose they are."""
    averaged = [env for cell in cells if cell.column in AVERAGES for env in members(cell.column)]
    here = dict.fromkeys(runs.played_for(given.name, column) for column in (*given.columns, *averaged))
    for note in task_notes({env: words for env in here if (words := runs.other_tasks.get(env))}):
        yield f"{note} Held against none of the paper's figures; not in averages that are."
