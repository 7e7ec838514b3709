"""Pieces laid out as one row of positions, and the text that comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.text.layout import Fixed, Gap, Layout, Span, lay

PIECES = st.lists(
    st.one_of(
        st.builds(
            lambda ids, text: Fixed(ids=tuple(ids), text=text), st.lists(st.integers(1, 99), max_size=4), st.text()
        ),
        st.builds(
            lambda length, given: Gap(length=length, given={i: t for i, t in given.items() if i < length}),
            st.integers(0, 5),
            st.dictionaries(st.integers(0, 4), st.integers(1, 99)),
        ),
    ),
    max_size=6,
)


def test_an_example():
    layout = lay(
        [Fixed(ids=(5, 6), text="Dear "), Gap(length=3, name="who", given={1: 9}), Fixed(ids=(7,), text="!")],
        start=(2,),
    )
    assert layout.tokens == (2, 5, 6, 0, 9, 0, 7)
    assert layout.is_open == (False, False, False, True, False, True, False)
    assert layout.pieces == ("Dear ", Span(3, 6, "who"), "!")
    assert layout.gaps == [Span(3, 6, "who")]
    assert layout.join(["Ann"]) == "Dear Ann!"


def test_nothing():
    assert lay([]) == Layout((), (), ())
    assert lay([]).join([]) == ""
    assert lay([], start=(2,)).tokens == (2,)


@given(PIECES, st.lists(st.integers(1, 99), max_size=2))
def test_positions_follow_each_other_and_only_what_is_asked_is_open(pieces, start):
    layout = lay(pieces, start=start, blank=100)
    assert len(layout.tokens) == len(layout.is_open)
    assert len(layout.tokens) == len(start) + sum(p.length if isinstance(p, Gap) else len(p.ids) for p in pieces)
    assert all((token == 100) == is_open for token, is_open in zip(layout.tokens, layout.is_open, strict=True))
    at = len(start)
    for piece, part in zip(pieces, layout.pieces, strict=True):
        if isinstance(piece, Gap):
            assert part == Span(at, at + piece.length, None)
            kept = {i: layout.tokens[at + i] for i in range(piece.length) if not layout.is_open[at + i]}
            assert kept == dict(piece.given)
            at += piece.length
        else:
            assert part == piece.text
            assert layout.tokens[at : at + len(piece.ids)] == piece.ids
            at += len(piece.ids)


@given(PIECES)
def test_fixed_text_comes_back_as_it_was(pieces):
    layout = lay(pieces)
    fills = [f"<{i}>" for i in range(len(layout.gaps))]
    left = iter(fills)
    assert layout.join(fills) == "".join(next(left) if isinstance(p, Gap) else p.text for p in pieces)


def test_what_has_no_string_has_no_text():
    with_ids = lay([Fixed(ids=(4,), text=None), Gap(length=1)])
    assert with_ids.join(["x"]) is None
    with_gap = lay([Fixed(ids=(4,), text="a"), Gap(length=1)])
    assert with_gap.join([None]) is None
    assert with_gap.join([""]) == "a"


@pytest.mark.parametrize("blank", [0, 3])
def test_open_positions_hold_the_blank(blank):
    assert lay([Gap(length=2, given={0: 8})], blank=blank).tokens == (8, blank)
