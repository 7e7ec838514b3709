"""From the words of bodies for what a text has to be to constraints: the one place where they meet.

What can't be honoured is refused here by the name of its field, or where it is compiled (`unmask.serve.compiling`) or
laid over rows (`unmask.lm.control`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from unmask.constrain.spec import Anything, Body, Choices, Constraint, Grammar, Regex, Schema
from unmask.lm.model import LanguageModel
from unmask.lm.rows import NEVER, Ask
from unmask.serve.errors import Refused, naming
from unmask.serve.limits import Limits
from unmask.serve.schemas import Bounded, ResponseFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What the texts of a request have to be; nothing, where nothing is asked.

    Args:
        asked: constraints by the name of their gap; by None that of the only gap.
        params: the field that each came from.
        may_stop: whether a text that stop strings cut still is what it has to be.
    """

    asked: Mapping[str | None, Constraint] = field(default_factory=dict)
    params: Mapping[str | None, str] = field(default_factory=dict)
    may_stop: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """As `unmask.lm` takes it."""
        if not self.asked:
            return {}
        return {"constraint": self.asked[None] if None in self.asked else dict(self.asked)}

    @property
    def param(self) -> str:
        """The field to name where it can't be told which."""
        return next(iter(self.params.values()), "diffusion")

    @property
    def cuttable(self) -> bool:
        """Whether stop strings may cut the texts."""
        return self.may_stop or not self.asked

    def hold(self, lm: LanguageModel, ask: Ask) -> Ask:
        """An ask of which this is held.

        Raises:
            Refused: no text fits, and which length or pin makes it so.
        """
        with naming(self.param):
            bare = replace(ask, stops=()) if self.may_stop else ask
            return replace(lm.controls.hold(bare, self.settings, may_end=ask.no_end_before[0] < NEVER), stops=ask.stops)


FREE = Bound()
"""Nothing is asked."""


def of(body: Bounded, limits: Limits) -> Bound:
    """What a body asks of its texts.

    Raises:
        Refused: fields that say it twice, or that hold what no text can be.
    """
    found = constraint(body, limits)
    return FREE if found is None else Bound(asked={None: found[0]}, params={None: found[1]})


def constraint(body: Bounded, limits: Limits, where: str = "") -> tuple[Constraint, str] | None:
    """What a body, or a piece of it at `where`, asks of a text, and the field that says so; raises as `of`."""
    fields = {name: _FIELDS.get(name, name) for name in (*_BODIES, "contains", "banned")}
    given: dict[str, Any] = {
        name: value for name, field in fields.items() if (value := getattr(body, field, None)) is not None
    }
    if given.get("response_format") == ResponseFormat(type="text"):
        del given["response_format"]
    if not given:
        return None
    for name, value in given.items():
        check(value.model_dump(by_alias=True) if name == "response_format" else value, limits, where + name)
    bodies = [name for name in given if name in _BODIES]
    if len(bodies) > 1:
        raise Refused(
            "invalid_value",
            f"{bodies[0]} and {bodies[1]} say twice what the text is; give one of them",
            where + bodies[1],
        )
    param = where + next(iter(given))
    with naming(param):
        whole = _BODIES[bodies[0]](given[bodies[0]]) if bodies else Anything()
    rest = {name: tuple(given.get(name, ())) for name in ("contains", "banned")}
    return Constraint(body=whole, **rest), param


def check(value: Any, limits: Limits, param: str) -> None:
    """Refuse a value that is too large, or that UTF-8 or JSON can't hold."""
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError:
        raise Refused("invalid_value", f"{param} holds half of a surrogate pair, which is no text", param) from None
    except ValueError:
        raise Refused("invalid_value", f"{param} holds a number that JSON does not have", param) from None
    except RecursionError:
        raise Refused("invalid_value", f"{param} nests too deep", param) from None
    limits.check("constraint_bytes", size, param)


def _format(asked: ResponseFormat) -> Body:
    if asked.type == "json_schema" and asked.json_schema is None:
        raise Refused("missing_field", "a json_schema has the schema under json_schema.schema", "response_format")
    if asked.type != "json_schema" and asked.json_schema is not None:
        raise Refused("invalid_value", f"json_schema is not for the type {asked.type}", "response_format.json_schema")
    return Schema.of({"type": "object"} if asked.json_schema is None else asked.json_schema.schema_)


_BODIES: dict[str, Callable[[Any], Body]] = {
    "response_format": _format,
    "json_schema": Schema.of,
    "schema": Schema.of,
    "regex": Regex,
    "grammar": Grammar,
    "choices": lambda texts: Choices(tuple(texts)),
}
"""Fields that say what a text is; those that say what it holds go with any of them."""
_FIELDS = {"schema": "schema_"}
"""What fields are called in Python where it is something else."""
