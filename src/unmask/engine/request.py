"""What goes into an engine and what comes out of it. It knows neither models nor schedules."""

from dataclasses import dataclass, field

from unmask.base.errors import UnmaskError
from unmask.constrain.holes import Span
from unmask.decode.decoder import Decoder
from unmask.decode.reading import Filled
from unmask.text.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One row to be written.

    Args:
        layout: what is given and what is open.
        decoder: how to write it, with numbers (no tensors) for settings.
        seed: keys its noise; nothing else does, so the same request gives the same tokens in any company.
        ends: whether an end of text ends it.
        stops: strings that end it at their earliest match in its last gap.
        spans: what the text on some of its positions has to be.
        latency_s: seconds from when it was asked for (see `Engine.add`) in which it should be done; while it is late it
            is written with less effort, so its tokens depend on how busy the engine is. None: they never do.
        share: what it begins with is shared only with requests that say the same here.
    """

    layout: Layout
    decoder: Decoder
    seed: int = 0
    ends: bool = False
    stops: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    latency_s: float | None = None
    share: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What a step did for one request.

    Args:
        id: as `Engine.add` gave it.
        tokens: ids that were committed in its last gap, behind those told before; what is told is never taken back.
        result: what became of it, once it has ended well.
        reused: positions of its beginning that others had read, known with its result.
        error: why it has ended, if it could not be written.
    """

    id: int
    tokens: list[int] = field(default_factory=list)
    result: Filled | None = None
    reused: int = 0
    error: UnmaskError | None = None

    @property
    def last(self) -> bool:
        """Whether nothing more will be heard of the request."""
        return self.result is not None or self.error is not None
