"""A taskset of verifiers with a tool: in which of seven boxes is the coin?"""

import random
from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["Boxes"]


class Coin(vf.State):
    box: int = 0
    opened: int = 0
    found: bool = False


class BoxData(vf.TaskData):
    box: int
    until_found: bool


class BoxTools(vf.Toolset[vf.SharedToolsetConfig, Coin]):
    TOOL_PREFIX = None

    @vf.tool
    async def open_box(self, number: int) -> str:
        """Opens a box, and says where the coin is from there."""
        self.state.opened += 1
        if number == self.state.box:
            self.state.found = True
            return "Here it is."
        return "Higher." if number < self.state.box else "Lower."


class Box(vf.Task[BoxData, Coin]):
    async def setup(self, trace: vf.Trace, runtime: vf.Runtime) -> None:
        trace.state.box = self.data.box

    @vf.stop
    async def is_over(self, trace: vf.Trace) -> bool:
        return self.data.until_found and trace.state.found

    @vf.reward(weight=1.0)
    async def found(self, trace: vf.Trace) -> float:
        return trace.state.found / max(1, trace.state.opened)


class Settings(vf.TasksetConfig):
    until_found: bool = False


class Boxes(vf.Taskset[Box, Settings]):
    def load(self) -> Iterator[Box]:
        for index in range(40):
            box, prompt = random.Random(index).randint(1, 7), "The coin lies in box 1 to 7."
            yield Box(BoxData(prompt=prompt, box=box, until_found=self.config.until_found))

    @classmethod
    def toolsets(cls, config: vf.TasksetConfig) -> list[vf.Toolset]:
        return [BoxTools(vf.SharedToolsetConfig())]


if __name__ == "__main__":  # the library starts the tools' server so
    BoxTools.run()
