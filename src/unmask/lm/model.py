"""The public language model: generate, infill, fill, refine, score, look at its logits.

Every call is a canvas with some positions fixed, handed to the same loop.
"""

import asyncio
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.errors import BadInput, TooLong, Unsupported
from unmask.engine import backends
from unmask.lm.control import Controls, constrains
from unmask.lm.grow import grown
from unmask.lm.results import Output, Score, Settings, StreamStep
from unmask.lm.rows import Ask, Length, Prompt, Reader, is_list
from unmask.lm.save import save
from unmask.lm.write import stream, write
from unmask.models.backbone import Transformer
from unmask.objectives.likelihood import likelihood
from unmask.text.calls import Tool
from unmask.text.chat import ChatTemplate, Message, Plain, conversations
from unmask.text.layout import Fixed
from unmask.text.template import parse
from unmask.text.tokenizer import Tokenizer


class LanguageModel:
    """A network, its tokenizer, and everything one can ask of them.

    Every call raises `BadInput` (a value that can't be used), `TooLong` (more positions than the model has),
    `UnknownName` (a decoder or option that does not exist) or `Unsupported` (what this model can't honour).

    Args:
        model: the network.
        tokenizer: strings to ids; without one, prompts are ids and results have no text.
        name: what it is called in messages and reports.
        template: how it was taught to chat; without one, a chat is plain named turns.
        source: the folder or file that it was loaded from, if any.
        backend: what writes: a key of `unmask.engine.backends.BACKENDS`, or "auto". Scores and logits are torch's.

    Attributes:
        reader: turns text into rows for it.
        runner: the network on that backend.
        backend: its name.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        name: str = "model",
        template: ChatTemplate | None = None,
        source: Path | None = None,
        backend: str = "torch",
    ) -> None:
        self.model, self.tokenizer, self.name, self.source = model.eval(), tokenizer, name, source
        self.backend, self.runner = backends.build(self.model, backend)
        self.template = template or (None if tokenizer is None else Plain(tokenizer))
        self.reader = Reader(tokenizer, model.vocab, model.traits, model.max_length, name)
        self.controls = Controls(tokenizer, model.vocab, name)

    @property
    def aio(self) -> "Asynchronous":
        """The same calls as coroutines: `await lm.aio.generate(...)`."""
        return Asynchronous(self)

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] | Sequence[Message] | Sequence[Sequence[Message]],
        *,
        length: Length = 64,
        eos: Literal["stop", "keep", "forbid"] = "stop",
        stop: str | Sequence[str] = (),
        n: int = 1,
        pins: Mapping[int, Prompt] | None = None,
        chat: bool = False,
        **settings: Unpack[Settings],
    ) -> Any:
        """Continue a prompt.

        Args:
            prompt: text, token ids, or a list of either; None writes without a prompt.
            length: positions to write at most; (a, b) lets the text end between a and b. With a rule for `lengths` they
                are as many as the model finds it needs, within these.
            eos: "stop" an end of text ends early, "keep" writes on behind it, "forbid" makes the length exact.
            stop: strings that end the text at their earliest match, which is cut off.
            n: texts per prompt.
            pins: token position in the completion to the text (or ids) that stands there.
            chat: answer a conversation, put through the model's chat template: the prompt is the user's text, a list of
                messages of a role and a content, or a list of either. `.text` is the conversation as the model sees it
                and the answer, `.completion` the answer. An answer that is constrained ends as the constraint says, and
                not at the template's stop strings.
            settings: see `unmask.lm.results.Settings`.
        Returns:
            An `Output`; a list of them for a list of prompts or n > 1 (all of the first prompt first).
        """
        asked = self.turns(prompt) if chat else prompt
        bare = chat and constrains(settings)
        ask = self.ask(asked, length=length, eos=eos, stop=stop, n=n, pins=pins, chat=chat and not bare)
        ask = self._held(ask, settings, may_end=eos != "forbid")
        outputs = write(self.runner, self.tokenizer, ask, settings)
        return outputs if n > 1 or is_list(asked) else outputs[0]

    def stream(
        self,
        prompt: Prompt | Sequence[Message],
        *,
        length: Length = 64,
        eos: Literal["stop", "keep", "forbid"] = "stop",
        stop: str | Sequence[str] = (),
        pins: Mapping[int, Prompt] | None = None,
        chat: bool = False,
        **settings: Unpack[Settings],
    ) -> Iterator[StreamStep]:
        """Continue a prompt, and tell after every forward what stands there.

        Committed text only grows and is never taken back: unfinished characters and possible beginnings of a stop
        string are held back. Takes what `generate` takes, for one text.
        """
        if self.tokenizer is None:
            raise Unsupported(f"{self.name} has no tokenizer, so there is no text to stream; use generate with ids")
        asked = self.turns(prompt) if chat else prompt
        if is_list(asked):
            raise BadInput("a stream continues one prompt, not a list; use generate for several")
        bare = chat and constrains(settings)
        ask = self.ask(asked, length=length, eos=eos, stop=stop, n=1, pins=pins, chat=chat and not bare)
        ask = self._held(ask, settings, may_end=eos != "forbid")
        return stream(self.runner, self.tokenizer, ask, settings)

    def infill(
        self, prefix: Prompt, suffix: Prompt, *, length: Length = (1, 40), n: int = 1, **settings: Unpack[Settings]
    ) -> Any:
        """Write what stands between two texts.

        Args:
            prefix, suffix: text or ids; either may be empty.
            length: positions of the gap; for (a, b) several lengths are tried in one batch, and the one whose text
                makes what stands behind the gap most likely is kept; see `unmask.decode.lengths`. With a rule for
                `lengths`, which a model may bring with it, the gap finds its own; see `unmask.decode.growth`.
            n: texts.
            settings: see `unmask.lm.results.Settings`.
        Returns:
            An `Output`; a list for n > 1. `.text` is the prefix, the completion and the suffix, byte for byte.
        """
        ask = self.reader.infill(prefix, suffix, length, n, fits=self.controls.fits(settings))
        outputs = write(self.runner, self.tokenizer, self._held(ask, settings), settings)
        return outputs if n > 1 else outputs[0]

    def fill(self, template: str, **settings: Unpack[Settings]) -> Output:
        """Fill a template, `Dear {{name:1-4}}, your parcel {{:8}} today.`; the numbers are tokens.

        `constraint` may say for each hole by its name what its text has to be.

        Returns:
            An `Output`; `.holes` has the name and the text of each hole.
        """
        ask = self.reader.fill(parse(template), fits=self.controls.fits(settings))
        return write(self.runner, self.tokenizer, self._held(ask, settings), settings)[0]

    def refine(
        self,
        text: str,
        *,
        spans: Sequence[tuple[int, int]],
        strength: float = 1.0,
        length: Length | None = None,
        **settings: Unpack[Settings],
    ) -> Output:
        """Rewrite spans of a text; everything outside them stays byte for byte.

        Args:
            text: the text.
            spans: (start, end) in code points, end exclusive.
            strength: share of each span's tokens that is masked and written anew; the others stay in their places.
            length: positions for each span, instead of as many as it has now; needs strength 1.
            settings: see `unmask.lm.results.Settings`.
        """
        fits = self.controls.fits(settings)
        ask = self.reader.refine(text, spans, strength, length, settings.get("seed", 0), fits)
        return write(self.runner, self.tokenizer, self._held(ask, settings), settings)[0]

    def score(
        self,
        text: Prompt,
        *,
        given: Prompt = None,
        estimator: str | None = None,
        samples: int = 128,
        seed: int = 0,
    ) -> Score:
        """Estimate -log p(text), or -log p(text | given).

        Args:
            text: text or ids.
            given: what stands before it and is not scored; as ids it is fed as it is.
            estimator: a name in `unmask.objectives.likelihood`; by default "exact-k", or "ar" for an AR model.
            samples: draws of noise; estimators that are exact take none.
            seed: of the noise.
        """
        ids, context = self.reader.ids(text), self.reader.opening(given)
        if not ids:
            raise BadInput("the text to score is empty; give one character or more")
        tokens = torch.tensor([*context, *ids], device=self.model.device)
        if len(tokens) > self.model.max_length:
            raise TooLong(f"the text has {len(tokens)} tokens and {self.name} holds {self.model.max_length}; cut it")
        asked = torch.arange(len(tokens), device=tokens.device) >= len(context)
        name = estimator or ("ar" if self.model.traits.sees == "left" else "exact-k")
        found = likelihood(self.model, tokens, asked, name, samples=samples, seed=seed)
        size = len(self.tokenizer.decode_bytes(ids)) if self.tokenizer is not None else 0
        bits = found.nats / math.log(2) / size if size else None
        return Score(found.nats, found.stderr, bits, len(ids), found.forwards, found.bound)

    @torch.inference_mode()
    def logits(
        self,
        tokens: Tensor | Sequence[Sequence[int]],
        *,
        sigma: Tensor | None = None,
        attend: Literal["full", "causal"] | Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The network's own output, without a shift.

        Args:
            tokens: (B, L) ids.
            sigma: (B,) total noise, for networks that are defined over it; those without time conditioning read 0.
            attend: None the model's own rule; "full"; "causal"; or (B, L, L) bool, True = visible.
            positions: (B, L) positions; 0 to L - 1 by default.
        Returns:
            (B, L, V); of networks that say ratios, the log score (0 at the token that is there).
        """
        tokens = torch.as_tensor(tokens, device=self.model.device)
        if tokens.dim() != 2 or tokens.dtype.is_floating_point:
            raise BadInput(f"tokens are whole numbers of shape (B, L), not {tokens.dtype} of {tuple(tokens.shape)}")
        low, high = (int(tokens.min()), int(tokens.max())) if tokens.numel() else (0, 0)
        if not 0 <= low <= high < self.model.vocab.size:
            raise BadInput(f"token ids lie between 0 and {self.model.vocab.size - 1}, not {low} to {high}")
        at = torch.arange(tokens.shape[1], device=tokens.device) if positions is None else positions
        try:
            at = torch.as_tensor(at, device=tokens.device).expand_as(tokens)
        except RuntimeError as error:
            raise BadInput(f"positions are of the shape of tokens, {tuple(tokens.shape)}: {error}") from error
        size = int(at.max()) + 1 if at.numel() else 0
        if size > self.model.max_length:
            raise TooLong(f"{size} positions are more than the {self.model.max_length} of {self.name}")
        rule = self._rule(attend, tuple(tokens.shape))
        if sigma is None:
            return self.model(tokens.long(), positions=at, attend=rule)
        if self.model.shape.sigma == "none":
            raise Unsupported(f"{self.name} is not defined over a noise level; leave sigma out")
        sigma = torch.as_tensor(sigma, device=self.model.device)
        if tuple(sigma.shape) != (len(tokens),) or not bool(((sigma >= 0) & (sigma < math.inf)).all()):
            raise BadInput(f"sigma is the total noise of each row, {len(tokens)} numbers from 0, not {sigma.tolist()}")
        return self.model.at(sigma, tokens.long(), positions=at, attend=rule)

    def save(self, folder: str | Path, dtype: str | torch.dtype | None = None) -> None:
        """Write a folder that `unmask.load` and the model's own publisher's code can read.

        A model that was loaded from a folder goes back as it came: the same names, tensor by tensor the same numbers,
        and the files of its tokenizer. A fresh one is written in our own layout.

        Args:
            folder: where.
            dtype: of all floating-point numbers; None is what each tensor was stored in.
        Raises:
            Unsupported: weights that were rounded (`quantize=`, GGUF); the message says what to do.
        """
        save(self.model, self.tokenizer, self.source, Path(folder), dtype)

    def _held(self, ask: Ask, settings: Settings, *, may_end: bool = False) -> Ask:
        """The ask as the settings want its texts: of lengths that they find themselves, and held to constraints."""
        ask = grown(self.runner, ask, settings, self.controls.fits(settings))
        return self.controls.hold(ask, settings, may_end=may_end)

    def _rule(self, attend: str | Tensor | None, shape: tuple[int, ...]) -> Attend:
        if attend is None:
            return Attend.native(self.model.traits)
        if torch.is_tensor(attend):
            if attend.dtype != torch.bool or tuple(attend.shape) != (shape[0], shape[1], shape[1]):
                raise BadInput(
                    f"attend is a bool tensor of shape {(shape[0], shape[1], shape[1])}, "
                    f"not {attend.dtype} of {tuple(attend.shape)}"
                )
            return Attend(kind="given", given=attend.to(self.model.device))
        if attend not in ("full", "causal"):
            raise BadInput(f"attend is None, 'full', 'causal' or a bool tensor, not {attend!r}")
        return Attend(kind="full" if attend == "full" else "causal")

    def turns(self, prompt: Any, tools: Sequence[Tool] = (), *, call: bool = False) -> Fixed | list[Fixed]:
        """Conversations up to the answer: one for a text or messages, several for a list of either.

        With `tools`, which the model is told of; with `call`, up to where a call of one of them begins. See
        `unmask.text.calls`.
        """
        if self.template is None:
            raise Unsupported(f"{self.name} has no tokenizer, so there is no chat; use generate with ids")
        chats, several = conversations(prompt)
        read = self.template.read(chats, tools, call=call)
        return read if several else read[0]

    def ask(
        self,
        prompt: Any,
        *,
        length: Length,
        eos: str = "stop",
        stop: str | Sequence[str] = (),
        n: int = 1,
        pins: Mapping[int, Prompt] | None = None,
        chat: bool = False,
    ) -> Ask:
        """What `generate` writes, as rows, for who writes them on an engine of their own.

        Takes what `generate` takes; with `chat`, the prompt is what `turns` gives.
        """
        if chat and self.template is not None and eos == "stop":
            stop = [*([stop] if stop and isinstance(stop, str) else stop), *self.template.stops]
        return self.reader.generation(prompt, length=length, eos=eos, stop=stop, n=n, pins=pins or {})


class Asynchronous:
    """The calls of a language model as coroutines; each runs in a thread of its own, so the event loop stays free."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in ("generate", "infill", "fill", "refine", "score", "logits", "stream"):
            raise AttributeError(f"a language model has no asynchronous call {name!r}")
        call = getattr(self._lm, name)
        return functools.partial(_steps if name == "stream" else asyncio.to_thread, call)


async def _steps(call: Callable[..., Iterator[StreamStep]], *args: Any, **settings: Any) -> Any:
    """A stream's steps, each awaited."""
    steps = call(*args, **settings)
    while (step := await asyncio.to_thread(next, steps, None)) is not None:
        yield step
