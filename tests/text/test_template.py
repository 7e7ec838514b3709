"""Templates: what opens a hole, what does not, and where a mistake is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.base.errors import BadInput
from unmask.text.segments import Hole, Text
from unmask.text.template import DEFAULT, parse

LOW, HIGH = DEFAULT


@pytest.mark.parametrize(
    ("template", "segments"),
    [
        (
            "Dear {{name:1-4}}, your parcel {{:8}} today.",
            [
                Text("Dear "),
                Hole(name="name", low=1, high=4),
                Text(", your parcel "),
                Hole(low=8, high=8),
                Text(" today."),
            ],
        ),
        ("{{name}}", [Hole(name="name", low=LOW, high=HIGH)]),
        ("{{}}{{ b : 2 - 3 }}", [Hole(low=LOW, high=HIGH), Hole(name="b", low=2, high=3)]),
        ("", []),
        ("plain { } }} text", [Text("plain { } }} text")]),
        (r"f'\{{x}}' {{a:1}}", [Text("f'{{x}}' "), Hole(name="a", low=1, high=1)]),
        (r"\\{{a:1}}", [Text("\\"), Hole(name="a", low=1, high=1)]),
        (r"\\\{{a", [Text(r"\{{a")]),
        (r"C:\new {x}", [Text(r"C:\new {x}")]),
    ],
)
def test_what_a_template_says(template, segments):
    assert parse(template) == segments


def test_the_default_range_is_the_callers():
    assert parse("{{a}}{{b:3}}", (2, 5)) == [Hole(name="a", low=2, high=5), Hole(name="b", low=3, high=3)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("ab {{name", "code point 3 is not closed"),
        ("é\U0001f600 {{x:0}}", "code point 3: a hole is at least 1 token long, got 0"),
        ("{{x:0-4}}", "at least 1 token"),
        ("{{a}} {{x:5-2}}", "code point 6: a hole's length runs from low to high, got 5-2"),
        ("{{1st}}", "code point 0 says '1st'"),
        ("{{x:a-b}}", "says 'x:a-b'"),
        ("{{x:-3}}", "says 'x:-3'"),
        ("{{{x}}}", "says '{x'"),
        ("{{x:1-99999999999}}", "says"),
        ("{{a}} and {{a}}", "code point 10 is the second one called 'a'"),
    ],
)
def test_what_it_refuses_and_where(template, message):
    with pytest.raises(BadInput, match=message):
        parse(template)


@given(st.text(alphabet="a{}\\ \n"))
def test_any_text_can_be_escaped(text):
    """Doubling the backslashes before two braces and adding one makes any text plain."""
    escaped, i = "", 0
    while i < len(text):
        run = len(text[i:]) - len(text[i:].lstrip("\\"))
        if text[i + run : i + run + 2] == "{{":
            escaped += "\\" * (2 * run + 1) + "{{"
            i += run + 2
        else:
            escaped += text[i : i + max(run, 1)]
            i += max(run, 1)
    assert parse(escaped) == ([Text(text)] if text else [])
