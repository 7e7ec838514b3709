"""Documents, tokenised once: a file of ids with the borders of each document, and a cache of such files.

A file is written beside its final place and renamed when whole, so a reader never sees half of one. It does not know
rows, batches or training.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import batched
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from unmask.data.sources import Document
from unmask.data.split import place
from unmask.text.tokenizer import Tokenizer

LAYOUT = 1
"""Rises when files written before can't be read any more."""

_AT_ONCE = 64
"""Documents that are tokenised together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A tokenised corpus of D documents and T tokens, without beginnings and ends of text.

    Args:
        ids: (T,) uint16 or uint32, mapped from disk.
        starts: (D + 1,) int64, document d is ids[starts[d] : starts[d + 1]].
        sizes: (D,) int64, bytes of each document's text.
        places: (D,) uint64, see `unmask.data.split.place`.
    """

    ids: NDArray[Any]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    places: NDArray[np.uint64]

    @classmethod
    def open(cls, folder: Path) -> Self | None:
        """Map a finished folder; None where there is none, or where it is torn or of another layout."""
        try:
            meta = json.loads((folder / "meta.json").read_text())
            ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
            rest = [np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("starts", "sizes", "places")]
        except (OSError, ValueError):
            return None
        found = cls(ids=ids, starts=rest[0], sizes=rest[1], places=rest[2])
        whole = {"layout": LAYOUT, "tokens": len(ids), "documents": len(found.sizes)}
        return found if meta == whole and len(found.starts) == len(found.sizes) + 1 else None


def tokenise(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path) -> Tokens:
    """The tokens of the documents, from `folder` if it holds them already, else made and kept there.

    Args:
        documents: read once, and only if the folder does not hold them.
        tokenizer: what writes them.
        folder: a place for these documents under this tokenizer and for nothing else.
    """
    found = Tokens.open(folder)
    if found is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(documents, tokenizer, draft)
        shutil.rmtree(folder, ignore_errors=True)  # torn, or of an older layout
        try:
            draft.rename(folder)
        except OSError:
            if Tokens.open(folder) is None:  # else another process was quicker with the same content
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    made = Tokens.open(folder)
    assert made is not None
    return made


def _write(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path) -> None:
    dtype = np.uint16 if tokenizer.vocab.size <= 2**16 else np.uint32
    starts, sizes, places = [0], [], []
    with (folder / "ids.npy").open("w+b") as file:
        _header(file, dtype, 0)
        body = file.tell()
        for texts in _texts(documents):
            for text, ids in zip(texts, tokenizer.encode_many(texts), strict=True):
                file.write(np.asarray(ids, dtype=dtype).tobytes())
                starts.append(starts[-1] + len(ids))
                sizes.append(len(text.encode()))
                places.append(place(text))
        file.seek(0)
        _header(file, dtype, starts[-1])
        assert file.tell() == body  # numpy pads its header so that a longer count still fits
        _settle(file)
    arrays = {
        "starts": np.asarray(starts, dtype=np.int64),
        "sizes": np.asarray(sizes, dtype=np.int64),
        "places": np.asarray(places, dtype=np.uint64),
    }
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, array, allow_pickle=False)
            _settle(file)
    with (folder / "meta.json").open("w") as file:
        json.dump({"layout": LAYOUT, "tokens": starts[-1], "documents": len(sizes)}, file)
        _settle(file)


def _texts(documents: Iterable[Document]) -> Iterator[list[str]]:
    for group in batched(documents, _AT_ONCE):
        yield [document.text for document in group]


def _header(file: Any, dtype: type[np.generic], count: int) -> None:
    spelled = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": spelled, "fortran_order": False, "shape": (count,)})


def _settle(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
