"""What travels beside the text, and blocks that are written at once: against loops that spell the method out."""

from functools import partial

import pytest
import torch

from exact import RandomConditionals
from unmask.base.attend import ALL, NOBODY, Attend, Shadows
from unmask.base.canvas import Canvas
from unmask.base.errors import BadInput, Unsupported
from unmask.base.vocab import Traits, Vocab
from unmask.decode import loop
from unmask.decode.decoder import build
from unmask.decode.loop import denoise
from unmask.decode.memory import Remembering
from unmask.decode.trace import Trace, record
from unmask.models.backbone import Shape, Transformer

MASK, SIZE, LENGTH = 0, 40, 64
MIXED = Traits(sees="all", reads=(1, 4, 16))


def network(traits=MIXED, seed=1, sharp=12.0):
    shape = Shape(vocab_size=SIZE, width=32, depth=2, heads=4, hidden=64, max_length=LENGTH, qk_norm=True)
    model = Transformer(shape, Vocab(size=SIZE, mask=MASK, eos=1), traits, seed=seed).eval()
    with torch.no_grad():
        model.norm.weight.fill_(sharp)
    return model


def write(model, rows, decoder, *, seeds=(), stop=False, internal=None, **options):
    made = build(decoder, traits=model.traits, vocab=model.vocab, internal=internal, **options)
    canvas = Canvas.of(rows, mask=model.vocab.mask, eos=model.vocab.eos, stop=stop, seeds=seeds)
    canvas.ends = model.vocab.ends
    traces = {row: Trace() for row in range(len(rows))}
    for turn in denoise(model, canvas, made):
        record(traces, canvas, turn)
    return canvas, traces


def open_tail(prompt, length):
    return [*prompt, *[MASK] * length], [False] * len(prompt) + [True] * length


class TestTheRule:
    def test_a_shadow_stands_for_its_place_and_sees_its_lane_in_the_place_of_text(self):
        places = torch.tensor([[2, 3, NOBODY, 2]])
        lanes, start, stop = torch.tensor([[0, 0, 0, 1]]), torch.tensor([[2, 2, 0, 1]]), torch.tensor([[4, 4, 0, 3]])
        rule = Attend(kind="blocks", block=2, shadows=Shadows(torch.tensor([6]), places, lanes, start, stop))
        slots = torch.arange(12)[None]
        seen = rule.allows(slots, slots)[0]
        for q in range(12):
            for k in range(12):
                stands = [*range(6), 2, 3, NOBODY, 2, 10, 11]
                by_place = stands[k] // 2 <= stands[q] // 2
                shadow_q, shadow_k = 6 <= q < 10, 6 <= k < 10
                if not shadow_q:
                    right = by_place and not shadow_k
                elif shadow_k:
                    right = by_place and lanes[0, q - 6] == lanes[0, k - 6]
                else:
                    right = by_place and not start[0, q - 6] <= stands[k] < stop[0, q - 6]
                if stands[q] != NOBODY and stands[k] != NOBODY:
                    assert bool(seen[q, k]) == bool(right), (q, k)

    def test_rules_with_and_without_shadows_are_joined(self):
        one = Shadows(torch.tensor([4]), *(torch.tensor([[x, x]]) for x in (1, 0, 1, 2)))
        rules = [
            (Attend(kind="causal"), 2),
            (Attend(kind="canvas", start=torch.tensor([3]), shadows=one), 1),
            (Attend(kind="blocks", block=torch.tensor([4])), 1),
        ]
        joined = Attend.join(rules)
        slots = torch.arange(8)[None]
        for row, rule in enumerate([Attend(kind="causal"), rules[1][0], rules[2][0]], start=1):
            alone = rule.allows(slots, slots)[0]
            together = joined.allows(slots.expand(4, -1), slots.expand(4, -1))[row]
            assert torch.equal(alone, together)
        assert joined.rows(torch.tensor([1])).shadows.first.tolist() == [ALL]


@torch.no_grad()
def released_wino(model, prompt, length, block, threshold, doubt):
    """WINO as released, for one row: everything is fed, masks stand behind the row, rules are spelt out as a tensor."""
    total = len(prompt) + length
    text = torch.tensor([*prompt, *[MASK] * length])
    forwards = 0
    for start in range(len(prompt), total, block):
        stop, last = start + block, 30
        places = torch.cat([torch.arange(total), torch.arange(start, stop)])
        rule = torch.ones(total + block, total + block, dtype=torch.bool)
        rule[:total, total:] = False
        rule[total:, start:stop] = ~torch.eye(block, dtype=torch.bool)
        while bool((text[start:stop] == MASK).any()):
            masked = text[start:stop] == MASK
            fed = torch.cat([text, torch.full((block,), MASK)])
            features = model.read(fed[None], positions=places[None], attend=Attend(kind="given", given=rule[None]))
            logits = model.head(features)[0].double()
            logits[:, MASK] = -torch.inf
            p = logits.softmax(-1)
            forwards += 1
            token = logits[start:stop].argmax(-1)
            sure = torch.where(masked, p[start:stop].gather(1, token[:, None])[:, 0], -torch.inf)
            standing = p[total:].gather(1, text[start:stop, None])[:, 0]
            back = torch.where(masked, torch.inf, standing)
            most = min(max(int(masked.sum() * 0.7), 5), 20)
            taken = sure > threshold
            if taken.sum() > most:
                taken = torch.zeros_like(taken)
                taken[sure.topk(most).indices] = True
            elif not taken.any():
                taken[sure.argmax()] = True
            again = torch.zeros_like(taken)
            if taken.sum() > 1:
                again = back < doubt
                if again.sum() >= last:
                    again = torch.zeros_like(taken)
                    again[back.topk(last - 1, largest=False).indices] = True
            text[start:stop] = torch.where(taken, token, text[start:stop])
            text[start:stop][again] = MASK
            last = int(taken.sum())
    return text.tolist(), forwards


@pytest.mark.parametrize(("threshold", "doubt"), [(0.6, 0.9), (0.3, 0.25), (0.15, 0.1), (0.05, 0.9)])
def test_wino_is_what_the_release_writes(threshold, doubt):
    taken_back = 0
    for seed in range(3):
        model = network(seed=seed)
        prompt = [5 + seed, 9, 30, 31, 7][: 2 + seed]
        canvas, traces = write(model, [open_tail(prompt, 32)], "wino", block=16, threshold=threshold, doubt=doubt)
        text, forwards = released_wino(model, prompt, 32, 16, threshold, doubt)
        assert canvas.tokens[0].tolist() == text
        assert int(canvas.forwards[0]) == forwards
        taken_back += sum(change.kind == "reopen" for change in traces[0])
    assert taken_back or (threshold, doubt) != (0.05, 0.9)


@torch.no_grad()
def spelt_out_d2f(model, prompt, length, size, *, most, begin, press, threshold):
    """D2F's algorithm 2 for one row, every forward over all blocks that are begun, without a cache."""
    total = len(prompt) + length
    text = torch.tensor([*prompt, *[MASK] * length])
    first = len(prompt) // size
    begun, forwards = [first], 0

    def share(b):
        part = text[b * size : min((b + 1) * size, total)]
        return float((part != MASK).sum() / len(part))

    while bool((text == MASK).any()):
        live = [b for b in begun if any(share(c) < 1 for c in begun if c <= b)]
        while len(live) < most and (begun[-1] + 1) * size < total and share(begun[-1]) >= begin:
            begun.append(begun[-1] + 1)
            live.append(begun[-1])
        end = min((live[-1] + 1) * size, total)
        at = torch.arange(end)[None]
        features = model.read(text[None, :end], positions=at, attend=Attend(kind="blocks", block=size))
        logits = model.head(features)[0].double()
        logits[:, MASK] = -torch.inf
        sure, token = logits.softmax(-1).max(-1)
        forwards += 1
        before = {b: share(b) for b in live}
        for b in live:
            at = torch.arange(b * size, min((b + 1) * size, total))
            at = at[text[at] == MASK]
            if not len(at):
                continue
            taken = at[sure[at] > threshold]
            if not len(taken) and (b == live[0] or before[b - 1] >= press):
                taken = at[sure[at].argmax()][None]
            text[taken] = token[taken]
    return text.tolist(), forwards


@pytest.mark.parametrize(
    ("most", "begin", "press", "threshold"),
    [(4, 0.1, 0.95, 0.6), (3, 0.25, 0.5, 0.3), (2, 0.0, 0.0, 0.9), (1, 0, 1, 0.5)],
)
def test_blocks_at_once_are_what_the_algorithm_says(most, begin, press, threshold):
    for seed in range(3):
        model = network(seed=seed)
        prompt = [5 + seed, 9, 30, 31, 7][: 2 + seed]
        options = {"block": 4, "blocks": most, "begin": float(begin), "press": float(press), "threshold": threshold}
        canvas, _ = write(model, [open_tail(prompt, 40 - len(prompt))], "d2f", **options)
        text, forwards = spelt_out_d2f(
            model, prompt, 40 - len(prompt), 4, most=most, begin=begin, press=press, threshold=threshold
        )
        assert canvas.tokens[0].tolist() == text
        assert int(canvas.forwards[0]) == forwards


def test_a_block_more_at_a_time_needs_fewer_forwards():
    model = network(seed=2)
    forwards = [
        int(write(model, [open_tail([5], 47)], "d2f", block=4, threshold=0.12, blocks=n)[0].forwards) for n in (1, 2, 4)
    ]
    assert forwards == sorted(forwards, reverse=True)
    assert forwards[-1] < forwards[0]


AR_ROWS = [
    open_tail([5, 9], 24),
    open_tail([7], 9),
    (
        [5, 0, 0, 8, 8, 0, 0, 0, 0, 0, 11, 0],
        [False, True, True, False, False, True, True, True, True, True, False, True],
    ),
]


@pytest.mark.parametrize("traits", [MIXED, Traits(sees="left", speaks="next")], ids=["here", "next"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("bias", [(), ((5, 4.0), (9, -100.0), (12, 2.5))], ids=["", "leaning"])
def test_what_is_verified_is_what_token_by_token_writing_gives(traits, temperature, stop, block, bias):
    model, seeds = network(traits, seed=4, sharp=3.0), [1, 2, 3]
    same = {"temperature": temperature, "stop": stop, "seeds": seeds, "t_max": 1.5, "t_min": 0.5}
    same["internal"] = {"bias": bias, "top_logprobs": 3}
    slow, told = write(model, AR_ROWS, "ar", **same)
    fast, traces = write(model, AR_ROWS, "self-speculative", block=block, **same)
    assert torch.equal(fast.state, slow.state)
    assert torch.equal(fast.tokens.where(fast.state < 3, 0), slow.tokens.where(slow.state < 3, 0))
    for row in range(3):
        assert [(c.step, c.position, c.token, c.kind) for c in traces[row]] == [
            (c.step, c.position, c.token, c.kind) for c in told[row]
        ]
        assert [c.log_prob for c in traces[row]] == pytest.approx([c.log_prob for c in told[row]], abs=1e-6)
        assert [[i for i, _ in c.ranked] for c in traces[row]] == [[i for i, _ in c.ranked] for c in told[row]]


def test_nothing_is_told_of_what_a_draft_has_behind_an_end_of_text():
    model, ended = network(seed=4, sharp=2.0), 0
    for seed in range(12):
        rows, same = [open_tail([5], 40)], {"temperature": 1.5, "stop": True, "seeds": [seed]}
        slow, told = write(model, rows, "ar", **same)
        fast, traces = write(model, rows, "self-speculative", block=16, **same)
        assert [(c.position, c.token) for c in traces[0]] == [(c.position, c.token) for c in told[0]]
        assert torch.equal(fast.tokens, slow.tokens)
        ended += bool((slow.state == 3).any())
    assert ended


@pytest.mark.parametrize("decoder", ["ar", "self-speculative"])
def test_a_first_token_is_spoken_of_by_its_own_mask(decoder):
    model = network(Traits(sees="all", speaks="next", reads=(1,)), seed=4, sharp=3.0)
    canvas, _ = write(model, [open_tail([], 6)], decoder)
    text = [MASK]
    for _ in range(6):
        logits = model(torch.tensor([text]), attend=Attend(kind="causal"))[0, -1]
        logits[MASK] = -torch.inf
        text = text * (text != [MASK]) + [int(logits.argmax())]
    assert canvas.tokens[0].tolist() == text


def test_a_draft_that_is_right_saves_forwards():
    """A network that goes round in circles is easy to guess."""

    class Counting(RandomConditionals):
        def log_prob(self, evidence, target):
            right = target % self.size
            return torch.full((len(target), self.size), -9.0).scatter(1, right[:, None], 0.0).log_softmax(-1)

    model = Counting(5, 40, traits=Traits(sees="left", speaks="next"))
    row = ([0] + [5] * 30, [False] + [True] * 30)
    canvas, _ = write(model, [row], "self-speculative", block=4)
    assert canvas.tokens[0, 1:].tolist() == [i % 5 for i in range(1, 31)]
    assert int(canvas.forwards[0]) == 2 * 6


CHAINS = [
    ("whole x quota", {}),
    ("whole x quota", {"rank": "margin", "steps": 5}),
    ("whole x quota", {"rank": "position", "temperature": 0.9}),
    ("whole x threshold", {"threshold": 0.5, "block": 4}),
    ("whole x ancestral", {"temperature": 1.0, "steps": 30}),
    ("whole x entropy_bound", {"bound": 0.6}),
    ("block x quota", {"rank": "random"}),
    ("block x factor", {"factor": 0.7, "temperature": 0.5}),
    ("block x ancestral", {"temperature": 1.0}),
    ("whole x quota", {"rank": "position", "t_max": 2.0, "t_min": 0.25}),
    ("block x ancestral", {"temperature": 1.0, "t_max": 0.25, "t_min": 2.0}),
    ("whole x quota", {"top_k": 1, "steps": 6}),  # all that is offered is equally sure
    ("block x quota", {"top_k": 1}),
]


TOLD = {"bias": ((2, 1.5), (4, -0.5)), "top_logprobs": 2}


@pytest.mark.parametrize(("decoder", "options"), CHAINS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("speaks", ["here", "next"])
def test_guessed_steps_change_nothing_but_the_number_of_forwards(decoder, options, count, speaks):
    sees = {"sees": "all"} if decoder.startswith("whole") else {"sees": "blocks", "block": 4}
    rows = [
        ([1, 2, *[6] * 9], [False, False, *[True] * 9]),
        ([1, 6, 6, 3, 6, 6, 4, 6, 6], [False, True, True, False, True, True, False, True, True]),
    ]
    found = []
    for lookahead in (0, count):
        model = RandomConditionals(6, 12, seed=5, scale=3.0, traits=Traits(**sees, speaks=speaks))
        found.append(write(model, rows, decoder, seeds=[3, 4], internal=TOLD, lookahead=lookahead, **options))
    (slow, told), (fast, traces) = found
    assert all(len(change.ranked) in (1, 2) for trace in told.values() for change in trace)
    assert torch.equal(slow.tokens, fast.tokens)
    assert torch.equal(slow.turn, fast.turn)
    assert {row: list(trace) for row, trace in told.items()} == {row: list(trace) for row, trace in traces.items()}
    assert bool((fast.forwards <= slow.forwards).all())


def test_guessed_steps_of_a_network_are_right_often_enough_to_save_forwards():
    model = network(seed=3)
    forwards = [
        write(model, [open_tail([5, 9], 30)], "llada", block=8, lookahead=n)[0].forwards.tolist() for n in (0, 2)
    ]
    assert forwards[1] < forwards[0]


@pytest.mark.parametrize("steps", [12, 40])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("positions", [1 << 20, 3 * 15, 15])
def test_guesses_never_cost_forwards_where_most_steps_write_nothing(monkeypatch, steps, count, positions):
    """Without them a row travels once for each text that it has been, if all texts are remembered."""
    monkeypatch.setattr(loop, "Remembering", partial(Remembering, most_bytes=positions * 7 * 8))
    rows, total = [open_tail([5], 9), open_tail([7, 8], 5), open_tail([9, 4, 2], 12)], torch.zeros(2, dtype=torch.int64)
    for seed in range(2):
        forwards = []
        for lookahead in (0, count):
            model = RandomConditionals(6, 15, seed=seed, scale=9.0)
            rows_at = [([x if x != MASK else model.vocab.mask for x in ids], is_open) for ids, is_open in rows]
            options = {"temperature": 0.5, "steps": steps, "seeds": [seed, seed + 9, seed + 18], "lookahead": lookahead}
            forwards.append(write(model, rows_at, "whole x ancestral", **options)[0].forwards)
        assert bool((forwards[1] <= forwards[0]).all()), (seed, forwards)
        total += torch.stack(forwards).sum(1)
    assert total[1] < total[0] or count == 1 or steps == 40 or positions == 15


@pytest.mark.parametrize("decoder", ["whole x quota", "block x quota"])
def test_an_end_of_text_ends_guesses_too(decoder):
    ended = 0
    for seed in range(8):
        model = network(seed=seed, sharp=2.0)
        options = {"block": 4, "temperature": 1.0, "seeds": [seed], "stop": True}
        slow, _ = write(model, [open_tail([5], 30)], decoder, **options)
        fast, _ = write(model, [open_tail([5], 30)], decoder, lookahead=3, **options)
        assert torch.equal(slow.state, fast.state)
        assert torch.equal(slow.tokens.where(slow.state < 3, 0), fast.tokens.where(fast.state < 3, 0))
        ended += bool((slow.state == 3).any())
    assert ended


@pytest.mark.parametrize(
    ("decoder", "options", "says"),
    [
        ("whole x threshold + edit", {"lookahead": 2}, "lookahead"),
        ("whole x edit", {}, "nothing is written before it"),
        ("draft x threshold", {}, "only go with each other"),
        ("block x verify", {"block": 4}, "only go with each other"),
        ("vicinity x wino", {}, "whole or block"),
        ("many x threshold + edit", {"block": 4}, "stays"),
        ("many x threshold", {"block": 5}, "blocks of 1, 4, 16"),
    ],
)
def test_what_can_not_go_together_is_refused(decoder, options, says):
    with pytest.raises((BadInput, Unsupported), match=says):
        build(decoder, traits=MIXED, vocab=network().vocab, **options)


@pytest.mark.parametrize(
    ("decoder", "useless", "guesses"),
    [
        ("whole x threshold", "eta", True),
        ("block x ancestral", "threshold", True),
        ("ar", "threshold", False),
        ("vicinity x threshold", "eta", False),
        ("block x threshold + edit", "eta", False),
        ("self-speculative", "threshold", False),
    ],
)
def test_only_those_say_that_they_take_guesses_that_do(decoder, useless, guesses):
    options = {"traits": MIXED, "vocab": network().vocab}
    with pytest.raises(BadInput, match=useless) as refused:
        build(decoder, **options, **{useless: 0.5})
    assert ("lookahead" in str(refused.value)) == guesses
    if guesses:
        assert build(decoder, **options, lookahead=2).lookahead == 2
    else:
        with pytest.raises(Unsupported, match="leave lookahead out"):
            build(decoder, **options, lookahead=2)


def test_drafts_need_a_mask_and_judges_need_a_model_that_speaks_of_masks():
    left = Traits(sees="left", speaks="next")
    with pytest.raises(Unsupported, match="no mask token"):
        build("self-speculative", traits=left, vocab=Vocab(size=9, eos=1))
    with pytest.raises(Unsupported, match="'next'"):
        build("wino", traits=Traits(speaks="next"), vocab=Vocab(size=9, mask=0))
