"""Figures of speed add up, and the baseline writes the same amount."""

import pytest

import unmask
from unmask.base.errors import BadInput
from unmask.evals.speed import speeds


@pytest.fixture(scope="module")
def lm():
    return unmask.load("tiny")


def test_every_setting_beside_token_by_token(lm):
    quota = {"decoder": "block x quota", "block": 16, "steps": 4}
    decoders = {"quota": quota, "whole": {"decoder": "llada", "steps": 2}}
    found = speeds(lm, decoders, prompt=[2] + [70] * 15, lengths=[16], rows=[1, 3], repeat=1)
    assert [(one.decoder, one.rows) for one in found] == [
        (name, rows) for rows in (1, 3) for name in ("ar", "quota", "whole")
    ]
    for one in found:
        forwards = {"ar": 16, "quota": 4, "whole": 2}[one.decoder]
        assert one.forwards == forwards
        assert one.tokens_per_forward == 16 / forwards
        assert one.network + one.head + one.rest == pytest.approx(1)
        assert one.tokens_per_s == pytest.approx(16 * one.rows / one.seconds)
    for rows in (1, 3):
        ar, *others = (one for one in found if one.rows == rows)
        assert ar.times_ar == 1
        assert all(one.times_ar == pytest.approx(one.tokens_per_s / ar.tokens_per_s) for one in others)


def test_what_can_not_be_measured(lm):
    with pytest.raises(BadInput, match="repeat=0"):
        speeds(lm, {}, prompt=[2], lengths=[4], rows=[1], repeat=0)
    with pytest.raises(BadInput, match="prompt"):
        speeds(lm, {}, prompt=[], lengths=[4], rows=[1])


def test_what_is_left_open_is_told_by_name(block_lm):
    found = speeds(
        block_lm, {"sdar block=auto": {"decoder": "sdar", "block": "auto"}}, prompt=[2], lengths=[8], rows=[1]
    )
    assert [one.decoder for one in found] == ["ar", "sdar block=auto (block=8)"]
