"""Environment servers of one machine: started, awaited, kept alive, and ended with all that they started.

Flows in: which servers, each from an environment of its own, for AgentGym's want different Pythons; flows out: a YAML
file with `environments.servers`, which recipes include, and a log a server. A server that dies is started again at its
address. None outlives the process that started it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from urllib.parse import urlsplit

import yaml
from pydantic import Field, model_validator

from atlas_ray.cluster.processes import end_guarded, free_port, start_guarded
from atlas_ray.config import FrozenConfig
from atlas_ray.environments import registry
from atlas_ray.environments.http.client_pool import TOKEN_VARIABLE
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.runs.progress import console
from atlas_ray.text import printable

_SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_LOOK_SECONDS = 0.25
_ANSWER_SECONDS = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds before a server that died is started again
_STEADY_SECONDS = 300.0  # after which it is forgotten that it had died


class ServerConfig(FrozenConfig):
    """One kind of server, and how many processes of it."""

    processes: int = Field(1, ge=1, description="that share its episodes; one plays a few hundred steps a second")
    prefix: str | None = Field(
        None, description="folder of the venv or conda environment in which it is installed; None: found on PATH"
    )
    command: list[str] | None = Field(
        None, description="how it is started, with {host} and {port}; None: NAME --host {host} --port {port}"
    )
    built_in: bool = Field(False, description="this project's own server instead of AgentGym's")
    folder: str | None = Field(None, description="in which it runs")
    envs: list[str] | None = Field(None, description="environments that it serves; None: as AgentGym's of its name")
    variables: list[str] = Field([], description="names of environment variables that hold its keys; others are kept")

    @model_validator(mode="after")
    def _one_way(self) -> ServerConfig:
        if self.built_in and (self.command is not None or self.prefix is not None):
            raise ValueError("built_in has neither `command` nor `prefix`")
        return self


class LaunchConfig(FrozenConfig):
    """The environment servers of one machine."""

    servers: dict[str, ServerConfig] = Field(
        min_length=1, description="by AgentGym's command (lmrlgym, textcraft, ...), or any name with `envs`"
    )
    host: str = Field("127.0.0.1", description="address at which they listen, and are found by others")
    start_s: float = Field(300.0, gt=0, description="that a server may take until it answers")
    out: str = Field("servers.yaml", description="file of addresses; its ports are used again where they are free")
    logs: str = Field("server-logs", description="folder of a log a server")


class Server:
    """One process, as the launcher sees it.

    Attributes:
        url: Where it answers; the same after a restart.
        ready: Whether it has answered since it was started.
    """

    def __init__(self, name: str, index: int, config: ServerConfig, launch: LaunchConfig, port: int) -> None:
        self.name, self.config, self._launch, self.port = f"{name}-{index}", config, launch, port
        self.envs = _environments_of(name, config)
        self.log = Path(launch.logs) / f"{self.name}.log"
        self.ready, self.deaths, self.since = False, 0, 0.0
        self._command = _command_of(name, config, self.envs)
        self._guard: Popen[bytes] | None = None

    @property
    def url(self) -> str:
        host = self._launch.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def start(self) -> None:
        """Starts it; its log goes on."""
        fill = {"{host}": self._launch.host, "{port}": str(self.port)}
        command = [re.sub(r"\{host\}|\{port\}", lambda m: fill[m[0]], part) for part in self._command]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._guard = start_guarded(command, log, _environment_for(self.config), _expanded(self.config.folder))
        self.ready, self.since = False, time.monotonic()

    def failure(self) -> str | None:
        """Why it is of no use, or None; whether it answers is noted."""
        code = None if self._guard is None else self._guard.poll()
        if code is not None:
            return f"ended with code {code}" + (" before it answered" if not self.ready else "")
        self.ready = self.ready or self._answers()
        late = not self.ready and time.monotonic() - self.since > self._launch.start_s
        return f"did not answer within {self._launch.start_s:.0f} s" if late else None

    def _answers(self) -> bool:
        """Whether it answers over HTTP; AgentGym's greet at `/`."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"{self.url}/", timeout=_ANSWER_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False

    def end(self) -> None:
        """Ends it, with all that it started."""
        if self._guard is not None:
            end_guarded(self._guard)

    def end_of_log(self) -> str:
        """The end of its log, in one line."""
        text = self.log.read_bytes()[-4000:].decode(errors="replace") if self.log.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        return printable(" | ".join(lines[-3:])[-600:]) or "it said nothing"


def launch(config: LaunchConfig, stop: threading.Event) -> None:
    """Starts all servers, writes their addresses once all answer, and keeps them alive until `stop` is set.

    Raises:
        UserError: If a server's name, environment or address cannot be used.
        AtlasError: If one does not start: all are ended then, and nothing is written.
    """
    servers = _servers(config)
    try:
        for server in servers:
            server.start()
            console.print(f"{server.name} starts at {server.url}; log: {server.log}")
        if _await_all(servers, stop):
            _write(config, servers)
            console.print(f"{len(servers)} server(s) answer; addresses: {config.out}")
            _keep_alive(servers, stop)
    finally:
        console.print(f"ending {len(servers)} server(s)")
        with ThreadPoolExecutor(len(servers)) as enders:  # each may take a while
            list(enders.map(Server.end, servers))


def _servers(config: LaunchConfig) -> list[Server]:
    _check_host(config.host)
    known, taken, found = _known_ports(config), set[int](), list[Server]()
    for name, each in config.servers.items():
        envs = _environments_of(name, each)
        before = known.get(envs[0], [])
        for index in range(each.processes):
            port = free_port(config.host, before[index] if index < len(before) else 0)
            while port in taken:
                port = free_port(config.host)
            taken.add(port)
            found.append(Server(name, index, each, config, port))
    return found


def _expanded(folder: str | None) -> str | None:
    """A path with `~` spelt out, from the root: the server may run elsewhere."""
    return None if folder is None else str(Path(folder).expanduser().resolve())


def _check_host(host: str) -> None:
    """Refuses an address that others could not be told."""
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            raise UserError(
                f"{host} is no address to be found at", "name the address by which others reach this machine"
            )
        if not ipaddress.ip_address(host).is_loopback:
            console.print(
                f"AgentGym's servers ask for no key: whoever reaches {host} can use them. Close it to strangers.",
                style="yellow",
            )


def servers_of_agentgym() -> dict[str, list[str]]:
    """AgentGym's servers by the command that starts them: the environments that each serves."""
    found: dict[str, list[str]] = {}
    for spec in registry.ENVIRONMENTS.values():
        if spec.agentgym is not None:
            found.setdefault(spec.agentgym, []).append(spec.name)
    return found


def _environments_of(name: str, config: ServerConfig) -> list[str]:
    if config.envs:
        return [registry.get(env).name for env in config.envs]
    servers = servers_of_agentgym()
    if name in servers:
        return servers[name]
    if config.built_in:
        return [registry.get(name).name]
    raise UserError(
        f"AgentGym has no server called {name!r}, and its `envs` are not named",
        f"name what it serves in servers.{name}.envs; AgentGym's: {', '.join(servers)}",
    )


def _command_of(name: str, config: ServerConfig, envs: Sequence[str]) -> list[str]:
    listen = ["--host", "{host}", "--port", "{port}"]
    if config.built_in:
        return [sys.executable, "-c", "from atlas_ray.cli.main import main; main()", "serve", *envs, *listen]
    if config.command is not None:
        return config.command
    if config.prefix is None:
        return [name, *listen]
    program = Path(_expanded(config.prefix) or "") / "bin" / name
    if not program.is_file():
        raise UserError(
            f"{program} does not exist", f"install AgentGym's {name} there, or correct servers.{name}.prefix"
        )
    return [str(program), *listen]


def _environment_for(config: ServerConfig) -> dict[str, str]:
    """This process's environment without its secrets: AgentGym's tool servers evaluate what models write."""
    named = {*config.variables, *([TOKEN_VARIABLE] if config.built_in else [])}
    kept = {key: value for key, value in os.environ.items() if key in named or not _SECRET.search(key)}
    if config.built_in:
        own = str(Path(__file__).parents[3])
        kept["PYTHONPATH"] = os.pathsep.join([own, *filter(None, [kept.get("PYTHONPATH")])])
    elif config.prefix is not None:
        kept["PATH"] = f"{_expanded(config.prefix)}/bin{os.pathsep}{kept.get('PATH', '')}"
    return kept


def _known_ports(config: LaunchConfig) -> dict[str, list[int]]:
    """Ports that an earlier launch has written, by environment: a run that goes on finds its servers again."""
    try:
        found = yaml.safe_load(Path(config.out).read_text())["environments"]["servers"]
        return {env: [urlsplit(url).port or 0 for url in urls] for env, urls in found.items()}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _await_all(servers: Sequence[Server], stop: threading.Event) -> bool:
    """Whether all answer; not so once `stop` is set."""
    while waiting := [server for server in servers if not server.ready]:
        for server in waiting:
            if why := server.failure():
                raise AtlasError(
                    f"the server {server.name} {why}: {server.end_of_log()}",
                    f"its log is {server.log}; start_s gives it time",
                )
        if stop.wait(_LOOK_SECONDS):
            return False
    return True


def _keep_alive(servers: Sequence[Server], stop: threading.Event) -> None:
    due: dict[str, float] = {}
    while not stop.wait(_LOOK_SECONDS):
        for server in servers:
            if server.name in due:
                if time.monotonic() >= due[server.name]:
                    del due[server.name]
                    server.start()
                continue
            answered, why = server.ready, server.failure()
            if why is None:
                if server.ready > answered:
                    console.print(f"{server.name} answers again")
                continue
            if answered and time.monotonic() - server.since > _STEADY_SECONDS:
                server.deaths = 0
            pause = min(_FIRST_PAUSE * 2**server.deaths, _LONGEST_PAUSE)
            server.deaths += 1
            server.end()
            console.print(
                f"{server.name} {why} and is started again in {pause:.0f} s; its log ends: {server.end_of_log()}",
                style="yellow",
                markup=False,
            )
            due[server.name] = time.monotonic() + pause


def _write(config: LaunchConfig, servers: Sequence[Server]) -> None:
    """The file appears whole or not at all."""
    found: dict[str, list[str]] = {}
    for server in servers:
        for env in server.envs:
            found.setdefault(env, []).append(server.url)
    text = "# Written by `atlas environments start`: its servers live as long as that command.\n"
    text += yaml.safe_dump({"environments": {"servers": found}}, sort_keys=False)
    target = Path(config.out)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(target)
