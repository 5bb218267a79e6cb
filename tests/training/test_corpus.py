"""Token ids on disk: rendered once for all arms, the same wherever it was done, and never read for other data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from atlas_ray.config import RayConfig, validate
from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.settings import RecipeConfig
from atlas_ray.runs.manifest import config_digest
from atlas_ray.training.data import corpus
from atlas_ray.training.data.corpus import TOKENS, Corpus, Tokens, open_corpus, render, tokens_of, unknown_words
from atlas_ray.training.data.examples import with_ids, without_ids
from atlas_ray.training.stage import corpus_of
from atlas_ray.types import Message, Trajectory
from tests.support.recipes import a_recipe
from tests.support.tiny import QWEN_TEMPLATE, tiny_tokenizer
from tests.support.training import CHOSEN, TRAJECTORIES_HERE, a_config, training_example, write_base

CHAT = ChatFormat(tiny_tokenizer())


def by_hand(tables: Sequence[pa.Table] | Iterator[pa.Table]) -> dict[str, tuple[list[int], list[list[int]]]]:
    found: list[Tokens] = [t for table in tables for t in TOKENS.from_table(table)]
    return {t.id: (t.ids.tolist(), t.spans.tolist()) for t in found}


EXPECTED = {t.id: (tokens_of(t, CHAT).ids.tolist(), tokens_of(t, CHAT).spans.tolist()) for t in TRAJECTORIES_HERE}


class Renderer:
    """Renders in place, two trajectories a shard, and remembers which."""

    def __init__(self, fail_behind: int = 100) -> None:
        self.done: list[str] = []
        self._fail_behind = fail_behind

    def __call__(self, trajectories: Sequence[Trajectory]) -> Iterator[pa.Table]:
        for start in range(0, len(trajectories), 2):
            if start >= self._fail_behind:
                raise KeyboardInterrupt
            chunk = trajectories[start : start + 2]
            self.done += [t.id for t in chunk]
            yield from render(chunk, CHAT)


def test_tokens_come_back_from_disk_as_they_were_rendered(tmp_path: Path) -> None:
    found = open_corpus(str(tmp_path), TRAJECTORIES_HERE, CHAT, Renderer())
    assert len(found.tables) == 4
    for trajectory in TRAJECTORIES_HERE:
        tokens = found[trajectory.id]
        assert (tokens.ids.tolist(), tokens.spans.tolist()) == EXPECTED[trajectory.id]
        assert (tokens.ids.dtype, tokens.spans.dtype) == (np.int32, np.int32)
    in_place = Corpus.of(TRAJECTORIES_HERE, CHAT)
    assert by_hand(in_place.tables) == by_hand(found.tables) == EXPECTED
    assert Corpus([]).tables == []


def test_second_arm_reads_the_rendered_tokens(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    shared = {"model": base, "rendered": str(tmp_path / "rendered")}
    chat, first, second = ChatFormat.load(base), Renderer(), Renderer()
    arms = [a_config(run=str(tmp_path / arm), selection=arm, **shared) for arm in ("gold", "all")]
    corpus_of(arms[0], TRAJECTORIES_HERE, chat, first)
    reordered = [*reversed(TRAJECTORIES_HERE)]
    shorter = arms[1].model_copy(update={"max_length": 60})
    assert by_hand(corpus_of(shorter, reordered, chat, second).tables) == EXPECTED
    assert (len(first.done), second.done) == (7, [])
    assert config_digest(arms[0]) == config_digest(arms[0].model_copy(update={"rendered": None}))
    corpus_of(a_config(run=str(tmp_path / "alone"), model=base), TRAJECTORIES_HERE, chat, first)
    assert len(first.done) == 14
    assert [p.parent.name for p in (tmp_path / "alone").glob("*/*")] == ["rendered"]


def test_a_recipes_arms_share_one_folder_of_tokens(tmp_path: Path) -> None:
    recipe = Recipe(validate(RecipeConfig, a_recipe(tmp_path)))
    assert {train.rendered for train in recipe.train.values()} == {f"{tmp_path}/small/rendered"}
    assert len({train.run for train in recipe.train.values()}) == len(recipe.train) == 5


def test_changed_text_template_or_tokenizer_is_rendered_again(tmp_path: Path) -> None:
    words = list(TRAJECTORIES_HERE)
    words[3] = replace(words[3], messages=(*words[3].messages[:-1], Message("assistant", "Action: win", True)))
    markers = list(TRAJECTORIES_HERE)
    markers[3] = replace(
        markers[3], messages=(*markers[3].messages[:-1], replace(markers[3].messages[-1], trainable=False))
    )
    other = tiny_tokenizer()
    other.add_tokens(["zzz"])
    cases = [
        (TRAJECTORIES_HERE, CHAT),
        (words, CHAT),
        (markers, CHAT),
        (TRAJECTORIES_HERE[:6], CHAT),
        (TRAJECTORIES_HERE, ChatFormat(tiny_tokenizer(QWEN_TEMPLATE, "<|im_end|>"))),
        (TRAJECTORIES_HERE, ChatFormat(other)),
    ]
    for trajectories, chat in cases:
        renderer = Renderer()
        open_corpus(str(tmp_path), trajectories, chat, renderer)
        assert len(renderer.done) == len(trajectories)
    assert len([*tmp_path.iterdir()]) == len(cases)


def test_interrupted_rendering_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first, second = Renderer(fail_behind=4), Renderer()
    with pytest.raises(KeyboardInterrupt):
        open_corpus(str(tmp_path), TRAJECTORIES_HERE, CHAT, first)
    assert by_hand(open_corpus(str(tmp_path), TRAJECTORIES_HERE, CHAT, second).tables) == EXPECTED
    assert len(first.done) == 4
    assert set(first.done).isdisjoint(second.done)


def test_examples_sent_without_ids_get_them_from_the_corpus() -> None:
    found = Corpus.of(TRAJECTORIES_HERE, CHAT)
    examples = [training_example(found[t.id], CHOSEN[t.id], 500) for t in TRAJECTORIES_HERE]
    sent = without_ids(examples)
    assert all(len(e.ids) == 0 for e in sent)
    for before, after in zip(examples, with_ids(sent, found), strict=True):
        assert after.ids.tolist() == before.ids.tolist()
        assert after.spans.tolist() == before.spans.tolist()
        assert np.shares_memory(after.ids, found[after.trajectory_id].ids)


@pytest.mark.slow
def test_rendering_in_ray_tasks_is_the_same(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = a_config(model=write_base(tmp_path / "base"))
    monkeypatch.setattr(corpus, "CHUNK", 2)
    by_tasks = partial(corpus.render_on_ray, chat=CHAT, model=config.model, template=None, ray_config=config.ray)
    assert by_hand(by_tasks(TRAJECTORIES_HERE)) == EXPECTED
    headless = replace(TRAJECTORIES_HERE[0], id="maze/headless", messages=TRAJECTORIES_HERE[0].messages[1:])
    with pytest.raises(UserError, match="must start with a user turn"):
        list(by_tasks([*TRAJECTORIES_HERE, headless]))


def test_a_single_chunk_needs_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_ray.cluster.connection.connect", partial(pytest.fail, "Ray was started"))
    assert len(TRAJECTORIES_HERE) <= corpus.CHUNK
    assert by_hand(corpus.render_on_ray(TRAJECTORIES_HERE, CHAT, "none", None, RayConfig())) == EXPECTED


STRANGE = Trajectory(
    "maze/maze_9",
    "maze",
    "maze_9",
    (Message("user", "see the samovar"), Message("assistant", "Thought: samovar hums\nAction: go up", True)),
)


def test_words_that_the_tokenizer_does_not_know_are_named_with_their_share() -> None:
    trajectories = [*TRAJECTORIES_HERE, STRANGE]
    found = Corpus.of(trajectories, CHAT)
    share = 3 / sum(len(found[t.id].ids) for t in trajectories)
    warning = unknown_words(found, trajectories, CHAT)
    assert warning.startswith(f"{share:.1%} of all tokens are words that the tokenizer does not know")
    assert "('samovar', 'hums'): the model reads <unk> in place of each" in warning


def test_where_every_word_is_known_there_is_no_warning() -> None:
    assert unknown_words(Corpus.of(TRAJECTORIES_HERE, CHAT), TRAJECTORIES_HERE, CHAT) == ""


def test_a_token_that_ends_turns_too_is_no_unknown_word() -> None:
    """GPT-2's tokenizer names its end of text as its unknown token, and has bytes for every word."""
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = tokenizer.eos_token
    assert unknown_words(Corpus.of([STRANGE], chat := ChatFormat(tokenizer)), [STRANGE], chat) == ""
