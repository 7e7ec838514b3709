"""With a cache and without, the same numbers."""

import pytest
import torch
from test_backbone import VARIANTS, build, close, ids

from unmask.base.attend import Attend

L = 12


def feed(model, cache, attend, tokens, positions, keep=True, rows=None):
    """Logits (R, W, V) of some positions over a cache."""
    positions = torch.as_tensor(positions)
    positions = positions.expand(len(tokens), -1) if positions.dim() == 1 else positions
    fed = tokens.gather(1, positions.clamp(min=0))
    keep = torch.as_tensor(keep).expand(positions.shape)
    return model.head(model.read(fed, positions=positions, attend=attend, cache=cache, rows=rows, keep=keep))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attention", ["sdpa", "plain", "flex"])
@pytest.mark.parametrize(
    ("attend", "size"),
    [
        (Attend(kind="causal"), 1),
        (Attend(kind="causal"), 5),
        (Attend(kind="blocks", block=4), 4),
        (Attend(kind="blocks", block=2), 6),
        (Attend(kind="blocks", block=torch.tensor([1, 2, 4])), 4),
    ],
)
@torch.no_grad()
def test_piece_by_piece_equals_one_forward(attention, attend, size):
    model, x = build(attention=attention).float(), ids(3, L)
    cache = model.cache(3, L + 3)
    pieces = [feed(model, cache, attend, x, torch.arange(i, min(i + size, L))) for i in range(0, L, size)]
    close(torch.cat(pieces, 1), model(x, attend=attend), atol=1e-4)
    assert cache.held.tolist() == [L] * 3


@torch.no_grad()
def test_denoising_leaves_no_trace_until_the_block_is_kept():
    model, attend = build(), Attend(kind="blocks", block=4)
    clean, cache = ids(2, L), model.cache(2, L)
    for start in range(0, L, 4):
        block = torch.arange(start, start + 4)
        for seed in (3, 4):  # drafts of the block, never kept
            draft = torch.cat([clean[:, :start], ids(2, 4, seed=seed), clean[:, start + 4 :]], 1)
            out = feed(model, cache, attend, draft, block, keep=False)
            close(out, model(draft[:, : start + 4], attend=attend)[:, start:])
            assert cache.held.tolist() == [start] * 2
        feed(model, cache, attend, clean, block)
    close(feed(model, cache, attend, clean, torch.arange(8, 12), keep=False), model(clean, attend=attend)[:, 8:])


@torch.no_grad()
def test_the_last_block_is_kept_while_the_next_is_denoised():
    model, attend, x = build(), Attend(kind="blocks", block=4), ids(2, L)
    cache = model.cache(2, L)
    feed(model, cache, attend, x, torch.arange(4))
    out = feed(model, cache, attend, x, torch.arange(4, 12), keep=[True] * 4 + [False] * 4)
    close(out, model(x, attend=attend)[:, 4:])
    assert cache.held.tolist() == [8, 8]


@torch.no_grad()
def test_ragged_rows():
    """Rows at different places, one fed less than the others, in one forward."""
    model, attend, x = build(), Attend(kind="blocks", block=2), ids(3, L)
    cache = model.cache(3, L)
    positions = torch.tensor([[0, 1, 2, 3], [0, 1, -1, -1], [-1, -1, -1, -1]])
    feed(model, cache, attend, x, positions)
    assert cache.held.tolist() == [4, 2, 0]
    positions = torch.tensor([[4, 5, -1, -1], [2, 3, 4, 5], [0, 1, 2, 3]])
    out = feed(model, cache, attend, x, positions)
    full = model(x, attend=attend)
    close(out[0, :2], full[0, 4:6])
    close(out[1], full[1, 2:6])
    close(out[2], full[2, :4])
    assert cache.held.tolist() == [6, 6, 4]


@torch.no_grad()
def test_some_rows_in_any_order():
    model, attend, x = build(), Attend(kind="causal"), ids(4, L)
    cache, full = model.cache(4, L), model(x, attend=attend)
    feed(model, cache, attend, x, torch.arange(5))
    rows = torch.tensor([3, 1])
    close(feed(model, cache, attend, x[rows], torch.arange(5, 8), rows=rows), full[rows, 5:8])
    assert cache.held.tolist() == [5, 8, 5, 8]
    every = torch.arange(4)
    positions = torch.stack([torch.arange(n, n + 2) for n in cache.held.tolist()])
    out = feed(model, cache, attend, x, positions, rows=every)
    close(out, full[every[:, None], positions])


@pytest.mark.parametrize("again", [True, False])
@torch.no_grad()
def test_feeding_a_kept_position_again(again):
    """A model that speaks about the next token reads the last kept one again; that changes nothing."""
    model, attend, x = build(), Attend(kind="causal"), ids(2, L)
    cache, full = model.cache(2, L), model(x, attend=attend)
    feed(model, cache, attend, x, torch.arange(6))
    keep = [again, True, False]
    close(feed(model, cache, attend, x, torch.arange(5, 8), keep=keep), full[:, 5:8])
    assert cache.held.tolist() == [7, 7]
    close(feed(model, cache, attend, x, torch.arange(7, 12)), full[:, 7:])


@torch.no_grad()
def test_another_token_at_a_kept_position():
    """It is read fresh; afterwards the cache is as before without keep, and holds the new one with it."""
    model, attend, x = build(), Attend(kind="causal"), ids(1, L)
    other = x.clone()
    other[:, 3] = (x[:, 3] + 1) % 29
    for keep, after in ((False, x), (True, other)):
        cache = model.cache(1, L)
        feed(model, cache, attend, x, torch.arange(5))
        close(feed(model, cache, attend, other, torch.tensor([3]), keep=keep), model(other, attend=attend)[:, 3:4])
        assert cache.held.tolist() == [5]
        seen = x.clone()
        seen[:, 3] = after[:, 3]
        # Position 4 was read when x stood at 3, so compare a network that sees only 3 and itself at 5.
        given = torch.ones(1, L, L, dtype=torch.bool).tril()
        given[:, 5, [0, 1, 2, 4]] = False
        rule = Attend(kind="given", given=given)
        out = feed(model, cache, rule, x, torch.tensor([5]))
        row = torch.cat([seen[:, :4], x[:, 4:6]], 1)
        close(out[:, 0], model(row, attend=Attend(kind="given", given=given[:, :6, :6]))[:, 5])


@torch.no_grad()
def test_a_bidirectional_model_over_everything_else():
    """A cache of all positions, refreshed by feeding all, is exact while nothing changes."""
    model, attend, x = build(), Attend(), ids(2, L)
    cache, full = model.cache(2, L), model(x, attend=attend)
    close(feed(model, cache, attend, x, torch.arange(L)), full)
    close(feed(model, cache, attend, x, torch.arange(4, 8), keep=False), full[:, 4:8])
    close(feed(model, cache, attend, x, torch.arange(4, 8), keep=False), full[:, 4:8])


@torch.no_grad()
def test_holes_do_not_count_as_held():
    model, attend, x = build(), Attend(), ids(1, L)
    cache = model.cache(1, L)
    feed(model, cache, attend, x, torch.tensor([0, 1, 4, 5]))
    assert cache.held.tolist() == [2]
    out = feed(model, cache, attend, x, torch.tensor([2, 3]))
    assert cache.held.tolist() == [6]
    assert out.isfinite().all()


@torch.no_grad()
def test_forgetting():
    model, attend, x = build(), Attend(kind="causal"), ids(3, L)
    cache, full = model.cache(3, L), model(x, attend=attend)
    feed(model, cache, attend, x, torch.arange(8))
    cache.k[:, 1, 6] = float("nan")  # what a row with non-finite numbers would leave
    cache.forget(torch.tensor([1]), 4)
    assert cache.held.tolist() == [8, 4, 8]
    close(feed(model, cache, attend, x[1:2], torch.arange(4, 6), rows=torch.tensor([1])), full[1:2, 4:6])
    cache.forget()
    assert cache.held.tolist() == [0, 0, 0]
    close(feed(model, cache, attend, x, torch.arange(6)), full[:, :6])


@torch.no_grad()
def test_a_forward_that_fails_keeps_nothing_new():
    model, attend, x = build(), Attend(kind="causal"), ids(2, L)
    cache = model.cache(2, L)
    feed(model, cache, attend, x, torch.arange(4))
    before = cache.k.clone()
    fresh = torch.ones(2, 3, 2, 8).double()

    def fail(keep):
        with cache.visit(torch.arange(3, 6).expand(2, -1), None, keep.expand(2, 3)) as visit:
            visit.swap(0, fresh, fresh)
            raise KeyError

    with pytest.raises(KeyError):
        fail(torch.tensor(False))
    assert torch.equal(cache.k[:, :, :4], before[:, :, :4])
    assert cache.held.tolist() == [4, 4]
    with pytest.raises(KeyError):
        fail(torch.tensor(True))  # position 3 was to be replaced, and half of it was
    assert cache.held.tolist() == [3, 3]


def test_no_gradient_through_a_cache():
    model = build()
    out = feed(model, model.cache(1, L), Attend(kind="causal"), ids(1, L), torch.arange(4))
    assert model.embed_tokens.weight.requires_grad
    assert not model.read(
        ids(1, 4), positions=torch.arange(4)[None], attend=Attend(), cache=model.cache(1, 4)
    ).requires_grad
    assert out.shape == (1, 4, 29)


def test_joined_rules_are_where_their_rows_are():
    """Causal and full reading are numbers only, so their joint rule has nothing else to tell its device from."""
    rules = [(Attend(kind="causal"), 2), (Attend(kind="full"), 3), (Attend(kind="blocks", block=4), 1)]
    assert Attend.join(rules).block.tolist() == [1, 1, *[1 << 40] * 3, 4]
    joined = Attend.join(rules, torch.device("meta")).block
    assert (joined.device.type, joined.shape) == ("meta", (6,))


@pytest.mark.parametrize("variant", [*VARIANTS, "adaLN"])
@torch.no_grad()
def test_the_first_layer_is_what_the_second_one_gets(variant):
    """Rows alone through the whole network, and together with fillers through its first layer only."""
    switches = {"sigma": "zero", "condition": 8} if variant == "adaLN" else VARIANTS[variant]
    model, x, heard = build(**switches, depth=3), ids(3, L), []
    lengths = torch.tensor([L, 5, 9])
    at = torch.arange(L).expand(3, L).masked_fill(torch.arange(L) >= lengths[:, None], -1)
    said = model.first_layer(x, positions=at, attend=Attend())
    model.layers[1].register_forward_pre_hook(lambda layer, given: heard.append(given[0]))
    for row, length in enumerate(lengths.tolist()):
        model(x[row : row + 1, :length], attend=Attend())
        close(said[row, :length], heard[-1][0])
        assert not said[row, length:].any()
