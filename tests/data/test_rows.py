"""Packing loses nothing, copies nothing and never joins documents; batches are a pure function of their number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.base.attend import NOBODY, Attend
from unmask.data.rows import Loader, Rows
from unmask.data.tokens import Tokens


def tokens_of(lengths):
    """Documents of these lengths whose ids all differ."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Tokens(np.arange(1000, 1000 + starts[-1], dtype=np.uint32), starts, int(starts[-1]))


def all_of(rows):
    return rows.take(np.arange(len(rows)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 9))
def test_rows_hold_every_token_once_in_pieces_of_one_document(lengths, length):
    """Against the obvious way: walk through the documents, token by token."""
    tokens = tokens_of(lengths)
    batch = all_of(Rows(tokens, length, blank=7))
    slots = [(d, int(i)) for d, size in enumerate(lengths) for i in tokens.ids[tokens.starts[d] :][:size]]
    for at in range(batch.tokens.numel()):
        row, column = divmod(at, length)
        if at >= len(slots):
            assert (batch.tokens[row, column], batch.documents[row, column], batch.places[row, column]) == (
                7,
                NOBODY,
                0,
            )
            continue
        document, token = slots[at]
        first_of_piece = next(c for c in range(column + 1) if slots[row * length + c][0] == document)
        assert batch.tokens[row, column] == token
        assert batch.documents[row, column] == document - slots[row * length][0]
        assert batch.places[row, column] == column - first_of_piece
    assert (batch.documents == NOBODY).sum() == batch.tokens.numel() - len(slots) < length


def test_a_piece_sees_itself_and_nothing_else():
    batch = all_of(Rows(tokens_of([3, 4, 2]), 5, blank=0))
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, NOBODY]]
    assert batch.places.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 0]]
    slots = torch.arange(5).expand(2, 5)
    seen = Attend(kind="full", documents=batch.documents, places=batch.places).allows(slots, slots)
    assert seen[0].int().tolist() == [[1, 1, 1, 0, 0]] * 3 + [[0, 0, 0, 1, 1]] * 2
    assert not seen[1, :, 4].any()


LOADER = Loader(Rows(tokens_of([5] * 23), 5, blank=0), size=4, seed=3)


def test_an_epoch_goes_through_every_row_once_in_an_order_of_its_own():
    order = torch.cat([LOADER.batch(s).samples for s in range(23)]).reshape(4, 23)
    assert all(epoch.sort().values.tolist() == list(range(23)) for epoch in order)
    assert len({tuple(epoch.tolist()) for epoch in order}) == 4
    other = Loader(LOADER.rows, size=4, seed=4)
    assert other.batch(0).samples.tolist() != LOADER.batch(0).samples.tolist()


def test_the_order_does_not_depend_on_the_batch_size_or_on_what_was_read_before():
    small = torch.cat([Loader(LOADER.rows, size=2, seed=3).batch(s).samples for s in (8, 9)])
    assert small.tolist() == LOADER.batch(4).samples.tolist()
    again = Loader(LOADER.rows, size=4, seed=3).batch(11)  # a run that resumes at step 11
    for step in range(12):
        batch = LOADER.batch(step)
    for name in ("tokens", "documents", "places", "samples"):
        assert torch.equal(getattr(again, name), getattr(batch, name))
    assert again.epoch == batch.epoch == 1


def test_parts_of_a_batch_are_the_batch():
    batch = LOADER.batch(2)
    parts = [batch.part(i, i + 1) for i in range(4)]
    assert torch.equal(torch.cat([p.tokens for p in parts]), batch.tokens)
    assert torch.equal(torch.cat([p.samples for p in parts]), batch.samples)
    assert {p.epoch for p in parts} == {batch.epoch}


@pytest.mark.parametrize("step", [0, 5])
def test_a_row_is_the_same_whatever_batch_it_travels_in(step):
    batch = LOADER.batch(step)
    alone = LOADER.rows.take(batch.samples.numpy())
    assert torch.equal(alone.tokens, batch.tokens)
