"""One pickled file of weights to one safetensors file.

`unmask.models.repack` runs this in a process of its own: even a reader that makes nothing but tensors is long code
against files that may be made to break it. It prints one JSON object: the names that were written, or an error.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WRAPPERS = ("state_dict", "model", "module")
"""Keys under which trainers put the weights, beside what is none."""


class _Refused(Exception):
    """The file holds what is no set of named tensors."""


def main(source: str, target: str) -> None:
    """Convert, and print what came of it."""
    try:
        found = _weights(torch.load(source, map_location="cpu", weights_only=True))
        save_file(_apart(found), target, metadata={"format": "pt"})
        print(json.dumps({"names": list(found)}))
    except _Refused as error:
        print(json.dumps({"error": str(error)}))
    except Exception as error:  # whatever a torn or hostile file makes of the reader
        print(json.dumps({"error": f"it can't be read as tensors alone ({_reason(error)})"}))


def _reason(error: Exception) -> str:
    """What was wrong, without torch's advice on how to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    told = [line for line in lines if "weights_only" not in line] or [lines[0].partition(". ")[0]]
    return told[0].rstrip(".")


def _weights(found: Any) -> dict[str, Tensor]:
    for key in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise _Refused(f"it holds {type(found).__name__}, not tensors by name")
    wrong = [str(key) for key, value in found.items() if not isinstance(key, str) or not torch.is_tensor(value)]
    if wrong:
        raise _Refused(f"it holds things that are no tensors: {', '.join(wrong[:3])}")
    return dict(found)


def _apart(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with memory of its own, as safetensors has it; parameters that were shared become equal copies."""
    seen: set[int] = set()
    own = {}
    for name, value in found.items():
        place = value.untyped_storage().data_ptr()
        own[name] = value.clone(memory_format=torch.contiguous_format) if place in seen else value.contiguous()
        seen.add(place)
    return own


if __name__ == "__main__":
    main(*sys.argv[1:])
