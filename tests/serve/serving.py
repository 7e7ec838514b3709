"""Servers to ask: one in this process around a small model, and a real one in a process of its own."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient

from unmask.serve.app import create
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics
from unmask.serve.worker import Worker

LOCAL = "http://127.0.0.1"


class Gate:
    """A network whose forwards wait to be let through, so that a test knows where a request stands."""

    def __init__(self, model):
        self._model, self._permits, self.waiting = model, threading.Semaphore(0), threading.Event()
        self.num_forwards, self.poison = 0, None
        self._open = False

    def __getattr__(self, name):
        return getattr(self._model, name)

    def read(self, tokens, **more):
        self.waiting.set()
        if not self._open:
            assert self._permits.acquire(timeout=60)
        self.waiting.clear()
        self.num_forwards += 1
        if self.poison is not None and bool((tokens == self.poison).any()):
            raise RuntimeError("a poisoned row at 0xdeadbeef")
        return self._model.read(tokens, **more)

    def let(self, forwards=1):
        for _ in range(forwards):
            self._permits.release()

    def open(self):
        self._open = True
        self.let(1)


@dataclass
class Served:
    """A server in this process."""

    guard: object
    worker: Worker
    lm: object
    client: TestClient
    gate: Gate | None = None

    def post(self, path, **body):
        data = json.dumps(body)  # in ASCII, so that a body may hold what no text can
        return self.client.post(path, content=data, headers={"content-type": "application/json"})

    @property
    def engine(self):
        return self.worker._engine

    def metric(self, name):
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        raise AssertionError(f"no metric {name}")


@pytest.fixture
def serving():
    """Builds servers in this process, and ends them."""
    made = []

    def build(lm, *, gated=False, keys=(), ready=True, load=None, **limits):
        gate = None
        if gated:
            lm = copy.copy(lm)
            lm.runner = gate = Gate(lm.runner)
        limits, metrics = Limits(**limits), Metrics()
        worker = Worker(load or (lambda: lm), limits, metrics)
        guard = create(worker, limits, metrics, keys=keys)
        worker.start()
        if ready:
            until(lambda: worker.state != "loading")
        client = TestClient(guard, base_url=LOCAL, headers={"authorization": f"Bearer {keys[0]}"} if keys else {})
        made.append(Served(guard, worker, lm, client.__enter__(), gate))
        return made[-1]

    yield build
    for served in made:
        if served.gate is not None:
            served.gate.open()
            served.gate.let(10_000)
        served.client.__exit__(None, None, None)
        assert served.worker.stop(30)


@pytest.fixture(scope="module")
def toy(lm):
    """A server around the small bidirectional model, for all tests of a file."""
    limits, metrics = Limits(), Metrics()
    worker = Worker(lambda: lm, limits, metrics)
    guard = create(worker, limits, metrics)
    worker.start()
    until(lambda: worker.state == "ready")
    with TestClient(guard, base_url=LOCAL) as client:
        yield Served(guard, worker, lm, client)
    assert worker.stop(30)


def until(said, timeout_s=60.0):
    """Wait for something to become true."""
    end = time.monotonic() + timeout_s
    while not said():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def events(text):
    """(order number, content) of each event of a stream; the content of the last is "[DONE]" or an error."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        data = fields.get("data")
        if data is not None:
            number = int(fields["id"]) if "id" in fields else None
            found.append((number, data if data == "[DONE]" else json.loads(data)))
    return found


class Process:
    """`unmask serve` in a process of its own."""

    def __init__(self, *args, port=0, env=None):
        self.lines = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "unmask", "serve", "--port", str(port), *args],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},  # as the tests themselves
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = self.line("listening")["port"]
        self.url = f"{LOCAL}:{self.port}"
        self.line("ready")

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(json.loads(line) if line.startswith("{") else {"message": line})

    def line(self, message):
        until(lambda: any(one["message"] == message for one in self.lines) or self.process.poll() is not None)
        said = [one for one in self.lines if one["message"] == message]
        assert said, self.lines
        return said[0]

    def signal(self, sign=signal.SIGTERM):
        self.process.send_signal(sign)

    def wait(self, timeout_s=60):
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self._reader.join(10)
        self.process.stderr.close()


@pytest.fixture(scope="session")
def live():
    """A real server of the bundled model, for all tests that look only."""
    process = Process("tiny", "--limit", "queue=512")
    yield process
    process.stop()


@pytest.fixture
def process():
    """Starts real servers, and ends them."""
    made = []

    def start(*args, **more):
        made.append(Process(*args, **more))
        return made[-1]

    yield start
    for one in made:
        one.stop()


@pytest.fixture
def http(live):
    with httpx.Client(base_url=live.url, timeout=60) as client:
        yield client
