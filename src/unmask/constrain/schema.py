"""JSON schemas (a stated part of draft 2020-12) as languages of JSON texts.

Every text of the language is valid under the schema. The language is narrower than the schema where freedom has no use
for a writer: objects hold the properties that are listed (others only where `additionalProperties` is given, or nothing
is listed), in their order or in any; strings have one spelling; numbers have at most 18 digits.
Keywords that can't be honoured are refused by name; what refers to itself is unrolled to a bounded depth.

It does not know tokens.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from unmask.base.errors import BadInput, Unsupported
from unmask.constrain.budget import Meter
from unmask.constrain.combine import disjoint, merge, merged_all
from unmask.constrain.compose import Net, Part, alt, leaf, machine, repeat, seq, text
from unmask.constrain.keywords import ANNOTATIONS, GENERAL, KEYWORDS, PATTERNS, TYPES, is_of, same
from unmask.constrain.machine import Machine, both, without
from unmask.constrain.numerals import integer, number
from unmask.constrain.regex import found_in, own
from unmask.constrain.strings import ANY, characters, format_of, quoted

WHITESPACE = {"compact": ("", ""), "spaced": (" ?", ""), "free": (r"[ \n\t\r]*", r"[ \n\t\r]*")}
"""What may stand behind commas and colons, and what at the other places where JSON allows it."""
DEEPEST = 64
"""Nested schemas; more is refused."""


@dataclass(slots=True)
class Writer:
    """Turns a schema into parts.

    Args:
        root: the whole document, for references.
        whitespace: a name of `WHITESPACE`.
        any_order: whether keys may come in any order, at the price of states for every set of them.
        depth: how often a reference may lie inside itself, and how deep values nest of which nothing is said.
    """

    root: Any
    meter: Meter
    whitespace: str = "spaced"
    any_order: bool = False
    depth: int = 3
    _inside: list[str] = field(default_factory=list)
    _strings: dict[str, Machine] = field(default_factory=dict)

    def language(self) -> Machine:
        """All texts.

        Raises:
            Unsupported: a keyword that can't be honoured.
            BadInput: no schema, or one that no text is valid under.
            OverBudget: see `Meter`.
        """
        found = machine(self.part(self.root, "#"), self.meter)
        if found.empty:
            raise BadInput("no JSON text is valid under the schema (with recursion unrolled, and keys as listed)")
        return found

    def part(self, schema: Any, path: str, free: int | None = None) -> Part:
        """One schema; `free` is how deep a value may nest still of which nothing is said."""
        free = self.depth if free is None else free
        self.meter.states(0)
        if schema is False:
            return alt([])
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise BadInput(f"a schema is an object or a boolean, got {type(schema).__name__} at {path}")
        if path.count("/") > 2 * DEEPEST:
            raise Unsupported(f"the schema nests deeper than {DEEPEST} levels at {path[:80]}...")
        self._check(schema, path)
        rest = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
        if "$ref" in rest:
            return self._referred(rest, path, free)
        if "allOf" in rest:
            parts = self._list(rest.pop("allOf"), f"{path}/allOf")
            return self.part(merged_all([rest, *(self._resolved(some, path) for some in parts)], path), path, free)
        for keyword in ("anyOf", "oneOf"):
            if keyword in rest:
                parts = [self._resolved(some, path) for some in self._list(rest.pop(keyword), f"{path}/{keyword}")]
                if keyword == "oneOf":
                    disjoint(parts, path, self._resolved)
                ways = [
                    self.part(merge(rest, some, path), f"{path}/{keyword}/{i}", free) for i, some in enumerate(parts)
                ]
                return alt(ways)
        if "enum" in rest or "const" in rest:
            return self._listed(rest, path, free)
        kinds = self._types(rest, path)
        written = {
            "null": lambda: text("null"),
            "boolean": lambda: alt([text("true"), text("false")]),
            "string": lambda: leaf(self._string(rest, path)),
            "number": lambda: leaf(self._number(rest, path, whole=False)),
            "integer": lambda: leaf(self._number(rest, path, whole=True)),
            "array": lambda: self._array(rest, path, free),
            "object": lambda: self._object(rest, path, free),
        }
        if free <= 0 and not set(rest) & (KEYWORDS["array"] | KEYWORDS["object"] | {"type"}):
            kinds = [kind for kind in kinds if kind not in ("array", "object")]
        return alt([written[kind]() for kind in kinds])

    def _check(self, schema: Mapping[str, Any], path: str) -> None:
        known = ANNOTATIONS | GENERAL | frozenset().union(*KEYWORDS.values())
        for keyword, value in schema.items():
            if keyword == "uniqueItems" and value is False:
                continue
            if keyword not in known:
                raise Unsupported(
                    f"the schema's keyword {keyword!r} at {path} can't be honoured; supported are "
                    f"{', '.join(sorted(known - ANNOTATIONS - {PATTERNS}))}"
                )
            if keyword == "$id" and path != "#":
                raise Unsupported(f"the schema's keyword '$id' at {path} can't be honoured below the root")

    def _types(self, schema: Mapping[str, Any], path: str) -> list[str]:
        asked = schema.get("type", [kind for kind in TYPES if kind != "integer"])
        kinds = [asked] if isinstance(asked, str) else list(asked)
        for kind in kinds:
            if kind not in TYPES:
                raise BadInput(f"{path}/type names {kind!r}; known: {', '.join(TYPES)}")
        return [kind for kind in kinds if not (kind == "integer" and "number" in kinds)]

    def _list(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise BadInput(f"{path} is a list with at least one schema, got {json.dumps(value)[:60]}")
        return value

    # references

    def _resolved(self, schema: Any, path: str) -> Any:
        """A schema whose references are replaced by what they refer to, as far as it is only a reference."""
        seen = set[str]()
        while isinstance(schema, dict) and set(schema) - ANNOTATIONS == {"$ref"} and schema["$ref"] not in seen:
            seen.add(schema["$ref"])
            if schema["$ref"] in self._inside:  # inside itself: the depth must be counted, so it stays
                break
            schema = self._target(schema["$ref"], path)
        return schema

    def _referred(self, rest: dict[str, Any], path: str, free: int) -> Part:
        target = rest.pop("$ref")
        if self._inside.count(target) >= self.depth + 1:
            return alt([])  # deeper than we unroll: nothing
        found = self._target(target, path)
        whole = merged_all([rest, found], path) if rest else found
        self._inside.append(target)
        try:
            return self.part(whole, path + "/$ref", free)
        finally:
            self._inside.pop()

    def _target(self, target: Any, path: str) -> Any:
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            raise Unsupported(f"the reference {target!r} at {path} can't be honoured; refer to '#/$defs/...'")
        found = self.root
        for step in target.split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(name)] if isinstance(found, list) else found[name]
            except (KeyError, IndexError, ValueError, TypeError):
                raise BadInput(f"the reference {target!r} at {path} leads nowhere") from None
        return found

    # values

    def _listed(self, rest: dict[str, Any], path: str, free: int) -> Part:
        values = rest.pop("enum", None)
        if "const" in rest:
            const = rest.pop("const")
            values = [const] if values is None or any(same(const, value) for value in values) else []
        if not isinstance(values, list):
            raise BadInput(f"{path}/enum is a list, got {json.dumps(values)[:60]}")
        kinds = self._types(rest, path)
        fitting = [self._value(value) for value in values if any(is_of(value, kind) for kind in kinds)]
        if not set(rest) - {"type"}:
            return alt(fitting)
        # other keywords hold too; what both languages have is valid under both
        listed = machine(alt(fitting), self.meter)
        return leaf(both(listed, machine(self.part(rest, path, free), self.meter), self.meter))

    def _value(self, value: Any) -> Part:
        """What JSON writes for a value."""
        if isinstance(value, dict):
            pairs = [seq([self._value(key), self._colon, self._value(some)]) for key, some in value.items()]
            return self._enclosed("{", pairs, "}")
        if isinstance(value, list):
            return self._enclosed("[", [self._value(some) for some in value], "]")
        return text(json.dumps(value, ensure_ascii=False))

    def _enclosed(self, opening: str, parts: Sequence[Part], closing: str) -> Part:
        inside = [piece for i, part in enumerate(parts) for piece in ([self._comma] if i else []) + [part]]
        return seq([text(opening), self._pad, *inside, *([self._pad] if parts else []), text(closing)])

    def _string(self, rest: Mapping[str, Any], path: str) -> Machine:
        asked = {key: rest[key] for key in (*sorted(KEYWORDS["string"]), PATTERNS) if key in rest}
        name = json.dumps(asked, sort_keys=True)
        if name not in self._strings:
            low, high = (self._count(rest, key, path) for key in ("minLength", "maxLength"))
            whole = own(ANY)
            if low or high is not None:
                whole = characters(low or 0, high, self.meter)
            if "format" in rest:
                whole = both(format_of(rest["format"], self.meter), whole, self.meter)
            for pattern in [*([rest["pattern"]] if "pattern" in rest else []), *rest.get(PATTERNS, ())]:
                if not isinstance(pattern, str):
                    raise BadInput(f"{path}/pattern is a string, got {pattern!r}")
                whole = both(found_in(pattern, self.meter), whole, self.meter)
            self._strings[name] = quoted(whole, self.meter)
        return self._strings[name]

    def _count(self, rest: Mapping[str, Any], key: str, path: str) -> int | None:
        value = rest.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
            raise BadInput(f"{path}/{key} is a whole number from 0 on, got {value!r}")
        return int(value)

    def _number(self, rest: Mapping[str, Any], path: str, *, whole: bool) -> Machine:
        bounds = {key: self._bound(rest, key, path) for key in KEYWORDS["number"]}
        low, above = _tighter(bounds["minimum"], bounds["exclusiveMinimum"], max)
        high, below = _tighter(bounds["maximum"], bounds["exclusiveMaximum"], min)
        step = bounds["multipleOf"]
        if step is not None and (step != int(step) or step <= 0):
            raise Unsupported(f"{path}/multipleOf is supported for whole numbers, got {step}")
        if not whole and step is None:
            return number(low, high, above=above, below=below, meter=self.meter)
        least = None if low is None else int(low.to_integral_value("ROUND_CEILING")) + int(above and low == int(low))
        most = None if high is None else int(high.to_integral_value("ROUND_FLOOR")) - int(below and high == int(high))
        return integer(least, most, None if step is None else int(step), self.meter)

    def _bound(self, rest: Mapping[str, Any], key: str, path: str) -> Decimal | None:
        value = rest.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
            raise BadInput(f"{path}/{key} is a number, got {value!r}")
        return Decimal(repr(value))

    # arrays and objects

    @property
    def _pad(self) -> Part:
        return leaf(own(WHITESPACE[self.whitespace][1]))

    @property
    def _comma(self) -> Part:
        return self._sign(",")

    @property
    def _colon(self) -> Part:
        return self._sign(":")

    def _sign(self, sign: str) -> Part:
        behind, before = WHITESPACE[self.whitespace]
        return leaf(own(before + sign + behind))

    def _array(self, rest: Mapping[str, Any], path: str, free: int) -> Part:
        low, high = (self._count(rest, key, path) for key in ("minItems", "maxItems"))
        first = rest.get("prefixItems", [])
        items = rest.get("items", True)
        if isinstance(items, list):
            raise Unsupported(f"{path}/items is a list, which draft 2020-12 calls prefixItems")
        low = low or 0
        deeper = free - 1
        ways: list[Part] = []
        if low == 0:
            ways.append(seq([text("["), self._pad, text("]")]))
        begin = [self.part(some, f"{path}/prefixItems/{i}", deeper) for i, some in enumerate(first)]
        for count in range(max(low, 1), len(begin) + 1):
            if (high is None or count <= high) and count < len(begin):
                ways.append(self._enclosed("[", begin[:count], "]"))
        more_low = max(low - len(begin), 0 if begin else 1)
        more_high = None if high is None else high - len(begin)
        if more_high is None or more_high >= more_low:
            part = self.part(items, f"{path}/items", deeper) if items is not False else alt([])
            more = repeat(part, more_low, more_high, self._comma)
            if begin:
                head = [piece for i, some in enumerate(begin) for piece in ([self._comma] if i else []) + [some]]
                following = seq([self._comma, repeat(part, max(more_low, 1), more_high, self._comma)])
                tails = ([seq([])] if more_low == 0 else []) + (
                    [following] if more_high is None or more_high > 0 else []
                )
                more = seq([*head, alt(tails)])
            ways.append(seq([text("["), self._pad, more, self._pad, text("]")]))
        return alt(ways)

    def _object(self, rest: Mapping[str, Any], path: str, free: int) -> Part:
        listed, required = rest.get("properties", {}), rest.get("required", [])
        if not isinstance(listed, dict) or not isinstance(required, list):
            raise BadInput(f"{path}/properties is an object and {path}/required a list of names")
        others = rest.get("additionalProperties", not listed)
        low, high = (self._count(rest, key, path) for key in ("minProperties", "maxProperties"))
        keys = {**listed, **{key: rest.get("additionalProperties", True) for key in required if key not in listed}}
        pairs = [
            (
                key in required,
                seq([self._value(key), self._colon, self.part(some, f"{path}/properties/{key}", free - 1)]),
            )
            for key, some in keys.items()
        ]
        more = None
        if others is not False:
            name = without(own(ANY), machine(alt([text(key) for key in keys]), self.meter), self.meter)
            value = self.part(others, f"{path}/additionalProperties", free - 1)
            more = seq([leaf(quoted(name, self.meter)), self._colon, value])
            if low is not None and low > max(sum(needed for needed, _ in pairs), 1):
                # a name that is written twice would count twice
                raise Unsupported(f"{path}/minProperties beyond what is required needs additionalProperties false")
        inside = self._members(pairs, more, low or 0, high)
        return seq([text("{"), self._pad, inside, text("}")])

    def _members(self, pairs: list[tuple[bool, Part]], more: Part | None, low: int, high: int | None) -> Part:
        """The members of an object, from (is required, member) and what else may follow: what is left, and how many."""
        cap = max(low, 1) if high is None else max(high, 1)

        def grow(net: Net, at: int) -> int:
            end = net.state()
            nodes: dict[tuple[int, int], int] = {}
            todo: list[tuple[int, int]] = []

            def node(left: int, count: int) -> int:
                key = (left, min(count, cap) if high is None else count)
                if key not in nodes:
                    nodes[key] = net.state()
                    todo.append(key)
                return nodes[key]

            net.link(at, node((1 << len(pairs)) - 1, 0))
            while todo:
                left, count = todo.pop(0)
                here = nodes[left, count]
                waiting = [i for i in range(len(pairs)) if left >> i & 1]
                if count >= low and not any(pairs[i][0] for i in waiting):
                    net.link(self._pad(net, here) if count else here, end)
                if high is not None and count >= high:
                    continue
                for i in waiting:
                    after = left & ~(1 << i) if self.any_order else left >> (i + 1) << (i + 1)
                    skipped = [] if self.any_order else [j for j in waiting if j < i]
                    if not any(pairs[j][0] for j in skipped):
                        member = seq([self._comma, pairs[i][1]]) if count else pairs[i][1]
                        net.link(member(net, here), node(after, count + 1))
                if more is not None and not any(pairs[i][0] for i in waiting):
                    member = seq([self._comma, more]) if count else more
                    net.link(member(net, here), node(0, count + 1))
            return end

        return grow


def _tighter(
    bound: Decimal | None, strict: Decimal | None, pick: Callable[..., Decimal]
) -> tuple[Decimal | None, bool]:
    """The bound that leaves less, and whether it is left out itself."""
    given = [value for value in (bound, strict) if value is not None]
    if not given:
        return None, False
    found = pick(given)
    return found, found == strict
