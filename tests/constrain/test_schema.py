import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.base.errors import BadInput, OverBudget, UnknownName, Unsupported
from unmask.base.step import State
from unmask.constrain.automata.budget import Budget, Meter
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.compile import compile_here
from unmask.constrain.holes import Holes, Span
from unmask.constrain.schema.writer import WHITESPACE
from unmask.constrain.spec import Constraint, Schema

FILES = sorted((Path(__file__).parent / "schemas").glob("*.json"))
PIECES = [b'":', b'", "', b"true", b"null", b'{"', b"na", b"me", b"1", b"23", b"\xc3", b"\xa9", b'"]', b"]}"]
VOCABULARY = Vocabulary([b"", b"", *(bytes([byte]) for byte in range(256)), *PIECES], ends=[1])
MANY_STATES = ("expression", "recipe", "tree")
"""Schemas that go beyond the budget when keys may come in any order."""
MORE = 48
"""Positions beyond the shortest text."""


def written(constraint: Constraint, seeds: range) -> list[str]:
    """Texts drawn from all that fit a canvas, each token as likely as the next."""
    automaton = compile_here(constraint, VOCABULARY)
    length, spell = automaton.shortest + MORE, VOCABULARY.tokens
    holes, texts = Holes(spell), []
    holes.enter(0, [Span(automaton=automaton, start=0, stop=length, ends=True)])
    holes.update(torch.zeros(1, length, dtype=torch.int64), torch.full((1, length), int(State.OPEN), dtype=torch.uint8))
    at = torch.arange(length)
    uniform = torch.zeros(length, len(spell), dtype=torch.float64)
    for seed in seeds:
        ids = holes.sample(torch.zeros_like(at), at, uniform, torch.full_like(at, seed), torch.zeros_like(at))
        texts.append(b"".join(spell[i] for i in ids.tolist()).decode())
    return texts


def accepted(schema, text: str, **options) -> bool:
    return Constraint(body=Schema.of(schema, **options)).language(Meter()).accepts(text.encode())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_written_is_valid(file):
    schema = json.loads(file.read_text())
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    options = {
        "whitespace": list(WHITESPACE)[len(file.stem) % 3],
        "any_order": len(file.stem) % 2 == 0 and file.stem not in MANY_STATES,
    }
    texts = written(Constraint(body=Schema.of(schema, **options)), range(4))
    for text in texts:
        checker.validate(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "integer", "minimum": -5, "maximum": 12}, ["-5", "0", "12"], ["-6", "13", "1.5", "007", '"1"']),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 2.5}, ["0.1", "2.5", "2"], ["0", "0.0", "2.51", "-1"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"é☃"', '"\\n\\""'], ['"a"', '"abcd"', "ab"]),
        ({"type": "string", "pattern": "^a.c$"}, ['"abc"', '"a\\"c"', '"a☃c"'], ['"xabc"', '"a\\nc"', '"abcd"']),
        ({"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['"ac"']),
        ({"enum": [1, "a", None]}, ["1", '"a"', "null"], ["2", "a"]),
        (
            {"type": "array", "items": {"type": "integer"}, "minItems": 2},
            ["[1,2]", "[1, 2,3]"],
            ["[1]", "[]", '[1,"a"]'],
        ),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        (
            {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}},
            ["[]", "[1]", "[1,2,2]"],
            ["[2]", "[1,1]"],
        ),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "minItems": 2}, ["[1,2]", "[1,2,3]"], ["[1]"]),
        ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, ["null", "true"], ["1"]),
        (
            {"type": "object", "minProperties": 1, "additionalProperties": {"const": 1}},
            ['{"a":1}', '{"a":1,"b":1}'],
            ["{}"],
        ),
        (
            {"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"], "type": "object"},
            ['{"a":1,"b":2}', '{"b": 2}'],
            ['{"a":1}', '{"b":2,"a":1}', '{"a":1, "b":2,}', '{"b":2,"c":3}'],
        ),
        (
            {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": {"const": 2}},
            ["{}", '{"a":1,"x":2}', '{"x":2}'],
            ['{"a":2}', '{"x":1}'],
        ),
    ],
)
def test_the_language_is_what_the_schema_says(schema, valid, invalid):
    for text in valid:
        jsonschema.validate(json.loads(text), schema)
        assert accepted(schema, text), text
    for text in invalid:
        assert not accepted(schema, text), text


def test_keys_in_any_order_if_wanted():
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["b"]}
    assert not accepted(schema, '{"b":2,"a":1}')
    for text, good in (
        ('{"b":2,"a":1}', 1),
        ('{"a":1,"b":2}', 1),
        ('{"b":2}', 1),
        ('{"a":1}', 0),
        ('{"b":2,"b":2}', 0),
    ):
        assert accepted(schema, text, any_order=True) == bool(good)


def test_whitespace_is_a_policy():
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2}
    expected = {"[1,1]": "compact spaced free", "[1, 1]": "spaced free", "[ 1 ,\n1]": "free", "[1,  1]": "free"}
    for text, policies in expected.items():
        assert {name for name in WHITESPACE if accepted(schema, text, whitespace=name)} == set(policies.split())
    with pytest.raises(UnknownName, match="spaced"):
        Schema.of({}, whitespace="space")


def test_recursion_is_unrolled_to_a_depth():
    schema = {"type": "array", "items": {"$ref": "#"}}
    assert accepted(schema, "[[[]]]", depth=2)
    assert not accepted(schema, "[[[[[[]]]]]]", depth=2)
    with pytest.raises(BadInput, match="no JSON text"):
        accepted(
            {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}}, ""
        )


@pytest.mark.parametrize("keyword", ["$dynamicRef", "$recursiveRef", "id", "typo", "(patterns)", "(except)"])
def test_what_cannot_be_honoured_is_refused_by_name(keyword):
    with pytest.raises(Unsupported, match=re.escape(keyword)):
        accepted({"type": "object", "properties": {"a": {keyword: True}}}, "")


@pytest.mark.parametrize(
    ("schema", "error", "said"),
    [
        ({"$ref": "http://x/y"}, Unsupported, "http://x/y"),
        ({"$ref": "#/$defs/none"}, BadInput, "leads nowhere"),
        ({"type": "strin"}, BadInput, "strin"),
        ({"type": "string", "format": "datum"}, UnknownName, "date"),
        ({"type": "string", "pattern": "(?=a)b"}, Unsupported, "looks around"),
        ({"type": "string", "pattern": r"(a)\1"}, Unsupported, "refers back"),
        ({"type": "string", "pattern": r"\bfoo"}, Unsupported, "word border"),
        ({"type": "string", "pattern": "(a"}, BadInput, "not closed"),
        ({"type": "string", "minLength": -1}, BadInput, "minLength"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, BadInput, "no JSON text"),
        ({"oneOf": [{"format": "date"}, {"format": "time"}]}, Unsupported, "oneOf"),
        ({"allOf": [{"format": "date"}, {"format": "time"}]}, Unsupported, "format"),
        (3, BadInput, "object or a boolean"),
        (False, BadInput, "no JSON text"),
    ],
)
def test_bad_schemas_are_told_what_is_wrong(schema, error, said):
    with pytest.raises(error, match=said):
        accepted(schema, "")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 10**9},
        {"type": "array", "items": {"type": "number"}, "maxItems": 10**9},
        {"type": "array", "minItems": 10**9},
        {"type": "object", "properties": {f"key{i}": {"type": "string"} for i in range(40)}},
        {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}] * 9}, "b": {"anyOf": [{"$ref": "#/$defs/a"}] * 9}},
        },
    ],
    ids=["string", "items", "empty items", "any order", "references"],
)
def test_what_explodes_ends_at_the_budget(schema):
    asked = Constraint(body=Schema.of(schema, any_order=True, depth=8))
    with pytest.raises((OverBudget, Unsupported, BadInput)):
        asked.language(Meter(Budget(time_s=0.5, states=3000)))


def test_deep_nesting_is_refused():
    schema: dict = {"type": "integer"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    with pytest.raises(Unsupported, match="deeper"):
        accepted(schema, "")


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "integer", "minimum": 0, "maximum": 12},
            {"type": "string", "maxLength": 3},
            {"const": "x"},
            {"type": "boolean"},
            {"enum": [None, 1.5]},
            {"type": "number", "minimum": -1.5},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(
            lambda x, low: {"type": "array", "items": x, "minItems": low, "maxItems": low + 2}, inner, st.integers(0, 2)
        ),
        st.builds(lambda x: {"anyOf": x}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda p, r: {"type": "object", "properties": p, "required": sorted(set(p) & r)},
            st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
            st.sets(st.sampled_from("abc")),
        ),
    ),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None)
@given(SCHEMAS, st.integers(0, 99))
def test_random_schemas_write_what_is_valid(schema, seed):
    for text in written(Constraint(body=Schema.of(schema)), range(seed, seed + 2)):
        jsonschema.validate(json.loads(text), schema)
