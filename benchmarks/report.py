"""What every benchmark shares: a table on the screen, the same table in files, and rows of held-out text.

A result goes into a JSON file and a Markdown file beside it, with the command and the machine that made it.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmask.base import seeds
from unmask.base.batch import Batch
from unmask.base.errors import BadInput
from unmask.data import tokens
from unmask.data.rows import Rows
from unmask.data.sources import Source, read
from unmask.lm.model import LanguageModel
from unmask.text.tokenizer import Tokenizer

HELD_OUT = 0.02
"""Share of documents that the recipes of the bundled models hold out."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options of every benchmark."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, help="write the results here (.json), and the tables beside it (.md)")
    found.add_argument("--threads", type=int, default=1, help="threads of the processor (1)")
    return found


def machine() -> str:
    """The processor (or GPU) and the versions, in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor")
    return f"{os.cpu_count()} cores {name}, {torch.get_num_threads()} used, torch {torch.__version__}"


def described(name: str, lm: LanguageModel) -> str:
    """A model's name, size and, where it lies in the folder of a run, the step of its last checkpoint."""
    steps = [int(p.name.partition("-")[2]) for p in Path(name).parent.glob("checkpoints/step-*")] if "/" in name else []
    size = sum(p.numel() for p in lm.model.parameters()) / 1e6
    return f"{name}, {size:.2f} M parameters" + (f", step {max(steps)} of its training" if steps else "")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; columns are the keys of the first row."""
    heads = list(rows[0])
    body = [[_cell(row[head]) for head in heads] for row in rows]
    return "\n".join(["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *body)])


def report(out: Path | None, title: str, tables: Mapping[str, Sequence[Mapping[str, Any]]], **about: Any) -> None:
    """Print tables, each under its caption, and keep them if `out` says where."""
    about = {"command": shlex.join(["python", *sys.argv]), "machine": machine(), **about}
    text = f"# {title}\n\n" + "".join(f"- {key.replace('_', ' ')}: {value}\n" for key, value in about.items())
    text += "".join(f"\n{caption}\n\n{table(rows)}\n" for caption, rows in tables.items())
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps({"title": title, **about, "tables": tables}, indent=1) + "\n")
        out.with_suffix(".md").write_text(text)


def documents(files: Sequence[str], share: float = HELD_OUT) -> list[str]:
    """The held-out documents of JSONL files, by the split that training makes."""
    sources = [Source(kind="jsonl", path=file) for file in files]
    return [d.text for d in read(sources) if tokens.is_held_out(d.text, share)]


def pieces(data: Sequence[str], tokenizer: Tokenizer, length: int, part: str = "held_out") -> tuple[Rows, np.ndarray]:
    """Rows of `length` tokens, and the numbers of those that lie inside one document.

    Args:
        data: the data folder of a run, or JSONL files (of which the held-out documents are taken).
        tokenizer: has to be that of the folder.
        length: tokens a row.
        part: "held_out" or "train"; JSONL files have the first only.
    """
    if len(data) == 1 and Path(data[0]).is_dir():
        folder = Path(data[0])
        if Tokenizer.load(folder).token_bytes != tokenizer.token_bytes:
            raise BadInput(f"{folder} was tokenised with another vocabulary; give the data folder of this model's run")
        found = tokens.load(folder / part)
    else:
        found = _encoded(documents(data), tokenizer)
    rows = Rows(found, length, 0)
    first = np.arange(len(found.ids) // length) * length
    whole = np.searchsorted(found.starts, first, "right") == np.searchsorted(found.starts, first + length - 1, "right")
    return rows, whole.nonzero()[0]


def batch_of(rows: Rows, usable: np.ndarray, size: int, seed: int) -> Batch:
    """`size` of the usable rows, drawn by the seed; each row is one piece of a document."""
    coins = seeds.uniform(seeds.key(seed, "benchmark", torch.arange(len(usable))))
    found = rows.take(usable[coins.argsort()[:size].numpy()])
    return replace(found, documents=torch.zeros_like(found.documents))


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> tokens.Tokens:
    end = [] if tokenizer.vocab.eos is None else [tokenizer.vocab.eos]
    ids = [[*tokenizer.start, *some, *end] for some in tokenizer.encode_many(texts)]
    starts = np.cumsum([0, *map(len, ids)])
    size = sum(len(text.encode()) for text in texts)
    return tokens.Tokens(np.concatenate([np.asarray(some, dtype=np.int64) for some in ids]), starts, size)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
