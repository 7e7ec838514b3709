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


PRESETS: dict[str, Preset] = {
    "ar": Preset("next", ("everything",), "autoregression; Bengio et al. 2003"),
    "mdlm": Preset("whole", ("ancestral",), "Sahoo et al. 2024, arXiv:2406.07524", {"temperature": 1.0}),
    "llada": Preset("whole", ("quota",), "Nie et al. 2025, arXiv:2502.09992"),
    "fast-dllm": Preset("whole", ("threshold",), "Wu et al. 2025, arXiv:2505.22618", {"threshold": 0.9, "block": 32}),
    "sdar": Preset("block", ("threshold",), "Cheng et al. 2025, arXiv:2510.06303", {"threshold": 0.85, "strict": True}),
    "bd3": Preset("block", ("ancestral",), "Arriola et al. 2025, arXiv:2503.09573", {"temperature": 1.0}),
    "remdm": Preset("whole", ("ancestral", "remask"), "Wang et al. 2025, arXiv:2503.00307", {"temperature": 1.0}),
}
