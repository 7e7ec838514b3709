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


def plan_of(states, left=0, steps=1, standing=None):
    n = len(states)
    state = torch.tensor([states], dtype=torch.uint8)
    at = torch.arange(n)[None]
    one = torch.ones(1, dtype=torch.int64)
    return Plan(
        rows=one * 0,
        positions=at,
        tokens=at * 0,
        keep=at < 0,
        attend=Attend(),
        targets=at,
        state=state,
        standing=at * 0 if standing is None else torch.tensor([standing]),
        t=(left + 1) / steps * one.double(),
        s=left / steps * one.double(),
        left=left * one,
        seed=one,
        turn=one,
        end=one * n,
    )


def offer_of(plan, p, *, tokens=None, entropy=None, margin=None):
    p = torch.tensor([p], dtype=torch.float64)
    return Proposal(
        asked=plan.state != State.FIXED,
        is_open=plan.state == State.OPEN,
        tokens=torch.full_like(plan.targets, 9) if tokens is None else torch.tensor([tokens]),
        log_prob=p.log(),
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
    late = plan_of(done, left=-16, standing=[9, 1, 1, 1, 1])
    spent = policies.TABLE["edit"](edit_threshold=0.9)(offer, late, Edit.nothing(late))
    assert spent.settled.tolist() == [True]
    assert spent.tokens[0].tolist() == [9, 1, 1, 1, 1]


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
        ("llada", {"threshold": 0.9, "factor": 1.0}, BadInput, "give one of them"),
        ("sdar", {}, Unsupported, "trained to read no blocks at all"),
        ("ar", {}, Unsupported, "rank='position'"),
    ],
)
def test_what_can_not_be_honoured_is_refused(name, options, error, says):
    with pytest.raises(error, match=None) as caught:
        build(name, traits=ALL, vocab=VOCAB, **options)
    assert says in str(caught.value)


def test_every_option_belongs_to_something():
    from dataclasses import fields

    from unmask.decode import windows
    from unmask.decode.propose import Sampling

    parts = [*windows.TABLE.values(), *policies.TABLE.values(), Sampling]
    assert set(OPTIONS) == ({f.name for part in parts for f in fields(part)} & set(OPTIONS)) | {"guidance"}
