"""A real server on a real socket: OpenAI's own client, raw events, clients that leave, and many of them at once."""

import asyncio
import json
import re
import shlex
import socket
from pathlib import Path

import openai
import pytest
import serve_soak
from serving import events, http, live, until

import unmask

DOCS = Path(__file__).parent.parent.parent / "docs"
CHAT = [{"role": "user", "content": "def add("}]


@pytest.fixture(scope="module")
def tiny():
    return unmask.load("tiny")


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


class TestOpenAI:
    def test_models(self, client):
        assert [m.id for m in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"

    def test_a_chat(self, client, tiny):
        said = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=12, seed=3, logprobs=True)
        out = tiny.generate(CHAT, chat=True, length=12, seed=3)
        assert said.choices[0].message.content == out.completion
        assert said.choices[0].finish_reason == out.finish_reason
        assert [e.logprob for e in said.choices[0].logprobs.content] == pytest.approx(out.logprobs, abs=1e-6)
        assert said.usage.completion_tokens == len(out.tokens)
        assert said.usage.forwards == out.stats.forwards
        assert said.usage.prompt_tokens_details.cached_tokens == 0
        assert said._request_id

    def test_a_streamed_chat(self, client, tiny):
        chunks = list(
            client.chat.completions.create(
                model="tiny",
                messages=CHAT,
                max_tokens=16,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"diffusion": {"stream": True}},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == tiny.generate(CHAT, chat=True, length=16).completion
        assert chunks[-1].usage.total_tokens > 0
        assert any(getattr(c, "diffusion", None) for c in chunks)

    def test_completions(self, client, tiny):
        said = client.completions.create(model="tiny", prompt="def f():\n", suffix="\n    return a", max_tokens=8)
        assert said.choices[0].text == tiny.infill("def f():\n", "\n    return a", length=(1, 8)).completion
        said = client.completions.create(
            model="tiny", prompt="a", max_tokens=12, stop=["\n", "e"], n=2, seed=1, logprobs=1
        )
        outs = tiny.generate("a", length=12, stop=["\n", "e"], n=2, seed=1)
        assert [c.text for c in said.choices] == [o.completion for o in outs]
        assert said.choices[1].logprobs.token_logprobs == pytest.approx(outs[1].logprobs, abs=1e-6)

    def test_errors(self, client):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="tiny", messages=CHAT, frequency_penalty=1)
        assert (refused.value.param, refused.value.type) == ("frequency_penalty", "invalid_request_error")
        with pytest.raises(openai.NotFoundError) as missing:
            client.completions.create(model="gpt-4", prompt="x")
        assert missing.value.code == "model_not_found"
        stream = client.completions.create(
            model="tiny", prompt="x", max_tokens=400, stream=True, extra_body={"diffusion": {"deadline_s": 0.3}}
        )
        with pytest.raises(openai.APIError) as late:
            list(stream)
        assert late.value.code == "deadline_exceeded"

    def test_the_asynchronous_client(self, live, tiny):
        async def run():
            async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="unused", timeout=60) as client:
                asks = [client.completions.create(model="tiny", prompt="a", max_tokens=8, seed=s) for s in range(6)]
                return [said.choices[0].text for said in await asyncio.gather(*asks)]

        assert asyncio.run(run()) == [tiny.generate("a", length=8, seed=s).completion for s in range(6)]


def test_raw_events(http, tiny):
    body = {"model": "tiny", "messages": CHAT, "max_tokens": 10, "stream": True}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.endswith("data: [DONE]\n\n")
    *chunks, _ = events(answer.text)
    text = "".join(c["choices"][0]["delta"].get("content", "") for _, c in chunks)
    assert text == tiny.generate(CHAT, chat=True, length=10).completion


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_is_let_go(live, http, stream):
    def cancelled():
        lines = http.get("/metrics").text.splitlines()
        return float(next(x for x in lines if x.startswith('unmask_jobs_total{end="cancelled"}')).split()[1])

    before = cancelled()
    body = json.dumps({"prompt": "x", "max_tokens": 480, "eos": "forbid", "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", live.port)) as raw:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        raw.sendall(head.encode() + body)
        if stream:
            assert raw.recv(200).startswith(b"HTTP/1.1 200")
        else:
            until(lambda: serve_soak.httpx.get(live.url + "/metrics").text.count("unmask_running 1.0"))
    until(lambda: cancelled() == before + 1)
    assert not any(serve_soak.quiet(live.url).values())


def test_what_is_no_http(live, http):
    for junk in (
        b"\x16\x03\x01" * 40,
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"A: b\r\n" * 20_000,
        b"POST\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", live.port)) as raw:
            raw.settimeout(20)
            try:
                raw.sendall(junk + b"\r\n")
                assert raw.recv(100)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 431", b"")
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert http.get("/ready").status_code == 200


def test_64_clients_of_whom_some_leave(live, tiny):
    """The short form of `benchmarks/serve_soak.py`."""
    keys = [(number, seed) for number in range(len(serve_soak.ASKS)) for seed in range(2)]
    expected = {key: serve_soak.solo(tiny, *key, 10) for key in keys}
    tally = asyncio.run(serve_soak.soak(live.url, expected, clients=64, rounds=1, seconds=300, tokens=10))
    assert not tally.wrong
    assert tally.ends["done"] > 30
    assert tally.ends["left"] > 10
    assert serve_soak.quiet(live.url) == {
        "unmask_open": 0,
        "unmask_running": 0,
        "unmask_queue": 0,
        "unmask_pages_held": 0,
    }


def test_the_pages_about_the_server_run(live, http, tmp_path):
    page, editors = ((DOCS / name).read_text() for name in ("server.md", "editors.md"))
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.S))
    exec(compile(code.replace("http://127.0.0.1:8000", live.url), "docs/server.md", "exec"), {})
    curls = re.findall(r"^curl .*?(?=^curl|^```)", page + editors, flags=re.S | re.M)
    assert len(curls) == 5
    for command in curls:
        words = shlex.split(command.replace("\\\n", " "))
        url = next(word for word in words if word.startswith("http"))
        answer = http.post(url.replace("http://127.0.0.1:8000", ""), json=json.loads(words[words.index("-d") + 1]))
        assert answer.status_code == 200, answer.text
    known = http.get("/openapi.json").json()["paths"]
    named = set(
        re.findall(r"/(?:v1|infill|tokenize|detokenize|health|ready|metrics|version)[\w/]*", page.split("## Routes")[1])
    )
    assert {path.split("/{")[0] for path in known} <= named | {"/detokenize"}
