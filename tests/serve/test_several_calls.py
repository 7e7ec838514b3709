"""Several calls of tools in one answer: valid each, told with their places, one at most where that is asked."""

import json

import openai
import pytest
from serving import events, live, serving
from test_tools import CHAT, HERMES, SHORT, USER, chatty, joined, tool, valid, wide

from unmask.serve.tools import Calls, Hearing
from unmask.text.calls import written

PAIR = ['{"name": "w", "arguments": {"n": 2}}', '{"name": "s", "arguments": {}}']
NAMES = [tool("a"), tool("b")]


def pinned(*calls, between="\n", then=""):
    """A body whose answer begins with these calls; what comes behind is up to the model."""
    return {"messages": USER, "tools": SHORT, "pins": {"0": between.join(calls) + then}, "max_tokens": 120, "seed": 3}


def called(served, *, stream, **body):
    if not stream:
        (choice,) = served.post(CHAT, **body).json()["choices"]
        return choice["message"].get("tool_calls", []), choice["message"]["content"], choice["finish_reason"]
    *chunks, last = events(served.post(CHAT, stream=True, **body).text)
    assert last == (None, "[DONE]")
    message, finish = joined(chunks)
    return message["calls"], message["content"], finish


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("parallel", [True, None])
def test_an_answer_may_have_several(serving, wide, stream, choice, parallel):
    body = pinned(*PAIR, then='\n{"name": "w"') | {"tool_choice": choice, "parallel_tool_calls": parallel}
    calls, content, finish = called(serving(wide), stream=stream, **body)
    assert (content, finish) == (None, "tool_calls")
    assert len({call["id"] for call in calls}) == len(calls) >= 3
    assert [valid(call) for call in calls][:3] == ["w", "s", "w"]
    assert [call["function"]["arguments"] for call in calls][:2] == ['{"n": 2}', "{}"]


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "w"}}])
def test_one_where_no_more_are_asked_for(serving, wide, choice):
    """Nor may a function that is asked for by its name be called twice."""
    served = serving(wide)
    body = {"messages": USER, "tools": SHORT, "tool_choice": choice, "max_tokens": 90, "seed": 3}
    body["parallel_tool_calls"] = isinstance(choice, dict)
    calls, _, finish = called(served, stream=False, pins={"0": PAIR[0]}, **body)
    assert ([valid(call) for call in calls], finish) == (["w"], "tool_calls")
    said = served.post(CHAT, pins={"0": "\n".join(PAIR)}, **body).json()
    assert said["error"]["param"] == "tools"


def test_all_that_the_model_writes_are_calls(serving, wide):
    """Unpinned, from noise: whatever comes is a sequence of valid calls, and the same in a stream."""
    served, sizes = serving(wide), set()
    for seed in range(6):
        body = {"messages": USER, "tools": NAMES, "tool_choice": "required", "max_tokens": 120, "temperature": 1.0}
        bias = {str(wide.tokenizer.vocab.eos): -20.0}  # so that it does not stop at the first
        calls, content, finish = called(served, stream=False, seed=seed, logit_bias=bias, **body)
        told, _, _ = called(served, stream=True, seed=seed, logit_bias=bias, **body)
        assert (content, finish) == (None, "tool_calls")
        assert [call["function"] for call in told] == [call["function"] for call in calls]
        assert {call["function"]["name"] for call in calls} <= {"a", "b"}
        assert all(call["function"]["arguments"] == "{}" for call in calls)
        sizes.add(len(calls))
    assert max(sizes) > 1


class TestForms:
    """What stands between two calls is the template's own."""

    ONE = HERMES.replace("{% for call in m.tool_calls %}", "{% for call in (m.tool_calls or [])[:1] %}")
    NO = HERMES.replace(
        "{% for call in m.tool_calls %}",
        "{% if m.tool_calls | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
        "{% for call in m.tool_calls %}",
    )
    SPECIAL = HERMES.replace("</tool_call>", "</tool_call><|im_end|>")
    LIST = (
        HERMES.replace(
            "{% for call in m.tool_calls %}", "{% if m.tool_calls %}[{% endif %}{% for call in m.tool_calls %}"
        )
        .replace("<tool_call>\n", "")
        .replace("'\n</tool_call>'", "('' if loop.last else ', ')")
        .replace("{% endfor %}{{ '<|im_end|>'", "{% endfor %}{% if m.tool_calls %}]{% endif %}{{ '<|im_end|>'")
    )

    @pytest.mark.parametrize(
        ("source", "between"),
        [(HERMES, "\n</tool_call><tool_call>\n"), (LIST, ", "), (ONE, None), (NO, None), (SPECIAL, None)],
        ids=["hermes", "list", "first only", "refused", "special"],
    )
    def test_between(self, chatty, source, between):
        form = chatty(source).template.form
        assert (form.kind, form.between) == ("json", between)

    def test_it_is_called(self, serving, chatty, monkeypatch):
        monkeypatch.setattr("unmask.lm.rows.Reader._holds", lambda self, size: None)
        served = serving(chatty(HERMES))
        between = "\n</tool_call><tool_call>\n"
        body = pinned(*PAIR, between=between, then=between) | {"tool_choice": "required", "max_tokens": 250}
        calls, _, finish = called(served, stream=False, **body)
        assert [valid(call) for call in calls][:2] == ["w", "s"]
        assert (len(calls) > 2, finish) == (True, "tool_calls")
        first = body["pins"]["0"]
        auto = called(served, stream=True, **{**body, "tool_choice": "auto", "pins": {"0": f"<tool_call>\n{first}"}})
        assert [valid(call) for call in auto[0]][:2] == ["w", "s"]


class TestHearing:
    CALLS = Calls(names=["f", "g"], must=False, before="<c>", between="</c><c>")
    ARGUMENTS = ('{"a": "}</c><c>{\\"name\\": \\\\"}', "{}", '{"b": {"c": [[{}], "\\"]"]}, "d": "\\\\\\\\"}')
    TEXT = "<c>" + "</c><c>".join(f'{{"name": "{n}", "arguments": {a}}}' for n, a in zip("gfg", ARGUMENTS, strict=True))

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 11, 1000])
    def test_pieces_make_up_the_calls(self, size):
        """Whatever the arguments hold: brackets, quotes, and what stands between two calls."""
        hearing, found = Hearing(self.CALLS), []
        for at in range(0, len(self.TEXT), size):
            assert not hearing.whole or len(hearing.heard) < 3
            for delta in hearing.more(self.TEXT[at : at + size]):
                (piece,) = delta["tool_calls"]
                if "id" in piece:
                    found.append({"name": piece["function"]["name"], "arguments": ""})
                assert piece["index"] == len(found) - 1
                found[-1]["arguments"] += piece["function"]["arguments"]
        assert hearing.left() == []
        assert hearing.whole
        assert [(one["name"], one["arguments"]) for one in found] == list(zip("gfg", self.ARGUMENTS, strict=True))
        whole = [call["function"] for call in self.CALLS.message(self.TEXT)["tool_calls"]]
        assert whole == found
        assert all(json.loads(one["arguments"]) is not None for one in found)

    @pytest.mark.parametrize("cut", [1, 2, 12, 40])
    def test_what_is_torn_is_not_whole(self, cut):
        assert self.CALLS.message(self.TEXT[:-cut]) is None
        assert self.CALLS.message(self.TEXT + "</c>") is None


def test_openai_reads_them(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        ask = {
            "model": "tiny",
            "messages": USER,
            "tools": NAMES,
            "max_tokens": 60,
            "parallel_tool_calls": True,
            "extra_body": {"pins": {"0": "\n".join(written(n, {}) for n in "ab")}},
        }
        said = client.chat.completions.create(**ask).choices[0]
        assert [call.function.name for call in said.message.tool_calls][:2] == ["a", "b"]
        with client.chat.completions.stream(**ask) as stream:
            final = stream.get_final_completion().choices[0]
        told = [(call.function.name, call.function.arguments) for call in final.message.tool_calls]
        assert told == [(call.function.name, call.function.arguments) for call in said.message.tool_calls]
        calls = [call.to_dict() for call in said.message.tool_calls]
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in calls]
        turns = [*USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
        more = client.chat.completions.create(
            model="tiny", messages=turns, tools=NAMES, tool_choice="none", max_tokens=4
        )
        assert more.choices[0].message.tool_calls is None
