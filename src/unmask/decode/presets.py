"""Published decoders by name: each a window, a few policies and the settings of its publication.

None is a loop of its own. A new preset is one line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Preset:
    """A point in window x policies.

    `source` names the publication; `settings` are its defaults, all of them options of its parts.
    """

    window: str
    policies: tuple[str, ...]
    source: str
    settings: Mapping[str, float | int | str | bool] = field(default_factory=dict)


_FAST = "Wu et al. 2025, arXiv:2505.22618"
_SEDD = "Lou et al. 2024, arXiv:2310.16834"
_FULL: dict[str, float | int | str | bool] = {"strict": True, "timetable": "full"}
"""A probability has to exceed the threshold, and a block's share of a step is that of a block with no prompt in it."""

PRESETS: dict[str, Preset] = {
    "ar": Preset("next", ("everything",), "autoregression; Bengio et al. 2003"),
    "mdlm": Preset("whole", ("ancestral",), "Sahoo et al. 2024, arXiv:2406.07524", {"temperature": 1.0}),
    "llada": Preset("whole", ("quota",), "Nie et al. 2025, arXiv:2502.09992"),
    "fast-dllm": Preset("whole", ("threshold",), _FAST, {"threshold": 0.9, "block": 32}),
    "fast-dllm-prefix": Preset("vicinity", ("threshold",), _FAST, {"threshold": 0.9, "block": 32, "cache": "prefix"}),
    "fast-dllm-dual": Preset("vicinity", ("threshold",), _FAST, {"threshold": 0.9, "block": 32, "cache": "dual"}),
    "dream": Preset(
        "whole", ("quota",), "Ye et al. 2025, arXiv:2508.15487", {"rank": "entropy", "timetable": "linear"}
    ),
    "sdar": Preset("block", ("threshold",), "Cheng et al. 2025, arXiv:2510.06303", {"threshold": 0.85, **_FULL}),
    "llada2": Preset("block", ("threshold",), "Bie et al. 2025, arXiv:2512.15745", {"threshold": 0.95, **_FULL}),
    "llada2-edit": Preset(  # the quality mode of its model card; the speed mode is threshold 0.5, edit_threshold 0
        "block",
        ("threshold", "edit"),
        "Bie et al. 2026, arXiv:2602.08676",
        {"threshold": 0.7, "edit_threshold": 0.5, "rounds": 16, **_FULL},
    ),
    "diffusion-gemma": Preset(
        "canvas",
        ("renoise",),
        "Google 2026, transformers 5.24",
        {"steps": 48, "bound": 0.1, "settle": 0.005, "t_max": 0.8, "t_min": 0.4, "temperature": 1.0},
    ),
    "bd3": Preset("block", ("ancestral",), "Arriola et al. 2025, arXiv:2503.09573", {"temperature": 1.0}),
    "sedd-euler": Preset("whole", ("score_leap",), _SEDD, {"leap": "euler", "temperature": 1.0}),
    "sedd-analytic": Preset("whole", ("score_leap",), _SEDD, {"leap": "analytic", "temperature": 1.0}),
    "daedal": Preset(
        "whole",
        ("threshold",),
        "Li et al. 2025, arXiv:2508.00819",
        {"threshold": 0.9, "strict": True, "block": 32, "lengths": "daedal"},
    ),
    "dreamon": Preset(
        "whole", ("quota",), "Wu et al. 2026, arXiv:2602.01326", {"rank": "entropy", "lengths": "tokens"}
    ),
    "wino": Preset("whole", ("wino",), "Hong et al. 2025, arXiv:2507.18578", {"threshold": 0.6, "doubt": 0.9}),
    "d2f": Preset(
        "many", ("threshold",), "Wang et al. 2025, arXiv:2508.09192", {"threshold": 0.9, "strict": True, "press": 0.95}
    ),
    "self-speculative": Preset("draft", ("verify",), "NVIDIA 2026, arXiv:2607.05722"),
    "remdm": Preset("whole", ("ancestral", "remask"), "Wang et al. 2025, arXiv:2503.00307", {"temperature": 1.0}),
}
