"""Openings of environments as AgentGym's own clients write them, read off a user's checkout.

Flows in: the path of a checkout; flows out: a template, or None where AgentGym has no such environment. The files are
parsed with `ast`: nothing of them is imported or run, and no more is understood than constants and how they are joined.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.errors import UserError
from atlas_ray.text import storable

_CLIENTS = Path("agentenv", "agentenv", "envs")
_MOST_BYTES = 2**21
_VOCABULARY = "{{vocab}}"
_DEEPEST = 8  # names behind names
_STRIPS = ("strip", "lstrip", "rstrip")


def check_checkout(checkout: str) -> None:
    """Reads all clients of a checkout.

    Raises:
        UserError: If the path is none, or a file of it cannot be parsed.
    """
    for _ in _clients(checkout):
        pass


def checkout_opening(checkout: str, env: str) -> tuple[OpeningTemplate, str] | None:
    """The opening that AgentGym's client of an environment shows, and the file that has it.

    Raises:
        UserError: If the path is no checkout, or the client is written in a way that is not understood.
    """
    found = next((client for client in _clients(checkout) if client.env == env), None)
    if found is None:
        return None
    where = str(found.file)
    try:
        turns, around = found.turns(), found.surroundings()
    except RecursionError:
        turns = around = None
    if turns is None or around is None:
        what = "the first two turns" if turns is None else "the first observation"
        raise UserError(
            f"{where} does not write {what} of {env} in constants that can be read without running it",
            "check out AgentGym as it is published, or leave openings.agentgym out",
        )
    instruction, acknowledgement, before, after = map(storable, (*turns, *around[:2]))
    template = OpeningTemplate(instruction, acknowledgement, before, after, around[2], error_turn=found.error_turn())
    return template, where


def checkout_error_turn(checkout: str, env: str) -> tuple[str, str] | None:
    """What AgentGym's client of an environment answers to a reply of several actions, without a call, and its file.

    Raises:
        UserError: If the path is no checkout.
    """
    found = next((client for client in _clients(checkout) if client.env == env), None)
    text = found.error_turn() if found else None
    return (text, str(found.file)) if found and text is not None else None


@dataclass(frozen=True)
class _Client:
    """One client's class, with what its module and it assign; `file` is its path in the checkout."""

    env: str
    file: Path
    body: ast.ClassDef
    module: Mapping[str, ast.expr]
    classes: Mapping[str, ast.ClassDef]

    def turns(self) -> tuple[str, str] | None:
        """Instruction and acknowledgement: of the class, or of its adapter for ReAct."""
        own = _assigned(self.body)
        start = own.get("conversation_start")
        adapter = own.get("adapter_cls")
        if start is None and isinstance(adapter, ast.Name) and adapter.id in self.classes:
            start = self._react(_assigned(self.classes[adapter.id]).get("conversation_start_dict"))
        if not isinstance(start, ast.Tuple | ast.List) or len(start.elts) < 2:
            return None
        said = [self._said(turn) for turn in start.elts[:2]]
        if said[0] is None or said[1] is None or len(start.elts) > 2:
            return None
        return said[0], said[1]

    def surroundings(self) -> tuple[str, str, bool] | None:
        """What the client puts around the server's text: texts of its class that its `reset` joins to it.

        Returns:
            As `openings.surroundings`; None where `reset` uses such a text in a way that is not understood.
        """
        own = _assigned(self.body)
        reset = next((n for n in self.body.body if isinstance(n, ast.FunctionDef) and n.name == "reset"), None)
        used = list(ast.walk(reset)) if reset else []
        texts = [
            self._text(own[n.attr]) for n in used if isinstance(n, ast.Attribute) and _is_self(n) and n.attr in own
        ]
        if not any(texts):
            return "", "", False
        for text in texts:
            if text is not None and _VOCABULARY in text:
                ends = text.partition(_VOCABULARY)
                return ends[0], ends[2], True
        known = own | {
            target.attr: node.value
            for node in used
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Attribute) and _is_self(target)
        }
        for node in used:
            parts = _summands(node)
            said = [self._text(part, known) for part in parts]
            own_texts = [t for t, part in zip(said, parts, strict=True) if isinstance(part, ast.Attribute) and t]
            if own_texts and said.count(None) == 1:
                at = said.index(None)
                return "".join(filter(None, said[:at])), "".join(filter(None, said[at:])), False
        return None

    def error_turn(self) -> str | None:
        """What `step` answers where it finds more than one action; None where it does not say so in a constant."""
        step = next((n for n in self.body.body if isinstance(n, ast.FunctionDef) and n.name == "step"), None)
        for node in ast.walk(step) if step else ():
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Call):
                said = next((k.value for k in node.value.keywords if k.arg == "state"), None)
                text = self._text(said) if said is not None else None
                if text is not None:
                    return storable(text)
        return None

    def _react(self, given: ast.expr | None) -> ast.expr | None:
        """The value of `ActionFormat.REACT` in a dictionary."""
        if not isinstance(given, ast.Dict):
            return None
        pairs = zip(given.keys, given.values, strict=True)
        return next((v for k, v in pairs if isinstance(k, ast.Attribute) and k.attr == "REACT"), None)

    def _said(self, turn: ast.expr) -> str | None:
        """What a turn says: `{"from": ..., "value": ...}`, by itself or in a call."""
        if isinstance(turn, ast.Call) and len(turn.args) == 1:
            turn = turn.args[0]
        if not isinstance(turn, ast.Dict):
            return None
        pairs = zip(turn.keys, turn.values, strict=True)
        value = next((v for k, v in pairs if isinstance(k, ast.Constant) and k.value == "value"), None)
        return self._text(value) if value is not None else None

    def _text(self, node: ast.expr, own: Mapping[str, ast.expr] | None = None, depth: int = 0) -> str | None:
        """A text that is written down: constants, their sums, `strip`, names of such, f-strings of such."""
        if depth > _DEEPEST:
            return None
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.Name(id=name) if name in self.module:
                return self._text(self.module[name], own, depth + 1)
            case ast.Attribute(attr=name) if _is_self(node) and own and name in own:
                return self._text(own[name], own, depth + 1)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._joined([left, right], own, depth)
            case ast.JoinedStr(values=values):
                return self._joined(values, own, depth)
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                return self._text(value, own, depth)
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=[], keywords=[]) if name in _STRIPS:
                whole = self._text(value, own, depth)
                return None if whole is None else getattr(whole, name)()
        return None

    def _joined(self, nodes: list[ast.expr], own: Mapping[str, ast.expr] | None, depth: int) -> str | None:
        texts = [self._text(node, own, depth) for node in nodes]
        return None if None in texts else "".join(filter(None, texts))


def _clients(checkout: str) -> Iterator[_Client]:
    """Every client's class: `MazeEnvClient` is maze's.

    Raises:
        UserError: If there are none, or a file cannot be read.
    """
    root = Path(checkout).expanduser()
    folder = root / _CLIENTS
    files = sorted(folder.glob("*.py")) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"{checkout} is no checkout of AgentGym: it has no {_CLIENTS}", "name the folder that `git clone` made"
        )
    for file in files:
        try:
            if file.stat().st_size > _MOST_BYTES:
                raise ValueError("it is too long")
            tree = ast.parse(file.read_bytes())
        except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise UserError(
                f"cannot read {file}: {type(error).__name__}: {error}", "check out AgentGym as it is published"
            ) from None
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        for name, body in classes.items():
            if name.endswith("EnvClient"):
                env = name.removesuffix("EnvClient").lower()
                yield _Client(env, file.relative_to(root), body, _assigned(tree), classes)


def _assigned(body: ast.Module | ast.ClassDef) -> dict[str, ast.expr]:
    """What a module or class assigns to plain names."""
    found: dict[str, ast.expr] = {}
    for node in body.body:
        if isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
    return found


def _is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _summands(node: ast.AST) -> list[ast.expr]:
    """What a sum or an f-string joins, in order."""
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [*_summands(left), *_summands(right)]
        case ast.JoinedStr(values=values):
            return [part.value if isinstance(part, ast.FormattedValue) else part for part in values]
    return [node] if isinstance(node, ast.expr) else []
