"""Approximate caches in an engine: audited without a trace in anybody's tokens, and never shared."""

import random
from dataclasses import replace
from itertools import chain

import pytest
from crowd import KINDS, SIZE, alone, asked, drain, facts, small

from unmask.base.errors import Unsupported
from unmask.decode.decoder import build
from unmask.decode.session import Session
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.text.layout import Fixed, Gap, lay

RULES = {"internal": {"forbidden": (2,), "no_end_before": 0.0}}
NUMBERS = range(2 * len(KINDS))
APPROXIMATE = [n for n in NUMBERS if not asked(n).decoder.window.exact]


def with_audit(number, every):
    request = asked(number)
    return replace(request, decoder=replace(request.decoder, audit=every))


def drift_alone(request):
    spans = [request.spans]
    session = Session(small(), [request.layout], request.decoder, [request.seed], ends=request.ends, spans=spans)
    list(session.run())
    return session.results()[0].drift


@pytest.mark.parametrize("room", [{"rows": 40}, {"rows": 8, "positions": 60, "cache_positions": 16 * 24}])
def test_an_audit_of_one_changes_nobodys_tokens(room):
    """Mixed companies, some of them short of pages, every other approximate request audited."""
    engine, quiet = Engine(small(), **room), Engine(small(), **room)
    chosen = {n: 1 + i % 3 for i, n in enumerate(APPROXIMATE) if i % 2}
    ids = {n: engine.add(with_audit(n, chosen.get(n, 0))) for n in NUMBERS}
    same = {n: quiet.add(with_audit(n, 0)) for n in NUMBERS}
    found, silent = drain(engine), drain(quiet)
    for number in NUMBERS:
        loud, still = found[ids[number]][1].result, silent[same[number]][1].result
        assert facts(loud) == facts(still) == alone(number)
        assert loud.changes == still.changes  # to the bit
        assert still.drift is None
        if number not in chosen:
            assert loud.drift is None
            continue
        wanted = drift_alone(with_audit(number, chosen[number]))
        assert [look.turn for look in loud.drift.looks] == [look.turn for look in wanted.looks]
        assert [look.mean_tv for look in loud.drift.looks] == pytest.approx([x.mean_tv for x in wanted.looks], abs=1e-6)
    heard = [found[ids[n]][1].result.drift for n in chosen]
    stats = engine.stats
    assert (stats.forwards, stats.positions, stats.preempted) == (
        quiet.stats.forwards,
        quiet.stats.positions,
        quiet.stats.preempted,
    )
    assert (quiet.stats.audited, quiet.stats.compared) == (0, 0)
    assert 0 < stats.audited <= sum(len(drift.looks) for drift in heard)
    assert stats.compared == sum(drift.targets for drift in heard)
    assert stats.drift_max == max(drift.max_tv for drift in heard) > 1e-3
    assert stats.drift_sum == pytest.approx(sum(drift.mean_tv * drift.targets for drift in heard))
    assert stats.flipped == sum(drift.flips for drift in heard)
    assert stats.as_dict()["drift_max"] == stats.drift_max


def test_exact_rows_have_no_drift():
    """No option asks for it; as a test of audits and of caches they are audited all the same."""
    engine = Engine(small(), rows=12, cache_positions=16 * 40, positions=100)
    exact = [n for n in NUMBERS if asked(n).decoder.window.caches and n not in APPROXIMATE]
    ids = {n: engine.add(with_audit(n, 2)) for n in exact}
    found = drain(engine)
    for number, id in ids.items():
        result = found[id][1].result
        assert facts(result) == alone(number)
        assert result.drift.max_tv < 1e-5
    assert engine.stats.compared > 200
    assert engine.stats.flipped == 0


WATCHED = [n for n in APPROXIMATE if asked(n).decoder.watches]


def moves(numbers, **room):
    """How far what is kept had moved at each step of each request, and the engine."""
    engine, told = Engine(small(), **room), {n: [] for n in numbers}
    ids = {engine.add(with_audit(n, 0)): n for n in numbers}
    look = engine._staleness.look

    def heard(model, canvas, plan):
        look(model, canvas, plan)
        rows = {live.row: ids[id] for id, live in engine._running.items()}
        for row in plan.rows.tolist():
            told[rows[row]].append((int(canvas.turn[row]), float(canvas.moved[row])))

    engine._staleness.look = heard
    drain(engine)
    return {n: list(dict.fromkeys(steps)) for n, steps in told.items()}, engine  # a row that waits is looked at again


@pytest.mark.parametrize("room", [{"rows": 40}, {"rows": 8, "positions": 60, "cache_positions": 16 * 30}])
def test_what_is_kept_has_moved_as_far_in_any_company_to_the_bit(room):
    told, engine = moves(WATCHED, **room)
    assert {bool(asked(n).decoder.guidance) for n in WATCHED} == {True, False}
    for number, steps in told.items():
        assert steps == moves([number], rows=1)[0][number]
    far = [x / asked(n).decoder.window.drift for n, steps in told.items() for _, x in steps]
    assert min(sum(0 < x <= 1 for x in far), sum(x > 1 for x in far)) > 5
    assert engine.stats.glimpsed > 0
    assert not {**engine._staleness._now, **engine._staleness._then}


class Failing:
    """A model that fails for rows that hold a token: full forwards without a cache, or (`alone`) its first layer."""

    def __init__(self, model, poison, *, alone=False):
        self.model, self.poison, self.alone = model, poison, alone

    def __getattr__(self, name):
        return getattr(self.model, name)

    def read(self, tokens, *, cache=None, **rest):
        self._fail(tokens, cache is None and not self.alone)
        return self.model.read(tokens, cache=cache, **rest)

    def first_layer(self, tokens, **rest):
        self._fail(tokens, self.alone)
        return self.model.first_layer(tokens, **rest)

    def _fail(self, tokens, may):
        if may and bool((tokens == self.poison).any()):
            raise RuntimeError("boom")


def test_an_audit_that_fails_ends_the_request_that_asked_for_it_and_no_other():
    poison = 47
    good = [n for n in APPROXIMATE if poison not in {*asked(n).layout.tokens, *(c[2] for c in alone(n)[4])}][:4]
    decoder = build(
        "fast-dllm-dual", traits=small().traits, vocab=small().vocab, block=8, threshold=0.9, **RULES, audit=1
    )
    bad = Request(layout=lay([Fixed(ids=(3, poison), text=None), Gap(length=20)]), decoder=decoder)
    engine = Engine(Failing(small(), poison), rows=8)
    ids = {n: engine.add(with_audit(n, 1)) for n in good}
    failed = engine.add(bad)
    found = drain(engine)
    assert "boom" in str(found[failed][1].error)
    for number, id in ids.items():
        result = found[id][1].result
        assert facts(result) == alone(number)
        turns = [look.turn for look in result.drift.looks]
        assert turns == [look.turn for look in drift_alone(with_audit(number, 1)).looks]  # none twice


def test_a_row_that_cannot_be_looked_at_goes_and_no_other():
    poison = 47
    good = [n for n in APPROXIMATE if poison not in {*asked(n).layout.tokens, *(c[2] for c in alone(n)[4])}]
    assert {asked(n).decoder.watches for n in good} == {True, False}
    decoder = build("fast-dllm-dual", traits=small().traits, vocab=small().vocab, block=8, drift=0.05, **RULES)
    bad = Request(layout=lay([Fixed(ids=(3, poison), text=None), Gap(length=20)]), decoder=decoder)
    engine = Engine(Failing(small(), poison, alone=True), rows=40)
    ids = {n: engine.add(with_audit(n, 0)) for n in good}
    failed = engine.add(bad)
    found = drain(engine)
    assert "boom" in str(found[failed][1].error)
    for number, id in ids.items():
        assert facts(found[id][1].result) == alone(number)


def test_a_network_that_cannot_be_asked_for_one_layer_is_refused_at_once():
    model = Failing(small(), 47)
    model.first_layer = None
    decoder = build("fast-dllm-dual", traits=model.traits, vocab=model.vocab, block=8, drift=0.05, **RULES)
    with pytest.raises(Unsupported, match=r"drift .* Failing can't .* use refresh"):
        Engine(model, rows=1).add(Request(layout=lay([Gap(length=20)]), decoder=decoder))


@pytest.mark.parametrize("name", ["fast-dllm-dual", "fast-dllm-prefix"])
def test_keys_and_values_are_never_shared(name):
    """Not between identical requests, not at the same time, not one after the other, not when they had to give way."""
    model, given = small(), tuple(random.Random(5).choices(range(3, SIZE), k=48))
    decoder = build(name, traits=model.traits, vocab=model.vocab, block=8, threshold=0.9, **RULES)
    request = Request(layout=lay([Fixed(ids=given, text=None), Gap(length=32)]), decoder=decoder)
    session = Session(model, [request.layout], decoder, [0])
    list(session.run())
    wanted = facts(session.results()[0])
    engine = Engine(model, rows=2)
    ids = [engine.add(request), engine.add(request)]
    engine.step()
    one, other = (holding.pages[row] for row, holding in engine.room._held.items())
    assert len(one) == len(other) == 5
    assert not set(one) & set(other)
    found = drain(engine)
    found |= {id: drain(engine)[id] for id in [engine.add(request)]}
    for _, last in found.values():
        assert facts(last.result) == wanted
    assert len(found) == len(ids) + 1
    assert (engine.stats.reused, engine.stats.pages_held, engine.stats.pages_idle) == (0, 0, 0)


@pytest.mark.parametrize("options", [{}, {"refresh": 3}, {"drift": 0.05}, {"guidance": 0.5}])
def test_what_has_to_give_way_is_put_aside_and_goes_on_where_it_was(options):
    """An older row grows page by page, two young ones that are alike have to let go of what nobody could read again."""
    model, given = small(), tuple(random.Random(5).choices(range(3, SIZE), k=20))

    def request(name, gap, **settings):
        decoder = build(name, traits=model.traits, vocab=model.vocab, **RULES, **settings)
        return Request(layout=lay([Fixed(ids=given, text=None), Gap(length=gap)]), decoder=decoder)

    old = request("block x quota", 100, block=4, steps=2)
    young = request("fast-dllm-dual", 40, block=16, threshold=0.99, **options)
    need = 4 * (2 if options.get("guidance") else 1)
    engine, told, asides = Engine(model, rows=3, cache_positions=16 * (2 * need + 3)), {}, 0
    ids = [engine.add(one) for one in (old, young, young)]
    while engine.busy:
        told |= {delta.id: delta for delta in engine.step()}
        held = [set(chain.from_iterable(one.pages.values())) for one in engine.room._held.values()]
        assert len(set().union(*held)) == sum(map(len, held)), "a page of two rows"
        asides += any(one.aside for one in engine.room._held.values())
    assert asides > 0
    assert engine.stats.preempted > 0
    for id, one in zip(ids, (old, young, young), strict=True):
        session = Session(model, [one.layout], one.decoder, [0])
        list(session.run())
        assert facts(told[id].result) == facts(session.results()[0])
