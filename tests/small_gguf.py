"""Tiny GGUF files, written as llama.cpp's converter does, beside the folders that they are made of."""

import json

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from unmask.models.gguf import TENSORS

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "head_dim": "attention.key_length",
}


def publish(folder, name="Llama", **sizes):
    """A folder of transformers with random weights that are far from the first ones; its sizes."""
    sizes = SIZES | sizes
    config = getattr(transformers, f"{name}Config")(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)
    return {"rms_norm_eps": config.rms_norm_eps, "rope_theta": 10000.0, **sizes}


def interleaved(weight, heads):
    """Rows of each head in the order of llama.cpp: convert_hf_to_gguf.py, LlamaModel.permute."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write(path, arch, sizes, weights, kind="F32", told=(), tokens=None, more=()):
    """One file.

    Args:
        path: of the file.
        arch: as GGUF calls it.
        sizes: of config.json.
        weights: tensors by their published names.
        kind: of the matrices; vectors are F32.
        told: further metadata, (name of the writer's method or key, value).
        tokens: metadata of the tokenizer, by key.
        more: further tensors by their own names.
    """
    out = gguf.GGUFWriter(str(path), arch)
    for key, name in KEYS.items():
        if key in sizes:
            out.add_uint32(f"{arch}.{name}", sizes[key])
    out.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", sizes["rms_norm_eps"])
    out.add_float32(f"{arch}.rope.freq_base", sizes["rope_theta"])
    for key, value in dict(told).items():
        add(out, key, value)
    for key, value in (tokens or {}).items():
        add(out, f"tokenizer.{key}", value)
    names = {theirs: ours for ours, theirs in TENSORS.items()}
    for name, value in weights.items():
        parts = name.split(".")
        number = parts[2] if parts[1] == "layers" else ""
        general = ".".join(["model", "layers", "*", *parts[3:-1]]) if number else ".".join(parts[:-1])
        array = value.float().numpy()
        if arch == "llama" and general.endswith(("q_proj", "k_proj")):
            array = interleaved(array, sizes["num_attention_heads" if "q_proj" in general else "num_key_value_heads"])
        put(out, f"{names[general].replace('*', number)}.{parts[-1]}", array, kind if array.ndim == 2 else "F32")
    for name, array in dict(more).items():
        put(out, name, array, "F32")
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def put(out, name, array, kind):
    kind = gguf.GGMLQuantizationType[kind]
    raw = gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind)
    out.add_tensor(name, raw, raw_dtype=kind)


def add(out, key, value):
    match value:
        case bool():
            out.add_bool(key, value)
        case int():
            out.add_uint32(key, value)
        case float():
            out.add_float32(key, value)
        case str():
            out.add_string(key, value)
        case _:
            out.add_array(key, value)


def twin(tmp_path, name="Llama", kind="F32", told=(), tokens=None, more=(), **sizes):
    """A published folder and the GGUF file of the same model."""
    folder, arch = tmp_path / "published", name.lower()
    sizes = publish(folder, name, **sizes)
    weights = load_file(folder / "model.safetensors")
    return folder, write(tmp_path / "model.gguf", arch, sizes, weights, kind, told, tokens, more)


def tokens_of(inner, pre, **more):
    """The metadata of a small byte-level tokenizer of `small_tokenizers`."""
    spec = json.loads(inner.to_str())
    added = {token["content"]: token for token in spec["added_tokens"]}
    vocab = {**spec["model"]["vocab"], **{name: token["id"] for name, token in added.items()}}
    names = sorted(vocab, key=vocab.get)
    kinds = [1 if name not in added else 3 if added[name]["special"] else 4 for name in names]
    return {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": names,
        "ggml.token_type": kinds,
        "ggml.merges": [" ".join(pair) for pair in spec["model"]["merges"]],
        **more,
    }
