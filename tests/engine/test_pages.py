"""Where layers find keys and values that lie in pages."""

import torch

from unmask.engine.pages import PAGE, Pages
from unmask.nn.cache import KVCache

LAYERS, HEADS, SIZE = 2, 3, 4


def filled(*held):
    """Pages that hold other numbers each; a row points at those that it is given."""
    pages = Pages(KVCache(LAYERS, 1, PAGE, HEADS, SIZE, like=torch.zeros(1)), rows=len(held), length=64, num_pages=9)
    draw = torch.Generator().manual_seed(0)
    for store in (pages.k, pages.v):
        store[:, 1:] = torch.randn(store[:, 1:].shape, generator=draw)
    for row, some in enumerate(held):
        pages.hold(row, some)
    return pages


def written_out(store, held):
    return torch.stack([torch.cat([store[page] for page in some]) for some in held])


def test_pages_are_found_in_their_order():
    held = [[3, 4, 5], [6, 2, 7], [8, 1, 0]]
    pages = filled([3, 4, 5], [6, 2, 7], [8, 1])
    for rows in ([0], [1], [2], [0, 1], [2, 0, 1]):
        shelf = pages.shelf(torch.tensor(rows), 3 * PAGE)
        for layer in range(LAYERS):
            for found, store in zip(shelf(layer), (pages.k, pages.v), strict=True):
                assert torch.equal(found, written_out(store[layer], [held[row] for row in rows]))


def test_what_lies_together_is_not_copied():
    pages = filled([3, 4, 5], [6, 2, 7])
    shelf = pages.shelf(torch.tensor([0]), 3 * PAGE)
    pages.k[1, 4, 2] = 7.0  # a layer looks when it has written
    k, v = shelf(1)
    assert (k[0, PAGE + 2] == 7.0).all()
    assert (k.data_ptr(), v.data_ptr()) == (pages.k[1, 3].data_ptr(), pages.v[1, 3].data_ptr())
    assert pages.shelf(torch.tensor([1]), 3 * PAGE)(1)[0].data_ptr() != pages.k[1, 6].data_ptr()
