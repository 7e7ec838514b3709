"""Puts this folder and the benchmarks on the path, so that tests can say `from exact import ...`; shared models."""

import sys
from pathlib import Path

import pytest
import torch

from small_model import model_of

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # pytest runs in several processes

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "Dear reader, the parcel is on its way. It was a fine morning — naïve café, 日本語, 🙂.\n",
    "import os\nimport sys\n\nclass Foo:\n    def bar(self):\n        return self.x\n",
]


@pytest.fixture(scope="session")
def tokenizer():
    from unmask.text.tokenizer import Tokenizer

    return Tokenizer.train(TEXTS * 4, 330)


@pytest.fixture(scope="session")
def lm(tokenizer):
    """A bidirectional masked model."""
    from unmask.lm.model import LanguageModel

    return LanguageModel(model_of(tokenizer, sees="all"), tokenizer, name="toy")


@pytest.fixture(scope="session")
def block_lm(tokenizer):
    """A block-causal masked model."""
    from unmask.lm.model import LanguageModel

    return LanguageModel(model_of(tokenizer, sees="blocks", block=8), tokenizer, name="toy-block")


@pytest.fixture(scope="session")
def ar_lm(tokenizer):
    """An autoregressive model."""
    from unmask.lm.model import LanguageModel

    return LanguageModel(model_of(tokenizer, sees="left", speaks="next"), tokenizer, name="toy-ar")
