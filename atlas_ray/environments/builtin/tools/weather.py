"""Weather: the actions of AgentGym's environment over a made-up climate, smooth in time and given by place alone.

A place's weather on a day is a function of its coordinates and the date: seasons by latitude, weeks of warm and cold,
a little noise by day. Cities and their coordinates are real, their weather is not.
"""

from __future__ import annotations

import functools
import math
import random
import re
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from atlas_ray.environments.builtin.tools.core import Tool, Toolbox, ToolError

FIRST, LAST = date(2015, 1, 1), date(2024, 12, 31)
MOST_DAYS, FORECAST_DAYS = 92, 16


@dataclass(frozen=True)
class City:
    """A place with a name; coordinates in degrees, elevation in metres."""

    name: str
    country: str
    latitude: float
    longitude: float
    elevation: int
    zipcode: str


_CITIES = """\
New York,US,40.71,-74.01,10,10001|Chicago,US,41.88,-87.63,182,60601|Denver,US,39.74,-104.99,1609,80202
Seattle,US,47.61,-122.33,53,98101|Miami,US,25.76,-80.19,2,33101|Boston,US,42.36,-71.06,14,02108
Phoenix,US,33.45,-112.07,331,85001|Toronto,CA,43.65,-79.38,76,M5H|Montreal,CA,45.50,-73.57,36,H2Y
Vancouver,CA,49.28,-123.12,4,V6B|London,GB,51.51,-0.13,11,EC1A|Edinburgh,GB,55.95,-3.19,47,EH1
Dublin,IE,53.35,-6.26,20,D01|Paris,FR,48.86,2.35,35,75001|Lyon,FR,45.76,4.84,173,69001
Berlin,DE,52.52,13.41,34,10115|Munich,DE,48.14,11.58,519,80331|Hamburg,DE,53.55,9.99,6,20095
Vienna,AT,48.21,16.37,171,1010|Zurich,CH,47.37,8.54,408,8001|Rome,IT,41.90,12.50,21,00184
Milan,IT,45.46,9.19,120,20121|Madrid,ES,40.42,-3.70,667,28013|Barcelona,ES,41.39,2.17,12,08002
Lisbon,PT,38.72,-9.14,45,1100|Oslo,NO,59.91,10.75,23,0150|Stockholm,SE,59.33,18.07,28,11129
Helsinki,FI,60.17,24.94,26,00100|Copenhagen,DK,55.68,12.57,14,1050|Warsaw,PL,52.23,21.01,113,00001
Prague,CZ,50.08,14.44,202,11000|Budapest,HU,47.50,19.04,104,1051|Athens,GR,37.98,23.73,70,10431
Istanbul,TR,41.01,28.98,39,34110|Cairo,EG,30.04,31.24,23,11511|Nairobi,KE,-1.29,36.82,1684,00101
Delhi,IN,28.61,77.21,216,110001|Mumbai,IN,19.08,72.88,14,400001|Bangkok,TH,13.75,100.50,4,10200
Singapore,SG,1.35,103.82,15,018956|Beijing,CN,39.90,116.41,49,100000|Shanghai,CN,31.22,121.46,12,200000
Seoul,KR,37.57,126.98,38,04524|Tokyo,JP,35.69,139.69,44,100-0001|Sapporo,JP,43.06,141.35,26,060-0001
Sydney,AU,-33.87,151.21,58,2000|Melbourne,AU,-37.81,144.96,25,3000|Auckland,NZ,-36.85,174.76,26,1021
Lima,PE,-12.05,-77.04,154,15001|Santiago,CL,-33.45,-70.67,521,8320000|Buenos Aires,AR,-34.61,-58.38,31,C1002
Mexico City,MX,19.43,-99.13,2240,06000|Bogota,CO,4.61,-74.08,2582,110111|Calgary,CA,51.05,-114.07,1042,T2P"""


@functools.cache
def cities() -> tuple[City, ...]:
    """The cities that have names."""
    rows = (row.split(",") for line in _CITIES.splitlines() for row in line.split("|"))
    return tuple(City(n, c, float(la), float(lo), int(el), z) for n, c, la, lo, el, z in rows)


def namesake(city: City) -> tuple[float, float]:
    """The coordinates of a village of the same name, for a search to find too."""
    rng = random.Random(f"namesake/{city.name}")
    return round(rng.uniform(30, 45), 2), round(rng.uniform(-98, -82), 2)


# --- the climate ---


def _place(latitude: float, longitude: float) -> tuple[float, float, int]:
    """A place's coordinates and elevation: of the city within half a degree, else of the field on the map."""
    for city in cities():
        if abs(city.latitude - latitude) < 0.5 and abs(city.longitude - longitude) < 0.5:
            return city.latitude, city.longitude, city.elevation
    field = round(latitude), round(longitude)
    return *field, random.Random(f"elevation/{field}").randrange(5, 900)


@functools.lru_cache(maxsize=4096)
def temperature(latitude: float, longitude: float, day: date) -> tuple[float, float, float]:
    """Highest, lowest and mean temperature of a day in degrees Celsius."""
    latitude, longitude, elevation = _place(latitude, longitude)
    rng = random.Random(f"climate/{latitude}/{longitude}")
    yearly = 28 - 0.55 * max(0.0, abs(latitude) - 12) - 0.0055 * elevation
    swing = min(14.0, 0.26 * abs(latitude)) * rng.uniform(0.7, 1.1)
    summer = 200 if latitude >= 0 else 18  # the warmest day of the year
    time = day.toordinal()
    season = swing * math.cos(2 * math.pi * (day.timetuple().tm_yday - summer) / 365.25)
    spells = sum(size * math.sin(2 * math.pi * time / length + rng.uniform(0, 7)) for size, length in _SPELLS)
    today = random.Random(f"day/{latitude}/{longitude}/{time}")
    mean = yearly + season + spells + today.gauss(0, 1.2)
    return round(mean + today.uniform(2.5, 5.5), 1), round(mean - today.uniform(2.5, 5.5), 1), round(mean, 1)


_SPELLS = ((1.8, 9.3), (1.4, 23.7), (1.0, 61.0))


@functools.lru_cache(maxsize=4096)
def water(latitude: float, longitude: float, day: date) -> tuple[float, float]:
    """Rain in mm and snow in cm of a day."""
    latitude, longitude, _ = place = _place(latitude, longitude)
    wet = random.Random(f"wet/{place}").uniform(0.2, 0.5)
    today = random.Random(f"water/{place}/{day.toordinal()}")
    front = math.sin(day.toordinal() / 3.1 + latitude) * 0.2
    fallen = round(today.expovariate(1 / 6), 1) + 0.1 if today.random() < wet + front else 0.0
    mean = temperature(latitude, longitude, day)[2]
    return (0.0, round(fallen * 0.7, 2)) if mean < 0.5 else (round(fallen, 1), 0.0)


@functools.lru_cache(maxsize=4096)
def air_quality(latitude: float, longitude: float, day: date) -> int:
    """The air quality index of a day."""
    place = _place(latitude, longitude)
    usual = random.Random(f"air/{place}").uniform(12, 90)
    return max(3, round(usual * random.Random(f"air/{place}/{day.toordinal()}").uniform(0.5, 1.5)))


LEVELS = ((20, "good"), (40, "fair"), (60, "moderate"), (80, "poor"), (100, "very poor"))


def level(index: float) -> str:
    """The words for an air quality index."""
    return next((words for most, words in LEVELS if index <= most), "extremely poor")


def distance_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """The distance between two coordinates along the earth, in km."""
    (la1, lo1), (la2, lo2) = ((math.radians(la), math.radians(lo)) for la, lo in (one, other))
    h = math.sin((la2 - la1) / 2) ** 2 + math.cos(la1) * math.cos(la2) * math.sin((lo2 - lo1) / 2) ** 2
    return round(2 * 6371 * math.asin(min(1.0, math.sqrt(h))), 1)


# --- the actions ---


@dataclass(frozen=True)
class State:
    """What the user's device knows."""

    today: date
    city: City


_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


def read_date(text: str) -> date:
    """A date from `YYYY-MM-DD`.

    Raises:
        ToolError: If it is none.
    """
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise ToolError(f"{text[:40]!r} is no date in the format YYYY-MM-DD.")


def _coordinates(latitude: float, longitude: float) -> tuple[float, float]:
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise ToolError("Latitude must be in -90 to 90 and longitude in -180 to 180.")
    return round(latitude, 4), round(longitude, 4)


def _days(state: State, start_date: str, end_date: str, ahead: bool) -> list[date]:
    start, end = read_date(start_date), read_date(end_date)
    if start > end:
        raise ToolError("The start date must not be after the end date.")
    if ahead:
        if start < state.today or end > state.today + timedelta(FORECAST_DAYS):
            raise ToolError(f"A forecast runs from today, {state.today}, to {FORECAST_DAYS} days ahead.")
    elif start < FIRST or end >= state.today:
        raise ToolError(f"Historical data runs from {FIRST} to the day before today, {state.today}.")
    if (end - start).days >= MOST_DAYS:
        raise ToolError(f"At most {MOST_DAYS} days can be asked for at once.")
    return [start + timedelta(n) for n in range((end - start).days + 1)]


def _temps(place: tuple[float, float], days: list[date]) -> dict[str, Any]:
    rows = [temperature(*place, day) for day in days]
    high, low, mean = ([row[i] for row in rows] for i in range(3))
    return _table(place, days, {"temperature_2m_max": high, "temperature_2m_min": low, "temperature_2m_mean": mean})


def _table(place: tuple[float, float], days: list[date], columns: dict[str, list[Any]]) -> dict[str, Any]:
    return {"latitude": place[0], "longitude": place[1], "daily": {"time": [str(day) for day in days], **columns}}


def _fallen(column: str, part: int, place: tuple[float, float], days: list[date]) -> dict[str, Any]:
    return _table(place, days, {column: [water(*place, day)[part] for day in days]})


def _air(place: tuple[float, float], days: list[date]) -> dict[str, Any]:
    return _table(place, days, {"european_aqi_pm2_5": [air_quality(*place, day) for day in days]})


_RAIN, _SNOW = functools.partial(_fallen, "rain_sum", 0), functools.partial(_fallen, "snowfall_sum", 1)


def _ranged(table: Any, ahead: bool) -> Any:
    """A tool's function for a range of days."""

    def run(state: State, latitude: float, longitude: float, start_date: str, end_date: str) -> Any:
        return table(_coordinates(latitude, longitude), _days(state, start_date, end_date, ahead))

    return run


def _current(table: Any) -> Any:
    """A tool's function for today."""

    def run(state: State, latitude: float, longitude: float, current_date: str) -> Any:
        if read_date(current_date) != state.today:
            raise ToolError(f"The current date is {state.today}.")
        return table(_coordinates(latitude, longitude), [state.today])

    return run


def _search(_: State, name: str) -> Any:
    for city in cities():
        if city.name.casefold() == name.strip().casefold():
            far = namesake(city)
            found = [(city.latitude, city.longitude, city.country), (*far, "US")]
            return {
                "results": [
                    {"name": city.name, "latitude": la, "longitude": lo, "country_code": country}
                    for la, lo, country in found
                ]
            }
    raise ToolError("No such location is known.")


def _elevation(_: State, latitude: float, longitude: float) -> Any:
    place = _coordinates(latitude, longitude)
    return {"latitude": place[0], "longitude": place[1], "elevation": _place(*place)[2]}


def _distance(_: State, latitude1: float, longitude1: float, latitude2: float, longitude2: float) -> Any:
    return distance_km(_coordinates(latitude1, longitude1), _coordinates(latitude2, longitude2))


def _address(_: State, zipcode: str) -> Any:
    for city in cities():
        if city.zipcode == zipcode.strip():
            return f"{city.name}, {city.country}"
    raise ToolError("No such zipcode is known.")


_AT: dict[str, Any] = {"latitude": "number", "longitude": "number"}
_RANGE, _DAY = _AT | {"start_date": "string", "end_date": "string"}, _AT | {"current_date": "string"}
_FROM_TO = {"latitude1": "number", "longitude1": "number", "latitude2": "number", "longitude2": "number"}

TOOLBOX = Toolbox.of(
    "weather",
    "You answer questions about the weather with the help of actions. Dates are YYYY-MM-DD.",
    18,
    [
        Tool("get_user_current_date", "the user's current date", lambda state: str(state.today)),
        Tool("get_user_current_location", "the user's current city", lambda state: state.city.name),
        Tool("get_historical_temp", "temperatures of past days", _ranged(_temps, False), _RANGE),
        Tool("get_historical_rain", "rain of past days in mm", _ranged(_RAIN, False), _RANGE),
        Tool("get_historical_snow", "snow of past days in cm", _ranged(_SNOW, False), _RANGE),
        Tool("get_snow_forecast", "snow of days ahead in cm", _ranged(_SNOW, True), _RANGE),
        Tool("get_current_snow", "today's snow in cm", _current(_SNOW), _DAY),
        Tool("get_current_temp", "today's temperatures", _current(_temps), _DAY),
        Tool("get_latitude_longitude", "the coordinates of a city", _search, {"name": "string"}),
        Tool("get_elevation", "the elevation of a place in m", _elevation, _AT),
        Tool("get_temp_forecast", "temperatures of days ahead", _ranged(_temps, True), _RANGE),
        Tool("get_rain_forecast", "rain of days ahead in mm", _ranged(_RAIN, True), _RANGE),
        Tool("get_current_rain", "today's rain in mm", _current(_RAIN), _DAY),
        Tool("get_distance", "the distance between two places in km", _distance, _FROM_TO),  # type: ignore[arg-type]
        Tool("get_historical_air_quality_index", "air quality of past days", _ranged(_air, False), _RANGE),
        Tool("get_current_air_quality_index", "today's air quality", _current(_air), _DAY),
        Tool(
            "get_air_quality_level",
            "an air quality index in words",
            lambda _, air_quality_index: level(air_quality_index),
            {"air_quality_index": "number"},
        ),
        Tool("convert_zipcode_to_address", "the city of a zipcode", _address, {"zipcode": "string"}),
    ],
)
