"""The families of checkpoints: a new one is one file here and one line in the table.

The first that recognises a checkpoint has it, so those that look at more than `model_type` stand first.
"""

import difflib
from collections.abc import Collection

from unmask.base.errors import Unsupported
from unmask.models.families import dream, gpt2, llada, llama, qwen, sdar, unmask
from unmask.models.family import Config, Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        unmask.FAMILY,
        llada.FAMILY,
        dream.FAMILY,
        sdar.FAMILY,
        gpt2.FAMILY,
        llama.FAMILY,
        qwen.QWEN2,
        qwen.QWEN3,
    )
}


def recognise(config: Config, keys: Collection[str]) -> Family:
    """The family of a checkpoint.

    Args:
        config: its config.json.
        keys: the names of its stored tensors.
    Raises:
        Unsupported: no family has it; the message names the nearest ones.
    """
    for family in FAMILIES.values():
        if family.recognise(config, keys):
            return family
    kind = str(config.get("model_type") or (config.get("architectures") or ["nothing"])[0])
    near = difflib.get_close_matches(kind.lower(), FAMILIES, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}; known" if near else "known"
    raise Unsupported(f"no family for model_type {config.get('model_type')!r}; {hint}: {', '.join(sorted(FAMILIES))}")
