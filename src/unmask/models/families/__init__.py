"""The families of checkpoints: a new one is one file here and one line in the table.

The first that recognises a checkpoint has it, so those that look at more than `model_type` stand first.
"""

import difflib
from collections.abc import Collection

from unmask.base.errors import Unsupported
from unmask.models.families import (
    bd3lm,
    diffugpt,
    diffusion_gemma,
    dream,
    fast_dllm,
    gpt2,
    llada,
    llada2_moe,
    llada_moe,
    llama,
    mdlm,
    nemotron,
    qwen,
    qwen3_moe,
    radd,
    sdar,
    sdar_moe,
    sedd,
    unmask,
    wedlm,
)
from unmask.models.family import Config, Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        unmask.FAMILY,
        llada.FAMILY,
        llada_moe.FAMILY,
        llada2_moe.FAMILY,
        dream.FAMILY,
        sdar.FAMILY,
        sdar_moe.FAMILY,
        fast_dllm.FAMILY,
        diffugpt.FAMILY,
        diffusion_gemma.FAMILY,
        nemotron.FAMILY,
        wedlm.FAMILY,
        mdlm.FAMILY,
        bd3lm.FAMILY,
        sedd.FAMILY,
        radd.FAMILY,
        gpt2.FAMILY,
        llama.FAMILY,
        qwen.QWEN2,
        qwen.QWEN3,
        qwen3_moe.FAMILY,
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
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else "nothing"
    kind = str(config.get("model_type") or named)
    near = difflib.get_close_matches(kind.lower(), FAMILIES, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}; known" if near else "known"
    raise Unsupported(f"no family for model_type {config.get('model_type')!r}; {hint}: {', '.join(sorted(FAMILIES))}")
