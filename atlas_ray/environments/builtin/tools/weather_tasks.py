"""Weather's questions, their answers out of the climate itself, and their solutions by the actions."""

from __future__ import annotations

import functools
import random
from collections.abc import Generator
from datetime import date, timedelta
from typing import Any

from atlas_ray.environments.builtin.tools import weather
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
from atlas_ray.environments.builtin.tools.weather import City, State

N_TEST, N_TRAIN = 100, 400

_COLUMNS = {"highest": "temperature_2m_max", "lowest": "temperature_2m_min", "average": "temperature_2m_mean"}
_NUMBER = "Please provide the answer as a number."


def _locate(name: str) -> Generator[Call, Any, dict[str, float]]:
    found = yield Call("get_latitude_longitude", {"name": name}, f"look up the coordinates of {name}")
    first = found["results"][0]
    return {"latitude": first["latitude"], "longitude": first["longitude"]}


def _here() -> Generator[Call, Any, tuple[str, date]]:
    city = yield Call("get_user_current_location", {}, "find out where the user is")
    today = yield Call("get_user_current_date", {}, "ask for the current date")
    return city, date.fromisoformat(today)


def _span(tool: str, at: dict[str, float], start: date, end: date, why: str, today: date | None = None) -> Call:
    """A call for a range of days; the novice takes others, or the wrong action."""
    days = {"start_date": str(start), "end_date": str(end)}
    shifts = [{"start_date": str(start + timedelta(n)), "end_date": str(end + timedelta(n))} for n in (-1, 1)]
    if today is not None:
        shifts.append({"start_date": str(today), "end_date": str(today)})
    decision = None if today is None else SEEN  # the days have been worked out
    return Call(tool, at | days, why, decision, tuple(at | shift for shift in shifts if shift != days))


def _column(table: dict[str, Any], name: str) -> list[Any]:
    return table["daily"][name]


def _at(city: City) -> tuple[float, float]:
    return city.latitude, city.longitude


def _past(rng: random.Random, today: date, days: int = 1) -> tuple[date, date]:
    start = weather.FIRST + timedelta(rng.randrange((today - weather.FIRST).days - days - 1))
    return start, start + timedelta(days - 1)


Made = tuple[str, Any, Any]  # the goal, its answer, what starts its solution


def _temp_on(rng: random.Random, state: State) -> Made:
    city, which, (day, _) = rng.choice(weather.cities()), rng.choice(list(_COLUMNS)), _past(rng, state.today)
    part = list(_COLUMNS).index(which)

    def solve() -> Solution:
        at = yield from _locate(city.name)
        table = yield _span("get_historical_temp", at, day, day, f"ask for the temperatures of {day}")
        value, *others = [_column(table, _COLUMNS[which])[0], *(_column(table, c)[0] for c in _COLUMNS.values())]
        yield finish(value, f"read off the {which} temperature, {value}", *others)

    goal = f"What was the {which} temperature in Celsius in {city.name} on {day}? {_NUMBER}"
    return goal, weather.temperature(*_at(city), day)[part], solve


def _temp_ago(rng: random.Random, state: State) -> Made:
    ago, which = rng.randint(1, 30), rng.choice(list(_COLUMNS))
    day, words = state.today - timedelta(ago), "yesterday" if ago == 1 else f"{ago} days ago"

    def solve() -> Solution:
        name, today = yield from _here()
        at = yield from _locate(name)
        then = today - timedelta(ago)
        table = yield _span("get_historical_temp", at, then, then, f"ask for {then}, {words} from {today}", today)
        value, *others = [_column(table, _COLUMNS[which])[0], *(_column(table, c)[0] for c in _COLUMNS.values())]
        yield finish(value, f"read off the {which} temperature, {value}", *others)

    goal = f"What was the {which} temperature in Celsius {words}? {_NUMBER}"
    goal = f"I am in {state.city.country}. {goal}" if rng.random() < 0.9 else goal
    return goal, weather.temperature(*_at(state.city), day)[list(_COLUMNS).index(which)], solve


def _compare(rng: random.Random, state: State) -> Made | None:
    pair, (day, _) = rng.sample(weather.cities(), 2), _past(rng, state.today)
    temps = [weather.temperature(*_at(city), day)[2] for city in pair]
    which = rng.choice(["warmer", "colder"])
    best = max if which == "warmer" else min

    def solve() -> Solution:
        found = {}
        for city in pair:
            at = yield from _locate(city.name)
            why = f"ask for the temperature in {city.name} on {day}"
            table = yield _span("get_historical_temp", at, day, day, why)
            found[city.name] = _column(table, "temperature_2m_mean")[0]
        answer = best(found, key=lambda name: found[name])
        seen = " and ".join(f"{value} in {name}" for name, value in found.items())
        yield finish(answer, f"compare {seen}: {answer} was {which}", *found)

    goal = f"Which city was {which} on average on {day}, {pair[0].name} or {pair[1].name}?"
    return None if temps[0] == temps[1] else (goal, pair[temps.index(best(temps))].name, solve)


def _rain_total(rng: random.Random, state: State) -> Made:
    city, (start, end) = rng.choice(weather.cities()), _past(rng, state.today, rng.randint(3, 7))
    ask = rng.choice(["total", "days"])
    days = [start + timedelta(n) for n in range((end - start).days + 1)]
    truth = [weather.water(*_at(city), day)[0] for day in days]

    def solve() -> Solution:
        at = yield from _locate(city.name)
        why = f"ask for the rain from {start} to {end}"
        rain = _column((yield _span("get_historical_rain", at, start, end, why)), "rain_sum")
        total, wet = round(sum(rain), 1), sum(value > 0 for value in rain)
        if ask == "total":
            yield finish(total, f"add up {rain}: {total}", wet, max(rain))
        else:
            yield finish(wet, f"count the days with rain in {rain}: {wet}", len(rain), len(rain) - wet)

    asked = "How much rain fell in mm" if ask == "total" else "On how many days did it rain"
    goal = f"{asked} in {city.name} from {start} to {end}? {_NUMBER}"
    return goal, round(sum(truth), 1) if ask == "total" else sum(value > 0 for value in truth), solve


def _forecast(rng: random.Random, state: State) -> Made:
    ahead, what = rng.randint(1, 10), rng.choice(["rain", "snow", "temp"])
    city = rng.choice(weather.cities())
    tool, column, asked = {
        "rain": ("get_rain_forecast", "rain_sum", "How much rain in mm is expected"),
        "snow": ("get_snow_forecast", "snowfall_sum", "How much snow in cm is expected"),
        "temp": ("get_temp_forecast", "temperature_2m_max", "What will be the highest temperature in Celsius"),
    }[what]
    then = state.today + timedelta(ahead)
    rain, snow = weather.water(*_at(city), then)
    truth = {"rain": rain, "snow": snow, "temp": weather.temperature(*_at(city), then)[0]}[what]

    def solve() -> Solution:
        today = date.fromisoformat((yield Call("get_user_current_date", {}, "ask for the current date")))
        at = yield from _locate(city.name)
        day = today + timedelta(ahead)
        table = yield _span(tool, at, day, day, f"ask for the forecast of {day}, {ahead} days after {today}", today)
        value = _column(table, column)[0]
        yield finish(value, f"read off the forecast, {value}", value + 1, value + 2.5)

    day_words = "tomorrow" if ahead == 1 else f"in {ahead} days"
    return f"{asked} {day_words} in {city.name}? {_NUMBER}", truth, solve


def _distance(rng: random.Random, state: State) -> Made:
    one, other = rng.sample(weather.cities(), 2)

    def solve() -> Solution:
        a = yield from _locate(one.name)
        b = yield from _locate(other.name)
        pair = {"latitude1": a["latitude"], "longitude1": a["longitude"]}
        pair |= {"latitude2": b["latitude"], "longitude2": b["longitude"]}
        mixed = pair | {"latitude2": a["latitude"]}, pair | {"longitude1": b["longitude"]}
        length = yield Call("get_distance", pair, "compute the distance between both coordinates", SEEN, mixed)
        yield finish(length, f"report the distance of {length} km", round(length / 1.609, 1), round(length * 1.2, 1))

    goal = f"How far is it from {one.name} to {other.name} in kilometers? {_NUMBER}"
    return goal, weather.distance_km(_at(one), _at(other)), solve


def _higher(rng: random.Random, state: State) -> Made | None:
    pair = rng.sample(weather.cities(), 2)
    which = rng.choice(["higher", "lower"])
    best = max if which == "higher" else min

    def solve() -> Solution:
        found = {}
        for city in pair:
            at = yield from _locate(city.name)
            mixed = ({"latitude": at["latitude"], "longitude": -at["longitude"]},)
            table = yield Call("get_elevation", at, f"ask for the elevation of {city.name}", SEEN, mixed)
            found[city.name] = table["elevation"]
        answer = best(found, key=lambda name: found[name])
        yield finish(answer, f"compare the elevations {found}: {answer} lies {which}", *found)

    goal = f"Which city lies {which} above the sea, {pair[0].name} or {pair[1].name}?"
    truth = best(pair, key=lambda city: city.elevation)
    return None if pair[0].elevation == pair[1].elevation else (goal, truth.name, solve)


def _air_today(rng: random.Random, state: State) -> Made:
    city = rng.choice(weather.cities())
    truth = weather.level(weather.air_quality(*_at(city), state.today))

    def solve() -> Solution:
        today = yield Call("get_user_current_date", {}, "ask for the current date")
        at = yield from _locate(city.name)
        given, before = at | {"current_date": today}, str(date.fromisoformat(today) - timedelta(1))
        why = f"ask for the air quality of {today} there"
        table = yield Call("get_current_air_quality_index", given, why, SEEN, (at | {"current_date": before},))
        index = _column(table, "european_aqi_pm2_5")[0]
        words = yield Call("get_air_quality_level", {"air_quality_index": index}, f"put the index {index} into words")
        yield finish(words, f"answer that it is {words}", "good", "moderate", str(index))

    country = state.city.name
    goal = f"I am in {country} and want to know about {city.name}: is the air quality there today 'good', 'fair', "
    return goal + "'moderate', 'poor', 'very poor' or 'extremely poor'?", truth, solve


def _worst_air(rng: random.Random, state: State) -> Made | None:
    city, (start, end) = rng.choice(weather.cities()), _past(rng, state.today, rng.randint(3, 6))
    days = [start + timedelta(n) for n in range((end - start).days + 1)]
    air = [weather.air_quality(*_at(city), day) for day in days]

    def solve() -> Solution:
        at = yield from _locate(city.name)
        why = f"ask for the air quality from {start} to {end}"
        table = yield _span("get_historical_air_quality_index", at, start, end, why)
        seen = dict(zip(_column(table, "time"), _column(table, "european_aqi_pm2_5"), strict=True))
        worst = max(seen, key=lambda day: seen[day])
        yield finish(worst, f"pick the highest of {seen}: {worst}", *seen)

    goal = f"On which day from {start} to {end} was the air in {city.name} the worst (highest index)? "
    truth = str(days[air.index(max(air))])
    return None if air.count(max(air)) > 1 else (goal + "Please answer as YYYY-MM-DD.", truth, solve)


def _zipcode(rng: random.Random, state: State) -> Made:
    city, which, (day, _) = rng.choice(weather.cities()), rng.choice(list(_COLUMNS)), _past(rng, state.today)
    part = list(_COLUMNS).index(which)

    def solve() -> Solution:
        why = f"find the city of the zipcode {city.zipcode}"
        address = yield Call("convert_zipcode_to_address", {"zipcode": city.zipcode}, why)
        at = yield from _locate(address.split(",")[0])
        table = yield _span("get_historical_temp", at, day, day, f"ask for the temperatures of {day}")
        value, *others = [_column(table, _COLUMNS[which])[0], *(_column(table, c)[0] for c in _COLUMNS.values())]
        yield finish(value, f"read off the {which} temperature, {value}", *others)

    goal = f"What was the {which} temperature in Celsius at the zipcode {city.zipcode} on {day}? {_NUMBER}"
    return goal, weather.temperature(*_at(city), day)[part], solve


def _extreme_day(rng: random.Random, state: State) -> Made | None:
    days = rng.randint(3, 7)
    start = state.today - timedelta(days)
    highs = [weather.temperature(*_at(state.city), start + timedelta(n))[0] for n in range(days)]

    def solve() -> Solution:
        name, today = yield from _here()
        at = yield from _locate(name)
        first, last = today - timedelta(days), today - timedelta(1)
        why = f"ask for the {days} days before {today}"
        table = yield _span("get_historical_temp", at, first, last, why, today - timedelta(1))
        seen = dict(zip(_column(table, "time"), _column(table, "temperature_2m_max"), strict=True))
        top = max(seen, key=lambda day: seen[day])
        yield finish(top, f"pick the hottest of {seen}: {top}", *seen)

    goal = f"Here in {state.city.country}, which of the last {days} days before today had the highest temperature? "
    truth = str(start + timedelta(highs.index(max(highs))))
    return None if highs.count(max(highs)) > 1 else (goal + "Please answer as YYYY-MM-DD.", truth, solve)


KINDS = (
    *(_temp_on, _temp_ago, _compare, _rain_total, _forecast, _distance, _higher, _air_today, _worst_air, _zipcode),
    _extreme_day,
)


def _draw(rng: random.Random) -> ToolTask | None:
    today = date(2016, 1, 1) + timedelta(rng.randrange(365 * 8))
    state, kind = State(today, rng.choice(weather.cities())), rng.choice(KINDS)
    made = kind(rng, state)
    if made is None:
        return None
    goal, answer, solve = made
    return ToolTask(kind.__name__, goal, lambda: state, solve, judge_answer(answer))


@functools.cache
def tasks() -> tuple[ToolTask, ...]:
    """All tasks."""
    return collect(N_TEST + N_TRAIN, "weather", _draw)


SPEC = tool_spec(
    *(weather.TOOLBOX, "in", 10, tasks, 0.35),
    n_train=N_TRAIN,
    n_test=N_TEST,
    tolerance=0.1,  # AgentGym's server asks a live service
    probe_actions=("get_user_current_date with Action Input: {}", "get_user_current_location with Action Input: {}"),
)
