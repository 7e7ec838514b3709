"""Tools: from those of a body to what an answer has to be, and from the text of an answer to its calls.

A call is `{"name": ..., "arguments": {...}}` with arguments that are valid under the function's schema, as
`unmask.text.calls` writes it; where the model's template has a form for it, in the words of that, as is what stands
between two of them. Who may choose ("auto") writes calls, or any text that does not begin like one. It does not know
how texts are written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask.constrain.spec import Body, Constraint, Either, Schema, Several, Template, Unlike
from unmask.lm.model import LanguageModel
from unmask.serve import constraint
from unmask.serve.constraint import Bound
from unmask.serve.errors import Refused
from unmask.serve.guard import fresh_id
from unmask.serve.limits import Limits
from unmask.serve.schemas import Chat, Function, ToolChoice
from unmask.text.calls import Tool, opened
from unmask.text.chat import Form

NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of a function without parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """How calls stand in the answers of a request.

    Args:
        names: of the functions that may be called.
        must: whether every answer is a call.
        before: what stands before the first call in an answer.
        between: what stands between two; None where an answer has one at most.
    """

    names: Sequence[str]
    must: bool
    before: str = ""
    between: str | None = None

    @property
    def beginning(self) -> str:
        """What a call begins with, and no other answer does."""
        return self.before + BEGINNING

    def message(self, text: str) -> dict[str, Any] | None:
        """The message of an answer that is calls; None for one that is not, or that was not finished."""
        hearing = Hearing(self)
        hearing.more(text)
        if not hearing.whole:
            return None
        found = [
            {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
            for one in hearing.heard
        ]
        return {"role": "assistant", "content": None, "refusal": None, "tool_calls": found}


BEGINNING = '{"name": "'


@dataclass(slots=True)
class Heard:
    """A call, as far as it is known.

    Args:
        name, arguments: of the function; arguments are an object, and end with its brace.
        depth, quoted, escaped: where in the arguments it stands.
        whole: whether the brace of the call is there as well.
    """

    name: str
    arguments: str = ""
    depth: int = 0
    quoted: bool = False
    escaped: bool = False
    whole: bool = False
    id: str = field(default_factory=lambda: f"call_{fresh_id()}")

    @property
    def ended(self) -> bool:
        """Whether the arguments are all there."""
        return bool(self.arguments) and not self.depth

    def more(self, text: str) -> str:
        """The part of a text that still is of the arguments."""
        for at, letter in enumerate(text):
            if self.quoted:
                self.quoted = self.escaped or letter != '"'
                self.escaped = letter == "\\" and not self.escaped
            else:
                self.quoted = letter == '"'
                self.depth += (letter in "{[") - (letter in "}]")
            if not self.depth:
                text = text[: at + 1]
                break
        self.arguments += text
        return text


@dataclass(slots=True)
class Hearing:
    """An answer as it comes, in pieces of OpenAI's form (deltas).

    Args:
        calls: of the request.
        text: of the answer, as far as it is known.
        told: characters of it that need not be looked at again.
        heard: calls in it, the last of which may not be whole.
    """

    calls: Calls
    text: str = ""
    told: int = 0
    heard: list[Heard] = field(default_factory=list)

    def more(self, text: str) -> list[dict[str, Any]]:
        """What there is to tell of so much more text; of text that may still become a call, nothing."""
        self.text += text
        beginning = self.calls.beginning
        if not self.text.startswith(beginning):
            return [] if beginning.startswith(self.text) else self.rest()
        found: list[dict[str, Any]] = []
        while self.told < len(self.text):
            if not self.heard or self.heard[-1].whole:
                if (opening := self._opening()) is None:
                    break
                found.append(opening)
            elif not (last := self.heard[-1]).ended:
                piece = last.more(self.text[self.told :])
                self.told += len(piece)
                found.append(self._delta({"function": {"arguments": piece}}))
            else:
                last.whole = self.text[self.told] == "}"
                if not last.whole:
                    break
                self.told += 1
        return found

    def _opening(self) -> dict[str, Any] | None:
        """The first piece of the next call, if its name is there."""
        lead = self.calls.between if self.heard else self.calls.before
        if lead is None:
            return None
        rest = self.text[self.told :]
        name = next((name for name in self.calls.names if rest.startswith(lead + opened(name))), None)
        if name is None:
            return None
        self.told += len(lead + opened(name))
        self.heard.append(Heard(name))
        return self._delta({"id": self.heard[-1].id, "type": "function", "function": {"name": name, "arguments": ""}})

    def _delta(self, piece: dict[str, Any]) -> dict[str, Any]:
        return {"tool_calls": [{"index": len(self.heard) - 1, **piece}]}

    def rest(self) -> list[dict[str, Any]]:
        """Text that is no call and was not told."""
        piece, self.told = self.text[self.told :], len(self.text)
        return [{"content": piece}] if piece else []

    def left(self) -> list[dict[str, Any]]:
        """What was held back, and turns out to be no call: an answer that ended where one could have begun."""
        return [] if self.heard else self.rest()

    @property
    def whole(self) -> bool:
        """Whether it is calls, with all that belongs to them."""
        return bool(self.heard) and self.heard[-1].whole and self.told == len(self.text)


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
    if isinstance(choice, ToolChoice):
        if (name := choice.function.name) not in names:
            raise Refused("invalid_value", f"there is no tool {name!r} among {names}", "tool_choice.function.name")
        return Calls(names=[name], must=True), _bound(_written({name: schemas[name]}, None))
    form = Form() if lm.template is None else lm.template.form
    between = None if body.parallel_tool_calls is False else form.between
    if choice == "required":
        return Calls(names=names, must=True, between=between), _bound(_written(schemas, between))
    if form.before is None:
        raise Refused(
            "unsupported",
            "this model's template writes calls in a form that text can't choose; say tool_choice required, none, or "
            "a function",
            "tool_choice",
        )
    calls = Calls(names=names, must=False, before=form.before, between=between)
    either = Either((Unlike(calls.beginning), Template((form.before, _written(schemas, between)))))
    # no stop string of a template stands in a call, where line breaks are escaped, nor between two; what is no call may
    # be cut anywhere
    return calls, _bound(either, may_stop=True)


def _written(schemas: dict[str, dict[str, Any]], between: str | None) -> Body:
    one = Either(tuple(Template((opened(name), Schema.of(schema), "}")) for name, schema in schemas.items()))
    return one if between is None else Several(one, between)


def _bound(body: Body, *, may_stop: bool = False) -> Bound:
    return Bound(asked={None: Constraint(body=body)}, params={None: "tools"}, may_stop=may_stop)


def _schema(function: Function, param: str) -> dict[str, Any]:
    schema = {"type": "object", **(function.parameters or NOTHING)}
    if schema["type"] != "object":
        raise Refused("invalid_value", "the parameters of a function are an object; say type object", param)
    return schema
