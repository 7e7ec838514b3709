"""What sets one published layout of files apart from another: a record of functions and a table of names.

There is no modelling code here. A new family is one file in `families/` that fills this record, and one line in the
table there.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from unmask.base.vocab import Traits, Vocab
from unmask.models.backbone import Shape, Transformer
from unmask.models.weights import Names, Piece

Config = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a config.json says.

    Args:
        shape, vocab, traits: see there.
        network: what is made of them; another one where the mathematics of the backbone is not theirs.
        defaults: decoding defaults of this model, by option name, with a preset under "decoder".
    """

    shape: Shape
    vocab: Vocab
    traits: Traits
    network: type[Transformer] = Transformer
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One layout.

    Args:
        name: how it is called.
        recognise: from a config and the names of the stored tensors, whether this is it.
        describe: what the config says; BadCheckpoint where a key is missing or wrong, Unsupported where it asks for
            mathematics that the backbone does not have.
        names: where our parameters are stored, given the config and the names of the stored tensors.
        inert: patterns of stored tensors that the mathematics does not read (tables that are computed anew); they are
            kept, and saved as they came.
        config: the config.json of a model that came from no file; None where only what was loaded can be saved.
        models: published models of this layout.
        source: where the layout is known from.
        checked: what its logits were compared with.
    """

    name: str
    recognise: Callable[[Config, Collection[str]], bool]
    describe: Callable[[Config], Described]
    names: Callable[[Config, Collection[str]], Names]
    inert: tuple[str, ...] = ()
    config: Callable[[Transformer], Config] | None = None
    models: str = ""
    source: str = ""
    checked: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How a loaded model lay in its files, so that it can go back as it came.

    Args:
        family: name of its family.
        config: its config.json.
        pieces: of every parameter of ours, by name.
        dtypes: of every stored tensor, by stored name.
        inert: stored tensors that no parameter is made of.
        lossy: why it can't go back, and what to do; "" where it can.
    """

    family: str
    config: Config
    pieces: Mapping[str, Piece]
    dtypes: Mapping[str, torch.dtype]
    inert: Mapping[str, Tensor]
    lossy: str = ""
