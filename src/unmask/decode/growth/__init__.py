"""How the length of a text is found while it is written: one rule a file, one line here.

A rule is a frozen dataclass whose fields are its options, `start` (positions that a gap has at first) among them. After
each step it is shown the row and what the step decided, and says which positions are put in or left out. It never
touches what is written: only open positions give way, and what is new stands behind an open one or behind the row.
"""

from unmask.decode.growth.daedal import Daedal
from unmask.decode.growth.row import Rule
from unmask.decode.growth.tokens import Tokens

TRY = "try"
"""No rule: several lengths are written, and the best is kept; see `unmask.decode.lengths`."""

TABLE: dict[str, type[Rule]] = {"daedal": Daedal, "tokens": Tokens}
