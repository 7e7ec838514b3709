"""Keywords that leave a choice, sets, names by pattern, references by name: sound, and no narrower than need be."""

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schema import accepted, written

from unmask.base.errors import BadInput, UnmaskError, Unsupported
from unmask.constrain.automata.budget import Meter
from unmask.constrain.schema.numerals import divided
from unmask.constrain.spec import Constraint, Schema

CORPUS = [
    pytest.param(name := f"{file.stem}: {case['name']}", case["schema"], id=name)
    for file in sorted((Path(__file__).parent / "corpus").glob("*.jsonl"))
    for case in map(json.loads, file.read_text().splitlines())
]
REFUSED = {
    "builds: remote_reference": "job.schema.json",
    "configs: dynamic_tree": r"\$dynamicRef",
    "openapi: money_string": "iso-4217",
    "zod: emoji_format": "emoji",
}
"""All of the corpus that is."""
KIND = {"properties": {"kind": {"enum": ["a", "b"]}, "x": {"type": "integer"}}, "required": ["kind"], "type": "object"}
BOTH = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "additionalProperties": False}
TREE = {
    "$id": "http://x.org/tree",
    "type": "object",
    "properties": {"sub": {"$ref": "node"}},
    "$defs": {"n": {"$id": "node", "$anchor": "here", "type": "array", "items": {"$ref": "tree"}, "maxItems": 1}},
}


def judged(schema, text: str) -> bool:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER).is_valid(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"not": {"type": "integer"}}, ['"a"', "1.5", "null", "[]"], ["1", "-3"]),
        ({"not": {"type": ["string", "number"]}}, ["null", "true", "[]"], ['"a"', "1", "1.5"]),
        ({"type": "integer", "not": {"const": 5}}, ["4", "55", "-5"], ["5"]),
        ({"type": "number", "not": {"enum": [0, 1.5]}}, ["0.5", "15", "-1.5"], ["0", "0.0", "-0", "1.5", "1.50"]),
        ({"type": "string", "not": {"enum": ["", "no"]}}, ['"n"', '"non"'], ['""', '"no"']),
        ({"type": "string", "not": {"pattern": r"^\s*$"}}, ['"a b"'], ['""', '"  "']),
        ({"type": "string", "not": {"minLength": 3}}, ['"ab"', '""'], ['"abc"']),
        ({"not": {"type": "object", "required": ["a"]}}, ["1", "{}", '{"b":1}'], ['{"a":1}']),
        ({"type": "array", "not": {"const": []}}, ["[1]", "[1,2]"], ["[]"]),
        ({"not": {"anyOf": [{"type": "string"}, {"minimum": 3}]}}, ["2", "-1.5"], ["null", '"a"', "3", "4"]),
        ({"not": {"not": {"type": "null"}}}, ["null"], ["1"]),
        ({"type": "array", "not": {"items": {"type": "integer"}}}, ['["a"]', '[1,"a"]'], ["[]", "[1,2]"]),
        (
            {**KIND, "if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["x"]}},
            ['{"kind":"a","x":1}', '{"kind":"b"}', '{"kind":"b","x":1}'],
            ['{"kind":"a"}'],
        ),
        (
            {**KIND, "if": {"properties": {"kind": {"const": "a"}}}, "else": {"properties": {"x": False}}},
            ['{"kind":"a","x":1}', '{"kind":"b"}', '{"kind":"a"}'],
            ['{"kind":"b","x":1}'],
        ),
        ({"allOf": [{"if": {"type": "null"}}, {"then": {"type": "null"}}, {"else": False}]}, ["1", "null"], []),
        ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, ["1", "2.5", "-4"], ["3", "1.5"]),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, ["1.5"], ["1"]),
        (
            {**BOTH, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            ['{"a":1}', '{"b":2}'],
            ["{}", '{"a":1,"b":2}'],
        ),
        ({**BOTH, "dependentRequired": {"a": ["b"]}}, ["{}", '{"b":2}', '{"a":1,"b":2}'], ['{"a":1}']),
        ({**BOTH, "dependencies": {"a": ["b"]}}, ["{}", '{"b":2}', '{"a":1,"b":2}'], ['{"a":1}']),
        ({**BOTH, "dependentSchemas": {"a": {"minProperties": 2}}}, ['{"b":2}', '{"a":1,"b":2}'], ['{"a":1}']),
        (
            {"type": "object", "patternProperties": {"^x": {"const": 1}, "y$": {"type": "integer"}}},
            ["{}", '{"x":1}', '{"y":7}', '{"xy":1,"y":2}'],
            ['{"x":2}', '{"xy":7}', '{"y":"a"}', '{"z":1}'],
        ),
        (
            {"properties": {"xa": {"type": "integer"}}, "patternProperties": {"^x": {"minimum": 3}}, "type": "object"}
            | {"additionalProperties": {"type": "null"}},
            ['{"xa":3}', '{"xa":4,"b":null}', '{"xb":"s"}'],
            ['{"xa":2}', '{"xa":"s"}', '{"b":3}', '{"xb":2}'],
        ),
        ({"type": "object", "propertyNames": {"maxLength": 2}}, ["{}", '{"ab":1}'], ['{"abc":1}']),
        ({**BOTH, "propertyNames": {"const": "a"}}, ["{}", '{"a":1}'], ['{"b":2}']),
        (
            {"type": "object", "additionalProperties": {"const": 1}, "minProperties": 2},
            ['{"a":1,"z":1}'],
            ['{"a":1}', '{"a":1,"a":1}', "{}"],
        ),
        (
            {"allOf": [{"properties": {"a": {"const": 1}}}], "properties": {"b": {"const": 2}}, "type": "object"}
            | {"unevaluatedProperties": False},
            ['{"a":1}', '{"b":2}'],
            ['{"c":3}'],
        ),
        (
            {"allOf": [{"properties": {"a": True}, "unevaluatedProperties": False}, {"properties": {"b": True}}]},
            ['{"a":1}', "{}"],
            ['{"b":1}'],
        ),
        ({"type": "array", "contains": {"const": 5}, "items": {"type": "integer"}}, ["[5]", "[1,5,5]"], ["[]", "[1]"]),
        (
            {"type": "array", "items": {"type": "integer"}, "contains": {"minimum": 5}, "minContains": 2}
            | {"maxContains": 2, "maxItems": 3},
            ["[5,6]", "[1,5,7]", "[5,1,6]"],
            ["[5]", "[5,6,7]", "[1,2,5,5]"],
        ),
        ({"uniqueItems": True, "type": "array", "items": {"enum": [1, 2]}}, ["[]", "[1]", "[1,2]"], ["[1,1]"]),
        (
            {"uniqueItems": True, "type": "array", "items": {"type": "string"}},
            ['["a"]', '["bar","foo"]'],
            ['["a","a"]'],
        ),
        ({"uniqueItems": True, "type": "array"}, ['["a",1,false,true,null]'], ["[1,1.0]", "[null,null]"]),
        ({"uniqueItems": True, "type": "array", "maxItems": 1}, ["[]", "[{}]"], ["[1,2]"]),
        (
            {"type": "array", "prefixItems": [{"const": 1}, True], "items": {"const": 2}}
            | {"allOf": [{"items": {"type": "integer"}}]},
            ["[]", "[1,9,2]"],
            ['[1,"a"]', "[2]"],
        ),
        (
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "items": [{"type": "null"}],
                "additionalItems": False,
            }
            | {"type": "array"},
            ["[]", "[null]"],
            ["[1]", "[null,null]"],
        ),
        ({"type": "number", "multipleOf": 0.01}, ["0", "-3", "0.5", "123.25"], ["0.005", "0.07"]),
        ({"type": "number", "multipleOf": 1.5}, ["0", "4.5", "-3"], ["35", "1"]),
        ({"type": "integer", "multipleOf": 2.5}, ["5", "-10"], ["2", "2.5"]),
        (
            {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
            ["-9007199254740991", "0", "9007199254740991", "8999999999999999"],
            ["9007199254740992", "-9007199254740992", "99999999999999999"],
        ),
        ({"type": "number", "maximum": 9007199254740991}, ["9007199254740991", "-1.5"], ["9007199254740992"]),
        ({"type": "integer", "format": "int32"}, ["2147483647"], ["2147483648"]),
        (TREE, ["{}", '{"sub":[]}', '{"sub":[{"sub":[]}]}'], ['{"sub":{}}', '{"sub":[[]]}']),
        ({"properties": {"a": {"$ref": "#p"}}, "$defs": {"x": {"$anchor": "p", "const": 1}}}, ['{"a":1}'], ['{"a":2}']),
        ({"x-order": 3, "nullable": True, "example": 3, "type": "string", "format": "password"}, ['"a"'], ["null"]),
    ],
)
def test_the_language_is_what_the_schema_says(schema, valid, invalid):
    language = Constraint(body=Schema.of(schema)).language(Meter())
    for text in valid:
        assert judged(schema, text), text
        assert language.accepts(text.encode()), text
    for text in invalid:
        assert not language.accepts(text.encode()), text


@pytest.mark.parametrize(
    ("schema", "error", "said"),
    [
        ({"not": {"format": "date"}}, Unsupported, "opposite"),
        ({"not": {}}, BadInput, "no JSON text"),
        ({"not": {"typo": 1}}, Unsupported, "typo"),
        ({"type": "array", "uniqueItems": True, "items": {"type": "object"}}, Unsupported, "uniqueItems"),
        ({"type": "array", "uniqueItems": True, "contains": {"const": 1}}, Unsupported, "uniqueItems"),
        (
            {"allOf": [{"anyOf": [{"required": ["a"]}], "unevaluatedProperties": False}, {"type": "object"}]},
            Unsupported,
            "unevaluatedProperties",
        ),
        ({"unevaluatedProperties": False, "not": {"required": ["a"]}}, Unsupported, "not"),
        ({"type": "number", "multipleOf": 0.00001}, Unsupported, "multipleOf"),
        ({"$ref": "other.json"}, Unsupported, "other.json"),
        ({"patternProperties": True}, BadInput, "patternProperties"),
        ({"anyOf": [{"if": {"type": "null"}, "then": 5}]}, BadInput, "an object or a boolean"),
        ({"type": "object", "patternProperties": {f"{i}": {} for i in range(9)}}, Unsupported, "patternProperties"),
    ],
)
def test_what_cannot_be_said_is_refused(schema, error, said):
    with pytest.raises(error, match=said):
        accepted(schema, "")


def test_numbers_that_doubles_round_are_not_written():
    """Under a bound that is left out, or unlike a value, no number may become that value when it is read."""
    for schema in ({"exclusiveMaximum": 1}, {"not": {"const": 1}}, {"not": {"type": "integer"}}):
        schema |= {"type": "number"}
        assert not accepted(schema, "0.99999999999999999")
        assert accepted(schema, "0.99999999999999")


@pytest.mark.parametrize("step", ["0.01", "0.1", "0.05", "0.25", "0.001", "2.5"])
def test_multiples_are_multiples_by_doubles_too(step):
    from decimal import Decimal

    language = divided(Decimal(step))
    units = [Decimal(step) / 10 * k for k in [*range(3000), 10**6, 10**6 + 5, 12345678]]
    agreed = [n for n in units if n % Decimal(step) == 0 and (float(n) / float(step)).is_integer()]
    for n in units:
        wanted = n in agreed
        if language.accepts(f"{n.normalize():f}".encode()):
            assert wanted, n
    assert all(language.accepts(f"{n.normalize():f}".encode()) for n in agreed if n < 10_000 * Decimal(step))


def test_keys_of_a_set_of_names_come_once():
    text = Constraint(body=Schema.of({"type": "object", "minProperties": 3, "additionalProperties": {"type": "null"}}))
    for one in written(text, range(6)):
        assert len(json.loads(one)) >= 3


PARTS = st.sampled_from(
    [
        {"type": "integer"},
        {"type": "string", "maxLength": 2},
        {"const": "x"},
        {"enum": [1, "x", None]},
        {"minimum": 2},
        {"required": ["a"]},
        {"properties": {"a": {"const": 1}}},
        {"properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["b"]},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": 1}}, "additionalProperties": False},
        True,
    ]
)
SCHEMAS = st.recursive(
    PARTS,
    lambda inner: st.one_of(
        st.builds(lambda some: {"not": some}, inner),
        st.builds(lambda some: {"oneOf": some}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda some: {"allOf": some}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, inner, inner, inner),
        st.builds(lambda some: {"type": "array", "contains": some, "maxItems": 2}, inner),
        st.builds(lambda some: {"type": "array", "items": some, "uniqueItems": True, "maxItems": 3}, inner),
        st.builds(
            lambda a, b: {"type": "object", "patternProperties": {"^a": a, "b$": b}, "maxProperties": 2}, inner, inner
        ),
        st.builds(
            lambda a, b: {"properties": {"a": a}, "dependentSchemas": {"a": b}, "maxProperties": 2}, inner, inner
        ),
    ),
    max_leaves=4,
)


@settings(max_examples=20, deadline=None)
@given(SCHEMAS, st.integers(0, 99))
def test_whatever_goes_together_what_is_written_is_valid(schema, seed):
    try:
        texts = written(Constraint(body=Schema.of(schema, depth=1)), range(seed, seed + 3))
    except (BadInput, Unsupported):
        return
    for text in texts:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(("name", "schema"), CORPUS[::7])
def test_schemas_as_people_write_them(name, schema):
    asked = Constraint(body=Schema.of(schema, depth=2))
    if name in REFUSED:
        with pytest.raises(UnmaskError, match=REFUSED[name]):
            asked.language(Meter())
        return
    for text in written(asked, range(2)):
        assert judged(schema, text), text


def test_what_is_refused_of_the_corpus_is_named():
    cases = {case.values[0]: case.values[1] for case in CORPUS}
    for name, said in REFUSED.items():
        with pytest.raises(UnmaskError, match=said):
            accepted(cases[name], "")
