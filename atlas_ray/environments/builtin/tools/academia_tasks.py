"""Academia's questions, their answers out of the data, and their solutions by the actions."""

from __future__ import annotations

import functools
import random
from collections.abc import Generator
from typing import Any

from atlas_ray.environments.builtin.tools import academia
from atlas_ray.environments.builtin.tools.academia import Paper, authors, collaborators, joint, papers
from atlas_ray.environments.builtin.tools.simulator import (
    SEEN,
    Call,
    Solution,
    ToolTask,
    collect,
    finish,
    judge_answer,
    tool_spec,
)

N_TEST, N_TRAIN = 100, 300

_AS_LIST = "Please answer in the form of a list ['a', 'b', ...]."
_YES_NO = "Please answer 'Yes' or 'No'."

Made = tuple[str, Any, Any]  # the goal, its answer, what starts its solution


def _load(net: str) -> Call:
    return Call(f"load{net}", {}, f"load {net}")


def _node(tool: str, node: str, why: str, *instead: str) -> Call:
    """A call about a node; with others in its stead, a decision."""
    wrong = tuple({"node": other} for other in instead)
    return Call(tool, {"node": node}, why, SEEN if wrong else None, wrong)


def _near(graph: str, node: str, why: str) -> Call:
    """A node's neighbours; the novice takes the other network or the other word order."""
    wrong_graph = {"graph": "PaperNet" if graph == "AuthorNet" else "AuthorNet", "node": node}
    swapped = {"graph": graph, "node": " ".join(reversed(node.split()))}
    return Call("neighbourCheck", {"graph": graph, "node": node}, why, SEEN, (wrong_graph, swapped))


def _ask(paper: Paper) -> Generator[Call, Any, dict[str, Any]]:
    found: dict[str, Any] = yield Call("paperNodeCheck", {"node": paper.title}, f"look up {paper.title}")
    return found


def _fact(rng: random.Random) -> Made:
    paper = rng.choice(list(papers().values()))
    words, key, truth = rng.choice(
        [
            (f"When was the paper '{paper.title}' published? Please answer with the year.", "year", paper.year),
            (f"At which venue was the paper '{paper.title}' published?", "venue", paper.venue),
            (f"Who wrote the paper '{paper.title}'? {_AS_LIST}", "authors", list(paper.authors)),
        ]
    )

    def solve() -> Solution:
        yield _load("PaperNet")
        found = yield from _ask(paper)
        wrong: Any = {"year": found["n_citation"], "venue": "ICLR", "authors": found["authors"][:1]}[key]
        yield finish(found[key], f"read off the {key}, {found[key]}", wrong)

    return words, truth, solve


def _mutual(rng: random.Random) -> Made | None:
    one = rng.choice(list(authors()))
    other = rng.choice(collaborators(rng.choice(collaborators(one) or (one,))) or (one,))
    shared = sorted({*collaborators(one)} & {*collaborators(other)} - {one, other})
    named = rng.random() < 0.5
    if not shared or one == other:
        return None

    def solve() -> Solution:
        yield _load("AuthorNet")
        first = yield _near("AuthorNet", one, f"list the collaborators of {one}")
        second = yield Call("neighbourCheck", {"graph": "AuthorNet", "node": other}, f"list those of {other}")
        found = [name for name in first if name in second]
        if named:
            yield finish(found, f"keep those in both lists: {', '.join(found)}", first, second)
        else:
            yield finish(len(found), f"count those in both lists, {found}", len(first), len(second))

    asked = f"Who has written papers with both {one} and {other}? {_AS_LIST}"
    counted = f"How many collaborators do {one} and {other} share? Please answer with a number."
    return (asked, shared, solve) if named else (counted, len(shared), solve)


def _pair(rng: random.Random) -> tuple[str, str]:
    """Two authors of one paper."""
    one, other = rng.sample(rng.choice(list(papers().values())).authors, 2)
    return one, other


def _joint(rng: random.Random) -> Made | None:
    one, other = _pair(rng)
    both = joint(one, other)
    if len(both) > 5:
        return None
    key, words = rng.choice([("citations", "How many citations do the papers have that"), ("year", "When did")])

    def solve() -> Solution:
        yield _load("AuthorNet")
        why = f"ask what {one} and {other} wrote together"
        apart = {"node1": one, "node2": one}, {"node1": other, "node2": other.split()[0]}
        titles = (yield Call("authorEdgeCheck", {"node1": one, "node2": other}, why, SEEN, apart))["papers"]
        yield _load("PaperNet")
        numbers = []
        for title in titles:
            found = yield Call("paperNodeCheck", {"node": title}, f"look up {title}")
            numbers.append(found["n_citation" if key == "citations" else "year"])
        answer = sum(numbers) if key == "citations" else min(numbers)
        yield finish(answer, f"take {answer} from {numbers}", max(numbers) + 1, numbers[-1] - 1)

    if key == "citations":
        goal = f"{words} {one} and {other} wrote together, in all? Please answer with a number."
        return goal, sum(paper.citations for paper in both), solve
    goal = f"{words} {one} and {other} publish their first paper together? Please answer with the year."
    return goal, min(paper.year for paper in both), solve


def _same_org(rng: random.Random) -> Made:
    one, other = _pair(rng) if rng.random() < 0.5 else rng.sample(list(authors()), 2)

    def solve() -> Solution:
        yield _load("AuthorNet")
        orgs = []
        for name in (one, other):
            orgs.append((yield _node("authorNodeCheck", name, f"ask where {name} works"))["org"])
        answer = "Yes" if orgs[0] == orgs[1] else "No"
        yield finish(answer, f"compare {orgs[0]} with {orgs[1]}: {answer}", "No", "Yes")

    goal = f"Does {one} work at the same organization as {other}? {_YES_NO}"
    return goal, "Yes" if authors()[one] == authors()[other] else "No", solve


def _compare(rng: random.Random) -> Made | None:
    pair = rng.sample(list(papers().values()), 2)
    key, of, words, best = rng.choice(
        [
            ("n_citation", "citations", "has more citations", max),
            ("n_citation", "citations", "has fewer citations", min),
            ("year", "year", "was published first", min),
        ]
    )
    values = [getattr(paper, of) for paper in pair]
    if values[0] == values[1]:
        return None

    def solve() -> Solution:
        yield _load("PaperNet")
        seen = {}
        for paper in pair:
            seen[paper.title] = (yield from _ask(paper))[key]
        answer = best(seen, key=lambda title: seen[title])
        yield finish(answer, f"compare {seen}: it is {answer}", *seen)

    goal = f"Which paper {words}: '{pair[0].title}' or '{pair[1].title}'?"
    return goal, pair[values.index(best(values))].title, solve


def _cited_by_both(rng: random.Random) -> Made | None:
    cited = rng.choice(list(papers()))
    citing = [paper for paper in papers().values() if cited in paper.cites]
    if len(citing) < 2:
        return None
    one, other = rng.sample(citing, 2)
    shared = sorted({*one.cites} & {*other.cites})

    def solve() -> Solution:
        yield _load("PaperNet")
        first = yield _near("PaperNet", one.title, f"list what '{one.title}' cites")
        why = f"list what '{other.title}' cites"
        second = yield Call("neighbourCheck", {"graph": "PaperNet", "node": other.title}, why)
        found = [title for title in first if title in second]
        yield finish(found, f"keep what both cite: {', '.join(found)}", first, second)

    return f"Which papers are cited by both '{one.title}' and '{other.title}'? {_AS_LIST}", shared, solve


def _colleagues(rng: random.Random) -> Made | None:
    name, same = rng.choice(list(authors())), rng.random() < 0.6
    around = collaborators(name)
    truth = [other for other in around if (authors()[other] == authors()[name]) == same]
    if not truth or len(around) > 7:
        return None

    def solve() -> Solution:
        yield _load("AuthorNet")
        home = (yield _node("authorNodeCheck", name, f"ask where {name} works"))["org"]
        names = yield _near("AuthorNet", name, f"list the collaborators of {name}")
        orgs = {}
        for n, other in enumerate(names):
            instead = (f"Dr. {other}", other.split()[0]) if n == 0 else ()
            orgs[other] = (yield _node("authorNodeCheck", other, f"ask where {other} works", *instead))["org"]
        found = [other for other, org in orgs.items() if (org == home) == same]
        rest = [other for other in names if other not in found]
        words = "at" if same else "outside"
        yield finish(found, f"keep those {words} {home}: {', '.join(found)}", names, rest or names[:1])

    which = "work at the same organization" if same else "work at another organization"
    return f"Which collaborators of {name} {which}? {_AS_LIST}", truth, solve


def _does_cite(rng: random.Random) -> Made | None:
    one = rng.choice(list(papers().values()))
    if not one.cites:
        return None
    yes = rng.random() < 0.5
    other = rng.choice(one.cites) if yes else rng.choice(list(papers()))

    def solve() -> Solution:
        yield _load("PaperNet")
        why = "ask about the link between both papers"
        turned = ({"node1": other, "node2": one.title},)
        said = yield Call("paperEdgeCheck", {"node1": one.title, "node2": other}, why, SEEN, turned)
        answer = "No" if "not" in said.split() else "Yes"
        yield finish(answer, f"answer {answer}", "No", "Yes")

    truth = "Yes" if other in one.cites else "No"
    return f"Does the paper '{one.title}' cite '{other}'? {_YES_NO}", truth, solve


def _orgs(rng: random.Random) -> Made:
    paper = rng.choice(list(papers().values()))

    def solve() -> Solution:
        yield _load("PaperNet")
        names = (yield from _ask(paper))["authors"]
        yield _load("AuthorNet")
        found = []
        for n, name in enumerate(names):
            instead = (paper.title, name.split()[0]) if n == 0 else ()
            found.append((yield _node("authorNodeCheck", name, f"ask where {name} works", *instead))["org"])
        answer = list(dict.fromkeys(found))
        yield finish(answer, f"list {', '.join(answer)}", answer[:-1], names)

    goal = f"Which organizations do the authors of '{paper.title}' work at? Name each once. {_AS_LIST}"
    return goal, sorted({authors()[name] for name in paper.authors}), solve


def _top_cited(rng: random.Random) -> Made | None:
    paper = rng.choice(list(papers().values()))
    counts = [papers()[title].citations for title in paper.cites]
    if not 2 <= len(counts) <= 6 or counts.count(max(counts)) > 1:
        return None

    def solve() -> Solution:
        yield _load("PaperNet")
        titles = yield _near("PaperNet", paper.title, f"list what '{paper.title}' cites")
        seen = {}
        for title in titles:
            seen[title] = (yield Call("paperNodeCheck", {"node": title}, f"look up {title}"))["n_citation"]
        best = max(seen, key=lambda title: seen[title])
        yield finish(best, f"take the highest of {list(seen.values())}: {best}", *titles)

    truth = paper.cites[counts.index(max(counts))]
    return f"Of the papers that '{paper.title}' cites, which one has the most citations?", truth, solve


KINDS = (*(_fact, _mutual, _joint, _same_org, _compare, _cited_by_both, _colleagues, _does_cite, _orgs, _top_cited),)


def _draw(rng: random.Random) -> ToolTask | None:
    kind = rng.choice(KINDS)
    made = kind(rng)
    if made is None:
        return None
    goal, answer, solve = made
    return ToolTask(kind.__name__, goal, academia.State, solve, judge_answer(answer))


@functools.cache
def tasks() -> tuple[ToolTask, ...]:
    """All tasks."""
    return collect(N_TEST + N_TRAIN, "academia", _draw)


SPEC = tool_spec(
    *(academia.TOOLBOX, "out", 12, tasks, 0.45),
    n_train=N_TRAIN,
    n_test=N_TEST,
    probe_actions=("loadPaperNet with Action Input: {}", "loadAuthorNet with Action Input: {}"),
)
