"""A language model by name: bundled with the package, or a folder."""

from pathlib import Path
from typing import Any

from unmask.base.errors import BadCheckpoint, UnknownName, Unsupported
from unmask.lm.model import LanguageModel
from unmask.models import load as checkpoint
from unmask.text.tokenizer import FILE, Tokenizer

BUNDLED = Path(__file__).parent.parent / "bundled"


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))


def load(name: str | Path, *, device: str = "auto", dtype: Any = None, quantize: str | None = None) -> LanguageModel:
    """Open a language model.

    Args:
        name: a bundled model ("tiny"), or a folder with config.json and model.safetensors. A folder without
            tokenizer.json gives a model that speaks ids only.
        device: "auto" takes a GPU where there is one; or a torch device.
        dtype: a torch dtype or its name; by default float32 on a CPU, and the stored one elsewhere.
        quantize: weights in fewer bits.
    Raises:
        UnknownName: neither a bundled model nor a folder.
        BadCheckpoint: the folder is torn or holds something else.
        Unsupported: a device, dtype or quantisation that can't be had.
    """
    if quantize is not None:
        raise Unsupported(f"quantize={quantize!r} is not supported; load the weights as they are")
    inside, folder = BUNDLED / str(name), Path(name)
    if "/" not in str(name) and (inside / "config.json").exists():
        folder = inside
    elif not folder.exists():
        if "/" in str(name) or str(name).startswith("."):
            raise BadCheckpoint(f"there is no folder {name}; give a folder with config.json and model.safetensors")
        raise UnknownName("model", name, [*bundled(), "a folder with config.json"])
    model = checkpoint.load(folder, device=device, dtype=dtype)
    tokenizer = Tokenizer.load(folder, model.vocab) if (folder / FILE).exists() else None
    return LanguageModel(model, tokenizer, name=folder.resolve().name)
