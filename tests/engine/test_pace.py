"""Targets of seconds under a clock that is ours: who is late is eased, nobody else, and only the clock counts."""

import pytest
from crowd import alone, asked, facts, small

from unmask.base.errors import BadInput
from unmask.decode.decoder import build
from unmask.decode.effort import EFFORTS
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.text.layout import Fixed, Gap, lay

STEP_S = 0.1
NEIGHBOURS = [0, 1, 2, 3, 4, 7, 11, 12]


class Clock:
    """Goes on when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def request(length=32, latency_s=None, name="whole x threshold", **options):
    decoder = build(name, traits=small().traits, vocab=small().vocab, internal={"forbidden": (2,)}, **options)
    given = Fixed(ids=(5, 9, 14), text=None)
    return Request(layout=lay([given, Gap(length=length)]), decoder=decoder, seed=4, latency_s=latency_s)


def run(requests, *, step_s=STEP_S, late_steps=(), engine=None, clock=None):
    """Results in order; a step takes `step_s`, and those numbered in `late_steps` ten times that."""
    clock = clock or Clock()
    engine = engine or Engine(small(), clock=clock)
    ids, found, step = [engine.add(r) for r in requests], {}, 0
    while engine.busy:
        for delta in engine.step():
            assert delta.error is None
            if delta.result is not None:
                found[delta.id] = delta.result
        step += 1
        clock.now += step_s * (10 if step in late_steps else 1)
    return [found[id] for id in ids]


@pytest.fixture(scope="module")
def own():
    """What the request takes by itself: a step a token, or nearly."""
    (result,) = run([request()])
    assert result.eased is None
    assert result.forwards > 20
    return result


class TestLate:
    def test_who_has_time_is_not_eased(self, own):
        (result,) = run([request(latency_s=1e6)])
        assert facts(result) == facts(own)
        assert result.eased.kept
        assert (result.eased.steps, result.eased.effort, result.eased.numbers) == (0, "medium", {})

    def test_who_is_late_is_eased_and_in_time(self, own):
        target_s = own.forwards * STEP_S * 0.6
        (result,) = run([request(latency_s=target_s)])
        assert result.eased.kept
        assert result.eased.took_s == pytest.approx((result.forwards - 1) * STEP_S)  # the last step is told at its end
        assert 0 < result.eased.steps < result.forwards
        assert result.eased.numbers["threshold"] < 0.9
        assert len(result.gaps[0]) == 32

    def test_the_more_time_the_more_forwards(self, own):
        targets = [own.forwards * STEP_S * share for share in (0.05, 0.3, 0.5, 0.8, 1.2)]
        forwards = [run([request(latency_s=target_s)])[0].forwards for target_s in targets]
        assert forwards == sorted(forwards)
        assert forwards[-1] == own.forwards
        assert forwards[0] < own.forwards / 2

    def test_it_goes_back_to_its_own_numbers(self, own):
        """Two slow steps make it late; the steps after it are quick, and it ends on its own numbers."""
        clock = Clock()
        engine = Engine(small(), clock=clock)
        engine.add(request(latency_s=own.forwards * STEP_S * 1.5))
        chase, stood = engine._waiting[0].chase, []
        for step in range(200):
            if any(delta.last for delta in engine.step()):
                break
            stood.append(chase.at)
            clock.now += STEP_S * (12 if step < 2 else 0.1)
        assert max(stood) > 0
        assert stood[-1] == 0
        assert stood[0] == 0

    def test_the_numbers_never_pass_those_of_instant(self):
        (late,) = run([request(latency_s=1e-6)])
        (instant,) = run([request(effort="instant")])
        assert not late.eased.kept
        assert late.eased.effort == "instant"
        decoder = request(effort="instant").decoder
        assert late.eased.numbers == decoder.numbers
        assert late.forwards <= instant.forwards + 1  # its first step may have its own numbers
        assert late.forwards >= instant.forwards - 1

    def test_what_was_lost_before_it_came_counts(self, own):
        clock = Clock()
        clock.now = 100.0
        engine = Engine(small(), clock=clock)
        engine.add(request(latency_s=1.0), 98.0)
        (result,) = [delta.result for _ in range(200) for delta in engine.step() if delta.last]
        assert result.eased.took_s == 2.0
        assert not result.eased.kept

    def test_waiting_counts(self, own):
        """A place on the engine comes late, and what was lost by then is made good."""
        clock = Clock()
        engine = Engine(small(), rows=1, clock=clock)
        first, second = run([request(), request(latency_s=own.forwards * STEP_S * 1.4)], engine=engine, clock=clock)
        assert facts(first) == facts(own)
        assert second.eased.steps > 0
        assert second.eased.kept

    @pytest.mark.parametrize(
        "name", ["llada", "mdlm", "block x threshold", "block x ancestral", "whole x factor", "whole x entropy_bound"]
    )
    def test_every_kind_of_decoder_can_hurry(self, name):
        options = {"block": 16} if name.startswith("block") else {}
        (slow,) = run([request(name=name, **options)])
        (fast,) = run([request(name=name, latency_s=1e-6, **options)])
        assert fast.forwards < slow.forwards * 0.6
        assert len(fast.gaps[0]) == 32
        assert fast.eased.steps >= fast.forwards - 1  # all but the first, which was not late yet


class TestCompany:
    def test_neighbours_without_a_target_are_what_they_are_alone(self):
        requests = [asked(number) for number in NEIGHBOURS] + [request(latency_s=0.5)]
        *neighbours, late = run(requests)
        assert late.eased.steps > 0
        for number, result in zip(NEIGHBOURS, neighbours, strict=True):
            assert facts(result) == alone(number)
            assert result.eased is None

    def test_the_next_in_its_place_starts_anew(self, own):
        clock = Clock()
        engine = Engine(small(), rows=1, clock=clock)
        late, after = run([request(latency_s=1e-6), request()], engine=engine, clock=clock)
        assert late.eased.steps
        assert facts(after) == facts(own)

    def test_the_same_readings_give_the_same_tokens(self):
        requests = [asked(number) for number in NEIGHBOURS] + [request(latency_s=2.0, temperature=0.7)]
        first, again = (run(requests, late_steps=(2, 5)) for _ in range(2))
        assert [facts(r) for r in first] == [facts(r) for r in again]
        assert [r.eased for r in first] == [r.eased for r in again]

    def test_cancelled_ones_leave_nothing_behind(self, own):
        clock = Clock()
        engine = Engine(small(), rows=1, clock=clock)
        id = engine.add(request(latency_s=1e-6))
        engine.step()
        clock.now += 1
        engine.step()
        assert engine.cancel(id)
        (after,) = run([request()], engine=engine, clock=clock)
        assert facts(after) == facts(own)


class TestClock:
    def test_time_between_texts_is_no_steps(self, own):
        """An engine that had nothing to do for an hour does not think that a step takes an hour."""
        clock = Clock()
        engine = Engine(small(), clock=clock)
        run([request()], engine=engine, clock=clock)
        clock.now += 3600
        (result,) = run([request(latency_s=own.forwards * STEP_S * 1.5)], engine=engine, clock=clock)
        assert facts(result) == facts(own)

    def test_one_slow_step_is_not_how_long_steps_take(self, own):
        (result,) = run([request(latency_s=own.forwards * STEP_S * 3)], late_steps=(4,))
        assert facts(result) == facts(own)


class TestRefused:
    @pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1"])
    def test_what_is_no_time(self, value):
        with pytest.raises(BadInput, match="latency_s is a number of seconds above 0"):
            Engine(small(), clock=Clock()).add(request(latency_s=value))

    def test_without_a_clock(self):
        engine = Engine(small())
        with pytest.raises(BadInput, match="needs an engine with a clock"):
            engine.add(request(latency_s=1.0))
        assert not engine.busy

    def test_token_by_token(self):
        given = lay([Fixed(ids=(5,), text=None), Gap(length=4)])
        decoder = build("ar", traits=small("left").traits, vocab=small("left").vocab)
        one = Request(layout=given, decoder=decoder, latency_s=1.0)
        with pytest.raises(BadInput, match="latency_s has no effect on this decoder"):
            Engine(small("left"), clock=Clock()).add(one)


def test_who_asks_for_little_effort_is_eased_from_there():
    (low,) = run([request(effort="low", latency_s=1e6)])
    assert (low.eased.effort, low.eased.steps) == ("low", 0)
    one = request(effort="low", threshold=0.5)
    assert [decoder.effort for decoder in one.decoder.easier] == [EFFORTS[0]]
    assert one.decoder.easier[0].numbers["threshold"] == pytest.approx(0.25)  # odds of 1 by 3
