"""Requests that grow, beside others: whatever the company, what the plain loop writes for each alone."""

import random
from functools import cache

import pytest
import torch
from crowd import LENGTH, SIZE, Coming, drain, facts, form
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from unmask.base.errors import TooLong, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.constrain.holes import Span
from unmask.decode.decoder import build
from unmask.decode.session import Session
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.models.backbone import Shape, Transformer
from unmask.text.layout import Fixed, Gap, lay

GROWING = {"lengths": "daedal", "start": 6, "insert": 3, "tail": 4, "unsure": 0.3, "enough": 0.1}
KINDS = [
    ("daedal", {**GROWING, "block": 8, "threshold": 0.5}),
    ("llada", {**GROWING, "temperature": 0.7, "top_p": 0.9}),
    ("dreamon", {"start": 5, "temperature": 1.0}),
    ("whole x threshold", {"lengths": "tokens", "block": 8, "threshold": 0.2}),
    ("daedal", {**GROWING, "block": 4, "guidance": 0.7}),
    ("mdlm", {"lengths": "daedal", **GROWING}),
    ("daedal", {**GROWING, "block": 8, "constrained": True, "temperature": 0.5}),
    ("fast-dllm", {"block": 8, "threshold": 0.3}),
    ("block x quota", {"block": 4, "steps": 2, "top_k": 5, "temperature": 1.0}),
    ("ar", {"temperature": 1.0, "top_p": 0.8}),
    ("fast-dllm-dual", {"block": 8, "threshold": 0.3}),
]
NUMBERS = range(5 * len(KINDS))


@cache
def model():
    """A random model that often says `expand` and `delete`, and sees an end of text now and then."""
    shape = Shape(vocab_size=SIZE, width=32, depth=2, heads=4, kv_heads=2, hidden=64, max_length=LENGTH, qk_norm=True)
    vocab = Vocab(size=SIZE, mask=0, eos=1, bos=2, expand=3, delete=4)
    made = Transformer(shape, vocab, Traits(sees="all", reads=(1, 4, 16)), seed=6).eval()
    with torch.no_grad():
        made.norm.weight.fill_(6.0)
        for token, factor in ((1, 2.2), (3, 1.6), (4, 1.7)):  # an end of text, and tokens that resize, are likely
            made.embed_tokens.weight[token] *= factor
    return made


@cache
def asked(number):
    """The request of a number."""
    draw, (name, options) = random.Random(number), KINDS[number % len(KINDS)]
    options = dict(options)
    constrained = options.pop("constrained", False)
    if "enough" in options:
        options |= {"enough": draw.choice([0.0, 0.1]), "unsure": draw.choice([0.05, 0.1, 0.2])}
    beginning = draw.choices(range(5, SIZE), k=draw.choice([1, 7, 16, 33]))
    bounded, within = options.get("lengths") or name in ("daedal", "dreamon"), draw.random() < 0.6
    tokens = name == "dreamon" or options.get("lengths") == "tokens"
    size = options.get("start", 4) if bounded else draw.randint(1, 30)
    low, high = draw.randint(1, size), draw.randint(size, size + 40)
    gap = Gap(length=size, bounds=(low, high) if bounded else None)
    behind = draw.choices(range(5, SIZE), k=6 if tokens and within else 0)
    layout = lay([Fixed(ids=tuple(beginning), text=None), gap, Fixed(ids=tuple(behind), text=None)])
    ends = not (tokens and within) and draw.random() < 0.7
    early = float(len(beginning) + (0 if constrained else low)) if ends or not tokens else float("inf")
    internal = {"forbidden": (2,), "no_end_before": early}
    decoder = build(name, traits=model().traits, vocab=model().vocab, internal=internal, **options)
    (there,) = layout.gaps
    spans = (Span(automaton=form(0), start=there.start, stop=there.stop, ends=ends),) if constrained else ()
    return Request(layout=layout, decoder=decoder, seed=number, ends=ends, spans=spans)


@cache
def alone(number):
    """What the plain loop writes."""
    request = asked(number)
    session = Session(
        model(), [request.layout], request.decoder, [request.seed], ends=request.ends, spans=[request.spans]
    )
    for steps, _ in enumerate(session.run()):
        assert steps < 400
    (found,) = session.results()
    for gap in found.layout.gaps:
        if gap.bounds is not None:
            assert gap.bounds[0] <= gap.size <= gap.bounds[1]
    assert not found.left
    return *facts(found), found.layout


def test_they_do_grow_and_shrink():
    changed = [alone(n)[-1].gaps[0].size - asked(n).layout.gaps[0].size for n in NUMBERS if asked(n).decoder.growth]
    assert sum(size > 0 for size in changed) > 10
    assert sum(size < 0 for size in changed) > 0
    assert len(set(changed)) > 12


def same(delta, tokens, number):
    assert delta.error is None
    assert (*facts(delta.result), delta.result.layout) == alone(number)
    assert tokens == delta.result.gaps[-1]


class Company(Coming):
    """Requests come, go on, and are taken back, in engines of every size."""

    @initialize(rows=st.integers(1, 9), pages=st.integers(24, 60), positions=st.sampled_from([5, 40, 300, 5000]))
    def start(self, rows, pages, positions):
        self.engine = Engine(model(), rows=rows, cache_positions=16 * pages, positions=positions)
        self.numbers, self.found, self.cancelled = {}, {}, set()

    @rule(number=st.sampled_from(NUMBERS))
    def add(self, number):
        self.numbers[self.engine.add(asked(number))] = number

    def same(self, last, tokens, number):
        same(last, tokens, number)


Company.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
TestCompany = Company.TestCase


def test_all_at_once():
    engine = Engine(model(), rows=len(NUMBERS))
    ids = [engine.add(asked(number)) for number in NUMBERS]
    found = drain(engine)
    for id, number in zip(ids, NUMBERS, strict=True):
        tokens, last = found[id]
        same(last, tokens, number)


def test_a_target_of_seconds_counts_what_is_left_and_not_what_is_new():
    """A row that grew has not written less than nothing."""
    ticks = iter(range(10**6))
    engine = Engine(model(), rows=1, clock=lambda: float(next(ticks)))
    request = asked(0)
    id = engine.add(Request(layout=request.layout, decoder=request.decoder, seed=0, latency_s=1e6))
    while engine.busy:
        for live in engine._running.values():
            assert min(live.chase.written) >= 0
        deltas = engine.step()
    assert deltas[-1].id == id
    assert deltas[-1].result.layout.gaps[0].size > request.layout.gaps[0].size


@pytest.mark.parametrize(
    ("error", "says", "options", "bounds"),
    [
        (TooLong, "grow to", {"name": "daedal"}, (1, LENGTH)),
        (Unsupported, "window whole", {"name": "fast-dllm-dual", "lengths": "daedal"}, (1, 60)),
        (Unsupported, "take nothing back", {"name": "wino", "lengths": "tokens"}, (1, 60)),
    ],
)
def test_what_can_never_be_written(error, says, options, bounds):
    options = dict(options)
    decoder = build(options.pop("name"), traits=model().traits, vocab=model().vocab, **options)
    layout = lay([Fixed(ids=(5, 6), text=None), Gap(length=4, bounds=bounds)])
    engine = Engine(model())
    with pytest.raises(error, match=says):
        engine.add(Request(layout=layout, decoder=decoder))
    assert not engine.busy
