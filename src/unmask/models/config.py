"""Reading a published config.json: every value checked, everything that would change the mathematics accounted for."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from unmask.base.errors import BadCheckpoint, BadInput, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.models.backbone import Shape
from unmask.models.family import Described
from unmask.nn.moe import Experts
from unmask.nn.rotary import SCALINGS, Scaling

T = TypeVar("T")
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Published names of activations to ours."""


LIMITS: dict[str, dict[str, tuple[str, float | None]]] = {
    "linear": {},
    "llama3": {"low": ("low_freq_factor", None), "high": ("high_freq_factor", None)},
    "yarn": {"low": ("beta_slow", 1.0), "high": ("beta_fast", 32.0)},
    "proportional": {"share": ("partial_rotary_factor", 1.0)},
}
"""Published keys, with their defaults, of what else tells fast frequencies from slow ones."""


class Reader:
    """The keys of a config.json, each of the type that it must have.

    Raises (each method):
        BadCheckpoint: a key is missing or of another type.
        Unsupported: it asks for what this code does not do.
    """

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self.config, self.where = config, where

    def __contains__(self, key: str) -> bool:
        return self.config.get(key) is not None

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadCheckpoint(f"{self.where}: {key} must be a whole number, got {value!r}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadCheckpoint(f"{self.where}: {key} must be a number, got {value!r}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise BadCheckpoint(f"{self.where}: {key} must be true or false, got {value!r}")
        return value

    def choice(self, key: str, names: Mapping[str, str], default: str | None = None) -> Any:
        """A name in a table, translated by it."""
        value = self._value(key, default)
        if value not in names:
            raise Unsupported(
                f"{self.where}: {key} is {value!r}, which this code does not have; it has {', '.join(names)}"
            )
        return names[value]

    def only(self, **allowed: Any) -> None:
        """Each key must be absent, null, or this value (or one of a tuple of values)."""
        for key, value in allowed.items():
            values = value if isinstance(value, tuple) else (value,)
            found = self.config.get(key)
            if found is not None and found not in values:
                raise Unsupported(
                    f"{self.where}: {key} is {found!r}; this code only does {' or '.join(map(repr, values))}"
                )

    def inside(self, key: str) -> "Reader":
        """The object under a key; an empty one if it is absent."""
        value = self.config.get(key) or {}
        if not isinstance(value, dict):
            raise BadCheckpoint(f"{self.where}: {key} must be an object, got {value!r}")
        return Reader(value, f"{self.where}: {key}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.config.get(key)
        if value is None and default is None:
            raise BadCheckpoint(f"{self.where} lacks {key}")
        return default if value is None else value


def vocab(read: Reader, size: int, **ids: int | None) -> Vocab:
    """The vocabulary: ids as given, else those of the config's bos, eos and pad keys (of several, the first)."""
    found: dict[str, int | None] = {}
    for name in dict.fromkeys(("mask", "eos", "bos", "pad", *ids)):
        value = ids[name] if name in ids else read.config.get(f"{name}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < size):
            raise BadCheckpoint(f"{read.where}: {name}_token_id must be an id below {size}, got {value!r}")
        found[name] = None if value == -1 else value
    return Vocab(
        size=size,
        mask=found["mask"],
        eos=found["eos"],
        bos=found["bos"],
        pad=found["pad"],
        expand=found.get("expand"),
        delete=found.get("delete"),
    )


def autoregressive(read: Reader, shape: Shape) -> Described:
    """A model that reads left to right and speaks of the next token."""
    return Described(
        shape=shape,
        vocab=vocab(read, shape.vocab_size, mask=None),
        traits=Traits(sees="left", speaks="next"),
        defaults={"decoder": "ar"},
    )


def llama_shape(read: Reader, **more: Any) -> Shape:
    """The sizes of Llama and its descendants under their usual keys; `more` adds switches, or replaces sizes."""
    read.only(use_sliding_window=False, rope_interleaved=False, pretraining_tp=1)
    if set(read.config.get("layer_types") or ()) - {"full_attention"}:
        raise Unsupported(f"{read.where}: layer_types other than full_attention, which this code does not have")
    theta, scaling = rope(read, more.get("max_length"))
    usual: dict[str, Callable[[], Any]] = {
        "vocab_size": lambda: read.whole("vocab_size"),
        "width": lambda: read.whole("hidden_size"),
        "depth": lambda: read.whole("num_hidden_layers"),
        "heads": lambda: read.whole("num_attention_heads"),
        "kv_heads": lambda: read.whole("num_key_value_heads", read.whole("num_attention_heads")),
        "head_dim": lambda: read.whole("head_dim", 0),
        "hidden": lambda: read.whole("intermediate_size"),
        "max_length": lambda: read.whole("max_position_embeddings"),
        "norm_eps": lambda: read.real("rms_norm_eps"),
        "activation": lambda: read.choice("hidden_act", ACTIVATIONS, "silu"),
        "qkv_bias": lambda: read.flag("attention_bias", False),
        "output_bias": lambda: read.flag("attention_bias", False),
        "mlp_bias": lambda: read.flag("mlp_bias", False),
        "tied": lambda: read.flag("tie_word_embeddings", False),
    }
    values = {name: get() for name, get in usual.items() if name not in more}
    return shape(read, rope_theta=theta, rope_scaling=scaling, **values, **more)


def shape(read: Reader, **values: Any) -> Shape:
    """A shape; what can't be is the config's fault."""
    return made(read, Shape, **values)


def experts(read: Reader, **values: Any) -> Experts:
    """A mixture of experts; what can't be is the config's fault."""
    return made(read, Experts, **values)


def made(read: Reader, kind: type[T], **values: Any) -> T:
    """A record of this kind; what can't be is the config's fault."""
    try:
        return kind(**values)
    except BadInput as error:
        raise BadCheckpoint(f"{read.where}: {error}") from error


def rope(read: Reader, positions: int | None = None) -> tuple[float, Scaling | None]:
    """Base and scaling of the rotation: `rope_theta` and `rope_scaling`, or `rope_parameters` as in newer files."""
    told = read.inside("rope_parameters") if "rope_parameters" in read else read.inside("rope_scaling")
    theta = told.real("rope_theta", read.real("rope_theta", 10000.0))
    kind = told.config.get("rope_type", told.config.get("type", "default"))
    if kind != "proportional":
        told.only(partial_rotary_factor=(1, 1.0))
    if kind == "default":
        return theta, None
    if kind not in SCALINGS:
        raise Unsupported(
            f"{told.where}: rope_type is {kind!r}, which this code does not have; it has {', '.join(SCALINGS)}"
        )
    factor, first = told.real("factor", 1.0 if kind == "proportional" else None), "original_max_position_embeddings"
    holds = told if first not in read else read  # newer files have it inside, some outside; that of outside counts
    original = holds.whole(first, positions or read.whole("max_position_embeddings", 1))
    return theta, Scaling(
        kind=kind,
        factor=factor,
        original=original,
        warmth=_warmth(told, factor),
        whole=told.flag("truncate", True),
        **{name: told.real(key, default) for name, (key, default) in LIMITS[kind].items()},
    )


def _warmth(told: Reader, factor: float) -> float | None:
    """What cosines and sines are multiplied by: given, or by DeepSeek's two factors; None is yarn's own rule.

    Source: DeepSeek-V2, 2024, arXiv:2405.04434, sec. 3.1.4 (yarn with mscale and mscale_all_dim).
    """
    if "attention_factor" in told:
        return told.real("attention_factor")
    up, down = told.real("mscale", 0.0), told.real("mscale_all_dim", 0.0)
    if not (up and down) or factor <= 1:
        return None
    return (0.1 * up * math.log(factor) + 1) / (0.1 * down * math.log(factor) + 1)
