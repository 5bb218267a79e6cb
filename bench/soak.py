"""Evaluation for many minutes while engine actors, environment servers and nodes are killed at random.

    python -m bench soak [--minutes 30] [--every 60]

A Ray cluster of three nodes in network namespaces (`cluster/local/nodes.sh`, with tokens; root is needed). A policy
that thinks for a second plays text games; the driver and two environment servers run in the head's namespace, two
replicas on the other nodes, which reach the servers over the bridge with our server's token. Every 60 s a replica, a
server or a node is killed (SIGKILL), each as likely; a server starts again at its address, and a node joins again.

Memory is what processes hold alone (USS: what other processes on the machine share does not count), of all processes in
the namespaces by kind, every 10 s; this process, which watches, does not count. The total is taken only while all is
there: a killed process counts anew from its start, so the total tells of leaks only as far as a life of some minutes
does. Ours (driver, replicas, servers) and Ray's are told apart, and so is what lives throughout: the driver, and Ray's
processes on the head. Growth is along a straight line over the last two thirds of the time in which there are kills.

Ends with what became of the episodes: each is wanted, came back and is written down exactly once, or it ends with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atlas_ray.environments.http.client_pool import TOKEN_VARIABLE
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.registry import get
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, episode_id, run_episode
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from bench.soak_memory import LASTING, OURS, Sample, growth, measure
from bench.soak_player import THINK_SECONDS
from bench.table import Entry, parse, path_of, write_bench

ROOT = Path(__file__).parents[1]
TASKS = {"textcraft": 50, "wordle": 50}
REPLICAS, IN_FLIGHT, SERVERS, NODES = 2, 32, 2, 3
SAMPLE_SECONDS, LATE_SECONDS = 10.0, 900.0
PACE = 0.95  # of the undisturbed rate of episodes; deaths take some more
VICTIMS = ("replica", "server", "node")


@dataclass(frozen=True, slots=True)
class Accounts:
    """What became of the episodes.

    Attributes:
        wanted, recorded: How many.
        lost: Wanted ones that are not recorded.
        twice: Ids that came back, or stand in the table, more than once.
        strange: Recorded ones that nobody wanted.
    """

    wanted: int
    recorded: int
    lost: int
    twice: int
    strange: int

    @property
    def good(self) -> bool:
        """Whether every episode is there, once."""
        return not (self.lost or self.twice or self.strange)


def account(wanted: set[str], returned: Sequence[str], recorded: Sequence[str]) -> Accounts:
    """Counts ids: wanted, come back from the pool, and written down."""
    again = {key for ids in (returned, recorded) for key, n in Counter(ids).items() if n > 1}
    held = set(recorded)
    return Accounts(len(wanted), len(held), len(wanted - held), len(again), len((held | set(returned)) - wanted))


class Cluster:
    """The nodes. Use it as a context manager: nothing of it stays, nor of what was started in it.

    Attributes:
        head: The head's address on the bridge.
        environment: Of processes of the cluster.
    """

    def __init__(self, folder: Path) -> None:
        here = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        self.environment = os.environ | {
            "NODES_DIR": str(folder),
            "NODES_HEAD_CPUS": "0",  # so that no replica lies beside the driver
            "PATH": os.pathsep.join(here),
            "PYTHONPATH": str(ROOT),
            TOKEN_VARIABLE: secrets.token_hex(32),
        }
        self.head = self._name = ""

    def command(self, *words: str) -> list[str]:
        """`nodes.sh` with these words."""
        return [str(ROOT / "cluster" / "local" / "nodes.sh"), *words]

    def call(self, *words: str) -> str:
        """Runs it.

        Raises:
            SystemExit: If it fails.
        """
        done = subprocess.run(
            self.command(*words), env=self.environment, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"nodes.sh {' '.join(words)} failed")
        return done.stdout.strip()

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Begins it."""
        return subprocess.Popen(self.command(*words), env=self.environment, text=True)

    def pids(self) -> Iterator[tuple[int, int]]:
        """Node and process id of every process."""
        for node in range(NODES):
            listed = subprocess.check_output(["ip", "netns", "pids", f"{self._name}-{node}"], text=True)
            yield from ((node, int(pid)) for pid in listed.split())

    def within(self, node: int, *words: str) -> list[str]:
        """A command that becomes these words in a node's namespace, under the same process id."""
        return ["ip", "netns", "exec", f"{self._name}-{node}", *words]

    def __enter__(self) -> Cluster:
        try:
            self.call("up", str(NODES))
            self._name = self.call("exec", "ip", "netns", "identify").removesuffix("-0")
            self.head = self.call("exec", "hostname", "-I").split()[0]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # who is impatient shall not leave half of it behind
        before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM)}
        subprocess.run(self.command("down"), env=self.environment, start_new_session=True, check=False)
        for interrupt, handler in before.items():
            signal.signal(interrupt, handler)


class Server:
    """One environment server in the head's namespace."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self.port = cluster, 0
        self.start()

    def start(self) -> None:
        """Starts it, at its old address if it had one.

        Raises:
            SystemExit: If it does not start.
        """
        token = f"os.environ[{TOKEN_VARIABLE!r}]"
        call = f"serve({list(TASKS)}, {self._cluster.head!r}, {self.port}, {token})"
        words = [sys.executable, "-c", f"import os; from atlas_ray.environments.http.server import serve; {call}"]
        environment = self._cluster.environment
        self._process = subprocess.Popen(
            self._cluster.within(0, *words), env=environment, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().split()
        if not said:
            raise SystemExit("an environment server does not start")
        self.url = said[-1]
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """Ends it without a word."""
        self._process.kill()
        self._process.communicate()


class Trouble:
    """Kills and watches while the player plays.

    Attributes:
        kills: By victim.
    """

    def __init__(self, cluster: Cluster, servers: list[Server], minutes: float, every: float, seed: int) -> None:
        self._cluster, self._servers, self._rng = cluster, servers, random.Random(seed)
        self._end, self._every = 60 * minutes, every
        self._joining: subprocess.Popen[str] | None = None
        self.kills, self.samples = Counter[str](), list[Sample]()

    def watch(self, player: subprocess.Popen[str], returned: Path) -> float:
        """Until the player has ended.

        Returns:
            Seconds since it first asked for an episode.

        Raises:
            SystemExit: If it fails or does not end, or a node does not join again.
        """
        begun: float | None = None
        sample, kill = 0.0, self._every
        while player.poll() is None:
            now = time.monotonic() - begun if begun is not None else 0.0
            if begun is None and returned.exists():
                begun = time.monotonic()
            if now > self._end + LATE_SECONDS:
                raise SystemExit("the evaluation does not end")
            if self._joining and self._joining.poll() is not None:
                if self._joining.returncode:
                    raise SystemExit("a node does not join again")
                self._joining = None
            if begun is not None and now >= sample:
                self._sample(now, returned.read_text().count("\n"))
                sample = now + SAMPLE_SECONDS
            if kill <= now < self._end and self._joining is None and self._kill(now):
                kill += self._every
            try:
                player.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
        if player.returncode or begun is None:
            raise SystemExit(f"the evaluation ended with {player.returncode}")
        return time.monotonic() - begun

    def _sample(self, now: float, episodes: int) -> None:
        sizes, pids = measure(self._cluster.pids())
        there = [len(pids.get(kind, ())) for kind in ("driver", "replicas", "servers", "nodes' raylets")]
        complete = self._joining is None and there == [1, REPLICAS, SERVERS, NODES - 1]
        self.samples.append(Sample(now, sizes, complete, episodes))

    def _kill(self, now: float) -> bool:
        """Whether there was one to kill."""
        victim = self._rng.choice(VICTIMS)
        if victim == "replica":
            _, pids = measure(self._cluster.pids())
            if not pids.get("replicas"):
                return False
            os.kill(self._rng.choice(pids["replicas"]), signal.SIGKILL)
        elif victim == "server":
            server = self._rng.choice(self._servers)
            server.kill()
            server.start()
        else:
            node = str(self._rng.randrange(1, NODES))
            self._cluster.call("kill", node)
            self._joining = self._cluster.begin("start", node)
        self.kills[victim] += 1
        last = self.samples[-1]
        shares = ", ".join(f"{kind} {size:.0f}" for kind, size in sorted(last.megabytes.items()))
        print(f"{now:6.0f} s: {victim} killed; {last.episodes} episodes, {last.of(last.megabytes):.0f} MB ({shares})")
        sys.stdout.flush()
        return True

    def close(self) -> None:
        """Ends the servers, and gives up on a node that is joining."""
        for server in self._servers:
            server.kill()
        if self._joining:
            self._joining.kill()
            self._joining.wait()


@contextmanager
def playing(cluster: Cluster, values: dict[str, Any], settings: Path) -> Iterator[subprocess.Popen[str]]:
    """The evaluation, in the head's namespace."""
    settings.write_text(json.dumps(values))
    player = cluster.begin("exec", sys.executable, "-m", "bench.soak_player", str(settings))
    try:
        yield player
    finally:
        player.kill()  # the shell around it; what it runs ends with the namespace
        player.wait()


async def count_turns() -> int:
    """The novice's turns in every task once, in process and without servers."""
    turns = 0
    for env, number in TASKS.items():
        for task in get(env).tasks("test", number):
            policy, session = ScriptedPolicy("novice"), LocalSession(get(env))
            turns += (await run_episode(policy, session, EpisodeRequest(task, Sampling(), seed=0))).rounds
    return turns


def main(arguments: Sequence[str] | None = None) -> None:
    """Plays, kills, counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    args = parse(parser, arguments, minutes=1.0, every=20.0)
    if os.geteuid() or shutil.which("ip") is None:
        raise SystemExit("network namespaces want root and iproute2")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    turns = asyncio.run(count_turns())
    samples = max(1, round(PACE * 60 * args.minutes * REPLICAS * IN_FLIGHT / (turns * THINK_SECONDS)))
    wanted = {
        episode_id(task, sample, 0)
        for env, number in TASKS.items()
        for task in get(env).tasks("test", number)
        for sample in range(samples)
    }
    # short: Ray's sockets lie there
    with tempfile.TemporaryDirectory(prefix="soak", dir="/tmp") as name, Cluster(Path(name) / "n") as cluster:
        servers = [Server(cluster) for _ in range(SERVERS)]
        folder = Path(name)
        values = {
            "run": str(folder / "run"),
            "models": {"arm": "m"},
            "tasks": TASKS,
            "samples": samples,
            "engine": {"replicas": REPLICAS, "episodes_in_flight": IN_FLIGHT},
            "environments": {"servers": {env: [server.url for server in servers] for env in TASKS}},
            "ray": {"address": f"{cluster.head}:6379"},
        }
        print(f"{len(wanted)} episodes, about {args.minutes:g} minutes", flush=True)
        trouble = Trouble(cluster, servers, args.minutes, args.every, args.seed)
        with playing(cluster, values, folder / "settings.json") as player:
            try:
                seconds = trouble.watch(player, folder / "returned")
            finally:
                trouble.close()
        lines = [line.split(" ", 1) for line in (folder / "returned").read_text().splitlines()]
        arm = RunFolder(str(folder / "run")).child("arm")
        rows = [row for shard in arm.tables(EPISODES, ["id", "stop_reason"]) for row in shard.to_pylist()]
    accounts = account(wanted, [key for _, key in lines], [row["id"] for row in rows])
    causes = Counter(row["stop_reason"] for row in rows)
    tail = float(lines[-1][0]) - float(lines[-min(len(lines), REPLICAS * IN_FLIGHT)][0])
    print(f"{seconds:.0f} s, of them {tail:.0f} s for the last {REPLICAS * IN_FLIGHT}; {dict(causes)}")
    report(trouble, accounts, min(seconds, 60 * args.minutes), args.tiny)


def report(trouble: Trouble, accounts: Accounts, end: float, tiny: bool) -> None:
    """Prints what became of the episodes, and memory; writes `bench/soak.json` and `bench/soak_samples.json`.

    Raises:
        SystemExit: If an episode is not there exactly once.
    """
    print(f"{accounts}; killed: {dict(trouble.kills)}")
    entries = [Entry("episodes", [accounts.recorded], [accounts.wanted], against="all, once each", unit="episodes")]
    head = LASTING[1:]
    rows = {"total": None, "ours": OURS, "driver": LASTING[:1], "Ray's head": head, **{kind: (kind,) for kind in head}}
    for name, kinds in rows.items():
        first, last = growth(trouble.samples, end, kinds)
        print(f"memory, {name}: {100 * (last / first - 1):+.1f} % over the last two thirds, from {first:.0f} MB")
        if name in ("total", "ours", "driver"):
            before = "after a third of the time"
            entries.append(Entry(f"memory_{name}", [last], [first], against=before, unit="MB", better="lower"))
    write_bench("soak", entries, tiny)
    samples = [asdict(sample) for sample in trouble.samples]
    path_of("soak_samples", tiny).write_text(json.dumps(samples) + "\n")
    if not accounts.good:
        raise SystemExit("episodes were lost, or played twice")


if __name__ == "__main__":
    main()
