"""Our own layout: sizes under the usual Hugging Face keys, tensors under Llama's names, traits and defaults spelt out.

Every key is known here; a file with another one was written for something that this code does not do, and is refused.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, get_args, get_origin, get_type_hints

from unmask.base.errors import BadCheckpoint, BadInput
from unmask.base.vocab import Traits, Vocab
from unmask.models.backbone import Shape, Transformer
from unmask.models.family import Config, Described, Family
from unmask.models.weights import Names

MODEL_TYPE = "unmask"
SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "hidden": "intermediate_size",
    "max_length": "max_position_embeddings",
    "activation": "hidden_act",
    "qkv_bias": "attention_bias",
    "tied": "tie_word_embeddings",
}
"""Config keys of the fields of `Shape` that are not called what the field is called."""
IDS = {"mask": "mask_token_id", "eos": "eos_token_id", "bos": "bos_token_id", "pad": "pad_token_id"}
RESIZES = {"expand": "expand_token_id", "delete": "delete_token_id"}
"""The same of ids that few vocabularies have; they are written where they are there."""
NAMES: Names = {
    "embed_tokens": "model.embed_tokens",
    "embed_positions": "model.embed_positions",
    "layers.*": "model.layers.*",
    "norm": "model.norm",
    "lm_head": "lm_head",
    "head_bias": "model.head_bias",
    "embed_sigma": "model.embed_sigma",
    "modulation": "model.modulation",
}
FREE = {
    "model_type",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "num_tokens",
    "traits",
    "decoder",
}


def _recognise(config: Config, keys: Collection[str]) -> bool:
    return config.get("model_type") == MODEL_TYPE


def _config(model: Transformer) -> Config:
    shape, vocab = dataclasses.asdict(model.shape), dataclasses.asdict(model.vocab)
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["UnmaskForMaskedDiffusion"],
        **{SIZES.get(name, name): value for name, value in shape.items()},
        "num_tokens": vocab["size"],
        **{key: vocab[name] for name, key in IDS.items()},
        **{key: vocab[name] for name, key in RESIZES.items() if vocab[name] is not None},
        "traits": dataclasses.asdict(model.traits),
        "decoder": dict(model.defaults),
    }


def _describe(config: Config) -> Described:
    shape_keys = {field.name: SIZES.get(field.name, field.name) for field in dataclasses.fields(Shape)}
    every = IDS | RESIZES
    if unknown := set(config) - set(shape_keys.values()) - set(every.values()) - FREE:
        raise BadCheckpoint(f"config.json has keys that mean nothing here: {', '.join(sorted(unknown))}")
    shape = _record(Shape, {name: config[key] for name, key in shape_keys.items() if key in config}, shape_keys)
    ids = {name: config[key] for name, key in every.items() if key in config}
    size = config.get("num_tokens", shape.vocab_size)
    vocab = _record(Vocab, {"size": size, **ids}, {"size": "num_tokens", **every})
    for name, key in every.items():
        value = getattr(vocab, name)
        if value is not None and not 0 <= value < vocab.size:
            raise BadCheckpoint(f"config.json: {key} must be an id below {vocab.size}, got {value}")
    traits = config.get("traits", {})
    defaults = config.get("decoder", {})
    for key, value in (("traits", traits), ("decoder", defaults)):
        if not isinstance(value, dict):
            raise BadCheckpoint(f"config.json: {key} must be an object, got {value!r}")
    return Described(shape=shape, vocab=vocab, traits=traits_of(traits), defaults=defaults)


def traits_of(values: dict[str, Any]) -> Traits:
    """Traits from a JSON object; BadCheckpoint for what they don't have or can't be."""
    traits: Traits = _record(Traits, values, {})
    blocks = (*traits.reads, *([traits.block or 0] if traits.sees == "blocks" else []))
    if any(block < 1 for block in blocks):
        raise BadCheckpoint(f"config.json: traits with blocks need sizes of at least 1, got {values}")
    return traits


def _record(kind: type, values: dict[str, Any], keys: dict[str, str]) -> Any:
    """A dataclass of `kind`, each value checked against the type of its field; `keys` are names for the message."""
    fields, hints = {field.name: field for field in dataclasses.fields(kind)}, get_type_hints(kind)
    if unknown := set(values) - set(fields):
        raise BadCheckpoint(f"config.json: {kind.__name__.lower()} has no {', '.join(sorted(unknown))}")
    for name, field in fields.items():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values and missing:
            raise BadCheckpoint(f"config.json lacks {keys.get(name, name)}")
    checked = {name: _checked(hints[name], value, keys.get(name, name)) for name, value in values.items()}
    try:
        return kind(**checked)
    except BadInput as error:
        raise BadCheckpoint(f"config.json: {error}") from error


def _checked(hint: Any, value: Any, key: str) -> Any:
    """The value, if it is of the type that a field was declared with (a scalar, a choice, a union or a tuple)."""
    if hint is float and type(value) is int:
        return float(value)
    record = next((x for x in get_args(hint) if isinstance(x, type) and dataclasses.is_dataclass(x)), None)
    if record is not None and isinstance(value, dict):
        return _record(record, value, {})
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_checked(get_args(hint)[0], item, key) for item in value)
    choices = get_args(hint) or (hint,)
    if not any(type(value) is x if isinstance(x, type) else value == x for x in choices):
        wanted = " or ".join(x.__name__ if isinstance(x, type) else repr(x) for x in choices)
        raise BadCheckpoint(f"config.json: {key} must be {wanted}, got {value!r}")
    return value


FAMILY = Family(
    name=MODEL_TYPE,
    recognise=_recognise,
    describe=_describe,
    names=lambda config, keys: NAMES,
    config=_config,
    models="tiny, tiny-ar, and whatever `unmask train` makes",
    source="ours",
    checked="round trips, and the parity of the other families, which run on the same network",
)
