"""Requests of every kind over a small random model, and what the plain loop writes for each."""

import random
import re
from functools import cache

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

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

SIZE, LENGTH = 48, 160
KINDS = [
    ("fast-dllm", {"block": 8, "threshold": 0.3}),
    ("fast-dllm", {"block": 16, "threshold": 0.2, "temperature": 0.7, "top_p": 0.9}),
    ("block x threshold", {"block": 4, "threshold": 0.3}),
    ("block x threshold", {"block": 16, "threshold": 0.15, "temperature": 0.5}),
    ("block x quota", {"block": 16, "steps": 4, "rank": "margin"}),
    ("block x quota", {"block": 4, "steps": 2, "top_k": 5, "temperature": 1.0}),
    ("block x threshold + edit", {"block": 4, "threshold": 0.2, "edit_threshold": 0.4}),
    ("block x ancestral + remask", {"block": 16, "temperature": 1.0}),
    ("block x threshold", {"block": 4, "threshold": 0.3, "guidance": 0.7}),
    ("ar", {}),
    ("ar", {"temperature": 1.0, "top_p": 0.8}),
    ("mdlm", {"steps": 6}),
    ("llada", {"steps": 12, "block": 8, "guidance": 1.5}),
    ("fast-dllm-dual", {"block": 8, "threshold": 0.3}),
    ("fast-dllm-prefix", {"block": 4, "threshold": 0.25}),
    ("remdm", {"steps": 7}),
    ("self-speculative", {"block": 3}),
    ("self-speculative", {"block": 6, "temperature": 0.8, "guidance": 0.5}),
    ("d2f", {"block": 4, "threshold": 0.3, "blocks": 3}),
    ("many x quota", {"block": 4, "steps": 2, "begin": 0.5, "press": 0.5}),
    ("wino", {"threshold": 0.25, "doubt": 0.2, "block": 8}),
    ("block x wino", {"threshold": 0.25, "doubt": 0.2, "block": 16}),
    ("llada", {"steps": 20, "block": 8, "lookahead": 2}),
    ("block x ancestral", {"block": 16, "temperature": 1.0, "lookahead": 3}),
    ("fast-dllm-dual", {"block": 16, "threshold": 0.5, "refresh": 3}),
    ("fast-dllm-dual", {"block": 8, "threshold": 0.5, "drift": 0.02, "audit": 2}),
    ("fast-dllm-prefix", {"block": 16, "threshold": 0.5, "refresh": 5, "drift": 0.04, "audit": 1, "guidance": 0.5}),
    ("fast-dllm", {"block": 8, "threshold": 0.3, "constrained": True}),
    ("block x quota", {"block": 4, "steps": 2, "top_k": 5, "temperature": 1.0, "constrained": True}),
    ("block x threshold + edit", {"block": 4, "threshold": 0.2, "edit_threshold": 0.1, "constrained": True}),
    ("mdlm", {"steps": 6, "constrained": True}),
    ("remdm", {"steps": 7, "constrained": True}),
    ("ar", {"temperature": 1.0, "top_p": 0.8, "constrained": True}),
    ("llada", {"steps": 12, "block": 8, "guidance": 1.5, "constrained": True}),
    ("d2f", {"block": 4, "threshold": 0.3, "blocks": 3, "constrained": True}),
    ("block x renoise", {"block": 16, "steps": 6, "bound": 2.0, "temperature": 0.5, "constrained": True}),
    ("wino", {"threshold": 0.25, "doubt": 0.6, "block": 8, "constrained": True}),
    ("fast-dllm-dual", {"block": 8, "threshold": 0.5, "drift": 0.02, "audit": 2, "constrained": True}),
    ("fast-dllm", {"block": 8, "threshold": 0.3, "leans": True}),
    ("block x threshold + edit", {"block": 4, "threshold": 0.2, "edit_threshold": 0.4, "leans": True}),
    ("remdm", {"steps": 7, "temperature": 1.0, "leans": True}),
    ("llada", {"steps": 12, "block": 8, "guidance": 1.5, "leans": True}),
    ("self-speculative", {"block": 6, "temperature": 0.8, "leans": True}),
    ("llada", {"steps": 20, "block": 8, "lookahead": 2, "leans": True}),
    ("d2f", {"block": 4, "threshold": 0.3, "blocks": 3, "leans": True}),
    ("block x quota", {"block": 4, "steps": 2, "top_k": 5, "temperature": 1.0, "constrained": True, "leans": True}),
    ("wino", {"threshold": 0.25, "doubt": 0.2, "block": 8, "leans": True}),
    ("fast-dllm-dual", {"block": 8, "threshold": 0.5, "drift": 0.02, "audit": 2, "leans": True}),
]
LETTERS = [b"", b"", b"", *(bytes([97 + i]) for i in range(26)), *(bytes([48 + i]) for i in range(SIZE - 29))]
"""What the tokens spell where a request is constrained."""
FORMS = [r"([a-m][n-z0-9])*[a-m]?", r"(abc)*(a|ab)?"]
"""Of the gaps of a constrained request; there are texts of every length."""


@cache
def small(sees="all"):
    """A random model, sharp enough to be sure of something."""
    shape = Shape(vocab_size=SIZE, width=32, depth=2, heads=4, kv_heads=2, hidden=64, max_length=LENGTH, qk_norm=True)
    if sees == "all":
        traits = Traits(sees="all", reads=(1, 4, 16))
    else:
        traits = Traits(sees="left", speaks="next")
    model = Transformer(shape, Vocab(size=SIZE, mask=0, eos=1, bos=2), traits, seed=3).eval()
    with torch.no_grad():
        model.norm.weight.fill_(7.0)
    return model


@cache
def asked(number, sees="all"):
    """The request of a number; those whose numbers differ by 3 often begin alike."""
    model, draw = small(sees), random.Random(number)
    name, options = KINDS[number % len(KINDS)] if sees == "all" else ("ar", {"temperature": (number % 3) / 2})
    options = dict(options)
    constrained, leans = options.pop("constrained", False), options.pop("leans", False)
    beginning = random.Random(number % 3).choices(range(3, SIZE), k=50)[: draw.choice([1, 7, 16, 33, 50])]
    pieces = [Fixed(ids=tuple(beginning), text=None), Gap(length=draw.randint(1, 40))]
    if sees == "all" and draw.random() < 0.3 and name not in ("ar",):
        pieces += [Fixed(ids=tuple(draw.choices(range(3, SIZE), k=5)), text=None), Gap(length=draw.randint(1, 9))]
    early = float(draw.choice([0, 0, 60]))
    ends = len(pieces) == 2 and draw.random() < 0.7
    internal = {"no_end_before": early if ends or not constrained else float("inf"), "forbidden": (2,)}
    if leans:
        internal["bias"] = tuple((token, draw.uniform(-4, 4)) for token in sorted(draw.sample(range(1, SIZE), k=7)))
        internal["top_logprobs"] = draw.randint(0, 9)
    decoder = build(name, traits=model.traits, vocab=model.vocab, internal=internal, **options)
    layout = lay(pieces)
    spans = tuple(
        Span(automaton=form(i), start=gap.start, stop=gap.stop, ends=ends, least=max(0, int(early) - gap.start))
        for i, gap in enumerate(layout.gaps if constrained else ())
    )
    return Request(layout=layout, decoder=decoder, seed=number, ends=ends, spans=spans)


@cache
def form(number):
    return compile_here(Constraint(body=Regex(FORMS[number])), Vocabulary(LETTERS, (1,)))


@cache
def alone(number, sees="all"):
    """What the plain loop writes."""
    request = asked(number, sees)
    spans = [request.spans]
    session = Session(small(sees), [request.layout], request.decoder, [request.seed], ends=request.ends, spans=spans)
    for _ in session.run():
        pass
    found = session.results()[0]
    for i, gap in enumerate(found.gaps if request.spans else ()):
        text = b"".join(LETTERS[token] for token in gap).decode()
        assert re.fullmatch(FORMS[i], text)
        assert not found.left
    return facts(found)


def facts(filled):
    """All of a result but what is known of it only as a sum of floats."""
    changes = [(c.step, c.position, c.token, c.kind, [token for token, _ in c.ranked]) for c in filled.trace]
    return filled.gaps, filled.ended, filled.left, filled.forwards, changes


def drain(engine: Engine, found=None, *, most=3000):
    """Step until nothing is left; the last delta of each request, and all tokens that it was told."""
    found = {} if found is None else found
    for _ in range(most):
        if not engine.busy:
            return found
        take(engine.step(), found)
    raise AssertionError("the engine does not come to an end")


def take(deltas, found):
    for delta in deltas:
        tokens, last = found.get(delta.id, ([], None))
        assert last is None, "nothing is told after the last"
        found[delta.id] = (tokens + delta.tokens, delta if delta.last else None)


class Coming(RuleBasedStateMachine):
    """Requests go on and are taken back; how they come, and what each has to be at its end, is for those who are this.

    Attributes:
        engine: theirs.
        numbers: of the requests, by what the engine calls them.
        found: what it has told.
        cancelled: those that were taken back.
    """

    def same(self, last, tokens, number):
        """Fail unless a request has become what it would have become alone."""
        raise NotImplementedError

    @rule(times=st.integers(1, 6))
    def step(self, times):
        for _ in range(times):
            take(self.engine.step(), self.found)

    @rule(pick=st.randoms(use_true_random=False))
    def cancel(self, pick):
        there = [id for id in self.numbers if self.found.get(id, ([], None))[1] is None and id not in self.cancelled]
        if there:
            id = pick.choice(there)
            assert self.engine.cancel(id)
            assert not self.engine.cancel(id)
            self.cancelled.add(id)

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        drain(self.engine, self.found)
        for id, number in self.numbers.items():
            tokens, last = self.found.get(id, ([], None))
            if id in self.cancelled:
                assert last is None
            else:
                self.same(last, tokens, number)
        assert self.engine.stats.pages_held == 0
        assert self.engine.stats.running == self.engine.stats.waiting == 0
