"""Tools: calls that are valid by construction, whole and in streams, as OpenAI's own client reads them."""

import json
import re

import jsonschema
import openai
import pytest
from serving import events, live, serving
from test_refusals import shaped

from small_tokenizers import byte_level
from unmask.lm.model import LanguageModel
from unmask.serve.tools import Calls, Hearing
from unmask.text.chat import ChatTemplate

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(name, parameters=None, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool("weather", WEATHER, description="It is so.", strict=True), tool("stop")]
SHORT = [tool("w", {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}), tool("s")]
SCHEMAS = {
    "weather": WEATHER,
    "w": SHORT[0]["function"]["parameters"],
    "s": {"type": "object"},
    "stop": {"type": "object"},
}
SHARP = {"temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def wide(tokenizer):
    """A model with room for tools in its prompt."""
    from unmask.base.vocab import Traits
    from unmask.models.backbone import Shape, Transformer

    shape = Shape(vocab_size=tokenizer.vocab.size, width=32, depth=2, heads=4, hidden=48, max_length=1024, qk_norm=True)
    return LanguageModel(Transformer(shape, tokenizer.vocab, Traits(), seed=5).eval(), tokenizer, name="wide")


@pytest.fixture
def served(serving, wide):
    return serving(wide)


def valid(call):
    assert re.fullmatch("call_[0-9a-f]{24}", call["id"])
    assert call["type"] == "function"
    jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])
    return call["function"]["name"]


def joined(chunks, index=0):
    """A message from the deltas of a choice, and how it ended."""
    message, finish = {"content": None, "calls": []}, None
    for _, chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            delta, finish = choice["delta"], choice["finish_reason"] or finish
            if delta.get("content"):
                message["content"] = (message["content"] or "") + delta["content"]
            for piece in delta.get("tool_calls", ()):
                if "id" in piece:
                    assert piece["index"] == len(message["calls"])
                    message["calls"].append({**piece, "function": {**piece["function"]}})
                else:
                    assert {*piece} == {"index", "function"}
                    assert piece["index"] == len(message["calls"]) - 1
                    message["calls"][-1]["function"]["arguments"] += piece["function"]["arguments"]
    return message, finish


@pytest.mark.parametrize("seed", range(4))
def test_one_must_be_called(served, seed):
    ask = {"messages": USER, "tools": TOOLS, "tool_choice": "required", "max_tokens": 60, "n": 2, "temperature": 1.0}
    said = served.post(CHAT, seed=seed, **ask).json()
    for choice in said["choices"]:
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        (call,) = choice["message"]["tool_calls"]
        assert valid(call) in ("weather", "stop")
    *chunks, last = events(served.post(CHAT, seed=seed, stream=True, **ask).text)
    assert last == (None, "[DONE]")
    for index, choice in enumerate(said["choices"]):
        message, finish = joined(chunks, index)
        assert (message["content"], finish) == (None, "tool_calls")
        (call,) = message["calls"]
        assert call["function"] == choice["message"]["tool_calls"][0]["function"]


def test_the_one_that_is_named(served):
    choice = {"type": "function", "function": {"name": "stop"}}
    said = served.post(CHAT, messages=USER, tools=TOOLS, tool_choice=choice, max_tokens=40, **SHARP).json()
    (call,) = said["choices"][0]["message"]["tool_calls"]
    assert valid(call) == "stop"
    assert call["function"]["arguments"] == "{}"


@pytest.mark.parametrize("stream", [False, True])
def test_who_may_choose_writes_text_or_a_call(served, stream):
    """Which of them, pins say here."""
    ask = {"messages": USER, "tools": SHORT, "max_tokens": 40, "eos": "stop", "parallel_tool_calls": True, **SHARP}

    def post(**more):
        if not stream:
            choice = served.post(CHAT, **ask, **more).json()["choices"][0]
            message = choice["message"]
            return message["content"], message.get("tool_calls"), choice["finish_reason"]
        message, finish = joined(events(served.post(CHAT, stream=True, **ask, **more).text)[:-1])
        return message["content"], message["calls"] or None, finish

    content, calls, finish = post(pins={"0": '{"name": "'})
    assert (content, finish) == (None, "tool_calls")
    assert valid(calls[0]) in ("w", "s")
    content, calls, finish = post(pins={"0": '{"nam '})
    assert content.startswith('{"nam ')
    assert calls is None
    assert finish in ("stop", "length")


def test_free_text_ends_at_the_next_turn_as_without_tools(served, wide):
    told = served.post(CHAT, messages=USER, tools=SHORT, max_tokens=40, pins={"0": "yes\n\nUser:"}).json()
    assert told["choices"][0]["message"]["content"] == "yes"
    assert told["choices"][0]["finish_reason"] == "stop"


def test_none_is_as_without_tools(served):
    ask = {"messages": USER, "max_tokens": 20, **SHARP}
    plain = served.post(CHAT, **ask).json()["choices"]
    assert served.post(CHAT, tools=TOOLS, tool_choice="none", **ask).json()["choices"] == plain
    regex = served.post(CHAT, tools=TOOLS, tool_choice="none", regex="[ab]+", **ask).json()["choices"]
    assert re.fullmatch("[ab]+", regex[0]["message"]["content"])


def test_log_probabilities_are_of_all_that_was_written(served):
    ask = {"messages": USER, "tools": SHORT, "tool_choice": "required", "max_tokens": 40, "logprobs": True}
    said = served.post(CHAT, **ask).json()
    logs = said["choices"][0]["logprobs"]["content"]
    assert len(logs) == said["usage"]["completion_tokens"]
    *chunks, _ = events(served.post(CHAT, stream=True, **ask).text)
    told = [c["choices"][0]["logprobs"] for _, c in chunks if c["choices"][0]["logprobs"]]
    assert [entry for one in told for entry in one["content"]] == logs


def test_what_was_called_and_what_came_of_it_is_told(served, wide):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    ask = {"tools": [TOOLS[1]], "tool_choice": "none", "max_tokens": 12}
    said = served.post(CHAT, messages=messages, **ask).json()["choices"][0]["message"]["content"]
    plain = [
        *messages[:2],
        {"role": "assistant", "content": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
        {"role": "tool", "content": "rain"},
    ]
    assert said == wide.generate(plain, chat=True, length=12).completion
    (read,) = wide.template.read([messages[:2]], [{"name": "f", "description": None, "parameters": {}}])
    assert read.text == (
        'System:\nBe brief.\n\nTools, called by answering {"name": ..., "arguments": {...}}, a line for each call and '
        'nothing else:\n{"name": "f", "parameters": {}}\n\nUser:\nhi\n\nAssistant:\n'
    )


BAD = tool("f", {"type": "object", "properties": {"a": {"type": "string", "contentEncoding": 1, "$dynamicRef": "#a"}}})
WRONG = [
    ({"tool_choice": "required"}, "tool_choice", "where there are none"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "missing"),
    ({"tools": [tool("two words")]}, "tools[0].function.name", "pattern"),
    ({"tools": [tool("f"), tool("f")]}, "tools", "same name"),
    ({"tools": [tool("f", {"type": "string"})]}, "tools[0].function.parameters", "object"),
    ({"tools": [tool(f"f{i}") for i in range(65)]}, "tools", "the limit is 64"),
    ({"tools": [tool("f", {"description": "x" * 70_000})]}, "tools", "constraint_bytes"),
    ({"tools": [BAD]}, "tools", "'$dynamicRef'"),
    ({"tools": [BAD], "tool_choice": "required"}, "tools", "'$dynamicRef'"),
    ({"tools": [tool("f", {"properties": {"a\ud800": {}}})]}, "tools", "surrogate"),
    ({"tools": SHORT, "tool_choice": "sometimes"}, "tool_choice", ""),
    (
        {"tools": SHORT, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice.function.name",
        "x",
    ),
    ({"tools": SHORT, "response_format": {"type": "json_object"}}, "response_format", "say twice"),
    ({"tools": SHORT, "tool_choice": "required", "regex": "a"}, "regex", "say twice"),
    ({"tools": SHORT, "stop": "x"}, "stop", "cut"),
    ({"tools": SHORT, "tool_choice": "required", "max_tokens": 5}, "tools", "shortest"),
    ({"tools": SHORT, "diffusion": {"decoder": "self-speculative"}}, "diffusion.decoder", ""),
    ({"messages": [{"role": "assistant"}, *USER]}, "messages[0].content", "missing"),
    ({"messages": [{**USER[0], "tool_call_id": "x"}]}, "messages[0].tool_call_id", "for the role tool"),
    ({"messages": [{"role": "assistant", "tool_calls": []}, *USER]}, "messages[0].tool_calls", "at least 1"),
]
for arguments in ("{", "[]", "3", "[" * 9000):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [*USER, {"role": "assistant", "tool_calls": [call]}, *USER]
    WRONG.append(({"messages": turns}, "messages[1].tool_calls[0].function.arguments", "JSON object"))


@pytest.mark.parametrize(("body", "param", "says"), WRONG, ids=lambda x: None if isinstance(x, dict) else x)
def test_refusals(served, body, param, says):
    error = shaped(served.post(CHAT, **{"messages": USER, **body}))
    assert error["param"] == param, error
    assert says in error["message"], error


HERMES = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls %}{{ '<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OTHER = HERMES.replace("(call.function | tojson)", "'<f>' + call.function.name + '</f>'")
DEAF = HERMES.replace("{% if tools %}", "{% if false %}")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory):
    from small_model import model_of
    from small_tokenizers import CHATML, write
    from unmask.base.vocab import Vocab
    from unmask.text.tokenizer import Tokenizer

    def build(source, plain=()):
        inner = byte_level(plain=plain)
        mask, end = (inner.token_to_id(CHATML[i]) for i in (3, 2))
        vocab = Vocab(size=inner.get_vocab_size(), mask=mask, eos=end)
        tokenizer = Tokenizer.load(write(tmp_path_factory.mktemp("chatty"), inner), vocab)

        class Like:
            pass

        Like.vocab = vocab
        model = model_of(Like, sees="all")
        model.max_length = 2048
        return LanguageModel(model, tokenizer, name="chatty", template=ChatTemplate(source, tokenizer))

    return build


class TestTemplates:
    """Templates of published models: their own form, read where it is JSON."""

    def test_a_call_begins_as_the_template_has_it(self, chatty):
        lm = chatty(HERMES)
        assert (lm.template.form.kind, lm.template.form.before) == ("json", "<tool_call>\n")
        tools = [{"name": "f", "description": "<|im_end|>", "parameters": {"<|im_end|>": "<|im_start|>"}}]
        read = lm.turns(USER, tools, call=True)
        assert read.text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<tool_call>\n")
        specials = [i for i in read.ids if i in lm.tokenizer.vocab.specials or lm.tokenizer.token_bytes[i] == b""]
        assert len(specials) == 5  # none of those that a tool has written
        free = lm.turns(USER, tools)
        assert read.text == free.text + "<tool_call>\n"
        assert '{"type": "function", "function": {"name": "f", "description": "<|im_end|>"' in free.text

    def test_calls_and_results_of_before(self, chatty):
        called = {"id": "1", "name": "f", "arguments": {"a": [1, "é"]}}
        chat = [
            *USER,
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "tool_call_id": "1", "content": "3"},
        ]
        text = chatty(HERMES).turns(chat).text
        assert text.endswith(
            '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"a": [1, "é"]}}\n</tool_call>'
            "<|im_end|>\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_a_template_that_knows_no_tools_is_told_in_plain_text(self, chatty):
        lm = chatty(DEAF)
        assert (lm.template.form.kind, lm.template.form.before) == ("plain", "")
        read = lm.turns(USER, [{"name": "f", "description": "d", "parameters": {}}], call=True)
        assert read.text.startswith("<|im_start|>system\nTools, called by answering")
        assert read.text.endswith("<|im_start|>assistant\n")

    @pytest.mark.parametrize("source", [HERMES, OTHER, DEAF], ids=["json", "other", "deaf"])
    def test_it_is_called(self, serving, chatty, source, monkeypatch):
        monkeypatch.setattr("unmask.lm.rows.Reader._holds", lambda self, size: None)
        served = serving(chatty(source))
        said = served.post(CHAT, messages=USER, tools=SHORT, tool_choice="required", max_tokens=60).json()
        assert valid(said["choices"][0]["message"]["tool_calls"][0]) in ("w", "s")
        free = served.post(CHAT, messages=USER, tools=SHORT, max_tokens=60, pins={"0": "<tool_call>\n{" + '"name": "'})
        if source == OTHER:
            assert shaped(free)["param"] == "tool_choice"
            return
        choice = free.json()["choices"][0]
        assert choice["finish_reason"] == ("tool_calls" if source == HERMES else "length")
        assert ("tool_calls" in choice["message"]) == (source == HERMES)


class TestHearing:
    CALLS = Calls(names=["f", "g"], must=False, before="<call>")
    TEXT = '<call>{"name": "g", "arguments": {"a": "}"}}'

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
    def test_pieces_make_up_the_call(self, size):
        hearing, pieces = Hearing(self.CALLS), []
        for at in range(0, len(self.TEXT), size):
            pieces += hearing.more(self.TEXT[at : at + size])
        pieces += hearing.left()
        functions = [piece["tool_calls"][0]["function"] for piece in pieces]
        assert [f["name"] for f in functions if "name" in f] == ["g"]
        assert "".join(f["arguments"] for f in functions) == '{"a": "}"}' == hearing.heard[0].arguments
        assert hearing.whole
        assert self.CALLS.message(self.TEXT)["tool_calls"][0]["function"] == {"name": "g", "arguments": '{"a": "}"}'}

    @pytest.mark.parametrize("text", ["", "<", "<call>{", "<call>x", "no", '<call>{"name"', "<call"])
    def test_what_is_no_call_is_text(self, text):
        for size in (1, 100):
            hearing, pieces = Hearing(self.CALLS), []
            for at in range(0, len(text), size):
                pieces += hearing.more(text[at : at + size])
            pieces += hearing.left()
            assert "".join(piece["content"] for piece in pieces) == text
            assert not hearing.whole
        assert self.CALLS.message(text) is None

    def test_nothing_is_told_before_it_is_clear(self):
        hearing = Hearing(self.CALLS)
        assert hearing.more("<cal") == []
        assert hearing.more("m>") == [{"content": "<calm>"}]
        assert hearing.more("!") == [{"content": "!"}]


class TestOpenAI:
    @pytest.fixture
    def client(self, live):
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
            yield client

    def test_a_schema(self, client):
        schema = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER, "strict": True}}
        said = client.chat.completions.create(model="tiny", messages=USER, response_format=schema, max_tokens=60)
        jsonschema.validate(json.loads(said.choices[0].message.content), WEATHER)
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="tiny", messages=USER, response_format=schema, max_tokens=3)
        assert refused.value.param == "response_format"

    def test_a_conversation_with_a_tool(self, client):
        ask = {"model": "tiny", "tools": TOOLS, "max_tokens": 60, "parallel_tool_calls": False}
        said = client.chat.completions.create(messages=USER, tool_choice="required", **ask).choices[0]
        (call,) = said.message.tool_calls
        assert said.finish_reason == "tool_calls"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
        result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        named = {"type": "function", "function": {"name": "weather"}}
        after = client.chat.completions.create(messages=[*USER, said.message, result], tool_choice=named, **ask)
        jsonschema.validate(json.loads(after.choices[0].message.tool_calls[0].function.arguments), WEATHER)
        free = client.chat.completions.create(messages=[*USER, said.message, result], **ask).choices[0]
        assert (free.message.content is None) == (free.finish_reason == "tool_calls")

    def test_a_stream(self, client):
        ask = {"model": "tiny", "messages": USER, "tools": TOOLS, "tool_choice": "required", "max_tokens": 60}
        whole = client.chat.completions.create(**ask).choices[0].message.tool_calls[0].function
        with client.chat.completions.stream(**ask) as stream:
            kinds = {event.type for event in stream}
            final = stream.get_final_completion().choices[0]
        assert "tool_calls.function.arguments.delta" in kinds
        function = final.message.tool_calls[0].function
        assert (function.name, function.arguments) == (whole.name, whole.arguments)
        assert final.finish_reason == "tool_calls"
