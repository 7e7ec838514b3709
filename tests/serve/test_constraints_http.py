"""What a text has to be, over HTTP: texts are those of the same calls in Python, what can't be is refused by name."""

import asyncio
import json
import re
import threading

import jsonschema
import pytest
from serving import events, serving, toy, until
from test_refusals import shaped

from unmask.base.errors import OverBudget
from unmask.constrain.compile import Child
from unmask.constrain.spec import Constraint, Regex, Schema
from unmask.lm.model import LanguageModel

CHAT, TEXT, FIM = "/v1/chat/completions", "/v1/completions", "/v1/fim/completions"
INFILL, REFINE, LLAMA = "/v1/infill", "/v1/refine", "/infill"
USER = [{"role": "user", "content": "Ada, 36"}]
SHARP = {"temperature": 1.0, "seed": 7}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
}
STRICT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}


class TestTexts:
    def test_a_chat_in_json(self, toy):
        said = toy.post(CHAT, messages=USER, max_tokens=50, response_format=STRICT, n=2, **SHARP).json()
        outs = toy.lm.generate(USER, chat=True, length=50, schema=PERSON, n=2, **SHARP)
        texts = [c["message"]["content"] for c in said["choices"]]
        assert texts == [o.completion for o in outs]
        for text in texts:
            jsonschema.validate(json.loads(text), PERSON)
        assert said["choices"][0]["finish_reason"] == outs[0].finish_reason

    def test_any_object(self, toy):
        said = toy.post(TEXT, prompt="x", max_tokens=30, response_format={"type": "json_object"}, **SHARP).json()
        assert isinstance(json.loads(said["choices"][0]["text"]), dict)

    @pytest.mark.parametrize(
        "asked",
        [
            {"regex": r"\d{4}-\d{2}-\d{2}"},
            {"choices": ["yes", "no", "naïve 🙂"]},
            {"grammar": 'root ::= "(" root ")" | [a-c]{1,4}'},
            {"schema": {"enum": [1, "two", None]}},
            {"contains": ["ab", "c"], "banned": ["d"]},
            {"regex": "[a-f]{3,9}", "banned": ["a"]},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_everywhere(self, toy, asked, stream):
        outs = toy.lm.generate(["x", "def"], length=16, n=2, **asked, **SHARP)
        ask = {"prompt": ["x", "def"], "max_tokens": 16, "n": 2, **asked, **SHARP}
        if not stream:
            said = toy.post(TEXT, **ask).json()["choices"]
            assert [c["text"] for c in said] == [o.completion for o in outs]
            return
        told = [""] * 4
        for _, chunk in events(toy.post(TEXT, stream=True, diffusion={"stream": True}, **ask).text)[:-1]:
            told[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert told == [o.completion for o in outs]

    def test_in_gaps(self, toy):
        date = {"regex": r"\d{4}-\d{2}"}
        out = toy.lm.infill("born ", ", died", length=(1, 12), **date)
        ask = {"prompt": "born ", "suffix": ", died", "max_tokens": 12, **date}
        for path in (TEXT, FIM):
            assert toy.post(path, **ask).json()["choices"][0]["text"] == out.completion
        ask = {"input_prefix": "born ", "input_suffix": ", died", "n_predict": 12}
        assert toy.post(LLAMA, **ask, **date).json()["content"] == out.completion
        assert json.loads(toy.post(LLAMA, **ask, json_schema={"enum": [12, 13]}).json()["content"]) in (12, 13)
        on = toy.post(FIM, prompt="born ", max_tokens=12, **date).json()["choices"][0]["text"]
        assert on == toy.lm.generate("born ", length=12, **date).completion
        out = toy.lm.refine("It was fine today.", spans=[(7, 11)], length=(1, 12), **date)
        said = toy.post(REFINE, text="It was fine today.", spans=[[7, 11]], length=[1, 12], **date).json()
        assert said["choices"][0]["text"] == out.text
        assert re.fullmatch(r"It was \d{4}-\d{2} today\.", out.text)

    def test_each_hole_its_own(self, toy):
        segments = [
            {"text": "Dear "},
            {"mask": {"min": 1, "max": 4, "name": "who"}, "regex": "[A-Z][a-z]{2,5}"},
            {"text": ", you are "},
            {"mask": {"min": 1, "max": 3}},
            {"text": " and "},
            {"mask": {"min": 1, "max": 6, "name": "who"}, "schema": {"type": "integer", "minimum": 7}},
        ]
        for choice in toy.post(INFILL, segments=segments, n=2, **SHARP).json()["choices"]:
            holes = choice["holes"]
            assert [h["name"] for h in holes] == ["who", None, "who"]
            assert re.fullmatch("[A-Z][a-z]{2,5}", holes[0]["text"])
            assert json.loads(holes[2]["text"]) >= 7

    def test_pins_and_the_models_of_other_kinds(self, serving, toy, ar_lm, block_lm):
        said = toy.post(TEXT, prompt="x", max_tokens=12, regex="[a-z ]+", pins={"5": "return"}, eos="forbid").json()
        assert re.fullmatch("[a-z ]*return[a-z ]*", said["choices"][0]["text"])
        for lm in (ar_lm, block_lm):
            said = serving(lm).post(TEXT, prompt="x", max_tokens=20, regex="[a-z]+(, [a-z]+){2}", **SHARP).json()
            out = lm.generate("x", length=20, regex="[a-z]+(, [a-z]+){2}", **SHARP)
            assert said["choices"][0]["text"] == out.completion


CUT = "a stop string would cut"
WRONG = [
    # fields that do not go together
    (TEXT, {"prompt": "x", "regex": "a+", "stop": "b"}, "stop", CUT),
    (CHAT, {"messages": USER, "response_format": STRICT, "stop": ["b"]}, "stop", CUT),
    (FIM, {"prompt": "x", "suffix": "y", "choices": ["a"], "stop": "b"}, "stop", CUT),
    (TEXT, {"prompt": "x", "regex": "a+", "choices": ["a"]}, "choices", "say twice"),
    (TEXT, {"prompt": "x", "regex": "a+", "response_format": STRICT}, "regex", "say twice"),
    (LLAMA, {"input_prefix": "x", "regex": "a+", "n_indent": 2}, "n_indent", "cut"),
    (CHAT, {"messages": USER, "response_format": {"type": "text", "json_schema": {"schema": {}}}}, None, "json_schema"),
    # values that are none
    (TEXT, {"prompt": "x", "regex": 7}, "regex", "string"),
    (TEXT, {"prompt": "x", "regex": "("}, "regex", "not closed"),
    (TEXT, {"prompt": "x", "regex": "a(?=a)"}, "regex", "looks around"),
    (TEXT, {"prompt": "x", "regex": r"(a)\1"}, "regex", "refers back"),
    (TEXT, {"prompt": "x", "regex": "a\ud800"}, "regex", "surrogate"),
    (TEXT, {"prompt": "x", "grammar": 'root ::= "a" sum'}, "grammar", "sum"),
    (TEXT, {"prompt": "x", "grammar": "a: a"}, "grammar", "start"),
    (TEXT, {"prompt": "x", "choices": []}, "choices", "at least 1"),
    (TEXT, {"prompt": "x", "choices": ["a", "\udfff"]}, "choices", "surrogate"),
    (TEXT, {"prompt": "x", "banned": [""]}, "banned[0]", "at least 1"),
    (TEXT, {"prompt": "x", "schema": {"type": "thing"}}, "schema", "names 'thing'"),
    (TEXT, {"prompt": "x", "schema": {"type": 5}}, "schema", "type is a name"),
    (TEXT, {"prompt": "x", "schema": {"properties": {"\ud800": {}}}}, "schema", "surrogate"),
    (TEXT, {"prompt": "x", "schema": False}, "schema", "no JSON text"),
    # keywords and languages that are empty
    (CHAT, {"messages": USER, "response_format": {"type": "json_schema"}}, "response_format", "json_schema.schema"),
    (TEXT, {"prompt": "x", "schema": {"type": "array", "$dynamicRef": "#a"}}, "schema", "'$dynamicRef'"),
    (TEXT, {"prompt": "x", "schema": {"type": "string", "pattern": "a(?!b)"}}, "schema", "looks around"),
    (TEXT, {"prompt": "x", "schema": {"$ref": "https://example.org/s.json"}}, "schema", "can't be honoured"),
    (TEXT, {"prompt": "x", "schema": {"$ref": "#/$defs/none"}}, "schema", "leads nowhere"),
    (TEXT, {"prompt": "x", "regex": "ab", "banned": ["b"]}, "regex", "once it has banned 'b'"),
    (TEXT, {"prompt": "x", "schema": {"allOf": [{"type": "null"}, {"type": "string"}]}}, "schema", "no JSON text"),
    # lengths and pins
    (TEXT, {"prompt": "x", "regex": "[a-c]{40}", "max_tokens": 4}, "regex", "the shortest text that fits has"),
    (CHAT, {"messages": USER, "response_format": STRICT, "max_tokens": 3}, "response_format", "shortest"),
    (TEXT, {"prompt": "x", "regex": "[a-z]{30}", "pins": {"1": "7"}}, "regex", "at position"),
    (TEXT, {"prompt": "x", "regex": "a", "max_tokens": 9, "eos": "forbid"}, "regex", "the constraint can't be met"),
    (TEXT, {"prompt": "x", "suffix": "y", "regex": "[a-c]{40}", "max_tokens": 4}, "regex", "with any length"),
    (LLAMA, {"input_prefix": "x", "input_suffix": "y", "json_schema": PERSON, "n_predict": 2}, "json_schema", "any"),
    (REFINE, {"text": "It was fine.", "spans": [[7, 11]], "regex": "[a-c]{40}"}, "regex", "can't be met"),
    (REFINE, {"text": "It was fine.", "spans": [[7, 9], [10, 11]], "regex": "a+"}, "regex", "one span"),
    # holes
    (INFILL, {"segments": [{"text": "x", "regex": "a"}]}, "segments[0].regex", "binds a mask"),
    (
        INFILL,
        {"segments": [{"mask": {"min": 1, "max": 1}}, {"mask": {"min": 1, "max": 2}, "regex": "[a-c]{40}"}]},
        "segments[1].regex",
        "with 1 to 2 tokens: the shortest text",
    ),
    (
        INFILL,
        {"segments": [{"text": "x"}, {"mask": {"min": 1, "max": 2}, "schema": {"type": "null", "$dynamicRef": "#a"}}]},
        "segments[1].schema",
        "'$dynamicRef'",
    ),
    (INFILL, {"segments": [{"mask": {"min": 1, "max": 2}, "regex": "a", "choices": ["a"]}]}, "segments[0].choices", ""),
    # decoders that write ahead of what they know
    (
        TEXT,
        {"prompt": "x", "regex": "a+", "diffusion": {"decoder": "llada", "lookahead": 2}},
        "diffusion.lookahead",
        "",
    ),
    (
        TEXT,
        {"prompt": "x", "regex": "a+", "diffusion": {"decoder": "llada", "lookahead": 2, "steps": 4}},
        "diffusion.lookahead",
        "guessed ahead",
    ),
    (TEXT, {"prompt": "x", "regex": "a+", "diffusion": {"decoder": "self-speculative"}}, "diffusion.decoder", ""),
]


@pytest.fixture
def still(lm):
    """A model of which no forward may be asked."""

    class Still:
        def __getattr__(self, name):
            return getattr(lm.runner, name)

        def read(self, *given, **more):
            raise AssertionError("a forward was made")

    found = LanguageModel(lm.model, lm.tokenizer, name="toy")
    found.runner = Still()
    return found


class TestRefusals:
    @pytest.fixture
    def served(self, serving, still):
        return serving(still)

    @pytest.mark.parametrize(("path", "body", "param", "says"), WRONG, ids=lambda x: None if isinstance(x, dict) else x)
    def test_by_name_and_before_any_forward(self, served, path, body, param, says):
        error = shaped(served.post(path, **body))
        assert error["param"] == (param or "response_format.json_schema"), error
        assert says in error["message"], error

    def test_streams_too(self, served):
        for path, body, param, _ in WRONG[::5]:
            if path in (TEXT, CHAT, FIM):
                assert shaped(served.post(path, stream=True, **body))["param"] == (
                    param or "response_format.json_schema"
                )

    def test_a_number_that_json_does_not_have(self, served):
        body = b'{"prompt": "x", "schema": {"const": NaN}}'
        answer = served.client.post(TEXT, content=body, headers={"content-type": "application/json"})
        assert shaped(answer)["param"] == "schema"

    def test_drafts_that_are_verified(self, serving, ar_lm):
        answer = serving(ar_lm).post(TEXT, prompt="x", regex="a+", diffusion={"decoder": "self-speculative"})
        error = shaped(answer)
        assert error["param"] == "diffusion.decoder"
        assert "drafted" in error["message"]

    def test_a_model_without_a_tokenizer(self, serving, lm):
        served = serving(LanguageModel(lm.model, name="mute"))
        assert shaped(served.post(TEXT, prompt=[5], regex="a"))["param"] == "regex"
        capabilities = served.client.get("/v1/models").json()["data"][0]["capabilities"]
        assert not any(capabilities[name] for name in ("regex", "json_schema", "tools"))
