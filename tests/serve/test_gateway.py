"""Where requests go, and what a gateway makes of replicas that break: plain code, with replicas of this process."""

import asyncio
import json
from collections import Counter

import pytest
from serving import LOCAL, events, serving, until
from starlette.testclient import TestClient

from unmask.serve import gateway as gateways
from unmask.serve.affinity import CHARACTERS, beginning, order
from unmask.serve.errors import Refused
from unmask.serve.gateway import TAKEN, Lost, create, through, together
from unmask.serve.guard import Keys
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics

TEXT = "/v1/completions"
KEYS = [f"k{i}" for i in range(600)]


def body(**fields):
    return json.dumps(fields).encode()


class TestAffinity:
    def test_what_begins_alike_has_one_key(self):
        long = "x" * CHARACTERS
        assert beginning("", body(prompt=long + "a")) == beginning("", body(prompt=long + "b", seed=1))
        assert beginning("", body(prompt="a")) != beginning("", body(prompt="b"))
        assert beginning("one", body(prompt="a")) != beginning("two", body(prompt="a"))
        turns = [[{"role": "system", "content": long}, {"role": "user", "content": c}] for c in "ab"]
        first, second = (beginning("", body(messages=one)) for one in turns)
        assert first == second != ""

    @pytest.mark.parametrize("given", [b"", b"{", b"[]", b"{}", b'{"prompt": ""}', b"[" * 100_000, b"\xff"])
    def test_a_body_without_a_text_has_none(self, given):
        assert beginning("", given) == ""

    def test_a_lost_replica_moves_only_its_own(self):
        loads = dict.fromkeys("abc", 0)
        before = {key: order(key, loads, 1) for key in KEYS}
        assert min(Counter(names[0] for names in before.values()).values()) > 150
        del loads["b"]
        for key, names in before.items():
            assert order(key, loads, 1) == [name for name in names if name != "b"]

    def test_an_overloaded_replica_comes_last(self):
        first = order("k", dict.fromkeys("abc", 0), 4)
        busy = {name: 4 * (name == first[0]) for name in "abc"}
        assert order("k", busy, 4) == [*first[1:], first[0]]
        assert order("k", {**busy, first[0]: 3}, 4) == first  # it has a place free

    def test_no_load_is_far_above_the_mean(self):
        loads = dict.fromkeys("abcd", 0)
        for number in range(400):
            loads[order("the same", loads, 2)[0]] += 1
            assert max(loads.values()) <= max(2, 1.25 * (number + 1) / 4 + 1)

    def test_each_try_has_another_first(self):
        loads = dict.fromkeys("abc", 0)
        assert {order("k", loads, 1, attempt)[0] for attempt in range(3)} == set("abc")
        assert order("", {"a": 2, "b": 1, "c": 3}, 1) == ["b", "a", "c"]
        assert order("k", {}, 1) == []


class Fakes:
    """Replicas in this process: each call is answered by what `plan` has for it."""

    def __init__(self, app):
        self.app, self.plan, self.calls, self.closed = app, [], [], 0

    async def ask(self, call):
        self.calls.append(call)
        way = self.plan.pop(0) if self.plan else "good"
        if way == "none":
            raise Refused("loading", "not there yet")
        if way == "untaken":
            raise Lost("gone")
        if way == "waits":
            await asyncio.sleep(60)
        yield {"type": TAKEN, "replica": f"r{call.attempt}"}
        if isinstance(way, int):
            error = Refused({429: "queue_full", 503: "draining"}[way], "no")
            yield {"type": "http.response.start", "status": way, "headers": [], "route": TEXT}
            yield {"type": "http.response.body", "body": json.dumps(error.body).encode()}
            return
        if way == "silent":
            await asyncio.sleep(60)
        if way == "lost":
            raise Lost("gone")
        number, messages = 0, through(self.app, call)
        try:
            async for message in messages:
                yield message
                number += 1
                if way == "breaks" and number == 4:
                    raise Lost("gone")
                if way == "stops" and number == 4:
                    return
        finally:
            self.closed += 1
            await messages.aclose()

    async def metrics(self):
        return {"r0": b"# HELP x_total of x\n# TYPE x_total counter\nx_total 3.0\n"}


@pytest.fixture
def gated(serving, lm):
    """A gateway before one replica that is asked through fakes."""

    def build(keys=(), **limits):
        served = serving(lm)
        fleet = Fakes(served.guard.app)
        guard, gateway = create(fleet, Limits(**limits), Metrics(), Keys(keys))
        return TestClient(guard, base_url=LOCAL), fleet, gateway, served

    return build


ASK = {"prompt": "def add(", "max_tokens": 8, "eos": "forbid"}


class TestGateway:
    def test_answers_are_those_of_the_server(self, gated):
        client, _, gateway, served = gated()
        for path, ask in [(TEXT, ASK), (TEXT, {**ASK, "stream": True}), ("/tokenize", {"prompt": "x"}), (TEXT, {})]:
            mine, theirs = client.post(path, json=ask), served.client.post(path, json=ask)
            assert mine.status_code == theirs.status_code
            assert set(mine.headers) == set(theirs.headers)
            blank = [[_blank(c) for c in _contents(one)] for one in (mine, theirs)]
            assert blank[0] == blank[1]
        assert client.get("/v1/models").json() == served.client.get("/v1/models").json()
        assert client.get("/nowhere").status_code == 404
        assert client.get("/ready").status_code == 200
        gateway.guard.draining = True
        assert client.get("/ready").status_code == 503
        assert client.post(TEXT, json=ASK).json()["error"]["code"] == "draining"
        assert gateway.num_open == 0

    def test_keys_end_at_the_gateway(self, gated):
        client, fleet, _, _ = gated(keys=["right"])
        assert client.post(TEXT, json=ASK).status_code == 401
        assert not fleet.calls
        for header in ({"authorization": "Bearer right"}, {"x-api-key": "right"}):
            assert client.post(TEXT, json=ASK, headers=header).status_code == 200
        assert not [value for call in fleet.calls for name, value in call.scope["headers"] if b"right" in value]
        assert fleet.calls[0].scope["state"]["owner"]

    @pytest.mark.parametrize("way", ["lost", "untaken", 429, 503])
    def test_what_was_told_nothing_is_asked_elsewhere(self, gated, way):
        for stream in (False, True):
            client, fleet, _, served = gated()
            fleet.plan = [way]
            answer = client.post(TEXT, json={**ASK, "stream": stream})
            assert answer.status_code == 200
            assert [call.attempt for call in fleet.calls] == [0, 1]
            if not stream:
                right = served.client.post(TEXT, json=ASK).json()["choices"]
                assert answer.json()["choices"] == right

    def test_a_request_ends_two_replicas_at_most(self, gated):
        client, fleet, _, _ = gated()
        fleet.plan = ["lost"] * 9
        answer = client.post(TEXT, json=ASK)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "replica_lost")
        assert answer.headers["retry-after"] == "1"
        assert len(fleet.calls) == 2

    def test_where_all_are_full_it_is_said(self, gated):
        client, fleet, _, _ = gated()
        fleet.plan = [429] * 9
        assert client.post(TEXT, json=ASK).json()["error"]["code"] == "queue_full"
        assert len(fleet.calls) == 3
        fleet.plan = ["none"]
        answer = client.post(TEXT, json=ASK)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")

    @pytest.mark.parametrize(("way", "code"), [("breaks", "replica_lost"), ("stops", "request_failed")])
    def test_a_stream_that_breaks_ends_with_an_error(self, gated, way, code):
        client, fleet, _, _ = gated()
        fleet.plan = [way]
        told = events(client.post(TEXT, json={**ASK, "stream": True}).text)
        assert [number for number, _ in told] == [0, 1, 2, 3]
        assert told[-1][1]["error"]["code"] == code
        assert len(fleet.calls) == 1

    def test_nobody_waits_for_who_says_nothing(self, gated, monkeypatch):
        client, fleet, _, _ = gated(deadline_s=0.05)
        for name in ("TAKE_S", "GRACE_S"):
            monkeypatch.setattr(gateways, name, 0.05)
        fleet.plan = ["silent", "waits"]
        assert client.post(TEXT, json=ASK).json()["error"]["code"] == "deadline_exceeded"
        assert client.post(TEXT, json=ASK).json()["error"]["code"] == "queue_full"
        assert len(fleet.calls) == 2

    def test_who_hangs_up_is_let_go(self, gated):
        _, fleet, gateway, served = gated()
        sent = []

        async def run():
            come = asyncio.Queue()
            come.put_nowait({"type": "http.request", "body": body(**ASK, stream=True), "more_body": False})

            async def send(message):
                sent.append(message)
                come.put_nowait({"type": "http.disconnect"})

            headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": TEXT, "query_string": b"", "raw_path": TEXT.encode()}
            await gateway.guard({**scope, "headers": headers}, come.get, send)

        asyncio.run(run())
        assert sent[0]["status"] == 200
        assert fleet.closed == 1
        assert gateway.num_open == 0
        until(lambda: not served.engine.busy and served.worker.num_open == 0)

    def test_a_drain_that_takes_too_long_ends_all(self, gated):
        _, fleet, gateway, _ = gated()
        fleet.plan = ["silent"]

        async def run():
            sent = []
            ask = {"type": "http.request", "body": body(**ASK), "more_body": False}
            come = asyncio.Queue()
            come.put_nowait(ask)
            headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
            scope = {"type": "http", "method": "POST", "path": TEXT, "query_string": b"", "headers": headers}

            async def send(message):
                sent.append(message)

            running = asyncio.ensure_future(gateway.guard(scope, come.get, send))
            while not gateway.num_open:
                await asyncio.sleep(0)
            gateway.cancel_all(Refused("draining", "time is up"))
            await running
            return sent

        assert asyncio.run(run())[0]["status"] == 503

    def test_metrics_are_told_apart(self, gated):
        client, *_ = gated()
        client.post(TEXT, json=ASK)
        lines = client.get("/metrics").text.splitlines()
        assert 'x_total{replica="r0"} 3.0' in lines
        assert 'unmask_replica_requests_total{end="answered",replica="r0"} 1.0' in lines
        assert 'unmask_replica_running{replica="r0"} 0.0' in lines
        assert f'unmask_http_requests_total{{route="{TEXT}",status="200"}} 1.0' in lines
        texts = {"": Metrics().text(), "a": Metrics().text(), "b": Metrics().text()}
        heads = [line for line in together(texts).decode().splitlines() if line.startswith("# TYPE")]
        assert len(heads) == len(set(heads)) > 10


def _contents(answer):
    return [c for _, c in events(answer.text)] if answer.text.startswith("id:") else [answer.json()]


def _blank(content):
    return content if isinstance(content, str) else {k: v for k, v in content.items() if k not in ("id", "created")}
