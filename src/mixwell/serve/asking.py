"""From what a client asks for to rows of the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from mixwell.core.errors import MixwellError
from mixwell.lm.answering import USUAL
from mixwell.lm.chat import Chat
from mixwell.lm.conversation import conversation
from mixwell.lm.generate import check_options
from mixwell.lm.model import LanguageModel
from mixwell.lm.streaming import Text
from mixwell.serve.constrained import Constraints, grammar_of
from mixwell.serve.lengths import check_fits
from mixwell.serve.request import Options, Row, check_ids
from mixwell.serve.schemas import MOST_PROMPTS, ChatRequest, CompletionRequest, NamedTool, Sampling, ToolEntry
from mixwell.serve.tools import NOTHING, Form, Tool, as_templates_expect, calling, form_of

TEMPLATES_OWN = frozenset({"messages", "tools", "add_generation_prompt", "source", "today", "answer_begins",
                           "answer_ends"})  # names that a request may not set for the template

PLAIN: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Prompt:
    """A prompt as ids, and as the text that a completion echoes."""

    text: str
    ids: list[int]


class Asking:
    """What a model makes of requests."""

    def __init__(self, model: LanguageModel, context: int) -> None:
        assert model.tokenizer is not None
        self.model, self.tokenizer, self.context = model, model.tokenizer, context
        self.settings, self.usual = model.generation, _usual(model)
        known = range(model.config.vocab_size)  # a folder may name others, such as -1 for none
        self.stop_ids = frozenset(number for number in model.stop_ids if number in known)
        self.constraints = Constraints(model.tokenizer, model.config.vocab_size, sorted(self.stop_ids))

    @cached_property
    def chat(self) -> Chat:
        """The model's chat template; `MixwellError` where it has none."""
        return Chat(self.tokenizer)

    @cached_property
    def tool_form(self) -> Form:
        """How the model's chat template writes calls of tools; `MixwellError` where it knows none."""
        return form_of(self.chat.source)

    def conversation(self, messages: Sequence[Any], variables: dict[str, Any] | None = None,
                     tools: Sequence[ToolEntry] = ()) -> Prompt:
        """The prompt that a conversation makes in which these tools may be called."""
        check_text({"messages": messages, "chat_template_kwargs": variables})
        taken = TEMPLATES_OWN.intersection(variables or {})
        if taken:
            raise MixwellError(f"chat_template_kwargs sets {min(taken)}, which is the server's own; leave it out.")
        if tools or any(message.get("tool_calls") for message in messages):
            form_of(self.chat.source)  # refuses where it knows none
        said = list(as_templates_expect(messages))
        told = [tool.model_dump(exclude_none=True) for tool in tools]
        talk = conversation(said, told)
        check_fits([message["content"] for message in talk.messages], self.tokenizer, self.context)
        ids = self.chat.prompt(talk, **(variables or {}))
        return Prompt("", ids)

    def prompts(self, given: Any, most: int = MOST_PROMPTS) -> list[Prompt]:
        """The prompts that a request has: a text, ids, or several of either, `most` at most."""
        check_text(given)
        if isinstance(given, str):
            return [self._text(given)]
        if given and isinstance(given[0], int):
            return [self._ids(given)]
        if len(given) > most:
            raise MixwellError(f"the request has {len(given)} prompts; expected {most} at most.")
        return [self._text(one) if isinstance(one, str) else self._ids(one) for one in given]

    def _text(self, text: str) -> Prompt:
        check_fits([text], self.tokenizer, self.context)
        return Prompt(text, self.tokenizer.prompt(text))

    def _ids(self, ids: list[int]) -> Prompt:
        check_ids(ids, self.model.config.vocab_size)
        return Prompt(self.tokenizer.decode(ids), list(ids))

    def chat_options(self, asked: ChatRequest, prompt: Prompt) -> Options:
        """How the answer in a conversation is drawn."""
        if asked.top_logprobs and not asked.logprobs:
            raise MixwellError("top_logprobs needs logprobs: true.")
        room = self.context - len(prompt.ids)
        usual = self.settings.max_new_tokens or USUAL
        most = asked.max_completion_tokens or asked.max_tokens or max(1, min(usual, room))
        told = (asked.top_logprobs or 0) if asked.logprobs else None
        return self._options(asked, most, told, calls=self._calling(asked))

    def callable(self, asked: ChatRequest) -> list[ToolEntry]:
        """The tools that an answer may call."""
        return [] if asked.tool_choice == "none" else asked.tools or []

    def _calling(self, asked: ChatRequest) -> str | None:
        """The grammar of an answer that may call tools."""
        choice = asked.tool_choice
        tools = [Tool(entry.function.name, entry.function.parameters or NOTHING) for entry in self.callable(asked)]
        if isinstance(choice, NamedTool):
            tools = [tool for tool in tools if tool.name == choice.function.name]
        forced = choice == "required" or isinstance(choice, NamedTool)
        if not tools:
            if forced:
                raise MixwellError("tool_choice asks for a tool that is not among tools; add it there.")
            return None
        several = asked.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
        return calling(tools, self.tool_form, forced, several)

    def completion_options(self, asked: CompletionRequest) -> Options:
        """How a completion is drawn."""
        most = 16 if asked.max_tokens is None else asked.max_tokens
        if most == 0 and not asked.echo:
            raise MixwellError("max_tokens is 0 without echo; expected at least 1.")
        both = bool(asked.echo) and asked.logprobs is not None
        return self._options(asked, most, asked.logprobs, both)

    def _options(self, asked: Sampling, most: int, logprobs: int | None, prompt_logprobs: bool = False,
                 calls: str | None = None) -> Options:
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        ends = frozenset() if asked.ignore_eos else self.stop_ids
        drawing = self._drawing(asked)
        return Options(max_tokens=most, stop=tuple(stops), stop_ids=ends, logprobs=logprobs, seed=asked.seed,
                       grammar=self._grammar(asked, calls),
                       prompt_logprobs=prompt_logprobs, logit_bias=self._bias(asked), min_tokens=asked.min_tokens or 0,
                       presence_penalty=asked.presence_penalty or 0.0, experts=bool(asked.return_experts),
                       frequency_penalty=asked.frequency_penalty or 0.0, label=asked.label or "", **drawing)

    def _grammar(self, asked: Sampling, calls: str | None) -> str | None:
        """The grammar of the form that is asked for, or of an answer that may call tools."""
        wanted = _plain(asked.response_format)
        structured = _plain(asked.structured_outputs)
        formed = grammar_of(wanted, structured)
        if formed is not None and calls is not None:
            raise MixwellError("the request asks for a form of the answer and for tools; leave one out.")
        found = formed or calls
        if found is None:
            return None
        for name in ("min_tokens", "ignore_eos"):
            if getattr(asked, name):
                raise MixwellError(f"{name} came with a form of the answer, which decides where that ends; leave one "
                                   "out.")
        return self.constraints.check(found)

    def _drawing(self, asked: Sampling) -> dict[str, Any]:
        """What the request says of drawing, else the model's folder, else the usual."""
        said = {name: getattr(asked, name) for name in self.usual}
        found = self.usual | {name: value for name, value in said.items() if value is not None}
        found["top_k"] = max(0, found["top_k"])  # -1 is all, too
        warm = found["temperature"] or 1.0  # 0 takes the likeliest
        check_options(0, **found | {"temperature": warm})  # the folder's are not checked yet
        return found

    def _bias(self, asked: Sampling) -> dict[int, float]:
        known = self.model.config.vocab_size
        found = {}
        for name, value in (asked.logit_bias or {}).items():
            number = int(name) if name.isascii() and name.isdigit() and len(name) < 12 else -1
            if not 0 <= number < known:
                raise MixwellError(f"logit_bias names the id {name!r}; this model's are 0 to {known - 1}.")
            found[number] = value
        return found

    def rows(self, prompts: Sequence[Prompt], options: Options, n: int) -> list[Row]:
        """n rows of each prompt, one after the other; of those with a seed each draws otherwise than the others."""
        form = None if options.grammar is None else self.constraints.begin(options.grammar)  # read once for all rows
        found = []
        for place, prompt in enumerate(prompts):
            for draw in range(n):
                text = Text(self.tokenizer, options.stop)
                row = Row(prompt.ids, options, text, place * n + draw, draw)
                if form is not None:
                    row.constraint = form.copy()
                found.append(row)
        return found


def _plain(asked: BaseModel | None) -> dict[str, Any] | None:
    return None if asked is None else asked.model_dump(by_alias=True)


def _usual(model: LanguageModel) -> dict[str, Any]:
    """How a row is drawn where the request says nothing: as the model's folder says; a warning tells what it asks for
    that is not known here."""
    own = model.drawing({})
    found = {name: own.get(name, value) for name, value in PLAIN.items()}
    if own.get("do_sample") is False:
        found["temperature"] = 0.0
    return found


def check_text(value: Any) -> None:
    """Refuse what no text can be made of."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise MixwellError("the request holds half of a surrogate pair, which is no text; leave it out.") from error
    except RecursionError as error:
        raise MixwellError("the request is nested too deeply.") from error
