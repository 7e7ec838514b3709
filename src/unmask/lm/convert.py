"""A model from one kind of files to another: pickles and GGUF to published folders, these to our own layout."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.lm.load import Source, opened
from unmask.lm.model import LanguageModel
from unmask.lm.save import beside
from unmask.models import load as checkpoint
from unmask.models.files import INDEX, WEIGHTS, Stored
from unmask.models.repack import unpickle
from unmask.text import gguf

LAYOUTS = {
    "published": "names and config of the model's family, as its publisher has them",
    "own": "those of our own layout, in which decoding defaults and traits are spelt out and can be edited",
}
SETTINGS, GENERATION = "tokenizer_config.json", "generation_config.json"


def convert(
    source: Source, folder: Path, *, layout: str = "published", dtype: str | None = None, allow_pickle: bool = False
) -> dict[str, Any]:
    """Write a model into a folder, as safetensors.

    Args:
        source: a folder with safetensors or pickles, or a GGUF file.
        folder: a new one, or an empty one.
        layout: a key of `LAYOUTS`.
        dtype: of floating-point numbers; None is what each tensor was stored in, and bfloat16 where it was packed.
            Pickles stay as they are.
        allow_pickle: whether pickles may be opened.
    Returns:
        The folder, the layout, and how many tensors were written.
    Raises:
        BadInput: the folder is there. Unsupported: pickles without leave, or a model that has no such layout.
    """
    if layout not in LAYOUTS:
        raise UnknownName("layout", layout, LAYOUTS)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is there already; give a folder that is new or empty")
    pickled = source.path.is_dir() and not any((source.path / name).exists() for name in (WEIGHTS, INDEX))
    if not (pickled and allow_pickle):
        if allow_pickle:
            raise BadInput(f"{source.name} has no pickles to allow; leave --allow-pickle out")
        return _repack(source, folder, layout, dtype)
    if layout == "published":
        if dtype is not None:
            raise Unsupported("pickles are converted as they are; convert the new folder again for another dtype")
        names = unpickle(source.path, folder)
        beside(source.path, folder, [checkpoint.CONFIG])
        return _done(folder, layout, names)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        unpickle(source.path, Path(draft))
        beside(source.path, Path(draft), [checkpoint.CONFIG])
        return _repack(replace(source, path=Path(draft)), folder, layout, dtype)


def _repack(source: Source, folder: Path, layout: str, dtype: str | None) -> dict[str, Any]:
    found = checkpoint.contents(source.path)
    same = layout == "published" and source.path.is_dir()
    wanted = dtype if dtype is not None or same else _kept(found.tensors.values())
    lm = opened(source, found, device="cpu", dtype=wanted)
    lm.model.origin = replace(lm.model.origin, lossy="") if layout == "published" else None
    checkpoint.save(lm.model, folder, wanted)
    if source.path.is_dir():
        beside(source.path, folder)
    else:
        _tokenizer(lm, gguf.template(found.metadata), folder)
    if len(lm.model.vocab.ends) > 1 and not (folder / GENERATION).exists():
        _write(folder / GENERATION, {"eos_token_id": list(lm.model.vocab.ends)})
    return _done(folder, layout, checkpoint.contents(folder).tensors)


def _kept(tensors: Iterable[Stored]) -> torch.dtype:
    """The dtype that most numbers are stored in."""
    sizes = Counter[torch.dtype]()
    for tensor in tensors:
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] += torch.Size(tensor.shape).numel()
    return sizes.most_common(1)[0][0]


def _tokenizer(lm: LanguageModel, template: str | None, folder: Path) -> None:
    """The tokenizer of a single file, as publishers spread it."""
    if lm.tokenizer is None:
        return
    lm.tokenizer.save(folder)
    told = {"tokenizer_class": "PreTrainedTokenizerFast", **lm.tokenizer.names}
    _write(folder / SETTINGS, told | ({} if template is None else {"chat_template": template}))


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _done(folder: Path, layout: str, names: Iterable[str]) -> dict[str, Any]:
    return {"folder": str(folder), "layout": layout, "tensors": len(list(names))}
