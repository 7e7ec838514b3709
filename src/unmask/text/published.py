"""The tokenizer of a published folder as the content of one `tokenizer.json`.

Publishers spread a tokenizer over several files: the pieces in `tokenizer.json` or in `vocab.json` and `merges.txt`,
added tokens and what is special in three more. Here they become one. It does not know models, and runs no code of the
folder.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from unmask.base.errors import BadCheckpoint, Unsupported

FILE, PIECES, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
SETTINGS, SPECIALS, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CLASSES = {"GPT2Tokenizer": None, "Qwen2Tokenizer": _QWEN, "DreamTokenizer": _QWEN}
"""How byte-level BPE without a tokenizer.json cuts a text, by the class that its settings name; None is GPT-2's way.

Source: transformers, models/gpt2 and models/qwen2; Dream's tokenizer is Qwen2's with other special tokens.
"""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that can be read."""
    return (folder / FILE).exists() or ((folder / PIECES).exists() and (folder / MERGES).exists())


def read(folder: Path) -> dict[str, Any]:
    """The tokenizer of a folder.

    Raises:
        BadCheckpoint: a file is missing, torn or contradicts another.
        Unsupported: pieces without a tokenizer.json, of a class that is not in `CLASSES`.
    """
    settings = read_object(folder / SETTINGS)
    given = (folder / FILE).exists() or not has_tokenizer(folder)
    spec = read_spec(folder / FILE) if given else _byte_level(folder, str(settings.get("tokenizer_class")))
    names = special_names(folder)
    spec = spec | {"added_tokens": _added(spec, folder, settings, names)}
    bos = names.get("bos_token")
    if spec.get("post_processor") is None and settings.get("add_bos_token") is True and isinstance(bos, str):
        place = next((token["id"] for token in spec["added_tokens"] if token["content"] == bos), None)
        if place is not None:
            before = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, place)])
            spec = spec | {"post_processor": json.loads(before.__getstate__())}
    return spec


def special_names(folder: Path) -> dict[str, str | list[str]]:
    """What a folder calls its special tokens: `bos_token`, `eos_token` and their like, and lists of further ones."""
    found: dict[str, str | list[str]] = {}
    for told in (read_object(folder / SPECIALS), read_object(folder / SETTINGS)):
        for key, value in told.items():
            if key.endswith("_token") and (name := _content(value)) is not None:
                found[key] = name
            if key.endswith("_special_tokens") and isinstance(value, list | dict):
                found[key] = [name for v in _items(value) if (name := _content(v)) is not None]
    return found


def read_spec(file: Path) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    if not file.exists():
        raise BadCheckpoint(f"no tokenizer at {file}; give a folder with {FILE}, or that file")
    spec = _json(file)
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise BadCheckpoint(f"{file} is JSON but no tokenizer (it has no 'model'); copy it again from where it came")
    return spec


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no such file."""
    value = _json(file) if file.exists() else {}
    if not isinstance(value, dict):
        raise BadCheckpoint(f"{file} must hold one JSON object, got {type(value).__name__}")
    return value


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{file} can't be read as JSON ({error}); copy it again from where it came") from error


def _byte_level(folder: Path, kind: str) -> dict[str, Any]:
    """Byte-level BPE from its pieces and merges."""
    name = kind.removesuffix("Fast")
    if name not in CLASSES:
        raise Unsupported(
            f"{folder} has no {FILE}, and {kind} is not known without it (known: {', '.join(CLASSES)}); "
            f"save it once with a fast tokenizer, which writes {FILE}"
        )
    pattern, pieces = CLASSES[name], read_object(folder / PIECES)
    try:
        lines = (folder / MERGES).read_text(encoding="utf-8").split("\n")
        merges = [(a, b) for a, _, b in (line.rstrip("\r").partition(" ") for line in lines) if b and a != "#version:"]
        inner = tokenizers.Tokenizer(models.BPE(vocab=pieces, merges=merges))
    except Exception as error:  # the library raises nothing narrower
        raise BadCheckpoint(f"{folder}: {PIECES} and {MERGES} make no tokenizer: {error}") from error
    inner.pre_tokenizer = spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        inner.normalizer = normalizers.NFC()
        cut = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([cut, spell])
    inner.decoder = decoders.ByteLevel()
    spec: dict[str, Any] = json.loads(inner.to_str())
    return spec


def _added(
    spec: Mapping[str, Any], folder: Path, settings: Mapping[str, Any], names: Mapping[str, str | list[str]]
) -> list[dict[str, Any]]:
    """Added tokens of all files in the order of their ids; tokenizer.json is right where two contradict."""
    special = {name for value in names.values() for name in ([value] if isinstance(value, str) else value)}
    found = {token["id"]: token for token in spec.get("added_tokens") or []}
    contents = {token["content"] for token in found.values()}
    for number, token in _told(spec, folder, settings, special):
        if number in found:
            same = found[number]["content"] == token["content"]
            found[number] = found[number] | ({"special": True} if same and token["special"] else {})
        elif token["content"] not in contents:
            found[number] = token
            contents.add(token["content"])
    marked = [t | {"special": True} if t["content"] in special else t for t in found.values()]
    return sorted(marked, key=lambda token: token["id"])


def _told(
    spec: Mapping[str, Any], folder: Path, settings: Mapping[str, Any], special: set[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Ids and added tokens that the files beside tokenizer.json tell of."""
    for number, token in _items_of(settings.get("added_tokens_decoder"), folder / SETTINGS):
        content = _content(token)
        if content is None or not isinstance(token, dict) or not number.isdecimal():
            raise BadCheckpoint(f"{folder / SETTINGS}: added_tokens_decoder is not understood at {number!r}")
        yield int(number), {"id": int(number), "content": content, **{f: bool(token.get(f)) for f in _FLAGS}}
    plain = dict.fromkeys(_FLAGS, False)
    for content, number in read_object(folder / ADDED).items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise BadCheckpoint(f"{folder / ADDED}: the id of {content!r} must be a whole number, got {number!r}")
        yield number, {"id": number, "content": content, **plain}
    pieces = spec["model"].get("vocab")
    if isinstance(pieces, dict):
        for content in sorted(special & set(pieces)):
            if len(content) > 2:  # some publishers pad with an ordinary piece like "!"
                yield pieces[content], {"id": pieces[content], "content": content, **plain}


def _items_of(value: Any, file: Path) -> list[tuple[str, Any]]:
    if value is not None and not isinstance(value, dict):
        raise BadCheckpoint(f"{file}: added_tokens_decoder must be an object, got {type(value).__name__}")
    return list((value or {}).items())


def _items(value: list[Any] | dict[str, Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _content(value: Any) -> str | None:
    """The string of a token, which files write as itself or as an object; None for what is neither."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None
