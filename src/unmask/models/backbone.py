"""One pre-norm transformer for every family whose mathematics is a choice among the switches of `Shape`.

It satisfies `unmask.base.denoiser.Denoiser` and runs under any `Attend`. It knows nothing of noise, decoding or files.
"""

import zlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.base import seeds
from unmask.base.attend import Attend
from unmask.base.denoiser import Cache
from unmask.base.errors import BadInput, TooLong, UnknownName, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.nn.attention import BACKENDS, Look, Sight
from unmask.nn.cache import KVCache, Visit
from unmask.nn.mlp import ACTIVATIONS, MLPS
from unmask.nn.moe import Experts, MixtureMLP
from unmask.nn.norm import NORMS, RMSNorm
from unmask.nn.rotary import Scaling, rotate, turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes and switches of a transformer.

    Args:
        vocab_size: rows of the embedding; at least the ids of the vocabulary.
        width: numbers per position in the residual stream.
        depth: layers.
        heads, kv_heads: query heads, and key/value heads (0: as many); kv_heads divides heads.
        head_dim: numbers per head (0: width / heads).
        hidden: inner width of the MLP.
        max_length: positions that one row may have.
        norm, norm_eps: "rms", "layer" or "layer_no_bias", and its epsilon.
        mlp: "gated" or "plain"; activation: "silu", "gelu" or "gelu_tanh".
        position: "rotary", or "learned" (an embedding that is added to that of the tokens).
        rope_theta, rotary_dim: base of the wavelengths, and how many numbers of a head are rotated (0: all).
        rope_scaling: how the wavelengths are stretched for rows longer than those of the first training.
        experts: a mixture of experts in the place of the MLP.
        qk_norm: RMS norm of each query and key head, before the rotation.
        qkv_bias, output_bias, mlp_bias, head_bias: which linear maps have a bias.
        tied: whether the embedding is also the output map.
        embedding_scale: what embeddings are multiplied by.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    hidden: int
    max_length: int
    kv_heads: int = 0
    head_dim: int = 0
    norm: Literal["rms", "layer", "layer_no_bias"] = "rms"
    norm_eps: float = 1e-5
    mlp: Literal["gated", "plain"] = "gated"
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    position: Literal["rotary", "learned"] = "rotary"
    rope_theta: float = 10000.0
    rotary_dim: int = 0
    rope_scaling: Scaling | None = None
    experts: Experts | None = None
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied: bool = True
    embedding_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "heads", "hidden", "max_length"):
            if getattr(self, name) < 1:
                raise BadInput(f"a model needs {name} of at least 1, got {getattr(self, name)}")
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        if not self.head_dim and self.width % self.heads:
            raise BadInput(f"heads must divide width, got {self.heads} and {self.width}; or give head_dim")
        object.__setattr__(self, "head_dim", self.head_dim or self.width // self.heads)
        object.__setattr__(self, "rotary_dim", self.rotary_dim or self.head_dim)
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise BadInput(f"kv_heads must divide heads, got {self.kv_heads} and {self.heads}")
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise BadInput(f"rotary_dim must be even and at most head_dim {self.head_dim}, got {self.rotary_dim}")
        if not 0 < self.rope_theta < float("inf") or not 0 <= self.norm_eps < 1:
            raise BadInput(f"rope_theta and norm_eps must be sensible, got {self.rope_theta} and {self.norm_eps}")
        for kind, table, name in (
            ("norm", NORMS, self.norm),
            ("mlp", MLPS, self.mlp),
            ("activation", ACTIVATIONS, self.activation),
        ):
            if name not in table:
                raise UnknownName(kind, name, table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What all layers of one forward share."""

    look: Look
    turns: tuple[Tensor, Tensor] | None
    visit: Visit | None


class Attention(nn.Module):
    """Projections, rotation and the call to the backend."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        inner, outer = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.width, inner, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.width, outer, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.width, outer, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(inner, shape.width, bias=shape.output_bias)
        if shape.qk_norm:
            self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps)
            self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps)
        self.shape, self.layer = shape, layer

    def forward(self, x: Tensor, scene: Scene) -> Tensor:
        """(R, W, D) to (R, W, D)."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.shape.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.shape.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if scene.turns is not None:
            q, k = rotate(q, *scene.turns), rotate(k, *scene.turns)
        if scene.visit is not None:
            k, v = scene.visit.swap(self.layer, k, v)
        return self.o_proj(scene.look(q, k, v).flatten(-2))


class Layer(nn.Module):
    """Attention, then the MLP, each normed before and added after."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.input_layernorm = NORMS[shape.norm](shape.width, shape.norm_eps)
        self.self_attn = Attention(shape, layer)
        self.post_attention_layernorm = NORMS[shape.norm](shape.width, shape.norm_eps)
        if shape.experts is not None and layer >= shape.experts.dense:
            self.mlp: nn.Module = MixtureMLP(shape.width, shape.experts, shape.activation)
        else:
            self.mlp = MLPS[shape.mlp](shape.width, shape.hidden, shape.activation, bias=shape.mlp_bias)

    def forward(self, x: Tensor, scene: Scene) -> Tensor:
        """(R, W, D) to (R, W, D)."""
        x = x + self.self_attn(self.input_layernorm(x), scene)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """A `Denoiser`.

    Args:
        shape, vocab, traits: what it is, what its ids mean, how to talk to it.
        attention: the backend, a key of `unmask.nn.attention.BACKENDS`.
        seed: keys the initial weights; weights on the meta device are left alone.

    Attributes:
        defaults: decoding defaults that came with a checkpoint, or {}.
        origin: how it lay in the files that it came from, for whoever saves it; None for a fresh one.
    """

    def __init__(self, shape: Shape, vocab: Vocab, traits: Traits, *, attention: str = "sdpa", seed: int = 0) -> None:
        super().__init__()
        if attention not in BACKENDS:
            raise UnknownName("attention backend", attention, BACKENDS)
        if traits.clock:
            raise Unsupported("this transformer takes no time, but its traits say clock")
        if vocab.size > shape.vocab_size:
            raise BadInput(f"the vocabulary has {vocab.size} ids, the embedding only {shape.vocab_size} rows")
        self.shape, self.vocab, self.traits, self.attention = shape, vocab, traits, attention
        self.max_length = shape.max_length
        self.defaults: dict[str, Any] = {}
        self.origin: Any = None
        with torch.random.fork_rng(devices=[]):  # torch's own first weights are thrown away, and so are their draws
            self.embed_tokens = nn.Embedding(shape.vocab_size, shape.width)
            if shape.position == "learned":
                self.embed_positions = nn.Embedding(shape.max_length, shape.width)
            self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.depth))
            self.norm = NORMS[shape.norm](shape.width, shape.norm_eps)
            if not shape.tied:
                self.lm_head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        if shape.head_bias:
            self.head_bias = nn.Parameter(torch.zeros(shape.vocab_size))
        if not self.embed_tokens.weight.is_meta:
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fresh weights, the same for a seed on every device: each tensor draws from a generator of its own.

        Source: 1 / sqrt(2 depth) for what is added to the residual stream: GPT-2, Radford et al. 2019, sec. 2.3.
        """
        for name, weight in self.named_parameters():
            if weight.dim() == 1:
                weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            std = 0.02 if name.startswith("embed_") else weight.shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                std /= (2 * self.shape.depth) ** 0.5
            draw = torch.Generator().manual_seed(int(seeds.key(seed, "init", zlib.crc32(name.encode()))))
            weight.copy_(torch.empty(weight.shape).normal_(0, std, generator=draw))

    @property
    def device(self) -> torch.device:
        """Where its inputs have to be."""
        return self.embed_tokens.weight.device

    def cache(self, rows: int, length: int) -> KVCache:
        """An empty cache for `rows` rows of `length` positions; TooLong beyond `max_length`."""
        self._fits(length)
        s = self.shape
        return KVCache(s.depth, rows, length, s.kv_heads, s.head_dim, like=self.embed_tokens.weight)

    def read(
        self,
        tokens: Tensor,
        *,
        positions: Tensor,
        attend: Attend,
        t: Tensor | None = None,
        cache: Cache | None = None,
        rows: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Features (R, W, D) of every position fed, after the last norm; see `Denoiser.read`. It has no clock."""
        if cache is None:
            return self._read(tokens, positions, self._sight(positions, attend), None)
        assert isinstance(cache, KVCache)
        with torch.no_grad(), cache.visit(positions, rows, keep) as visit:
            sight = Sight(attend=attend, queries=positions.clamp(min=0), size=visit.size, there=visit.there)
            return self._read(tokens, positions, sight, visit)

    def head(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., D)."""
        weight = self.embed_tokens.weight if self.shape.tied else self.lm_head.weight
        return F.linear(features, weight, self.head_bias if self.shape.head_bias else None)

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, attend: Attend | None = None, t: Tensor | None = None
    ) -> Tensor:
        """Logits (B, L, V) of whole rows, under the model's own rule if none is given; TooLong beyond `max_length`."""
        self._fits(tokens.shape[1])
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        attend = Attend.native(self.traits) if attend is None else attend
        return self.head(self.read(tokens, positions=positions, attend=attend, t=t))

    def _sight(self, positions: Tensor, attend: Attend) -> Sight:
        slots = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
        there = positions >= 0
        return Sight(
            attend=attend,
            queries=slots,
            size=positions.shape[1],
            there=None if bool(there.all()) else there,
            aligned=True,
        )

    def _read(self, tokens: Tensor, positions: Tensor, sight: Sight, visit: Visit | None) -> Tensor:
        shape, x, turn = self.shape, self.embed_tokens(tokens), None
        if shape.embedding_scale != 1.0:
            x = x * shape.embedding_scale
        if shape.position == "learned":
            x = x + self.embed_positions(positions.clamp(min=0))
        else:
            turn = turns(positions, shape.rotary_dim, shape.rope_theta, shape.rope_scaling)
        scene = Scene(look=BACKENDS[self.attention](sight), turns=turn, visit=visit)
        for layer in self.layers:
            x = layer(x, scene)
        return self.norm(x)

    def _fits(self, length: int) -> None:
        if length > self.max_length:
            raise TooLong(f"this model holds at most {self.max_length} positions, got {length}")
