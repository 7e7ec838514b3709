"""kill -9 a training run at random moments, resume it each time, and compare it with one that was left alone.

    python benchmarks/kill_resume.py --kills 20

Prints one line a kill and a verdict; exits with 1 unless every tensor of the last checkpoint (weights, averages,
optimiser state) and every logged loss is bitwise the same.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from unmask.train.recipe import Recipe
from unmask.train.run import train


def recipe(folder: Path, steps: int) -> Recipe:
    """A run that is all saving: a small network, a checkpoint every third step."""
    source = folder / "text.jsonl"
    if not source.exists():
        words = ["a", "canvas", "is", "given", "open", "or", "done", "and", "fills", "from", "both", "sides"]
        draw = random.Random(0)
        texts = [" ".join(draw.choices(words, k=draw.randint(20, 200))) for _ in range(60)]
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Recipe.of(
        {
            "model": {"width": 64, "depth": 2, "heads": 4, "hidden": 96},
            "tokenizer": {"size": 300},
            "data": {"sources": [{"kind": "jsonl", "path": str(source)}], "length": 64, "held_out": 0.1},
            "objective": {"name": "masked"},
            "optimizer": {"lr": 0.01},
            "schedule": {"warmup": 5},
            "train": {
                "steps": steps,
                "rows": 8,
                "accumulate": 2,
                "threads": 1,
                "log_every": 1,
                "save_every": 3,
                "evaluate_every": 50,
                "evaluate_rows": 8,
            },
        }
    )


def start(folder: Path, steps: int, name: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, __file__, "--worker", str(folder), "--name", name, "--steps", str(steps)]
    return subprocess.Popen(command)


def begun(process: "subprocess.Popen[bytes]", metrics: Path) -> None:
    """Wait until the process has done a step, or has ended."""
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while process.poll() is None and (not metrics.exists() or metrics.stat().st_mtime_ns == before):
        time.sleep(0.005)


def result(run: Path, steps: int) -> tuple[str, list[tuple[int, float]]]:
    state = run / "checkpoints" / f"step-{steps}" / "state.safetensors"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return hashlib.sha256(state.read_bytes()).hexdigest(), [(r["step"], r["loss"]) for r in rows if "loss" in r]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        with (given.worker / f"{given.name}.log").open("a") as log:
            console = Console(file=log)
            train(recipe(given.worker, given.steps), given.worker / given.name, console=console)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe(folder, given.steps)
        whole = start(folder, given.steps, "whole")
        begun(whole, folder / "whole" / "metrics.jsonl")
        stepping = time.perf_counter()
        if whole.wait():
            print((folder / "whole.log").read_text(), "the run that is left alone failed", sep="\n")
            return 1
        window = (time.perf_counter() - stepping) / given.kills
        draw, metrics, kills = random.Random(given.seed), folder / "killed" / "metrics.jsonl", 0
        while True:
            process = start(folder, given.steps, "killed")
            if kills < given.kills:
                begun(process, metrics)
                try:
                    code = process.wait(draw.uniform(0, window))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    kills += 1
                    last = metrics.read_text().splitlines()[-1] if metrics.exists() else "before the first step"
                    print(f"kill {kills}: {last[:40]}", flush=True)
                    continue
            else:
                code = process.wait()
            break
        if code:
            print((folder / "killed.log").read_text(), f"a resume failed with exit code {code}", sep="\n")
            return 1
        same = result(folder / "whole", given.steps) == result(folder / "killed", given.steps)
    verdict = "bitwise the same as" if same else "DIFFERENT from"
    print(
        f"{kills} kills, {given.steps} steps: weights, averages, optimiser state and losses are {verdict} a whole run"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
