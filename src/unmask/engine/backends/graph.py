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
from unmask.models.backbone import Scene, Transformer
from unmask.nn.quantize import RoundedLinear, int8, rounds
from unmask.nn.rotary import turns

INPUTS = ("tokens", "positions", "slots", "mask", "past_k", "past_v")
"""Of the graph of features: tokens and positions (R, W) int64; slots (R * W,) int64, where the fed positions stand
among the R * T slots of all rows; the mask (R, W, T) bool; keys and values (layers, R, T, K, head_dim), which are
overwritten where something is fed. Keys are summed over in the order of their slots, so that what is cached makes no
difference."""
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


JOINED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
"""Maps of a layer that all take the same numbers."""


class Share(nn.Module):
    """One of several maps of the same numbers that are one product: who is asked first makes it, the others wait.

    Args:
        made: where the parts lie, the same list for all of them.
        index: which part.
        product, sizes: of the first one, the product and how many numbers each part has.
    """

    def __init__(
        self, made: list[Tensor], index: int, product: nn.Module | None = None, sizes: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.product, self.made, self.index, self.sizes = product, made, index, list(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        if self.product is not None:
            self.made[:] = self.product(x).split(self.sizes, dim=-1)
        return self.made[self.index]


def join(model: Transformer) -> Transformer:
    """A `traceable` model, changed: maps of the same numbers are one product, of which each output is what it was.

    Runtimes that start every product by itself are faster so, where rows are few.
    """
    for layer in model.layers:
        for names in JOINED:
            maps = [_module(layer, name) for name in names]
            if (product := _product(maps)) is None:
                continue
            sizes, made = [len(one.weight) for one in maps], list[Tensor]()
            for i, name in enumerate(names):
                above, _, last = name.rpartition(".")
                first = (product, sizes) if i == 0 else ()
                setattr(layer.get_submodule(above), last, Share(made, i, *first))
    return model


def _module(layer: nn.Module, name: str) -> Any:
    above, _, last = name.rpartition(".")
    return getattr(layer.get_submodule(above), last, None)


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
        slots, mask, past: see `INPUTS`.
        group: query heads of a key head; they are looked at as further queries, so that no key is copied.
    """

    def __init__(self, slots: Tensor, mask: Tensor, past: tuple[Tensor, Tensor], group: int) -> None:
        seeing = mask.any(-1)  # a query that sees nothing is let see all, and gets zeros
        self.mask = (mask | ~seeing[..., None])[:, None].repeat(1, 1, group, 1)
        self.seeing = seeing[..., None, None].to(past[0].dtype)
        self.slots, self.group = slots, group
        self.past, self.places = [x.unbind(0) for x in past], past[0].shape[1:3]  # (R, T)
        self.fresh: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(R, W, H, d) and fresh (R, W, K, d) to (R, W, H, d)."""
        self.fresh.append((k, v))
        keys, values = (
            past[layer].flatten(0, 1).index_copy(0, self.slots, new.flatten(0, 1)).unflatten(0, self.places)
            for past, new in zip(self.past, (k, v), strict=True)
        )
        width, heads = q.shape[1], k.shape[2]
        q = q.unflatten(2, (heads, self.group)).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (R, K, group * W, d)
        out = F.scaled_dot_product_attention(q, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=self.mask)
        return out.unflatten(2, (self.group, width)).permute(0, 3, 1, 2, 4).flatten(2, 3) * self.seeing


class Body(nn.Module):
    """Tokens to features, under a mask and over keys and values that are given."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, positions: Tensor, slots: Tensor, mask: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `INPUTS` and `OUTPUTS`."""
        model, shape, turn = self.model, self.model.shape, None
        x = model.embed_tokens(tokens)
        if shape.embedding_scale != 1.0:
            x = x * shape.embedding_scale
        if shape.position == "learned":
            x = x + model.embed_positions(positions)
        else:
            turn = turns(positions, shape.rotary_dim, shape.rope_theta, shape.rope_scaling)
        mixer = Mixer(slots, mask, (past_k, past_v), shape.heads // shape.kv_heads)
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
    past = {1: any_, 2: any_}
    body = (sizes, sizes, {0: any_}, {0: any_, 1: any_, 2: any_}, past, past)
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
    slots = (positions + size * torch.arange(rows)[:, None]).flatten()
    past = torch.zeros(shape.depth, rows, size, shape.kv_heads, shape.head_dim)
    return tokens, positions, slots, torch.ones(rows, width, size, dtype=torch.bool), past, past.clone()
