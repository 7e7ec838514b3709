"""Schemas that hold together, as one schema, and schemas of which at most one can hold.

It works on the JSON of schemas alone; it does not know languages or tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from unmask.base.errors import BadInput, Unsupported
from unmask.constrain.schema.keywords import (
    ALSO,
    ANNOTATIONS,
    BYTE,
    EXCEPT,
    MEMBER_WORDS,
    MEMBERS,
    NO_MULTIPLE,
    NO_PATTERNS,
    PATTERNS,
    canonical,
    same,
)

_LARGEST = ("minLength", "minimum", "exclusiveMinimum", "minItems", "minProperties")
_SMALLEST = ("maxLength", "maximum", "exclusiveMaximum", "maxItems", "maxProperties")
_LISTS = (ALSO, BYTE, EXCEPT, MEMBERS, NO_MULTIPLE, NO_PATTERNS, "allOf")
"""Keywords whose lists hold side by side."""
_GROUPS = (
    ("$ref",),
    ("anyOf",),
    ("oneOf",),
    ("not",),
    ("if", "then", "else"),
    ("dependentRequired",),
    ("dependentSchemas",),
    ("dependencies",),
)
"""Keywords that can't be two in one schema, so that the second goes into `ALSO`, with those that belong to it."""
_UNEVALUATED = {"unevaluatedProperties": "additionalProperties", "unevaluatedItems": "items"}


def merged_all(schemas: Sequence[Any], path: str, parent: Any = True) -> Any:
    """One schema under which a value is valid if it is under all of these.

    Args:
        parent: a schema that the others lie in; what it says of the unevaluated counts what they evaluate.
    Raises:
        Unsupported: keywords that can't be merged.
    """
    some = [schema for schema in schemas if schema is not True and schema != {}]
    if parent in (True, {}) and len(some) > 1:
        some[0] = _sealed(some[0], path)
    return reduce(lambda one, other: merge(one, other, path), some, parent)


def merge(one: Any, other: Any, path: str) -> Any:
    """One schema for a schema and one that lies in it or beside it; raises as `merged_all`."""
    if one is False or other is False:
        return False
    if one is True or one == {}:
        return other
    if other is True or other == {}:
        return one
    if not isinstance(one, dict) or not isinstance(other, dict):
        raise BadInput(f"a schema is an object or a boolean, got {one!r} and {other!r} at {path}")
    other = _sealed(other, path)
    out, later = {**one, **other}, list[dict[str, Any]]()
    for keyword in set(one) & set(other):
        if not same(one[keyword], other[keyword]):
            out[keyword] = _both(keyword, one, other, path)
    for group in _GROUPS:
        if group[0] in one and group[0] in other and any(not same(one.get(k), other.get(k)) for k in group):
            out = {key: value for key, value in out.items() if key not in group}
            out |= {key: one[key] for key in group if key in one}
            later.append({key: other[key] for key in group if key in other})
    if later:
        out[ALSO] = [*out.get(ALSO, ()), *later]
    if not same(one.get("pattern"), other.get("pattern")) and "pattern" in one and "pattern" in other:
        out[PATTERNS] = [*out.get(PATTERNS, ()), one["pattern"]]
    if not same(one.get("const"), other.get("const")) and "const" in one and "const" in other:
        out["enum"] = []
    if (first := worlds(one)) and (second := worlds(other)):
        out = {key: value for key, value in out.items() if key not in MEMBER_WORDS} | {MEMBERS: [*first, *second]}
    if {"items", "prefixItems"} & set(one) and {"items", "prefixItems"} & set(other):
        _rows(one, other, out, path)
    return out


def worlds(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of keywords about members that all hold for an object."""
    own = {word: schema[word] for word in MEMBER_WORDS if word in schema}
    return [*schema.get(MEMBERS, ()), *([own] if own else [])]


def _both(keyword: str, one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> Any:
    """The value of a keyword that two schemas have, with unlike values."""
    a, b = one[keyword], other[keyword]
    if keyword in _LARGEST:
        return max(a, b)
    if keyword in _SMALLEST:
        return min(a, b)
    if keyword == "type":
        return _types(a, b)
    if keyword == "enum":
        return [value for value in a if any(same(value, some) for some in b)]
    if keyword in ("required", PATTERNS):
        return list(dict.fromkeys([*a, *b]))
    if keyword in _LISTS:
        return [*a, *b]
    if keyword == "uniqueItems":
        return a or b
    if keyword == "propertyNames":
        return {"allOf": [a, b]}
    if keyword == "multipleOf" and all(isinstance(x, int) and x > 0 for x in (a, b)):
        return math.lcm(a, b)
    if keyword in ANNOTATIONS or keyword in (*MEMBER_WORDS, "items", "prefixItems", "pattern", "const"):
        return b  # the last six: who called has the last word
    if any(keyword in group for group in _GROUPS):
        return b  # so it has here
    raise Unsupported(f"the schema asks for two values of {keyword!r} at {path}, which can't be merged")


def _types(a: Any, b: Any) -> list[str]:
    a, b = ([x] if isinstance(x, str) else list(x) for x in (a, b))
    shared = [kind for kind in a if kind in b]
    numbers = "integer" in {*a, *b} and "number" in {*a, *b} and not {"integer", "number"} & set(shared)
    return [
        *shared,
        *(["integer"] if numbers and {"integer", "number"} & set(a) and {"integer", "number"} & set(b) else []),
    ]


def _rows(one: Mapping[str, Any], other: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
    """Items of two schemas: each is under what both say of its place."""
    first, second = one.get("prefixItems", []), other.get("prefixItems", [])
    rest_a, rest_b = one.get("items", True), other.get("items", True)
    if first or second:
        out["prefixItems"] = [
            merged_all(
                [first[i] if i < len(first) else rest_a, second[i] if i < len(second) else rest_b],
                f"{path}/prefixItems/{i}",
            )
            for i in range(max(len(first), len(second)))
        ]
    if "items" in one or "items" in other:
        out["items"] = merged_all([rest_a, rest_b], f"{path}/items")


def _sealed(schema: Any, path: str) -> Any:
    """A schema that sees nothing of what stands beside it: what is unevaluated in it is what it does not list itself.

    Raises:
        Unsupported: that depends on which of its parts hold.
    """
    if not isinstance(schema, dict) or not set(_UNEVALUATED) & set(schema):
        return schema
    out = dict(schema)
    for keyword, closed in _UNEVALUATED.items():
        if keyword in out:
            value = out.pop(keyword)
            if value is True or any(closed in some for some in (out, *worlds(out))):
                continue
            if MEMBERS in out or "contains" in out or any(key in out for group in _GROUPS for key in group):
                raise Unsupported(
                    f"the schema's keyword {keyword!r} at {path} can't be honoured beside keywords that bring in other "
                    "schemas, in a schema that is part of another; write it in the outermost one"
                )
            out[closed] = value
    return out


def overlapping(schemas: Sequence[Any], path: str, resolve: Callable[[Any, str], Any]) -> list[set[int]]:
    """For each schema, which of the others may hold along with it, as far as can be told.

    What tells two apart are types, constants, bounds, and properties that are required.
    """
    found = [set[int]() for _ in schemas]
    for i, one in enumerate(schemas):
        for j in range(i):
            if not apart(one, schemas[j], path, resolve):
                found[i].add(j)
                found[j].add(i)
    return found


def apart(one: Any, other: Any, path: str, resolve: Callable[[Any, str], Any], depth: int = 4) -> bool:
    """Whether no value can be valid under both; false where it can't be told."""
    one, other = resolve(one, path), resolve(other, path)
    if one is False or other is False:
        return True
    if depth == 0 or not isinstance(one, dict) or not isinstance(other, dict):
        return False
    for keyword in ("anyOf", "oneOf"):
        for this, that in ((one, other), (other, one)):
            if keyword in this and all(apart(some, that, path, resolve, depth - 1) for some in this[keyword]):
                return True
    values_a, values_b = _values(one), _values(other)
    if values_a is not None and values_b is not None:
        return not values_a & values_b
    kinds_a, kinds_b = _kinds(one), _kinds(other)
    if not kinds_a & kinds_b:
        return True
    if kinds_a & kinds_b <= {"number", "integer"}:
        return _beyond(one, other) or _beyond(other, one)
    if kinds_a & kinds_b != {"object"}:
        return False
    a, b = one.get("properties", {}), other.get("properties", {})
    for this, that, own, others in ((one, other, a, b), (other, one, b, a)):
        for key in this.get("required", []):
            closed = that.get("additionalProperties") is False and "patternProperties" not in that
            if closed and key not in others:
                return True
            if key in own and key in others and apart(own[key], others[key], path, resolve, depth - 1):
                return True
    return False


def _beyond(low: Mapping[str, Any], high: Mapping[str, Any]) -> bool:
    """Whether all numbers of one schema lie below those of another."""
    infinite = float("inf")
    if low.get("exclusiveMaximum", infinite) <= high.get("minimum", -infinite):
        return True
    if low.get("maximum", infinite) <= high.get("exclusiveMinimum", -infinite):
        return True
    return low.get("maximum", infinite) < high.get("minimum", -infinite)


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """The values that a schema lists, if it does; numbers by value."""
    if "const" not in schema and "enum" not in schema:
        return None
    return {canonical(value) for value in ([schema["const"]] if "const" in schema else schema["enum"])}


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema allows; whole numbers are numbers, too."""
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if listed is not None:
        names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
        found = {names.get(type(value), "number") for value in listed}
    else:
        asked = schema.get("type", ["object", "array", "string", "number", "boolean", "null"])
        found = {asked} if isinstance(asked, str) else set(asked)
    return found | ({"number", "integer"} if found & {"number", "integer"} else set())
