"""What a schema excludes, as schemas: under each of them a value is invalid under the first one.

`not` becomes a choice of these, and with it all that says "otherwise": `else`, branches of `oneOf` that may overlap,
the values that `maxContains` doesn't count. They need not be all there are: a value that is invalid for a reason that
no schema can say (a format, a key of a pattern) is left out. It works on the JSON of schemas alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

from unmask.base.errors import BadInput, Unsupported
from unmask.constrain.schema.keywords import EXCEPT, NO_MULTIPLE, NO_PATTERNS, TYPES, asking, kinds_of

Resolve = Callable[[Any, str], Any]
_DEEPEST = 12


def negated(schema: Any, path: str, resolve: Resolve) -> list[Any]:
    """Schemas that exclude this one; none where every value is valid under it.

    Args:
        resolve: what a schema that is a reference leads to.
    Raises:
        Unsupported: none of its keywords can be said otherwise, or one of them can't be honoured at all.
    """
    found = _ways(schema, path, resolve, 0)
    if not found and _asks(schema, path, resolve):
        raise Unsupported(f"the opposite of the schema at {path} can't be honoured; no keyword of it has one")
    return found


def mentioned(schema: Any) -> set[str] | None:
    """The names of members that a schema speaks of, anywhere in it; None where a reference hides some."""
    if isinstance(schema, list):
        parts = [mentioned(some) for some in schema]
    elif isinstance(schema, dict):
        if "$ref" in schema:
            return None
        parts = [mentioned(some) for some in schema.values()]
        names = schema.get("required", []) if isinstance(schema.get("required"), list) else []
        parts.append({*map(str, names), *(schema["properties"] if isinstance(schema.get("properties"), dict) else ())})
    else:
        return set()
    return None if any(part is None for part in parts) else set[str]().union(*(part for part in parts if part))


def _asks(schema: Any, path: str, resolve: Resolve) -> bool:
    schema = resolve(schema, path)
    return schema is not True and bool(schema is False or asking(schema, path))


def _ways(schema: Any, path: str, resolve: Resolve, depth: int) -> list[Any]:
    schema = resolve(schema, path)
    if isinstance(schema, bool):
        return [] if schema else [True]
    if depth > _DEEPEST:
        raise Unsupported(f"the schema at {path} says the opposite of what nests deeper than {_DEEPEST} levels")
    if not isinstance(schema, dict):
        raise BadInput(f"a schema is an object or a boolean, got {type(schema).__name__} at {path}")
    words = asking(schema, path)

    def below(part: Any) -> list[Any]:
        return _ways(part, path, resolve, depth + 1)

    return [way for keyword in words if keyword in _OF for way in _OF[keyword](words[keyword], words, below)]


Below = Callable[[Any], list[Any]]


def _types(value: Any, words: Mapping[str, Any], below: Below) -> list[Any]:
    held = kinds_of({"type": value}, "not")
    others = [kind for kind in TYPES if kind not in held and kind != "integer"]
    broken = "integer" in held and "number" not in held
    others = [kind for kind in others if not (broken and kind == "number")]
    ways: list[Any] = [{"type": others}] if others else []
    return [*ways, {"type": "number", NO_MULTIPLE: [1]}] if broken else ways


def _bound(kind: str, other: str, step: int) -> Callable[..., list[Any]]:
    def ways(value: Any, words: Mapping[str, Any], below: Below) -> list[Any]:
        return [] if step < 0 and value <= 0 else [{"type": kind, other: value + step}]

    return ways


def _multiple(value: Any, words: Mapping[str, Any], below: Below) -> list[Any]:
    return [{"type": "number", NO_MULTIPLE: [int(value)]}] if value == int(value) and value > 0 else []


def _members(value: Any, words: Mapping[str, Any], below: Below) -> list[Any]:
    return [
        {"type": "object", "required": [key], "properties": {key: way}}
        for key, some in value.items()
        for way in below(some)
    ]


def _rows(value: Any, words: Mapping[str, Any], below: Below) -> list[Any]:
    return [
        {"type": "array", "prefixItems": [*[True] * i, way], "minItems": i + 1}
        for i, some in enumerate(value)
        for way in below(some)
    ]


def _items(value: Any, words: Mapping[str, Any], below: Below) -> list[Any]:
    if "prefixItems" in words:
        return []
    ways = below(value)
    return [{"type": "array", "contains": {"anyOf": ways}}] if ways else []


def _contains(value: Any, words: Mapping[str, Any], below: Below) -> list[Any]:
    if words.get("minContains", 1) != 1:
        return []
    ways = below(value)
    return [{"type": "array", "items": {"anyOf": ways} if ways else False}]


def _dependent(value: Any, words: Mapping[str, Any], below: Below) -> list[Any]:
    return [
        {"type": "object", "required": [key], "properties": {name: False}}
        for key, names in value.items()
        if isinstance(names, list)
        for name in names
    ]


def _test(value: Any, words: Mapping[str, Any], below: Below) -> list[Any]:
    yes = [{"allOf": [value, way]} for way in below(words.get("then", True))]
    no = [{"allOf": [test, way]} for test in below(value) for way in below(words.get("else", True))]
    return [*yes, *no]


def _none(value: Any, words: Mapping[str, Any], below: Below) -> list[Any]:
    """Of a choice none may hold."""
    parts = [below(some) for some in value]
    return [{"allOf": [{"anyOf": ways} for ways in parts]}] if all(parts) else []


_OF: Mapping[str, Callable[[Any, Mapping[str, Any], Below], list[Any]]] = {
    "type": _types,
    "const": lambda value, words, below: [{EXCEPT: [value]}],
    "enum": lambda value, words, below: [{EXCEPT: list(value)}],
    "minLength": _bound("string", "maxLength", -1),
    "maxLength": _bound("string", "minLength", 1),
    "pattern": lambda value, words, below: [{"type": "string", NO_PATTERNS: [value]}],
    "minimum": lambda value, words, below: [{"type": "number", "exclusiveMaximum": value}],
    "maximum": lambda value, words, below: [{"type": "number", "exclusiveMinimum": value}],
    "exclusiveMinimum": lambda value, words, below: [{"type": "number", "maximum": value}],
    "exclusiveMaximum": lambda value, words, below: [{"type": "number", "minimum": value}],
    "multipleOf": _multiple,
    "minItems": _bound("array", "maxItems", -1),
    "maxItems": _bound("array", "minItems", 1),
    "prefixItems": _rows,
    "items": _items,
    "contains": _contains,
    "minProperties": _bound("object", "maxProperties", -1),
    "maxProperties": _bound("object", "minProperties", 1),
    "required": lambda value, words, below: [{"type": "object", "properties": {key: False}} for key in value],
    "properties": _members,
    "dependentRequired": _dependent,
    "dependencies": _dependent,
    "$ref": lambda value, words, below: below({"$ref": value}),
    "allOf": lambda value, words, below: [way for some in value for way in below(some)],
    "anyOf": _none,
    "oneOf": _none,
    "not": lambda value, words, below: [value],
    "if": _test,
}
"""For each keyword the schemas that exclude what it says; those that are missing have none."""
