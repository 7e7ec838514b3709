"""Schemas that hold together, as one schema, and schemas of which at most one can hold.

It works on the JSON of schemas alone; it does not know languages or tokens.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from unmask.base.errors import Unsupported
from unmask.constrain.keywords import PATTERNS

_LARGEST = ("minLength", "minimum", "exclusiveMinimum", "minItems", "minProperties")
_SMALLEST = ("maxLength", "maximum", "exclusiveMaximum", "maxItems", "maxProperties")
_CLOSED = {"properties", "required", "additionalProperties"}


def merged_all(schemas: Sequence[Any], path: str) -> Any:
    """One schema under which a value is valid if it is under all of these.

    Raises:
        Unsupported: keywords that can't be merged.
    """
    return reduce(lambda one, other: merge(one, other, path), schemas, {})


def merge(one: Any, other: Any, path: str) -> Any:
    """One schema for two; raises as `merged_all`."""
    if one is False or other is False:
        return False
    if one is True or one == {}:
        return other
    if other is True or other == {}:
        return one
    out = {**one, **other}
    for keyword in set(one) & set(other):
        if one[keyword] != other[keyword]:
            out[keyword] = _both(keyword, one, other, path)
            if keyword == "pattern":
                out[PATTERNS] = [*one.get(PATTERNS, []), *other.get(PATTERNS, []), one["pattern"]]
    if _CLOSED & set(one) and _CLOSED & set(other):
        _members(one, other, out, path)
    return out


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
        return [value for value in a if any(json.dumps(value) == json.dumps(some) for some in b)]
    if keyword in ("required", PATTERNS):
        return list(dict.fromkeys([*a, *b]))
    if keyword in ("properties", "additionalProperties"):
        return a  # `_members` has the last word
    if keyword == "items":
        return merge(a, b, f"{path}/items")
    if keyword in ("pattern", "title", "description", "default", "examples", "$comment", "$id", "$schema"):
        return b
    if keyword in ("$defs", "definitions"):
        return {**a, **b}
    raise Unsupported(f"the schema asks for two values of {keyword!r} at {path}, which can't be merged")


def _types(a: Any, b: Any) -> list[str]:
    a, b = ([x] if isinstance(x, str) else list(x) for x in (a, b))
    shared = [kind for kind in a if kind in b]
    numbers = "integer" in {*a, *b} and "number" in {*a, *b} and not {"integer", "number"} & set(shared)
    return [
        *shared,
        *(["integer"] if numbers and {"integer", "number"} & set(a) and {"integer", "number"} & set(b) else []),
    ]


def _members(one: Mapping[str, Any], other: Mapping[str, Any], out: dict[str, Any], path: str) -> None:
    """Properties of two schemas: each is valid under both, a property that one does not list under its other ones."""
    a, b = one.get("properties", {}), other.get("properties", {})
    rest_a, rest_b = one.get("additionalProperties", True), other.get("additionalProperties", True)
    keys = dict.fromkeys([*a, *b])
    if keys:
        out["properties"] = {
            key: merge(a.get(key, rest_a), b.get(key, rest_b), f"{path}/properties/{key}") for key in keys
        }
    if "additionalProperties" in one or "additionalProperties" in other:
        # what only one of them opens stays as closed as the other's own words leave it
        out["additionalProperties"] = merge(rest_a, rest_b, f"{path}/additionalProperties")


def disjoint(schemas: Sequence[Any], path: str, resolve: Callable[[Any, str], Any]) -> None:
    """Make sure that no value is valid under two of these.

    Raises:
        Unsupported: two of them may overlap, as far as can be told from types, constants and required properties.
    """
    for i, one in enumerate(schemas):
        for j in range(i):
            if not _apart(one, schemas[j], path, resolve):
                raise Unsupported(
                    f"the schema's keyword 'oneOf' at {path} has branches {j} and {i} that may both hold; make them "
                    "differ in type or in a constant, or use anyOf"
                )


def _apart(one: Any, other: Any, path: str, resolve: Callable[[Any, str], Any], depth: int = 4) -> bool:
    """Whether no value can be valid under both."""
    one, other = resolve(one, path), resolve(other, path)
    if one is False or other is False:
        return True
    if depth == 0 or not isinstance(one, dict) or not isinstance(other, dict):
        return False
    for keyword in ("anyOf", "oneOf"):
        for this, that in ((one, other), (other, one)):
            if keyword in this and all(_apart(some, that, path, resolve, depth - 1) for some in this[keyword]):
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
            if that.get("additionalProperties") is False and key not in others:
                return True
            if key in own and key in others and _apart(own[key], others[key], path, resolve, depth - 1):
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
    return {_canonical(value) for value in ([schema["const"]] if "const" in schema else schema["enum"])}


def _canonical(value: Any) -> str:
    def number(digits: str) -> float | int:
        return int(float(digits)) if float(digits).is_integer() else float(digits)

    return json.dumps(json.loads(json.dumps(value), parse_float=number), sort_keys=True)


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
