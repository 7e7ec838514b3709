"""What requests look like: every field that is known, and no other.

A field that OpenAI's protocol has and we can't honour is here too, with the values that ask for nothing (`only`):
clients send them, and any other value is refused by name. `Label` fields say who asks and by definition change nothing.
Decoding options come from their table.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from unmask.decode.effort import EFFORTS
from unmask.decode.options import AUTO, OPTIONS, check

SEED = Field(default=0, ge=-(2**63), lt=2**63, description="of all noise: the same request and seed give the same text")
Count = Annotated[int, Field(ge=1, le=1 << 31)]
Stops = str | list[str]
Tokens = list[Annotated[int, Field(ge=0, lt=1 << 31)]]
Label = Annotated[str | None, Field(max_length=512)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Some = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


def only(*values: Any) -> Any:
    """The type of a field that may be left out, or say one of these."""

    def fits(value: Any) -> Any:
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values):
            said = " or ".join(repr(one) for one in values)
            raise ValueError(f"is not supported; leave it out, or say {said}")
        return value

    return Annotated[
        Any, AfterValidator(_unless_none(fits)), Field(default=None, json_schema_extra={"enum": [*values, None]})
    ]


def _unless_none(fits: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else fits(value)


class Body(BaseModel):
    """What all requests have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class _Diffusion(Body):
    """How a request is written, and whether drafts are told while it is."""

    stream: bool = Field(default=False, description="tell drafts in chunks of their own, in a field `diffusion`")
    deadline_s: float | None = Field(default=None, gt=0, description="give up after so many seconds")
    latency_s: float | None = Field(
        default=None,
        gt=0,
        description="be done in so many seconds: less effort while it is late, so the text depends on load",
    )
    decoder: str | None = Field(default=None, max_length=200, description='a preset, or "window x policy + policy"')


def _option(name: str) -> Any:
    option = OPTIONS[name]
    kind: Any = Literal[option.names] if option.names else option.kind
    kind = kind | Literal[AUTO] if option.auto else kind
    checked = AfterValidator(_unless_none(partial(check, name)))
    return Annotated[kind | None, checked, Field(default=None, description=f"{option.help} ({option.either})")]


_options: dict[str, Any] = {name: (_option(name), None) for name in OPTIONS}
Diffusion: type[_Diffusion] = create_model("Diffusion", __base__=_Diffusion, __doc__=_Diffusion.__doc__, **_options)


class Asked(Body):
    """What all requests that use the model have."""

    model: str | None = Field(
        default=None, max_length=512, description="as /v1/models calls it; the one that is served"
    )
    user: Label = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    safety_identifier: Label = None
    prompt_cache_key: Label = None


class Writing(Asked):
    """What all requests that write have."""

    seed: int | None = SEED
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    logit_bias: dict[str, float] | None = Field(
        default=None, description="token id: what is added to its logit, from -100 to 100"
    )
    diffusion: Diffusion | None = None  # type: ignore[valid-type]


REASONING: dict[str, str] = {"minimal": "instant", **dict(zip(EFFORTS, EFFORTS, strict=True))}
"""OpenAI's and Mercury's names of efforts to ours."""
Reasoning: Any = Literal[tuple(REASONING)]


class StreamOptions(Body):
    """What a stream tells besides text."""

    include_usage: bool | None = None
    include_obfuscation: only(False) = None  # type: ignore[valid-type]


class Streaming(Writing):
    """What requests have that can be streamed."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stops | None = None
    n: int | None = Field(default=None, ge=1)
    frequency_penalty: only(0) = None  # type: ignore[valid-type]
    presence_penalty: only(0) = None  # type: ignore[valid-type]
    service_tier: only("auto", "default") = None  # type: ignore[valid-type]


class Part(Body):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Called(Body):
    """A function and its arguments, JSON in a text."""

    name: Name
    arguments: str


class ToolCall(Body):
    """A call of a tool, as it was answered."""

    id: Annotated[str, Field(max_length=64)]
    type: Literal["function"] = "function"
    function: Called


class Message(Body):
    """A turn of a chat; of the assistant's, its calls of tools, and of a tool's, which call it is the result of."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(min_length=1)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: Annotated[str, Field(max_length=64)] | None = None
    name: Label = Field(default=None, description="of a tool: of the function, as its call says already")
    refusal: None = None  # what OpenAI's clients send of an answer that they were given, where it holds nothing
    annotations: only([]) = None  # type: ignore[valid-type]
    audio: None = None
    function_call: None = None


class JsonSchema(Body):
    """A schema that an answer is valid under, whether it is strict or not."""

    schema_: dict[str, Any] = Field(alias="schema")
    name: Label = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    """What form an answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Bounded(Body):
    """What a text has to be."""

    regex: str | None = Field(default=None, description="matches the text from end to end")
    grammar: str | None = Field(default=None, description="in Lark's notation or GBNF; the text is one of its texts")
    schema_: dict[str, Any] | bool | None = Field(
        default=None, alias="schema", description="the text is JSON that is valid under it"
    )
    choices: list[str] | None = Field(default=None, min_length=1, description="the text is one of these")
    contains: Some | None = Field(default=None, description="stand in the text, in this order")
    banned: Some | None = Field(default=None, description="stand nowhere in the text")


class Function(Body):
    """A function that may be called; its arguments are valid under `parameters`, whether it is strict or not."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """Something that may be called."""

    type: Literal["function"]
    function: Function


class Named(Body):
    """A function by its name."""

    name: Name


class ToolChoice(Body):
    """The one tool that is called."""

    type: Literal["function"]
    function: Named


class Eos(Body):
    """How a text ends."""

    eos: Literal["stop", "keep", "forbid"] = Field(
        default="stop",
        description="stop: an end of text ends it; keep: write on behind it; forbid: the length is exact",
    )
    min_tokens: Count | None = Field(default=None, description="an end of text comes behind so many tokens")
    pins: dict[str, str] | None = Field(default=None, description="position in the completion: text that stands there")


class Chat(Streaming, Eos, Bounded):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    reasoning_effort: Reasoning | None = Field(default=None, description="`diffusion.effort` by OpenAI's names")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(
        default=None, description="whether an answer may have several calls, where the model's form has words for it"
    )
    response_format: ResponseFormat | None = None
    store: only(False) = None  # type: ignore[valid-type]
    modalities: only(["text"]) = None  # type: ignore[valid-type]


class Completion(Streaming, Eos, Bounded):
    """POST /v1/completions; with a suffix, both sides are seen."""

    prompt: str | Tokens | list[str] | list[Tokens]
    suffix: str | None = None
    max_tokens: Count | None = None
    logprobs: int | None = Field(default=None, ge=0, le=5)
    echo: only(False) = None  # type: ignore[valid-type]
    best_of: only(1) = None  # type: ignore[valid-type]
    response_format: ResponseFormat | None = None


class Fim(Streaming, Bounded):
    """POST /v1/fim/completions."""

    prompt: str
    suffix: str | None = None
    max_tokens: Count | None = None
    repetition_penalty: only(1) = None  # type: ignore[valid-type]


class Apply(Asked):
    """POST /v1/apply/completions: one message with tagged sections."""

    messages: list[Message] = Field(min_length=1, max_length=1)
    stream: bool | None = Field(default=None, description="told as a stream, in one piece")


class Edit(Writing):
    """POST /v1/edit/completions: one message with tagged sections."""

    messages: list[Message] = Field(min_length=1, max_length=1)
    max_tokens: Count | None = None
    stream: bool | None = Field(default=None, description="told as a stream, in one piece")
    frequency_penalty: only(0) = None  # type: ignore[valid-type]
    presence_penalty: only(0) = None  # type: ignore[valid-type]


class Extra(Body):
    """A piece of another file."""

    text: str
    filename: str | None = None
    time: Any = None


class Llama(Streaming, Bounded):
    """POST /infill, as llama.cpp's server has it.

    Of its fields that have nothing to do with what is written, those that its editors send are known: `cache_prompt`,
    `id_slot`, `t_max_prompt_ms` (which has no effect there either), and the one chain of `samplers` for fills.
    """

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[Extra] = []
    prompt: str = Field(default="", description="behind the prefix: the line of the cursor, up to it")
    n_predict: int = Field(default=-1, ge=-1, le=1 << 31, description="-1 is as many as are usual")
    n_indent: int = Field(default=0, ge=0, description="a line that is indented by less ends the text")
    top_k: int | None = Field(default=None, ge=0)
    t_max_predict_ms: float | None = Field(default=None, gt=0, description="`diffusion.latency_s` in ms")
    response_fields: list[str] | None = Field(default=None, description="what is wanted of the answer, as a/b")
    json_schema: dict[str, Any] | None = Field(default=None, description="`schema` by llama.cpp's name")
    samplers: only(["top_k", "top_p", "infill"], []) = None  # type: ignore[valid-type]
    n: only(1) = None  # type: ignore[valid-type]
    stream: only(False) = None  # type: ignore[valid-type]
    cache_prompt: bool | None = None
    id_slot: int | None = None
    t_max_prompt_ms: float | None = None


class Mask(Body):
    """A hole of a length between two numbers of tokens."""

    min: Count
    max: Count
    name: str | None = Field(default=None, max_length=64)


class Segment(Bounded):
    """A piece of an infill: `text`, or `mask`, of whose text something may be asked."""

    text: str | None = None
    mask: Mask | None = None


class Infill(Writing):
    """POST /v1/infill."""

    segments: list[Segment] = Field(min_length=1)
    n: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None


class Refine(Writing, Bounded):
    """POST /v1/refine: spans of a text are written anew, everything else stays byte for byte."""

    text: str
    spans: list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None = Field(
        default=None, min_length=1, description="[start, end) in code points; all of the text by default"
    )
    strength: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of a span's tokens that is written anew; the others are where it starts",
    )
    length: Count | Annotated[list[Count], Field(min_length=2, max_length=2)] | None = Field(
        default=None, description="tokens for each span, or [least, most]; as many as it has now by default"
    )
    logprobs: bool | None = None


class Score(Asked):
    """POST /v1/score: an estimate of -log p."""

    text: str | Tokens
    given: str | Tokens | None = None
    estimator: str | None = Field(default=None, max_length=64)
    samples: int = Field(default=128, ge=1)
    seed: int | None = SEED


class Tokenize(Asked):
    """POST /tokenize."""

    prompt: str


class Detokenize(Asked):
    """POST /detokenize."""

    tokens: Tokens
