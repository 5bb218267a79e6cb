"""What the LLM selector's model may answer, and what is read from it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.selection.llm.answer import Judgement, Problem, parse_answer
from atlas_ray.types import Category

PLAN, SEEN, ACTION, SELF = Category

GOOD = (
    "1. The high-level plan is: [walk, then win]\n2. The critical steps are: conversation[7, 2]\n"
    "3. Reason: [Step 7 (Critical Action): it wins. Step 2 (Plan Creation): it splits the way.]"
)


@pytest.mark.parametrize(
    ("answer", "steps"),
    [
        (GOOD, (7, 2)),
        ("The critical steps are: conversation[3]", (3,)),
        ("the critical steps are: conversation [1, 2 ,3]", (1, 2, 3)),
        ("**The critical steps are:** conversation[3-5]", (3, 4, 5)),
        ("2. **The critical steps are**: `conversation[3\u20135, 9]`", (3, 4, 5, 9)),
        ("The critical steps are: conversation[3 to 5]", (3, 4, 5)),
        ("The critical steps are: conversation[Step 3, Step 7]", (3, 7)),
        ("The critical steps are: conversation[[Step 3], [Step 7]]", (3, 7)),
        ("The critical steps are: conversation[3], conversation[7]", (3, 7)),
        ("The critical steps are: conversation[4, 4, 2, 4]", (4, 2)),
        ("The critical steps are: [3, 7].", (3, 7)),
        ("The critical steps are: 3, 7 and 9.", (3, 7, 9)),
        ("The critical steps are: steps 3 and 7", (3, 7)),
        ("The critical step is: step 4", (4,)),
        ("The critical steps are:\n- Step 3 (Plan Creation)\n- **Step 7**: take 2 apples after step 6", (3, 7)),
        ("The critical steps are:\n1. Step 3\n2. Step 7\n\nReason: step 9 is not", (3, 7)),
        ("The critical steps are: conversation[Step 3: plan the way, Step 7: open it]", (3, 7)),
        ("<think>The critical steps are: conversation[1]</think>\nThe critical steps are: conversation[2]", (2,)),
        ("2. The critical steps are: conversation[5]\nReason: the critical steps are: the ones above", (5,)),
        ("The critical steps are: conversation[5]\nconversation[7] is left out because of step 8", (5,)),
        ("The critical steps are:\n- Step 3\n\n- Step 7\nThis leaves out step 9.", (3, 7)),
        ("### 2. The Critical Steps Are: conversation[#5]", (5,)),
    ],
)
def test_answers_as_models_write_them(answer: str, steps: tuple[int, ...]) -> None:
    found = parse_answer(answer, 10, 5)
    assert isinstance(found, Judgement), found
    assert found.steps == steps


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "is missing"),
        ("I cannot help with that.", "is missing"),
        ("The critical steps are: conversation[]", "empty"),
        ("The critical steps are: conversation[...]", "empty"),
        ("The critical steps are:", "empty"),
        ("The critical steps are: conversation[all of them]", "not given as a list"),
        ("The critical steps are: conversation[-1, 3]", "not given as a list"),
        ("The critical steps are: conversation[2.5]", "not given as a list"),
        ("The critical steps are: conversation[0, 3]", "step 0 does not exist"),
        ("The critical steps are: conversation[3, 11]", "step 11 does not exist: the steps are 1 to 10"),
        ("The critical steps are: conversation[5-3]", "step 5-3 does not exist"),
        ("The critical steps are: conversation[1-999999999]", "does not exist"),
        ("The critical steps are: conversation[" + "9" * 5000 + "]", "not given as a list"),
        ("The critical steps are: conversation[1]\nThe critical steps are: conversation[77]", "step 77"),
    ],
)
def test_answers_that_break_the_rules(answer: str, problem: str) -> None:
    found = parse_answer(answer, 10, 5)
    assert isinstance(found, Problem), found
    assert problem in found.what
    assert found.judgement is None


def test_too_many_steps_are_cut_in_the_order_of_the_reply() -> None:
    found = parse_answer(
        "The critical steps are: conversation[9, 1, 4]\nReason: Step 9 (recall), Step 4: planning", 10, 2
    )
    assert isinstance(found, Problem)
    assert found.what == "3 steps were chosen where at most 2 are allowed"
    assert found.judgement is not None
    assert (found.judgement.steps, found.judgement.categories) == ((9, 1), {9: SELF})


@pytest.mark.parametrize(
    ("reason", "categories"),
    [
        ("Step 1 (Plan Creation): x. Step 2 (Critical Observation): y. Step 3 - Self-Correction", (PLAN, SEEN, SELF)),
        ("Step 1: planning\nStep 2: key observation\nStep 3: pivotal action", (PLAN, SEEN, ACTION)),
        ("**Plan Creation**: Step 1\n**Critical Action**: Steps 2 and 3", (PLAN, ACTION, ACTION)),
        ("Steps 1-2 (recall), step 3 (CRITICAL ACTIONS)", (SELF, SELF, ACTION)),
        ("They cover planning and recall.\nStep 1 (Critical Action) a\nStep 2 (Plan Creation)", (ACTION, PLAN, None)),
        ("Step 1:\n  Category: Critical Action\nStep 3:\n  Category: Plan Creation", (ACTION, None, PLAN)),
        ("They matter.", (None, None, None)),
    ],
)
def test_categories_are_normalised_to_the_four(reason: str, categories: tuple[Category | None, ...]) -> None:
    found = parse_answer(f"The critical steps are: conversation[1, 2, 3]\n3. Reason: [{reason}]", 5, 3)
    assert isinstance(found, Judgement)
    assert tuple(found.categories.get(t) for t in (1, 2, 3)) == categories


def test_plan_and_reason() -> None:
    found = parse_answer(GOOD, 10, 3)
    assert isinstance(found, Judgement)
    assert found.plan == "walk, then win"
    assert found.reason == "Step 7 (Critical Action): it wins. Step 2 (Plan Creation): it splits the way."
    assert found.categories == {2: PLAN, 7: ACTION}


_PIECES = [
    "critical steps are:",
    "The ",
    "conversation[",
    "]",
    "[",
    "Reason:",
    "step ",
    "3",
    "-",
    "12",
    ", ",
    "\n",
    " ",
]
_PIECES += ["and ", "high-level plan is:", "**", "\u2013", "..", "Plan Creation", "</think>", "#", "0", "1.", "recall"]


@settings(max_examples=400, deadline=500)
@given(st.one_of(st.text(), st.lists(st.sampled_from(_PIECES)).map("".join)), st.integers(1, 30), st.integers(1, 9))
def test_any_text_gives_steps_in_range_or_a_problem(text: str, n_steps: int, k: int) -> None:
    found = parse_answer(text, n_steps, k)
    judgement = found if isinstance(found, Judgement) else found.judgement
    if judgement is not None:
        assert 1 <= len(judgement.steps) == len(set(judgement.steps)) <= k
        assert all(1 <= t <= n_steps for t in judgement.steps)
        assert judgement.categories.keys() <= set(judgement.steps)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9, unique=True))
def test_a_plain_list_reads_back(steps: list[int]) -> None:
    found = parse_answer(f"2. The critical steps are: conversation{steps}", 30, 9)
    assert isinstance(found, Judgement)
    assert found.steps == tuple(steps)


@pytest.mark.parametrize(
    "run", ["\n", " ", "[", "step ", "1 ", "critical steps ", "* ", "1. ", "3-", "conversation[", ", "]
)
def test_long_runs_are_read_in_no_time(run: str) -> None:
    begun = time.process_time()
    parse_answer("The critical steps are: " + run * 4000, 10, 3)
    parse_answer(run * 4000 + "x", 10, 3)
    assert time.process_time() - begun < 2
