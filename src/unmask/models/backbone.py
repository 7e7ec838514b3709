"""One pre-norm transformer for every family whose mathematics is a choice among the switches of `Shape`.

It satisfies `unmask.base.denoiser.Denoiser` and runs under any `Attend`. Of noise it knows how much of it a network is
told about, and nothing of decoding or files.
"""

import math
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
from unmask.nn.adaln import Condition, Modulation, modulate
from unmask.nn.attention import BACKENDS, Sight
from unmask.nn.cache import KVCache, Visit
from unmask.nn.mlp import ACTIVATIONS, MLPS
from unmask.nn.moe import Experts, MixtureMLP
from unmask.nn.norm import NORMS, RMSNorm
from unmask.nn.pack import Mix, Pack, whole
from unmask.nn.rotary import Scaling, rotate, turns
from unmask.noise import clock

SIGMAS = ("none", "zero", "used")
"""What a network makes of total noise; see `Shape`."""


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
        sigma: "none" the network is not defined over total noise; "zero" it is, but reads 0 whatever it is given (MDLM,
            BD3-LM); "used".
        condition: width of what every layer is told of sigma (adaLN); 0 is nothing.
        scale_by_sigma: whether log(e^sigma - 1) + log(vocab_size - 1) is taken off the logits (SEDD).
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
    sigma: Literal["none", "zero", "used"] = "none"
    condition: int = 0
    scale_by_sigma: bool = False

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
            ("use of sigma", SIGMAS, self.sigma),
        ):
            if name not in table:
                raise UnknownName(kind, name, table)
        if self.condition < 0 or (self.condition > 0 and self.sigma == "none"):
            raise BadInput(f"a condition is made of sigma, got {self.condition} numbers and sigma {self.sigma!r}")
        if self.sigma == "used" and not self.condition:
            raise BadInput("sigma can only be 'used' by a network with a condition")
        if self.scale_by_sigma and self.sigma != "used":
            raise BadInput(f"scale_by_sigma needs sigma 'used', got {self.sigma!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What all layers of one forward share."""

    mix: Mix
    turns: tuple[Tensor, Tensor] | None
    condition: Tensor | None


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
        """(R, W, D) to (R, W, D), or (N, D) to (N, D) where rows are packed."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.shape.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.shape.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if scene.turns is not None:
            heads, every = [q.shape[-2], k.shape[-2]], self.shape.rotary_dim == self.shape.head_dim
            q, k = rotate(torch.cat([q, k], dim=-2), *scene.turns, whole=every).split(heads, dim=-2)  # both at once
        return self.o_proj(scene.mix(self.layer, q, k, v).flatten(-2))


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
        if shape.condition:
            self.modulation = Modulation(shape.condition, shape.width, 6)

    def forward(self, x: Tensor, scene: Scene) -> Tensor:
        """(R, W, D) to (R, W, D)."""
        if scene.condition is None:
            x = x + self.self_attn(self.input_layernorm(x), scene)
            return x + self.mlp(self.post_attention_layernorm(x))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(scene.condition)
        x = x + gate * self.self_attn(modulate(self.input_layernorm(x), shift, scale), scene)
        return x + mlp_gate * self.mlp(modulate(self.post_attention_layernorm(x), mlp_shift, mlp_scale))


class Transformer(nn.Module):
    """A `Denoiser`.

    Args:
        shape, vocab, traits: what it is, what its ids mean, how to talk to it.
        attention: the backend, a key of `unmask.nn.attention.BACKENDS`.
        seed: keys the initial weights; weights on the meta device are left alone.

    Attributes:
        kv_heads: heads whose keys and values its caches hold; fewer than the shape's where it is split over processes.
        defaults: decoding defaults that came with a checkpoint, or {}.
        origin: how it lay in the files that it came from, for whoever saves it; None for a fresh one.
    """

    def __init__(self, shape: Shape, vocab: Vocab, traits: Traits, *, attention: str = "sdpa", seed: int = 0) -> None:
        super().__init__()
        if attention not in BACKENDS:
            raise UnknownName("attention backend", attention, BACKENDS)
        if traits.clock and shape.sigma != "used":
            raise Unsupported("this transformer takes no time, but its traits say clock")
        if shape.sigma == "used" and not (traits.clock and traits.sigmas):
            raise BadInput("a transformer that reads sigma needs traits with a clock and the sigmas of its schedule")
        _ = clock.schedule(traits)
        if traits.carries or traits.sees == "context-then-canvas":
            raise Unsupported("this transformer neither tells a canvas from its context nor carries what it said of it")
        if vocab.size > shape.vocab_size:
            raise BadInput(f"the vocabulary has {vocab.size} ids, the embedding only {shape.vocab_size} rows")
        self.shape, self.vocab, self.traits, self.attention = shape, vocab, traits, attention
        self.max_length, self.kv_heads = shape.max_length, shape.kv_heads
        self.defaults: dict[str, Any] = {}
        self.origin: Any = None
        with torch.random.fork_rng(devices=[]):  # torch's own first weights are thrown away, and so are their draws
            self.embed_tokens = nn.Embedding.from_pretrained(torch.empty(shape.vocab_size, shape.width), freeze=False)
            if shape.position == "learned":
                self.embed_positions = nn.Embedding.from_pretrained(
                    torch.empty(shape.max_length, shape.width), freeze=False
                )
            self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.depth))
            self.norm = NORMS[shape.norm](shape.width, shape.norm_eps)
            if shape.condition:
                self.embed_sigma = Condition(shape.condition)
                self.modulation = Modulation(shape.condition, shape.width, 2)
            if not shape.tied:
                self.lm_head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        if shape.head_bias:
            self.head_bias = nn.Parameter(torch.zeros(shape.vocab_size))
        if not self.embed_tokens.weight.is_meta:
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fresh weights, the same for a seed on every device: each tensor draws from a generator of its own.

        Source: 1 / sqrt(2 depth) for what is added to the residual stream: GPT-2, Radford et al. 2019, sec. 2.3; no
        modulation at first: Peebles, Xie 2022, DiT, arXiv:2212.09748, sec. 3.2.
        """
        for name, weight in self.named_parameters():
            if weight.dim() == 1:
                weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)
                continue
            std = 0.02 if name.startswith("embed_") else weight.shape[-1] ** -0.5
            if name.endswith("modulation.weight"):
                std = 0.0
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                std /= (2 * self.shape.depth) ** 0.5
            draw = torch.Generator().manual_seed(int(seeds.key(seed, "init", zlib.crc32(name.encode()))))
            weight.copy_(torch.empty(weight.shape).normal_(0, std, generator=draw))

    @property
    def device(self) -> torch.device:
        """Where its inputs have to be."""
        return self.embed_tokens.weight.device

    def cache(self, rows: int, length: int, spare: int = 0) -> KVCache:
        """An empty cache for `rows` rows of `length` positions and `spare` slots; TooLong beyond `max_length`."""
        self._fits(length)
        s = self.shape
        return KVCache(s.depth, rows, length + spare, self.kv_heads, s.head_dim, like=self.embed_tokens.weight)

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
        slots: Tensor | None = None,
    ) -> Tensor:
        """Features (R, W, D) of every position fed, after the last norm; see `Denoiser.read`.

        Under `scale_by_sigma` a last number is added to them: what the head takes off.

        Raises:
            BadInput: a network with a clock, and no time.
            Unsupported: a cache for such a network: its keys and values change with the time.
        """
        sigma = None if t is None or not self.traits.clock else clock.sigma(self.traits, t)
        if cache is None:
            return self._read(tokens, positions, self._sight(positions, attend), None, sigma)
        assert isinstance(cache, KVCache)
        if self.traits.clock:
            raise Unsupported("this network takes a time, so no keys and values are final; use the window 'whole'")
        slots = positions if slots is None else slots
        with torch.no_grad(), cache.visit(slots, rows, keep) as visit:
            sight = Sight(attend=attend, queries=slots.clamp(min=0), size=visit.size, there=visit.there)
            return self._read(tokens, positions, sight, visit, sigma)

    def first_layer(self, tokens: Tensor, *, positions: Tensor, attend: Attend) -> Tensor:
        """What the first layer hands to the second, (R, W, D); see `Layered`."""
        return self._read(tokens, positions, self._sight(positions, attend), None, None, depth=1)

    def head(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., D); of networks that say ratios, log ratios to the token that was fed."""
        bias = self.head_bias if self.shape.head_bias else None
        features, offset = (features[..., :-1], features[..., -1:]) if self.shape.scale_by_sigma else (features, None)
        if self.shape.tied or bias is not None:
            weight = self.embed_tokens.weight if self.shape.tied else self.lm_head.weight
            logits = F.linear(features, weight, bias)
        else:
            logits = self.lm_head(features)  # by name, so that it may be split over processes
        return logits if offset is None else logits - offset

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, attend: Attend | None = None, t: Tensor | None = None
    ) -> Tensor:
        """Logits (B, L, V) of whole rows, under the model's own rule if none is given; TooLong beyond `max_length`.

        Networks that say ratios give the log score, which is 0 at the token that was fed.
        """
        positions, attend = self._rows(tokens, positions, attend)
        return self._said(self.read(tokens, positions=positions, attend=attend, t=t), tokens)

    def at(
        self, sigma: Tensor, tokens: Tensor, *, positions: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        """As `forward`, but at total noise sigma (B,) in the place of a time.

        Raises:
            Unsupported: a network that is not defined over it.
        """
        if self.shape.sigma == "none":
            raise Unsupported("this network is not defined over a noise level; leave sigma out")
        positions, attend = self._rows(tokens, positions, attend)
        return self._said(self._read(tokens, positions, self._sight(positions, attend), None, sigma), tokens)

    def _rows(self, tokens: Tensor, positions: Tensor | None, attend: Attend | None) -> tuple[Tensor, Attend]:
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        self._fits(int(positions.max()) + 1 if positions.numel() else 0)
        return positions, Attend.native(self.traits) if attend is None else attend

    def _said(self, features: Tensor, tokens: Tensor) -> Tensor:
        logits = self.head(features)
        return logits.scatter(-1, tokens[..., None], 0.0) if self.traits.says == "score" else logits

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

    def _condition(self, sigma: Tensor | None, rows: int) -> Tensor | None:
        """What layers are told of total noise (R,), which only some networks are given."""
        if self.shape.sigma == "used" and sigma is None:
            raise BadInput("this network reads a noise level and was given none; give sigma (B,), its total noise")
        if not self.shape.condition:
            return None
        if sigma is None or self.shape.sigma == "zero":
            sigma = torch.zeros(rows, device=self.device)
        condition: Tensor = self.embed_sigma(sigma)
        return condition

    def _read(
        self, tokens: Tensor, positions: Tensor, sight: Sight, visit: Visit | None, sigma: Tensor | None, depth: int = 0
    ) -> Tensor:
        shape, turn, backend = self.shape, None, BACKENDS[self.attention]
        ragged = not torch.is_grad_enabled() and bool((positions < 0).any())
        pack = Pack.of(positions, alone=visit is None) if ragged else None
        condition = self._condition(sigma, len(tokens))
        mix = whole(sight, visit, backend) if pack is None else pack.mix(sight, visit, backend)
        if pack is not None:
            tokens, positions = pack.flat(tokens), pack.flat(positions)
        x = self.embed_tokens(tokens)
        if shape.embedding_scale != 1.0:
            x = x * shape.embedding_scale
        if shape.position == "learned":
            x = x + self.embed_positions(positions.clamp(min=0))
        else:
            turn = turns(positions, shape.rotary_dim, shape.rope_theta, shape.rope_scaling)
        if condition is not None:
            condition = condition[:, None] if pack is None else condition[pack.fed[0]]
        scene = Scene(mix=mix, turns=turn, condition=condition)
        for layer in self.layers[:depth] if depth else self.layers:
            x = layer(x, scene)
        if depth:  # as they stand between two layers
            return x if pack is None else pack.back(x)
        x = self.norm(x)
        if condition is not None:
            x = modulate(x, *self.modulation(condition))
        x = x if pack is None else pack.back(x)
        if shape.scale_by_sigma:
            assert sigma is not None
            offset = sigma.double().expm1().log() + math.log(shape.vocab_size - 1)
            x = torch.cat([x, offset.to(x.dtype)[:, None, None].expand(*x.shape[:2], 1)], dim=-1)
        return x

    def _fits(self, length: int) -> None:
        if length > self.max_length:
            raise TooLong(f"this model holds at most {self.max_length} positions, got {length}")
