"""GGUF files of Llama and Qwen, read as if they were a published folder.

The header is read here, every count checked against the size of the file before anything is made of it; the `gguf`
package knows what its compressed blocks of numbers stand for. Numbers become floats tensor by tensor, and a few rows at
a time. It knows no tokenizer: what the header tells of one goes on as it came.

Source: ggml-org/ggml, docs/gguf.md (version 3); names, and the order of query and key rows: ggml-org/llama.cpp,
convert_hf_to_gguf.py and gguf-py.
"""

import math
import re
import shlex
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from torch import Tensor

from unmask.base.errors import BadCheckpoint, Unsupported
from unmask.models.config import Reader
from unmask.models.family import Config
from unmask.models.files import Contents, Stored
from unmask.models.weights import some
from unmask.nn.rotary import SCALINGS, Scaling

Kind = gguf.GGMLQuantizationType
SCALARS = ("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?", None, None, "<Q", "<q", "<d")
"""What the types of a value are in `struct`; the two without one are a string and an array."""
STRING, ARRAY, FLOAT32 = 8, 9, 6
ROWS_BYTES = 1 << 18
"""How much of a compressed tensor becomes floats at a time."""
PLAIN = {"F32": torch.float32, "F16": torch.float16, "F64": torch.float64}
KINDS = "kinds"
"""Where the metadata tells how many numbers there are of each kind; no key of a file is called so."""
NEVER = {Kind.I8, Kind.I16, Kind.I32, Kind.I64, Kind.Q8_1, Kind.Q8_K, Kind.Q1_0}
"""Numbers that are no weights, or that the package can't unpack."""

TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.*.attn_norm": "model.layers.*.input_layernorm",
    "blk.*.attn_q": "model.layers.*.self_attn.q_proj",
    "blk.*.attn_k": "model.layers.*.self_attn.k_proj",
    "blk.*.attn_v": "model.layers.*.self_attn.v_proj",
    "blk.*.attn_output": "model.layers.*.self_attn.o_proj",
    "blk.*.attn_q_norm": "model.layers.*.self_attn.q_norm",
    "blk.*.attn_k_norm": "model.layers.*.self_attn.k_norm",
    "blk.*.ffn_norm": "model.layers.*.post_attention_layernorm",
    "blk.*.ffn_gate": "model.layers.*.mlp.gate_proj",
    "blk.*.ffn_up": "model.layers.*.mlp.up_proj",
    "blk.*.ffn_down": "model.layers.*.mlp.down_proj",
}
"""Names of tensors there to published ones; * stands for the number of the layer."""
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
READ = {
    *SIZES.values(),
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.causal"),
    *("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scale_linear"),
    *(f"rope.scaling.{key}" for key in ("type", "factor", "original_context_length", "attn_factor", "finetuned")),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    *("vocab_size", "expert_count", "expert_used_count", "tensor_data_layout"),
}
"""What the header may tell of an architecture; anything else may be mathematics that we don't have."""
STRETCHES = ("rope_freqs.weight", 8192, 1.0, 4.0)
"""Llama 3's stretched wavelengths are a tensor; its numbers tell the factor, and what else there is to know is the same
for all published models: positions of the first training, and two numbers of turns."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in the file: its shape as torch has it, what its numbers are, and where they begin, in bytes."""

    shape: tuple[int, ...]
    kind: Kind
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def num_rows(self) -> int:
        """Rows, all leading sizes taken together."""
        return math.prod(self.shape[:-1])


def contents(path: Path) -> Contents:
    """What is in a file: its config, its tensors under their published names, and its metadata.

    Raises:
        BadCheckpoint: torn, or no GGUF file. Unsupported: another architecture, mathematics or kind of numbers, or one
            part of several.
    """
    try:
        with path.open("rb") as file:
            told, entries = _Header(path, file).read()
    except OSError as error:
        raise BadCheckpoint(f"{path} can't be read: {error.strerror}") from error
    dtype = _dtype(_kinds(entries))
    config = _config(path, told, entries) | {"dtype": str(dtype).removeprefix("torch.")}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors = {}
    for name, entry in entries.items():
        stored = _published(name)
        turned = heads.get(stored.split(".")[-2]) if config["model_type"] == "llama" and "." in stored else None
        if turned and (entry.shape[0] % (2 * turned)):
            raise BadCheckpoint(f"{path}: {name} has {entry.shape[0]} rows, which {turned} heads can't share")
        if name != STRETCHES[0]:
            tensors[stored] = Stored(entry.shape, dtype, partial(_read, path, entry, turned))
    lossy = (
        f"{path.name} is a GGUF file, with names and numbers of its own; to have the model as a published folder: "
        f"unmask models convert-format {shlex.quote(str(path))} FOLDER"
    )
    return Contents(path, config, tensors, lossy, {**told, KINDS: _kinds(entries)})


def _kinds(entries: Mapping[str, Entry]) -> dict[str, int]:
    """How many numbers there are of each kind."""
    found: dict[str, int] = {}
    for entry in entries.values():
        found[entry.kind.name] = found.get(entry.kind.name, 0) + math.prod(entry.shape)
    return found


def _published(name: str) -> str:
    general = re.sub(r"^blk\.(\d+)\.", "blk.*.", name)
    path, _, leaf = general.rpartition(".")
    number = re.match(r"blk\.(\d+)\.", name)
    return f"{TENSORS[path]}.{leaf}".replace("*", number[1] if number else "") if path in TENSORS else name


def _dtype(kinds: Mapping[str, int]) -> torch.dtype:
    """The dtype that all numbers are said to be stored in: that of most of them, or a half one if they are packed."""
    return PLAIN.get(max(kinds, key=lambda kind: kinds[kind], default="F32"), torch.bfloat16)


def _config(path: Path, told: Mapping[str, Any], entries: Mapping[str, Entry]) -> Config:
    """The config.json of the same model."""
    arch = told.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise Unsupported(f"{path}: GGUF files of {arch!r} can't be read; those of {', '.join(ARCHITECTURES)} can")
    if told.get("split.count", 1) not in (0, 1):
        raise Unsupported(f"{path} is one part of {told['split.count']}; merge them first (llama-gguf-split --merge)")
    own = {key.removeprefix(f"{arch}."): value for key, value in told.items() if key.startswith(f"{arch}.")}
    if unknown := sorted(set(own) - READ):
        raise Unsupported(f"{path} asks for what this code does not know: {some([f'{arch}.{key}' for key in unknown])}")
    read = Reader(own, f"{path}: {arch}")
    read.only(**{"attention.causal": True, "expert_count": 0, "expert_used_count": 0})
    if "token_embd.weight" not in entries:
        raise BadCheckpoint(f"{path} has no token_embd.weight; is it only a part of a model?")
    heads = read.whole("attention.head_count")
    config: Config = {"architectures": [ARCHITECTURES[arch]], "model_type": arch}
    config |= {key: read.whole(name) for key, name in SIZES.items()}
    config |= {
        "vocab_size": entries["token_embd.weight"].shape[0],
        "num_key_value_heads": read.whole("attention.head_count_kv", heads),
        "head_dim": read.whole("attention.key_length", config["hidden_size"] // max(heads, 1)),
        "rms_norm_eps": read.real("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in entries,
    }
    for key in ("attention.value_length", "rope.dimension_count"):
        read.only(**{key: config["head_dim"]})
    if arch == "llama":
        config |= {"attention_bias": "blk.0.attn_q.bias" in entries, "mlp_bias": "blk.0.ffn_up.bias" in entries}
    theta = read.real("rope.freq_base", 10000.0)
    config |= {"rope_theta": theta, "rope_scaling": _scaling(path, read, config, theta, entries.get(STRETCHES[0]))}
    return config | _ids(told)


def _ids(told: Mapping[str, Any]) -> Config:
    """Ids with a meaning; what ends a turn ends a text too."""
    ids = {role: told.get(f"tokenizer.ggml.{key}_token_id") for role, key in (("bos", "bos"), ("pad", "padding"))}
    ends: list[Any] = []
    for key in ("eos", "eot", "eom"):
        end = told.get(f"tokenizer.ggml.{key}_token_id")
        ends += [end] if end is not None and end not in ends else []
    told_ends = None if not ends else ends[0] if len(ends) == 1 else ends
    return {"bos_token_id": ids["bos"], "eos_token_id": told_ends, "pad_token_id": ids["pad"]}


def _scaling(path: Path, read: Reader, config: Config, theta: float, freqs: Entry | None) -> dict[str, Any] | None:
    """How wavelengths are stretched, as config.json tells it."""
    if freqs is not None:
        return _stretches(path, config, theta, freqs)
    kind = read.config.get("rope.scaling.type", "linear" if "rope.scale_linear" in read else "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": kind, "factor": read.real("rope.scaling.factor", read.real("rope.scale_linear", 1.0))}
    if kind != "yarn":
        raise Unsupported(f"{path}: wavelengths stretched by {kind!r}; this code does linear and yarn")
    read.only(**{"rope.scaling.attn_factor": (1, 1.0)})
    first = read.whole("rope.scaling.original_context_length", config["max_position_embeddings"])
    found = {"rope_type": kind, "factor": read.real("rope.scaling.factor"), "original_max_position_embeddings": first}
    betas = {key: f"rope.scaling.yarn_{key}" for key in ("beta_fast", "beta_slow")}
    return found | {key: read.real(name) for key, name in betas.items() if name in read}


def _stretches(path: Path, config: Config, theta: float, freqs: Entry) -> dict[str, Any]:
    """Llama 3's stretching, whose factors by frequency are stored; checked against what they must be."""
    name, first, low, high = STRETCHES
    wrong = Unsupported(f"{path}: {name} stretches wavelengths in another way than Llama 3 does")
    if freqs.shape != (config["head_dim"] // 2,):
        raise wrong
    found = _read(path, freqs, None, (), torch.device("cpu"))
    factor = float(found.max())
    scaling = Scaling(kind="llama3", factor=factor, original=first, low=low, high=high)
    powers = torch.arange(len(found), dtype=torch.float32) / len(found)
    if not torch.allclose(theta**-powers / SCALINGS["llama3"](scaling, powers, theta), found, rtol=1e-3):
        raise wrong
    names = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": first}
    return {"rope_type": "llama3", "factor": factor, **names}


def _read(path: Path, entry: Entry, heads: int | None, cut: tuple[slice, ...], device: torch.device) -> Tensor:
    """A part of a tensor, in float32."""
    rows, per = entry.num_rows, max(1, ROWS_BYTES // max(1, entry.row_bytes))
    value = torch.empty(rows, entry.shape[-1])
    try:
        with path.open("rb") as file, np.errstate(all="ignore"):
            file.seek(entry.start)
            for start in range(0, rows, per):
                count = min(per, rows - start)
                raw = np.fromfile(file, np.uint8, count * entry.row_bytes)
                value[start : start + count] = torch.from_numpy(_floats(raw, entry.kind)).view(count, -1)
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path} can't be read: {error}") from error
    value = value.view(entry.shape)
    if heads:
        # Rows of a head: theirs are pairs side by side, as the two numbers of a rotation; ours are all first ones, then
        # all second ones.
        value = value.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(entry.shape)
    return value[cut].to(device)


def _floats(raw: np.ndarray, kind: Kind) -> np.ndarray:
    """Bytes to float32 (numbers,); all blocks in one call, as the package takes them 16 rows at a time."""
    if kind is Kind.F64:
        return raw.view(np.float64).astype(np.float32)
    return dequantize(raw.reshape(1, -1), kind).reshape(-1)


class _Header:
    """The head of a file, value by value; nothing is taken that the rest of the file can't hold."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.at = path, file, 0
        self.size = path.stat().st_size

    def read(self) -> tuple[dict[str, Any], dict[str, Entry]]:
        """All metadata by key, and all tensors by name."""
        if self.take(4) != b"GGUF":
            raise BadCheckpoint(f"{self.path} is no GGUF file: it does not begin with GGUF")
        if (version := self.number("<I")) not in (2, 3):
            raise Unsupported(f"{self.path} is GGUF of version {version}; this code reads versions 2 and 3")
        num_tensors, num_keys = self.number("<Q"), self.number("<Q")
        told: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self.string()
            if key in told:
                raise BadCheckpoint(f"{self.path} repeats {key}")
            told[key] = self.value(self.number("<I"))
        drafts: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(num_tensors):
            name = self.string()
            if name in drafts:
                raise BadCheckpoint(f"{self.path} repeats {name}")
            sizes = tuple(self.number("<Q") for _ in range(min(self.number("<I"), 5)))
            drafts[name] = sizes[::-1], self.number("<I"), self.number("<Q")
        step = told.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(step, int) or step < 1:
            raise BadCheckpoint(f"{self.path}: general.alignment must be a whole number from 1, got {step!r}")
        begin = -(-self.at // step) * step
        return told, {name: self.entry(name, *draft, begin) for name, draft in drafts.items()}

    def entry(self, name: str, shape: tuple[int, ...], kind: int, offset: int, begin: int) -> Entry:
        """A tensor whose numbers are all there."""
        if not 1 <= len(shape) <= 4 or min(shape) < 1:
            raise BadCheckpoint(f"{self.path}: {name} can't have the shape {list(shape)}")
        if kind not in set(Kind) or kind in NEVER:
            raise Unsupported(f"{self.path}: {name} holds numbers of kind {kind}, which can't be read as floats")
        found = Entry(shape, Kind(kind), begin + offset)
        if shape[-1] % gguf.GGML_QUANT_SIZES[found.kind][0]:
            raise BadCheckpoint(
                f"{self.path}: rows of {shape[-1]} numbers can't be packed as {found.kind.name} ({name})"
            )
        if found.start + found.num_rows * found.row_bytes > self.size:
            raise BadCheckpoint(f"{self.path} is torn: {name} would end behind the end of the file")
        return found

    def value(self, kind: int) -> Any:
        """One value of a type."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(self.number("<I"), self.number("<Q"))
        if kind >= len(SCALARS):
            raise BadCheckpoint(f"{self.path} has a value of the unknown type {kind}")
        number = self.number(str(SCALARS[kind]))
        return float(str(np.float32(number))) if kind == FLOAT32 else number

    def array(self, kind: int, length: int) -> list[Any]:
        """Values of one type."""
        if kind == STRING:
            return [self.string() for _ in range(length)]
        if kind >= len(SCALARS) or kind == ARRAY:
            raise BadCheckpoint(f"{self.path} has an array of the unknown type {kind}")
        layout = str(SCALARS[kind])
        raw = self.take(length * struct.calcsize(layout))
        values: list[Any] = np.frombuffer(raw, layout).tolist()
        return values

    def string(self) -> str:
        """Text behind its length."""
        return self.take(self.number("<Q")).decode("utf-8", errors="replace")

    def number(self, layout: str) -> Any:
        """One number."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.size - self.at:
            raise BadCheckpoint(f"{self.path} is torn: its header goes on behind the end of the file")
        self.at += count
        return self.file.read(count)
