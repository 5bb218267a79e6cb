"""TODOList's questions and jobs, judged by the answer or by the account that is left, and their solutions."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Generator, Sequence
from datetime import date, timedelta
from typing import Any

from atlas_ray.environments.builtin.tools import todo
from atlas_ray.environments.builtin.tools.simulator import (
    ACT,
    SEEN,
    Call,
    Solution,
    ToolTask,
    collect,
    finish,
    judge_answer,
    tool_spec,
)
from atlas_ray.environments.builtin.tools.todo import Item, State

N_TEST, N_TRAIN = 100, 300

Rows = list[dict[str, Any]]
Judge = Callable[[Any, Any], float]
Made = tuple[str, Judge, Callable[[], Solution]]


def _list(project: str) -> Generator[Call, Any, Rows]:
    projects = yield Call("get_projects", {}, "ask for the projects")
    return (yield from _more(projects, project))


def _more(projects: Rows, name: str) -> Generator[Call, Any, Rows]:
    number = _row(projects, "name", name)["id"]
    others = tuple({"project_id": row["id"]} for row in projects if row["id"] != number)
    rows: Rows = yield Call("get_tasks", {"project_id": number}, f"list the tasks of {name}", None, others[:2])
    return rows


def _row(rows: Rows, key: str, value: str) -> dict[str, Any]:
    for row in rows:
        if row[key] == value:
            return row
    raise LookupError(value)


def _on(tool: str, row: dict[str, Any], rows: Rows, why: str, **more: str) -> Call:
    """A call about one task; the novice takes another one."""
    wrong = tuple({"task_id": other["id"], **more} for other in rows if other["id"] != row["id"])
    decision = ACT if todo.TOOLBOX.tools[tool].changes else SEEN
    return Call(tool, {"task_id": row["id"], **more}, why, decision, wrong[:2])


def _leaves(state: State, change: Callable[[State], object]) -> Judge:
    """The reward for an account as `change` leaves it, once the task is finished."""
    wanted = state.copy()
    change(wanted)
    return lambda left, answer: float(answer is not None and left == wanted)


def _pick(rng: random.Random, state: State) -> tuple[str, Item]:
    project = rng.choice(state.projects)
    return project.name, rng.choice(project.items)


def _due(rng: random.Random, state: State) -> Made:
    name, item = _pick(rng, state)

    def solve() -> Solution:
        rows = yield from _list(name)
        row = _row(rows, "content", item.content)
        why = f"read off the due date of {item.content}, {row['due_date']}"
        yield finish(row["due_date"], why, *(other["due_date"] for other in rows))

    goal = f"When is the due date of {item.content} in {name}? Please answer as YYYY-MM-DD."
    return goal, judge_answer(str(item.due)), solve


def _detail(rng: random.Random, state: State) -> Made:
    name, item = _pick(rng, state)
    where = rng.random() < 0.5
    tool = "get_task_description" if where else "get_task_duration"

    def solve() -> Solution:
        rows = yield from _list(name)
        row = _row(rows, "content", item.content)
        found = yield _on(tool, row, rows, f"ask about the task {item.content}")
        answer = found["description"].removeprefix("- Place: ") if where else found["duration"]
        yield finish(answer, f"read off {answer}", "at home", "5(minute)", item.content)

    asked = "Where should I do" if where else "How long does it take to do"
    form = "the place as in its description, e.g. 'at home'" if where else "in the form 'amount(unit)'"
    goal = f"{asked} the task {item.content} of {name}? Please answer {form}."
    return goal, judge_answer(item.place if where else item.duration), solve


def _complete(rng: random.Random, state: State) -> Made:
    name, item = _pick(rng, state)
    verb, tool = rng.choice([("mark {} of {} as completed", "complete_task"), ("delete {} from {}", "delete_task")])

    def solve() -> Solution:
        rows = yield from _list(name)
        row = _row(rows, "content", item.content)
        yield _on(tool, row, rows, verb.format(item.content, name))
        yield finish("done", "report that it is done")

    goal = f"Please {verb.format(item.content, name)}."
    return goal, _leaves(state, lambda left: todo.TOOLBOX.call(left, tool, {"task_id": item.id})), solve


def _postpone(rng: random.Random, state: State) -> Made:
    name, item = _pick(rng, state)
    days, relative = rng.randint(2, 9), rng.random() < 0.6
    fixed = state.today + timedelta(rng.randint(1, 40))

    def solve() -> Solution:
        rows = yield from _list(name)
        row = _row(rows, "content", item.content)
        due = date.fromisoformat(row["due_date"]) + timedelta(days) if relative else fixed
        why = f"move {item.content} to {due}"
        wrong = tuple({"task_id": row["id"], "due_date": str(due + timedelta(n))} for n in (-1, 1, days))
        yield Call("update_task", {"task_id": row["id"], "due_date": str(due)}, why, ACT, wrong)
        yield finish("done", "report that it is done")

    due = item.due + timedelta(days) if relative else fixed
    given = {"task_id": item.id, "due_date": str(due)}
    goal = f"Please move the due date of {item.content} in {name} " + (
        f"by {days} days." if relative else f"to {fixed}."
    )
    return goal, _leaves(state, lambda left: todo.TOOLBOX.call(left, "update_task", given)), solve


def _matching(rng: random.Random, state: State) -> Made | None:
    """Complete or delete every task of a project that meets a condition."""
    project = rng.choice(state.projects)
    before = state.today + timedelta(rng.randint(1, 14))
    least = rng.randint(2, 4)
    urgent = rng.random() < 0.5
    words = f"have a priority of {least} or more" if urgent else f"are due before {before}"
    verb, tool = rng.choice([("complete", "complete_task"), ("delete", "delete_task")])

    def fits(row: dict[str, Any]) -> bool:
        return bool(row["priority"] >= least if urgent else row["due_date"] < str(before))

    chosen = [item for item in project.items if fits(item.shown)]
    if not 1 <= len(chosen) < len(project.items):
        return None

    def solve() -> Solution:
        rows = yield from _list(project.name)
        due, rest = [row for row in rows if fits(row)], [row for row in rows if not fits(row)]
        for n, row in enumerate(due):
            call = _on(tool, row, [row, *rest], f"{verb} {row['content']}, which is one of those that {words}")
            yield call if n == 0 else Call(call.tool, call.input, call.why)
        yield finish("done", f"report that all {len(due)} are done")

    def change(left: State) -> None:
        for item in chosen:
            todo.TOOLBOX.call(left, tool, {"task_id": item.id})

    return f"Please {verb} all tasks of {project.name} that {words}.", _leaves(state, change), solve


def _overdue(rng: random.Random, state: State) -> Made | None:
    project = rng.choice(state.projects)
    late = [item.content for item in project.items if item.due < state.today]
    if not late:
        return None

    def solve() -> Solution:
        today = yield Call("get_user_current_date", {}, "ask for the current date")
        rows = yield from _list(project.name)
        found = [row["content"] for row in rows if row["due_date"] < today]
        wrong = [row["content"] for row in rows], [row["content"] for row in rows if row["due_date"] > today]
        yield finish(found, f"keep those due before {today}: {', '.join(found)}", *wrong)

    goal = f"Which tasks of {project.name} are overdue (due before today)? "
    first = f"The first project of mine is {state.projects[0].name}. "
    return first + goal + "Please answer in the form of a list ['task1', ...].", judge_answer(late), solve


def _first_of_two(rng: random.Random, state: State) -> Made | None:
    one, other = rng.sample(state.projects, 2)
    pair = rng.choice(one.items), rng.choice(other.items)
    if pair[0].due == pair[1].due:
        return None

    def solve() -> Solution:
        projects = yield Call("get_projects", {}, "ask for the projects")
        seen = {}
        for project, item in zip((one, other), pair, strict=True):
            rows = yield from _more(projects, project.name)
            seen[item.content] = _row(rows, "content", item.content)["due_date"]
        answer = min(seen, key=lambda content: seen[content])
        yield finish(answer, f"compare the due dates {seen}: {answer} comes first", *seen)

    goal = f"Which is due first, {pair[0].content} of {one.name} or {pair[1].content} of {other.name}?"
    return goal, judge_answer(min(pair, key=lambda item: item.due).content), solve


def _favorite(rng: random.Random, state: State) -> Made | None:
    sizes = [len(project.items) for project in state.projects]
    best = state.projects[sizes.index(max(sizes))]
    if sizes.count(max(sizes)) > 1 or best.favorite:
        return None

    def solve() -> Solution:
        projects = yield Call("get_projects", {}, "ask for the projects")
        counted = {}
        for row in projects:
            counted[row["name"]] = len((yield from _more(projects, row["name"])))
        name = max(counted, key=lambda one: counted[one])
        number = _row(projects, "name", name)["id"]
        wrong = tuple({"project_id": row["id"], "is_favorite": "True"} for row in projects if row["name"] != name)
        why = f"make {name} the favorite, for it has the most of {counted}"
        yield Call("update_project", {"project_id": number, "is_favorite": "True"}, why, ACT, wrong[:2])
        yield finish("done", "report that it is done")

    given = {"project_id": best.id, "is_favorite": "True"}
    names = _enumerated([project.name for project in state.projects])
    goal = f"Of the projects {names}, please make the one with the most tasks a favorite."
    return goal, _leaves(state, lambda left: todo.TOOLBOX.call(left, "update_project", given)), solve


def _enumerated(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}"


def _count(rng: random.Random, state: State) -> Made:
    project, least = rng.choice(state.projects), rng.randint(2, 4)
    truth = sum(item.priority >= least for item in project.items)

    def solve() -> Solution:
        rows = yield from _list(project.name)
        found = [row["content"] for row in rows if row["priority"] >= least]
        yield finish(len(found), f"count {found}: {len(found)}", len(rows), len(found) + 1)

    about = f"{project.items[0].content} is a task of {project.name}. "
    goal = f"{about}How many tasks of this project have a priority of {least} or more? Please answer with a number."
    return goal, judge_answer(truth), solve


def _urgent_due(rng: random.Random, state: State) -> Made | None:
    """Move the task of the highest priority to tomorrow."""
    project = rng.choice(state.projects)
    tops = [item for item in project.items if item.priority == max(one.priority for one in project.items)]
    if len(tops) > 1:
        return None

    def solve() -> Solution:
        today = yield Call("get_user_current_date", {}, "ask for the current date")
        rows = yield from _list(project.name)
        row = max(rows, key=lambda one: one["priority"])
        tomorrow = str(date.fromisoformat(today) + timedelta(1))
        yield _on("update_task", row, rows, f"move {row['content']} to {tomorrow}, the most urgent", due_date=tomorrow)
        yield finish("done", "report that it is done")

    given = {"task_id": tops[0].id, "due_date": str(state.today + timedelta(1))}
    goal = f"My projects are {_enumerated([one.name for one in state.projects])}. Please set the due date of the most "
    goal += f"urgent task of {project.name} to tomorrow."
    return goal, _leaves(state, lambda left: todo.TOOLBOX.call(left, "update_task", given)), solve


KINDS = (
    *(_due, _detail, _complete, _postpone, _matching, _matching, _overdue, _first_of_two, _favorite, _count),
    _urgent_due,
)


def _draw(rng: random.Random) -> ToolTask | None:
    kind, state = rng.choice(KINDS), todo.draw(rng)
    made = kind(rng, state)
    if made is None:
        return None
    goal, judge, solve = made
    return ToolTask(kind.__name__, goal, state.copy, solve, judge)


@functools.cache
def tasks() -> tuple[ToolTask, ...]:
    """All tasks."""
    return collect(N_TEST + N_TRAIN, "todo", _draw)


SPEC = tool_spec(
    *(todo.TOOLBOX, "in", 15, tasks, 0.45),
    n_train=N_TRAIN,
    n_test=N_TEST,
    probe_actions=("get_user_current_date with Action Input: {}", "get_projects with Action Input: {}"),
)
