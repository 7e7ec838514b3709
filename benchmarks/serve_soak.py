"""Many clients of one server, some of whom leave: every text that comes to its end must be its solo run, to the letter.

    unmask serve tiny --port 8000 &
    python benchmarks/serve_soak.py --url http://127.0.0.1:8000 --clients 64 --minutes 10 --pid $!

Reports what was asked, what ended how, and, with --pid, the memory of the server at the beginning and at the end. The
exit code is 1 if a text differs, an error comes that was not meant, a page is still held, or memory has grown by a
fifth or more. Run the server with one thread (OMP_NUM_THREADS=1) where threads change sums.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx

MESSAGES = [{"role": "user", "content": "Write a function that adds two numbers."}]
ASKS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # of HTTP, and the same of `LanguageModel.generate`
    ({"prompt": "def add("}, {"prompt": "def add("}),
    ({"prompt": "import os\n", "temperature": 1.0}, {"prompt": "import os\n", "temperature": 1.0}),
    ({"prompt": "class Foo:\n", "stop": ["\n\n", "self"]}, {"prompt": "class Foo:\n", "stop": ["\n\n", "self"]}),
    ({"messages": MESSAGES}, {"prompt": MESSAGES, "chat": True}),
    (
        {"prompt": "def add(", "diffusion": {"decoder": "block x threshold", "block": 16, "threshold": 0.6}},
        {"prompt": "def add(", "decoder": "block x threshold", "block": 16, "threshold": 0.6},
    ),
    (
        {
            "prompt": "It was a fine morning, and ",
            "diffusion": {"decoder": "whole x quota", "steps": 6, "stream": True},
        },
        {"prompt": "It was a fine morning, and ", "decoder": "whole x quota", "steps": 6},
    ),
]


@dataclass
class Tally:
    """What became of all asks."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def solo(lm: Any, number: int, seed: int, tokens: int) -> str:
    """What an ask gives alone."""
    given = dict(ASKS[number][1])
    return str(lm.generate(given.pop("prompt"), length=tokens, seed=seed, **given).completion)


async def ask(
    client: httpx.AsyncClient, number: int, seed: int, tokens: int, leave_after: int | None
) -> tuple[str, str]:
    """How a streamed ask ended (done, left, or a code), and the text it gave."""
    body = {**ASKS[number][0], "seed": seed, "max_tokens": tokens, "stream": True}
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    text, count = "", 0
    async with client.stream("POST", path, json=body) as answer:
        if answer.status_code != 200:
            return json.loads(await answer.aread())["error"]["code"], ""
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                return "done", text
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return str(chunk["error"]["code"]), text
            for choice in chunk["choices"]:
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            count += 1
            if leave_after is not None and count > leave_after:
                return "left", text
    return "silence", text


async def soak(
    url: str, expected: dict[tuple[int, int], str], *, clients: int, rounds: int, seconds: float, tokens: int
) -> Tally:
    """Clients that ask again and again, until they have asked `rounds` times or the time is up."""
    tally, until = Tally(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def one(number: int, client: httpx.AsyncClient) -> None:
        draw = random.Random(number)
        for _ in range(rounds):
            if time.monotonic() > until:
                return
            key = draw.choice(sorted(expected))
            leave = draw.randrange(6) if draw.random() < 0.3 else None
            end, text = await ask(client, *key, tokens, leave)
            tally.ends[end] += 1
            right = text == expected[key] if end == "done" else expected[key].startswith(text)
            if not right or end not in ("done", "left"):
                tally.wrong.append(f"{key}: {end}: {text!r} instead of {expected[key]!r}")

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(one(i, client) for i in range(clients)))
    return tally


def quiet(url: str, timeout_s: float = 30) -> dict[str, float]:
    """Gauges of a server, once nothing is running there any more."""
    names = ("unmask_open", "unmask_running", "unmask_queue", "unmask_pages_held")
    end = time.monotonic() + timeout_s
    while True:
        lines = httpx.get(url + "/metrics").text.splitlines()
        found = {n: float(line.split()[1]) for n in names for line in lines if line.startswith(n + " ")}
        if not any(found.values()) or time.monotonic() > end:
            return found
        time.sleep(0.1)


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="tiny", help="the model that the server has, for the solo runs")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--pid", type=int, help="of the server, for its memory")
    given = parser.parse_args()
    import torch

    import unmask

    torch.set_num_threads(1)
    lm = unmask.load(given.model)
    keys = [(number, seed) for number in range(len(ASKS)) for seed in range(given.seeds)]
    expected = {key: solo(lm, *key, given.tokens) for key in keys}
    how = {"clients": given.clients, "tokens": given.tokens}
    asyncio.run(soak(given.url, expected, rounds=10**9, seconds=min(30, 12 * given.minutes), **how))
    before = memory_mb(given.pid) if given.pid else 0.0
    tally = asyncio.run(soak(given.url, expected, rounds=10**9, seconds=60 * given.minutes, **how))
    gauges, after = quiet(given.url), memory_mb(given.pid) if given.pid else 0.0
    print(f"ends: {dict(tally.ends)}; wrong: {len(tally.wrong)}; gauges: {gauges}")
    print(f"memory: {before:.0f} MB after the warm-up, {after:.0f} MB at the end")
    print("\n".join(tally.wrong[:10]))
    return int(bool(tally.wrong) or any(gauges.values()) or after > 1.2 * before)


if __name__ == "__main__":
    sys.exit(main())
