"""Streams: committed text only grows, drafts go beside it, every end is told."""

import asyncio
import json

import pytest
from serving import events, serving, toy

CHAT = [{"role": "user", "content": "def add("}]


def told(served, path, **body):
    answer = served.post(path, stream=True, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events(answer.text)


def joined(chunks, index=0):
    return "".join(
        c.get("text", "") or c.get("delta", {}).get("content", "") or ""
        for _, chunk in chunks
        for c in chunk["choices"]
        if c["index"] == index
    )


def test_a_chat(toy):
    *chunks, (number, last) = told(toy, "/v1/chat/completions", messages=CHAT, max_tokens=20, temperature=1.0)
    assert (number, last) == (None, "[DONE]")
    assert [n for n, _ in chunks] == list(range(len(chunks)))
    out = toy.lm.generate(CHAT, chat=True, length=20, temperature=1.0)
    assert joined(chunks) == out.completion
    assert chunks[0][1]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["finish_reason"] for _, c in chunks] == [None] * (len(chunks) - 1) + [out.finish_reason]
    assert len({c["id"] for _, c in chunks}) == 1
    assert {c["object"] for _, c in chunks} == {"chat.completion.chunk"}
    assert "usage" not in chunks[0][1]


def test_several_texts_and_their_cost(toy):
    ask = {"prompt": ["a", "def"], "n": 2, "max_tokens": 12, "temperature": 1.0}
    *chunks, _ = told(toy, "/v1/completions", stream_options={"include_usage": True}, **ask)
    whole = toy.post("/v1/completions", **ask).json()
    for index in range(4):
        assert joined(chunks, index) == whole["choices"][index]["text"]
    assert chunks[-1][1]["choices"] == []
    assert chunks[-1][1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for _, chunk in chunks[:-1])


@pytest.mark.parametrize("stop", [[], ["\n"], ["e", "return"]])
@pytest.mark.parametrize("seed", range(4))
def test_log_probabilities_come_with_their_text(toy, seed, stop):
    ask = {"prompt": "a", "max_tokens": 24, "temperature": 1.0, "seed": seed, "logprobs": 3, "stop": stop}
    *chunks, _ = told(toy, "/v1/completions", **ask)
    whole = toy.post("/v1/completions", **ask).json()["choices"][0]
    assert joined(chunks) == whole["text"]
    logs = [c["choices"][0]["logprobs"] for _, c in chunks if c["choices"][0]["logprobs"]]
    for name in ("tokens", "token_logprobs", "steps", "top_logprobs"):
        assert [x for log in logs for x in log[name]] == whole["logprobs"][name]


def test_drafts_make_up_the_canvas(toy):
    ask = {"prompt": "a", "max_tokens": 16, "eos": "forbid"}
    options = {"decoder": "whole x quota", "steps": 8, "rank": "random"}
    *chunks, _ = told(toy, "/v1/completions", diffusion={"stream": True, **options}, **ask)
    drafts = [(n, c) for n, c in chunks if "diffusion" in c]
    assert len(drafts) > 1
    canvas = []
    for number, chunk in drafts:
        draft = chunk["diffusion"]
        assert draft["seq"] == number
        assert chunk["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
        assert draft["whole"] is (draft is drafts[0][1]["diffusion"])
        canvas = (canvas + [("", "masked")] * draft["size"])[: draft["size"]]
        for at, text, look in draft["ops"]:
            canvas[at] = (text, look)
        written = sum(look != "masked" for _, look in canvas)
        assert written >= draft["forwards"]  # two positions a step, whichever drafts were left out
    plain = told(toy, "/v1/completions", diffusion=options, **ask)
    assert joined(chunks) == joined(plain[:-1])
    assert not any("diffusion" in c for _, c in plain[:-1])


def test_now_and_then_a_draft_is_whole(toy, monkeypatch):
    monkeypatch.setattr("unmask.serve.stream.WHOLE_EVERY", 3)
    options = {"stream": True, "decoder": "whole x quota", "steps": 24, "rank": "random"}
    *chunks, _ = told(toy, "/v1/completions", prompt="a", max_tokens=24, eos="forbid", diffusion=options)
    drafts = [c["diffusion"] for _, c in chunks if "diffusion" in c]
    assert [d["whole"] for d in drafts] == [i % 3 == 0 for i in range(len(drafts))]
    for start in range(0, len(drafts), 3):  # who comes in here knows as much as who was there from the beginning
        canvas, late = {}, {}
        for i, draft in enumerate(drafts):
            canvas = {} if draft["whole"] else canvas
            canvas |= {at: rest for at, *rest in draft["ops"]}
            if i >= start:
                late = {} if draft["whole"] else late
                late |= {at: rest for at, *rest in draft["ops"]}
        assert canvas == late


def test_committed_text_is_told_before_the_end(toy):
    options = {"decoder": "whole x quota", "steps": 16, "rank": "position"}
    *chunks, _ = told(toy, "/v1/completions", prompt="a", max_tokens=16, eos="forbid", diffusion=options)
    assert sum(bool(c["choices"][0]["text"]) for _, c in chunks) > 4


def test_a_suffix_streams_at_its_end(toy):
    *chunks, last = told(toy, "/v1/completions", prompt="a", suffix="b", max_tokens=5, diffusion={"stream": True})
    assert joined(chunks) == toy.lm.infill("a", "b", length=(1, 5)).completion
    assert last == (None, "[DONE]")


@pytest.mark.parametrize("decoder", ["whole x ancestral + remask", "block x threshold + edit", "ar"])
def test_what_revises_tells_only_what_stays(serving, block_lm, lm, ar_lm, decoder):
    model = {"whole": lm, "block": block_lm, "ar": ar_lm}[decoder.split()[0]]
    served = serving(model)
    ask = {"prompt": "def add(a, b):", "max_tokens": 24, "temperature": 1.0}
    options = {"decoder": decoder}
    *chunks, _ = told(served, "/v1/completions", diffusion={"stream": True, **options}, **ask)
    whole = model.generate(ask["prompt"], length=24, temperature=1.0, **options)
    assert joined(chunks) == whole.completion


def test_an_error_in_a_stream_is_an_event_and_then_the_end(serving, lm):
    served = serving(lm, gated=True)
    served.gate.let(2)
    *chunks, (number, last) = told(
        served, "/v1/completions", prompt="a", max_tokens=30, eos="forbid", diffusion={"deadline_s": 0.5}
    )
    assert last["error"]["code"] == "deadline_exceeded"
    assert {*last["error"]} == {"message", "type", "param", "code"}
    assert number == len(chunks)


def test_one_who_breaks_a_forward_hurts_nobody_else(serving, lm):
    served = serving(lm, gated=True)
    served.gate.poison = lm.tokenizer.encode("🙂")[-1]
    served.gate.open()
    *_, (_, last) = told(served, "/v1/completions", prompt="🙂", max_tokens=5)
    assert last["error"]["code"] == "request_failed"
    assert "0x" not in str(last)
    assert "poison" not in str(last)
    bad = served.post("/v1/completions", prompt="🙂", max_tokens=5)
    assert bad.status_code == 500
    good = served.post("/v1/completions", prompt="def", max_tokens=5)
    assert good.json()["choices"][0]["text"] == lm.generate("def", length=5).completion


def test_a_slow_reader_does_not_slow_the_writing(serving, lm):
    served, sent = serving(lm), []
    options = {"stream": True, "decoder": "whole x quota", "steps": 24, "rank": "random"}
    body = {"prompt": "a", "max_tokens": 24, "eos": "forbid", "stream": True, "diffusion": options}
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions"}
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]

    async def run():
        messages = asyncio.Queue()
        messages.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})

        async def send(message):
            sent.append(message)
            while len(sent) == 2 and served.worker.num_open:  # the first event is not read until all is written
                await asyncio.sleep(0.01)

        await served.guard({**scope, "query_string": b"", "headers": headers}, messages.get, send)

    asyncio.run(run())
    *chunks, last = events(b"".join(m.get("body", b"") for m in sent).decode())
    assert last == (None, "[DONE]")
    assert (
        joined(chunks)
        == lm.generate("a", length=24, eos="forbid", decoder="whole x quota", steps=24, rank="random").completion
    )
    assert [n for n, _ in chunks] == list(range(len(chunks)))
    assert sum("diffusion" in c for _, c in chunks) <= 3
