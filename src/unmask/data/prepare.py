"""Sources and a tokenizer, learned or given, to rows for training and rows that are held out."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.base.errors import BadCheckpoint, BadInput
from unmask.data import tokens
from unmask.data.rows import Rows
from unmask.data.sources import Source, paths, read
from unmask.text.tokenizer import Tokenizer

MARK = "prepared.json"


@dataclass(frozen=True, slots=True)
class Corpus:
    """What a run learns from and is measured on.

    Args:
        tokenizer: its vocabulary.
        train, held_out: packed rows.
        bytes_per_token: of the held-out text, counting every token but what stands before a text; turns nats per token
            into bits per byte.
    """

    tokenizer: Tokenizer
    train: Rows
    held_out: Rows
    bytes_per_token: float


def prepare(
    sources: Sequence[Source],
    folder: Path,
    *,
    length: int,
    held_out: float,
    size: int | None = None,
    path: str | None = None,
) -> Corpus:
    """Read, split, learn the vocabulary, encode; what was made before from the same sources is used again.

    Args:
        sources: where documents come from.
        folder: where the tokenizer and the tokens are kept.
        length: tokens in a row.
        held_out: share of documents never trained on.
        size, path: ids of a tokenizer to learn from the training documents, or where one is.
    Raises:
        BadInput: sources that can't be read, or too little text to split.
        BadCheckpoint: there is no tokenizer at `path`.
    """
    given = None if path is None else Tokenizer.load(path)
    mark = _fingerprint(sources, held_out, size, path)
    if given is not None:
        mark["tokenizer"] = given.fingerprint
    tokenizer, train, held = _made_before(folder, mark) or _make(sources, folder, mark, held_out, size, given)
    for part, found in (("to train on", train), ("held out", held)):
        if not found.num_documents:
            raise BadInput(f"no document is {part}; give more documents, or another share than held_out={held_out}")
    counted = len(held.ids) - len(tokenizer.start) * held.num_documents
    blank = next(i for i in (tokenizer.vocab.pad, tokenizer.vocab.eos, 0) if i is not None)
    return Corpus(tokenizer, Rows(train, length, blank), Rows(held, length, blank), held.num_bytes / max(1, counted))


Made = tuple[Tokenizer, tokens.Tokens, tokens.Tokens]


def _made_before(folder: Path, mark: dict[str, object]) -> Made | None:
    """What the folder holds, if it was made from the same and is whole."""
    try:
        if json.loads((folder / MARK).read_text()) != mark:
            return None
        return Tokenizer.load(folder), tokens.load(folder / "train"), tokens.load(folder / "held_out")
    except (OSError, ValueError, BadCheckpoint):
        return None


def _make(
    sources: Sequence[Source],
    folder: Path,
    mark: dict[str, object],
    held_out: float,
    size: int | None,
    given: Tokenizer | None,
) -> Made:
    """Fill the folder; its mark goes first and comes back last, so what is half made is made again."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).unlink(missing_ok=True)
    tokenizer = given or Tokenizer.train(_texts(sources, held_out, held=False), size or 0)
    tokenizer.save(folder)
    train = tokens.encode(_texts(sources, held_out, held=False), tokenizer, folder / "train")
    held = tokens.encode(_texts(sources, held_out, held=True), tokenizer, folder / "held_out")
    draft = folder / f".{MARK}"
    draft.write_text(json.dumps(mark))
    draft.replace(folder / MARK)
    return tokenizer, train, held


def _texts(sources: Sequence[Source], share: float, *, held: bool) -> Iterator[str]:
    for document in read(sources):
        if tokens.is_held_out(document.text, share) == held:
            yield document.text


def _fingerprint(sources: Sequence[Source], held_out: float, size: int | None, path: str | None) -> dict[str, object]:
    """What the prepared folder was made from: settings, and the size and time of every file."""
    stamp = hashlib.blake2b(digest_size=16)
    for source in sources:
        for root in paths(source):
            for file in sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]:
                stat = file.stat()
                stamp.update(f"{source.kind}|{source.field}|{file}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return {"sources": stamp.hexdigest(), "held_out": held_out, "size": size, "path": path, "version": 1}
