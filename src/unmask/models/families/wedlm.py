"""WeDLM: Qwen2.5 or Qwen3 trained to write in parallel under a causal mask; read here as autoregressive.

Source: Liu et al. 2025, WeDLM (Tencent/WeDLM, paper/wedlm.pdf); layout: `WeDLMForCausalLM` there,
hf_compat/modeling_wedlm.py.

Its own decoder keeps the causal mask and moves masks behind all written tokens, whose positions stay theirs; a masked
row then speaks of its own place. That order of a row is no window of ours yet. A loss on clean text is a part of its
training, so the same weights also write token by token, and that is what the traits say.
"""

from unmask.models.config import Reader, autoregressive, llama_shape
from unmask.models.families import llama
from unmask.models.family import Config, Described, Family


def _describe(config: Config) -> Described:
    read = Reader(config)
    shape = llama_shape(
        read,
        qk_norm=read.flag("qk_norm", False),
        qkv_bias=read.flag("attention_bias", True),
        output_bias=False,
    )
    return autoregressive(read, shape)


FAMILY = Family(
    name="wedlm",
    recognise=lambda config, keys: config.get("model_type") == "wedlm",
    describe=_describe,
    names=llama.names,
    models="WeDLM 7B and 8B, autoregressive only",
    source="Tencent/WeDLM, hf_compat/configuration_wedlm.py and modeling_wedlm.py",
    checked="not compared with published weights; checked through qwen2 and qwen3 (the same networks)",
)
