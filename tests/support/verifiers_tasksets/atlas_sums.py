"""A taskset of verifiers: one question and one answer."""

import random
from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf

__all__ = ["Sums"]


class SumData(vf.TaskData):
    answer: str


class Sum(vf.Task[SumData]):
    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        if trace.assistant_messages[-1].content == "break":
            raise RuntimeError("it broke")
        return float(trace.assistant_messages[-1].content == self.data.answer)


class Settings(vf.TasksetConfig):
    judged: bool = False

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        if self.judged:
            self.task = vf.TaskConfig(judges=[vf.ReferenceJudgeConfig(id="reference", api_key_var="NO_SUCH_KEY")])


class Sums(vf.Taskset[Sum, Settings]):
    def load(self) -> Iterator[Sum]:
        for index in range(60):
            one, other = (random.Random(f"{index} {which}").randint(1, 9) for which in "ab")
            yield Sum(SumData(prompt=f"{one} + {other}?", system_prompt="Add.", answer=str(one + other)))
