"""Losses, one a file, and estimators of likelihood."""

from typing import Any

from unmask.objectives.ar import Autoregressive
from unmask.objectives.masked import Masked

TABLE: dict[str, Any] = {"masked": Masked, "ar": Autoregressive}
