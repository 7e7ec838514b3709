"""Which lengths to try for gaps of unknown length.

All lengths go through the model in one batch, and the one whose tokens were written with the highest mean
log-probability is kept. Long ranges are tried on a geometric grid: a token more matters more in a short gap.
"""

from collections.abc import Sequence

CANDIDATES = 8
"""How many lengths are tried at most."""


def candidates(ranges: Sequence[tuple[int, int]], most: int = CANDIDATES) -> list[tuple[int, ...]]:
    """Combinations of lengths, one length per range each.

    Ranges move together, from all shortest to all longest: a template whose first gap is long tends to have long ones.

    Args:
        ranges: (low, high) of each gap, low <= high.
        most: how many combinations at most.
    """
    if not any(high > low for low, high in ranges):
        return [tuple(low for low, _ in ranges)]
    shares = [i / (most - 1) for i in range(most)]
    grid = [tuple(round(low * (high / low) ** share) for low, high in ranges) for share in shares]
    widest = max(high - low + 1 for low, high in ranges)
    if widest <= most:  # every length of the widest range fits in
        grid = [tuple(low + round((high - low) * i / (widest - 1)) for low, high in ranges) for i in range(widest)]
    return list(dict.fromkeys(grid))
