"""Three Ray nodes on this machine, one killed under load: every request gets an answer or is told that it was lost.

    python benchmarks/ray_chaos.py --clients 24 --rounds 6 --out benchmarks/results/ray_chaos

Each round starts a fresh cluster and `unmask serve --replicas 3` before it, lets clients ask, every second one in a
stream, kills something (SIGKILL) once all streams have text, and asks again. In turn it kills a node with all that runs
on it, the process of a replica, and the gateway. A text that comes to its end must be the one that came before; a
stream may end with the error `replica_lost`, an answer that is no stream may not. A gateway takes its connections
along, and all clients see that at once; another one is then started before the same cluster. The exit code is 1 if
anything else happened. It needs pip install 'unmask[serve,ray]'.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import report

SPEED = {"health_check_period_ms": 500, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
"""How soon a cluster believes that a node is dead; by default it takes half a minute."""


CUT = "connection cut"


@dataclass
class Tally:
    """What became of all asks, and of those that did not end as they may."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@contextmanager
def nodes(num: int) -> Iterator[Any]:
    """A Ray cluster of one-CPU nodes on this machine; the first one leads."""
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(
        initialize_head=True, head_node_args={**size, "include_dashboard": False, "_system_config": SPEED}
    )
    try:
        for _ in range(num - 1):
            cluster.add_node(**size)
        yield cluster
    finally:
        for node in [*cluster.worker_nodes, cluster.head_node]:
            cluster.remove_node(node, allow_graceful=False)


async def ask(client: httpx.AsyncClient, body: dict[str, Any], began: Callable[[], None]) -> tuple[str, str]:
    """How an ask ended (done, silence, or a code), and the text it gave; tells when the first text has come."""
    text = ""
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if not body["stream"] or answer.status_code != 200:
            said = json.loads(await answer.aread())
            return ("done", said["choices"][0]["text"]) if "choices" in said else (said["error"]["code"], "")
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return "done", text
            if line.startswith("data: "):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    return chunk["error"]["code"], text
                text += chunk["choices"][0]["text"]
                began()
    return "silence", text


async def crowd(
    url: str, expected: dict[str, str], tokens: int, kill: Callable[[], Any] | None, *, allowed: tuple[str, ...]
) -> Tally:
    """All asks at once, every second one a stream; `kill` is called once the streams have begun."""
    tally, started, all_began = Tally(), set(), asyncio.Event()
    streams = [*expected][::2]

    async def one(client: httpx.AsyncClient, prompt: str) -> None:
        def began() -> None:
            started.add(prompt)
            if len(started) == len(streams):
                all_began.set()

        body = {"prompt": prompt, "max_tokens": tokens, "eos": "forbid", "stream": prompt in streams}
        try:
            end, text = await ask(client, body, began)
        except httpx.TransportError:
            end, text = CUT, ""
        began()
        tally.ends[end] += 1
        right = text == expected[prompt] if end == "done" else expected[prompt].startswith(text)
        lost = end in allowed and (prompt in streams or end == CUT)
        if not right or not (end == "done" or lost):
            tally.wrong.append(f"{prompt!r}: {end}: {text!r} instead of {expected[prompt]!r}")

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        asking = [asyncio.ensure_future(one(client, prompt)) for prompt in expected]
        if kill is not None:
            await all_began.wait()
            await asyncio.to_thread(kill)
        await asyncio.gather(*asking)
    return tally


async def healthy(url: str, prompts: list[str], tokens: int) -> dict[str, str]:
    """What each prompt gives while nothing is wrong: the same request and seed, the same text, from any replica."""
    bodies = [{"prompt": p, "max_tokens": tokens, "eos": "forbid", "stream": False} for p in prompts]
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        said = await asyncio.gather(*(ask(client, body, lambda: None) for body in bodies))
    assert {end for end, _ in said} == {"done"}, said
    return dict(zip(prompts, (text for _, text in said), strict=True))


def served(address: str, replicas: int) -> tuple[subprocess.Popen[str], str]:
    """`unmask serve` on a cluster, once it is ready, and where it listens."""
    command = [sys.executable, "-m", "unmask", "serve", "tiny", "--port", "0"]
    command += ["--replicas", str(replicas), "--ray-address", address]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        said = json.loads(line) if line.startswith("{") else {}
        url = said.get("url", url)
        if said.get("message") == "ready":
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, url
    raise RuntimeError("the server did not start")


def kill_node(cluster: Any, gateway: subprocess.Popen[str]) -> None:
    """A node that does not lead, with all its processes."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


def kill_replica(cluster: Any, gateway: subprocess.Popen[str]) -> None:
    """One process of a replica; its node goes on."""
    raylets = {info.process.pid for node in cluster.list_all_nodes() for info in node.all_processes["raylet"]}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and b"ServeReplica" in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
                return
        except (OSError, ValueError):
            continue  # one that has just ended
    raise RuntimeError("no process of a replica was found")


def kill_gateway(cluster: Any, gateway: subprocess.Popen[str]) -> None:
    """The process that all clients speak to."""
    gateway.kill()


VICTIMS: dict[str, tuple[Callable[[Any, subprocess.Popen[str]], None], tuple[str, ...]]] = {
    "a node": (kill_node, ("replica_lost",)),
    "a replica": (kill_replica, ("replica_lost",)),
    "the gateway": (kill_gateway, (CUT,)),
}
"""What is killed, and how requests may end then, besides well."""


def strike(victim: str, prompts: list[str], tokens: int) -> tuple[dict[str, Any], list[str]]:
    """A round: a line of the table, and what went wrong."""
    kill, allowed = VICTIMS[victim]
    with nodes(3) as cluster:
        process, url = served(cluster.address, 3)
        try:
            expected = asyncio.run(healthy(url, prompts, tokens))
            began = time.monotonic()
            under = asyncio.run(crowd(url, expected, tokens, lambda: kill(cluster, process), allowed=allowed))
            seconds = time.monotonic() - began
            if process.poll() is not None:
                process, url = served(cluster.address, 3)
            after = asyncio.run(crowd(url, expected, tokens, None, allowed=()))
        finally:
            process.terminate()
            process.wait(60)
    wrong = under.wrong + after.wrong
    row = {"killed": victim, "under it": _said(under), "seconds": seconds, "after it": _said(after)}
    return {**row, "wrong": len(wrong)}, wrong


def _said(tally: Tally) -> str:
    return ", ".join(f"{count} {end}" for end, count in tally.ends.most_common())


def main() -> int:
    """The command."""
    parser = report.parser(__doc__)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    prompts, rows, wrong = [f"def f{i}(" for i in range(given.clients)], [], []
    for number in range(given.rounds):
        row, said = strike([*VICTIMS][number % len(VICTIMS)], prompts, given.tokens)
        print(row, *said[:10], sep="\n", file=sys.stderr)
        rows.append(row)
        wrong += said
    title = "Three replicas on three Ray nodes, something killed under load"
    report.report(given.out, title, {f"{given.clients} clients, every second one a stream; the ends of all asks": rows})
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
