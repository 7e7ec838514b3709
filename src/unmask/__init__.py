"""The open stack for diffusion language models: train, decode, infill, refine, score and serve them.

import unmask
lm = unmask.load("tiny")
lm.generate("def add(", length=64, steps=16).text
"""

from typing import TYPE_CHECKING, Any

from unmask.base import errors

if TYPE_CHECKING:
    from unmask.lm.load import load
    from unmask.lm.model import LanguageModel

__version__ = "0.1.0"
__all__ = ["LanguageModel", "__version__", "errors", "load"]

_LAZY = {"load": "unmask.lm.load", "LanguageModel": "unmask.lm.model"}
"""Public names that bring torch with them; imported when they are first used."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
