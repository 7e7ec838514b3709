"""A language model back into a folder: its weights as they came, and the files of its tokenizer beside them.

It knows nothing of how weights are laid out.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from unmask.models import load as checkpoint
from unmask.models.backbone import Transformer
from unmask.text.tokenizer import Tokenizer

BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""Files that a published model has beside its weights and config.json."""


def save(
    model: Transformer,
    tokenizer: Tokenizer | None,
    source: Path | None,
    folder: Path,
    dtype: str | torch.dtype | None,
) -> None:
    """Write weights and config, and what the source has beside them; without a source, the tokenizer."""
    checkpoint.save(model, folder, dtype)
    if source is not None:
        beside(source, folder)
        _config(source / checkpoint.CONFIG, folder / checkpoint.CONFIG)
    elif tokenizer is not None:
        tokenizer.save(folder)


def beside(source: Path, folder: Path, more: Sequence[str] = ()) -> None:
    """Copy what a folder has beside its weights into another one, and more files by name."""
    if source.resolve() == folder.resolve():
        return
    for name in (*BESIDE, *more):
        if (source / name).is_file():
            _copy(source / name, folder / name)


def _config(came: Path, written: Path) -> None:
    """Where the two configs say the same, have it in the bytes that it came in."""
    if not written.samefile(came) and json.loads(came.read_bytes()) == json.loads(written.read_bytes()):
        _copy(came, written)


def _copy(source: Path, target: Path) -> None:
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
