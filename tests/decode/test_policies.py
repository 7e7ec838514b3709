"""Each policy's own rule, on offers made by hand."""

import pytest
import torch

from unmask.base.attend import Attend
from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.base.step import Edit, Plan, Proposal, State
from unmask.base.vocab import Traits, Vocab
from unmask.decode import policies
from unmask.decode.decoder import build
from unmask.decode.options import OPTIONS
from unmask.decode.policies.rank import best
from unmask.decode.propose import Sampling


def plan_of(states, left=0, steps=1, standing=None):
    n = len(states)
    state = torch.tensor([states], dtype=torch.uint8)
    at = torch.arange(n)[None]
    one = torch.ones(1, dtype=torch.int64)
    return Plan(
        rows=one * 0,
        positions=at,
        tokens=at * 0,
        slots=at,
        keep=at < 0,
        attend=Attend(),
        targets=at,
        state=state,
        standing=at * 0 if standing is None else torch.tensor([standing]),
        last=at * 0 - 1,
        source=at,
        turn=one[:, None].expand_as(at),
        level=(left + 1) / steps * torch.ones_like(at).double(),
        t=(left + 1) / steps * one.double(),
        s=left / steps * one.double(),
        steps=steps * one,
        left=left * one,
        due=one > 0,
        took=one * 0 - 1,
        seed=one,
        idle=one * 0,
        end=one * n,
        among=one * 0,
    )


def offer_of(plan, p, *, tokens=None, entropy=None, margin=None):
    p = torch.tensor([p], dtype=torch.float64)
    return Proposal(
        asked=plan.state != State.FIXED,
        is_open=plan.state == State.OPEN,
        tokens=torch.full_like(plan.targets, 9) if tokens is None else torch.tensor([tokens]),
        log_prob=p.log(),
        best=torch.full_like(plan.targets, 9) if tokens is None else torch.tensor([tokens]),
        top=p.log(),
        entropy=1 - p if entropy is None else torch.tensor([entropy], dtype=torch.float64),
        margin=p if margin is None else torch.tensor([margin], dtype=torch.float64),
        standing=torch.full_like(p, -1.0),
    )


def taken(name, p, *, left=9, steps=10, states=None, entropy=None, margin=None, **options):
    plan = plan_of(states or [State.OPEN] * len(p), left=left, steps=steps)
    edit = policies.TABLE[name](**options)(offer_of(plan, p, entropy=entropy, margin=margin), plan, Edit.nothing(plan))
    return [i for i, s in enumerate(edit.state[0].tolist()) if s == State.DONE]


P = [0.5, 0.9, 0.2, 0.95, 0.6]


def test_quota_shares_steps_out_as_llada_does():
    """24 positions in 9 steps: base 2, one more in the first 6."""
    open_, counts = 24, []
    for left in range(8, -1, -1):
        now = len(taken("quota", [0.5] * open_, left=left, steps=9))
        counts.append(now)
        open_ -= now
    assert counts == [3] * 6 + [2] * 3


@pytest.mark.parametrize(("rank", "first"), [("confidence", 3), ("position", 0), ("entropy", 2), ("margin", 4)])
def test_quota_ranks(rank, first):
    chosen = taken("quota", P, left=4, steps=5, entropy=[3, 2, 0.5, 1, 4], margin=[0.1, 0.2, 0.3, 0.4, 0.5], rank=rank)
    assert chosen == [first]


def shares(timetable, size, steps, num_open=None, early=()):
    """How many of a region's positions each step takes; `early` are taken beside the quota, as a threshold would."""
    num_open, found = size if num_open is None else num_open, []
    for left in range(steps - 1, -1, -1):
        states = [State.OPEN] * num_open + [State.DONE] * (size - num_open)
        now = len(taken("quota", [0.5] * size, left=left, steps=steps, states=states, timetable=timetable))
        now -= size - num_open
        found.append(now)
        num_open -= min(num_open, now + (early[len(found) - 1] if len(found) <= len(early) else 0))
    return found


def test_full_shares_go_by_the_size_of_the_region():
    assert shares("full", 4, 3) == [2, 1, 1]
    assert shares("full", 4, 3, num_open=2) == [2, 0, 0]  # SDAR: a block that begins with two tokens of the prompt
    assert shares("even", 4, 3, num_open=2) == [1, 1, 0]
    assert shares("full", 8, 3, early=[2]) == [3, 3, 0]
    assert shares("even", 8, 3, early=[2]) == [3, 2, 1]
    assert shares("full", 2, 4) == shares("even", 2, 4) == [1, 1, 0, 0]


@pytest.mark.parametrize(("size", "steps"), [(16, 12), (16, 5), (14, 14), (64, 100), (33, 7), (1, 3), (40, 1)])
def test_linear_shares_are_dreams_in_float32(size, steps):
    times, num_open, wanted = torch.linspace(1, 1e-3, steps + 1), size, []
    for i in range(steps):
        share = torch.tensor(float(num_open)) * (1 - times[i + 1] / times[i])
        wanted.append(int(share) if i < steps - 1 else num_open)
        num_open -= wanted[-1]
    assert shares("linear", size, steps) == wanted
    assert sum(wanted) == size


def test_equal_scores_go_where_the_published_samplers_topk_puts_them():
    p = [0.3, 1.0, 1.0, 0.7, 1.0, 1.0, 0.2, 1.0, 0.1, 1.0]
    for count in range(1, 7):
        wanted = torch.tensor(p).topk(count).indices.sort().values.tolist()
        assert _best(p, count) == wanted
    states = [State.FIXED, *[State.OPEN] * 9]  # what is not open counts as -inf, and still as a place in the row
    hidden = torch.tensor(p).masked_fill(torch.tensor(states) == State.FIXED, -torch.inf)
    assert _best(p, 3, states) == hidden.topk(3).indices.sort().values.tolist()


def _best(p, count, states=None):
    plan = plan_of(states or [State.OPEN] * len(p))
    offer = offer_of(plan, p)
    return best(offer.log_prob, plan, offer.is_open, torch.tensor([count]))[0].nonzero()[:, 0].tolist()


def test_an_allowed_target_of_probability_zero_stands_before_one_that_is_not():
    assert _best([0.5, 0.0, 0.0], 2, [State.FIXED, State.OPEN, State.OPEN]) == [1, 2]


@pytest.mark.parametrize("name", ["quota", "threshold"])
def test_ends_of_text_come_last(name):
    def chosen(p, tokens, left, **options):
        plan = plan_of([State.OPEN] * len(p), left=left, steps=left + 1)
        policy = policies.TABLE[name](ends=(0, 7), **options)
        edit = policy(offer_of(plan, p, tokens=tokens), plan, Edit.nothing(plan))
        return [i for i, s in enumerate(edit.state[0].tolist()) if s == State.DONE]

    p, tokens = [0.99, 0.5, 0.98, 0.6, 0.97], [0, 3, 7, 4, 0]
    assert chosen(p, tokens, 4)[0] == 0  # as sure as any other, if nothing is said
    assert chosen(p, tokens, 4, eos_last=True) == [3]
    assert chosen(p, tokens, 1, eos_last=True) == [0, 1, 3]  # the budget asks for three, and there are two others
    assert 0 in chosen([0.99, 0.5], [0, 7], 1, eos_last=True)  # nothing but ends is left: the best of them
    built = build("llada", traits=ALL, vocab=Vocab(size=9, mask=8, eos=0, stops=(7,)), eos_last=True)
    assert built.policies[0].ends == (0, 7)


def test_threshold_is_at_least_and_strict_is_above():
    assert taken("threshold", P, left=4, steps=5, threshold=0.9) == [1, 3]
    assert taken("threshold", P, left=4, steps=5, threshold=0.95, strict=True) == [3]  # the floor; 0.95 is not above
    assert taken("threshold", [0.5, 0.25], left=9, steps=10, threshold=0.25, strict=True) == [0]
    assert taken("threshold", P, left=4, steps=5, threshold=0.99) == [3]  # one always
    assert taken("threshold", P, left=1, steps=2, threshold=0.99) == [1, 3, 4]  # the budget asks for three


def test_threshold_per_row():
    plan = plan_of([State.OPEN] * 5, left=4, steps=5)
    edit = policies.TABLE["threshold"](threshold=torch.tensor([0.55]))(offer_of(plan, P), plan, Edit.nothing(plan))
    assert edit.state[0].tolist() == [1, 2, 1, 2, 2]


def test_factor_takes_as_many_as_hold_together():
    # sorted 0.95 >= 1 - f/2, 0.9 >= 1 - f/3, 0.6 >= 1 - f/4: with f = 0.3 the bars are 0.85, 0.9, 0.925
    assert taken("factor", P, factor=0.3) == [1, 3]
    assert taken("factor", P, factor=0.01) == [3]
    assert taken("factor", [0.99, 0.98], factor=1.0) == [0, 1]
    assert taken("factor", [0.99, 0.1], factor=1.0) == [0]  # the released loop takes both


def test_entropy_bound_sums_all_but_the_largest():
    entropy = [0.05, 0.02, 0.2, 0.04, 1.0]
    assert taken("entropy_bound", P, entropy=entropy, bound=0.05) == [1, 3]
    assert taken("entropy_bound", P, entropy=entropy, bound=0.065) == [0, 1, 3]
    assert taken("entropy_bound", P, entropy=entropy, bound=0.115) == [0, 1, 2, 3]
    assert taken("entropy_bound", P, entropy=[0, 0, 0, 0, 1], bound=0.0) == [0, 1, 2, 3, 4]


def test_edit_replaces_only_sure_and_different_tokens_and_settles():
    done = [State.DONE] * 4 + [State.FIXED]
    plan = plan_of(done, standing=[9, 1, 1, 1, 1])
    offer = offer_of(plan, [0.99, 0.95, 0.8, 0.91, 0.99])
    edit = policies.TABLE["edit"](edit_threshold=0.9)(offer, plan, Edit.nothing(plan))
    assert edit.tokens[0].tolist() == [9, 9, 1, 9, 1]
    assert edit.settled.tolist() == [False]
    calm = policies.TABLE["edit"](edit_threshold=0.999)(offer, plan, Edit.nothing(plan))
    assert calm.settled.tolist() == [True]
    unread = plan_of([State.DONE] * 3 + [State.OPEN, State.FIXED], standing=[9, 9, 9, 1, 1])
    first = Edit.nothing(unread).accept(unread.state == State.OPEN, offer.tokens)
    edit = policies.TABLE["edit"](edit_threshold=0.9)(offer_of(unread, [0.99] * 5), unread, first)
    assert edit.settled.tolist() == [False]  # what was written in this step has to be read once


def test_remask_does_nothing_in_the_last_step():
    plan = plan_of([State.DONE] * 50, left=0, steps=10)
    edit = policies.TABLE["remask"](eta=1.0, mask=7)(offer_of(plan, [0.5] * 50), plan, Edit.nothing(plan))
    assert edit.state[0].tolist() == [State.DONE] * 50
    assert edit.settled.tolist() == [True]
    early = plan_of([State.DONE] * 50, left=5, steps=10)
    edit = policies.TABLE["remask"](eta=0.5, mask=7)(offer_of(early, [0.5] * 50), early, Edit.nothing(early))
    reopened = [t for t, s in zip(edit.tokens[0].tolist(), edit.state[0].tolist(), strict=True) if s == State.OPEN]
    assert 10 < len(reopened) < 40
    assert set(reopened) == {7}


VOCAB = Vocab(size=9, mask=8, eos=0)
ALL = Traits()


def test_options_choose_the_policy():
    def names(**options):
        return [type(p).__name__ for p in build("llada", traits=ALL, vocab=VOCAB, **options).policies]

    assert names() == ["Quota"]
    assert names(threshold=0.9) == ["Threshold"]
    assert names(factor=1.0) == ["Factor"]
    assert [type(p).__name__ for p in build("fast-dllm", traits=ALL, vocab=VOCAB, steps=8).policies] == ["Quota"]
    own = {"decoder": "fast-dllm", "threshold": 0.7, "block": 16}
    decoder = build(None, traits=ALL, vocab=VOCAB, defaults=own)
    assert decoder.policies[0].threshold == 0.7
    assert decoder.window.block == 16
    assert type(build(None, traits=ALL, vocab=VOCAB, defaults=own, steps=4).policies[0]).__name__ == "Quota"


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        ("lada", {}, UnknownName, "Did you mean 'llada'"),
        ("whole x treshold", {}, UnknownName, "Did you mean 'threshold'"),
        ("hole x quota", {}, UnknownName, "no window called 'hole'"),
        ("llada", {"stepz": 3}, UnknownName, "Did you mean 'steps'"),
        ("mdlm", {"threshold": 0.9}, BadInput, "threshold has no effect on this decoder (whole x ancestral)"),
        ("llada", {"steps": 0}, BadInput, "steps is a whole number from 1, not 0"),
        ("llada", {"steps": 2.5}, BadInput, "steps is a whole number"),
        ("llada", {"temperature": float("nan")}, BadInput, "temperature is 0 or more"),
        ("llada", {"rank": "luck"}, BadInput, "rank is one of confidence"),
        ("dream", {"timetable": "slow"}, BadInput, "timetable is one of even, full, linear"),
        ("fast-dllm-dual", {"cache": "all"}, BadInput, "cache is one of prefix, dual"),
        ("llada2-edit", {}, Unsupported, "trained to read no blocks at all"),
        ("mdlm", {"eos_last": True}, BadInput, "eos_last has no effect"),
        ("llada", {"threshold": 0.9, "factor": 1.0}, BadInput, "give one of them"),
        ("sdar", {}, Unsupported, "trained to read no blocks at all"),
        ("ar", {}, Unsupported, "rank='position'"),
        ("fast-dllm", {"audit": 1}, BadInput, "audit has no effect"),
        ("block x quota", {"block": 4, "audit": 1}, BadInput, "audit has no effect"),
        ("fast-dllm-dual", {"refresh": 0}, BadInput, "refresh is a whole number from 1"),
        ("fast-dllm-dual", {"drift": 0.0}, BadInput, "drift is above 0, at most 1"),
    ],
)
def test_what_can_not_be_honoured_is_refused(name, options, error, says):
    with pytest.raises(error, match=None) as caught:
        build(name, traits=ALL, vocab=VOCAB, **options)
    assert says in str(caught.value)


def test_every_option_belongs_to_something():
    from dataclasses import fields

    from unmask.decode import growth, windows

    parts = [*windows.TABLE.values(), *policies.TABLE.values(), *growth.TABLE.values(), Sampling]
    own = {f.name for part in parts for f in fields(part)} & set(OPTIONS)
    assert set(OPTIONS) == own | {"guidance", "lookahead", "effort", "audit", "lengths"}
