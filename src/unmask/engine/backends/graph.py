"""The transformer as two graphs that other runtimes can take over: one for features, one for logits.

They are traced from the modules themselves, with weights as they are, so there is no second network to keep in step.
A graph gets who sees whom as a mask and what is known as keys and values; it knows no cache and no rule.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.base.denoiser import Denoiser
from unmask.base.errors import UnknownName, Unsupported
from unmask.models.backbone import Attention, Scene, Shape, Transformer
from unmask.nn.mlp import GatedMLP
from unmask.nn.quantize import RoundedLinear, int8, rounds
from unmask.nn.rotary import turns

INPUTS = ("tokens", "positions", "slots", "mask", "store_k", "store_v", "places")
"""Of the graph of features: tokens and positions (R, W) int64; slots (R, W) int64, where among the T slots of their row
the fed positions stand; the mask (R, W, T) bool; stores of keys and values (layers, S, K, head_dim); places (R, T)
int64, where in the stores the slots of a row lie. Keys are summed over in the order of their slots, fresh ones in the
place of what lay there, so that what is cached makes no difference."""
OUTPUTS = ("features", "fresh_k", "fresh_v")
"""(R, W, D), and twice (layers, R, W, K, head_dim)."""
HEAD_INPUTS, HEAD_OUTPUTS = ("features",), ("logits",)
"""Of the graph of logits: (N, D) and (N, V)."""


class WholeLinear(nn.Module):
    """A linear map whose rounded weights become floats in one piece, which runtimes know as compressed weights."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        """From (outputs, inputs) int8 and scales (outputs,)."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, None])
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return F.linear(x, self.weight.to(torch.float32) * self.scale, self.bias)


def _loaded(model: Transformer, name: str, module: nn.Module) -> nn.Module | None:
    return WholeLinear(module.weight, module.scale, module.bias) if isinstance(module, RoundedLinear) else None


def _int8(model: Transformer, name: str, module: nn.Module) -> nn.Module | None:
    if type(module) is nn.Linear and rounds(model, f"{name}.weight"):
        return WholeLinear(*int8(module.weight), module.bias)
    return _loaded(model, name, module)


class JoinedAttention(nn.Module):
    """An `Attention` whose queries, keys and values are one product, turned at once: small operations cost their start.

    Args:
        attention: the one in whose place this stands.
        product: its three maps as one.
    """

    def __init__(self, attention: Attention, product: nn.Module) -> None:
        super().__init__()
        self.shape, self.layer, self.product, self.o_proj = attention.shape, attention.layer, product, attention.o_proj
        if self.shape.qk_norm:
            self.q_norm, self.k_norm = attention.q_norm, attention.k_norm

    def forward(self, x: Tensor, scene: Scene) -> Tensor:
        """(R, W, D) to (R, W, D)."""
        shape, mix = self.shape, scene.mix
        assert isinstance(mix, Mixer)
        sizes = [shape.heads, shape.kv_heads, shape.kv_heads]
        qkv = self.product(x).unflatten(-1, (sum(sizes), shape.head_dim))
        if shape.qk_norm:
            q, k, v = qkv.split(sizes, dim=2)
            qkv = torch.cat([self.q_norm(q), self.k_norm(k), v], dim=2)
        if scene.turns is not None:
            qkv = mix.turned(qkv, *scene.turns)
        q, k, v = qkv.split(sizes, dim=2)
        return self.o_proj(mix(self.layer, q, k, v).flatten(-2))


class JoinedMLP(nn.Module):
    """A `GatedMLP` whose gate and upward map are one product."""

    def __init__(self, mlp: GatedMLP, product: nn.Module) -> None:
        super().__init__()
        self.product, self.activation, self.down_proj = product, mlp.activation, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        gate, up = self.product(x).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)


JOINED: tuple[tuple[str, type, tuple[str, ...], Callable[[Any, nn.Module], nn.Module]], ...] = (
    ("self_attn", Attention, ("q_proj", "k_proj", "v_proj"), JoinedAttention),
    ("mlp", GatedMLP, ("gate_proj", "up_proj"), JoinedMLP),
)
"""Parts of a layer, their kind, maps of theirs that take the same numbers, and what has these as one product."""


def join(model: Transformer) -> Transformer:
    """A `traceable` model, changed: maps of the same numbers are one product, of which each output is what it was.

    Runtimes that start every operation by itself are faster so, where rows are few.
    """
    for layer in model.layers:
        for part, kind, names, joined in JOINED:
            one = getattr(layer, part)
            if type(one) is kind and (product := _product([getattr(one, name) for name in names])) is not None:
                setattr(layer, part, joined(one, product))
    return model


def _product(maps: Sequence[Any]) -> nn.Module | None:
    """Maps as one; None where they are not of one kind."""
    kind = type(maps[0])
    if kind not in (nn.Linear, WholeLinear) or any(type(one) is not kind for one in maps):
        return None
    biases = [one.bias for one in maps]
    if any((bias is None) != (biases[0] is None) for bias in biases):
        return None
    weight, bias = torch.cat([one.weight for one in maps]), None if biases[0] is None else torch.cat(biases)
    held = None if bias is None else nn.Parameter(bias)
    if kind is WholeLinear:
        return WholeLinear(weight, torch.cat([one.scale for one in maps])[:, 0], held)
    found = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    found.weight = nn.Parameter(weight)
    found.register_parameter("bias", held)
    return found


PRECISIONS: dict[str, Callable[[Transformer, str, nn.Module], nn.Module | None]] = {"loaded": _loaded, "int8": _int8}
"""What stands in the place of a module (None: itself). "loaded" takes weights as they are; "int8" rounds the maps of
the layers, as `quantize="int8"` does."""


class Mixer:
    """Attention over what is known and what is fresh, which it collects.

    Args:
        slots, mask, stores, places: see `INPUTS`; without places, slot t of row r lies at r * T + t.
        shape: of the model.
    """

    def __init__(
        self, slots: Tensor, mask: Tensor, stores: tuple[Tensor, Tensor], places: Tensor | None, shape: Shape
    ) -> None:
        self.shape, self.group, self.rows = shape, shape.heads // shape.kv_heads, mask.shape[0]
        # Query heads of a key head are looked at as further queries, so that no key is copied. A query that sees
        # nothing is let see all, and gets zeros.
        seeing = mask.any(-1, keepdim=True)
        self.mask = (mask | ~seeing)[:, None].repeat(1, 1, self.group, 1)
        self.seeing = seeing[:, None].repeat(1, 1, self.group, 1).to(stores[0].dtype)
        self.at = (slots + torch.arange(self.rows, device=slots.device)[:, None] * mask.shape[2]).flatten()
        self.places = None
        if places is None:
            self.stores: list[Any] = [store.flatten(-2).unbind(0) for store in stores]
        else:
            starts = torch.arange(shape.depth, device=places.device) * stores[0].shape[1]
            self.stores = [store.flatten(0, 1).flatten(-2) for store in stores]
            self.places = (places.flatten() + starts[:, None]).unbind(0)
        self.wide: list[Tensor] = []
        self.fresh: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(R, W, H, d) and fresh (R, W, K, d) to (R, W, H, d)."""
        self.fresh.append((k, v))
        keys, values = (self._all(store, layer, new) for store, new in zip(self.stores, (k, v), strict=True))
        q = q.unflatten(2, (self.shape.kv_heads, self.group)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (R, K, g * W, d)
        # Scaled here, or a runtime scales all keys.
        q = q * self.shape.head_dim**-0.5
        out = F.scaled_dot_product_attention(
            q, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=self.mask, scale=1.0
        )
        return (out * self.seeing).unflatten(2, (self.group, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)

    def turned(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries and keys turned, values as they are, (R, W, H + 2K, d) all; cosines and sines from `turns`.

        Written as OpenVINO knows it as one operation: cosines of whole heads, parts along axis 3, together along -1.
        """
        shape, size = self.shape, self.shape.rotary_dim
        if not self.wide:  # of all heads; values are turned by no angle
            turning, still = shape.heads + shape.kv_heads, (0, 0, 0, shape.kv_heads)
            halves = [x[..., size // 2 :].repeat(1, 1, turning, 2) for x in (cos, sin)]
            self.wide = [F.pad(x, still, value=at_0) for x, at_0 in zip(halves, (1.0, 0.0), strict=True)]
        x, *rest = qkv.split([size, shape.head_dim - size], dim=3) if size < shape.head_dim else (qkv,)
        first, second = x.split([size // 2, size // 2], dim=3)
        x = x * self.wide[0] + torch.cat([second * -1.0, first], dim=-1) * self.wide[1]
        return torch.cat([x, *rest], dim=3) if rest else x

    def _all(self, store: Any, layer: int, fresh: Tensor) -> Tensor:
        """Keys or values (R, T, K, d) of all slots."""
        found = store[layer] if self.places is None else F.embedding(self.places[layer], store)
        found = found.index_copy(0, self.at, fresh.flatten(0, 1).flatten(-2))
        return found.view(self.rows, -1, self.shape.kv_heads, self.shape.head_dim)


class Body(nn.Module):
    """Tokens to features, under a mask and over keys and values that are given."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        mask: Tensor,
        store_k: Tensor,
        store_v: Tensor,
        places: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `INPUTS`, `OUTPUTS` and `Mixer`."""
        model, shape, turn = self.model, self.model.shape, None
        x = model.embed_tokens(tokens)
        if shape.embedding_scale != 1.0:
            x = x * shape.embedding_scale
        if shape.position == "learned":
            x = x + model.embed_positions(positions)
        else:
            turn = turns(positions, shape.rotary_dim, shape.rope_theta, shape.rope_scaling)
        mixer = Mixer(slots, mask, (store_k, store_v), places, shape)
        scene = Scene(mix=mixer, turns=turn, condition=None)
        for layer in model.layers:
            x = layer(x, scene)
        k, v = zip(*mixer.fresh, strict=True)
        return model.norm(x), torch.stack(k), torch.stack(v)


class Head(nn.Module):
    """Features to logits."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) to (N, V)."""
        return self.model.head(features)


def rounded(model: Transformer) -> bool:
    """Whether weights of a `traceable` model are in 8 bits."""
    return any(isinstance(module, WholeLinear) for module in model.modules())


def closed(model: Denoiser) -> Transformer:
    """The model, if its forward is one fixed graph of tokens, positions, mask, keys and values; else Unsupported."""
    if type(model) is not Transformer:
        raise Unsupported(f"only plain transformers are one graph, not {type(model).__name__}; use backend 'torch'")
    shape = model.shape
    what = {
        "a mixture of experts": shape.experts is not None,
        "its heads split over processes": model.kv_heads != shape.kv_heads,
        "noise as an input": shape.sigma != "none" or model.traits.clock,
    }
    for name, there in what.items():
        if there:
            raise Unsupported(f"a model with {name} is no fixed graph; use backend 'torch'")
    return model


@torch.no_grad()
def traceable(model: Denoiser, precision: str) -> Transformer:
    """The model as it will be traced: its own tensors in modules of their own.

    Args:
        model: on a CPU, in float32.
        precision: a key of `PRECISIONS`.
    Raises:
        UnknownName: no such precision.
        Unsupported: a network whose forward is no fixed graph of tokens, positions, mask, keys and values.
    """
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    model = closed(model)
    what = {
        f"numbers of {model.embed_tokens.weight.dtype}": model.embed_tokens.weight.dtype != torch.float32,
        f"weights on {model.device}": model.device.type != "cpu",
    }
    for name, there in what.items():
        if there:
            raise Unsupported(f"a model with {name} can't leave torch; use backend 'torch'")
    tensors = {id(x): x for x in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, tensors)  # modules are copied, tensors are shared
    for name, module in list(twin.named_modules()):
        other = PRECISIONS[precision](twin, name, module)
        if other is not None:
            above, _, last = name.rpartition(".")
            setattr(twin.get_submodule(above), last, other)
    return twin.eval()


def exported(model: Transformer) -> tuple[torch.export.ExportedProgram, torch.export.ExportedProgram]:
    """The graphs of features and of logits, from a model that is `traceable`; all sizes but its own are open."""
    wide, any_ = torch.zeros(2, model.shape.width), torch.export.Dim.DYNAMIC
    sizes = {0: any_, 1: any_}
    store = {1: any_}
    body = (sizes, sizes, sizes, {0: any_, 1: any_, 2: any_}, store, store, sizes)
    with torch.no_grad():
        return (
            torch.export.export(Body(model), example(model), dynamic_shapes=body),
            torch.export.export(Head(model), (wide,), dynamic_shapes=({0: any_},)),
        )


def example(model: Transformer) -> tuple[Tensor, ...]:
    """Inputs of `Body`, small, no two sizes alike."""
    shape, rows, width, size = model.shape, 2, 3, 8
    tokens = torch.arange(rows * width).view(rows, width) % shape.vocab_size
    positions = torch.arange(width).expand(rows, width).contiguous() % shape.max_length
    store = torch.zeros(shape.depth, rows * size + 1, shape.kv_heads, shape.head_dim)
    places = torch.arange(rows * size).view(rows, size)
    mask = torch.ones(rows, width, size, dtype=torch.bool)
    return tokens, positions, positions.clone(), mask, store, store.clone(), places
