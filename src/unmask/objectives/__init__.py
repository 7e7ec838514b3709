"""Losses, one a file and one line here, and estimators of likelihood."""

from typing import Any

from unmask.objectives.ar import Autoregressive
from unmask.objectives.block import Block
from unmask.objectives.masked import Masked
from unmask.objectives.mixture import Mixture

TABLE: dict[str, Any] = {"masked": Masked, "block": Block, "mixture": Mixture, "ar": Autoregressive}
