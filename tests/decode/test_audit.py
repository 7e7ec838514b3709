"""An audit tells how far offers over kept keys and values are from those of full forwards, and changes nothing."""

from dataclasses import replace

import pytest
import torch
from stale import LENGTH, ROWS, network

from exact import RandomConditionals
from unmask.base.canvas import Canvas
from unmask.base.step import State
from unmask.decode.audit import Auditor
from unmask.decode.decoder import build
from unmask.decode.guidance import Guided
from unmask.decode.loop import denoise
from unmask.decode.session import Session
from unmask.text.layout import Fixed, Gap, lay

APPROXIMATE = [
    ("fast-dllm-dual", {"block": 8, "threshold": 0.5}),
    ("fast-dllm-prefix", {"block": 8, "threshold": 0.5}),
    ("vicinity x quota", {"block": 6, "cache": "dual", "temperature": 0.7, "t_max": 2.0, "top_k": 3}),
    ("vicinity x threshold", {"block": 8, "cache": "dual", "drift": 0.05, "guidance": 0.5}),
]


def write(model, decoder, every):
    """All rows, every so many of their forwards audited."""
    canvas, auditor = Canvas.of(ROWS, mask=model.vocab.mask, seeds=range(len(ROWS))), Auditor()
    drifts = [auditor.join(row, every) for row in range(len(ROWS))]
    turns = list(denoise(model, canvas, decoder, auditor))
    return canvas, turns, drifts, auditor


@pytest.mark.parametrize(("name", "options"), APPROXIMATE)
def test_is_what_two_forwards_say(name, options):
    """Step by step: the softmax over the cache, by hand, beside that of the whole row without one."""
    model = network()
    decoder = build(name, traits=model.traits, vocab=model.vocab, internal={"forbidden": (2,)}, **options)
    _, turns, drifts, _ = write(model, decoder, 1)
    canvas = Canvas.of(ROWS, mask=model.vocab.mask, seeds=range(len(ROWS)))
    judge = Guided(model, decoder.guidance, canvas.state == State.FIXED) if decoder.guidance else model
    cache, told = judge.cache(len(ROWS), LENGTH), [[] for _ in ROWS]
    with torch.inference_mode():
        for turn in turns:
            plan, offer = turn.plan, turn.offer
            heat = decoder.sampling.t_min + (decoder.sampling.t_max - decoder.sampling.t_min) * plan.t
            heat = torch.as_tensor(heat)[:, None, None]
            rest = {"attend": plan.attend, "rows": plan.rows}
            kept = judge.read(plan.tokens, positions=plan.positions, keep=plan.keep, cache=cache, **rest)
            at = torch.arange(LENGTH).expand(len(plan.rows), -1)
            at = at.masked_fill(canvas.state[plan.rows] == State.ABSENT, -1)
            full = judge.read(canvas.tokens[plan.rows], positions=at, **rest)
            for i, row in enumerate(plan.rows.tolist()):
                where = plan.targets[i][offer.asked[i]]
                if int((plan.positions[i] >= 0).sum()) == int(canvas.length[row]):
                    continue
                logits = [
                    judge.head(features[i][places]).double() / heat[i]
                    for features, places in ((kept, where - plan.positions[i, 0]), (full, where))
                ]
                for one in logits:
                    one[:, [0, 2]] = -torch.inf
                q, p = (one.softmax(-1) for one in logits)
                kl = torch.nn.functional.kl_div((q + 1e-300).log(), p, reduction="none").sum(-1)
                tv = (p - q).abs().sum(-1) / 2
                flips = int((p.argmax(-1) != q.argmax(-1)).sum())
                told[row].append(
                    (int(plan.turn[i, 0]), len(where), flips, *(float(x) for x in (tv.mean(), tv.max(), kl.mean())))
                )
            canvas.apply(plan, turn.edit, offer)
    for row, drift in enumerate(drifts):
        found = [(x.turn, x.targets, x.flips, x.mean_tv, x.max_tv, x.mean_kl) for x in drift.looks]
        assert [x[:3] for x in found] == [x[:3] for x in told[row]]
        torch.testing.assert_close([x[3:] for x in found], [x[3:] for x in told[row]], rtol=1e-4, atol=1e-6)
        assert drift.max_tv == max(x[4] for x in found)
        assert drift.mean_tv == pytest.approx(
            sum(x[1] * x[3] for x in told[row]) / sum(x[1] for x in told[row]), abs=1e-6
        )
    assert max(drift.max_tv for drift in drifts) > 0.01, "nothing was stale; the test says nothing"


@pytest.mark.parametrize(("name", "options"), APPROXIMATE)
def test_changes_nothing(name, options):
    model = network()
    decoder = build(name, traits=model.traits, vocab=model.vocab, **options)
    plain, turns, none, idle = write(model, decoder, 0)
    audited, same, drifts, auditor = write(model, decoder, 1)
    assert torch.equal(audited.tokens, plain.tokens)
    assert torch.equal(audited.forwards, plain.forwards)
    for one, other in zip(turns, same, strict=True):
        assert torch.equal(one.offer.log_prob, other.offer.log_prob)
    assert none == [None] * len(ROWS)
    assert idle.forwards == 0
    cached = [
        sum(
            int((t.plan.positions[i] >= 0).sum()) < int(plain.length[row])
            for t in turns
            for i, r in enumerate(t.plan.rows.tolist())
            if r == row
        )
        for row in range(len(ROWS))
    ]
    assert [len(drift.looks) for drift in drifts] == cached
    assert auditor.forwards <= len(turns)
    _, _, some, _ = write(model, decoder, 3)
    assert [[look.turn for look in drift.looks] for drift in some] == [
        [look.turn for look in drift.looks][2::3] for drift in drifts
    ]


@pytest.mark.parametrize(
    ("sees", "name"), [("all", "block x threshold"), ("all", "block x quota + edit"), ("left", "ar")]
)
def test_an_exact_cache_has_no_drift(sees, name):
    model = network(sees)
    options = {"block": 4} if sees == "all" else {}
    decoder = build(name, traits=model.traits, vocab=model.vocab, **options)
    _, _, drifts, auditor = write(model, decoder, 1)
    assert all(drift.looks for drift in drifts)
    assert auditor.forwards > 0
    for drift in drifts:
        assert drift.targets > 0
        assert drift.max_tv < 1e-5
        assert drift.flips == 0


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_beliefs_that_see_tokens_only_have_no_drift(cache):
    model = RandomConditionals(5, LENGTH, seed=1)
    _, _, drifts, _ = write(
        model, build("vicinity x quota", traits=model.traits, vocab=model.vocab, block=8, cache=cache), 2
    )
    assert [drift.max_tv for drift in drifts] == [0.0] * len(ROWS)
    assert all(drift.targets for drift in drifts)


def test_forwards_stay_below_a_number_of_positions():
    class Counted(RandomConditionals):
        """Knows the positions of its forwards without a cache."""

        widths = ()

        def read(self, tokens, *, positions, cache=None, **rest):
            if cache is None:
                self.widths += (int((positions >= 0).sum()),)
            return super().read(tokens, positions=positions, cache=cache, **rest)

    model = Counted(5, LENGTH, seed=1)
    decoder = build("vicinity x quota", traits=model.traits, vocab=model.vocab, block=8)
    canvas, auditor = Canvas.of(ROWS, mask=5), Auditor(most=42)
    drifts = [auditor.join(row, 1) for row in range(len(ROWS))]
    list(denoise(model, canvas, decoder, auditor))
    assert len(model.widths) == auditor.forwards
    assert max(model.widths) == 42  # of rows of 18, 24 and 18 positions, two at most
    assert sum(len(drift.looks) for drift in drifts) > auditor.forwards


def test_a_session_tells_of_it():
    model = network()
    layouts = [lay([Fixed(ids=(4, 5), text=None), Gap(length=size)]) for size in (16, 12)]
    decoder = build("fast-dllm-dual", traits=model.traits, vocab=model.vocab, block=8, threshold=0.9, audit=2)
    session = Session(model, layouts, decoder, [0, 1])
    list(session.run())
    assert all(filled.drift.looks for filled in session.results())
    told = session.results()[0].drift.as_dict()
    assert told["steps"] == len(told["looks"]) > 0
    assert told["mean_tv"] <= told["max_tv"] == max(look["max_tv"] for look in told["looks"])
    silent = Session(model, layouts, replace(decoder, audit=0), [0, 1])
    list(silent.run())
    assert [filled.drift for filled in silent.results()] == [None, None]
    assert [filled.gaps for filled in silent.results()] == [filled.gaps for filled in session.results()]
