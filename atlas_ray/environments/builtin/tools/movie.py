"""Movie: the actions of AgentGym's environment over made-up films and people."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from atlas_ray.environments.builtin.tools.core import Tool, Toolbox, ToolError

N_FILMS, N_PEOPLE = 160, 120

_FIRST_NAMES = (
    "Ada Ben Clara Dario Elena Felix Greta Hugo Iris Jonas Katja Leo Mara Nils Olga Paul Quinn Rosa Sven Tara "
    "Ugo Vera Wim Xenia Yusuf Zoe Amir Bianca Cyril Dina"
)
_LAST_NAMES = (
    "Abbott Brandt Castell Delgado Ekholm Farrow Garrick Hartwell Ivarsson Jensen Kessler Lindqvist Moreau Novak "
    "Okafor Petrov Quayle Rossi Santoro Tanaka Ullman Vargas Whitlock Yilmaz Zeller"
)
_ADJECTIVES = (
    "Silent Crimson Last Hidden Broken Golden Distant Frozen Burning Lonely Secret Wild Paper Glass Midnight Hollow"
)
_NOUNS = (
    "Harbor Garden Promise Winter River Signal Orchard Lantern Empire Horizon Station Letter Mountain Mirror "
    "Summer Road"
)
_KEYWORDS = (
    "heist|friendship|time machine|small town|revenge|road trip|space station|lost letter|detective|family secret|"
    "war|orchestra|chess|smuggling|lighthouse|amnesia|wedding|robot|island|courtroom|jazz|mountaineering"
)
GENRES = (
    "Action",
    "Comedy",
    "Crime",
    "Drama",
    "Fantasy",
    "Horror",
    "Romance",
    "Science Fiction",
    "Thriller",
    "Western",
)
COMPANIES = ("Northlight Pictures", "Blue Heron Films", "Studio Meridian", "Cobalt Gate", "Old Mill Cinema", "Tern Bay")
COUNTRIES = {"US": "United States", "FR": "France", "DE": "Germany", "IT": "Italy", "JP": "Japan", "SE": "Sweden"}
_PLACES = (
    "Oslo, Norway",
    "Lyon, France",
    "Chicago, USA",
    "Turin, Italy",
    "Kyoto, Japan",
    "Leeds, UK",
    "Porto, Portugal",
)
_TITLES = {
    "FR": ("Le Port", "La Promesse", "Le Jardin", "La Gare", "Le Miroir"),
    "DE": ("Der Hafen", "Das Versprechen", "Der Garten", "Der Spiegel", "Die Reise"),
    "IT": ("Il Porto", "La Promessa", "Il Giardino", "Lo Specchio", "Il Viaggio"),
}


@dataclass(frozen=True)
class Person:
    """Somebody in films."""

    id: int
    name: str
    birthday: str
    place: str


@dataclass(frozen=True)
class Film:
    """A film; `cast` in billing order, `crew` as (job, person)."""

    id: int
    title: str
    overview: str
    released: str
    budget: int
    revenue: int
    vote: float
    genres: tuple[str, ...]
    companies: tuple[str, ...]
    countries: tuple[str, ...]
    keywords: tuple[str, ...]
    cast: tuple[Person, ...]
    crew: tuple[tuple[str, Person], ...]
    titles: tuple[tuple[str, str], ...]

    @property
    def director(self) -> Person:
        """Its director."""
        return self.crew[0][1]


@functools.cache
def people() -> tuple[Person, ...]:
    """All people."""
    rng = random.Random("movie/people")
    names = rng.sample([f"{first} {last}" for first in _FIRST_NAMES.split() for last in _LAST_NAMES.split()], N_PEOPLE)
    ids = rng.sample(range(1_000, 90_000), N_PEOPLE)
    born = [date(1940, 1, 1) + timedelta(rng.randrange(365 * 60)) for _ in names]
    return tuple(
        Person(number, name, str(day), rng.choice(_PLACES)) for number, name, day in zip(ids, names, born, strict=True)
    )


@functools.cache
def films() -> tuple[Film, ...]:
    """All films."""
    rng = random.Random("movie/films")
    titles = rng.sample(
        [f"The {adjective} {noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split()], N_FILMS
    )
    ids = rng.sample(range(100_000, 990_000), N_FILMS)
    return tuple(_film(rng, number, title) for number, title in zip(ids, titles, strict=True))


def _film(rng: random.Random, number: int, title: str) -> Film:
    # a company of actors that meets again and again, so that films share some
    start = rng.randrange(N_PEOPLE)
    circle = [people()[(start + n) % N_PEOPLE] for n in range(16)]
    cast = rng.sample(circle, rng.randint(4, 6))
    director, producer, writer = rng.sample(circle, 3)
    keywords, genres = tuple(rng.sample(_KEYWORDS.split("|"), 3)), tuple(rng.sample(GENRES, rng.randint(1, 3)))
    budget = rng.randrange(2, 150) * 1_000_000
    other = tuple(
        (code, rng.choice(names) + f" {title.rsplit(maxsplit=1)[-1]}") for code, names in sorted(_TITLES.items())
    )
    return Film(
        number,
        title,
        f"{genres[0]}: {keywords[0]} meets {keywords[1]}.",
        str(date(1975, 1, 1) + timedelta(rng.randrange(365 * 48))),
        budget,
        round(budget * rng.uniform(0.3, 4.0) / 100_000) * 100_000,
        round(rng.uniform(4.0, 8.9), 1),
        genres,
        tuple(rng.sample(COMPANIES, rng.randint(1, 2))),
        tuple(rng.sample(sorted(COUNTRIES), rng.randint(1, 2))),
        keywords,
        tuple(cast),
        (("Director", director), ("Producer", producer), ("Writer", writer)),
        other,
    )


@functools.cache
def acted(person: Person) -> tuple[Film, ...]:
    """The films that somebody plays in, at most ten."""
    return tuple(film for film in films() if person in film.cast)[:10]


@functools.cache
def directed(person: Person) -> tuple[Film, ...]:
    """The films that somebody directed."""
    return tuple(film for film in films() if film.director == person)


# --- the actions ---


def _film_of(movie_id: str) -> Film:
    for film in films():
        if str(film.id) == movie_id.strip():
            return film
    raise ToolError("There is no movie with this ID.")


def _person_of(person_id: str) -> Person:
    for person in people():
        if str(person.id) == person_id.strip():
            return person
    raise ToolError("There is no person with this ID.")


def _search_movie(_: Any, movie_name: str) -> Any:
    wanted = movie_name.strip().casefold()
    for film in films():
        if film.title.casefold() == wanted or any(title.casefold() == wanted for _, title in film.titles):
            return {"id": film.id, "overview": film.overview, "title": film.title}
    raise ToolError("No movie of this name was found.")


def _search_person(_: Any, person_name: str) -> Any:
    for person in people():
        if person.name.casefold() == person_name.strip().casefold():
            return {"id": person.id, "name": person.name}
    raise ToolError("No person of this name was found.")


def _details(_: Any, movie_id: str) -> Any:
    film = _film_of(movie_id)
    return {
        "budget": film.budget,
        "genres": [{"id": GENRES.index(genre) + 1, "name": genre} for genre in film.genres],
        "revenue": film.revenue,
        "vote_average": film.vote,
        "release_date": film.released,
    }


def _companies(_: Any, movie_id: str) -> Any:
    companies = _film_of(movie_id).companies
    return {"production_companies": [{"id": COMPANIES.index(name) + 1, "name": name} for name in companies]}


def _countries(_: Any, movie_id: str) -> Any:
    return {
        "production_countries": [{"iso_3166_1": code, "name": COUNTRIES[code]} for code in _film_of(movie_id).countries]
    }


def _cast(_: Any, movie_id: str) -> Any:
    return {"cast": [{"id": person.id, "name": person.name} for person in _film_of(movie_id).cast]}


def _crew(_: Any, movie_id: str) -> Any:
    return {"crew": [{"id": person.id, "name": person.name, "job": job} for job, person in _film_of(movie_id).crew]}


def _keywords(_: Any, movie_id: str) -> Any:
    return {"keywords": list(_film_of(movie_id).keywords)}


def _person(_: Any, person_id: str) -> Any:
    person = _person_of(person_id)
    about = f"{person.name} was born in {person.place} and has played in {len(acted(person))} films."
    return {"biography": about, "birthday": person.birthday, "place_of_birth": person.place}


def _roles(_: Any, person_id: str) -> Any:
    films_of = acted(_person_of(person_id))
    return {"cast": [{"id": film.id, "title": film.title, "release_date": film.released} for film in films_of]}


def _jobs(_: Any, person_id: str) -> Any:
    person = _person_of(person_id)
    jobs = [(film, job) for film in films() for job, who in film.crew if who == person][:10]
    return {"crew": [{"id": film.id, "title": film.title, "job": job} for film, job in jobs]}


def imdb(person: Person) -> str:
    """An identifier in another data base."""
    return f"nm{person.id * 7919 % 10_000_000:07d}"


def _external(_: Any, person_id: str) -> Any:
    person = _person_of(person_id)
    handle = person.name.lower().replace(" ", "")
    return {"imdb_id": imdb(person), "facebook_id": None, "instagram_id": handle, "twitter_id": handle[:8]}


def _alternative(_: Any, movie_id: str) -> Any:
    film = _film_of(movie_id)
    return {"titles": [{"iso_3166_1": code, "title": title} for code, title in film.titles], "id": film.id}


def _translation(_: Any, movie_id: str) -> Any:
    film = _film_of(movie_id)
    return {"translations": [{"iso_639_1": code.lower(), "title": title} for code, title in film.titles], "id": film.id}


_MOVIE: dict[str, Any] = {"movie_id": "string"}
_WHO: dict[str, Any] = {"person_id": "string"}

TOOLBOX = Toolbox.of(
    "movie",
    "You answer questions about films and the people in them with the help of actions. Dates are YYYY-MM-DD.",
    16,
    [
        Tool("get_search_movie", "find a movie's ID by its name", _search_movie, {"movie_name": "string"}),
        Tool("get_movie_details", "budget, genres, revenue, vote average and release date", _details, _MOVIE),
        Tool("get_movie_production_companies", "the companies behind a movie", _companies, _MOVIE),
        Tool("get_movie_production_countries", "the countries that a movie comes from", _countries, _MOVIE),
        Tool("get_movie_cast", "a movie's actors, first the lead", _cast, _MOVIE),
        Tool("get_movie_crew", "a movie's director, producer and writer", _crew, _MOVIE),
        Tool("get_movie_keywords", "a movie's keywords", _keywords, _MOVIE),
        Tool("get_search_person", "find a person's ID by the name", _search_person, {"person_name": "string"}),
        Tool("get_person_details", "biography, birthday and place of birth", _person, _WHO),
        Tool("get_person_cast", "up to ten movies that a person plays in", _roles, _WHO),
        Tool("get_person_crew", "up to ten movies that a person worked on", _jobs, _WHO),
        Tool("get_person_external_ids", "a person's ids elsewhere", _external, _WHO),
        Tool("get_movie_alternative_titles", "a movie's titles in other countries", _alternative, _MOVIE),
        Tool("get_movie_translation", "a movie's translations", _translation, _MOVIE),
    ],
)
