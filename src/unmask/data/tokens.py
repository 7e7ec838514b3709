"""Documents as tokens on disk: one array of ids, and where each document begins. Made once, then mapped.

A cache folder is complete or absent: it is written under another name and renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmask.base.errors import BadCheckpoint
from unmask.text.tokenizer import Tokenizer

_BATCH = 256
"""Documents that are encoded at a time."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of many documents.

    Args:
        ids: (N,) all of them, one document after the other, each with what stands before it and its end of text.
        starts: (D + 1,) where each begins; the last is N.
        num_bytes: of the documents' text.
    """

    ids: np.ndarray
    starts: np.ndarray
    num_bytes: int

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self.starts) - 1


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is held out: decided by its content alone, so that copies never fall on both sides."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def encode(texts: Iterable[str], tokenizer: Tokenizer, folder: Path) -> Tokens:
    """Encode documents into a cache folder, whole or not at all.

    Before each stands what the tokenizer puts before every text, and behind it the end of text.
    """
    start, end = tokenizer.start, [] if tokenizer.vocab.eos is None else [tokenizer.vocab.eos]
    kind = np.uint16 if tokenizer.vocab.size <= 2**16 else np.uint32
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    starts, size, num_bytes = [0], 0, 0
    with (draft / "ids.bin").open("wb") as file:
        for some in _batches(texts):
            for text, ids in zip(some, tokenizer.encode_many(some), strict=True):
                row = [*start, *ids, *end]
                file.write(np.asarray(row, dtype=kind).tobytes())
                size, num_bytes = size + len(row), num_bytes + len(text.encode())
                starts.append(size)
    np.save(draft / "starts.npy", np.asarray(starts, dtype=np.int64))
    about = {"dtype": np.dtype(kind).name, "num_bytes": num_bytes}
    (draft / "about.json").write_text(json.dumps(about))
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return load(folder)


def load(folder: Path) -> Tokens:
    """A cache folder, mapped rather than read.

    Raises:
        BadCheckpoint: it is missing, torn or not one.
    """
    try:
        about = json.loads((folder / "about.json").read_text())
        starts = np.load(folder / "starts.npy", allow_pickle=False)
        kind, count, num_bytes = np.dtype(about["dtype"]), int(starts[-1]), int(about["num_bytes"])
        ids = np.memmap(folder / "ids.bin", dtype=kind, mode="r") if count else np.zeros(0, dtype=kind)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadCheckpoint(f"{folder} holds no tokens ({error}); remove it, and it is made again") from error
    if len(ids) != count:
        raise BadCheckpoint(f"{folder} is torn: {count} tokens were written, {len(ids)} are left; remove the folder")
    return Tokens(ids, starts, num_bytes)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    some: list[str] = []
    for text in texts:
        some.append(text)
        if len(some) == _BATCH:
            yield some
            some = []
    if some:
        yield some
