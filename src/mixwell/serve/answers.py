"""Answers in OpenAI's words: whole, or as the chunks of a stream."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from mixwell.serve.asking import Prompt
from mixwell.serve.guard import error_body
from mixwell.serve.request import Event, Row, Token
from mixwell.serve.text import Places, Spelling
from mixwell.serve.tools import Call, Calls

Json = dict[str, Any]


@dataclass
class Choice:
    """What came of one row so far."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt: list[Token] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    end: Token | None = None
    finish: str | None = None
    begun: bool = False  # whether a stream told anything of it
    places: Places = field(default_factory=Places)  # where the tokens told so far end

    def add(self, event: Event) -> None:
        """Take in what is new."""
        self.text += event.text
        self.tokens += event.tokens
        self.prompt += event.prompt
        self.calls += event.calls
        self.end = event.end or self.end
        self.finish = event.finish or self.finish


@dataclass
class Clock:
    """When an answer was asked for, began and ended, in seconds of a clock that only runs forward."""

    asked: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None

    def token(self) -> float | None:
        """A token came; seconds since the one before, None for the first."""
        now = time.monotonic()
        since = None if self.last is None else now - self.last
        self.first = self.first or now
        self.last = now
        return since


class Reply(ABC):
    """One request's answer in the making."""

    object: str
    chunk: str
    prefix: str

    def __init__(self, model: str, spelling: Spelling, prompts: Sequence[Prompt], rows: Sequence[Row], echo: bool,
                 usage: bool) -> None:
        self.model, self.spelling, self.prompts, self.rows = model, spelling, prompts, rows
        self.echo, self.usage_wanted = echo, usage
        self.id = f"{self.prefix}-{uuid4().hex}"
        self.created = int(time.time())
        self.choices = [Choice() for _ in rows]
        self.clock = Clock()

    def read(self, event: Event) -> Event:
        """An event as it is told, what stands for something else than text taken out."""
        return event

    def add(self, event: Event) -> None:
        """Take in what is new."""
        choice = self.choices[event.row.tag]
        choice.add(event)

    def whole(self) -> Json:
        """The answer once it is complete."""
        found = self._head(self.object)
        numbered = enumerate(self.choices)
        found["choices"] = [self._choice(index, choice) for index, choice in numbered]
        return found | self._account()

    def chunks(self, event: Event) -> Iterator[Json]:
        """What a stream tells of an event."""
        index = event.row.tag
        choice = self.choices[index]
        if self._tells(event, choice):
            yield self._chunk([self._delta(index, event, first=not choice.begun)])
            choice.begun = True
        if event.finish:
            yield self._chunk([self._end(index, event)])

    def _tells(self, event: Event, choice: Choice) -> bool:
        """Whether a client sees anything of an event: a character that is not whole yet waits."""
        options = event.row.options
        detailed = options.experts or options.logprobs is not None
        if event.text or event.calls or (detailed and (event.tokens or event.prompt)):
            return True
        return self.echo and not choice.begun

    def beginning(self) -> Iterator[Json]:
        """What a stream tells before anything came."""
        yield from ()

    def ending(self) -> Iterator[Json]:
        """What a stream tells when all came."""
        if self.usage_wanted:
            last = self._head(self.chunk) | {"choices": []}
            yield last | self._account()

    def line(self, chunk: Json) -> str:
        """A chunk as a stream has it."""
        text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
        return f"data: {text}\n\n"

    def ended(self) -> str:
        """What a stream closes with."""
        return "data: [DONE]\n\n"

    def failure(self, message: str) -> Json:
        """What a stream tells when the answer broke."""
        return error_body(500, message)

    def _account(self) -> Json:
        return {"usage": self.usage(), "timings": self.timings()}

    def usage(self) -> Json:
        """Tokens read and written."""
        read = sum(len(prompt.ids) for prompt in self.prompts)
        written = sum(len(choice.tokens) for choice in self.choices)
        per_prompt = len(self.rows) // len(self.prompts)
        first_rows = self.rows[::per_prompt]
        cached = sum(row.cached or 0 for row in first_rows)
        found: Json = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        found["prompt_tokens_details"] = {"cached_tokens": cached}
        dropped = sum(row.dropped for row in self.rows)
        if dropped:  # what the answers no longer saw of their own rows
            found["dropped_tokens"] = dropped
        return found

    def timings(self) -> Json:
        """How long it took, in llama.cpp's words."""
        clock = self.clock
        begun = clock.first or clock.asked
        ended = clock.last or begun
        usage = self.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        prompt_s, predicted_s = begun - clock.asked, ended - begun
        written = usage["completion_tokens"]
        later = max(0, written - len(self.rows))  # the first ones came with the prompt
        found = {"cache_n": cached, "prompt_n": usage["prompt_tokens"] - cached}
        found["prompt_ms"] = 1e3 * prompt_s
        found["predicted_n"] = written
        found["predicted_ms"] = 1e3 * predicted_s
        found["predicted_per_second"] = later / predicted_s if predicted_s else None
        return found

    def _head(self, kind: str) -> Json:
        found: Json = {"id": self.id, "object": kind}
        found["created"] = self.created
        found["model"] = self.model
        return found

    def _chunk(self, choices: list[Json]) -> Json:
        found = self._head(self.chunk)
        found["choices"] = choices
        if self.usage_wanted:
            found["usage"] = None
        return found

    def _with_experts(self, choice: Json, tokens: Sequence[Token]) -> Json:
        """The choice with the experts of its tokens, where they were asked for."""
        told = [self._expert_entry(token) for token in tokens if token.experts is not None]
        return choice | {"experts": told} if told else choice

    def _expert_entry(self, token: Token) -> Json:
        text = self.spelling.text(token.id)
        return {"id": token.id, "token": text, "layers": token.experts}

    @abstractmethod
    def _choice(self, index: int, choice: Choice) -> Json:
        """A choice of the whole answer."""

    @abstractmethod
    def _delta(self, index: int, event: Event, first: bool) -> Json:
        """A choice of a chunk: what is new; `first` where nothing came before."""

    @abstractmethod
    def _end(self, index: int, event: Event) -> Json:
        """The last choice of a chunk."""


class ChatReply(Reply):
    """An answer in a conversation."""

    object, chunk, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, model: str, spelling: Spelling, prompts: Sequence[Prompt], rows: Sequence[Row], usage: bool,
                 calls: Sequence[Calls] = ()) -> None:
        """calls: what tells calls of tools from text, one for each row; none where no tool may be called."""
        super().__init__(model, spelling, prompts, rows, False, usage)
        self.calls = calls

    def read(self, event: Event) -> Event:
        """The event with calls of tools in the place of their text."""
        if not self.calls:
            return event
        calls = self.calls[event.row.tag]
        text, made = calls.push(event.text)
        finish = event.finish
        if finish:
            rest, last = calls.close()
            text, made = text + rest, made + last
        if finish == "stop" and calls.made:
            finish = "tool_calls"
        return replace(event, text=text, calls=tuple(made), finish=finish)

    def beginning(self) -> Iterator[Json]:
        """Each choice says whose it is."""
        for index in range(len(self.choices)):
            yield self._chunk([self._bare(index, {"role": "assistant", "content": ""})])

    def _choice(self, index: int, choice: Choice) -> Json:
        message: Json = {"role": "assistant", "content": choice.text}
        if choice.calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [_call(call) for call in choice.calls]
        found: Json = {"index": index, "message": message}
        found["logprobs"] = self._logprobs(index, choice.tokens)
        found["finish_reason"] = choice.finish
        return self._with_experts(found, choice.tokens)

    def _delta(self, index: int, event: Event, first: bool) -> Json:
        delta: Json = {"content": event.text} if event.text or not event.calls else {}
        if event.calls:
            before = len(self.choices[index].calls)
            numbered = enumerate(event.calls, start=before)
            delta["tool_calls"] = [{"index": place} | _call(call) for place, call in numbered]
        found = self._bare(index, delta)
        found["logprobs"] = self._logprobs(index, event.tokens)
        return self._with_experts(found, event.tokens)

    def _end(self, index: int, event: Event) -> Json:
        return self._bare(index, {}) | {"finish_reason": event.finish}

    def _bare(self, index: int, delta: Json) -> Json:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> Json | None:
        if self.rows[index].options.logprobs is None:
            return None
        content = []
        for token in tokens:
            own = self._entry(token.id, token.logprob)
            top = [self._entry(number, logprob) for number, logprob in token.top]
            content.append({**own, "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, number: int, logprob: float | None) -> Json:
        data = self.spelling.bytes_of(number)
        return {"token": self.spelling.text(number), "logprob": logprob, "bytes": list(data)}


def _call(call: Call) -> Json:
    """A call of a tool."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


class CompletionReply(Reply):
    """The continuation of a text."""

    object, chunk, prefix = "text_completion", "text_completion", "cmpl"

    def _prompt(self, index: int) -> str:
        """The prompt's text where it is to be told."""
        if not self.echo:
            return ""
        per_prompt = len(self.rows) // len(self.prompts)
        return self.prompts[index // per_prompt].text

    def _choice(self, index: int, choice: Choice) -> Json:
        text = self._prompt(index) + choice.text
        ends = [choice.end] if choice.end else []  # evaluators count on a last token whatever it is
        tokens = [*choice.prompt, *choice.tokens, *ends]
        found: Json = {"index": index, "text": text}
        found["logprobs"] = self._logprobs(index, tokens)
        found["finish_reason"] = choice.finish
        return self._with_experts(found, choice.tokens)

    def _delta(self, index: int, event: Event, first: bool) -> Json:
        text = self._prompt(index) + event.text if first else event.text
        tokens = [*event.prompt, *event.tokens]
        found: Json = {"index": index, "text": text, "finish_reason": None}
        found["logprobs"] = self._logprobs(index, tokens)
        return self._with_experts(found, event.tokens)

    def _end(self, index: int, event: Event) -> Json:
        logprobs = self._logprobs(index, [event.end]) if event.end else None
        return {"index": index, "text": "", "logprobs": logprobs, "finish_reason": event.finish}

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> Json | None:
        """What is told of tokens, once: their places go on from those told before."""
        if self.rows[index].options.logprobs is None:
            return None
        found: Json = {"tokens": [self.spelling.text(token.id) for token in tokens]}
        found["token_logprobs"] = [token.logprob for token in tokens]
        found["top_logprobs"] = [self._top(token) for token in tokens]
        places = self.choices[index].places
        found["text_offset"] = [places.next(self.spelling.bytes_of(token.id)) for token in tokens]
        return found

    def _top(self, token: Token) -> dict[str, float] | None:
        """The likeliest by their text; of several that are spelt alike the likeliest."""
        if token.logprob is None:
            return None
        best: dict[str, float] = {}
        for number, logprob in (*token.top, (token.id, token.logprob)):
            best.setdefault(self.spelling.text(number), logprob)
        return best
