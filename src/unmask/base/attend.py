"""Who may look at whom, as data.

`Attend.visible` is the one rule; every attention backend (plain, SDPA, Flex) is built from it and must agree with it.
No (L, L) tensor exists until a backend asks for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.base.vocab import Traits

Kind = Literal["full", "causal", "blocks", "canvas", "two_stream", "given"]
ALL = 1 << 40
"""A block that every position is in."""
_BLOCKS = {"causal": 1, "full": ALL}
"""Kinds that are one of blocks, with the size of these."""
NOBODY = -1
"""The document id of a slot that no query may see (padding, ABSENT positions)."""


@dataclass(frozen=True, slots=True)
class Shadows:
    """Slots behind the text for what else might stand at some of its places: other tokens, or a mask.

    Nobody of the text sees them. A shadow sees what its place sees, but for some of the text: instead of that it sees
    shadows of its own lane.

    Args:
        first: (B,) slot of the first one; those of a row stand one after the other.
        places: (B, E) the place that each stands for; NOBODY where none is.
        lanes: (B, E) those of one lane see each other.
        start, stop: (B, E) the places of the text that it does not see.
    """

    first: Tensor
    places: Tensor
    lanes: Tensor
    start: Tensor
    stop: Tensor

    @classmethod
    def join(cls, parts: Sequence[tuple["Shadows | None", int]]) -> "Shadows | None":
        """Those of the rows of several: (shadows, number of rows) each, in order."""
        some = next((part for part, _ in parts if part is not None), None)
        if some is None:
            return None
        width, like = max(part.places.shape[1] for part, _ in parts if part is not None), some.places
        none = cls(like.new_full((1,), ALL), *(like.new_full((1, width), NOBODY) for _ in range(4)))
        columns = []
        for part, count in parts:
            part = none.rows(torch.zeros(count, dtype=torch.int64, device=like.device)) if part is None else part
            more = (0, width - part.places.shape[1])
            wide = (F.pad(x, more, value=NOBODY) for x in (part.places, part.lanes, part.start, part.stop))
            columns.append((part.first, *wide))
        return cls(*(torch.cat(column) for column in zip(*columns, strict=True)))

    def rows(self, index: Tensor) -> Self:
        """Those of some rows only."""
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    def at(self, b: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Whether a slot of row b is a shadow's, and which."""
        which, count = slot - self.first[b], self.places.shape[1]
        return (which >= 0) & (which < count), which.clamp(0, count - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attend:
    """A rule over slots of a row: query slot q may see key slot k.

    Args:
        kind: "full" everyone; "causal" k <= q; "blocks" block(k) <= block(q), or q at `start` or behind it;
            "two_stream" for rows [noisy | clean] of 2L slots: a noisy block sees itself and the clean blocks before it,
            a clean block sees clean blocks up to itself; "canvas" k <= q before `start`, everyone from there on;
            "given" the tensor `given`.
        block: tokens a block: an int, or one per row (B,).
        documents: (B, L) document of each slot; only slots of the same document see each other; NOBODY is never seen.
        places: (B, L) place of each slot inside its document, where rows are packed; the slot itself if None.
        given: (B, S, S) bool, True = visible.
        length: L, the slots of one stream, for "two_stream".
        start: the place where the canvas starts: an int, or one per row (B,); for "canvas". A network that is given
            whole rows takes None for the last `block` places.
        shadows: slots that stand for places of the text beside it.
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
    shadows: Shadows | None = None

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
    def join(cls, rules: Sequence[tuple["Attend", int]], device: torch.device | None = None) -> "Attend":
        """One rule for the rows of several: (rule, its number of rows) each, in order; its tensors are on `device`.

        Causal reading is in blocks of one, full reading in a block of all, and a canvas is what sees all behind causal
        reading.
        """
        first = rules[0][0]
        if all(rule.uniform and rule == first for rule, _ in rules):
            return first

        def column(values: list[int | Tensor]) -> Tensor:
            parts = zip(values, rules, strict=True)
            return torch.cat([torch.as_tensor(value, device=device).expand(count) for value, (_, count) in parts])

        shadows = Shadows.join([(rule.shadows, count) for rule, count in rules])
        starts: list[int | Tensor] = [ALL if rule.start is None else rule.start for rule, _ in rules]
        if all(rule.kind == "canvas" for rule, _ in rules):
            return cls(kind="canvas", start=column(starts), shadows=shadows)
        assert all(rule.kind in ("canvas", "blocks", *_BLOCKS) for rule, _ in rules)
        sizes = [1 if rule.kind == "canvas" else _BLOCKS.get(rule.kind, rule.block) for rule, _ in rules]
        some = any(rule.start is not None for rule, _ in rules)
        block = column([ALL if size is None else size for size in sizes])
        return cls(kind="blocks", block=block, start=column(starts) if some else None, shadows=shadows)

    @property
    def uniform(self) -> bool:
        """Whether all rows share one rule that its kind alone tells (so that a fused kernel may apply)."""
        tensors = (self.documents, self.places, self.given, self.block, self.start)
        return self.window is None and self.shadows is None and not any(torch.is_tensor(x) for x in tensors)

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
            shadows=None if self.shadows is None else self.shadows.rows(index),
        )

    def visible(self, b: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether query slot q of row b may see key slot k; index tensors that broadcast, bool of their joint shape."""
        if self.kind == "two_stream":
            assert self.length is not None
            q_clean, k_clean = q >= self.length, k >= self.length
            q, k = q % self.length, k % self.length
        qp, kp = (q, k) if self.places is None else (self.places[b, q], self.places[b, k])
        beside = self.shadows
        if beside is not None:
            (q_is, q_at), (k_is, k_at) = beside.at(b, q), beside.at(b, k)
            qp, kp = torch.where(q_is, beside.places[b, q_at], qp), torch.where(k_is, beside.places[b, k_at], kp)
        match self.kind:
            case "full":
                seen = (q == q) & (k == k)
            case "causal":
                seen = kp <= qp
            case "blocks":
                size = self._block(b)
                seen = kp // size <= qp // size
                if self.start is not None:
                    seen = seen | (qp >= self._start(b))
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
        if beside is not None:
            together = q_is & (beside.lanes[b, q_at] == beside.lanes[b, k_at])
            shown = ~q_is | (kp < beside.start[b, q_at]) | (kp >= beside.stop[b, q_at])
            seen = seen & torch.where(k_is, together, shown)
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
