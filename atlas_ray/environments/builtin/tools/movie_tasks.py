"""Movie's questions, their answers out of the data, and their solutions by the actions."""

from __future__ import annotations

import functools
import random
from collections.abc import Generator
from typing import Any

from atlas_ray.environments.builtin.tools import movie
from atlas_ray.environments.builtin.tools.movie import COUNTRIES, acted, directed, films, imdb, people
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

Made = tuple[str, Any, Any]  # the goal, its answer, what starts its solution


def _movie(title: str) -> Generator[Call, Any, str]:
    found = yield Call("get_search_movie", {"movie_name": title}, f"look for the movie {title}")
    return str(found["id"])


def _ask(tool: str, number: str, why: str, decides: bool = False) -> Call:
    """A call with an ID; the novice takes another one's."""
    key = "person_id" if tool.startswith("get_person") else "movie_id"
    return Call(tool, {key: number}, why, SEEN if decides else None, ({key: str(int(number) + 1)}, {key: number[::-1]}))


def _fact(rng: random.Random) -> Made:
    film = rng.choice(films())
    asked, key, truth = rng.choice(
        [
            ("When was the movie {} released? Please answer as YYYY-MM-DD.", "release_date", film.released),
            ("What was the budget of the movie {}? Please answer with a number.", "budget", film.budget),
            ("What is the average vote of the movie {}? Please answer with a number.", "vote_average", film.vote),
        ]
    )

    def solve() -> Solution:
        number = yield from _movie(film.title)
        details = yield _ask("get_movie_details", number, f"ask for the details of {number}")
        others = {
            "release_date": "2000-01-01",
            "budget": details["revenue"],
            "vote_average": details["vote_average"] - 1,
        }
        yield finish(details[key], f"read off the {key}, {details[key]}", others[key])

    return asked.format(film.title), truth, solve


def _profit(rng: random.Random) -> Made:
    film = rng.choice(films())

    def solve() -> Solution:
        number = yield from _movie(film.title)
        details = yield _ask("get_movie_details", number, f"ask for the details of {number}")
        gained = details["revenue"] - details["budget"]
        why = f"take the budget from the revenue, {details['revenue']} - {details['budget']} = {gained}"
        yield finish(gained, why, details["revenue"], -gained)

    goal = (
        f"How much more did the movie {film.title} earn (revenue) than it cost (budget)? Please answer with a number."
    )
    return goal, film.revenue - film.budget, solve


def _common_actor(rng: random.Random) -> Made | None:
    one = rng.choice(films())
    others = [film for film in films() if film is not one and len({*film.cast} & {*one.cast}) == 1]
    if not others:
        return None
    other = rng.choice(others)

    def solve() -> Solution:
        casts = []
        for film in (one, other):
            number = yield from _movie(film.title)
            table = yield _ask("get_movie_cast", number, f"ask for the actors of {film.title}")
            casts.append([person["name"] for person in table["cast"]])
        (name,) = [name for name in casts[0] if name in casts[1]]
        yield finish(name, f"compare both casts: {name} is in both", casts[0][0], casts[1][0])

    (shared,) = {*one.cast} & {*other.cast}
    return f"Which actor plays in both {one.title} and {other.title}?", shared.name, solve


def _director_fact(rng: random.Random) -> Made:
    film = rng.choice(films())
    birthday = rng.random() < 0.5

    def solve() -> Solution:
        number = yield from _movie(film.title)
        crew = (yield _ask("get_movie_crew", number, f"ask for the crew of {film.title}"))["crew"]
        director = next(person for person in crew if person["job"] == "Director")
        ids = [str(person["id"]) for person in crew if person is not director]
        why = f"ask about the director, {director['name']}"
        wrong = tuple({"person_id": other} for other in ids)
        details = yield Call("get_person_details", {"person_id": str(director["id"])}, why, SEEN, wrong)
        answer = details["birthday" if birthday else "place_of_birth"]
        yield finish(answer, f"read off {answer}", details["place_of_birth"], details["birthday"])

    asked = "When was the director of {} born? Please answer as YYYY-MM-DD."
    asked = asked if birthday else "In which place was the director of {} born?"
    return asked.format(film.title), film.director.birthday if birthday else film.director.place, solve


def _compare(rng: random.Random) -> Made | None:
    pair = rng.sample(films(), 2)
    words, key, best = rng.choice(
        [
            ("came out first", "release_date", min),
            ("came out later", "release_date", max),
            ("earned more revenue", "revenue", max),
            ("has the higher average vote", "vote_average", max),
            ("had the smaller budget", "budget", min),
        ]
    )
    of = {"release_date": "released", "vote_average": "vote"}.get(key, key)
    values = [getattr(film, of) for film in pair]
    if values[0] == values[1]:
        return None

    def solve() -> Solution:
        seen = {}
        for film in pair:
            number = yield from _movie(film.title)
            details = yield _ask("get_movie_details", number, f"ask for the details of {film.title}")
            seen[film.title] = details[key]
        answer = best(seen, key=lambda title: seen[title])
        yield finish(answer, f"compare {seen}: it is {answer}", *seen)

    goal = f"Which movie {words}, {pair[0].title} or {pair[1].title}?"
    return goal, pair[values.index(best(values))].title, solve


def _role(rng: random.Random) -> Made | None:
    person, first = rng.choice(people()), rng.random() < 0.5
    known = acted(person)
    best = min if first else max
    if len(known) < 2:
        return None

    def solve() -> Solution:
        found = yield Call("get_search_person", {"person_name": person.name}, f"look for {person.name}")
        roles = yield _ask("get_person_cast", str(found["id"]), f"ask for the movies with {person.name}", True)
        dates = {film["title"]: film["release_date"] for film in roles["cast"]}
        answer = best(dates, key=lambda title: dates[title])
        yield finish(answer, f"compare the dates {dates}: it is {answer}", *list(dates)[:2])

    goal = f"Of the movies in which {person.name} plays, which one was released {'first' if first else 'last'}?"
    return goal, best(known, key=lambda film: film.released).title, solve


def _same_company(rng: random.Random) -> Made:
    pair = rng.sample(films(), 2)

    def solve() -> Solution:
        seen: list[list[str]] = []
        for film in pair:
            number = yield from _movie(film.title)
            why = f"ask for the companies behind {film.title}"
            table = yield _ask("get_movie_production_companies", number, why)
            seen.append([company["name"] for company in table["production_companies"]])
        answer = "yes" if {*seen[0]} & {*seen[1]} else "no"
        yield finish(answer, f"compare {seen[0]} with {seen[1]}: {answer}", "no", "yes")

    goal = f"Do {pair[0].title} and {pair[1].title} share a production company? Please answer 'yes' or 'no'."
    return goal, "yes" if {*pair[0].companies} & {*pair[1].companies} else "no", solve


def _lead_id(rng: random.Random) -> Made:
    film = rng.choice(films())

    def solve() -> Solution:
        number = yield from _movie(film.title)
        cast = (yield _ask("get_movie_cast", number, f"ask for the actors of {film.title}"))["cast"]
        wrong = tuple({"person_id": str(other["id"])} for other in cast[1:3])
        why = f"ask for the ids of the lead, {cast[0]['name']}"
        ids = yield Call("get_person_external_ids", {"person_id": str(cast[0]["id"])}, why, SEEN, wrong)
        yield finish(ids["imdb_id"], f"read off the IMDB id {ids['imdb_id']}", ids["instagram_id"], str(cast[0]["id"]))

    return f"What is the IMDB id of the lead actor (first of the cast) of {film.title}?", imdb(film.cast[0]), solve


def _listed(rng: random.Random) -> Made:
    film = rng.choice(films())
    what = rng.choice(["keywords", "genres", "production countries"])
    tool = {"keywords": "get_movie_keywords", "genres": "get_movie_details"}.get(what, "get_movie_production_countries")
    countries = [COUNTRIES[code] for code in film.countries]
    truth = {"keywords": list(film.keywords), "genres": list(film.genres)}.get(what, countries)

    def solve() -> Solution:
        number = yield from _movie(film.title)
        table = yield _ask(tool, number, f"ask for the {what} of {film.title}", True)
        items = table[what.replace(" ", "_")]
        names = [item if isinstance(item, str) else item["name"] for item in items]
        yield finish(names, f"list the {what}: {', '.join(names)}", names[:-1], [*names, "none"])

    return (
        f"What are the {what} of the movie {film.title}? Please answer in the form of a list ['a', 'b', ...].",
        truth,
        solve,
    )


def _directed(rng: random.Random) -> Made | None:
    person = rng.choice(people())
    if len(directed(person)) < 1:
        return None

    def solve() -> Solution:
        found = yield Call("get_search_person", {"person_name": person.name}, f"look for {person.name}")
        jobs = (yield _ask("get_person_crew", str(found["id"]), f"ask for the jobs of {person.name}", True))["crew"]
        titles = [job["title"] for job in jobs if job["job"] == "Director"]
        wrong = [job["title"] for job in jobs], [job["title"] for job in jobs if job["job"] == "Writer"]
        yield finish(titles, f"keep those as director: {', '.join(titles)}", *wrong)

    goal = f"Which movies did {person.name} direct? Please answer in the form of a list ['a', 'b', ...]."
    return goal, [film.title for film in directed(person)], solve


def _title_abroad(rng: random.Random) -> Made:
    film, (code, country) = rng.choice(films()), rng.choice([("FR", "France"), ("DE", "Germany"), ("IT", "Italy")])

    def solve() -> Solution:
        number = yield from _movie(film.title)
        why = f"ask for the other titles of {film.title}"
        titles = (yield _ask("get_movie_alternative_titles", number, why, True))["titles"]
        there = next(one["title"] for one in titles if one["iso_3166_1"] == code)
        yield finish(there, f"pick the title in {country}, {there}", *(one["title"] for one in titles), film.title)

    return f"What is the title of the movie {film.title} in {country}?", dict(film.titles)[code], solve


def _eldest(rng: random.Random) -> Made:
    film = rng.choice(films())

    def solve() -> Solution:
        number = yield from _movie(film.title)
        cast = (yield _ask("get_movie_cast", number, f"ask for the actors of {film.title}"))["cast"]
        born = {}
        for n, person in enumerate(cast[:3]):
            why = f"ask when {person['name']} was born"
            born[person["name"]] = (yield _ask("get_person_details", str(person["id"]), why, n == 0))["birthday"]
        answer = min(born, key=lambda name: born[name])
        yield finish(answer, f"compare the birthdays {born}: {answer} is the eldest", *born)

    goal = f"Who is the eldest of the first three actors in the cast of {film.title}?"
    return goal, min(film.cast[:3], key=lambda person: person.birthday).name, solve


KINDS = (
    *(_fact, _profit, _common_actor, _director_fact, _compare, _role, _same_company, _lead_id, _listed, _directed),
    *(_title_abroad, _eldest),
)


def _draw(rng: random.Random) -> ToolTask | None:
    kind = rng.choice(KINDS)
    made = kind(rng)
    if made is None:
        return None
    goal, answer, solve = made
    return ToolTask(kind.__name__, goal, lambda: None, solve, judge_answer(answer))


@functools.cache
def tasks() -> tuple[ToolTask, ...]:
    """All tasks."""
    return collect(N_TEST + N_TRAIN, "movie", _draw)


SPEC = tool_spec(
    *(movie.TOOLBOX, "in", 12, tasks, 0.5),
    n_train=N_TRAIN,
    n_test=N_TEST,
    tolerance=0.1,  # AgentGym's server asks a live service
    probe_actions=('get_search_movie with Action Input: {"movie_name": "Inception"}',),
)
