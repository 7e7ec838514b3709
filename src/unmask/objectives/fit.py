"""Whether a network is one that an objective or an estimator can speak to."""

from unmask.base.denoiser import Denoiser
from unmask.base.errors import Unsupported


def needs(who: str, model: Denoiser, *, sees: tuple[str, ...], speaks: tuple[str, ...] = ("here", "next")) -> None:
    """Refuse networks that the bound would be wrong for.

    Args:
        who: what asks, for the message.
        model: the network.
        sees, speaks: allowed values of these traits.
    Raises:
        Unsupported: with the trait that does not fit.
    """
    traits = model.traits
    for name, value, allowed in (
        ("sees", traits.sees, sees),
        ("speaks", traits.speaks, speaks),
        ("says", traits.says, ("clean",)),
        ("noise", traits.noise, ("absorb",)),
        ("clock", traits.clock, (False,)),
    ):
        if value not in allowed:
            raise Unsupported(
                f"{who} needs a model whose trait {name} is {' or '.join(map(repr, allowed))}; this one says {value!r}"
            )
