"""The open stack for diffusion language models: train, decode, infill, refine, score and serve them.

import unmask
lm = unmask.load("tiny")
lm.generate("def add(", length=64, steps=16).text
"""

import os
from typing import TYPE_CHECKING, Any

from unmask.base import errors

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
"""Matrix products whose rows do not depend on how many others there are: the same request gives the same tokens in any
company. MKL reads it at its first product. It costs a lone row about half its speed in torch, and wide ones nothing
much; MKL_CBWR=AUTO in the environment trades it back."""

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
