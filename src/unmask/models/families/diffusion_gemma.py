"""DiffusionGemma: Gemma 4 with experts, which writes canvases of 256 tokens out of uniform noise.

Its text half is read; the weights of its eyes are kept and saved as they came, and images can't be given to it.

Source: Google 2026; layout: `DiffusionGemmaForBlockDiffusion` of transformers 5.24.
"""

from unmask.base.errors import BadCheckpoint, Unsupported
from unmask.base.vocab import Traits
from unmask.models.config import ACTIVATIONS, Reader, experts, made, rope, vocab
from unmask.models.family import Config, Described, Family
from unmask.models.gemma import Gemma, GemmaShape
from unmask.models.weights import Names

KINDS = ("sliding_attention", "full_attention")
NAMES: Names = {
    "embed_tokens": "model.decoder.embed_tokens",
    "self_conditioning": "model.decoder.self_conditioning",
    "layers.*": "model.decoder.layers.*",
    "layers.*.context_scalar": "model.encoder.language_model.layers.*.layer_scalar",
    "norm": "model.decoder.norm",
    "lm_head": "lm_head",
}
"""Encoder and decoder share their weights, which are stored once, as the decoder's, but for one scalar a layer."""


def _describe(config: Config) -> Described:
    top = Reader(config)
    top.only(tie_word_embeddings=True)
    read = top.inside("text_config")
    read.only(tie_word_embeddings=True, attention_bias=False, use_bidirectional_attention="vision")
    width, depth, heads = (read.whole(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    wide, told = _wide(read, depth), read.inside("rope_parameters")
    wide_kv_heads, wide_head_dim = _wide_heads(read, wide)
    if lacking := [kind for kind in KINDS if kind not in told]:
        raise BadCheckpoint(f"{told.where} lacks {' and '.join(lacking)}")
    (theta, scaling), (wide_theta, wide_scaling) = (
        rope(Reader({"rope_parameters": told.inside(kind).config}, told.where)) for kind in KINDS
    )
    sizes = made(
        read,
        GemmaShape,
        vocab_size=read.whole("vocab_size"),
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=read.whole("num_key_value_heads"),
        head_dim=read.whole("head_dim"),
        hidden=read.whole("intermediate_size"),
        max_length=read.whole("max_position_embeddings"),
        norm_eps=read.real("rms_norm_eps", 1e-6),
        activation=read.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        embedding_scale=width**0.5,
        rope_theta=theta,
        rope_scaling=scaling,
        window=read.whole("sliding_window"),
        wide=wide,
        wide_kv_heads=wide_kv_heads,
        wide_head_dim=wide_head_dim,
        wide_theta=wide_theta,
        wide_scaling=wide_scaling,
        softcap=read.real("final_logit_softcapping", 30.0),
        experts=experts(
            read,
            num=read.whole("num_experts"),
            chosen=read.whole("top_k_experts"),
            hidden=read.whole("moe_intermediate_size"),
            normalise=True,
        ),
    )
    return Described(
        shape=sizes,
        vocab=vocab(read, sizes.vocab_size, mask=None),
        traits=Traits(sees="context-then-canvas", block=top.whole("canvas_length", 256), noise="uniform", carries=True),
        network=Gemma,
        defaults={"decoder": "diffusion-gemma"},
    )


def _wide(read: Reader, depth: int) -> tuple[int, ...]:
    """The layers that see everything."""
    kinds = read.config.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != depth or set(kinds) - set(KINDS):
        raise BadCheckpoint(f"{read.where}: layer_types must name {' or '.join(KINDS)} for each of {depth} layers")
    return tuple(i for i, kind in enumerate(kinds) if kind == KINDS[1])


def _wide_heads(read: Reader, wide: tuple[int, ...]) -> tuple[int, int]:
    """Their key heads, and the numbers of a head: told once, or (in newer files) for each of them."""
    told = read.inside("per_layer_config")
    if not told.config:
        heads = read.whole("num_key_value_heads")
        return read.whole("num_global_key_value_heads", heads), read.whole("global_head_dim", 512)
    usual = {"num_key_value_heads": read.whole("num_key_value_heads"), "head_dim": read.whole("head_dim")}
    found = {tuple(sorted({**usual, **told.inside(str(i)).config}.items())) for i in wide}
    if set(told.config) - {str(i) for i in wide} or len(found) > 1 or any(len(x) != len(usual) for x in found):
        raise Unsupported(f"{told.where} must change the heads of all layers of full_attention alike, and nothing else")
    one = Reader(dict(found.pop()) if found else usual, told.where)
    return one.whole("num_key_value_heads"), one.whole("head_dim")


FAMILY = Family(
    name="diffusion_gemma",
    recognise=lambda config, keys: config.get("model_type") == "diffusion_gemma",
    describe=_describe,
    names=lambda config, keys: NAMES,
    inert=(r"model\.encoder\.(vision_tower|embed_vision)\..+",),
    models="DiffusionGemma 26B-A4B",
    source="transformers, DiffusionGemmaForBlockDiffusion",
    checked="logits of transformers 5.24: context, canvas, both, cached, self-conditioned; text only",
)
