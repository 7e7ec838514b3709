"""A process that writes with one library: asked by `smollm2.py` over its standard input, a JSON object a line.

    python benchmarks/peers.py LIBRARY FILE THREADS

It answers with the tokens, seconds of the clock and of the processor; first of all with what loading took, from when
the imports are done to when the first token is written. Only the library that is asked for is imported, so each can
have an interpreter and settings of its own.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

Write = Callable[[list[int], int], list[int]]
"""A prompt and a number of new tokens to these tokens."""


def unmask(file: str, threads: int, *, backend: str, quantize: str | None = None) -> Callable[[], Write]:
    """Ours: the window `next`, which reads over an exact cache."""
    import torch

    import unmask

    torch.set_num_threads(threads)

    def load() -> Write:
        lm = unmask.load(file, device="cpu", backend=backend, quantize=quantize)
        return lambda prompt, length: lm.generate(prompt, length=length, eos="keep", decoder="ar").tokens

    return load


def transformers(file: str, threads: int) -> Callable[[], Write]:
    """The model of transformers with its cache, without gradients."""
    import torch
    import transformers as library

    torch.set_num_threads(threads)
    library.utils.logging.disable_progress_bar()

    network = library.LlamaForCausalLM  # only now it is imported

    def load() -> Write:
        model = network.from_pretrained(file, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None  # it writes on, as ours does

        @torch.inference_mode()
        def write(prompt: list[int], length: int) -> list[int]:
            tokens = torch.tensor([prompt])
            there = torch.ones_like(tokens)
            out = model.generate(tokens, attention_mask=there, max_new_tokens=length, do_sample=False, use_cache=True)
            return list(map(int, out[0, len(prompt) :]))

        return write

    return load


def llama_cpp(file: str, threads: int, *, kind: str | None = None) -> Callable[[], Write]:
    """llama.cpp through llama-cpp-python, on the file as it is or with its weights turned into another kind first."""
    import llama_cpp as library

    if kind is not None:
        settings = library.llama_model_quantize_default_params()
        settings.ftype, settings.allow_requantize, settings.nthread = getattr(library, kind), True, threads
        made = f"{file}.{kind}"
        with quiet():
            failed = library.llama_model_quantize(os.fsencode(file), os.fsencode(made), settings)
        if failed:
            raise SystemExit(f"llama.cpp could not turn {file} into {kind}")
        file = made

    def load() -> Write:
        with quiet():
            model = library.Llama(file, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)

        def write(prompt: list[int], length: int) -> list[int]:
            model.reset()
            found = model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)
            return [next(found) for _ in range(length)]

        return write

    return load


@contextlib.contextmanager
def quiet():
    """What a library writes to the terminal is dropped."""
    null, kept = os.open(os.devnull, os.O_WRONLY), [(fd, os.dup(fd)) for fd in (1, 2)]
    for fd, _ in kept:
        os.dup2(null, fd)
    try:
        yield
    finally:
        for fd, old in kept:
            os.dup2(old, fd)


LIBRARIES = {
    "unmask, torch": lambda file, threads: unmask(file, threads, backend="torch"),
    "unmask, openvino": lambda file, threads: unmask(file, threads, backend="openvino"),
    "unmask, openvino int8": lambda file, threads: unmask(file, threads, backend="openvino", quantize="int8"),
    "transformers": transformers,
    "llama.cpp F32": lambda file, threads: llama_cpp(file, threads, kind="LLAMA_FTYPE_ALL_F32"),
    "llama.cpp Q8_0": lambda file, threads: llama_cpp(file, threads, kind="LLAMA_FTYPE_MOSTLY_Q8_0"),
    "llama.cpp Q4_1": llama_cpp,
}


def peak() -> float:
    """MiB that this process has had in memory at most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def main() -> None:
    library, file, threads = sys.argv[1:]
    load = LIBRARIES[library](file, int(threads))
    before, began = peak(), time.perf_counter()
    write = load()
    write([1], 1)
    print(json.dumps({"seconds": time.perf_counter() - began, "peak MiB": peak() - before}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began, busy = time.perf_counter(), time.process_time()
        tokens = write(asked["prompt"], asked["length"])
        spent = {"seconds": time.perf_counter() - began, "busy": time.process_time() - busy}
        print(json.dumps({"tokens": tokens, **spent}), flush=True)


if __name__ == "__main__":
    main()
