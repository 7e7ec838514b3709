"""Every backend equals the rule, and the rule equals what its docstring says, written out as loops."""

import math

import pytest
import torch

from unmask.base.attend import NOBODY, Attend
from unmask.base.errors import Unsupported
from unmask.nn.attention import BACKENDS, Sight

ROWS, LENGTH = 3, 11
FLEX = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def packed():
    documents = torch.tensor(
        [[0] * 4 + [1] * 5 + [NOBODY] * 2, [0] * 11, [7] * 1 + [3] * 2 + [5] * 8], dtype=torch.int64
    )
    places = torch.tensor([[*range(4), *range(5), 0, 0], [*range(11)], [0, 0, 1, *range(8)]])
    return {"documents": documents, "places": places}


def given():
    seen = torch.rand(ROWS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.4
    seen[1, 2] = False
    seen[2] = False
    return seen


PER_ROW = torch.tensor([1, 4, 20])
RULES = {
    "full": Attend(),
    "causal": Attend(kind="causal"),
    "blocks": Attend(kind="blocks", block=4),
    "blocks per row": Attend(kind="blocks", block=PER_ROW),
    "documents": Attend(documents=packed()["documents"]),
    "documents causal": Attend(kind="causal", **packed()),
    "documents blocks": Attend(kind="blocks", block=3, **packed()),
    "documents blocks per row": Attend(kind="blocks", block=PER_ROW, **packed()),
    "canvas": Attend(kind="canvas", start=7),
    "canvas per row": Attend(kind="canvas", start=PER_ROW),
    "canvas per row, window": Attend(kind="canvas", start=PER_ROW, window=3),
    "causal window": Attend(kind="causal", window=4),
    "full window": Attend(window=2),
    "documents canvas": Attend(kind="canvas", start=2, window=3, **packed()),
    "given": Attend(kind="given", given=given()),
    "given documents": Attend(kind="given", given=given(), documents=packed()["documents"]),
    "two streams": Attend(kind="two_stream", block=4, length=LENGTH),
    "two streams per row": Attend(kind="two_stream", block=PER_ROW, length=LENGTH),
    "two streams documents": Attend(kind="two_stream", block=2, length=LENGTH, **packed()),
}


def brute(attend, b, q, k):
    """The rule in words, for one query and one key."""
    stream = attend.length if attend.kind == "two_stream" else None
    q_clean, k_clean = (q >= stream, k >= stream) if stream else (True, True)
    q, k = (q % stream, k % stream) if stream else (q, k)
    if attend.documents is not None:
        mine, other = int(attend.documents[b, q]), int(attend.documents[b, k])
        if mine != other or other == NOBODY:
            return False
    qp, kp = (q, k) if attend.places is None else (int(attend.places[b, q]), int(attend.places[b, k]))
    start = int(attend.start[b]) if torch.is_tensor(attend.start) else attend.start
    if attend.window is not None and kp < (qp if start is None else min(qp, start)) - attend.window + 1:
        return False
    if attend.kind == "full":
        return True
    if attend.kind == "canvas" and qp >= start:
        return True
    if attend.kind in ("causal", "canvas"):
        return kp <= qp
    if attend.kind == "given":
        return bool(attend.given[b, q, k])
    size = int(attend.block[b]) if torch.is_tensor(attend.block) else attend.block
    qb, kb = qp // size, kp // size
    if attend.kind == "blocks":
        return kb <= qb
    if q_clean:
        return k_clean and kb <= qb
    return kb < qb if k_clean else kb == qb


def slots(attend):
    return 2 * LENGTH if attend.kind == "two_stream" else LENGTH


def whole(attend, **options):
    size = slots(attend)
    return Sight(attend=attend, queries=torch.arange(size).expand(ROWS, size), size=size, aligned=True, **options)


def heads(size, width=None, *, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(ROWS, width or size, 4, 8, generator=draw, dtype=dtype)
    k, v = (torch.randn(ROWS, size, 2, 8, generator=draw, dtype=dtype) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_is_what_it_says(rule):
    attend = RULES[rule]
    size = slots(attend)
    expected = torch.tensor([[[brute(attend, b, q, k) for k in range(size)] for q in range(size)] for b in range(ROWS)])
    every = torch.arange(size).expand(ROWS, size)
    assert torch.equal(attend.allows(every, every), expected)
    assert torch.equal(whole(attend).mask().expand_as(expected), expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_for_some_rows(rule):
    attend, index = RULES[rule], torch.tensor([2, 0])
    every = torch.arange(slots(attend)).expand(ROWS, -1)
    assert torch.equal(attend.rows(index).allows(every[:2], every[:2]), attend.allows(every, every)[index])


def test_plain_is_a_softmax_over_what_is_seen():
    attend = RULES["given documents"]
    q, k, v = heads(LENGTH, dtype=torch.float64)
    out = BACKENDS["plain"](whole(attend))(q, k, v)
    for b in range(ROWS):
        for i in range(LENGTH):
            for h in range(4):
                seen = [j for j in range(LENGTH) if brute(attend, b, i, j)]
                weights = [math.exp(float(q[b, i, h] @ k[b, j, h // 2]) / math.sqrt(8)) for j in seen]
                parts = [w / sum(weights) * v[b, j, h // 2] for w, j in zip(weights, seen, strict=True)]
                expected = sum(parts, start=torch.zeros(8, dtype=torch.float64))
                torch.testing.assert_close(out[b, i, h], expected, rtol=0, atol=1e-12)


@FLEX
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"plain"}))
def test_backends_equal_plain(backend, rule):
    attend = RULES[rule]
    q, k, v = heads(slots(attend))
    truth = BACKENDS["plain"](whole(attend))(q, k, v)
    out = BACKENDS[backend](whole(attend))(q, k, v)
    torch.testing.assert_close(out, truth, rtol=0, atol=2e-6)
    blind = ~attend.allows(*2 * (torch.arange(slots(attend)).expand(ROWS, -1),)).any(-1)
    assert not out[blind].any()


@FLEX
@pytest.mark.parametrize("rule", [name for name in RULES if not name.startswith("two")])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_some_queries_over_some_slots(backend, rule):
    """As with a cache: queries stand anywhere, and some slots are empty."""
    attend = RULES[rule]
    queries = torch.tensor([[0, 1, 5], [8, 9, 10], [10, 2, 2]])
    there = torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.6
    there[0] = False
    q, k, v = heads(LENGTH, width=3)
    out = BACKENDS[backend](Sight(attend=attend, queries=queries, size=LENGTH, there=there))(q, k, v)
    seen = attend.allows(queries, torch.arange(LENGTH).expand(ROWS, -1)) & there[:, None]
    same = Sight(attend=Attend(kind="given", given=seen), queries=torch.arange(3).expand(ROWS, 3), size=LENGTH)
    torch.testing.assert_close(out, BACKENDS["plain"](same)(q, k, v), rtol=0, atol=2e-6)
    assert not out[0].any()


@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_and_finite(rule):
    attend = RULES[rule]
    grads = {}
    for backend in ("plain", "sdpa"):
        tensors = [x.requires_grad_() for x in heads(slots(attend), dtype=torch.float64)]
        out = BACKENDS[backend](whole(attend))(*tensors)
        grads[backend] = torch.autograd.grad((out * torch.arange(8.0)).sum(), tensors)
    for fast, truth in zip(grads["sdpa"], grads["plain"], strict=True):
        assert truth.isfinite().all()
        torch.testing.assert_close(fast, truth, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("rule", "mask", "causal"), [("full", False, False), ("causal", False, True), ("blocks", True, False)]
)
def test_sdpa_makes_a_mask_only_where_it_must(monkeypatch, rule, mask, causal):
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **options: calls.append(options) or kernel(*args, **options),
    )
    BACKENDS["sdpa"](whole(RULES[rule]))(*heads(LENGTH))
    assert (calls[0]["attn_mask"] is not None, calls[0]["is_causal"]) == (mask, causal)


def test_one_block_over_all_needs_no_mask(monkeypatch):
    """What a block-causal model sees while it denoises its last block."""
    look = BACKENDS["sdpa"](Sight(attend=RULES["blocks"], queries=torch.tensor([[8, 9, 10]] * ROWS), size=LENGTH))
    assert look.keywords == {"mask": None, "blind": None, "causal": False}


def test_flex_says_that_it_does_not_train_on_a_cpu():
    tensors = [x.requires_grad_() for x in heads(LENGTH)]
    with pytest.raises(Unsupported, match="sdpa"):
        BACKENDS["flex"](whole(RULES["full"]))(*tensors)
