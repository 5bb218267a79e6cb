"""Jobs: where their drivers run, and how they are followed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientConnectionError

from atlas_ray.cluster import submit as module
from atlas_ray.cluster.submit import driver_options, last_error, submit
from atlas_ray.errors import AtlasError, UserError


@dataclass(frozen=True)
class Node:
    node_id: str
    is_head_node: bool = False
    resources_total: dict[str, float] = field(default_factory=lambda: {"CPU": 8.0, "memory": 1e9})
    labels: dict[str, str] = field(default_factory=dict)


HEAD, WORKER = Node("aa", is_head_node=True), Node("bb")
GROUP = {"ray.io/node-group": "environment"}
EMPTY_HEAD = Node("aa", is_head_node=True, resources_total={"memory": 1e9}, labels={"ray.io/node-group": "head"})
OFF_HEAD = {"entrypoint_label_selector": {"ray.io/node-id": "!aa"}}


@pytest.mark.parametrize(
    ("nodes", "cpus", "options"),
    [
        ([HEAD], None, {}),  # Ray puts it on the head, beside everything else
        ([HEAD], 2, {"entrypoint_num_cpus": 2}),
        ([HEAD, WORKER], None, OFF_HEAD),
        ([HEAD, WORKER], 1, {"entrypoint_num_cpus": 1, **OFF_HEAD}),
        ([EMPTY_HEAD, Node("bb", labels=GROUP)], None, {"entrypoint_num_cpus": 1, **OFF_HEAD}),
        ([EMPTY_HEAD], None, {"entrypoint_num_cpus": 1, **OFF_HEAD}),  # a node is started for it
        ([Node("aa", is_head_node=True, labels=GROUP)], None, {"entrypoint_num_cpus": 1}),
        ([], None, {}),
    ],
)
def test_the_driver_is_light_and_off_the_head(nodes: list[Node], cpus: float | None, options: dict[str, Any]) -> None:
    assert driver_options(nodes, cpus) == options


@pytest.mark.parametrize("nodes", [[HEAD], [HEAD, WORKER], [EMPTY_HEAD]])
def test_a_driver_that_must_outlive_other_nodes_stays_on_the_head(nodes: list[Node]) -> None:
    on_head = {"entrypoint_label_selector": {"ray.io/node-id": "aa"}}
    assert driver_options(nodes, on_head=True) == on_head
    assert driver_options(nodes, 1, on_head=True) == {"entrypoint_num_cpus": 1, **on_head}


def test_ray_takes_the_selector() -> None:
    from ray._private.label_utils import validate_label_selector

    name = "0123456789abcdef" * 3 + "01234567"
    assert validate_label_selector({"ray.io/node-id": f"!{name}"}) is None


class Client:
    """Ray's, with a job that goes through the given states, and a log in pieces; None: the connection breaks."""

    def __init__(self, states: Iterable[str], logs: Iterable[list[str | None]] = (), message: str = "") -> None:
        self._states, self._logs, self._message = iter(states), iter(logs), message
        self.stopped: list[str] = []

    def get_job_status(self, _: str) -> Any:
        from ray.job_submission import JobStatus

        return JobStatus[next(self._states)]

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(status=self.get_job_status(job), driver_exit_code=2, message=self._message)

    def get_address(self) -> str:
        return "http://head:8265"

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for piece in next(self._logs):
            if piece is None:
                raise ClientConnectionError
            yield piece


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass by sleeping alone."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    return now


def starting(nodes: list[Node], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[Client], None]:
    monkeypatch.setattr(module, "_nodes", lambda _: nodes)
    return lambda client: module._await_start(client, "job1", asked)  # type: ignore[arg-type]


def test_a_driver_without_a_place_ends_within_a_minute(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(["PENDING"] * 99)
    with pytest.raises(UserError) as told:
        starting([HEAD, WORKER], {"entrypoint_num_cpus": 16, **OFF_HEAD}, monkeypatch)(client)
    assert clock == [60.0]
    assert client.stopped == ["job1"]
    assert str(told.value) == (
        "job job1 has not started within 60 s: its driver asks for 16 CPU on a node besides the head, and the cluster"
        " has 2 nodes of 8 CPU, some of it in use; it is told to stop\n"
        "  wait for other jobs, add nodes, or lower --driver-cpus; then submit it again"
    )


def test_an_autoscaler_is_waited_for_and_that_is_said(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client(["PENDING"] * 300 + ["RUNNING"])
    starting([EMPTY_HEAD], {"entrypoint_num_cpus": 1, **OFF_HEAD}, monkeypatch)(client)
    assert clock == [300.0]
    assert client.stopped == []
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("1 CPU on a node besides the head; the cluster has 1 node of nothing") == 1
    assert "its autoscaler is waited for" in said


@pytest.mark.usefixtures("clock")
def test_a_log_that_breaks_off_is_taken_up_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    logs = [["one\n", "two\n", None], ["one\ntwo\nthr", "ee\n", "four\n"], []]
    module._follow(Client(["RUNNING", "RUNNING", "RUNNING", "SUCCEEDED"], logs), "job1")  # type: ignore[arg-type]
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"


@pytest.mark.usefixtures("clock")
def test_lines_of_units_are_shown_where_they_are_asked_for(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    log = ['evaluate: 9 units\n{"ti', 'me": "2026"}\n{"other": 1}\nend']
    for shown in (False, True):
        with caplog.at_level("INFO" if shown else "WARNING", "atlas_ray.units"):
            module._follow(Client(["RUNNING", "SUCCEEDED"], [[*log]]), "job1")  # type: ignore[arg-type]
        unit = ['{"time": "2026"}'] * shown
        assert capsys.readouterr().out.split("\n") == ["evaluate: 9 units", *unit, '{"other": 1}', "end"]


@pytest.mark.usefixtures("clock")
def test_a_failed_job_ends_with_what_the_command_said_last() -> None:
    client = Client(["RUNNING", "FAILED"], [[]], "failed with exit code 2\natlas: unknown key `x`\n")
    with pytest.raises(UserError, match="job job1 ended as FAILED with exit code 2: unknown key `x`"):
        module._follow(client, "job1")  # type: ignore[arg-type]


@pytest.mark.usefixtures("clock")
def test_a_cluster_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client([])

    def gone(_: str) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(client, "get_job_info", gone)
    with pytest.raises(AtlasError, match=r"http://head:8265 does not answer any more: refused\n.*ray job logs -f job1"):
        module._follow(client, "job1")  # type: ignore[arg-type]


def test_credentials_among_a_jobs_arguments_are_not_sent() -> None:
    with pytest.raises(UserError, match="set them in the environment") as told:
        submit("select", ["--set=run=s3://AKIA:hush@bucket/x"], "http://127.0.0.1:1", wait=True)
    assert "hush" not in str(told.value)


@pytest.fixture
def guarded() -> Iterator[str]:
    """A dashboard that lets in who sends `right`; it answers as Ray's does."""

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.headers.get("Authorization")
            self.send_response(200 if sent == "Bearer right" else 403 if sent else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Guard)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("token", "says"), [(None, "none was sent"), ("wrong", "the one that was sent is wrong")])
def test_a_cluster_refuses_a_missing_and_a_wrong_token(
    token: str | None, says: str, guarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._raylet import AuthenticationTokenLoader

    monkeypatch.setenv("RAY_AUTH_MODE", "token" if token else "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    AuthenticationTokenLoader.instance().reset_cache()
    with pytest.raises(UserError, match=f"asks for a token: {says}\n.*RAY_AUTH_MODE=token"):
        submit("train", [], guarded, wait=False)
    monkeypatch.undo()
    AuthenticationTokenLoader.instance().reset_cache()


def test_a_job_for_a_cluster_that_does_not_answer_is_refused(closed_port: int) -> None:
    with pytest.raises(UserError, match=f"no cluster answers at http://127.0.0.1:{closed_port}"):
        submit("train", [], f"http://127.0.0.1:{closed_port}", wait=False)


def test_the_last_error_of_a_job_is_the_commands_own() -> None:
    told = "failed with exit code 2, last available logs:\natlas: unknown key `x`\n  mend it\n"
    assert last_error(told) == "unknown key `x`"
    assert last_error("worker lost\n") == "worker lost"
    assert last_error("") == "no message"
