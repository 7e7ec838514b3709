"""Keys, limits, queue, deadlines, cancellation, draining, a broken engine, metrics and the log."""

import asyncio
import json
import logging
import threading
import time

import pytest
from serving import LOCAL, serving, toy, until
from starlette.testclient import TestClient

from unmask.base.errors import BadInput, UnknownName
from unmask.serve.guard import Guard
from unmask.serve.limits import Limits
from unmask.serve.routes import ROUTERS

USER = [{"role": "user", "content": "x"}]
TEXT = "/v1/completions"


def routes(guard):
    known = [(m, route.path) for router in ROUTERS for route in router.routes for m in route.methods]
    return [("GET", "/openapi.json"), *((m, path.replace("{name:path}", "x")) for m, path in known)]


def raw(guard, scope, messages, *, sent=None):
    """Call an application as a server would; what it sends."""
    sent, queue = [] if sent is None else sent, asyncio.Queue()

    async def run():
        for message in messages:
            queue.put_nowait(message)

        async def send(message):
            sent.append(message)

        whole = {"type": "http", "method": "POST", "path": TEXT, "query_string": b"", "raw_path": TEXT.encode()}
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        await guard({**whole, "headers": headers, **scope}, queue.get, send)

    asyncio.run(run())
    return sent


class TestDoor:
    def test_every_route_wants_a_key(self, serving, lm):
        served = serving(lm, keys=["right", "other"])
        assert len(routes(served.guard)) > 14
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "right"}, {"x-api-key": "right "}):
            client = TestClient(served.guard, base_url=LOCAL, headers=headers)
            others = [
                ("GET", "/nowhere"),
                ("GET", "/health/"),
                ("GET", "/ready/"),
                ("POST", "//health"),
                ("POST", "/ready"),
            ]
            for method, path in [*routes(served.guard), *others]:
                if method in ("GET", "HEAD") and path in ("/health", "/ready"):
                    continue
                answer = client.request(method, path)
                assert answer.status_code == 401, (method, path)
                assert answer.json()["error"]["code"] == "invalid_api_key"
            assert client.get("/health").json() == {"status": "ok"}
            assert client.get("/ready").json() == {"status": "ready"}

    def test_each_key_opens(self, serving, lm):
        served = serving(lm, keys=["right", "other"])
        for headers in ({"authorization": "Bearer right"}, {"authorization": "bearer other"}, {"x-api-key": "other"}):
            answer = TestClient(served.guard, base_url=LOCAL, headers=headers).get("/v1/models")
            assert answer.status_code == 200

    def test_any_key_will_do_where_none_is_wanted(self, toy):
        assert toy.client.get("/v1/models", headers={"authorization": "Bearer sk-anything"}).status_code == 200

    def test_keys_do_not_share_what_was_read(self, serving, block_lm):
        served = serving(block_lm, keys=["a", "b"])
        ask = {"prompt": "def add(a, b):\n    return a + b\n" * 3, "max_tokens": 4}
        ask["diffusion"] = {"decoder": "block x threshold"}
        cached = [
            served.client.post(TEXT, json=ask, headers={"authorization": f"Bearer {key}"}).json()["usage"][
                "prompt_tokens_details"
            ]["cached_tokens"]
            for key in "aabb"
        ]
        assert cached[0] == cached[2] == 0 < cached[1] == cached[3]

    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", ""])
    def test_without_keys_only_loopback_names_are_answered(self, toy, host):
        assert toy.client.get("/v1/models", headers={"host": host}).status_code == 403

    def test_pages_of_other_origins_are_not(self, toy):
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            assert toy.client.get("/v1/models", headers={"origin": origin}).status_code == 403
        assert toy.client.get("/v1/models", headers={"origin": LOCAL}).status_code == 200

    def test_a_server_that_others_can_reach_wants_keys(self):
        from unmask.serve.run import serve

        for host in ("0.0.0.0", "::", "example.org", "192.168.0.1"):
            with pytest.raises(BadInput, match="--api-key"):
                serve(lambda: None, host=host)
        with pytest.raises(BadInput, match="one character"):
            serve(lambda: None, keys=[" "])

    def test_ids(self, toy):
        assert toy.client.get("/health", headers={"x-request-id": "my-id_7"}).headers["x-request-id"] == "my-id_7"
        for wrong in ("a b", "x" * 65, "http://127.0.0.1/", "é"):
            headers = {"x-request-id": wrong.encode()}
            assert toy.client.get("/health", headers=headers).headers["x-request-id"] != wrong


class TestLimits:
    def test_bodies(self, serving, lm):
        served = serving(lm, body_bytes=1000)
        answer = served.post(TEXT, prompt="x" * 1000)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
        pieces = [{"type": "http.request", "body": b" " * 400, "more_body": True}] * 3
        assert raw(served.guard, {}, pieces)[0]["status"] == 413  # no length was said
        lying = {"headers": [(b"host", b"localhost"), (b"content-length", b"-5")]}
        assert raw(served.guard, lying, [])[0]["status"] == 413

    def test_a_body_that_does_not_come(self, serving, lm):
        served = serving(lm, body_s=0.05)
        sent = raw(served.guard, {}, [{"type": "http.request", "body": b"{", "more_body": True}])
        assert sent[0]["status"] == 408

    def test_each_limit_names_its_field(self, serving, lm):
        served = serving(lm, prompt_tokens=20, n=1, stops=1, work=2000, messages=1, holes=1, prompts=1, steps=30)
        asks = [
            (TEXT, {"prompt": "x y z " * 9}, "prompt"),
            (TEXT, {"prompt": ["x", "y"]}, "prompt"),
            (TEXT, {"prompt": "x", "n": 2}, "n"),
            (TEXT, {"prompt": "x", "stop": ["a", "b"]}, "stop"),
            (TEXT, {"prompt": "x", "pins": {"1": "a", "2": "b"}}, "pins"),
            (TEXT, {"prompt": "x", "max_tokens": 60}, "max_tokens"),
            (TEXT, {"prompt": "x", "max_tokens": 8, "diffusion": {"steps": 31}}, "diffusion.steps"),
            ("/v1/chat/completions", {"messages": USER * 2}, "messages"),
            ("/v1/infill", {"segments": [{"mask": {"min": 1, "max": 1}}] * 2}, "segments"),
            ("/v1/refine", {"text": "abc def", "spans": [[0, 1], [2, 3]]}, "spans"),
            ("/v1/score", {"text": "abc", "samples": 1000}, "samples"),
            ("/detokenize", {"tokens": [5] * 21}, "tokens"),
        ]
        for path, body, param in asks:
            error = served.post(path, **body).json()["error"]
            assert (error["code"], error["param"]) == ("limit_exceeded", param), error
        work = {"decoder": "whole x quota", "steps": 30}
        assert (
            served.post(TEXT, prompt="x", max_tokens=60, diffusion=work).json()["error"]["param"] == "diffusion.steps"
        )
        assert served.post(TEXT, prompt="x", max_tokens=8).is_success

    def test_limits_as_they_are_typed(self):
        assert Limits.of(["queue=3", "deadline_s=1.5"]) == Limits(queue=3, deadline_s=1.5)
        with pytest.raises(UnknownName, match="Did you mean 'queue'"):
            Limits.of(["queu=3"])
        for wrong in ("queue", "queue=x", "queue=-1", "deadline_s=nan", "rows=0", "compilers=0"):
            with pytest.raises(BadInput):
                Limits.of([wrong])

    def test_a_full_queue(self, serving, lm):
        served = serving(lm, gated=True, rows=1, queue=2)
        ask = {"prompt": "x", "max_tokens": 4, "eos": "forbid"}
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(served.post(TEXT, **ask))) for _ in range(3)]
        for number, thread in enumerate(threads):
            thread.start()  # one is written, two wait
            until(lambda number=number: served.worker.num_open == number + 1 and served.gate.waiting.is_set())
        until(lambda: served.worker.num_waiting == 2)
        assert served.metric("unmask_queue") == 2
        full = served.post(TEXT, **ask)
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        assert full.json()["error"]["code"] == "queue_full"
        served.gate.open()
        for thread in threads:
            thread.join(60)
        assert [a.status_code for a in answers] == [200] * 3
        assert len({a.json()["choices"][0]["text"] for a in answers}) == 1

    def test_too_many_at_once(self, serving, lm):
        served = serving(lm, gated=True, requests=1)
        thread = threading.Thread(target=lambda: served.post(TEXT, prompt="x", max_tokens=2))
        thread.start()
        until(lambda: served.worker.num_open == 1)
        assert served.post("/tokenize", prompt="x").status_code == 429
        assert served.client.get("/ready").status_code == 200
        served.gate.open()
        thread.join(60)
        assert served.post("/tokenize", prompt="x").status_code == 200

    def test_deadlines(self, serving, lm):
        served = serving(lm, gated=True, rows=1, deadline_s=0.4)
        served.gate.let(1)
        ask = {"prompt": "x", "max_tokens": 9, "eos": "forbid"}
        answer = served.post(TEXT, **ask)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        assert served.worker.num_open == 0
        began = time.monotonic()
        assert served.post(TEXT, **ask, diffusion={"deadline_s": 0.05}).status_code == 504  # while it waits
        assert time.monotonic() - began < 30
        served.gate.open()
        until(lambda: served.engine.stats.cancelled == 1)
        assert served.engine.stats.running == 0


class TestGone:
    @pytest.mark.parametrize("stream", [True, False])
    def test_who_has_gone_is_let_go_within_a_forward(self, serving, lm, stream):
        served = serving(lm, gated=True)
        body = json.dumps({"prompt": "x", "max_tokens": 30, "eos": "forbid", "stream": stream}).encode()
        messages = asyncio.Queue()
        loop = asyncio.new_event_loop()
        scope = {"type": "http", "method": "POST", "path": TEXT, "raw_path": TEXT.encode(), "query_string": b""}
        scope["headers"] = [(b"host", b"localhost"), (b"content-type", b"application/json")]

        async def send(message):
            pass

        async def ask():
            messages.put_nowait({"type": "http.request", "body": body})
            await served.guard(scope, messages.get, send)

        thread = threading.Thread(target=lambda: loop.run_until_complete(ask()))
        thread.start()
        served.gate.let(3)
        until(lambda: served.gate.num_forwards == 3 and served.gate.waiting.is_set())
        loop.call_soon_threadsafe(messages.put_nowait, {"type": "http.disconnect"})
        thread.join(60)
        assert not thread.is_alive()
        loop.close()
        served.gate.let(1)  # the one that had begun
        until(lambda: served.engine.stats.cancelled == 1)
        assert served.gate.num_forwards == 4
        assert not served.engine.busy
        assert served.metric('unmask_jobs_total{end="cancelled"}') == 1
        status = 200 if stream else 499
        assert served.metric(f'unmask_http_requests_total{{route="/v1/completions",status="{status}"}}') == 1

    def test_a_score_stops_too(self, serving, lm):
        import copy

        from serving import Gate

        other = copy.copy(lm)
        other.model = gate = Gate(lm.model)
        served = serving(other)
        body = json.dumps({"text": "abcdef", "estimator": "left-to-right"}).encode()
        messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
        threading.Timer(0.2, gate.let, [1]).start()
        raw(served.guard, {"path": "/v1/score", "raw_path": b"/v1/score"}, messages)
        assert gate.num_forwards <= 1


class TestState:
    def test_loading(self, serving, lm):
        loaded = threading.Event()

        def load():
            assert loaded.wait(60)
            return lm

        served = serving(lm, load=load, ready=False)
        for answer in (served.client.get("/ready"), served.post(TEXT, prompt="x"), served.client.get("/v1/models")):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "loading"
            assert "retry-after" in answer.headers
        assert served.client.get("/health").status_code == 200
        loaded.set()
        until(lambda: served.worker.state == "ready")
        assert served.client.get("/ready").json() == {"status": "ready"}

    def test_draining(self, serving, lm):
        served = serving(lm)
        served.guard.draining = True
        for answer in (
            served.client.get("/ready"),
            served.post(TEXT, prompt="x"),
            served.post("/tokenize", prompt="x"),
        ):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "draining"
            assert "retry-after" in answer.headers
        assert served.client.get("/health").status_code == 200
        assert served.client.get("/metrics").status_code == 200

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_broken_engine_is_told_and_nothing_restarts_in_silence(self, serving, lm, monkeypatch, stream):
        served = serving(lm, gated=True)

        def broken():
            raise MemoryError("nothing left")

        monkeypatch.setattr(served.engine, "step", broken)
        answer = served.post(TEXT, prompt="x", stream=stream)
        assert "engine_failed" in answer.text
        assert answer.status_code == (200 if stream else 503)
        until(lambda: served.worker.state == "failed")
        for path in ("/ready", "/health", "/v1/models"):
            assert served.client.get(path).status_code == 503
        assert served.post(TEXT, prompt="x").json()["error"]["code"] == "engine_failed"

    def test_a_failure_in_telling_is_one_requests_own(self, serving, lm, monkeypatch):
        served = serving(lm)
        spell = served.worker._spell

        def spelled(job, *rest):
            if job.id == "bad":
                raise ValueError("no")
            spell(job, *rest)

        monkeypatch.setattr(served.worker, "_spell", spelled)
        ask = {"prompt": "x", "max_tokens": 6, "stream": True}
        assert "request_failed" in served.client.post(TEXT, json=ask, headers={"x-request-id": "bad"}).text
        assert "[DONE]" in served.client.post(TEXT, json=ask).text
        assert not served.engine.busy

    def test_our_own_fault_is_told_as_such(self, serving, lm, monkeypatch):
        served = serving(lm)
        monkeypatch.setattr("unmask.serve.routes.tokens._tokenizer", lambda lm: 1 / 0)
        answer = served.post("/tokenize", prompt="x")
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "request_failed"
        assert "division" not in answer.text


class TestTold:
    def test_metrics(self, serving, block_lm):
        served = serving(block_lm)
        ask = {"prompt": "def add(a, b):\n" * 4, "max_tokens": 8, "diffusion": {"decoder": "block x threshold"}}
        said = [served.post(TEXT, **ask).json()["usage"] for _ in range(2)]
        served.client.get("/no/such/route")
        assert served.metric("unmask_forwards_total") == sum(u["forwards"] for u in said)
        assert served.metric("unmask_returned_tokens_total") == sum(u["completion_tokens"] for u in said)
        assert served.metric("unmask_reused_total") == said[1]["prompt_tokens_details"]["cached_tokens"] > 0
        assert served.metric("unmask_first_committed_seconds_count") == 2
        assert served.metric("unmask_tokens_per_forward_count") == 2
        assert served.metric('unmask_http_requests_total{route="/v1/completions",status="200"}') == 2
        assert served.metric('unmask_http_requests_total{route="other",status="404"}') == 1
        for name in ("unmask_pages_held", "unmask_running", "unmask_queue", "unmask_open"):
            assert served.metric(name) == 0
        for name in ("unmask_pages", "unmask_pages_idle", "unmask_batch_rows_count"):
            assert served.metric(name) > 0

    def test_metrics_of_targets_and_audits(self, serving, lm):
        served = serving(lm)
        quota = {"decoder": "whole x quota", "steps": 12}
        for more in ({"latency_s": 1e-6}, {"latency_s": 250}, {}):
            served.post(TEXT, prompt="a", max_tokens=12, eos="forbid", diffusion={**quota, **more})
        assert (
            served.metric('unmask_targets_total{kept="no"}') == served.metric('unmask_targets_total{kept="yes"}') == 1
        )
        assert served.metric("unmask_eased_steps_total") > 0
        assert served.metric("unmask_audited_total") == 0
        kept = {"decoder": "fast-dllm-dual", "block": 8, "audit": 1}
        (drift,) = served.post(TEXT, prompt="a", max_tokens=16, diffusion=kept).json()["usage"]["drift"]
        assert served.metric("unmask_audited_total") == drift["steps"]
        assert served.metric("unmask_compared_total") == drift["targets"]
        assert served.metric("unmask_drift_sum_total") == pytest.approx(drift["mean_tv"] * drift["targets"])

    def test_what_forwards_cost_is_asked_once_and_for_drafts_only(self, serving, ar_lm, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "unmask.serve.worker.backends.costs", lambda model: asked.append(model) or {1: 1.0, 33: 1.0}
        )
        served = serving(ar_lm)
        draft = {"diffusion": {"decoder": "self-speculative"}}
        assert served.post(TEXT, prompt="a", max_tokens=4).is_success
        assert asked == []
        texts = [served.post(TEXT, prompt="a", max_tokens=8, **draft).json()["choices"] for _ in range(2)]
        assert asked == [ar_lm.runner]
        assert texts[0] == texts[1] == served.post(TEXT, prompt="a", max_tokens=8).json()["choices"]

    def test_the_log(self, toy, caplog):
        from unmask.serve.run import Lines

        caplog.set_level(logging.INFO, "unmask.serve")
        toy.client.post(TEXT, json={"prompt": "secret words", "max_tokens": 2}, headers={"x-request-id": "abc"})
        record = next(r for r in caplog.records if r.getMessage() == "answered")
        line = json.loads(Lines().format(record))
        assert (line["route"], line["status"], line["method"]) == (TEXT, 200, "POST")
        assert line["request_id"] == "abc"
        assert "secret" not in json.dumps(line)


def test_websockets_are_closed(toy):
    sent = []

    async def run():
        async def send(message):
            sent.append(message)

        await toy.guard({"type": "websocket", "path": "/", "headers": []}, None, send)

    assert isinstance(toy.guard, Guard)
    asyncio.run(run())
    assert sent == [{"type": "websocket.close", "code": 1008}]
