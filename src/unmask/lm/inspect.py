"""What a model is, without its weights; and whether all of it is there and sound, with them."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unmask.base.errors import UnmaskError
from unmask.base.vocab import Vocab
from unmask.lm.load import Source, opened, tokenizer_of
from unmask.models import load as checkpoint
from unmask.models.backbone import Transformer
from unmask.models.weights import some
from unmask.nn.quantize import rounds
from unmask.text.published import has_tokenizer

SAMPLE = "def area(r):\n    return 3.14159 * r ** 2  # naïve, 日本語, 🙂\n"
"""A text with letters, digits, white space and what is no ASCII."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, whether it is sound, and what was found."""

    name: str
    ok: bool
    said: str


def facts(source: Source) -> dict[str, Any]:
    """What a model is, from its config and the headers of its files.

    Raises:
        BadCheckpoint, Unsupported: as `unmask.load` would, but for what only the weights can tell.
    """
    found = checkpoint.contents(source.path)
    plan = checkpoint.plan(found.config, found.tensors, str(found.where))
    model, stored = plan.model, found.tensors.values()
    numbers = Counter[str]()
    for tensor in stored:
        numbers[str(tensor.dtype).removeprefix("torch.")] += torch.Size(tensor.shape).numel()
    return {
        "name": source.name,
        "path": str(source.path),
        "family": plan.family.name,
        "architectures": found.config.get("architectures"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "max_length": model.max_length,
        "vocab": asdict(model.vocab),
        "traits": asdict(model.traits),
        "shape": asdict(model.shape),
        "defaults": model.defaults,
        "tokenizer": has_tokenizer(source.path) or found.metadata.get("tokenizer.ggml.model", "none") != "none",
        "stored": found.metadata.get("kinds", dict(numbers)),
        "memory_bytes": memory(model),
        "cache_bytes_per_position": _cache(model),
    }


def memory(model: Transformer) -> dict[str, int]:
    """Bytes of the weights as they can be loaded."""
    sizes = {name: value.shape for name, value in model.named_parameters()}
    total = sum(size.numel() for size in sizes.values())
    small = [size for name, size in sizes.items() if rounds(model, name)]
    packed, scales = sum(size.numel() for size in small), sum(size[:-1].numel() for size in small)
    rest = total - packed
    return {
        "float32": 4 * total,
        "bfloat16": 2 * total,
        "int8, rest float32": packed + 4 * scales + 4 * rest,
        "int8, rest bfloat16": packed + 4 * scales + 2 * rest,
    }


def _cache(model: Transformer) -> int | None:
    """Bytes of keys and values of one position in float32; None for a model without a cache."""
    try:
        cache = model.cache(1, 1)
    except UnmaskError:
        return None
    return 4 * (cache.k.numel() + cache.v.numel()) // cache.k.shape[2]  # a cache may have more slots than positions


def machine() -> dict[str, Any]:
    """What this machine has: bytes of memory that are free, and its GPUs."""
    gpus = []
    for i in range(torch.cuda.device_count()):
        free, _ = torch.cuda.mem_get_info(i)
        gpus.append({"name": torch.cuda.get_device_name(i), "free_bytes": free})
    return {"free_bytes": _free(), "gpus": gpus}


def _free() -> int | None:
    """Bytes of memory that a process can have, within the limit of its container; None where nobody tells."""
    found: list[int] = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        most, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        found += [] if most == "max" else [int(most) - int(used)]
    except (OSError, ValueError):
        pass
    return max(0, min(found)) if found else None


def verify(source: Source, device: str = "cpu") -> Iterator[Check]:
    """Look at every tensor, run a forward, and ask the tokenizer; what can't go on ends the list."""
    steps: list[tuple[str, Callable[[], str]]] = []
    try:
        found = checkpoint.contents(source.path)
        plan = checkpoint.plan(found.config, found.tensors, str(found.where))
    except UnmaskError as error:
        yield Check("layout", False, str(error))
        return
    yield Check("layout", True, f"family {plan.family.name}; {len(found.tensors)} tensors, all there, all shapes right")
    steps = [
        ("numbers", lambda: _finite(found)),
        ("forward", lambda: _forward(source, found, device)),
        ("tokenizer", lambda: _tokenizer(source, found, plan.model.vocab)),
    ]
    for name, look in steps:
        try:
            yield Check(name, True, look())
        except (UnmaskError, _Wrong) as error:
            yield Check(name, False, str(error))


class _Wrong(Exception):
    """What was looked at is not sound."""


def _finite(found: checkpoint.Contents) -> str:
    wrong = []
    for name, tensor in found.tensors.items():
        value = tensor.read((), torch.device("cpu"))
        if value.is_floating_point() and not bool(value.isfinite().all()):
            wrong.append(name)
    if wrong:
        raise _Wrong(f"not finite: {some(wrong)}")
    return "all of them finite"


@torch.inference_mode()
def _forward(source: Source, found: checkpoint.Contents, device: str) -> str:
    model = opened(source, found, device=device).model
    size = (2, min(16, model.max_length))
    tokens = torch.randint(model.vocab.size, size, generator=torch.Generator().manual_seed(0)).to(model.device)
    logits = model(tokens, t=torch.full((2,), 0.5, device=model.device))
    if not bool(logits.isfinite().all()):
        raise _Wrong("logits are not finite")
    return f"logits between {float(logits.min()):.2f} and {float(logits.max()):.2f}"


def _tokenizer(source: Source, found: checkpoint.Contents, vocab: Vocab) -> str:
    tokenizer = tokenizer_of(source, found, vocab)
    if tokenizer is None:
        return "none, so it speaks ids only"
    beyond = {name: special.id for name, special in tokenizer.specials.items() if special.id >= vocab.size}
    if beyond:
        raise _Wrong(f"special tokens beyond the {vocab.size} ids of the model: {beyond}")
    nameless = [role for role in ("mask", "eos", "bos") if f"{role}_token" not in tokenizer.names]
    nameless = [role for role in nameless if getattr(vocab, role) is not None]
    if nameless:
        raise _Wrong(f"config.json names ids that no token has: {', '.join(nameless)}")
    ids = tokenizer.encode(SAMPLE)
    back = tokenizer.decode(ids)
    if tokenizer.byte_level and back != SAMPLE:
        raise _Wrong(f"a text does not survive the round trip: {SAMPLE!r} became {back!r}")
    return f"agrees with the {vocab.size} ids of the model; a sample of {len(SAMPLE)} letters is {len(ids)} tokens"
