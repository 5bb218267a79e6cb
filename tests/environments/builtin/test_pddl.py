"""PDDL: the STRIPS simulator, the four domains, their texts and experts."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from atlas_ray.environments.builtin.pddl import texts
from atlas_ray.environments.builtin.pddl.problem import Problem
from atlas_ray.environments.builtin.pddl.simulator import DOMAINS, LONGEST, Pddl, plan_length, tasks
from atlas_ray.environments.builtin.pddl.strips import load_domain, parse_domain
from atlas_ray.environments.registry import get

SWITCH = """
(define (domain switches) ; a comment
  (:requirements :strips :typing)
  (:types lamp - thing room)
  (:constants hall - room)
  (:predicates (in ?l - lamp ?r - room) (lit ?l - lamp))
  (:action light :parameters (?l - lamp ?r - room) :precondition (and (in ?l ?r)) :effect (lit ?l))
  (:action douse :parameters (?l - thing) :precondition (lit ?l) :effect (not (lit ?l))))
"""


def test_a_domain_is_read_and_grounded() -> None:
    domain = parse_domain(SWITCH)
    initial = frozenset({("in", "a", "hall"), ("in", "b", "attic")})
    actions = domain.ground({"a": "lamp", "b": "lamp", "attic": "room"}, initial)
    # `in` never changes, so a lamp is lit only where it is; a lamp is a thing
    assert set(actions) == {("light", "a", "hall"), ("light", "b", "attic"), ("douse", "a"), ("douse", "b")}
    light, douse = actions["light", "a", "hall"], actions["douse", "a"]
    assert light.is_possible(initial)
    assert not douse.is_possible(initial)
    assert light.after(initial) == initial | {("lit", "a")}
    assert douse.after(light.after(initial)) == initial


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "parenthesis"),
        ("(define (domain x)", "not closed"),
        ("(define (domain x)) (more)", "one"),
        ("(define (domain x) (:requirements :adl))", "requirements"),
        ("(define (domain x) (:axiom))", "not supported"),
        ("(define (domain x) (:action a :precondition (not (p)) :effect (q)))", "negative"),
        ("(define (domain x) (:action a :effect (forall (?x) (q ?x))))", "conjunctions"),
        ("(define (domain x) (:action a :cost 3 :effect (q)))", "not supported"),
    ],
)
def test_other_than_strips_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_domain(text)


def test_the_four_domains() -> None:
    counts = {name: len(load_domain(name).schemas) for name in DOMAINS}
    assert counts == {"gripper": 3, "blocksworld": 4, "barman": 12, "tyreworld": 13}


def test_test_tasks_are_agentboards_sixty_and_within_reach() -> None:
    spec = get("pddl")
    test = [tasks()[spec.index(task.item_id)] for task in spec.tasks("test")]
    assert Counter(problem.domain for problem in test) == {
        "gripper": 20,
        "barman": 20,
        "blocksworld": 10,
        "tyreworld": 10,
    }
    assert max(map(plan_length, tasks())) <= LONGEST < spec.max_rounds
    assert len(tasks()) == spec.n_test + spec.n_train


def first(domain: str) -> tuple[Pddl, str]:
    simulator = Pddl()
    index = next(i for i, problem in enumerate(tasks()) if problem.domain == domain)
    return simulator, simulator.reset(index).observation


def test_blocksworld_observes_the_whole_state_and_barman_what_changed() -> None:
    simulator, opening = first("blocksworld")
    goal, state = opening.splitlines()[-2:]
    assert goal.startswith("The goal is to satisfy the following conditions: B")
    assert "Your arm is empty." in state
    assert simulator.step("look around").observation == state
    assert simulator.step("dance").observation == texts.INVALID
    listed = simulator.step("check valid actions").observation
    assert listed.startswith("Valid actions are: ")
    assert listed.endswith("check valid actions, look around")
    simulator, opening = first("barman")
    assert simulator.step("Grasp the shot1 with the left hand.").observation == texts.INVALID  # the hand comes first
    assert simulator.step("left grasp shot1").observation == "Your left hand is holding shot1."
    assert "Shot1 is on the table." not in simulator.step("look around").observation


def test_progress_is_the_best_share_so_far() -> None:
    state = frozenset({("at", "ball1", "rooma"), ("at", "ball2", "rooma"), ("at-robby", "rooma"), ("free", "left")})
    objects = {"rooma": "room", "roomb": "room", "ball1": "ball", "ball2": "ball", "left": "arm"}
    goal = (("at", "ball1", "roomb"), ("at", "ball2", "roomb"))
    simulator = Pddl()
    simulator.reset(0)
    simulator._problem = Problem("gripper", objects, state, goal)
    simulator._state, simulator._progress = state, 0.0

    def progress(*actions: str) -> float:
        return [simulator.step(action).reward for action in actions][-1]

    assert progress("pick ball1 rooma left", "move rooma roomb") == 0
    assert progress("drop ball1 roomb left") == 0.5
    assert progress("pick ball1 roomb left", "move roomb rooma", "drop ball1 rooma left") == 0.5
    last = simulator.step("pick ball2 rooma left")
    assert (last.reward, last.progress, last.done) == (0.5, 0.5, False)
    progress(
        "move rooma roomb", "drop ball2 roomb left", "move roomb rooma", "pick ball1 rooma left", "move rooma roomb"
    )
    last = simulator.step("Drop ball1 at roomb with arm left.")
    assert (last.reward, last.progress, last.done) == (1.0, 1.0, True)
    assert last.observation.endswith(texts.SATISFIED)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_expert_recovers_from_wrong_states(domain: str) -> None:
    """After some random actions it still arrives, or says that it cannot (a spoilt shaker)."""
    schemas, module = load_domain(domain).schemas, DOMAINS[domain]
    arrived = spoilt = 0
    for seed, problem in enumerate([p for p in tasks() if p.domain == domain][:30]):
        rng, state = random.Random(seed), problem.initial
        actions = load_domain(domain).ground(problem.objects, problem.initial)
        for _ in range(8):
            possible = [action for action in actions.values() if action.is_possible(state)]
            state = rng.choice(possible).after(state)
        for _ in range(80):
            if problem.satisfied(state) == 1:
                arrived += 1
                break
            key = module.advise(state, problem).key
            if key[0] not in schemas:
                spoilt += 1
                break
            assert actions[key].is_possible(state), (key, sorted(state))
            state = actions[key].after(state)
    assert arrived + spoilt == 30
    assert spoilt <= (6 if domain == "barman" else 0)
