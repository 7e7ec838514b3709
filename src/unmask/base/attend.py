"""Who may look at whom, as data.

`Attend.visible` is the one rule; every attention backend (plain, SDPA, Flex) is built from it and must agree with it.
No (L, L) tensor exists until a backend asks for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from unmask.base.vocab import Traits

Kind = Literal["full", "causal", "blocks", "canvas", "two_stream", "given"]
ALL = 1 << 40
"""A block that every position is in."""
_BLOCKS = {"causal": 1, "full": ALL}
"""Kinds that are one of blocks, with the size of these."""
NOBODY = -1
"""The document id of a slot that no query may see (padding, ABSENT positions)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attend:
    """A rule over slots of a row: query slot q may see key slot k.

    Args:
        kind: "full" everyone; "causal" k <= q; "blocks" block(k) <= block(q); "two_stream" for rows [noisy | clean] of
            2L slots: a noisy block sees itself and the clean blocks before it, a clean block sees clean blocks up to
            itself; "canvas" k <= q before `start`, everyone from there on; "given" the tensor `given`.
        block: tokens a block: an int, or one per row (B,).
        documents: (B, L) document of each slot; only slots of the same document see each other; NOBODY is never seen.
        places: (B, L) place of each slot inside its document, where rows are packed; the slot itself if None.
        given: (B, S, S) bool, True = visible.
        length: L, the slots of one stream, for "two_stream".
        start: the place where the canvas starts: an int, or one per row (B,); for "canvas". A network that is given
            whole rows takes None for the last `block` places.
        window: how many places back a query sees, itself among them; from a canvas it counts as from its start.

    Source: two streams: Arriola et al. 2025, BD3-LM, arXiv:2503.09573, sec. 3 and appendix B.6. Window: Beltagy et al.
    2020, Longformer, arXiv:2004.05150, sec. 3.1; canvas: DiffusionGemma of transformers 5.24.
    """

    kind: Kind = "full"
    block: int | Tensor | None = None
    documents: Tensor | None = None
    places: Tensor | None = None
    given: Tensor | None = None
    length: int | None = None
    start: int | Tensor | None = None
    window: int | None = None

    @classmethod
    def native(cls, traits: Traits) -> Self:
        """The rule under which a model of these traits is meant to run."""
        match traits.sees:
            case "left":
                return cls(kind="causal")
            case "blocks":
                return cls(kind="blocks", block=traits.block)
            case "context-then-canvas":
                return cls(kind="canvas", block=traits.block)
            case _:
                return cls(kind="full")

    @classmethod
    def join(cls, rules: Sequence[tuple["Attend", int]]) -> "Attend":
        """One rule for the rows of several: (rule, its number of rows) each, in order.

        Causal reading is in blocks of one, full reading in a block of all; the rule of a canvas only goes with itself.
        """
        first = rules[0][0]
        if all(rule.uniform and rule == first for rule, _ in rules):
            return first
        field = "start" if first.kind == "canvas" else "block"
        values = [_BLOCKS[rule.kind] if rule.kind in _BLOCKS else getattr(rule, field) for rule, _ in rules]
        assert all((rule.kind == "canvas") == (field == "start") for rule, _ in rules)
        columns = [torch.as_tensor(v).expand(count) for v, (_, count) in zip(values, rules, strict=True)]
        device = next((c.device for c in columns if c.device.type != "cpu"), None)
        joined = torch.cat([column.to(device or "cpu") for column in columns])
        return cls(kind="canvas", start=joined) if field == "start" else cls(kind="blocks", block=joined)

    @property
    def uniform(self) -> bool:
        """Whether all rows share one rule that its kind alone tells (so that a fused kernel may apply)."""
        tensors = (self.documents, self.places, self.given, self.block, self.start)
        return self.window is None and not any(torch.is_tensor(x) for x in tensors)

    def rows(self, index: Tensor) -> Self:
        """The same rule for some rows only."""

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[index]

        def turn(x: int | Tensor | None) -> int | Tensor | None:
            return x[index] if torch.is_tensor(x) else x

        return replace(
            self,
            block=turn(self.block),
            start=turn(self.start),
            documents=pick(self.documents),
            places=pick(self.places),
            given=pick(self.given),
        )

    def visible(self, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether query slot q of row b may see key slot k; index tensors that broadcast, bool of their joint shape."""
        if self.kind == "two_stream":
            assert self.length is not None
            q_clean, k_clean = q >= self.length, k >= self.length
            q, k = q % self.length, k % self.length
        qp, kp = (q, k) if self.places is None else (self.places[b, q], self.places[b, k])
        match self.kind:
            case "full":
                seen = (q == q) & (k == k)
            case "causal":
                seen = kp <= qp
            case "blocks":
                size = self._block(b)
                seen = kp // size <= qp // size
            case "two_stream":
                size = self._block(b)
                qb, kb = qp // size, kp // size
                seen = (
                    (q_clean & k_clean & (kb <= qb))  # clean reads clean, up to its own block
                    | (~q_clean & k_clean & (kb < qb))  # noisy reads the clean blocks before it
                    | (~q_clean & ~k_clean & (kb == qb))  # and itself
                )
            case "canvas":
                seen = (kp <= qp) | (qp >= self._start(b))
            case "given":
                assert self.given is not None
                last = self.given.shape[-1] - 1  # slots that it says nothing of are seen by nobody
                seen = self.given[b, q.clamp(max=last), k.clamp(max=last)] & (k <= last)
        if self.window is not None:
            back = qp if self.start is None else qp.clamp(max=self._start(b))
            seen = seen & (kp > back - self.window)
        if self.documents is not None:
            seen = seen & (self.documents[b, q] == self.documents[b, k]) & (self.documents[b, k] != NOBODY)
        return seen

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        """The rule as a tensor: q (B, Q) and k (B, S) slots to (B, Q, S) bool."""
        b = torch.arange(len(q), device=q.device)[:, None, None]
        return self.visible(b, q[:, :, None], k[:, None, :])

    def _start(self, b: Tensor) -> Tensor:
        assert self.start is not None
        return self.start[b] if torch.is_tensor(self.start) else torch.as_tensor(self.start, device=b.device)

    def _block(self, b: Tensor) -> int | Tensor:
        assert self.block is not None
        return self.block[b] if torch.is_tensor(self.block) else self.block
