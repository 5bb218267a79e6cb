"""How episodes open: one template an environment, put around what the environment tells of a task.

Flows in: an environment's own opening of a task; flows out: the three turns that a model sees there. A template comes
from training data, or from AgentGym's own client (paper App. D.2: the prompts are AgentGym's).
"""

from __future__ import annotations

from dataclasses import dataclass

from atlas_ray.environments.protocol import EnvironmentSpec, Opening
from atlas_ray.environments.replay import same_answer
from atlas_ray.errors import UserError

TOLD = "told"  # in place of schemas: those that each session tells


@dataclass(frozen=True, slots=True)
class OpeningTemplate:
    """How an environment's episodes open.

    Attributes:
        instruction: Turn 1.
        acknowledgement: Turn 2, or empty (`Opening`).
        before: What turn 3 puts before the environment's text, e.g. the rules.
        after: What it puts behind it.
        plain: Whether that text is in the server's words (`EnvironmentSpec.plain`), not in ours.
        recorded: Turn 3 as recorded, for one task alone: shown where the environment plays that very task.
        error_turn: What answers a malformed reply, later on; None: this package's own words.
        tools: Schemas of the tools by whose calls the episode is played; `TOLD`: each session tells its own, and the
            instruction; None: by text.
    """

    instruction: str
    acknowledgement: str
    before: str = ""
    after: str = ""
    plain: bool = False
    recorded: str | None = None
    error_turn: str | None = None
    tools: str | None = None

    @classmethod
    def verbatim(cls, opening: Opening) -> OpeningTemplate:
        """The turns of one task as they are."""
        return cls(opening.instruction, opening.acknowledgement, recorded=opening.observation, tools=opening.tools)

    @classmethod
    def of_tools(cls, spec: EnvironmentSpec) -> OpeningTemplate:
        """How an environment opens that is played by its own tools.

        Raises:
            UserError: If it offers none.
        """
        if spec.tells_tools:
            return cls("", "", tools=TOLD)
        if spec.tools is None:
            raise UserError(f"{spec.name} offers no tools to call", "play it as text: protocol: react")
        return cls(spec.tools.instruction, "", tools=spec.tools.schemas)

    def applied(self, spec: EnvironmentSpec, own: Opening) -> Opening:
        """The opening of a task, from the environment's own."""
        if self.tools == TOLD:
            return own
        told = told_of_task(spec, own.observation, tools=self.tools is not None)
        shown = self.before + (spec.plain(told) if self.plain and spec.plain else told) + self.after
        if self.recorded is not None and is_of_task(spec, self.recorded, told):
            shown = self.recorded
        return Opening(self.instruction, shown, self.acknowledgement, self.tools)


def told_of_task(spec: EnvironmentSpec, observation: str, *, tools: bool) -> str:
    """An environment's first observation, as an agent is told it that acts by text, or by calls of tools."""
    return spec.tools.result(observation) if tools and spec.tools else observation


def is_of_task(spec: EnvironmentSpec, recorded: str, told: str) -> bool:
    """Whether a recorded first observation may be of the task that the environment tells of."""
    return spec.same_task(recorded, told) or surroundings(spec, recorded, told) is not None


def surroundings(spec: EnvironmentSpec, recorded: str, told: str) -> tuple[str, str, bool] | None:
    """What a recorded first observation puts around the environment's text.

    Returns:
        What stands before the text and behind it, and whether it is in the server's words. Two empty ends also where
        the text differs in nothing but what differs between servers and tellings. None: it does not contain the text.
    """
    plain = spec.plain(told) if spec.plain else told
    for text in (told, plain):
        if text.strip() and text in recorded:
            # rules may hold the same line as an example, and stand before it
            before, _, after = recorded.rpartition(text)
            return before, after, text != told
    if same_answer(recorded, told):
        return "", "", False
    ends = [[line.strip() for line in text.strip().splitlines()] for text in (recorded, told)]
    alike = all(ends) and (ends[0][0], ends[0][-1]) == (ends[1][0], ends[1][-1])
    return ("", "", False) if alike and spec.names_task is not None and spec.same_task(recorded, told) else None
