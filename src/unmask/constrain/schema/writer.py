"""JSON schemas (a stated part of draft 2020-12) as languages of JSON texts.

Every text of the language is valid under the schema. The language is narrower than the schema where freedom has no use
for a writer: objects hold the properties that are listed (others only where a keyword speaks of them, or nothing is
listed), in their order or in any; strings have one spelling; numbers have at most 18 digits.
What says "one of", "not" or "otherwise" becomes a choice of schemas; each of them goes together with what stands beside
it (`combine.py`, `negate.py`), until only keywords of one type at a time are left.
Keywords that can't be honoured are refused by name; what refers to itself is unrolled to a bounded depth.

It does not know tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask.base.errors import BadInput, Unsupported
from unmask.constrain.automata.budget import Meter
from unmask.constrain.automata.compose import Part, alt, leaf, machine, seq, text
from unmask.constrain.automata.machine import Machine, both
from unmask.constrain.automata.regex import found_in, own
from unmask.constrain.schema.combine import merge, merged_all, overlapping, worlds
from unmask.constrain.schema.containers import Style, chosen, ranked
from unmask.constrain.schema.distinct import told_apart
from unmask.constrain.schema.keywords import ALSO, EXCEPT, KEYWORDS, MEMBERS, asking, count_of, is_of, kinds_of, same
from unmask.constrain.schema.names import matches, sorted_out
from unmask.constrain.schema.negate import mentioned, negated
from unmask.constrain.schema.references import follow, followed, linked
from unmask.constrain.schema.scalars import STRING_WORDS, numeral, string
from unmask.constrain.schema.strings import at_byte, groups, quoted

WHITESPACE = {"compact": ("", ""), "spaced": (" ?", ""), "free": (r"[ \n\t\r]*", r"[ \n\t\r]*")}
"""What may stand behind commas and colons, and what at the other places where JSON allows it."""
DEEPEST = 64
"""Nested schemas; more is refused."""
_DEPENDENT = ("dependentRequired", "dependentSchemas", "dependencies")


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
    _patterns: dict[str, Machine] = field(default_factory=dict)
    _anything: dict[int, Machine] = field(default_factory=dict)

    def language(self) -> Machine:
        """All texts.

        Raises:
            Unsupported: a keyword that can't be honoured.
            BadInput: no schema, or one that no text is valid under.
            OverBudget: see `Meter`.
        """
        self.root = linked(self.root)
        found = machine(self.part(self.root, "#"), self.meter)
        if found.empty:
            raise BadInput(
                "no JSON text that can be written is valid under the schema (with recursion unrolled, keys as listed, "
                "numbers of at most 18 digits, and nothing that only breaks a format or a name of a pattern)"
            )
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
        rest = asking(schema, path)
        if not rest:
            if free not in self._anything:
                self._anything[free] = machine(self._values(rest, path, free), self.meter)
            return leaf(self._anything[free])
        if "$ref" in rest:
            return self._referred(rest, path, free)
        if "allOf" in rest:
            parts = self._list(rest.pop("allOf"), f"{path}/allOf")
            return self.part(merged_all(parts, path, rest), path, free)
        if (found := self._ways(rest, path)) is not None:
            word, ways = found
            return alt([self.part(merge(rest, way, path), f"{path}/{word}/{i}", free) for i, way in enumerate(ways)])
        if "enum" in rest or "const" in rest:
            return self._listed(rest, path, free)
        return self._values(rest, path, free)

    def _values(self, rest: dict[str, Any], path: str, free: int) -> Part:
        """What keywords of single types say."""
        kinds = kinds_of(rest, path)
        excluded = rest.get(EXCEPT, [])
        names = [("null", None), ("true", True), ("false", False)]
        words = {word: text(word) for word, value in names if not any(same(value, some) for some in excluded)}
        written = {
            "null": lambda: words.get("null", alt([])),
            "boolean": lambda: alt([words[word] for word in ("true", "false") if word in words]),
            "string": lambda: leaf(self._string(rest, path)),
            "number": lambda: leaf(numeral(rest, path, whole=False, meter=self.meter)),
            "integer": lambda: leaf(numeral(rest, path, whole=True, meter=self.meter)),
            "array": lambda: self._array(rest, path, free),
            "object": lambda: self._object(rest, path, free),
        }
        asked = KEYWORDS["array"] | KEYWORDS["object"] | {"type", MEMBERS}
        if free <= 0 and not set(rest) & asked:
            kinds = [kind for kind in kinds if kind not in ("array", "object")]
        return alt([written[kind]() for kind in kinds])

    def _list(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise BadInput(f"{path} is a list with at least one schema, got {json.dumps(value)[:60]}")
        return value

    # choices

    def _ways(self, rest: dict[str, Any], path: str) -> tuple[str, list[Any]] | None:
        """Take a keyword out of a schema that leaves a choice, and say which; None if there is none."""
        if "anyOf" in rest:
            return "anyOf", self._list(rest.pop("anyOf"), f"{path}/anyOf")
        if "oneOf" in rest:
            return "oneOf", self._one(rest, path)
        if "not" in rest:
            return "not", self._opposite(rest.pop("not"), rest, f"{path}/not")
        if "if" in rest:
            test, then, other = rest.pop("if"), rest.pop("then", True), rest.pop("else", True)
            ways = self._opposite(test, rest, f"{path}/if")
            return "if", [{"allOf": [test, then]}, *({"allOf": [way, other]} for way in ways)]
        for word in _DEPENDENT:
            if rest.get(word):
                (key, asked), *more = rest.pop(word).items()
                if more:
                    rest[word] = dict(more)
                asked = {"required": asked} if isinstance(asked, list) else asked
                return word, [{"properties": {key: False}}, {"allOf": [{"required": [key]}, asked]}]
        if ALSO in rest:
            first, *others = rest.pop(ALSO)
            if others:
                rest[ALSO] = others
            return "allOf", [first]
        return None

    def _one(self, rest: dict[str, Any], path: str) -> list[Any]:
        """Branches of which exactly one holds."""
        branches = self._list(rest.pop("oneOf"), f"{path}/oneOf")
        known = {word: rest[word] for word in ("type", "required") if word in rest}
        seen = [merge(known, self._followed(some, path), path) for some in branches]
        overlaps = overlapping(seen, path, self._followed)
        ways = []
        for i, some in enumerate(branches):
            others = [{"not": branches[j]} for j in sorted(overlaps[i])]
            try:
                for other in others:
                    self._opposite(other["not"], rest, f"{path}/oneOf")
            except Unsupported as error:
                raise Unsupported(
                    f"the schema's keyword 'oneOf' at {path} has branches {i} and {sorted(overlaps[i])} that may both "
                    f"hold ({error}); make them differ in type or in a constant, or use anyOf"
                ) from None
            ways.append(merged_all([some, *others], path))
        return ways

    def _opposite(self, schema: Any, rest: dict[str, Any], path: str) -> list[Any]:
        """Schemas under each of which a value is invalid under this one."""
        if "unevaluatedItems" in rest or "unevaluatedProperties" in rest:
            names = mentioned(schema)  # what only a schema speaks of that does not hold is not evaluated
            if names is None or names - {key for world in worlds(rest) for key in world.get("properties", {})}:
                raise Unsupported(
                    f"the schema's keyword {path.split('/')[-1]!r} can't be honoured beside unevaluated ones"
                )
        return negated(schema, path, self._followed)

    # references

    def _followed(self, schema: Any, path: str) -> Any:
        return followed(self.root, schema, path)

    def _referred(self, rest: dict[str, Any], path: str, free: int) -> Part:
        target = rest.pop("$ref")
        if self._inside.count(target) >= self.depth + 1:
            return alt([])  # deeper than we unroll: nothing
        whole = merged_all([follow(self.root, target, path)], path, rest)
        self._inside.append(target)
        try:
            return self.part(whole, path + "/$ref", free)
        finally:
            self._inside.pop()

    # values

    def _listed(self, rest: dict[str, Any], path: str, free: int) -> Part:
        values, excluded = rest.pop("enum", None), rest.pop(EXCEPT, [])
        if "const" in rest:
            const = rest.pop("const")
            values = [const] if values is None or any(same(const, value) for value in values) else []
        if not isinstance(values, list):
            raise BadInput(f"{path}/enum is a list, got {json.dumps(values)[:60]}")
        kinds = kinds_of(rest, path)
        fitting = [
            self._value(value)
            for value in values
            if any(is_of(value, kind) for kind in kinds) and not any(same(value, some) for some in excluded)
        ]
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
        spelled = json.dumps(value, ensure_ascii=False)
        return text(json.dumps(value) if any("\ud800" <= letter <= "\udfff" for letter in spelled) else spelled)

    def _enclosed(self, opening: str, parts: Sequence[Part], closing: str) -> Part:
        inside = [piece for i, part in enumerate(parts) for piece in ([self._comma] if i else []) + [part]]
        return seq([text(opening), self._pad, *inside, *([self._pad] if parts else []), text(closing)])

    def _string(self, rest: dict[str, Any], path: str) -> Machine:
        name = json.dumps({key: rest[key] for key in STRING_WORDS if key in rest})
        if name not in self._strings:
            self._strings[name] = quoted(self._bare(rest, path), self.meter)
        return self._strings[name]

    def _bare(self, rest: dict[str, Any], path: str) -> Machine:
        return string(rest, path, self._find, self.meter)

    def _find(self, pattern: str) -> Machine:
        if pattern not in self._patterns:
            self._patterns[pattern] = found_in(pattern, self.meter)
        return self._patterns[pattern]

    @property
    def _style(self) -> Style:
        return Style(self._comma, self._pad, self.any_order)

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

    # arrays

    def _array(self, rest: dict[str, Any], path: str, free: int) -> Part:
        low, high = self._counts(rest, ("minItems", "maxItems"), list, path)
        first = rest.get("prefixItems", [])
        items = rest.get("items", rest.get("unevaluatedItems", True))
        if high is None and items is False:
            high = len(first)
        if rest.get("uniqueItems") and (high is None or high > 1):
            if not first and "contains" not in rest:
                return self._set(items, path, free - 1, low, high)
            tuple_only = high is not None and high <= len(first) and "contains" not in rest
            if not tuple_only or any(overlapping(first, path, self._followed)):
                raise Unsupported(f"the schema's keyword 'uniqueItems' at {path} can't be honoured beside prefixItems")
        places = [(some, f"{path}/prefixItems/{i}") for i, some in enumerate(first)] + [(items, f"{path}/items")]
        if "contains" not in rest:
            ways = [[(0, self.part(some, at, free - 1))] for some, at in places]
            return self._row(ranked(ways, (low, high), (0, None), self._style))
        wanted, most = rest["contains"], count_of(rest, "maxContains", path)
        least = count_of(rest, "minContains", path)
        others = True if most is None else {"not": wanted}
        ways = [
            [
                (hit, self.part(merged_all([some, also], at), f"{at}/contains", free - 1))
                for hit, also in ((1, wanted), (0, others))
            ]
            for some, at in places
        ]
        return self._row(ranked(ways, (low, high), (1 if least is None else least, most), self._style))

    def _set(self, items: Any, path: str, free: int, low: int, high: int | None) -> Part:
        """Items that are unlike: of groups that exclude each other, at most one each."""
        found = told_apart(items, path, self._followed, self._bare)
        if len(found) == 1 and not (high == 1 or "const" in found[0]):
            raise Unsupported(
                f"the schema's keyword 'uniqueItems' at {path} can't be honoured: nothing tells these items apart; let "
                "them require a member that is a string or a number"
            )
        parts = [(False, self.part(merged_all([items, group], path), f"{path}/items", free)) for group in found]
        return self._row(chosen(parts, None, low, high, self._style))

    def _row(self, inside: Part) -> Part:
        return seq([text("["), self._pad, inside, text("]")])

    def _counts(
        self, rest: dict[str, Any], words: tuple[str, str], kind: type[list[Any]] | type[dict[str, Any]], path: str
    ) -> tuple[int, int | None]:
        """How many parts there may be; where a value with parts is excluded, more than it has."""
        low, high = (count_of(rest, word, path) for word in words)
        sizes = [len(value) + 1 for value in rest.get(EXCEPT, ()) if isinstance(value, kind)]
        return max([low or 0, *sizes]), high

    # objects

    def _object(self, rest: dict[str, Any], path: str, free: int) -> Part:
        groups_of, required = worlds(rest), rest.get("required", [])
        listed = [word for world in groups_of for word in world.get("properties", {})]
        if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
            raise BadInput(f"{path}/required is a list of names")
        low, high = self._counts(rest, ("minProperties", "maxProperties"), dict, path)
        patterns = [word for world in groups_of for word in world.get("patternProperties", {})]
        allowed = None
        if "propertyNames" in rest:
            allowed = machine(
                self.part(merged_all([{"type": "string"}, rest["propertyNames"]], path), path), self.meter
            )
        pairs = []
        for key in dict.fromkeys([*listed, *required]):
            value = self._member(rest, key, {p for p in patterns if matches(p, key, self._find)}, path)
            name = machine(self._value(key), self.meter)
            if value is not False or key in required:
                part = seq([leaf(name if allowed is None else both(name, allowed, self.meter)), self._colon])
                below = self.part(value, f"{path}/properties/{key}", free - 1)
                pairs.append((key in required, seq([part, below])))
        more = self._others(rest, [*listed, *required], patterns, path)
        spelled = [(quoted(names, self.meter), names, value) for names, value in more]
        spread = low > max(len(required), 1)  # a name that is written twice would count twice
        parts = []
        for quotes, names, value in spelled:
            kept = quotes if allowed is None else both(quotes, allowed, self.meter)
            below = self.part(value, f"{path}/additionalProperties", free - 1)
            if not spread:
                parts.append(seq([leaf(kept), self._colon, below]))
                continue
            for place in groups(names):
                some = both(quoted(both(names, at_byte(*place), self.meter), self.meter), kept, self.meter)
                pairs.append((False, seq([leaf(some), self._colon, below])))
        inside = chosen(pairs, alt(parts) if parts else None, low, high, self._style)
        return seq([text("{"), self._pad, inside, text("}")])

    def _member(self, rest: dict[str, Any], key: str | None, matched: set[str], path: str) -> Any:
        """The schema of a member by its name (None: of one that is not listed) and the patterns that match it."""
        found: list[Any] = []
        evaluated = any("additionalProperties" in world for world in worlds(rest))
        for world in worlds(rest):
            own = [world["properties"][key]] if key in world.get("properties", {}) else []
            own += [some for pattern, some in world.get("patternProperties", {}).items() if pattern in matched]
            evaluated |= bool(own)
            found += own or [world.get("additionalProperties", True)]
        if not evaluated:
            found.append(rest.get("unevaluatedProperties", True))
        return merged_all(found, path)

    def _others(
        self, rest: dict[str, Any], taken: Sequence[str], patterns: Sequence[str], path: str
    ) -> list[tuple[Machine, Any]]:
        """Names that are not listed and may be written, with the schema of their values."""
        asked = {"additionalProperties", "unevaluatedProperties"}
        spoken = any(set(world) & asked for world in [rest, *worlds(rest)])
        listed = any(value is not False for world in worlds(rest) for value in world.get("properties", {}).values())
        found = []
        for names, matched in sorted_out(taken, patterns, self._find, self.meter):
            value = self._member(rest, None, set(matched), path)
            if value is not False and (matched or spoken or not (listed or patterns)):
                found.append((names, value))
        return found
