"""TODOList: the actions of AgentGym's environment over one episode's own projects and tasks."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from atlas_ray.environments.builtin.tools.core import Tool, Toolbox, ToolError
from atlas_ray.environments.builtin.tools.weather import read_date

_PROJECTS: dict[str, tuple[str, ...]] = {
    "Homework and Assignments": (
        *("Solve algebra equations", "Summarize a history chapter", "Write a chemistry report", "Learn French verbs"),
        *("Draw a map of Europe", "Practice mental arithmetic"),
    ),
    "Household Chores": (
        *("Clean the kitchen", "Do the laundry", "Tidy up the living room", "Water the plants", "Repair the lamp"),
        *("Sort the recycling",),
    ),
    "Garden": (
        "Mow the lawn",
        "Plant tomatoes",
        "Trim the hedge",
        "Rake the leaves",
        "Build a raised bed",
        "Oil the gate",
    ),
    "Office": (
        *(
            "Prepare the budget",
            "Answer the auditors",
            "Plan the team meeting",
            "Write the minutes",
            "Order new chairs",
        ),
        *("Review the contract",),
    ),
    "Fitness": (
        "Run five kilometers",
        "Attend yoga class",
        "Swim laps",
        "Stretch the back",
        "Cycle to the lake",
        "Lift weights",
    ),
    "Picnic Preparation": (
        *("Buy picnic supplies", "Choose a picnic place", "Bake a cake", "Invite the neighbors", "Pack the blankets"),
        *("Chill the drinks",),
    ),
    "Science Fair": (
        *("Grow the crystals", "Print the poster", "Measure the pendulum", "Rehearse the talk", "Collect the samples"),
        *("Calibrate the scale",),
    ),
    "Travel": (
        "Book the hotel",
        "Renew the passport",
        "Pack the suitcase",
        "Buy train tickets",
        "Change money",
        "Get a vaccine",
    ),
}
PLACES = ("at home", "in the library", "downtown", "at school", "in the backyard", "at the office", "in the park")
CITIES = ("New York", "Lisbon", "Oslo", "Kyoto", "Denver")


@dataclass
class Item:
    """A task in a list; `priority` from 1 (normal) to 4 (urgent)."""

    id: str
    content: str
    priority: int
    due: date
    place: str
    duration: str

    @property
    def shown(self) -> dict[str, Any]:
        """Its entry in a list."""
        return {
            "id": self.id,
            "content": self.content,
            "is_completed": False,
            "priority": self.priority,
            "due_date": str(self.due),
        }


@dataclass
class Project:
    """A list of tasks."""

    id: str
    name: str
    favorite: bool
    items: list[Item] = field(default_factory=list)


@dataclass
class State:
    """One account."""

    today: date
    city: str
    projects: list[Project]
    completed: set[str] = field(default_factory=set)

    def copy(self) -> State:
        """An account of its own."""
        return copy.deepcopy(self)

    def project(self, name: str) -> Project:
        """The project of a name."""
        return next(project for project in self.projects if project.name == name)


def draw(rng: random.Random) -> State:
    """An account at random."""
    today = date(2015, 1, 1) + timedelta(rng.randrange(365 * 10))
    numbers = [str(number) for number in rng.sample(range(10**9, 10**10), 60)]
    projects = []
    for name in rng.sample(sorted(_PROJECTS), rng.randint(3, 4)):
        project = Project(numbers.pop(), name, rng.random() < 0.2)
        for content in rng.sample(_PROJECTS[name], rng.randint(3, 5)):
            due = today + timedelta(rng.randint(-6, 20))
            duration = rng.choice((f"{rng.randrange(1, 12) * 5}(minute)", f"{rng.randint(1, 4)}(hour)"))
            project.items.append(Item(numbers.pop(), content, rng.randint(1, 4), due, rng.choice(PLACES), duration))
        projects.append(project)
    return State(today, rng.choice(CITIES), projects)


# --- the actions ---


def _project(state: State, project_id: str) -> Project:
    for project in state.projects:
        if project.id == project_id.strip():
            return project
    raise ToolError("There is no project with this ID.")


def _item(state: State, task_id: str) -> tuple[Project, Item]:
    for project in state.projects:
        for item in project.items:
            if item.id == task_id.strip():
                return project, item
    raise ToolError("There is no task with this ID.")


def _projects(state: State) -> Any:
    return [
        {"id": project.id, "order": order, "color": "charcoal", "name": project.name, "is_favorite": project.favorite}
        for order, project in enumerate(state.projects, 1)
    ]


def _update_project(state: State, project_id: str, is_favorite: str) -> Any:
    project = _project(state, project_id)
    if is_favorite not in ("True", "False"):
        raise ToolError("is_favorite must be 'True' or 'False'.")
    project.favorite = is_favorite == "True"
    return {"id": project.id, "name": project.name, "is_favorite": project.favorite}


def _tasks(state: State, project_id: str) -> Any:
    return [item.shown | {"order": order} for order, item in enumerate(_project(state, project_id).items, 1)]


def _description(state: State, task_id: str) -> Any:
    item = _item(state, task_id)[1]
    return {"id": item.id, "content": item.content, "description": f"- Place: {item.place}"}


def _duration(state: State, task_id: str) -> Any:
    item = _item(state, task_id)[1]
    return {"id": item.id, "content": item.content, "duration": item.duration}


def _complete(state: State, task_id: str) -> Any:
    project, item = _item(state, task_id)
    project.items.remove(item)
    state.completed.add(item.id)
    return item.shown | {"is_completed": True}


def _update(state: State, task_id: str, due_date: str) -> Any:
    item = _item(state, task_id)[1]
    item.due = read_date(due_date)
    return item.shown


def _delete(state: State, task_id: str) -> Any:
    project, item = _item(state, task_id)
    project.items.remove(item)
    return f"Successfully deleted the task {item.content}."


_P: dict[str, Any] = {"project_id": "string"}
_T: dict[str, Any] = {"task_id": "string"}

TOOLBOX = Toolbox.of(
    "todo",
    "You look after somebody's projects and tasks with the help of actions. Dates are YYYY-MM-DD; priorities run from "
    "1 (normal) to 4 (urgent). Completed tasks are listed no more.",
    11,
    [
        Tool("get_user_current_date", "the user's current date", lambda state: str(state.today)),
        Tool("get_user_current_location", "the user's current city", lambda state: state.city),
        Tool("get_projects", "all projects", _projects),
        Tool(
            "update_project",
            "make a project a favorite ('True') or not ('False')",
            _update_project,
            _P | {"is_favorite": "string"},
            changes=True,
        ),
        Tool("get_tasks", "the open tasks of a project", _tasks, _P),
        Tool("get_task_description", "a task's description, such as its place", _description, _T),
        Tool("get_task_duration", "a task's duration", _duration, _T),
        Tool("complete_task", "mark a task as completed", _complete, _T, changes=True),
        Tool("update_task", "set a task's due date", _update, _T | {"due_date": "string"}, changes=True),
        Tool("delete_task", "delete a task", _delete, _T, changes=True),
    ],
)
