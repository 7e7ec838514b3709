"""Schemas as other generators write them, and what is none."""

import json

import jsonschema
import pytest
from test_schema import accepted, written

from unmask.base.errors import BadInput
from unmask.constrain.automata.budget import Meter
from unmask.constrain.spec import Constraint, Schema

LINK = {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        # pydantic: addresses, decimals, versions of UUIDs
        (LINK, ['"https://a.b/c"'], ['""', f'"https://a.b/{"c" * 2083}"']),
        (
            {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
            ['"-1.5"', '".5"', '"007"'],
            ['""', '"-."', '"1.5.2"', '"a1"'],
        ),
        (
            {"type": "string", "format": "uuid4"},
            ['"01234567-89ab-4cde-8f01-23456789abcd"'],
            ['"01234567-89ab-1cde-8f01-23456789abcd"'],
        ),
        # people: passwords
        (
            {"type": "string", "pattern": r"^(?=.*[A-Z])(?=.*\d)[A-Za-z\d]{4,}$"},
            ['"aB34"'],
            ['"ab34"', '"aB3"', '"aB3 4"'],
        ),
    ],
)
def test_what_generators_write(schema, valid, invalid):
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for text in valid:
        assert checker.is_valid(json.loads(text)), text
        assert accepted(schema, text), text
    for text in invalid:
        assert not accepted(schema, text), text
    for text in written(Constraint(body=Schema.of(schema)), range(3)):
        checker.validate(json.loads(text))


def test_bounds_as_openapi_3_0_leaves_them_out():
    schema = {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 3, "exclusiveMaximum": False}
    language = Constraint(body=Schema.of(schema)).language(Meter())
    for value in range(-1, 5):
        assert language.accepts(str(value).encode()) == jsonschema.Draft4Validator(schema).is_valid(value), value


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": 5}, "type is a name"),
        ({"not": 5}, "an object or a boolean, got int at #/not"),
        ({"if": 5, "then": {}}, "an object or a boolean, got int at #/if"),
        ({"type": "string", "maxLength": None}, "maxLength is a whole number"),
        ({"type": "integer", "minimum": None}, "minimum is a number"),
        ({"const": float("nan")}, "JSON"),
        ({"type": "string", "minLength": float("inf")}, "JSON"),
        # a reader may leave formats aside, and then both hold
        ({"oneOf": [{"type": "string", "format": name} for name in ("date", "date-time")]}, "only breaks a format"),
    ],
)
def test_what_is_no_schema_is_told(schema, said):
    with pytest.raises(BadInput, match=said):
        accepted(schema, "")


def test_numbers_of_a_schema_are_finite_whoever_wrote_it():
    for content in ('{"const": 1e999}', '{"const": NaN}', '{"type": "string", "minLength": 1e999}'):
        with pytest.raises(BadInput, match="no reader holds"):
            Constraint(body=Schema(content=content)).language(Meter())
