"""What sets one published layout of files apart from another: a record of functions, no modelling code.

A new family is one file in `families/` that fills this record, and one line in the table there.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from unmask.base.vocab import Traits, Vocab
from unmask.models.backbone import Shape, Transformer

Config = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a config.json says.

    Args:
        shape, vocab, traits: see there.
        defaults: decoding defaults of this model, by option name.
    """

    shape: Shape
    vocab: Vocab
    traits: Traits
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One layout.

    Args:
        name: how it is called.
        recognise: from a config and the names of the stored tensors, whether this is it.
        describe: what the config says; BadCheckpoint where a key is missing or wrong, Unsupported where it asks for
            mathematics that the backbone does not have.
        stored: the stored name of a tensor of ours.
        config: the config.json of a model.
    """

    name: str
    recognise: Callable[[Config, Collection[str]], bool]
    describe: Callable[[Config], Described]
    stored: Callable[[str], str]
    config: Callable[[Transformer], Config]
