"""Kill a training run at random moments, start it again each time, and compare what it ends with.

    python benchmarks/kill_resume.py --kills 20

Trains one small model twice from the same recipe: once in peace, and once in processes that are ended by SIGKILL
while they train, save or write their model. Weights, averages, optimiser state, counts, losses, the shipped model and
the held-out figure must be the same to the bit. Exits with 1 if anything differs.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from unmask.train import checkpoint
from unmask.train.recipe import Recipe
from unmask.train.run import train

WORDS = ["alpha", "beta", "gamma", "delta", "count", "total", "name", "value", "index", "item"]
LONGEST_WAIT = 0.05
"""Seconds, at most, between the step that a kill waits for and the kill: some steps, or a checkpoint."""


class Line:
    """The file that a run writes its progress to: the other end of a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def write(self, text: str) -> int:
        """Send it on."""
        self.pipe.send(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""


def corpus(seed: int) -> str:
    """Documents that are the same for a seed, as JSON lines."""
    draw = random.Random(seed)
    lines = []
    for number in range(200):
        body = [f"    {draw.choice(WORDS)} = {draw.choice(WORDS)} * {draw.randint(0, 99)}" for _ in range(6)]
        lines.append(json.dumps({"text": "\n".join([f"def f{number}({draw.choice(WORDS)}):", *body]) + "\n"}))
    return "\n".join(lines) + "\n"


def recipe(data: Path, steps: int, save_every: int) -> dict[str, Any]:
    """A model that takes milliseconds a step."""
    return {
        "model": {"width": 48, "depth": 2, "heads": 4, "hidden": 96},
        "tokenizer": {"size": 320},
        "data": {"sources": [{"kind": "jsonl", "path": str(data)}], "length": 64, "held_out": 0.1},
        "objective": {"name": "masked"},
        "schedule": {"warmup": 10},
        "train": {
            "steps": steps,
            "rows": 8,
            "accumulate": 2,
            "save_every": save_every,
            "evaluate_every": 10 * save_every,
            "log_every": 1,
            "keep": 2,
            "threads": 1,
        },
    }


def work(raw: dict[str, Any], folder: Path, pipe: Connection) -> None:
    """What a process does; the last thing it sends is the held-out figure."""
    console = Console(file=Line(pipe), width=500)  # type: ignore[arg-type]
    pipe.send(train(Recipe.of(raw), folder, console=console).bits_per_byte)


def begin(raw: dict[str, Any], folder: Path) -> tuple[BaseProcess, Connection]:
    """Start a process; it shares nothing with this one but a pipe."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unmask.train.run", "torch._dynamo"])  # torch's optimisers import the second
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(raw, folder, there), daemon=True)
    process.start()
    there.close()
    return process, here


def finish(raw: dict[str, Any], folder: Path) -> float:
    """Run to the end; returns the held-out figure."""
    process, pipe = begin(raw, folder)
    said: Any = None
    while not isinstance(said, float):
        try:
            said = pipe.recv()
        except EOFError:
            process.join()
            raise SystemExit(f"the run ended with {process.exitcode} before its last step") from None
    process.join()
    return said


def kill(raw: dict[str, Any], folder: Path, step: int, wait: float) -> str:
    """Run until a step is told of, wait, kill; returns how it had begun."""
    process, pipe = begin(raw, folder)
    begun, told = "from step 0", ""
    while True:
        try:
            told = str(pipe.recv())
        except EOFError:
            break
        if told.startswith("going on"):
            begun = told.strip().removeprefix("going on ")
        if told.startswith("step ") and "/" in told.split()[1] and int(told.split()[1].partition("/")[0]) >= step:
            break
    time.sleep(wait)
    process.kill()
    process.join()
    if process.exitcode != -9:
        raise SystemExit(f"the run was over (code {process.exitcode}) before it was killed; give more --steps")
    return begun


def differences(a: Path, b: Path) -> list[str]:
    """What two run folders do not agree about."""
    one, two = (checkpoint.newest(folder / "checkpoints")[0] for folder in (a, b))
    if one is None or two is None:
        return ["a run has no whole checkpoint"]
    found = [f"tensor {name} is in one only" for name in one.tensors.keys() ^ two.tensors.keys()]
    for name in one.tensors.keys() & two.tensors.keys():
        if not torch.equal(one.tensors[name], two.tensors[name]):
            found.append(f"tensor {name} differs")
    for key in one.about.keys() | two.about.keys():
        if key != "seconds" and one.about.get(key) != two.about.get(key):
            found.append(f"{key}: {one.about.get(key)!r} and {two.about.get(key)!r}")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        if (a / "model" / name).read_bytes() != (b / "model" / name).read_bytes():
            found.append(f"model/{name} differs")
    if losses(a) != losses(b):
        found.append("metrics.jsonl tells of other losses")
    return sorted(found)


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of every line about a step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Kill and resume a training run; the end must be the same to the bit.")
    parser.add_argument("--kills", type=int, default=20, help="how often the run is killed")
    parser.add_argument("--steps", type=int, default=400, help="steps of the run")
    parser.add_argument("--save-every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the texts")
    parser.add_argument("--out", type=Path, help="folder to work in; a temporary one by default")
    given = parser.parse_args()
    if not 0 < given.kills <= given.steps // 4:
        parser.error("--kills is at least 1, and at most a quarter of --steps")
    with tempfile.TemporaryDirectory() as spare:
        out: Path = given.out or Path(spare)
        out.mkdir(parents=True, exist_ok=True)
        data = out / "corpus.jsonl"
        data.write_text(corpus(given.seed))
        raw = recipe(data, given.steps, given.save_every)
        calm = finish(raw, out / "uninterrupted")
        draw = random.Random(given.seed)
        for number, step in enumerate(sorted(draw.sample(range(1, given.steps * 3 // 4), given.kills)), start=1):
            wait = draw.random() * LONGEST_WAIT
            begun = kill(raw, out / "killed", step, wait)
            print(f"kill {number:2}: began {begun}, killed {wait * 1000:4.1f} ms after step {step}", flush=True)
        killed = finish(raw, out / "killed")
        found = differences(out / "uninterrupted", out / "killed")
    if calm != killed:
        found.append(f"held-out bits per byte: {calm} and {killed}")
    print(f"{given.kills} kills in {given.steps} steps, {killed:.6f} held-out bits per byte")
    if found:
        print("DIFFERENT from the uninterrupted run:", *found, sep="\n  ")
        sys.exit(1)
    print("the same as the uninterrupted run, to the bit")


if __name__ == "__main__":
    main()
