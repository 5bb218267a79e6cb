"""Which stages of a recipe run at the same time: order, room on the nodes, endpoints, failures, makespan."""

from __future__ import annotations

import pytest

from atlas_ray.recipes.scheduling import Bundle, Node, Scheduler, Stage, fits, makespan, most_jobs, urgency

CPU = (Bundle({"CPU": 1}),)
ONE_NODE = [Node({"CPU": 8, "GPU": 4})]


def stage(name: str, *needs: str, seconds: float = 1.0, takes: tuple[Bundle, ...] = CPU, **more: object) -> Stage:
    return Stage(name, "words", print, seconds, frozenset(needs), takes=takes, **more)  # type: ignore[arg-type]


def gpus(count: int, each: int = 1) -> tuple[Bundle, ...]:
    return (Bundle({"CPU": 1, "GPU": each}, count),)


def started(scheduler: Scheduler) -> list[str]:
    names = []
    while (found := scheduler.next()) is not None:
        names.append(found.name)
    return names


def test_stages_start_once_their_inputs_are_finished_the_longest_way_first() -> None:
    graph = [
        stage("data"),
        stage("short", "data", seconds=1),
        stage("long", "data", seconds=2),
        stage("behind", "short", seconds=9),
        stage("end", "long", "behind"),
    ]
    assert urgency(graph) == {"end": 1, "behind": 10, "long": 3, "short": 11, "data": 12}
    scheduler = Scheduler(graph, ONE_NODE, 9)
    assert started(scheduler) == ["data"]
    scheduler.finish("data")
    assert started(scheduler) == ["short", "long"]
    scheduler.finish("long")
    assert started(scheduler) == []
    (end,) = (s for s in graph if s.name == "end")
    assert scheduler.waits_for(end) == ["behind"]
    scheduler.finish("short")
    assert started(scheduler) == ["behind"]
    scheduler.finish("behind")
    assert started(scheduler) == ["end"]


def test_one_at_a_time_keeps_the_given_order() -> None:
    graph = [stage("a", seconds=1), stage("b", seconds=9), stage("c", seconds=5)]
    scheduler = Scheduler(graph, ONE_NODE, 1)
    order = []
    while (found := scheduler.next()) is not None:
        assert scheduler.next() is None
        order.append(found.name)
        scheduler.finish(found.name)
    assert order == ["a", "b", "c"]


def test_no_more_run_than_jobs_and_than_have_room() -> None:
    graph = [stage(f"train{i}", takes=gpus(2)) for i in range(4)] + [stage("cheap")]
    assert started(Scheduler(graph, ONE_NODE, 9)) == ["train0", "train1", "cheap"]
    assert started(Scheduler(graph, ONE_NODE, 2)) == ["train0", "train1"]


def test_what_fits_nowhere_runs_alone() -> None:
    scheduler = Scheduler([stage("huge", takes=gpus(1, each=8)), stage("small")], ONE_NODE, 9)
    assert started(scheduler) == ["huge"]
    scheduler.finish("huge")
    assert started(scheduler) == ["small"]


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (gpus(4), gpus(4), True),  # single GPUs fit wherever there are some
        (gpus(5), gpus(4), False),
        (gpus(1, each=4), gpus(1, each=4), True),  # a node each
        (gpus(1, each=4), gpus(1), True),  # the single one leaves a node
        (gpus(1, each=4), gpus(2), False),  # two single ones may lie on both nodes
        (gpus(2, each=2), gpus(2), True),  # of four places two are spoilt at most
        (gpus(3, each=2), gpus(2), False),
        (CPU, gpus(8), True),
        (gpus(4), (Bundle({"CPU": 5}, 2),), False),  # GPUs are there, CPUs may not be
    ],
)
def test_stages_run_together_only_where_they_fit_however_they_lie(
    one: tuple[Bundle, ...], other: tuple[Bundle, ...], together: bool
) -> None:
    nodes = [Node({"CPU": 8, "GPU": 4}), Node({"CPU": 8, "GPU": 4})]
    pair = [stage("one", takes=one), stage("other", takes=other)]
    assert fits(pair, nodes) is together
    assert fits(pair[::-1], nodes) is together


def test_groups_of_nodes_are_no_room_for_each_other() -> None:
    nodes = [Node({"CPU": 4, "GPU": 2}, {"group": group}) for group in ("train", "rollout")]
    labelled = [(Bundle({"GPU": 1}, 2, {"group": group}),) for group in ("train", "rollout", "train")]
    training, engines, another = (stage(str(i), takes=takes) for i, takes in enumerate(labelled))
    assert fits([training, engines], nodes)
    assert not fits([training, another], nodes)
    # without such groups any node will do
    assert fits([training, another], [Node({"GPU": 4})])


def test_an_endpoint_is_asked_by_one_stage_at_a_time() -> None:
    paid, other = frozenset({"https://a KEY"}), frozenset({"https://b KEY"})
    graph = [stage("judge", endpoints=paid), stage("play", endpoints=paid), stage("else", endpoints=other)]
    scheduler = Scheduler(graph, ONE_NODE, 9)
    assert started(scheduler) == ["judge", "else"]
    scheduler.finish("judge")
    assert started(scheduler) == ["play"]


def test_a_failure_skips_what_needs_it_and_leaves_parts_out() -> None:
    graph = [
        stage("select/a"),
        stage("select/b"),
        stage("train/a", "select/a"),
        stage("train/b", "select/b"),
        stage("evaluate", parts={"train/a": "a", "train/b": "b"}),
        stage("report", parts={"evaluate": "", "train/a": ""}),
    ]
    scheduler = Scheduler(graph, ONE_NODE, 9)
    assert started(scheduler) == ["select/a", "select/b"]
    assert [s.name for s in scheduler.fail("select/a", "no key")] == ["select/a", "train/a"]
    assert scheduler.states == {
        "select/a": "failed",
        "select/b": "running",
        "train/a": "skipped",
        "train/b": "waiting",
        "evaluate": "waiting",
        "report": "waiting",
    }
    scheduler.finish("select/b")
    assert started(scheduler) == ["train/b"]
    scheduler.finish("train/b")
    assert started(scheduler) == ["evaluate"]
    assert scheduler.left_out(graph[4]) == {"a": "select/a failed: no key"}
    assert scheduler.left_out(graph[5]) == {}
    scheduler.finish("evaluate")
    assert started(scheduler) == ["report"]


def test_what_an_earlier_run_finished_is_not_waited_for() -> None:
    assert started(Scheduler([stage("train/a", "select/a")], ONE_NODE, 9)) == ["train/a"]


def test_the_makespan_is_that_of_the_schedule() -> None:
    # two GPUs: 3 + 3 | 2 + 2 + 2, then 1
    nodes = [Node({"CPU": 8, "GPU": 2})]
    trainings = [stage(f"t{i}", "data", seconds=s, takes=gpus(1)) for i, s in enumerate([3, 3, 2, 2, 2])]
    graph = [stage("data", seconds=5), *trainings, stage("report", *(t.name for t in trainings))]
    assert makespan(graph, nodes, 9) == 5 + 7 + 1
    assert makespan(graph, nodes, 1) == 5 + 12 + 1
    assert makespan(graph, [Node({"CPU": 8, "GPU": 5})], 9) == 5 + 3 + 1


def test_a_laptop_bears_one_stage_at_a_time_and_a_cluster_several() -> None:
    laptop = [Node({"CPU": 4})]  # of two cores, which Ray counts double
    assert most_jobs(laptop, 2) == most_jobs(laptop, 4) == 1
    assert most_jobs([Node({"CPU": 64})], 64) > 1
    assert most_jobs([Node({"CPU": 2}), Node({"CPU": 2})], 2) > 1
    assert most_jobs(ONE_NODE, 2) > 1
