"""Whatever the company, a request gets what the plain loop writes for it alone."""

import random
from itertools import islice

import pytest
import torch
from crowd import KINDS, LENGTH, LETTERS, SIZE, Coming, alone, asked, drain, facts, small, take
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from unmask.base.errors import BadInput, RequestFailed, TooLong, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.constrain.compile import compile_here
from unmask.constrain.holes import Span
from unmask.constrain.spec import Constraint, Regex
from unmask.decode.decoder import build
from unmask.decode.session import Session
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.models.backbone import Shape, Transformer
from unmask.text.layout import Fixed, Gap, lay


def drain_one(engine, request):
    id = engine.add(request)
    return drain(engine)[id][1].result


NUMBERS = range(3 * len(KINDS))


def same(delta, tokens, number, sees="all"):
    assert delta.error is None
    assert facts(delta.result) == alone(number, sees)
    assert tokens == delta.result.gaps[-1]


class Company(Coming):
    """Requests come, go on, and are taken back, in engines of every size."""

    @initialize(
        rows=st.integers(1, 9),
        pages=st.integers(20, 60),
        positions=st.sampled_from([5, 40, 300, 5000]),
        share=st.booleans(),
    )
    def start(self, rows, pages, positions, share):
        self.engine = Engine(small(), rows=rows, cache_positions=16 * pages, positions=positions, share=share)
        self.numbers, self.found, self.cancelled = {}, {}, set()

    @rule(number=st.sampled_from(NUMBERS))
    def add(self, number):
        self.numbers[self.engine.add(asked(number))] = number

    def same(self, last, tokens, number):
        same(last, tokens, number)


Company.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would take longer than all other tests
)
TestCompany = Company.TestCase


def test_all_at_once():
    engine = Engine(small(), rows=len(NUMBERS))
    ids = [engine.add(asked(number)) for number in NUMBERS]
    found = drain(engine)
    for id, number in zip(ids, NUMBERS, strict=True):
        tokens, last = found[id]
        same(last, tokens, number)
    assert engine.stats.forwards < sum(alone(number)[3] for number in NUMBERS) / 4  # they shared forwards


def test_left_to_right():
    engine = Engine(small("left"), rows=6, cache_positions=16 * 24, positions=20)
    ids = [engine.add(asked(number, "left")) for number in range(12)]
    found = drain(engine)
    for number, id in enumerate(ids):
        tokens, last = found[id]
        same(last, tokens, number, "left")


def test_a_bias_leaves_with_its_row():
    leaning = next(n for n, (_, options) in enumerate(KINDS) if "leans" in options)
    engine = Engine(small(), rows=1)
    for number in (leaning, 0):
        ended, id = engine.add(asked(leaning)), engine.add(asked(number))
        engine.step()
        assert engine.cancel(ended)
        tokens, last = drain(engine)[id]
        same(last, tokens, number)


def test_those_that_begin_alike_read_it_once():
    engine = Engine(small())
    given = tuple(random.Random(0).choices(range(3, SIZE), k=50))
    readings = [("fast-dllm", 8), ("ar", None), ("block x quota", 4), ("block x quota", 16), ("block x quota", 16)]
    requests = []
    for seed, (name, block) in enumerate(readings):
        internal = {"forbidden": (2,), "no_end_before": 0.0}
        decoder = build(name, traits=small().traits, vocab=small().vocab, internal=internal, block=block)
        layout = lay([Fixed(ids=given, text=None), Gap(length=20)])
        requests.append(Request(layout=layout, decoder=decoder, seed=seed))
    alone_each = [drain_one(Engine(small(), share=False), request) for request in requests]
    for turn, found in ((1, 48), (2, 48 + 3 * 48)):  # 48 of 50 positions are whole pages and whole blocks
        for request, wanted in zip(requests, alone_each, strict=True):
            assert facts(drain_one(engine, request)) == facts(wanted)
        assert engine.stats.reused == found + (turn - 1) * 48
    assert engine.stats.pages_held == 0 < engine.stats.pages_idle


def test_too_few_pages_cost_time_and_nothing_else():
    engine = Engine(small(), rows=8, cache_positions=16 * 15)
    numbers = [n for n in NUMBERS if asked(n).decoder.window.caches][:14]
    ids = [engine.add(asked(number)) for number in numbers]
    found = drain(engine)
    for id, number in zip(ids, numbers, strict=True):
        tokens, last = found[id]
        same(last, tokens, number)
    assert engine.stats.preempted > 0


def test_what_ranks_alike_is_chosen_alike_whether_others_have_read_the_prompt_or_not():
    """Under top_k=1 all offers are equally sure, so the choice among them must not look at what is fed."""
    given = tuple(random.Random(0).choices(range(3, SIZE), k=48))
    model, found = small(), []
    for seed in range(4):
        options = {"top_k": 1, "temperature": 1.0, "steps": 5, "internal": {"forbidden": (2,)}}
        decoder = build("block x quota", traits=model.traits, vocab=model.vocab, block=16, **options)
        request = Request(layout=lay([Fixed(ids=given, text=None), Gap(length=20)]), decoder=decoder, seed=seed)
        engine = Engine(model)
        found = [facts(drain_one(engine, request)) for _ in range(2)]
        assert engine.stats.reused == 48
        (in_parts,) = [facts(drain_one(Engine(model, positions=20), request))]
        assert found[0] == found[1]
        assert found[0][:-2] == in_parts[:-2]
        assert found[0][-1] == in_parts[-1]


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="other libraries make no such promise")
@pytest.mark.parametrize("name", ["llada", "mdlm", "dream", "fast-dllm-dual", "block x quota"])
def test_where_nothing_is_given_rounding_decides_and_it_is_the_same_everywhere(name):
    """Rows of nothing but masks: all positions look alike, and the last digit says which of them comes first."""
    model = small()
    decoder = build(name, traits=model.traits, vocab=model.vocab, internal={"forbidden": (2,), "no_end_before": 0.0})
    requests = [Request(layout=lay([Gap(length=size)]), decoder=decoder, seed=size) for size in (3, 7, 13, 21, 37, 51)]
    engine = Engine(model, rows=9)
    ids = [(engine.add(request), engine.add(asked(number))) for number, request in enumerate(requests)]
    found = drain(engine)
    for (id, _), request in zip(ids, requests, strict=True):
        session = Session(model, [request.layout], decoder, [request.seed])
        list(session.run())
        (wanted,), result = session.results(), found[id][1].result
        assert result.gaps == wanted.gaps
        assert result.changes == wanted.changes  # log-probabilities, to the bit


@pytest.mark.parametrize("positions", [1, 2, 5])
@pytest.mark.parametrize("name", ["block x threshold", "self-speculative", "many x quota"])
def test_what_is_fed_once_more_is_not_taken_for_text_to_be_read(positions, name):
    """A model that speaks of the next token reads the one before a block in each forward."""
    shape = Shape(vocab_size=SIZE, width=32, depth=1, heads=4, hidden=64, max_length=64, qk_norm=True)
    vocab = Vocab(size=SIZE, mask=0, eos=1)
    model = Transformer(shape, vocab, Traits(sees="all", speaks="next", reads=(1, 4)), seed=3).eval()
    decoder = build(name, traits=model.traits, vocab=vocab, block=4)
    requests = [
        Request(layout=lay([Fixed(ids=tuple(range(5, 5 + size)), text=None), Gap(length=12)]), decoder=decoder)
        for size in (1, 4, 21)
    ]
    engine = Engine(model, rows=2, positions=positions)
    ids = [engine.add(request) for request in requests]
    found = drain(engine)
    for id, request in zip(ids, requests, strict=True):
        session = Session(model, [request.layout], decoder, [request.seed])
        list(session.run())
        assert found[id][1].result.gaps == session.results()[0].gaps


def test_an_engine_of_one_row_has_room_for_any_row():
    """Shadows and a guided half need more pages than the text alone."""
    for options in ({"block": 16}, {"block": 16, "guidance": 0.5}):
        decoder = build("self-speculative", traits=small().traits, vocab=small().vocab, **options)
        request = Request(layout=lay([Fixed(ids=(5, 6), text=None), Gap(length=LENGTH - 2)]), decoder=decoder)
        assert drain_one(Engine(small(), rows=1), request).left == 0


def test_the_oldest_is_not_held_up():
    """However many come behind it, and however long their prompts."""
    engine = Engine(small(), rows=4, positions=8)
    number = next(n for n in NUMBERS if KINDS[n % len(KINDS)][0] == "block x quota")
    first = engine.add(asked(number))
    found, steps = {}, 0
    while found.get(first, ([], None))[1] is None:
        engine.add(asked(random.Random(steps).choice(NUMBERS)))
        take(engine.step(), found)
        steps += 1
    assert steps <= alone(number)[3] + len(asked(number).layout.tokens) // 4


class Broken:
    """A model that fails, or says nothing that is a number, wherever it meets a token."""

    def __init__(self, model, poison, how):
        self.model, self.poison, self.how = model, poison, how

    def __getattr__(self, name):
        return getattr(self.model, name)

    def read(self, tokens, **rest):
        hit = (tokens == self.poison) & (rest["positions"] >= 0)
        if self.how == "raises" and bool(hit.any()):
            raise RuntimeError("boom")
        return self.model.read(tokens, **rest).masked_fill(hit.any(1)[:, None, None], torch.nan)


def meets(number, poison):
    """Whether a request comes across a token, behind what is told of it included."""
    request = asked(number)
    broken, spans = Broken(small(), poison, "raises"), [request.spans]
    session = Session(broken, [request.layout], request.decoder, [request.seed], ends=request.ends, spans=spans)
    try:
        list(session.run())
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("how", ["raises", "no numbers"])
def test_one_that_fails_takes_nobody_with_it(how):
    poison = 47
    clean = list(islice((n for n in NUMBERS if not meets(n, poison)), 12))
    good = asked(clean[0])
    tokens = [*good.layout.tokens[:3], poison]
    bad = Request(layout=lay([Fixed(ids=tuple(tokens), text=None), Gap(length=8)]), decoder=good.decoder, seed=1)
    engine = Engine(Broken(small(), poison, how), rows=16)
    ids, fails = [], []
    for number in clean:
        ids.append(engine.add(asked(number)))
        fails.append(engine.add(bad))
    found = drain(engine)
    for id, number in zip(ids, clean, strict=True):
        told, last = found[id]
        same(last, told, number)
    assert all(isinstance(found[id][1].error, RequestFailed) for id in fails)
    assert (engine.stats.failed, engine.stats.finished) == (len(fails), len(ids))
    assert engine.stats.pages_held == 0


class TestRefusals:
    """Before anything has changed."""

    def decoder(self, name="fast-dllm", **options):
        model = small()
        internal = {"forbidden": (2,), "no_end_before": 0.0}
        return build(name, traits=model.traits, vocab=model.vocab, internal=internal, **options)

    def row(self, size):
        return lay([Fixed(ids=(5, 6), text=None), Gap(length=size)])

    @pytest.mark.parametrize(
        ("error", "size", "name", "options"),
        [
            (TooLong, 500, "fast-dllm", {}),
            (TooLong, 100, "ar", {}),
            (BadInput, 64, "llada", {"steps": 3, "block": 8}),
        ],
    )
    def test_what_can_never_be_written(self, error, size, name, options):
        engine = Engine(small(), cache_positions=64)
        with pytest.raises(error):
            engine.add(Request(layout=self.row(size), decoder=self.decoder(name, **options)))
        assert not engine.busy
        assert engine.step() == []

    def test_stop_strings_without_a_tokenizer(self):
        with pytest.raises(Unsupported, match="tokenizer"):
            Engine(small()).add(Request(layout=self.row(4), decoder=self.decoder(), stops=("x",)))

    def test_nothing_to_start_from(self):
        decoder = build("ar", traits=small("left").traits, vocab=small("left").vocab)
        with pytest.raises(BadInput, match="prompt"):
            Engine(small("left")).add(Request(layout=lay([Gap(length=4)]), decoder=decoder))

    @pytest.mark.parametrize("wrong", [{"rows": 0}, {"positions": 0}])
    def test_an_engine_of_nothing(self, wrong):
        with pytest.raises(BadInput):
            Engine(small(), **wrong)

    def test_nothing_to_write(self):
        engine = Engine(small())
        id = engine.add(Request(layout=lay([Fixed(ids=(5, 6), text=None)]), decoder=self.decoder()))
        ((told, last),) = drain(engine).values()
        assert (told, last.id, last.result.left, last.result.forwards) == ([], id, 0, 0)


class TestConstrained:
    """What is asked of a text is known before it is written, and forgotten with its row."""

    def ask(self, size, pattern="[a-z]*", *, given=None, name="mdlm", seed=0, **options):
        layout = lay([Fixed(ids=(5, 6), text=None), Gap(length=size, given=given)])
        internal = {"forbidden": (2,), "no_end_before": float("inf")}
        decoder = build(name, traits=small().traits, vocab=small().vocab, internal=internal, **options)
        automaton = compile_here(Constraint(body=Regex(pattern)), Vocabulary(LETTERS, (1,)))
        spans = (Span(automaton=automaton, start=2, stop=2 + size),)
        return Request(layout=layout, decoder=decoder, spans=spans, seed=seed)

    @pytest.mark.parametrize(
        ("call", "error", "says"),
        [
            ({"size": 3, "pattern": "[a-z]{9}"}, BadInput, "shortest text that fits has 9 tokens"),
            ({"size": 3, "given": {1: 40}}, BadInput, "the token 40 at position 3 contradicts"),
            ({"size": 8, "name": "llada", "lookahead": 2}, Unsupported, "lookahead"),
            ({"size": 8, "name": "self-speculative"}, Unsupported, "drafted"),
        ],
    )
    def test_what_can_never_be_written(self, call, error, says):
        engine = Engine(small())
        with pytest.raises(error, match=says):
            engine.add(self.ask(**call))
        assert not engine.busy
        assert engine.stats.forwards == 0

    def test_a_place_that_is_used_again_is_free(self):
        """Whether its constrained request has ended or was cancelled."""
        engine, free = Engine(small(), rows=1), asked(11)
        for cancelled in (False, True):
            id = engine.add(self.ask(12, "(ab)*", steps=12))
            engine.step()
            if cancelled:
                engine.cancel(id)
            else:
                tokens = drain(engine)[id][1].result.gaps[0]
                assert b"".join(LETTERS[t] for t in tokens) == b"ab" * 6
            assert facts(drain_one(engine, free)) == alone(11)
