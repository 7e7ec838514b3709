"""From a plan to an offer: one forward, then a candidate token for every target that may change.

Here, and only here, ratios become probabilities, the mask is taken out of the vocabulary, and a token is drawn. Logits
exist for asked targets alone, a chunk of rows at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from unmask.base import seeds
from unmask.base.denoiser import Cache, Carrier, Denoiser
from unmask.base.errors import Unsupported
from unmask.base.step import Plan, Proposal, State
from unmask.base.vocab import Vocab
from unmask.decode.knobs import Knob, column
from unmask.noise import clock

CHUNK_ELEMENTS = 1 << 24
"""Float64 numbers of one chunk of logits: 128 MiB."""

FEW = 256
"""Tokens that are looked at where top-k or top-p keeps no more."""

EARLIEST = 1e-5
"""The least time that networks with a clock are told, as in published samplers: without noise there are no ratios."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a candidate is drawn from the model's distribution.

    Args:
        t_max, t_min: what logits are divided by, before anything else is made of them, at noise level 1 and at level 0.
        temperature: 0 takes the most probable token; otherwise tokens are drawn from softmax(logits / temperature).
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens that holds this much probability; 1 keeps all. With `top_k`
            what both keep is kept, as in Dream; elsewhere top-p often looks at what top-k has left.
        forbidden: ids that are never proposed; the mask never is.
        no_end_before: canvas position before which no end of text is proposed; infinity makes the length exact.
    """

    t_max: Knob = 1.0
    t_min: Knob = 1.0
    temperature: Knob = 0.0
    top_k: int | Tensor = 0
    top_p: Knob = 1.0
    forbidden: tuple[int, ...] = ()
    no_end_before: Knob = 0


def propose(
    model: Denoiser, plan: Plan, sampling: Sampling, *, cache: Cache | None = None, revise: bool | Tensor = False
) -> Proposal:
    """What the model offers at the targets of a plan.

    Args:
        model: any network.
        plan: what to look at.
        sampling: how to draw.
        cache: keys and values of final positions.
        revise: whether positions that are DONE get an offer too; one answer, or one per row (R,).
    Returns:
        A proposal over (R, T). `log_prob`, `entropy` and `margin` belong to the distribution after top-k and top-p
        at temperature 1, so that a confidence does not depend on the temperature. `mass` comes before all of them.
    Raises:
        Unsupported: a network that says ratios, on noise without a mask.
    """
    ratios = model.traits.says == "score"
    if ratios and model.traits.noise != "absorb":
        raise Unsupported("ratios are read for noise that masks tokens ('absorb') only; this model can't be decoded")
    asked = asked_of(plan, revise)
    features = read(model, plan, cache)
    offer = {
        **{name: plan.standing.clone() for name in ("tokens", "best")},
        **{name: torch.zeros_like(plan.targets, dtype=torch.float64) for name in ("entropy", "margin")},
        **{
            name: torch.full_like(plan.targets, -torch.inf, dtype=torch.float64)
            for name in ("log_prob", "top", "standing", *(["mass"] if ratios else []))
        },
    }
    for rr, ii, logits in said(model, plan, features, asked):
        if ratios:
            offer["mass"][rr, ii] = _mass(logits, model, plan.t[rr].clamp(min=EARLIEST))
        temper(logits, model.vocab, sampling, plan, (rr, ii))
        key = seeds.key(plan.seed[rr], "token", plan.turn[rr, ii], plan.targets[rr, ii])
        if model.traits.carries and cache is not None:
            cast(Carrier, model).carry(logits, cache=cache, rows=plan.rows[rr], positions=plan.targets[rr, ii])
        drawn = _draw(logits, sampling, rows=plan.rows[rr], key=key, now=plan.standing[rr, ii])
        for name, values in drawn.items():
            offer[name][rr, ii] = values
    return Proposal(asked=asked, is_open=asked & (plan.state == State.OPEN), **offer)


def asked_of(plan: Plan, revise: bool | Tensor) -> Tensor:
    """(R, T) bool, the targets that get an offer: those that are OPEN, and DONE ones where `revise`, see `propose`."""
    asked = plan.state == State.OPEN
    if torch.is_tensor(revise):
        asked = asked | ((plan.state == State.DONE) & revise[:, None])
    elif revise:
        asked = asked | (plan.state == State.DONE)
    return asked & (plan.targets >= 0)


def read(model: Denoiser, plan: Plan, cache: Cache | None) -> Tensor:
    """Features (R, W, D) of what a plan feeds."""
    return model.read(
        plan.tokens,
        positions=plan.positions,
        attend=plan.attend,
        t=plan.t.clamp(min=EARLIEST) if model.traits.clock else None,
        cache=cache,
        rows=plan.rows,
        keep=plan.keep,
        slots=None if cache is None else plan.slots,
    )


def said(model: Denoiser, plan: Plan, features: Tensor, asked: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Where (rows and targets, (N,) each), and the float64 logits (N, V) there, a chunk at a time."""
    r, i = asked.nonzero(as_tuple=True)
    source = plan.source[r, i]
    for at in torch.arange(len(r), device=r.device).split(max(1, CHUNK_ELEMENTS // model.vocab.size)):
        rr, ii = r[at], i[at]
        logits = model.head(features[rr, source[at]]).double()
        if model.traits.says == "score":
            logits.scatter_(1, plan.standing[rr, ii, None], 0.0)  # of a token to itself
        yield rr, ii, logits


def temper(logits: Tensor, vocab: Vocab, sampling: Sampling, plan: Plan, at: tuple[Tensor, Tensor]) -> None:
    """Make logits (N, V) of rows and targets (N,), in place, those of the distribution that tokens are taken from."""
    r, i = at
    cool, warm = (column(knob, plan.rows[r])[:, 0] for knob in (sampling.t_min, sampling.t_max))
    logits /= (cool + (warm - cool) * plan.t[r])[:, None]
    _forbid(logits, vocab, sampling, plan.targets[r, i], plan.rows[r])


def _mass(logits: Tensor, model: Denoiser, t: Tensor) -> Tensor:
    """(N,) nats: the clean tokens' log ratios (N, V) to the mask, summed up and scaled to a probability, at times (N,).

    Source: Ou et al. 2024, RADD, arXiv:2406.03736, sec. 3.1: p(clean token) = (e^sigma - 1) x its ratio.
    """
    assert model.vocab.mask is not None
    clean = logits.index_fill(1, torch.tensor([model.vocab.mask], device=logits.device), -torch.inf)
    return clean.logsumexp(-1) + clock.sigma(model.traits, t).expm1().log()


def _forbid(logits: Tensor, vocab: Vocab, sampling: Sampling, positions: Tensor, rows: Tensor) -> None:
    """Take out, in place, what must not be written: the mask, forbidden ids, an end of text that comes too early."""
    logits[:, [*sampling.forbidden, *([] if vocab.mask is None else [vocab.mask])]] = -torch.inf
    early = positions < column(sampling.no_end_before, rows)[:, 0]
    for end in vocab.ends:
        logits[early, end] = -torch.inf


def _draw(logits: Tensor, sampling: Sampling, *, rows: Tensor, key: Tensor, now: Tensor) -> dict[str, Tensor]:
    """Candidates and their statistics from logits (N, V) float64 of canvas rows (N,)."""
    top_k, top_p, temperature = (column(x, rows) for x in (sampling.top_k, sampling.top_p, sampling.temperature))
    found: dict[str, Tensor] = {}
    for few, filtered, part in _parts(logits, top_k, top_p):
        chosen, ids = logits[part], None
        if filtered:
            mass = chosen.logsumexp(-1, keepdim=True)
            ranked = chosen.topk(FEW, dim=-1) if few else chosen.sort(dim=-1, descending=True, stable=True)
            chosen, ids = _filtered(ranked.values, mass, top_k[part], top_p[part]), ranked.indices
        for name, values in _statistics(chosen.log_softmax(-1), ids, temperature[part], key[part], now[part]).items():
            found.setdefault(name, values.new_zeros(len(logits)))[part] = values
    return found


def _parts(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Iterator[tuple[bool, bool, Tensor]]:
    """Rows (N,) by what has to be looked at: (whether the few best tokens do, whether any are taken out, which rows).

    The few do where top-k or top-p keeps none but them: nearly always, and far fewer than all tokens.
    """
    filters = ((top_k > 0) | (top_p < 1))[:, 0]
    inside = torch.zeros_like(filters)
    if logits.shape[1] > FEW and bool(filters.any()):
        best = logits.topk(FEW, dim=-1).values
        held = (best.logsumexp(-1) - logits.logsumexp(-1)).exp()
        kth = best.gather(1, (top_k.long() - 1).clamp(0, best.shape[1] - 1))[:, 0]
        inside = ((top_p < 1)[:, 0] & (held >= top_p[:, 0])) | ((top_k > 0)[:, 0] & (kth > best[:, -1]))
    kinds = ((False, False, ~filters), (True, True, filters & inside), (False, True, filters & ~inside))
    for few, filtered, which in kinds:
        if len(part := which.nonzero()[:, 0]):
            yield few, filtered, part


def _statistics(log_p: Tensor, ids: Tensor | None, temperature: Tensor, key: Tensor, now: Tensor) -> dict[str, Tensor]:
    """What is told of distributions (N, M) over tokens `ids` (N, M), or over all tokens in order."""

    def named(at: Tensor) -> Tensor:
        return at if ids is None else ids.gather(1, at[:, None])[:, 0]

    best = log_p.topk(min(2, log_p.shape[1]), dim=-1)
    at = best.indices[:, 0]
    chance = (temperature[:, 0] > 0).nonzero()[:, 0]
    if len(chance):
        some = None if ids is None else ids[chance]
        at = at.index_copy(0, chance, _race(log_p[chance], some, temperature[chance], key[chance]))
    p = log_p.exp()
    top = best.values.exp()
    if ids is None:
        standing = log_p.gather(1, now[:, None])[:, 0]
    else:
        standing = log_p.masked_fill(ids != now[:, None], -torch.inf).amax(1)
    return {
        "tokens": named(at),
        "log_prob": log_p.gather(1, at[:, None])[:, 0],
        "best": named(best.indices[:, 0]),
        "top": best.values[:, 0],
        "entropy": -torch.where(p > 0, p * log_p, 0.0).sum(-1),
        "margin": top[:, 0] - top[:, -1],
        "standing": standing,
    }


def _race(log_p: Tensor, ids: Tensor | None, temperature: Tensor, key: Tensor) -> Tensor:
    """A place (N,) among M tokens per row, drawn from softmax(log_p / temperature) by the Gumbel-max rule in float64.

    Float32 noise truncates the tail and lowers the temperature without saying so.

    Source: Zheng et al. 2024, arXiv:2409.02908, sec. 4 (precision); Gumbel-max: Maddison et al. 2014, arXiv:1411.0030.
    """
    tokens = torch.arange(log_p.shape[1], device=log_p.device) if ids is None else ids
    numbers = seeds.uniform(seeds.key(key[:, None], "gumbel", tokens))
    gumbel = -torch.log(-torch.log(numbers))
    return (log_p / temperature.clamp(min=1e-6) + gumbel).argmax(-1)


def _filtered(ranked: Tensor, mass: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Falling logits (N, M) with everything outside top-k or top-p at -inf; both look at the distribution as it came.

    `mass` (N, 1) is the logsumexp of all logits, of which these may be the best only.
    """
    p = (ranked - mass).exp()
    beyond = (p.cumsum(-1) - p >= top_p) & (top_p < 1)
    beyond[:, 0] = False
    kth = ranked.gather(1, (top_k.long() - 1).clamp(0, ranked.shape[1] - 1))
    return ranked.masked_fill(beyond | ((ranked < kth) & (top_k > 0)), -torch.inf)
