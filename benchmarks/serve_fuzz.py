"""Malformed bodies against a server: whatever comes, an answer in OpenAI's shape comes back, no 5xx and no hang.

    python benchmarks/serve_fuzz.py --url http://127.0.0.1:8000 --bodies 10000

Bodies are made from good ones: keys and values swapped for strange ones, JSON cut, doubled, nested, or bytes turned.
"""

import argparse
import copy
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx2 as httpx

USER = [{"role": "user", "content": "x"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": USER, "max_tokens": 2, "stop": ["a"], "n": 1, "logprobs": True}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 2, "seed": 1, "diffusion": {"steps": 1, "decoder": "llada"}}),
    ("/v1/completions", {"prompt": "x", "suffix": "y", "max_tokens": 2, "temperature": 0.5}),
    ("/v1/completions", {"prompt": [5, 6], "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/fim/completions", {"prompt": "x", "suffix": "y", "max_tokens": 2}),
    ("/v1/edit/completions", {"messages": USER, "max_tokens": 2}),
    ("/v1/apply/completions", {"messages": USER}),
    ("/v1/infill", {"segments": [{"text": "a"}, {"mask": {"min": 1, "max": 2}}], "n": 1}),
    (
        "/infill",
        {"input_prefix": "x", "input_suffix": "y", "n_predict": 2, "n_indent": 1, "response_fields": ["content"]},
    ),
    ("/v1/refine", {"text": "abc def", "spans": [[0, 3]], "strength": 0.5}),
    (
        "/v1/chat/completions",
        {
            "messages": [*USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": "none",
            "response_format": {"type": "text"},
        },
    ),
    ("/v1/infill", {"segments": [{"mask": {"min": 1, "max": 2}, "choices": ["a", "b"]}], "n": 1}),
    ("/v1/score", {"text": "abc", "samples": 1, "given": "x"}),
    ("/tokenize", {"prompt": "x"}),
    ("/detokenize", {"tokens": [5]}),
]
STRANGE: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        10**40,
        10**400,
        0.5,
        -0.0,
        1e308,
        1e400,
        float("nan"),
        "",
        "x",
        "\x00",
        "\ud800",
    ),
    *("🙂" * 9, "<|mask|>", "\u202e", [], {}, [[]], [None], [{}], {"": None}, ["x", 1], [[1, 2], [3]], "a" * 5000),
    *([0] * 600, {"a": {"b": {"c": []}}}, [[[[[[]]]]]], "NaN", "1", [True], [1.5], [10**9], {"0": "x"}, ["\udfff"]),
]
NAMES = ["", "x", "__class__", "model", "prompt", "messages", "\ud800", "diffusion", "$ref", "n", "stream", "tools"]


def body(draw: random.Random) -> tuple[str, bytes]:
    """A path and something that is sent to it."""
    path, good = draw.choice(GOOD)
    given = json.loads(json.dumps(good))
    for _ in range(draw.randint(1, 3)):
        _swap(given, draw)
    data = json.dumps(given).encode()
    turns: list[Callable[[bytes], bytes]] = [
        lambda d: d,
        lambda d: d,
        lambda d: d,
        lambda d: d[: draw.randrange(len(d) + 1)],
        lambda d: d + d,
        lambda d: b"[" * draw.choice([10, 2000, 50_000]) + d,
        lambda d: b"\xef\xbb\xbf" + d,
        lambda d: bytes(b ^ (draw.random() < 0.03) * draw.randrange(256) for b in d),
        lambda d: d.replace(b":", b"::", 1),
        lambda d: d.decode().encode("utf-16"),
        lambda d: draw.randbytes(draw.randrange(200)),
    ]
    return path, draw.choice(turns)(data)


def _swap(given: Any, draw: random.Random) -> None:
    """Put something strange somewhere."""
    here = given
    while isinstance(here, dict | list) and here:
        keys = [*here] if isinstance(here, dict) else [*range(len(here))]
        key = draw.choice(keys)
        if isinstance(here[key], dict | list) and here[key] and draw.random() < 0.5:
            here = here[key]
            continue
        if isinstance(here, dict) and draw.random() < 0.3:
            key = draw.choice(NAMES)
        here[key] = copy.deepcopy(draw.choice(STRANGE))
        return


def fuzz(client: Any, bodies: int, seed: int) -> tuple[Counter[int], list[str]]:
    """Statuses of so many bodies, and what went wrong."""
    draw, statuses, wrong = random.Random(seed), Counter[int](), []
    for _ in range(bodies):
        path, data = body(draw)
        answer = client.post(path, content=data, headers={"content-type": "application/json"})
        statuses[answer.status_code] += 1
        fine = answer.status_code < 500
        if fine and answer.status_code >= 400:
            error = answer.json().get("error", {})
            fine = {*error} == {"message", "type", "param", "code"} and answer.status_code in (400, 404, 413)
        if not fine:
            wrong.append(f"{answer.status_code} {path} {data[:300]!r}: {answer.text[:300]}")
    return statuses, wrong


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with httpx.Client(base_url=given.url, timeout=60) as client:
        statuses, wrong = fuzz(client, given.bodies, given.seed)
        alive = client.get("/ready").status_code == 200
    print(f"statuses: {dict(statuses)}; wrong: {len(wrong)}; ready afterwards: {alive}")
    print("\n".join(wrong[:20]))
    return int(bool(wrong) or not alive)


if __name__ == "__main__":
    sys.exit(main())
