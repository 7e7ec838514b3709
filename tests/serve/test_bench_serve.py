"""The load generator: against a server of ours, and against one that knows nothing but OpenAI's plain protocol."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from serving import live, process

from unmask.base.errors import BadInput, RequestFailed
from unmask.evals.asking import Heard, Server
from unmask.evals.load import Bounds, percentiles, summed, sweep

KNOWN = {"model", "messages", "prompt", "max_tokens", "seed", "stream", "stream_options"}


class Plain:
    """A server of OpenAI's plain protocol: three pieces of text, and misbehaviour where a seed asks for it.

    Args:
        counts: whether it knows `stream_options`.
        key: that it wants.
        bad: seed to what it does instead.
    """

    def __init__(self, *, counts=True, key=None, bad=None):
        self.counts, self.key, self.bad = counts, key, bad or {}
        self.bodies, self.running, self.most = [], 0, 0
        self._lock, self.over = threading.Lock(), threading.Event()
        plain = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def answer(self, status, body):
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.answer(200, {"object": "list", "data": [{"id": "plain-1"}, {"id": "plain-2"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with plain._lock:
                    plain.bodies.append(body)
                    plain.running += 1
                    plain.most = max(plain.most, plain.running)
                try:
                    plain.write(self, body)
                finally:
                    with plain._lock:
                        plain.running -= 1

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def write(self, handler, body):
        if self.key and handler.headers.get("authorization") != f"Bearer {self.key}":
            return handler.answer(401, {"error": {"message": "no", "code": "invalid_api_key"}})
        if set(body) - KNOWN or (not self.counts and "stream_options" in body):
            return handler.answer(422, {"detail": [{"loc": ["body"], "msg": "unknown field"}]})
        bad = self.bad.get(body["seed"])
        if isinstance(bad, int):
            return handler.answer(bad, {"error": {"message": "later", "type": "rate_limit", "code": None}})
        chat = handler.path.endswith("/chat/completions")
        pieces = [{"role": "assistant"}, *({"content": text} for text in ("one ", "two ", "three"))]
        choices = [
            {"index": 0, "delta": piece} if chat else {"index": 0, "text": piece.get("content", "")} for piece in pieces
        ]
        events = [{"choices": [{**choice, "finish_reason": None}]} for choice in choices]
        events.append({"choices": [{"index": 0, "delta": {}, "text": "", "finish_reason": "stop"}]})
        if "stream_options" in body:
            events.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}})
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        for event in events[:2] if bad else events:
            handler.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if bad == "garbage":
            handler.wfile.write(b"data: {{{\n\n")
        elif bad == "error":
            handler.wfile.write(b'data: {"error": {"message": "x", "code": "engine_failed"}}\n\n')
        elif bad == "slow":
            self.over.wait(60)
        elif not bad:
            handler.wfile.write(b"data: [DONE]\n\n")

    def close(self):
        self.over.set()
        self.server.shutdown()
        self._thread.join(10)
        self.server.server_close()


@pytest.fixture
def plain():
    made = []

    def build(**more):
        made.append(Plain(**more))
        return made[-1]

    yield build
    for one in made:
        one.close()


def asking(url, **more):
    return Server(**{"url": url, "model": "", "max_tokens": 12, "timeout_s": 30, **more})


class TestOurs:
    @pytest.mark.parametrize("api", ["chat", "completions"])
    def test_figures_add_up(self, live, api):
        server, found = sweep(
            asking(f"{live.url}/v1", api=api), [("closed", 3), ("poisson", 50.0)], ["a", "def "], Bounds(requests=6)
        )
        assert server.model == "tiny"
        for one, arrival in zip(found, ("closed", "poisson"), strict=True):
            assert (one.arrival, one.asked, one.done, one.errors, one.counted) == (arrival, 6, 6, {}, "usage")
            assert 0 < one.tokens <= 6 * 12
            assert one.tokens_per_forward == one.tokens / one.forwards
            assert one.tokens_per_s == pytest.approx(one.tokens / one.seconds)
            assert one.requests_per_s == pytest.approx(6 / one.seconds)
            assert 0 < one.first_s[0] <= one.whole_s[0] <= one.whole_s[1] <= one.seconds

    def test_the_command(self, process, tmp_path):
        served = process("tiny", "--api-key", "secret")
        command = [sys.executable, "-m", "unmask", "bench", "serve", f"{served.url}/v1", "--requests", "2"]
        small = [*command, "--api-key", "secret", "--tokens", "8", "--concurrency", "1,2", "--rate", "40"]
        extra = ["--extra", '{"reasoning_effort": "low"}', "--out", str(tmp_path), "--json"]
        done = subprocess.run([*small, *extra], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert [(one["arrival"], one["level"], one["done"]) for one in told["loads"]] == [
            ("closed", 1, 2),
            ("closed", 2, 2),
            ("poisson", 40, 2),
        ]
        assert json.loads((tmp_path / "load.json").read_text()) == told
        assert (tmp_path / "load.png").stat().st_size > 10_000
        assert "secret" not in done.stdout
        done = subprocess.run([*command, "--api-key", "wrong"], capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "401 invalid_api_key" in done.stderr


class TestPlain:
    def test_nothing_but_openais_fields_is_needed(self, plain):
        fake = plain(key="k")
        server, (one,) = sweep(asking(fake.url), [("closed", 4)], ["x"], Bounds(requests=10), key="k")
        assert (server.model, one.done, one.tokens, one.counted) == ("plain-1", 10, 70, "usage")
        assert one.forwards is one.tokens_per_forward is None
        assert one.tokens_per_piece == 70 / 30
        assert len(fake.bodies) == 11
        assert sorted(body["seed"] for body in fake.bodies[1:]) == list(range(10))
        assert fake.most <= 4

    @pytest.mark.parametrize("api", ["chat", "completions"])
    def test_without_usage_pieces_are_counted(self, plain, api):
        fake = plain(counts=False)
        server, (one,) = sweep(asking(fake.url, api=api, model="m"), [("closed", 1)], ["x"], Bounds(requests=2))
        assert not server.counts
        assert (one.done, one.tokens, one.counted, one.errors) == (2, 6, "pieces", {})

    def test_errors_by_kind(self, plain):
        bad = {1: 429, 2: 429, 3: "cut", 4: "garbage", 5: "error", 6: 500, 7: "slow"}
        _, (one,) = sweep(asking(plain(bad=bad).url, timeout_s=3), [("closed", 2)], ["x"], Bounds(requests=9))
        assert one.errors == {
            "429 rate_limit": 2,
            "cut off": 1,
            "not OpenAI's protocol": 1,
            "in the stream: engine_failed": 1,
            "500 rate_limit": 1,
            "timeout": 1,
        }
        assert (one.asked, one.done, one.tokens) == (9, 2, 14)

    def test_a_point_ends_in_time(self, plain):
        fake = plain()
        bounds = Bounds(requests=10**6, seconds=0.2)
        _, found = sweep(asking(fake.url), [("closed", 2), ("poisson", 20.0)], ["x"], bounds)
        assert all(0 < one.done == one.asked < 10**4 for one in found)

    def test_what_can_not_be_asked(self, plain):
        with pytest.raises(RequestFailed, match="401 invalid_api_key"):
            sweep(asking(plain(key="k").url), [("closed", 1)], ["x"], Bounds())
        with pytest.raises(RequestFailed, match="422"):
            sweep(asking(plain().url, extra={"diffusion": {}}), [("closed", 1)], ["x"], Bounds())
        gone = plain()
        gone.server.server_close()
        with pytest.raises(BadInput, match="can't reach"):
            sweep(asking(gone.url), [("closed", 1)], ["x"], Bounds())
        for points, prompts, bounds in (
            ([], ["x"], Bounds()),
            ([("closed", 0)], ["x"], Bounds()),
            ([("closed", 1)], [], Bounds()),
            ([("closed", 1)], ["x"], Bounds(requests=0)),
        ):
            with pytest.raises(BadInput):
                sweep(asking(gone.url), points, prompts, bounds)


def test_figures_by_hand():
    heard = [
        Heard(pieces_s=[0.1, 0.4], end_s=0.5, tokens=8, forwards=2),
        Heard(pieces_s=[0.3, 0.4, 0.6], end_s=0.7, tokens=12, forwards=3),
        Heard(pieces_s=[9.0], end_s=9.0, error="timeout"),
    ]
    one = summed("closed", 2, heard, 10.0)
    assert (one.asked, one.done, one.errors) == (3, 2, {"timeout": 1})
    assert (one.tokens, one.forwards, one.tokens_per_forward, one.tokens_per_s) == (20, 5, 4.0, 2.0)
    assert one.first_s == [0.1, 0.3, 0.3]
    assert one.gap_s == pytest.approx([0.2, 0.3, 0.3])
    assert one.tokens_per_piece == 4.0
    assert percentiles(range(1, 101)) == [50, 95, 99]
    nothing = summed("closed", 2, heard[2:], 10.0)
    assert (nothing.first_s, nothing.tokens_per_forward, nothing.tokens_per_s) == (None, None, 0)
