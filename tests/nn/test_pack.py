"""Rows of unlike length packed into one forward give what each gives alone."""

import pytest
import torch

from unmask.base.attend import Attend
from unmask.base.vocab import Traits, Vocab
from unmask.models.backbone import Shape, Transformer
from unmask.nn.pack import Pack

LENGTHS = [3, 1, 20, 17, 5, 40, 2]


@pytest.fixture(scope="module")
def model():
    shape = Shape(vocab_size=40, width=32, depth=2, heads=4, kv_heads=2, hidden=48, max_length=64, qk_norm=True)
    return Transformer(shape, Vocab(size=40, mask=0), Traits(sees="blocks", block=4), seed=1).eval()


def positions_of(lengths):
    at = torch.arange(max(lengths)).expand(len(lengths), -1)
    return at.masked_fill(at >= torch.tensor(lengths)[:, None], -1)


def test_parts_hold_every_position_once():
    pack = Pack.of(positions_of(LENGTHS))
    assert torch.cat([part.at for part in pack.parts]).sort().values.tolist() == list(range(sum(LENGTHS)))
    assert sorted(torch.cat([part.rows for part in pack.parts]).tolist()) == list(range(len(LENGTHS)))
    for part in pack.parts:  # nobody is made twice as wide as he is
        assert all(LENGTHS[row] <= part.width < 2 * LENGTHS[row] for row in part.rows.tolist())


def test_to_and_fro():
    positions = positions_of(LENGTHS)
    pack = Pack.of(positions)
    x = torch.randn(*positions.shape, 3)
    assert torch.equal(pack.back(pack.flat(x)), x * (positions >= 0)[..., None])


@pytest.mark.parametrize("attend", [Attend(), Attend(kind="causal"), Attend(kind="blocks", block=4)])
def test_each_row_as_alone(model, attend):
    positions = positions_of(LENGTHS)
    tokens = torch.randint(1, 40, positions.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together = model.read(tokens, positions=positions, attend=attend)
        for row, length in enumerate(LENGTHS):
            alone = model.read(
                tokens[row : row + 1, :length], positions=positions[row : row + 1, :length], attend=attend
            )
            torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-5)


def test_a_block_per_row(model):
    positions = positions_of(LENGTHS)
    blocks = torch.tensor([1, 2, 4, 8, 16, 64, 3])
    tokens = torch.randint(1, 40, positions.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together = model.read(tokens, positions=positions, attend=Attend(kind="blocks", block=blocks))
        for row, length in enumerate(LENGTHS):
            rule = Attend(kind="blocks", block=int(blocks[row]))
            alone = model.read(tokens[row : row + 1, :length], positions=positions[row : row + 1, :length], attend=rule)
            torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-5)


def test_gradients_take_the_rectangle(model):
    positions = positions_of([3, 5])
    tokens = torch.ones_like(positions)
    with torch.enable_grad():
        packed = model.read(tokens, positions=positions, attend=Attend()).detach()
    with torch.no_grad():
        torch.testing.assert_close(
            model.read(tokens, positions=positions, attend=Attend())[1], packed[1], rtol=0, atol=1e-5
        )


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="other libraries make no such promise")
@pytest.mark.parametrize("attend", [Attend(kind="causal"), Attend(kind="blocks", block=4), Attend()])
def test_to_the_bit_whatever_the_company(attend):
    """One row, alone and with others, over caches of unlike length: not a bit differs."""
    shape = Shape(vocab_size=40, width=96, depth=2, heads=6, kv_heads=3, hidden=224, max_length=1100, qk_norm=True)
    model = Transformer(shape, Vocab(size=40, mask=0), Traits(sees="blocks", block=4), seed=1).eval()
    draw = torch.Generator().manual_seed(4)
    with torch.inference_mode():
        for before, width in ((0, 5), (36, 4), (180, 1), (200, 12), (516, 4)):
            found = []
            for others in ([], [(8, 3)], [(700, 9), (16, 1), (40, 300)]):
                cache = model.cache(1 + len(others), 1100)
                for row, (held, _) in enumerate([(before, width), *others]):
                    if held:
                        given = torch.Generator().manual_seed(held)
                        at, told = torch.arange(held)[None], torch.randint(1, 40, (1, held), generator=given)
                        model.read(
                            told, positions=at, attend=attend, cache=cache, rows=torch.tensor([row]), keep=at >= 0
                        )
                spans = [range(held, held + size) for held, size in [(before, width), *others]]
                widest = max(map(len, spans))
                positions = torch.tensor([[*span, *[-1] * (widest - len(span))] for span in spans])
                tokens = torch.randint(1, 40, positions.shape, generator=draw)
                tokens[0, :width] = torch.arange(1, 1 + width)
                read = model.read(
                    tokens, positions=positions, attend=attend, cache=cache, rows=torch.arange(len(spans))
                )
                found.append(model.head(read[:, :width].flatten(0, 1))[:width])
            assert torch.equal(found[0], found[1]), (before, width)
            assert torch.equal(found[0], found[2]), (before, width)
