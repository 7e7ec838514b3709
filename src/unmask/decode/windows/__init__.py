"""Where to look now: one window a file, one line here.

A window is a frozen dataclass whose fields are its options, with `caches` (whether it keeps keys and values), `pads`
(whether a row's last block has to be a whole one), `exact` (whether what it keeps is what a full forward would
compute), `check(traits)` and `(canvas, traits, cache, rows) -> Plan`; without a cache that plans the full forward of
the same step. Its numbers may be knobs, one per canvas row.
"""

from typing import ClassVar, Protocol

from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.denoiser import Cache
from unmask.base.step import Plan
from unmask.base.vocab import Traits
from unmask.decode.windows.block import Block
from unmask.decode.windows.canvases import Canvases
from unmask.decode.windows.draft import Draft
from unmask.decode.windows.many import Many
from unmask.decode.windows.next import Next
from unmask.decode.windows.vicinity import Vicinity
from unmask.decode.windows.whole import Whole


class Window(Protocol):
    """Chooses what one forward looks at.

    Attributes:
        exact: whether a forward over what it keeps says what a full one would; where not, it can be audited.
    """

    exact: ClassVar[bool]

    @property
    def caches(self) -> bool:
        """Whether keys and values are kept."""
        ...

    @property
    def pads(self) -> bool:
        """Whether a row is written up to the end of its last block, and cut."""
        ...

    def check(self, traits: Traits) -> None:
        """Raise Unsupported where a model can't be read like this."""
        ...

    def __call__(self, canvas: Canvas, traits: Traits, cache: Cache | None, rows: Tensor | None = None) -> Plan:
        """The plan of the next forward of some rows (R,), none of them done; None is all that are not."""
        ...


TABLE: dict[str, type[Window]] = {
    "next": Next,
    "whole": Whole,
    "block": Block,
    "vicinity": Vicinity,
    "canvas": Canvases,
    "many": Many,
    "draft": Draft,
}
