"""Gemma 4's transformer, read as a causal context and a canvas that sees all of it (DiffusionGemma).

It shares the backbone's contract and outer parts; its layers are other mathematics throughout (norms on both sides, two
kinds of attention with heads of different sizes, an MLP and experts side by side), so they stand here and not as a
dozen switches there. Context and canvas run through the same weights in one forward, apart from one scalar a layer and
from how they are embedded: a canvas position is told what the network said about it the last time (`carry`).

It reads text only, and knows nothing of noise, decoding or files.

Source: DiffusionGemma, Google 2026, as `DiffusionGemmaForBlockDiffusion` of transformers 5.24; self-conditioning: Chen
et al. 2022, arXiv:2208.04202, sec. 3.2, and Strudel et al. 2022, arXiv:2211.04236.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.base.attend import Attend
from unmask.base.denoiser import Cache
from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.models.backbone import Shape, Transformer
from unmask.nn.attention import BACKENDS, Look, Sight
from unmask.nn.cache import KVCache, Visit
from unmask.nn.mlp import ACTIVATIONS, GatedMLP
from unmask.nn.moe import Experts
from unmask.nn.norm import RMSNorm
from unmask.nn.rotary import Scaling, rotate, turns


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaShape(Shape):
    """Sizes; heads, rope_theta and so on are those of the layers with a window.

    Args:
        window: positions back that these layers see, the position itself among them; from a canvas it counts as from
            its first position.
        wide: the layers that see everything.
        wide_kv_heads, wide_head_dim, wide_theta, wide_scaling: theirs. They have no map for values: keys serve as such.
        softcap: logits z become softcap tanh(z / softcap).
    """

    window: int
    wide: tuple[int, ...]
    wide_kv_heads: int
    wide_head_dim: int
    wide_theta: float
    wide_scaling: Scaling | None = None
    softcap: float = 30.0

    def __post_init__(self) -> None:
        Shape.__post_init__(self)
        if self.window < 1 or not self.softcap > 0 or self.experts is None:
            raise BadInput(f"needs a window, a softcap and experts, got {self.window}, {self.softcap}, {self.experts}")
        if (
            self.wide_kv_heads < 1
            or self.heads % self.wide_kv_heads
            or self.wide_head_dim < 2
            or self.wide_head_dim % 2
        ):
            raise BadInput(f"wide layers can't have {self.wide_kv_heads} key heads of {self.wide_head_dim} numbers")

    @property
    def stored(self) -> int:
        """Numbers of keys of one position in the widest layer."""
        return max(self.kv_heads * self.head_dim, self.wide_kv_heads * self.wide_head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What all layers of one kind share in one forward."""

    look: Look
    turns: tuple[Tensor, Tensor]
    visit: Visit | None


class GemmaAttention(nn.Module):
    """Attention over normed queries, keys and values, whose products are not divided by anything."""

    def __init__(self, shape: GemmaShape, layer: int) -> None:
        super().__init__()
        wide = layer in shape.wide
        heads, size = (shape.wide_kv_heads, shape.wide_head_dim) if wide else (shape.kv_heads, shape.head_dim)
        self.q_proj = nn.Linear(shape.width, shape.heads * size, bias=False)
        self.k_proj = nn.Linear(shape.width, heads * size, bias=False)
        if not wide:
            self.v_proj = nn.Linear(shape.width, heads * size, bias=False)
        self.o_proj = nn.Linear(shape.heads * size, shape.width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(size, shape.norm_eps), RMSNorm(size, shape.norm_eps)
        self.shape, self.layer, self.wide, self.size = shape, layer, wide, size

    def forward(self, x: Tensor, view: View) -> Tensor:
        """(R, W, D) to (R, W, D)."""
        q, k = (project(x).unflatten(-1, (-1, self.size)) for project in (self.q_proj, self.k_proj))
        v = k if self.wide else self.v_proj(x).unflatten(-1, (-1, self.size))
        q = rotate(self.q_norm(q), *view.turns) * self.size**0.5  # backends divide by this
        k, v = rotate(self.k_norm(k), *view.turns), unit(v, self.shape.norm_eps)
        if view.visit is not None:
            k, v = self._swap(view.visit, k, v)
        return self.o_proj(view.look(q, k, v).flatten(-2))

    def _swap(self, visit: Visit, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Through a cache whose slots have the width of the widest layer."""
        used = k.shape[-2] * self.size
        k, v = (F.pad(x.flatten(-2), (0, self.shape.stored - used))[..., None, :] for x in (k, v))
        k, v = visit.swap(self.layer, k, v)
        k, v = (x[..., 0, :used].unflatten(-1, (-1, self.size)) for x in (k, v))
        return k, v


class GemmaRouter(nn.Module):
    """Which experts a position gets, and with what weights."""

    def __init__(self, shape: GemmaShape, experts: Experts) -> None:
        super().__init__()
        self.proj = nn.Linear(shape.width, experts.num, bias=False)
        self.scale = nn.Parameter(torch.ones(shape.width))
        self.per_expert_scale = nn.Parameter(torch.ones(experts.num))
        self.eps, self.chosen = shape.norm_eps, experts.chosen

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) to the chosen experts and their weights, (N, chosen) each; the latter in float32 at least."""
        scores = self.proj(unit(x, self.eps) * self.scale * x.shape[-1] ** -0.5)
        best = scores.to(torch.promote_types(x.dtype, torch.float32)).softmax(-1).topk(self.chosen, dim=-1)
        weights = best.values / best.values.sum(-1, keepdim=True)
        return best.indices, weights * self.per_expert_scale[best.indices]


class GemmaExperts(nn.Module):
    """Gated MLPs, stacked, with one map for gate and input."""

    def __init__(self, shape: GemmaShape, experts: Experts) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(experts.num, 2 * experts.hidden, shape.width))
        self.down_proj = nn.Parameter(torch.empty(experts.num, shape.width, experts.hidden))
        self.activation = ACTIVATIONS[shape.activation]

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """(N, D) to the weighted sum (N, D) of the chosen experts."""
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            gate, up = F.linear(x[rows], self.gate_up_proj[expert]).chunk(2, dim=-1)
            said = F.linear(self.activation(gate) * up, self.down_proj[expert])
            out = out.index_add(0, rows, (said * weights[rows, place, None]).to(x.dtype))
        return out


class GemmaLayer(nn.Module):
    """Attention, then MLP and experts side by side; normed before and after, and scaled at last.

    Attributes:
        layer_scalar, context_scalar: (1,) what a position of the canvas, or of the context, is multiplied by.
    """

    def __init__(self, shape: GemmaShape, layer: int) -> None:
        super().__init__()
        assert shape.experts is not None
        norm = partial(RMSNorm, shape.width, shape.norm_eps)
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm_1 = norm(), norm()
        self.pre_feedforward_layernorm_2, self.post_feedforward_layernorm_2 = norm(), norm()
        self.post_feedforward_layernorm = norm()
        self.self_attn = GemmaAttention(shape, layer)
        self.mlp = GatedMLP(shape.width, shape.hidden, shape.activation, bias=False)
        self.router, self.experts = GemmaRouter(shape, shape.experts), GemmaExperts(shape, shape.experts)
        self.layer_scalar, self.context_scalar = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, view: View, canvas: Tensor) -> Tensor:
        """(R, W, D) to (R, W, D); `canvas` (R, W) bool tells it from the context."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), view))
        flat = x.flatten(0, -2)
        mixed = self.experts(self.pre_feedforward_layernorm_2(flat), *self.router(flat)).view_as(x)
        mixed = self.post_feedforward_layernorm_2(mixed)
        mixed = mixed + self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(x)))
        x = x + self.post_feedforward_layernorm(mixed)
        return x * torch.where(canvas[..., None], self.layer_scalar, self.context_scalar)


class SelfConditioning(GatedMLP):
    """Embeddings of a canvas, given the embeddings that were expected there the last time (zeros: nothing known)."""

    def __init__(self, shape: GemmaShape) -> None:
        super().__init__(shape.width, shape.hidden, shape.activation, bias=False)
        self.pre_norm, self.eps = RMSNorm(shape.width, shape.norm_eps), shape.norm_eps

    def forward(self, x: Tensor, soft: Tensor) -> Tensor:  # type: ignore[override]  # stored as an MLP
        """(N, D) each to (N, D)."""
        return unit(x + super().forward(self.pre_norm(soft)), self.eps)


class CanvasCache(KVCache):
    """Keys and values, and beside them what was last expected of the canvas.

    Attributes:
        soft: (B, L, D) expected embeddings; zeros where nothing was said yet.
    """

    soft: Tensor

    def forget(self, rows: Tensor | None = None, start: int = 0) -> None:
        """Free the slots from `start` on, of some rows (R,) or of all."""
        super().forget(rows, start)
        self.soft[slice(None) if rows is None else rows, start:] = 0


class Gemma(Transformer):
    """A `Carrier`. Its arguments are those of `Transformer`."""

    shape: GemmaShape
    FITS: ClassVar[tuple[str, ...]] = ("canvas", "causal", "full", "given")
    first_layer: ClassVar[None] = None  # type: ignore[assignment]  # nothing stale is kept of it, so nobody asks

    def __init__(
        self, shape: GemmaShape, vocab: Vocab, traits: Traits, *, attention: str = "sdpa", seed: int = 0
    ) -> None:
        nn.Module.__init__(self)
        if attention not in BACKENDS:
            raise UnknownName("attention backend", attention, BACKENDS)
        if traits.sees != "context-then-canvas" or (traits.block or 0) < 1 or traits.clock or traits.says != "clean":
            raise BadInput(f"a network of a context and a canvas of 1 position at least can't be used as {traits}")
        if vocab.size > shape.vocab_size:
            raise BadInput(f"the vocabulary has {vocab.size} ids, the embedding only {shape.vocab_size} rows")
        self.shape, self.vocab, self.traits, self.attention = shape, vocab, traits, attention
        self.max_length = shape.max_length
        self.defaults, self.origin = {}, None
        with torch.random.fork_rng(devices=[]):  # torch's own first weights are thrown away, and so are their draws
            self.embed_tokens = nn.Embedding.from_pretrained(torch.empty(shape.vocab_size, shape.width), freeze=False)
            self.self_conditioning = SelfConditioning(shape)
            self.layers = nn.ModuleList(GemmaLayer(shape, i) for i in range(shape.depth))
            self.norm = RMSNorm(shape.width, shape.norm_eps)
        if not self.embed_tokens.weight.is_meta:
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """As in `Transformer`; what is no matrix is a scale here, and 1."""
        super().initialise(seed)
        for weight in self.parameters():
            if weight.dim() == 1:
                weight.fill_(1.0)

    def cache(self, rows: int, length: int, spare: int = 0) -> CanvasCache:
        """An empty cache for `rows` rows of `length` positions and `spare` slots; TooLong beyond `max_length`."""
        self._fits(length)
        weight = self.embed_tokens.weight
        cache = CanvasCache(self.shape.depth, rows, length + spare, 1, self.shape.stored, like=weight)
        cache.soft = weight.new_zeros(rows, length + spare, self.shape.width)
        return cache

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
        """Features (R, W, D) of every position fed, after the last norm; see `Denoiser.read`. It has no clock.

        What stands from `attend.start` on is the canvas; "causal" is all context, "full" all canvas, and a rule that is
        given has its canvas from the first position on that sees one behind it. Without a cache nothing is carried.

        Raises:
            Unsupported: another kind of rule, or a canvas without a start.
        """
        attend = self._split(attend, tokens)
        if cache is None:
            soft = self.embed_tokens.weight.new_zeros(()).expand(*tokens.shape, self.shape.width)
            return self._through(tokens, positions, self._sight(positions, attend), None, soft)
        assert isinstance(cache, CanvasCache)
        slots = positions if slots is None else slots
        with torch.no_grad(), cache.visit(slots, rows, keep) as visit:
            slots = slots.clamp(min=0)
            sight = Sight(attend=attend, queries=slots, size=visit.size, there=visit.there)
            every = torch.arange(len(tokens), device=tokens.device) if rows is None else rows
            return self._through(tokens, positions, sight, visit, cache.soft[every[:, None], slots])

    def head(self, features: Tensor) -> Tensor:
        """Logits (..., V) of features (..., D), in float32 at least."""
        logits = F.linear(features, self.embed_tokens.weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (logits / self.shape.softcap).tanh() * self.shape.softcap

    @torch.no_grad()
    def carry(self, logits: Tensor, *, cache: Cache, rows: Tensor, positions: Tensor) -> None:
        """Remember the embeddings that these logits (N, V) expect at some positions; see `Carrier.carry`."""
        assert isinstance(cache, CanvasCache)
        weight = self.embed_tokens.weight
        expected = logits.to(weight.dtype).float().softmax(-1).to(weight.dtype) @ weight  # rounded as published
        cache.soft[rows, positions] = self._embedded(expected)

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, attend: Attend | None = None, t: Tensor | None = None
    ) -> Tensor:
        """As in `Transformer`; a canvas without a start is the end of the row, `block` positions long."""
        attend = Attend.native(self.traits) if attend is None else attend
        if attend.kind == "canvas" and attend.start is None:
            assert isinstance(attend.block, int)
            attend = replace(attend, start=max(0, tokens.shape[1] - attend.block))
        return super().forward(tokens, positions=positions, attend=attend, t=t)

    def _split(self, attend: Attend, tokens: Tensor) -> Attend:
        """The rule with the start of the canvas (R,) spelt out."""
        if attend.kind not in self.FITS or (attend.kind == "canvas" and attend.start is None):
            raise Unsupported(
                f"this model reads a context and then a canvas, and can't tell them apart under {attend.kind!r}; "
                "give a rule with a start, or 'causal' (all context), or 'full' (all canvas)"
            )
        rows, never = len(tokens), torch.iinfo(torch.int64).max
        match attend.kind:
            case "canvas":
                start = torch.as_tensor(attend.start, device=tokens.device).expand(rows)
            case "given":
                assert attend.given is not None
                ahead = attend.given.triu(1).any(-1)
                start = torch.where(ahead.any(-1), ahead.int().argmax(-1), never)
            case kind:
                start = torch.full((rows,), 0 if kind == "full" else never, device=tokens.device)
        return replace(attend, kind="given" if attend.kind == "given" else "canvas", start=start)

    def _embedded(self, rows: Tensor) -> Tensor:
        """Rows of the embedding, or means of them, scaled; the scale is rounded to their dtype first, as published."""
        return rows * rows.new_tensor(self.shape.embedding_scale)

    def _through(self, tokens: Tensor, positions: Tensor, sight: Sight, visit: Visit | None, soft: Tensor) -> Tensor:
        shape, x = self.shape, self._embedded(self.embed_tokens(tokens))
        assert torch.is_tensor(sight.attend.start)
        canvas = sight.queries >= sight.attend.start[:, None]
        at = canvas.nonzero(as_tuple=True)
        x = x.index_put(at, self.self_conditioning(x[at], soft[at]))
        near = replace(sight, attend=replace(sight.attend, window=shape.window))
        kinds = {
            False: (near, shape.head_dim, shape.rope_theta, shape.rope_scaling),
            True: (sight, shape.wide_head_dim, shape.wide_theta, shape.wide_scaling),
        }
        views = {
            wide: View(look=BACKENDS[self.attention](who), turns=turns(positions, size, theta, scaling), visit=visit)
            for wide, (who, size, theta, scaling) in kinds.items()
        }
        for i, layer in enumerate(self.layers):
            x = layer(x, views[i in shape.wide], canvas)
        return self.norm(x)


def unit(x: Tensor, eps: float) -> Tensor:
    """Each x over its root mean square, along the last axis."""
    return F.rms_norm(x, x.shape[-1:], None, eps)
