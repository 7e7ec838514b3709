"""Schemas, regexes, choices, pins: every finished text is what it has to be, whoever writes it."""

import json
import re

import jsonschema
import pytest

import unmask
from unmask.base.errors import BadInput, Unsupported
from unmask.constrain.spec import Choices, Constraint, Grammar, Regex, Template
from unmask.lm.model import LanguageModel

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
}
DATE = r"\d{4}-(0[1-9]|1[0-2])-[0-3]\d"
DECODERS = {
    "block threshold": {"decoder": "fast-dllm", "block": 16, "threshold": 0.8},
    "whole ancestral": {"decoder": "mdlm", "steps": 12},
    "random order": {"decoder": "whole x quota", "rank": "random", "temperature": 1.0, "steps": 20},
    "remask": {"decoder": "remdm", "steps": 12},
    "edit": {"decoder": "block x threshold + edit", "block": 16, "threshold": 0.5, "edit_threshold": 0.3},
    "left to right": {"decoder": "ar", "temperature": 1.0},
}


@pytest.fixture(scope="session")
def tiny():
    return unmask.load("tiny")


@pytest.fixture(scope="session")
def random(tiny):
    """A network of tiny's shape that has learnt nothing."""
    from unmask.models.backbone import Transformer

    model = Transformer(tiny.model.shape, tiny.model.vocab, tiny.model.traits, seed=1)
    return LanguageModel(model, tiny.tokenizer, name="random")


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("who", ["tiny", "random"])
def test_every_text_fits(who, name, request):
    lm, settings = request.getfixturevalue(who), DECODERS[name]
    for out in lm.generate("Person: ", length=40, schema=PERSON, n=2, **settings):
        jsonschema.validate(json.loads(out.completion), PERSON)
        assert all(p <= 1e-9 for p in out.logprobs)
    for eos, sizes in (("stop", range(1, 25)), ("forbid", [24])):
        for out in lm.generate("On ", length=24, regex=f"({DATE}[ \n]*)+", eos=eos, n=2, **settings):
            assert re.fullmatch(f"({DATE}[ \n]*)+", out.completion)
            assert len(out.tokens) in sizes


@pytest.mark.parametrize("name", DECODERS)
def test_one_of_several(tiny, name):
    choices = ["yes", "no", "may be — naïve 🙂"]
    outs = tiny.generate("Is it? ", length=(1, 30), choices=choices, n=4, **DECODERS[name])
    assert {out.completion for out in outs} <= set(choices)
    assert {out.finish_reason for out in outs} == {"stop"}


SUM = """
start: product ("+" product)*
product: atom ("*" atom)*
atom: "0" | /[1-9][0-9]{0,2}/ | "(" start ")"
"""


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("who", ["tiny", "random"])
def test_every_text_is_of_the_grammar(who, name, request):
    lm = request.getfixturevalue(who)
    for out in lm.generate("x = ", length=20, grammar=SUM, pins={6: "("}, n=3, **DECODERS[name]):
        assert isinstance(eval(compile(out.completion, "text", "eval", dont_inherit=True), {}), int)
        assert "(" in out.completion


def test_models_of_every_kind(block_lm, ar_lm):
    for lm in (block_lm, ar_lm):
        for out in lm.generate(["def ", "a"], length=30, regex="[a-z]+(, [a-z]+){2}", n=3, temperature=1.0):
            assert re.fullmatch("[a-z]+(, [a-z]+){2}", out.completion)


def test_an_end_that_is_kept_stands_behind_the_text(tiny):
    out = tiny.generate("a", length=12, choices=["yes"], eos="keep")
    assert len(out.tokens) == 12
    eos = [token in tiny.model.vocab.ends for token in out.tokens]
    assert eos == sorted(eos)
    assert tiny.tokenizer.decode([t for t, over in zip(out.tokens, eos, strict=True) if not over]) == "yes"


def test_pins_and_a_constraint(tiny):
    out = tiny.generate("Date: ", length=16, regex=f"{DATE} ?.*", pins={12: "the"}, eos="forbid")
    assert re.fullmatch(f"{DATE} ?.*", out.completion)
    assert out.tokens[12] == tiny.tokenizer.encode("the")[0]
    same = tiny.generate("Date: ", length=16, pins={12: tiny.tokenizer.encode("the")}, eos="forbid")
    assert same.tokens == tiny.generate("Date: ", length=16, pins={12: "the"}, eos="forbid").tokens


def test_contains_and_banned(tiny):
    out = tiny.generate("A story: ", length=40, contains=["fox", "owl"], banned="the", temperature=0.7)
    assert re.search("fox.*owl", out.completion, re.S)
    assert "the" not in out.completion


def test_a_stream_is_the_text(tiny):
    settings = {"length": 40, "schema": PERSON, "seed": 2}
    *steps, last = tiny.stream("Person: ", **settings)
    assert last.text == tiny.generate("Person: ", **settings).completion == "".join(s.delta for s in [*steps, last])


def test_chat_ends_as_the_constraint_says(tiny):
    out = tiny.generate("Well?", chat=True, length=20, choices=["yes", "no"])
    assert out.completion in ("yes", "no")


class TestGaps:
    def test_infill_tries_the_lengths_that_can_be(self, tiny):
        for out in tiny.infill("born ", ", died", regex=DATE, length=(1, 20), n=2):
            assert re.fullmatch(DATE, out.completion)
            assert out.text == f"born {out.completion}, died"

    def test_holes_by_name(self, tiny):
        fills = {"name": Regex("[A-Z][a-z]{2,9}"), "day": Constraint(body=Regex(DATE), banned=("9",))}
        out = tiny.fill("Dear {{name:2-5}}, on {{day:10}} {{:3}}.", constraint=fills)
        assert re.fullmatch(f"Dear [A-Z][a-z]{{2,9}}, on {DATE} .*\\.", out.text, re.S)
        assert "9" not in dict(out.holes)["day"]
        assert tiny.fill("It is {{:2}}!", choices=["a b"]).text == "It is a b!"

    def test_a_gap_of_a_grammar(self, tiny):
        for out in tiny.infill("x = (", ") * 2", grammar=Grammar(SUM, depth=1), length=(3, 12), n=2, temperature=1.0):
            assert re.fullmatch(r"x = \(([0-9+*]|\([0-9+*]*\))+\) \* 2", out.text)
        out = tiny.fill(
            "{{a:5}} and {{b:3}}", constraint={"a": Grammar('start: "x" start "y" | "z"'), "b": Regex("b+")}
        )
        assert re.fullmatch("(z|xzy|xxzyy|xxxzyyy) and b+", out.text)

    def test_refine(self, tiny):
        text = "It was 12 March 1999."
        out = tiny.refine(text, spans=[(7, 20)], regex=f"{DATE}", length=(8, 13))
        assert re.fullmatch(f"It was {DATE}\\.", out.text)


def test_a_form(tiny):
    form = Template(("Name: ", Regex("[A-Z][a-z]+"), "\nSure: ", Choices(("yes", "no")), "\n"))
    out = tiny.generate("A form.\n", length=30, constraint=form)
    assert re.fullmatch("Name: [A-Z][a-z]+\nSure: (yes|no)\n", out.completion)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ({"regex": "a+", "stop": "b"}, BadInput, "a stop string would cut"),
        ({"regex": "a+", "choices": ["a"]}, BadInput, "regex= and choices= say twice"),
        ({"regex": "(", "length": 4}, BadInput, "regex"),
        ({"regex": 7}, BadInput, "a regex is a text"),
        ({"grammar": 7}, BadInput, "a grammar is a text"),
        ({"grammar": "start: a"}, BadInput, "line 1, column 8: no rule called 'a'"),
        ({"grammar": SUM, "regex": "a"}, BadInput, "regex= and grammar= say twice"),
        ({"grammar": SUM, "length": 20, "pins": {3: "x"}}, BadInput, r"\(b'x'\) at position \d+ contradicts"),
        ({"choices": "yes"}, BadInput, "choices= is a list of texts"),
        ({"choices": []}, BadInput, "at least one text"),
        ({"constraint": "a"}, BadInput, "a constraint is one of Constraint, Anything"),
        ({"schema": {"type": "object", "$dynamicRef": "#a"}}, Unsupported, "dynamicRef"),
        ({"schema": PERSON, "length": 3}, BadInput, "the shortest text that fits has"),
        ({"regex": "[a-z]{40}", "pins": {1: "7"}}, BadInput, r"\(b'7'\) at position \d+ contradicts"),
        ({"regex": "ab", "banned": "b"}, BadInput, "once it has banned 'b'"),
        ({"regex": "a+", "lookahead": 2, "decoder": "llada"}, Unsupported, "lookahead"),
        ({"regex": "a+", "decoder": "self-speculative"}, Unsupported, "drafted"),
        ({"constraint": {"x": Regex("a")}}, BadInput, "names a hole 'x'"),
    ],
)
def test_refusals_come_before_any_forward(tiny, call, error, says):
    with pytest.raises(error, match=says):
        tiny.generate("a", watch=lambda _: pytest.fail("a forward was made"), **call)


def test_refusals_of_gaps(tiny, lm):
    with pytest.raises(BadInput, match="with any length: the shortest text that fits has"):
        tiny.infill("a", "b", regex=DATE * 3, length=(1, 6))
    with pytest.raises(Unsupported, match="2 gaps"):
        tiny.fill("{{:2}} and {{:2}}", regex="a+")
    with pytest.raises(BadInput, match="regex= is of one text"):
        tiny.fill("{{x:2}}", regex="a+", constraint={"x": Regex("a+")})
    without = LanguageModel(lm.model, None, name="mute")
    with pytest.raises(Unsupported, match="mute has no tokenizer"):
        without.generate([5], regex="a+")
