"""How much one client may ask for: one table, from which the command line and the checks read."""

from dataclasses import dataclass, field, fields
from typing import Any, Self

from unmask.base.errors import BadInput, UnknownName
from unmask.engine.request import Request
from unmask.serve.errors import Refused


def _limit(default: float, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is refused is what is above these numbers."""

    requests: int = _limit(1024, "requests with a body at the same time; more are told to come again")
    body_bytes: int = _limit(2 << 20, "of a request")
    body_s: float = _limit(20.0, "seconds for a body to arrive")
    prompts: int = _limit(32, "prompts of a completion request")
    prompt_tokens: int = _limit(1 << 17, "tokens of all prompts, and ids to detokenize")
    messages: int = _limit(512, "messages of a chat")
    n: int = _limit(8, "texts per prompt")
    stops: int = _limit(16, "stop strings")
    stop_characters: int = _limit(256, "of each stop string")
    biases: int = _limit(300, "tokens of a logit_bias")
    holes: int = _limit(64, "holes, spans or pins")
    tools: int = _limit(64, "tools of a chat")
    constraint_bytes: int = _limit(1 << 16, "of what one field asks of a text, as JSON")
    compile_s: float = _limit(5.0, "seconds of processor time to compile a constraint")
    compile_bytes: int = _limit(1 << 29, "of memory for that")
    states: int = _limit(20_000, "of the automaton of a constraint, on the way to it too")
    compilers: int = _limit(2, "constraints that are compiled at the same time")
    automata_bytes: int = _limit(1 << 28, "of compiled constraints that are kept")
    steps: int = _limit(4096, "of a decoder, and rounds of editing")
    work: int = _limit(1 << 26, "rows x positions x steps: what a request may make the network look at")
    samples: int = _limit(1024, "of a score")
    rows: int = _limit(32, "rows that are written at the same time")
    cache_positions: int = _limit(0, "positions whose keys and values there is memory for; 0: as many as fit a GiB")
    queue: int = _limit(128, "requests that wait; more are told to come again")
    deadline_s: float = _limit(300.0, "seconds from arrival until a request is given up")
    drain_s: float = _limit(30.0, "seconds that running requests have after SIGTERM")

    @classmethod
    def of(cls, given: list[str]) -> Self:
        """From NAME=VALUE as it is typed.

        Raises:
            UnknownName, BadInput: no such limit, or no number from 0.
        """
        kinds: dict[str, Any] = {f.name: type(f.default) for f in fields(cls)}
        found: dict[str, Any] = {}
        for one in given:
            name, _, value = one.partition("=")
            if name not in kinds:
                raise UnknownName("limit", name, kinds)
            try:
                found[name] = kinds[name](value)
            except ValueError as error:
                raise BadInput(f"a limit is NAME=NUMBER, like queue=64, not {one!r}") from error
            if not 0 <= found[name] < 1 << 62:
                raise BadInput(f"a limit is a number from 0, not {one!r}")
        for name in ("rows", "compilers"):
            if found.get(name) == 0:
                raise BadInput(f"nothing can be done without {name}; give {name}=1 or more")
        return cls(**found)

    def check(self, name: str, value: float, param: str) -> None:
        """Refuse what is too much.

        Raises:
            Refused: the field `param` asks for more than the limit `name`.
        """
        most = getattr(self, name)
        if value > most:
            said = f"{value:g}" if value < 1e18 else "more than 1e18"
            help = next(f.metadata["help"] for f in fields(self) if f.name == name)
            raise Refused("limit_exceeded", f"{param} asks for {said}; the limit is {most:g} ({name}: {help})", param)

    def check_work(self, requests: list[Request], settings: dict[str, Any]) -> None:
        """Refuse what would keep the network busy for too long.

        A decoder without a number of steps takes a forward per open position at most; rounds of editing come after.
        """
        for name in ("steps", "rounds"):
            self.check("steps", settings.get(name) or 0, f"diffusion.{name}")
        extra = settings.get("rounds") or 0
        work = 0
        for one in requests:
            more = one.layout.most - len(one.layout.tokens)  # of a row that grows
            num_open = sum(one.layout.is_open) + 6 * more  # it may expand and delete some positions again and again
            work += one.layout.most * (max(settings.get("steps") or 0, num_open) + extra)
        self.check("work", work, "diffusion.steps" if settings.get("steps") else "max_tokens")
