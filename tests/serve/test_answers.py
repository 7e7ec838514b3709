"""What answers say: the text is that of the same call in Python, and all that is told of it is so."""

import math
import re

import pytest
from serving import events, serving, toy

from unmask.lm.model import LanguageModel
from unmask.serve.routes.llama import indented

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "def add("}]
SHARP = {"temperature": 1.0, "seed": 7}


class TestTexts:
    def test_a_chat(self, toy):
        said = toy.post("/v1/chat/completions", model="toy", messages=CHAT, max_tokens=12, **SHARP).json()
        out = toy.lm.generate(CHAT, chat=True, length=12, **SHARP)
        (choice,) = said["choices"]
        assert choice["message"]["content"] == out.completion
        assert choice["message"]["role"] == "assistant"
        assert choice["finish_reason"] == out.finish_reason
        assert (said["object"], said["model"]) == ("chat.completion", "toy")
        assert said["id"].startswith("chatcmpl-")

    def test_parts_and_the_developers_role(self, toy):
        parts = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "def "}, {"type": "text", "text": "add("}]},
        ]
        texts = [
            toy.post("/v1/chat/completions", messages=m, max_completion_tokens=9).json()["choices"]
            for m in (CHAT, parts)
        ]
        assert texts[0] == texts[1]

    def test_completions_of_many_prompts(self, toy):
        said = toy.post("/v1/completions", prompt=["a", "def"], n=2, max_tokens=8, **SHARP).json()
        outs = toy.lm.generate(["a", "def"], n=2, length=8, **SHARP)
        assert [c["text"] for c in said["choices"]] == [o.completion for o in outs]
        assert [c["index"] for c in said["choices"]] == [0, 1, 2, 3]

    def test_texts_that_grow(self, toy):
        rule = {"decoder": "daedal", "start": 6, "insert": 3, "tail": 4, "unsure": 0.2}
        said = toy.post("/v1/completions", prompt="a", max_tokens=20, diffusion=rule, **SHARP).json()
        out = toy.lm.generate("a", length=20, **rule, **SHARP)
        assert said["choices"][0]["text"] == out.completion
        assert 6 < out.stats.length <= 20
        refused = toy.post("/v1/infill", segments=[{"text": "a"}, {"mask": {"min": 1, "max": 9}}], diffusion=rule)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "diffusion.decoder")
        named = {"lengths": "tokens"}
        refused = toy.post("/v1/infill", segments=[{"text": "a"}, {"mask": {"min": 1, "max": 9}}], diffusion=named)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "diffusion.lengths")

    def test_ids_as_prompt(self, toy):
        ids = toy.post("/tokenize", prompt="def").json()["tokens"]
        said = toy.post("/v1/completions", prompt=ids, max_tokens=5).json()
        assert said["choices"][0]["text"] == toy.lm.generate(ids, length=5).completion
        assert toy.post("/detokenize", tokens=ids).json() == {"prompt": "def"}

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/fim/completions"])
    def test_a_suffix_is_seen(self, toy, path):
        said = toy.post(path, prompt="def f():\n", suffix="\n    return a", max_tokens=6).json()
        assert said["choices"][0]["text"] == toy.lm.infill("def f():\n", "\n    return a", length=(1, 6)).completion
        other = toy.post(path, prompt="def f():\n", suffix="import os", max_tokens=6).json()
        assert other["choices"][0]["text"] != said["choices"][0]["text"]

    def test_stop_cuts_a_fill(self, toy):
        whole = toy.post("/v1/completions", prompt="a", suffix="b", max_tokens=6).json()["choices"][0]["text"]
        cut = toy.post("/v1/completions", prompt="a", suffix="b", max_tokens=6, stop=whole[1:3]).json()
        assert whole[1:3] not in cut["choices"][0]["text"]

    def test_fim_without_a_suffix_goes_on(self, toy):
        said = toy.post("/v1/fim/completions", prompt="def f", max_tokens=6).json()
        assert said["choices"][0]["text"] == toy.lm.generate("def f", length=6).completion

    def test_how_a_text_ends(self, toy):
        exact = toy.post("/v1/completions", prompt="a", max_tokens=9, eos="forbid", **SHARP).json()
        assert exact["usage"]["completion_tokens"] == 9
        assert exact["choices"][0]["finish_reason"] == "length"
        pinned = toy.post("/v1/completions", prompt="a", max_tokens=9, pins={"3": "return"}, eos="forbid").json()
        assert "return" in pinned["choices"][0]["text"]
        for least in (2, 7):
            said = toy.post("/v1/completions", prompt="a", max_tokens=9, min_tokens=least, n=8, temperature=3.0).json()
            outs = toy.lm.generate("a", length=(least, 9), n=8, temperature=3.0)
            assert [c["text"] for c in said["choices"]] == [o.completion for o in outs]

    def test_stop_strings(self, toy):
        whole = toy.post("/v1/completions", prompt="a", max_tokens=20, eos="forbid", **SHARP).json()["choices"][0][
            "text"
        ]
        stop = whole[5:7]
        said = toy.post("/v1/completions", prompt="a", max_tokens=20, eos="forbid", stop=["?!#", stop], **SHARP).json()
        assert said["choices"][0]["text"] == whole[: whole.index(stop)]
        assert said["choices"][0]["finish_reason"] == "stop"

    def test_decoding_options(self, toy):
        options = {"decoder": "whole x quota", "steps": 3, "rank": "margin"}
        said = toy.post("/v1/completions", prompt="a", max_tokens=12, diffusion=options).json()
        out = toy.lm.generate("a", length=12, **options)
        assert said["choices"][0]["text"] == out.completion
        assert said["usage"]["forwards"] == out.stats.forwards == 3

    @pytest.mark.parametrize(
        ("said", "effort"),
        [("minimal", "instant"), ("instant", "instant"), ("low", "low"), ("medium", "medium"), ("high", "high")],
    )
    def test_effort_by_openais_name(self, toy, said, effort):
        ask = {"messages": CHAT, "max_tokens": 24, "eos": "forbid", "diffusion": {"decoder": "llada"}}
        found = toy.post("/v1/chat/completions", reasoning_effort=said, **ask).json()
        out = toy.lm.generate(CHAT, chat=True, length=24, eos="forbid", decoder="llada", effort=effort)
        assert found["choices"][0]["message"]["content"] == out.completion
        assert found["usage"]["forwards"] == out.stats.forwards

    def test_what_every_client_sends_and_means_nothing(self, toy):
        nothing = {
            "frequency_penalty": 0,
            "presence_penalty": 0.0,
            "logit_bias": {},
            "user": "u",
            "metadata": {"a": "b"},
            "service_tier": "auto",
            "n": 1,
            "stream": False,
            "response_format": {"type": "text"},
        }
        assert toy.post(
            "/v1/chat/completions", messages=CHAT, max_tokens=2, tools=[], store=False, **nothing
        ).is_success


class TestHoles:
    def test_infill(self, toy):
        segments = [
            {"text": "Dear "},
            {"mask": {"min": 1, "max": 3, "name": "who"}},
            {"text": ", your parcel "},
            {"mask": {"min": 4, "max": 4}},
            {"text": " today."},
        ]
        said = toy.post("/v1/infill", segments=segments, seed=2, logprobs=True).json()
        out = toy.lm.fill("Dear {{who:1-3}}, your parcel {{:4}} today.", seed=2)
        (choice,) = said["choices"]
        assert choice["text"] == out.text
        assert [(h["name"], h["text"]) for h in choice["holes"]] == out.holes
        assert choice["logprobs"]["token_logprobs"] == out.logprobs
        assert len(toy.post("/v1/infill", segments=segments, n=3).json()["choices"]) == 3

    def test_refine_keeps_the_rest(self, toy):
        text = "It was a fine morning — 🙂."
        said = toy.post("/v1/refine", text=text, spans=[[9, 13]], seed=1).json()["choices"][0]
        assert said["text"] == toy.lm.refine(text, spans=[(9, 13)], seed=1).text
        assert said["text"].startswith("It was a ")
        assert said["text"].endswith(" morning — 🙂.")

    def test_refine_with_a_warm_start(self, toy):
        text = "It was a fine morning."
        said = toy.post("/v1/refine", text=text, strength=0.3, seed=1).json()["choices"][0]
        assert said["text"] == toy.lm.refine(text, spans=[(0, len(text))], strength=0.3, seed=1).text
        longer = toy.post("/v1/refine", text=text, spans=[[9, 13]], length=[2, 5]).json()["choices"][0]
        assert longer["text"] == toy.lm.refine(text, spans=[(9, 13)], length=(2, 5)).text

    def test_llama_cpps_infill(self, toy):
        ask = {
            "input_prefix": "def f():\n",
            "prompt": "    a = ",
            "input_suffix": "\n    return a\n",
            "n_predict": 6,
            "top_k": 40,
            "top_p": 0.99,
            "samplers": ["top_k", "top_p", "infill"],
            "cache_prompt": True,
            "t_max_prompt_ms": 500,
        }
        texts = "def f():\n    a = ", "\n    return a\n"
        said = toy.post("/infill", **ask).json()
        assert said["content"] == toy.lm.infill(*texts, length=(1, 6), top_k=40, top_p=0.99).completion
        assert said["tokens_predicted"] == said["usage"]["completion_tokens"]
        fields = ["content", "timings/predicted_n", "timings/nothing"]
        extra = [{"text": "import os", "filename": "a.py", "time": 3.5}]
        other = toy.post("/infill", **ask, response_fields=fields, input_extra=extra).json()
        assert {*other} == {"content", "timings/predicted_n"}
        assert other["content"] == toy.lm.infill("import os\n" + texts[0], texts[1], length=(1, 6)).completion
        on = toy.post("/infill", input_prefix="def f", n_predict=6).json()
        assert on["content"] == toy.lm.generate("def f", length=6).completion
        late = toy.post("/infill", **ask, t_max_predict_ms=250_000).json()
        assert (late["content"], late["usage"]["eased"][0]["target_s"]) == (said["content"], 250)
        nothing = toy.post("/infill", n_predict=0, samplers=[], t_max_predict_ms=1).json()
        assert (nothing["content"], nothing["tokens_predicted"]) == ("", 0)

    def test_a_line_that_is_indented_by_less_ends_it(self):
        text = "x = 1\n    y\n\n\tz\n  w\n    v"
        assert [indented(text, n) for n in (0, 1, 3, 4)] == [
            text,
            "x = 1\n    y\n\n\tz\n  w\n    v",
            "x = 1\n    y\n\n",
            "x = 1\n    y\n\n",
        ]
        assert indented("a\nb", 1) == "a\n"

    def test_an_edit(self, toy):
        file = "def f(r):\n<|code_to_edit|>    a = <|cursor|>1\n<|/code_to_edit|>    return a\n"
        content = f"<|current_file_content|>{file}<|/current_file_content|>"
        ask = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        said = toy.post("/v1/edit/completions", **ask).json()
        assert said["object"] == "edit.completion"
        out = toy.lm.infill("def f(r):\n    a = ", "    return a\n", length=(1, 4))
        assert said["choices"][0]["message"]["content"] == "    a = " + out.completion
        told = events(toy.post("/v1/edit/completions", **ask, stream=True).text)
        assert [number for number, _ in told] == [0, 1, None]
        assert told[0][1]["choices"][0]["delta"] == {"content": "    a = " + out.completion}
        assert told[1][1]["choices"][0]["finish_reason"] == out.finish_reason
        assert told[1][1]["usage"] == said["usage"]
        assert told[2][1] == "[DONE]"
        history = "<|edit_diff_history|>-a\n+b<|/edit_diff_history|>"
        other = toy.post(
            "/v1/edit/completions", **{**ask, "messages": [{"role": "user", "content": history + content}]}
        )
        assert other.json()["usage"]["prompt_tokens"] > said["usage"]["prompt_tokens"]

    def test_an_apply(self, toy):
        original = "import os\n\ndef a():\n    return 1\n\ndef b():\n    return 2\n\nprint(a())\n"

        def applied(update):
            content = (
                f"<|original_code|>{original}<|/original_code|>\n<|update_snippet|>\n{update}\n<|/update_snippet|>"
            )
            return toy.post("/v1/apply/completions", messages=[{"role": "user", "content": content}])

        dots = "# ... existing code ..."
        said = applied(f"{dots}\n\ndef b():\n    x = 3\n    return x\n\n{dots}").json()
        assert said["choices"][0]["message"]["content"] == original.replace("return 2", "x = 3\n    return x")
        assert (said["object"], said["usage"]["forwards"]) == ("apply.completion", 0)
        said = applied(f"import os\nimport sys\n{dots}\nprint(a())\nprint(b())\n").json()
        text = original.replace("import os\n", "import os\nimport sys\n") + "print(b())\n"
        assert said["choices"][0]["message"]["content"] == text
        assert applied("all of it\n").json()["choices"][0]["message"]["content"] == "\nall of it\n\n"
        lost = applied(f"{dots}\nwhile quartz:\n{dots}")
        assert (lost.status_code, lost.json()["error"]["param"]) == (400, "messages[0].content")


PATH = "/v1/chat/completions"


class TestMessagesOfBefore:
    """As clients send them back: OpenAI's classes dump all their fields, and say of a tool's answer whose it is."""

    EMPTY = ("annotations", "audio", "function_call", "refusal", "tool_calls", "name")

    def test_what_holds_nothing_changes_nothing(self, toy):
        said = {"role": "assistant", "content": "yes"}
        chats = [[CHAT[1], {**said, **more}, CHAT[1]] for more in ({}, dict.fromkeys(self.EMPTY), {"annotations": []})]
        texts = [toy.post(PATH, messages=chat, max_tokens=8).json()["choices"] for chat in chats]
        assert texts[0] == texts[1] == texts[2]

    def test_a_tool_has_a_name(self, toy):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        asked = [CHAT[1], {"role": "assistant", "content": None, "tool_calls": [call]}]
        result = {"role": "tool", "tool_call_id": "1", "content": "3"}
        plain, named = (
            toy.post(PATH, messages=[*asked, {**result, **more}], max_tokens=8) for more in ({}, {"name": "f"})
        )
        assert plain.json()["choices"] == named.json()["choices"]


def test_probes_may_ask_for_the_head_alone(toy):
    for path in ("/health", "/ready"):
        answer = toy.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
    assert toy.client.head("/metrics").status_code == 405
