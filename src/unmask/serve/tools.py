"""Tools: from those of a body to what an answer has to be, and from the text of an answer to its call.

A call is `{"name": ..., "arguments": {...}}` with arguments that are valid under the function's schema, as
`unmask.text.calls` writes it; where the model's template has a form for it, in the words of that. Who may choose
("auto") writes a call, or any text that does not begin like one. It does not know how texts are written.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask.constrain.spec import Body, Constraint, Either, Schema, Template, Unlike
from unmask.lm.model import LanguageModel
from unmask.serve import constraint
from unmask.serve.constraint import Bound
from unmask.serve.errors import Refused
from unmask.serve.limits import Limits
from unmask.serve.schemas import Chat, Function, ToolChoice
from unmask.text.calls import Tool, opened

NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of a function without parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """How calls stand in the answers of a request.

    Args:
        names: of the functions that may be called.
        must: whether every answer is a call.
        before: what stands before a call in an answer.
    """

    names: Sequence[str]
    must: bool
    before: str = ""

    @property
    def beginning(self) -> str:
        """What a call begins with, and no other answer does."""
        return self.before + BEGINNING

    def message(self, text: str) -> dict[str, Any] | None:
        """The message of an answer that is a call; None for one that is not, or that was not finished."""
        hearing = Hearing(self)
        hearing.more(text)
        if not hearing.whole:
            return None
        function = {"name": hearing.name, "arguments": hearing.arguments}
        call = {"id": hearing.id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}


BEGINNING = '{"name": "'


@dataclass(slots=True)
class Hearing:
    """An answer as it comes, in pieces of OpenAI's form (deltas).

    Args:
        calls: of the request.
        text: of the answer, as far as it is known.
        told: characters of it that need not be looked at again.
        name: of the function that is called, once it is known.
    """

    calls: Calls
    text: str = ""
    told: int = 0
    name: str | None = None
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")

    def more(self, text: str) -> list[dict[str, Any]]:
        """What there is to tell of so much more text; of text that may still become a call, nothing."""
        self.text += text
        beginning = self.calls.beginning
        if not self.text.startswith(beginning):
            return [] if beginning.startswith(self.text) else self.rest()
        found: list[dict[str, Any]] = []
        if self.name is None:
            rest = self.text[len(self.calls.before) :]
            self.name = next((name for name in self.calls.names if rest.startswith(opened(name))), None)
            if self.name is None:
                return []
            self.told = len(self.calls.before) + len(opened(self.name))
            function = {"name": self.name, "arguments": ""}
            found.append(_called({"id": self.id, "type": "function", "function": function}))
        if piece := self.text[self.told : -1]:  # the last letter may be the brace behind the arguments
            found.append(_called({"function": {"arguments": piece}}))
            self.told += len(piece)
        return found

    def rest(self) -> list[dict[str, Any]]:
        """Text that is no call and was not told."""
        piece, self.told = self.text[self.told :], len(self.text)
        return [{"content": piece}] if piece else []

    def left(self) -> list[dict[str, Any]]:
        """What was held back, and turns out to be no call: an answer that ended where one could have begun."""
        return self.rest() if self.name is None else []

    @property
    def arguments(self) -> str:
        """Of the call, as far as they are known."""
        return self.text[len(self.calls.before) + len(opened(self.name or "")) : -1]

    @property
    def whole(self) -> bool:
        """Whether it is a call, with all that belongs to it."""
        if self.name is None or not self.text.endswith("}"):
            return False
        try:
            json.loads(self.arguments)
        except ValueError:
            return False
        return True


def _called(piece: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **piece}]}


def told(body: Chat) -> list[Tool]:
    """The tools that the model is told of; none where none may be called."""
    if body.tool_choice == "none":
        return []
    return [
        {"name": one.name, "description": one.description, "parameters": one.parameters or NOTHING}
        for one in (tool.function for tool in body.tools or [])
    ]


def of(body: Chat, lm: LanguageModel, limits: Limits) -> tuple[Calls | None, Bound]:
    """How calls stand in the answers to a body, and what its answers have to be.

    It may start a process to learn about the model's template, once.

    Raises:
        Refused: what can't be called, or not said in the model's form.
    """
    bound, tools, choice = constraint.of(body, limits), [tool.function for tool in body.tools or []], body.tool_choice
    names = [tool.name for tool in tools]
    if not tools and choice not in (None, "none", "auto"):
        raise Refused(
            "unsupported", "a tool can't be chosen where there are none; leave tool_choice out", "tool_choice"
        )
    limits.check("tools", len(tools), "tools")
    constraint.check([tool.model_dump() for tool in tools], limits, "tools")
    if len(set(names)) < len(names):
        raise Refused("invalid_value", "two tools have the same name; rename one", "tools")
    schemas = {tool.name: _schema(tool, f"tools[{i}].function.parameters") for i, tool in enumerate(tools)}
    if not tools or choice == "none":
        return None, bound
    if bound.asked:
        raise Refused(
            "invalid_value", f"{bound.param} and tools say twice what the text is; give one of them", bound.param
        )
    if choice is None or choice == "auto":
        return _may(schemas, lm)
    if isinstance(choice, ToolChoice):
        if (name := choice.function.name) not in names:
            raise Refused("invalid_value", f"there is no tool {name!r} among {names}", "tool_choice.function.name")
        names = [name]
    calls = Calls(names=names, must=True)
    return calls, _bound(_written({name: schemas[name] for name in names}))


def _may(schemas: dict[str, dict[str, Any]], lm: LanguageModel) -> tuple[Calls, Bound]:
    before = "" if lm.template is None else lm.template.form.before
    if before is None:
        raise Refused(
            "unsupported",
            "this model's template writes calls in a form that text can't choose; say tool_choice required, none, or "
            "a function",
            "tool_choice",
        )
    calls = Calls(names=[*schemas], must=False, before=before)
    either = Either((Unlike(calls.beginning), Template((before, _written(schemas)))))
    # no stop string of a template stands in a call, where line breaks are escaped; what is no call may be cut anywhere
    return calls, _bound(either, may_stop=True)


def _written(schemas: dict[str, dict[str, Any]]) -> Body:
    return Either(tuple(Template((opened(name), Schema.of(schema), "}")) for name, schema in schemas.items()))


def _bound(body: Body, *, may_stop: bool = False) -> Bound:
    return Bound(asked={None: Constraint(body=body)}, params={None: "tools"}, may_stop=may_stop)


def _schema(function: Function, param: str) -> dict[str, Any]:
    schema = {"type": "object", **(function.parameters or NOTHING)}
    if schema["type"] != "object":
        raise Refused("invalid_value", "the parameters of a function are an object; say type object", param)
    return schema
