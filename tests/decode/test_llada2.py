"""LLaDA2.0's and 2.1's decoding against a slow transcription of their published algorithms, one row at a time."""

import pytest
import torch

from exact import RandomConditionals
from unmask.base.attend import Attend
from unmask.base.vocab import Traits
from unmask.decode.decoder import build
from unmask.decode.session import Session
from unmask.text.layout import Fixed, Gap, lay


class Known(RandomConditionals):
    """A denoiser that a session can ask for its device."""

    device = torch.device("cpu")


SIZE, BLOCK, LENGTH = 5, 4, 16
TRAITS = Traits(sees="blocks", block=BLOCK)
PROMPTS = [[1], [2, 3, 1, 0], [4, 4, 1, 2, 3, 0], [0, 1, 2]]
GAP = 9


def beliefs(model, text):
    """Best token and its probability at every position of a text, read whole; the mask can't be said."""
    tokens = torch.tensor([text])
    logits = model.read(tokens, positions=torch.arange(len(text))[None], attend=Attend(kind="blocks", block=BLOCK))
    p = logits[0, :, :SIZE].softmax(-1)
    return p.argmax(-1).tolist(), p.amax(-1).tolist()


def blocks(prompt):
    end = -(-(len(prompt) + GAP) // BLOCK) * BLOCK
    return [*prompt, *[SIZE] * (end - len(prompt))], range(len(prompt) // BLOCK * BLOCK, end, BLOCK)


def llada2(model, prompt, threshold, steps):
    """Bie et al. 2025, arXiv:2512.15745: all above the threshold, or the share of the step if they are fewer."""
    text, starts = blocks(prompt)
    forwards = 0
    for start in starts:
        shares = [BLOCK // steps + (i < BLOCK % steps) for i in range(steps)]
        for share in shares:
            masked = [i for i in range(start, start + BLOCK) if text[i] == SIZE]
            if not masked:
                break
            forwards += 1
            token, p = beliefs(model, text[: start + BLOCK])
            sure = [i for i in masked if p[i] > threshold]
            if len(sure) < share:
                sure = sorted(masked, key=lambda i: -p[i])[:share]
            for i in sure:
                text[i] = token[i]
    return text[len(prompt) : len(prompt) + GAP], forwards


def llada21(model, prompt, threshold, edit_threshold, rounds):
    """Bie et al. 2026, arXiv:2602.08676, and its released generate: masks and mistakes at once, then mistakes alone."""
    text, starts = blocks(prompt)
    forwards, longest = 0, 0
    for start in starts:
        block, post = range(start, start + BLOCK), 0
        while True:
            masked = [i for i in block if text[i] == SIZE]
            post += not masked
            if post > rounds:
                break
            forwards, longest = forwards + 1, max(longest, post)
            token, p = beliefs(model, text[: start + BLOCK])
            written = [i for i in masked if p[i] > threshold] or sorted(masked, key=lambda i: -p[i])[:1]
            edits = [i for i in block if i not in masked and i >= len(prompt)]
            edits = [i for i in edits if token[i] != text[i] and p[i] > edit_threshold]
            for i in [*written, *edits]:
                text[i] = token[i]
            if not masked and not edits:
                break
    return text[len(prompt) : len(prompt) + GAP], forwards, longest


def write(model, name, **options):
    decoder = build(name, traits=TRAITS, vocab=model.vocab, **options)
    rows = [lay([Fixed(ids=tuple(p), text=None), Gap(length=GAP)]) for p in PROMPTS]
    session = Session(model, rows, decoder, [0] * len(rows))
    list(session.run())
    return session.results()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("threshold", "steps"), [(0.95, 4), (0.6, 4), (0.8, 3), (0.99, 2), (0.5, 1)])
def test_llada2(seed, threshold, steps):
    model = Known(SIZE, LENGTH, seed=seed, traits=TRAITS)
    for prompt, filled in zip(PROMPTS, write(model, "llada2", threshold=threshold, steps=steps), strict=True):
        wanted, forwards = llada2(model, prompt, threshold, steps)
        assert filled.gaps[0] == wanted
        assert filled.forwards <= forwards  # what is cut off is not waited for


EDITS = [(0.7, 0.5, 16), (0.5, 0.0, 16), (0.95, 0.9, 16), (0.5, 0.0, 3), (0.5, 0.3, 1), (0.6, 0.0, 0)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("threshold", "edit_threshold", "rounds"), EDITS)
def test_llada2_edit(seed, threshold, edit_threshold, rounds):
    model = Known(SIZE, LENGTH, seed=seed, traits=TRAITS)
    options = {"threshold": threshold, "edit_threshold": edit_threshold, "rounds": rounds}
    for prompt, filled in zip(PROMPTS, write(model, "llada2-edit", **options), strict=True):
        wanted, forwards, _ = llada21(model, prompt, threshold, edit_threshold, rounds)
        assert filled.gaps[0] == wanted
        assert filled.forwards == forwards


def test_these_runs_do_edit_and_do_meet_the_limit():
    model = Known(SIZE, LENGTH, seed=0, traits=TRAITS)
    assert any(filled.trace.num_edits for filled in write(model, "llada2-edit", threshold=0.5, edit_threshold=0.0))
    met = [llada21(Known(SIZE, LENGTH, seed=s, traits=TRAITS), p, 0.5, 0.0, 16) for s in range(6) for p in PROMPTS]
    assert 16 in {longest for _, _, longest in met}


def test_the_presets_are_the_published_settings():
    vocab = Known(SIZE, LENGTH).vocab
    (policy,) = build("llada2", traits=TRAITS, vocab=vocab).policies
    assert (policy.threshold, policy.strict, policy.timetable) == (0.95, True, "full")
    policy, edit = build("llada2-edit", traits=TRAITS, vocab=vocab).policies
    assert (policy.threshold, policy.strict, edit.edit_threshold, edit.rounds) == (0.7, True, 0.5, 16)
