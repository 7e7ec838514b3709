"""What HTTP costs: time to the first committed text and tokens per second through a server, beside the engine alone.

The same requests with the same seeds, by so many clients at a time, each of which asks again once it was answered. The
server is a process of its own; the clients of it are in this one. The two take turns, and medians over the turns are
told. That both do the same work is checked: all requests together take equally many forwards. What is measured of the
server is all that stands between a client and the engine: HTTP, JSON, checks, tokenizing, threads, and the clients
themselves, which want a core of their own.

    python benchmarks/serve_cost.py --out benchmarks/results/serve_cost
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import report
import torch

import unmask
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.evals.asking import Server
from unmask.evals.load import Bounds, sweep
from unmask.lm.model import LanguageModel
from unmask.lm.write import requests
from unmask.serve.limits import Limits

PROMPTS = ["def main(", "import os\n", "class Foo:\n", "It was a fine morning, and "]
AIM = 0.05
"""Share that HTTP should not cost more than."""


@dataclass(frozen=True)
class Run:
    """One turn of one side.

    Args:
        first_s: median time to the first committed text.
        tokens_per_s, forwards: of all requests.
    """

    first_s: float
    tokens_per_s: float
    forwards: int


def alone(lm: LanguageModel, asked: Sequence[Request], clients: int) -> Run:
    """The requests through an engine in this thread."""
    engine = Engine(lm.runner, rows=Limits().rows, tokenizer=lm.tokenizer)
    waiting, began, firsts = iter(asked), {}, []
    tokens = forwards = 0
    start = time.perf_counter()
    for request in [next(waiting) for _ in range(min(clients, len(asked)))]:
        began[engine.add(request)] = time.perf_counter()
    while engine.busy:
        for delta in engine.step():
            assert delta.error is None, delta.error
            tokens += len(delta.tokens)
            if delta.tokens and delta.id in began:
                firsts.append(time.perf_counter() - began.pop(delta.id))
            if delta.result is not None:
                forwards += delta.result.forwards
                if (request := next(waiting, None)) is not None:
                    began[engine.add(request)] = time.perf_counter()
    return Run(statistics.median(firsts), tokens / (time.perf_counter() - start), forwards)


def over_http(server: Server, count: int, clients: int) -> Run:
    """The same through a server."""
    _, (load,) = sweep(server, [("closed", clients)], PROMPTS, Bounds(requests=count, seconds=3600))
    assert load.done == count, load.errors
    assert load.first_s is not None
    assert load.forwards is not None
    return Run(load.first_s[0], load.tokens_per_s, load.forwards)


@contextmanager
def serving(model: str, threads: int) -> Iterator[str]:
    """A server of a model, by its URL."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "unmask", "serve", model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        url = ""
        for line in process.stderr:
            said: dict[str, Any] = json.loads(line) if line.startswith("{") else {"message": line}
            url = said.get("url", url)
            if said["message"] == "ready":
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # its log must not fill the pipe
        try:
            yield f"{url}/v1"
        finally:
            process.terminate()


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64, help="of each turn")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--option", nargs="*", default=[], help="decoding options, NAME=VALUE")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends as well
    torch.set_num_threads(given.threads)
    options = {name: _value(value) for name, _, value in (one.partition("=") for one in given.option)}
    lm = unmask.load(given.model)
    asked = []
    for seed in range(given.requests):
        ask = lm.ask([PROMPTS[seed % len(PROMPTS)]], length=given.tokens, eos="forbid")
        asked += requests(lm.runner, ask, {"seed": seed, **options})  # type: ignore[typeddict-item]
    rows = []
    with serving(given.model, given.threads) as url:
        extra = {"eos": "forbid", **({"diffusion": options} if options else {})}
        server = Server(url=url, model=lm.name, api="completions", max_tokens=given.tokens, extra=extra)
        for clients in given.clients:
            sides: dict[str, list[Run]] = {"engine": [], "http": []}
            for turn in range(given.turns + 1):
                pair = {"engine": alone(lm, asked, clients), "http": over_http(server, len(asked), clients)}
                assert pair["engine"].forwards == pair["http"].forwards, "the two did not do the same work"
                if turn:  # the first is a warm-up
                    for name, run in pair.items():
                        sides[name].append(run)
            first, rate = (
                {name: statistics.median(getattr(run, what) for run in runs) for name, runs in sides.items()}
                for what in ("first_s", "tokens_per_s")
            )
            costs = [first["http"] / first["engine"] - 1, 1 - rate["http"] / rate["engine"]]
            rows.append(
                {
                    "clients": clients,
                    "first ms, engine": 1000 * first["engine"],
                    "first ms, HTTP": 1000 * first["http"],
                    "cost": f"{costs[0]:+.1%}",
                    "tok/s, engine": rate["engine"],
                    "tok/s, HTTP": rate["http"],
                    "cost of rate": f"{costs[1]:+.1%}",
                    "aim": "holds" if max(costs) < AIM else "missed",
                }
            )
    title = f"HTTP beside the engine alone, {given.requests} requests of {given.tokens} tokens"
    about = {"model": report.described(given.model, lm), "options": options or "the model's own"}
    report.report(given.out, title, {f"Medians of {given.turns} turns": rows}, **about)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
