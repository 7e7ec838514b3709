"""From a plan to an offer: one forward, then a candidate token for every target that may change.

Here, and only here, ratios become probabilities, the mask is taken out of the vocabulary, and a token is drawn. Logits
exist for asked targets alone, a chunk of rows at a time.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.base import seeds
from unmask.base.attend import NOBODY
from unmask.base.denoiser import Cache, Carrier, Denoiser
from unmask.base.errors import Unsupported
from unmask.base.step import Plan, Proposal, State
from unmask.base.vocab import Vocab
from unmask.decode import nucleus
from unmask.decode.bias import Bias, Biases, add_bias
from unmask.decode.forbid import forbid
from unmask.decode.knobs import Knob, column, count, numbers
from unmask.decode.nucleus import row_sum
from unmask.nn.cache import rounded
from unmask.noise import clock

if TYPE_CHECKING:
    from unmask.decode.control import Control

CHUNK_ELEMENTS = 1 << 24
"""Logits of one call of a model's head; in float64 they are 128 MiB."""

DRAWN_ELEMENTS = {"cpu": 1 << 19}
"""Logits that are drawn from at a time, by kind of device; those of a chunk elsewhere. 4 MiB stay in a core's cache."""

BLOCK = 256
"""Tokens that race together: blocks of the vocabulary first, then the tokens of one block."""

ALL_READS = frozenset({"entropy", "margin"})
"""Statistics that are computed for policies that read them; the others always are."""

NOTHING = -800.0
"""A float64 logarithm whose number is 0, and which times 0 is 0."""

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
        bias: what is added to logits as the network says them, before anything else is made of them.
        top_logprobs: how many of the most probable tokens are told at each target.
        expands, deletes: whether (1) or not (0) the tokens are proposed that say that a position is two, or none.
    """

    t_max: Knob = 1.0
    t_min: Knob = 1.0
    temperature: Knob = 0.0
    top_k: int | Tensor = 0
    top_p: Knob = 1.0
    forbidden: tuple[int, ...] = ()
    no_end_before: Knob = 0
    bias: Bias | Biases = ()
    top_logprobs: int | Tensor = 0
    expands: Knob = 0
    deletes: Knob = 0


def propose(
    model: Denoiser,
    plan: Plan,
    sampling: Sampling,
    *,
    cache: Cache | None = None,
    asked: Tensor | None = None,
    reads: Collection[str] = ALL_READS,
    control: "Control | None" = None,
) -> Proposal:
    """What the model offers at the targets of a plan.

    Args:
        model: any network.
        plan: what to look at.
        sampling: how to draw.
        cache: keys and values of final positions.
        asked: (R, T) bool, the targets that get an offer, see `Decoder.asks`; None is all that are OPEN.
        reads: which of `ALL_READS` to compute.
        control: what constraints say about the targets, if any of them is constrained. All offers are then of what may
            stand there, and the candidates of open targets go together.
    Returns:
        A proposal over (R, T). `log_prob`, `entropy` and `margin` belong to the distribution after top-k and top-p
        at temperature 1, so that a confidence does not depend on the temperature; a bias is part of it, and so is what
        a constraint allows. `mass` comes before all of them. Of equally probable tokens the one with the lowest id is
        the best.
    Raises:
        Unsupported: a network that says ratios, on noise without a mask.
    """
    ratios = model.traits.says == "score"
    if ratios and model.traits.noise != "absorb":
        raise Unsupported("ratios are read for noise that masks tokens ('absorb') only; this model can't be decoded")
    asked = (plan.state == State.OPEN) & (plan.targets >= 0) if asked is None else asked
    asked = asked if control is None else control.asked
    features = read(model, plan, cache)
    offer = {
        **{name: plan.standing.clone() for name in ("tokens", "best")},
        **{name: torch.zeros_like(plan.targets, dtype=torch.float64) for name in reads},
        **{
            name: torch.full_like(plan.targets, -torch.inf, dtype=torch.float64)
            for name in ("log_prob", "top", "standing", *(["mass"] if ratios else []))
        },
    }
    most = int(count(sampling.top_logprobs, plan.rows).max())
    if most:
        shape = (*plan.targets.shape, most)
        offer["ranked"] = torch.zeros(shape, dtype=torch.int64, device=plan.targets.device)
        offer["ranked_log_prob"] = torch.full_like(offer["ranked"], -torch.inf, dtype=torch.float64)
    keys = seeds.key(plan.seed[:, None], "token", plan.turn, plan.targets)
    carries = model.traits.carries and cache is not None
    for rr, ii, logits in said(model, plan, features, asked, at_once=carries):
        rows, targets, standing = plan.rows[rr], plan.targets[rr, ii], plan.standing[rr, ii]
        if ratios:
            offer["mass"][rr, ii] = _mass(logits, model, plan.level[rr, ii].clamp(min=EARLIEST))
        temper(logits, model.vocab, sampling, plan, (rr, ii))
        if control is not None:
            control.bar(rr, ii, logits)
        if carries:
            cast(Carrier, model).carry(logits, cache=cast(Cache, cache), rows=rows, positions=targets)
        limits, warm = (column(sampling.top_k, rows), column(sampling.top_p, rows)), column(sampling.temperature, rows)
        if control is not None:
            warm = control.hear(rr, ii, logits, _limited(logits, *limits), warm)
        wanted = count(sampling.top_logprobs, rows) if most else None
        drawn = _draw(logits, limits, warm, key=keys[rr, ii], now=standing, reads=reads, wanted=wanted, most=most)
        for name, values in drawn.items():
            offer[name][rr, ii] = values
    if control is not None:
        control.choose(offer, plan, column(sampling.temperature, plan.rows[control.at[0]])[:, 0])
    return Proposal(asked=asked, is_open=asked & (plan.state == State.OPEN), **offer)


def read(model: Denoiser, plan: Plan, cache: Cache | None) -> Tensor:
    """Features (R, W, D) of what a plan feeds, and, without a cache, of fillers behind it."""
    plan = plan if cache is not None else _widened(plan)
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


def _widened(plan: Plan) -> Plan:
    """The plan with fillers behind its widest row, so that sums over what is fed run as in any company."""
    more = (0, rounded(plan.positions.shape[1]) - plan.positions.shape[1])
    return replace(
        plan,
        positions=F.pad(plan.positions, more, value=NOBODY),
        tokens=F.pad(plan.tokens, more),
        slots=F.pad(plan.slots, more, value=NOBODY),
        keep=F.pad(plan.keep, more),
    )


def said(
    model: Denoiser, plan: Plan, features: Tensor, asked: Tensor, *, at_once: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Where (rows and targets, (N,) each), and the float64 logits (N, V) there, a part at a time.

    With `at_once` parts are as large as chunks of the head are.
    """
    r, i = asked.nonzero(as_tuple=True)
    source, size = plan.source[r, i], model.vocab.size
    if not len(r):  # a coin may choose nothing
        return
    most = CHUNK_ELEMENTS if at_once else DRAWN_ELEMENTS.get(r.device.type, CHUNK_ELEMENTS)
    for chunk in torch.arange(len(r), device=r.device).split(max(1, CHUNK_ELEMENTS // size)):
        logits = model.head(features[r[chunk], source[chunk]])
        for at, part in zip(chunk.split(max(1, most // size)), logits.split(max(1, most // size)), strict=True):
            rr, ii, logits64 = r[at], i[at], part.double()
            if model.traits.says == "score":
                logits64.scatter_(1, plan.standing[rr, ii, None], 0.0)  # of a token to itself
            yield rr, ii, logits64


def temper(logits: Tensor, vocab: Vocab, sampling: Sampling, plan: Plan, at: tuple[Tensor, Tensor]) -> None:
    """Make logits (N, V) of rows and targets (N,), in place, those of the distribution that tokens are taken from."""
    r, i = at
    rows = plan.rows[r]
    add_bias(sampling.bias, logits, rows)
    cool, warm = numbers(sampling.t_min, rows), numbers(sampling.t_max, rows)
    heat = cool if torch.equal(cool, warm) else cool + (warm - cool) * plan.level[r, i]
    if bool((heat != 1).any()):
        logits /= heat[:, None]
    forbid(logits, vocab, sampling, plan.targets[r, i], rows)


def _mass(logits: Tensor, model: Denoiser, t: Tensor) -> Tensor:
    """(N,) nats: the clean tokens' log ratios (N, V) to the mask, summed up and scaled to a probability, at times (N,).

    Source: Ou et al. 2024, RADD, arXiv:2406.03736, sec. 3.1: p(clean token) = (e^sigma - 1) x its ratio.
    """
    assert model.vocab.mask is not None
    clean = logits.index_fill(1, torch.tensor([model.vocab.mask], device=logits.device), -torch.inf)
    return _log_sum(clean) + clock.sigma(model.traits, t).expm1().log()


def _draw(
    logits: Tensor,
    limits: tuple[Tensor, Tensor],
    temperature: Tensor,
    *,
    key: Tensor,
    now: Tensor,
    reads: Collection[str],
    wanted: Tensor | None,
    most: int,
) -> dict[str, Tensor]:
    """Candidates and their statistics from logits (N, V) float64, given top-k and top-p; the logits are used up.

    `wanted` (N,) is how many of the most probable tokens each wants to know of, of which `most` are told; None where
    none does.
    """
    found: dict[str, Tensor] = {}
    for part, chosen, ids in _parts(logits, *limits):
        ranks = None if wanted is None else _ranks(chosen, ids, wanted[part], most)
        told = _statistics(chosen, ids, temperature[part], key[part], now[part], reads, ranks)
        if len(part) == len(logits):
            return told
        for name, values in told.items():
            found.setdefault(name, values.new_zeros(len(logits), *values.shape[1:]))[part] = values
    return found


def _parts(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Rows (N,), what is kept of their logits (N, M), and of which tokens these are; None stands for all, in order."""
    filters = ((top_k > 0) | (top_p < 1))[:, 0]
    some, rest = filters.nonzero()[:, 0], (~filters).nonzero()[:, 0]
    if len(some):
        for part, chosen, ids in nucleus.kept(logits[some] if len(rest) else logits, top_k[some], top_p[some]):
            yield some[part], chosen, ids
    if len(rest):
        yield rest, logits[rest] if len(some) else logits, None


def _limited(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Logits (N, V) with all that top-k or top-p take out at -inf."""
    if not bool(((top_k > 0) | (top_p < 1)).any()):
        return logits
    return logits.masked_fill(nucleus.outside(logits, top_k, top_p), -torch.inf)


def _ranks(logits: Tensor, ids: Tensor | None, wanted: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The best tokens of logits as `_parts` gives them, and their logits, (N, `most`) each; equal ones by rising id.

    `wanted` (N,) is how many of them each row wants; what is behind is at -inf. Nothing is looked at for rows of none.
    """
    tokens = torch.zeros(len(logits), most, dtype=torch.int64, device=logits.device)
    values = torch.full_like(tokens, -torch.inf, dtype=logits.dtype)
    some = wanted.nonzero()[:, 0]
    size = min(most, logits.shape[1])
    if len(some):
        best, at = nucleus.first(logits[some], size)
        beyond = torch.arange(size, device=logits.device) >= wanted[some, None]
        tokens[some, :size] = at if ids is None else ids[some].gather(1, at)
        values[some, :size] = best.masked_fill(beyond, -torch.inf)
    return tokens, values


def _statistics(
    logits: Tensor,
    ids: Tensor | None,
    temperature: Tensor,
    key: Tensor,
    now: Tensor,
    reads: Collection[str],
    ranks: tuple[Tensor, Tensor] | None,
) -> dict[str, Tensor]:
    """What is told of logits (N, M) of tokens `ids` (N, M), or of all tokens in order; the logits are used up.

    `ranks` are the best tokens and their logits, where somebody wants to know of them.
    """

    def named(at: Tensor) -> Tensor:
        return at if ids is None else ids.gather(1, at[:, None])[:, 0]

    highest, best = logits.max(-1)  # of equal ones the first
    below, at = logits.sub_(highest[:, None]), best
    weight = below.exp()
    chance = (temperature[:, 0] > 0).nonzero()[:, 0]
    if len(chance):
        raced = (below, weight, ids)
        if len(chance) < len(best):
            raced = (below[chance], weight[chance], None if ids is None else ids[chance])
        at = best.index_copy(0, chance, _drawn(*raced, temperature[chance], key[chance]))
    candidate = below.gather(1, at[:, None])[:, 0]
    if ids is None:
        standing = below.gather(1, now[:, None])[:, 0]
    else:
        standing = below.masked_fill(ids != now[:, None], -torch.inf).amax(1)
    told: dict[str, Tensor] = {}
    if "margin" in reads:
        second = below.topk(min(2, below.shape[1]), dim=-1).values[:, -1]
    total = row_sum(weight)
    mass = total.log()
    if "entropy" in reads:
        told["entropy"] = mass - row_sum(weight.mul_(below.clamp_(min=NOTHING))) / total
    if ranks is not None:
        told["ranked"], told["ranked_log_prob"] = ranks[0], ranks[1] - highest[:, None] - mass[:, None]
    if "margin" in reads:
        told["margin"] = (-mass).exp() - (second - mass).exp()
    return {
        "tokens": named(at),
        "log_prob": candidate - mass,
        "best": named(best),
        "top": -mass,
        "standing": standing - mass,
        **told,
    }


def _drawn(below: Tensor, weight: Tensor, ids: Tensor | None, temperature: Tensor, key: Tensor) -> Tensor:
    """A place (N,) among M tokens per row, drawn from softmax(below / temperature), temperatures (N, 1) above 0.

    By the Gumbel-max rule in float64: float32 noise truncates the tail and lowers the temperature without saying so.
    Over a vocabulary the race has two rounds, of blocks by what their tokens weigh together, then of the tokens of the
    block that won: the same distribution, from a hundredth of the numbers. What can't be is at -inf and never wins.

    An inverse distribution function would take one number a row, but a little weight that moves moves what is drawn of
    all that lies behind it. Noise belongs to a token or a block, so distributions that are alike give the same token
    nearly as often as they can, and what was drafted is kept.

    Args:
        below, weight, ids: (N, M) logits below the highest one, their exponentials, and of which tokens they are; all
            tokens in order if None.
        key: (N,) of the noise.

    Source: Zheng et al. 2024, arXiv:2409.02908, sec. 4 (precision); Gumbel-max, also of the sum of a part: Maddison et
        al. 2014, arXiv:1411.0030; how often draws agree: Daliri et al. 2024, arXiv:2408.07978.
    """
    width, temperature = below.shape[1], temperature.clamp(min=1e-6)
    if ids is not None:  # few
        return (below / temperature).add_(_gumbel(key, ids)).argmax(-1)
    blocks = _blocks(weight if bool((temperature == 1).all()) else (below / temperature).exp_())
    noise = _gumbel(key, torch.arange(BLOCK + blocks.shape[1], device=below.device))
    first = blocks.log_().add_(noise[:, BLOCK:]).argmax(-1, keepdim=True) * BLOCK
    at = first + torch.arange(min(BLOCK, width), device=below.device)
    inside = below.gather(1, at.clamp(max=width - 1)).masked_fill_(at >= width, -torch.inf)
    return first[:, 0] + (inside / temperature).add_(noise[:, : inside.shape[1]]).argmax(-1)


def _gumbel(key: Tensor, ids: Tensor) -> Tensor:
    """(N, M) standard Gumbel noise of ids (M,) or (N, M), from keys (N,)."""
    return seeds.uniform(seeds.key(key[:, None], "gumbel", ids)).log_().neg_().log_().neg_()


def _blocks(weight: Tensor) -> Tensor:
    """(N, B) sums over blocks of `BLOCK` columns of (N, M), the last of which may be shorter."""
    size = weight.shape[1]
    whole = weight[:, : size - size % BLOCK].unflatten(1, (-1, BLOCK)).sum(-1)
    return whole if size % BLOCK == 0 else torch.cat([whole, row_sum(weight[:, -(size % BLOCK) :])[:, None]], dim=1)


def _log_sum(logits: Tensor) -> Tensor:
    """(N,) the logarithm of the sum of the exponentials of logits (N, V)."""
    highest = logits.amax(-1, keepdim=True)
    return highest[:, 0] + row_sum((logits - highest).exp_()).log()
