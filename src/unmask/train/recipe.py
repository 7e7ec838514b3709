"""A recipe: one YAML file that names a training run, and what is wrong with it when something is.

Every key is known or refused, every value has the type that it says, and nothing is read from anywhere else. The
sections `model` and `objective` take their keys from the classes that they build; a new objective needs no line here.

It does not know how to train; `unmask.train.run` does.
"""

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, create_model

from unmask.base.errors import BadInput, BadRecipe
from unmask.decode.options import OPTIONS
from unmask.models.backbone import Shape
from unmask.objectives import TABLE as OBJECTIVES


class Section(BaseModel):
    """A part of a recipe: no key that it does not know, no value that changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=False)


class TokenizerSection(Section):
    """Where the vocabulary comes from: learned from the data (`size`), or read (`path`)."""

    size: int | None = Field(None, ge=260, description="ids of a byte-level BPE learned from the training text")
    path: str | None = Field(None, description="a folder or file with a tokenizer.json to use instead")


class Source(Section):
    """One place that documents come from."""

    kind: str = Field(description="text, jsonl, parquet or code")
    path: str = Field(description="a file or folder, seen from the folder that the command runs in")
    field: str = Field("text", description="the column or key that holds the text (jsonl, parquet)")


class DataSection(Section):
    """What is read, and how it is cut."""

    sources: tuple[Source, ...] = Field(min_length=1, description="where documents come from")
    length: int = Field(512, ge=2, description="tokens in a row; documents are packed into rows")
    held_out: float = Field(0.01, gt=0, lt=0.5, description="share of documents never trained on, picked by their id")


class OptimizerSection(Section):
    """What turns gradients into steps."""

    name: Literal["muon", "adamw"] = Field(
        "muon", description="muon: hidden matrices by Muon, all else by AdamW; adamw: all by AdamW"
    )
    lr: float = Field(0.003, gt=0, description="peak learning rate, in AdamW's units for both")
    weight_decay: float = Field(0.1, ge=0, description="decoupled decay of matrices and embeddings")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's averages")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's average")


class ScheduleSection(Section):
    """Warm-up, stable, decay: the learning rate as a function of the step."""

    warmup: int = Field(100, ge=0, description="steps from 0 to the peak")
    decay: float = Field(0.2, ge=0, le=1, description="share of all steps, at the end, in which the rate falls")
    decay_start: int | None = Field(None, ge=0, description="the step at which it starts to fall, instead of a share")
    fall: Literal["sqrt", "linear"] = Field("sqrt", description="1 - sqrt(x) or 1 - x over the decay")
    floor: float = Field(0.0, ge=0, le=1, description="share of the peak that is left at the last step")


class TrainSection(Section):
    """The run itself."""

    steps: int = Field(gt=0, description="optimiser steps in all; a finished run goes on when this grows")
    rows: int = Field(16, ge=1, description="rows in the global batch")
    accumulate: int = Field(1, ge=1, description="parts in which the batch goes through the model; changes memory only")
    clip: float = Field(1.0, gt=0, description="the gradient's norm is cut to this")
    ema: float = Field(0.999, ge=0, lt=1, description="average of weights used to evaluate and to ship; 0: none")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; weights stay float32. auto: bfloat16 where the hardware has it"
    )
    seed: int = Field(0, ge=0, description="of the first weights, of the order of rows and of the noise")
    threads: int = Field(0, ge=0, description="CPU threads; 0: as torch finds")
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl and of a piped log")
    save_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep: int = Field(3, ge=1, description="checkpoints kept")
    keep_before_decay: bool = Field(
        True, description="keep the last checkpoint before the rate falls, so that a longer run can start from it"
    )
    evaluate_every: int = Field(500, ge=1, description="steps between held-out bounds")
    evaluate_rows: int = Field(64, ge=1, description="held-out rows in each, always the same, under the same noise")
    sample_every: int = Field(1000, ge=1, description="steps between samples, where a sampler was given")
    patience: int = Field(10, ge=1, description="steps in a row with a non-finite loss or gradient before giving up")
    export: Literal["float32", "bfloat16"] = Field("float32", description="numbers of the model folder's weights")


DecodingSection = create_model(
    "DecodingSection",
    __base__=Section,
    __doc__="How the shipped model decodes where a call says nothing else; null leaves an option to the decoder.",
    decoder=(str | None, Field(None, description="a preset, or window x policy + policy")),
    **{  # type: ignore[call-overload]
        name: (option.kind | None, Field(None, description=f"{option.help} ({option.values})"))
        for name, option in OPTIONS.items()
    },
)


class Recipe(Section):
    """All of a run. `model` has the keys of `Shape` but the vocabulary's, `objective` a name and that class's keys."""

    model: SerializeAsAny[Section] = Field(description="sizes and switches of the network")
    tokenizer: TokenizerSection = Field(description="the vocabulary")
    data: DataSection = Field(description="what is read")
    objective: SerializeAsAny[Section] = Field(description="what is learned")
    optimizer: OptimizerSection = Field(description="what turns gradients into steps")
    schedule: ScheduleSection = Field(description="the learning rate over the steps")
    train: TrainSection = Field(description="the run")
    decoding: SerializeAsAny[Section] = Field(description="decoding defaults of the shipped model")

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """Check a mapping as YAML gives it.

        Raises:
            BadRecipe: an unknown key, a missing one, or a value that does not fit; with its dotted path.
        """
        if not isinstance(raw, Mapping):
            raise BadRecipe(f"a recipe is a mapping of sections ({', '.join(cls.model_fields)}), got {_kind(raw)}")
        for name in raw:
            if name not in cls.model_fields:
                raise BadRecipe(_unknown(str(name), cls.model_fields))
        kinds: dict[str, type[Section]] = {
            "model": _section_of(Shape, ("vocab_size",)),
            "tokenizer": TokenizerSection,
            "data": DataSection,
            "objective": _objective(raw.get("objective")),
            "optimizer": OptimizerSection,
            "schedule": ScheduleSection,
            "train": TrainSection,
            "decoding": DecodingSection,
        }
        raw = {**raw, "model": _with_length(raw.get("model"), raw.get("data"))}
        checked: dict[str, Any] = {name: _check(kind, raw.get(name), name) for name, kind in kinds.items()}
        recipe = cls(**checked)
        _agree(recipe)
        return recipe

    def shape(self, vocab_size: int) -> Shape:
        """The network's sizes for a vocabulary; BadRecipe if they contradict each other."""
        try:
            return Shape(vocab_size=vocab_size, **self.model.model_dump())
        except BadInput as error:
            raise BadRecipe(f"model: {error}") from error

    def build_objective(self) -> Any:
        """The objective that the recipe names; BadRecipe if its values contradict each other."""
        fields = self.objective.model_dump()
        try:
            return OBJECTIVES[fields.pop("name")](**fields)
        except BadInput as error:
            raise BadRecipe(f"objective: {error}") from error

    def as_yaml(self, *, explain: bool = False) -> str:
        """The recipe with every default written out; with `explain`, each key below a comment that says what it is."""
        plain = self.model_dump(mode="json")
        if not explain:
            return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        lines: list[str] = []
        for name, info in type(self).model_fields.items():
            lines += [f"# {info.description}", f"{name}:"]
            for key, about in type(getattr(self, name)).model_fields.items():
                lines += [f"  # {about.description}"] if about.description else []
                lines += ["  " + line for line in yaml.safe_dump({key: plain[name][key]}).rstrip().splitlines()]
        return "\n".join(lines) + "\n"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: a YAML file.
        overrides: "train.steps=100" and the like, applied in order; the value is YAML.
    Raises:
        BadRecipe: the file is missing or is not YAML, or see `Recipe.of`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise BadRecipe(f"no recipe at {path}: {reason}") from error
    raw = _parse(text, str(path))
    try:
        return Recipe.of(override({} if raw is None else raw, overrides))
    except BadRecipe as error:
        raise BadRecipe(f"{path}: {error}") from error.__cause__


def override(recipe: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of a raw recipe with "a.b=value" settings applied; numbers in a path count items of a list."""
    raw: dict[str, Any] = json.loads(json.dumps(recipe, default=str))
    for setting in overrides:
        path, equals, value = setting.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise BadRecipe(f"an override is written section.key=value, got {setting!r}")
        at: Any = raw
        for key in keys[:-1]:
            at = _into(at, key, path)
        if not isinstance(at, dict | list):
            raise BadRecipe(f"{path}: there is nothing to set below it, since it holds {_kind(at)}")
        last: Any = _index(at, keys[-1], path) if isinstance(at, list) else keys[-1]
        at[last] = _parse(value, f"the override {setting!r}")
    return raw


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, in which 1e-3 is a number and no key comes twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [(loader.construct_object(k, deep=True), loader.construct_object(v, deep=True)) for k, v in node.value]
    seen: set[Any] = set()
    for key, _ in pairs:
        if key in seen:
            raise BadRecipe(f"the key {key!r} comes twice (line {node.start_mark.line + 1} and below); keep one")
        seen.add(key)
    return dict(pairs)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _parse(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except BadRecipe as error:
        raise BadRecipe(f"{what}: {error}") from error
    except (yaml.YAMLError, TypeError) as error:
        raise BadRecipe(f"{what} is not YAML: {' '.join(str(error).split())}") from error


def _into(at: Any, key: str, path: str) -> Any:
    if isinstance(at, list):
        return at[_index(at, key, path)]
    if not isinstance(at, dict):
        raise BadRecipe(f"{path}: there is nothing to set below it, since it holds {_kind(at)}")
    if at.get(key) is None:  # a section that the file leaves empty
        at[key] = {}
    return at[key]


def _index(at: list[Any], key: str, path: str) -> int:
    if not key.isdecimal() or int(key) >= len(at):
        raise BadRecipe(f"{path}: expected the number of an item, 0 to {len(at) - 1}, got {key!r}")
    return int(key)


@cache
def _section_of(kind: type, leave: tuple[str, ...] = (), name: str | None = None) -> type[Section]:
    """A section with the fields of a dataclass, so that its keys need no second list."""
    hints = typing.get_type_hints(kind)
    fields: dict[str, Any] = {} if name is None else {"name": (Literal[name], name)}
    for field in dataclasses.fields(kind):
        if field.name in leave or not field.init:
            continue
        default: Any = ...
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        fields[field.name] = (hints[field.name], default)
    return create_model(f"{kind.__name__}Section", __base__=Section, __doc__=kind.__doc__, **fields)


def _objective(raw: Any) -> type[Section]:
    name = raw.get("name") if isinstance(raw, Mapping) else None
    if not isinstance(name, str) or name not in OBJECTIVES:
        came = "nothing" if name is None else repr(name)
        close = difflib.get_close_matches(str(name), OBJECTIVES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise BadRecipe(f"objective.name: expected one of {', '.join(OBJECTIVES)}, got {came}.{hint}")
    return _section_of(OBJECTIVES[name], (), name)


def _with_length(model: Any, data: Any) -> Any:
    """The network holds as many positions as a row has tokens, unless the recipe says more."""
    if not isinstance(model, Mapping) or "max_length" in model:
        return model
    usual = DataSection.model_fields["length"].default
    length = data.get("length", usual) if isinstance(data, Mapping) else usual
    return {**model, "max_length": length} if isinstance(length, int) else model


def _check(kind: type[Section], raw: Any, path: str) -> Section:
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        raise BadRecipe(f"{path}: expected a mapping of {', '.join(kind.model_fields)}, got {_kind(raw)}")
    try:
        return kind.model_validate_json(json.dumps(raw, default=str))  # as JSON, so that a list may be a tuple
    except ValidationError as error:
        raise BadRecipe(_explain(kind, error, path)) from error


def _explain(kind: type[Section], error: ValidationError, path: str) -> str:
    errors = error.errors(include_url=False)
    first = next(
        (e for e in errors if e["type"] == "extra_forbidden"), errors[0]
    )  # a typo is why another key is missing
    where = ".".join([path, *(str(step) for step in first["loc"])])
    if first["type"] == "extra_forbidden":
        return _unknown(where, _fields_at(kind, first["loc"][:-1]))
    if first["type"] == "missing":
        field = _fields_at(kind, first["loc"][:-1]).get(str(first["loc"][-1]))  # None: an item of a list
        return f"{where} is missing" + (f" ({field.description})" if field and field.description else "")
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, got {_kind(first['input'])}"


def _fields_at(kind: type[Section], loc: Sequence[int | str]) -> dict[str, Any]:
    for step in loc:
        if isinstance(step, str) and step in kind.model_fields:
            inner = [a for a in typing.get_args(kind.model_fields[step].annotation) if isinstance(a, type)]
            kind = next((a for a in inner if issubclass(a, Section)), kind)
    return dict(kind.model_fields)


def _unknown(where: str, known: Iterable[str]) -> str:
    key, known = where.rpartition(".")[2], list(known)
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown key {where!r}; known there: {', '.join(known)}.{hint}"


def _kind(value: Any) -> str:
    names = {str: "text", bool: "a switch", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    return "nothing" if value is None else f"{names.get(type(value), type(value).__name__)} ({value!r})"


def _agree(recipe: Recipe) -> None:
    """What no section can see alone."""
    if (recipe.tokenizer.size is None) == (recipe.tokenizer.path is None):
        raise BadRecipe("tokenizer: give either size (to learn one) or path (to read one)")
    room = recipe.model.model_dump()["max_length"]
    if room < recipe.data.length:
        raise BadRecipe(f"model.max_length is {room}, but data.length asks for rows of {recipe.data.length} tokens")
    if recipe.train.rows % recipe.train.accumulate:
        raise BadRecipe(f"train.accumulate must divide train.rows ({recipe.train.rows}), got {recipe.train.accumulate}")
    start = recipe.schedule.decay_start
    if start is not None and start > recipe.train.steps:
        raise BadRecipe(f"schedule.decay_start is {start}, behind the last step, train.steps = {recipe.train.steps}")
    recipe.shape(vocab_size=max(recipe.tokenizer.size or 0, 1))
    recipe.build_objective()
