"""How long rollouts and training take on how many GPUs, what that costs, and what limits them. Plain Python.

Flows in: costs as measured on one engine, and a load; flows out: a `Prediction`. Rollouts are simulated event by event
for one engine, to which everything shared (driver, coordinator, servers, storage) is as slow as engines share it;
after some waves of episodes the steady rate is carried on. Training is arithmetic.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from atlas_ray.rollouts.coordinator import MOST_ENGINES

_WAVES = 4  # of a replica's places that are simulated before the steady rate is carried on
_BUSY = 0.85  # share of the time from which a station counts as the limit


@dataclass(frozen=True, slots=True)
class Costs:
    """What things take, in seconds: round figures for 8 B parameters on A100s; CPU as `make bench-scaling` measures it.

    Attributes:
        step: One decoding step of the engine, whatever its batch.
        step_each: What every sequence in the batch adds to it.
        prefill: One prompt token that the prefix cache has not.
        actor: CPU of a replica's event loop, a turn.
        coordinator: CPU of the process that coordinates an engine, an episode.
        environment: Latency of an environment's step.
        environment_cpu: CPU of a step on the servers' cores; 0 where worlds are built in (they count under `actor`).
        write: An episode's record to the storage.
        start: Until engines are loaded.
        driver: CPU of the driver beside several coordinators, an episode.
    """

    step: float = 0.018
    step_each: float = 0.00026
    prefill: float = 1 / 20_000
    actor: float = 0.00045
    coordinator: float = 0.0022
    environment: float = 0.02
    environment_cpu: float = 0.005
    write: float = 0.00002
    start: float = 120.0
    driver: float = 0.00018


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be played.

    Attributes:
        episodes: How many.
        turns, reply, observation, opening: Of an episode, in turns and tokens; means.
        spread: Turns and replies are drawn evenly from (1 - spread) to (1 + spread) times their mean.
    """

    episodes: int
    turns: float = 10.0
    reply: float = 50.0
    observation: float = 80.0
    opening: float = 600.0
    spread: float = 0.5


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where it is played.

    Attributes:
        engines: Replicas.
        gpus_each: GPUs of one.
        in_flight: Episodes that a replica plays at once.
        sequences: That its engine decodes at once.
        coordinators: Processes that coordinate them; 0: one for every 32 engines, as `engine.coordinators` has it.
        server_cores: Cores of all environment servers together.
        gpu_hour, core_hour: Dollars.
    """

    engines: int
    gpus_each: int = 1
    in_flight: int = 256
    sequences: int = 256
    server_cores: int = 16
    gpu_hour: float = 2.0
    core_hour: float = 0.05
    coordinators: int = 0

    def dollars(self, seconds: float) -> float:
        """What it costs for so long."""
        return seconds / 3600 * (self.engines * self.gpus_each * self.gpu_hour + self.server_cores * self.core_hour)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What comes out.

    Attributes:
        seconds: From the start to the last episode, engines' start included.
        turns_per_second: Of all engines, start left out.
        busy: Share of the time that each station worked; the engine's: of what it decodes with a full batch.
        limit: The station that limits. Where none is busy: `start` of the engines, the `tail` where the last episodes
            play in small batches, or `latency` (more episodes in flight would help).
    """

    seconds: float
    dollars: float
    turns_per_second: float
    busy: dict[str, float]
    limit: str


@dataclass
class _Line:
    """A server with a queue: one after another."""

    service: float
    free: float = 0.0
    busy: float = 0.0

    def through(self, now: float) -> float:
        """When somebody who comes now is done."""
        self.free = max(now, self.free) + self.service
        self.busy += self.service
        return self.free


@dataclass
class _Engine:
    """Continuous batching: all sequences advance a token a step; reading a prompt holds all of them up."""

    costs: Costs
    sequences: int
    steps: float = 0.0  # made so far, a fractional clock
    at: float = 0.0
    held: float = 0.0  # seconds of prefill that come first
    busy: float = 0.0
    running: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    waiting: deque[tuple[float, float, int, Callable[[float], None]]] = field(default_factory=deque)

    @property
    def _step(self) -> float:
        return self.costs.step + self.costs.step_each * len(self.running)

    def advance(self, now: float) -> None:
        """Decodes until now."""
        passed, self.at = now - self.at, now
        if not self.running:
            return
        read = min(passed, self.held)
        self.held -= read
        full = self.sequences / (self.costs.step + self.costs.step_each * self.sequences)
        self.busy += read + (passed - read) * len(self.running) / self._step / full
        self.steps += (passed - read) / self._step

    def ask(self, now: float, read: float, write: float, number: int, then: Callable[[float], None]) -> None:
        """A request: tokens to read and to write."""
        self.advance(now)
        self.waiting.append((read, write, number, then))
        self._admit()

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.sequences:
            read, write, number, then = self.waiting.popleft()
            self.held += read * self.costs.prefill
            heapq.heappush(self.running, (self.steps + write, number, then))

    def next_end(self) -> float:
        """When the next reply is whole."""
        if not self.running:
            return math.inf
        return self.at + self.held + max(0.0, self.running[0][0] - self.steps) * self._step

    def end(self, now: float) -> Callable[[float], None]:
        """Takes the reply that is whole now."""
        self.advance(now)
        _, _, then = heapq.heappop(self.running)
        self._admit()
        return then


class _Play:
    """One replica's share of the episodes, event by event."""

    def __init__(self, costs: Costs, load: Load, cluster: Cluster, episodes: int) -> None:
        self.costs, self.load, self.rng = costs, load, random.Random(0)
        self.engine = _Engine(costs, cluster.sequences)
        # To one of n engines, what all share is n times slower.
        n = cluster.engines
        coordinators = cluster.coordinators or math.ceil(n / MOST_ENGINES)
        self.actor = _Line(costs.actor)
        self.coordinator = _Line(costs.coordinator * n / coordinators)
        self.driver = _Line(costs.driver * n if coordinators > 1 else 0.0)
        self.servers = _Line(costs.environment_cpu * n / max(1, cluster.server_cores))
        self.storage = _Line(costs.write * n)
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.numbers, self.left, self.turns = 0, episodes, 0
        self.ends: list[float] = []

    def at(self, when: float, then: Callable[[float], None]) -> None:
        self.numbers += 1
        heapq.heappush(self.events, (when, self.numbers, then))

    def drawn(self, mean: float) -> float:
        return mean * self.rng.uniform(1 - self.load.spread, 1 + self.load.spread)

    def begin(self, now: float) -> None:
        """The next episode takes a free place."""
        if not self.left:
            return
        self.left -= 1
        turns = max(1, round(self.drawn(self.load.turns)))
        self.at(self.coordinator.through(self.driver.through(now)), lambda t: self.turn(t, turns, self.load.opening))

    def turn(self, now: float, left: int, read: float) -> None:
        """Engine, event loop, environment; then the next turn, or the record."""
        self.turns += 1
        self.numbers += 1
        self.engine.ask(now, read, self.drawn(self.load.reply), self.numbers, lambda t: self.replied(t, left))

    def replied(self, now: float, left: int) -> None:
        at = self.servers.through(self.actor.through(now)) + self.costs.environment
        self.at(at, (lambda t: self.turn(t, left - 1, self.load.observation)) if left > 1 else self.ended)

    def ended(self, now: float) -> None:
        self.ends.append(self.storage.through(now))
        self.begin(now)

    def run(self, places: int) -> None:
        """Plays all."""
        for _ in range(places):
            self.at(0.0, self.begin)
        while True:
            reply = self.engine.next_end()
            if self.events and self.events[0][0] <= reply:
                now, _, then = heapq.heappop(self.events)
            elif reply < math.inf:
                now = reply
                then = self.engine.end(now)
            else:
                return
            then(now)

    def busy(self) -> dict[str, float]:
        """Share of the time that each station worked."""
        whole = max(self.ends)
        lines = {name: getattr(self, name) for name in ("driver", "coordinator", "actor", "servers", "storage")}
        return {"engine": self.engine.busy / whole} | {n: min(1.0, line.busy / whole) for n, line in lines.items()}


def rollouts(costs: Costs, load: Load, cluster: Cluster) -> Prediction:
    """Time and cost of episodes: values and evaluation alike."""
    own = math.ceil(load.episodes / cluster.engines)
    simulated = min(own, _WAVES * cluster.in_flight)
    play = _Play(costs, load, cluster, simulated)
    play.run(min(cluster.in_flight, simulated))
    ends = sorted(play.ends)
    first, last = len(ends) // 2, len(ends) * 3 // 4
    rest = (own - simulated) * (ends[last] - ends[first]) / max(1, last - first)
    played = ends[-1] + rest
    seconds = costs.start + played
    busy = play.busy()
    limit = max(busy, key=lambda name: busy[name])
    if busy[limit] < _BUSY:
        limit = "start" if costs.start > played else "tail" if own < 2 * cluster.in_flight else "latency"
    rate = play.turns * own / simulated / played * cluster.engines
    return Prediction(seconds, cluster.dollars(seconds), rate, busy, limit)


def training(
    tokens: float,
    gpus: int,
    *,
    parameters: float = 8.03e9,
    flops: float = 312e12,
    mfu: float = 0.45,
    batch_tokens: float = 128 * 1000,
    sequence_tokens: float = 1000,
    bandwidth: float = 25e9,
    gpu_hour: float = 2.0,
) -> Prediction:
    """Fully sharded training: the slower of arithmetic and of weights that travel.

    Args:
        tokens: Through training, epochs counted.
        gpus: Workers.
        parameters: Of the model.
        flops: Peak of one GPU, a second.
        mfu: Share of it that arithmetic reaches.
        batch_tokens: Of a step of the optimizer, all workers together.
        sequence_tokens: Of a trajectory; a worker takes whole ones.
        bandwidth: Bytes a second that reach a GPU: gathered weights twice and gradients once a step, 2 bytes each.
        gpu_hour: Dollars.
    """
    steps = math.ceil(tokens / batch_tokens)
    most = math.ceil(batch_tokens / sequence_tokens / gpus)  # sequences of the busiest worker
    compute = 6 * parameters * most * sequence_tokens / (flops * mfu)
    travel = 3 * 2 * parameters * (gpus - 1) / gpus / bandwidth
    seconds = steps * max(compute, travel)
    limit = "GPUs" if compute >= travel else "network"
    if gpus > batch_tokens / sequence_tokens:
        limit = "batch"
    busy = {"GPUs": min(1.0, 6 * parameters * tokens / (flops * mfu * gpus * seconds))}
    return Prediction(seconds, seconds / 3600 * gpus * gpu_hour, 0.0, busy, limit)
