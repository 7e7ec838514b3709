"""Attention under any `Attend`: one truth in plain torch, and faster backends that must equal it.

A backend looks at a `Sight` once a forward (that is where masks are made) and returns the function that every layer
then calls. Queries that may see nothing get zeros, never NaN, in values and in gradients.

It does not know caches, positions or projections: slots come in, numbers go out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from unmask.base.attend import Attend
from unmask.base.errors import Unsupported

Look = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (R, W, H, d), k and v (R, S, K, d) to (R, W, H, d), with H a multiple of K."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Who sees whom in one forward.

    Args:
        attend: the rule over slots.
        queries: (R, W) the slot of each query.
        size: S, the number of key slots; key j stands in slot j.
        there: (R, S) bool, which key slots hold something; None where all do.
        aligned: whether query i stands in slot i of S = W slots, in every row.
    """

    attend: Attend
    queries: Tensor
    size: int
    there: Tensor | None = None
    aligned: bool = False

    def allows(self, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether query q (its place in the row, not its slot) of row b sees key slot k; broadcasts."""
        seen = self.attend.visible(b, q if self.aligned else self.queries[b, q], k)
        return seen if self.there is None else seen & self.there[b, k]

    def mask(self) -> Tensor:
        """The rule as a tensor (R, W, S) bool; (1, W, S) where all rows are alike."""
        rows, width = self.queries.shape
        rows = 1 if self.aligned and self.attend.uniform and self.there is None else rows
        b, q, k = (torch.arange(n, device=self.queries.device) for n in (rows, width, self.size))
        return self.allows(b[:, None, None], q[:, None], k).expand(rows, width, self.size)

    @property
    def unmasked(self) -> bool:
        """Whether the rule needs no tensor because everybody sees everybody."""
        return self.attend.kind == "full" and self.attend.uniform and self.there is None

    @property
    def triangular(self) -> bool:
        """Whether the rule is the plain lower triangle."""
        return self.aligned and self.attend.kind == "causal" and self.attend.uniform and self.there is None


def _plain(sight: Sight) -> Look:
    """Softmax written out. The truth; slow, and (R, H, W, S) numbers large."""
    hidden = ~sight.mask()[:, None]

    def look(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
        scores = torch.einsum("rqhd,rkhd->rhqk", q, k) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        # The second fill only matters to a query that sees nothing: its softmax is flat, and becomes zero.
        return torch.einsum("rhqk,rkhd->rqhd", scores.softmax(-1).masked_fill(hidden, 0), v)

    return look


def _sdpa(sight: Sight) -> Look:
    """Fused kernels: without a mask where the rule allows it, else with one bool mask for all layers."""
    if sight.unmasked:
        return partial(_fused, mask=None, blind=None, causal=False)
    if sight.triangular:
        return partial(_fused, mask=None, blind=None, causal=True)
    if sight.attend.kind == "two_stream" and sight.aligned:
        return _two_streams(sight.mask(), sight.size // 2)
    return _masked(sight.mask())


def _two_streams(mask: Tensor, length: int) -> Look:
    """As `_masked`, but a quarter cheaper: clean queries never see noisy keys."""
    noisy, clean = _masked(mask[:, :length]), _masked(mask[:, length:, length:])

    def look(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        below = clean(q[:, length:], k[:, length:], v[:, length:])
        return torch.cat([noisy(q[:, :length], k, v), below], dim=1)

    return look


def _masked(mask: Tensor) -> Look:
    if bool(mask.all()):
        return partial(_fused, mask=None, blind=None, causal=False)
    blind = ~mask.any(-1)  # kernels differ in what they make of these: let them see all, and write zeros over it
    if not bool(blind.any()):
        return partial(_fused, mask=mask[:, None], blind=None, causal=False)
    return partial(_fused, mask=(mask | blind[..., None])[:, None], blind=blind[..., None, None], causal=False)


def _fused(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, blind: Tensor | None, causal: bool) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped).transpose(1, 2)
    return out if blind is None else out.masked_fill(blind, 0)


def _flex(sight: Sight) -> Look:
    """FlexAttention: skips what nobody sees. Compiled on a GPU; on a CPU it is a slow check, without gradients."""
    rows, width = sight.queries.shape

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return sight.allows(b, q, k)

    device = sight.queries.device
    slow = device.type == "cpu"
    blocks = create_block_mask(rule, rows, None, width, sight.size, device=str(device))
    kernel = flex_attention if slow else _compiled_flex()

    def look(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if slow and torch.is_grad_enabled() and q.requires_grad:
            raise Unsupported("attention backend 'flex' has no gradients on a CPU; use 'sdpa' there")
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return kernel(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)

    return look


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


BACKENDS: dict[str, Callable[[Sight], Look]] = {"plain": _plain, "sdpa": _sdpa, "flex": _flex}
