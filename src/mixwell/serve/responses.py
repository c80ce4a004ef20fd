"""OpenAI's Responses: what they ask for as a conversation, and answers in their words, whole or as events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from mixwell.core.errors import MixwellError
from mixwell.serve.answers import ChatReply, Json
from mixwell.serve.asking import Prompt
from mixwell.serve.request import Event, Row
from mixwell.serve.schemas import MOST_MESSAGES, MOST_TOOLS, ChatRequest, Function, NamedSchema
from mixwell.serve.text import Spelling
from mixwell.serve.tools import Call, Calls

KEPT = "this server keeps no responses: send the whole conversation as input, and leave {} out."
SPOKEN = ("message", None)  # types of an item that is a message


class Format(NamedSchema):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextOptions(BaseModel):
    """What is said of the answer's text."""

    format: Format = Format()


class FunctionEntry(Function):
    """A tool, of which functions are the only kind."""

    type: Literal["function"]


class Chosen(BaseModel):
    """The tool that is to be called."""

    type: Literal["function"]
    name: Annotated[str, Field(max_length=64)]


class ResponseRequest(BaseModel):
    """POST /v1/responses."""

    model_config = ConfigDict(allow_inf_nan=False)

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    model: Annotated[str, Field(max_length=512)] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    label: Annotated[str, Field(max_length=64)] | None = None
    stream: bool | None = None
    text: TextOptions = TextOptions()
    tools: Annotated[list[FunctionEntry], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Chosen | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None  # what is longer than the context is refused
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None


def as_chat(asked: ResponseRequest) -> ChatRequest:
    """The conversation that is to be gone on with. Raises `MixwellError` for what would have to be kept here."""
    for name in ("previous_response_id", "conversation", "background"):
        if getattr(asked, name):
            raise MixwellError(KEPT.format(name))
    same = ("model", "temperature", "top_p", "top_k", "min_p", "seed", "label", "stream", "parallel_tool_calls")
    found = {name: getattr(asked, name) for name in same}
    tools = [{"type": "function", "function": entry.model_dump(exclude={"type"})} for entry in asked.tools or []]
    choice: Any = asked.tool_choice
    if isinstance(choice, Chosen):
        choice = {"type": "function", "function": {"name": choice.name}}
    found |= {"messages": _messages(asked), "max_tokens": asked.max_output_tokens, "tools": tools or None}
    found |= {"tool_choice": choice, "response_format": _format(asked.text.format)}
    return ChatRequest.model_validate(found)


def _format(asked: Format) -> Json | None:
    if asked.type == "text":
        return None
    named = asked.model_dump(by_alias=True, exclude={"type"})
    return {"type": asked.type, "json_schema": named}


def _messages(asked: ResponseRequest) -> list[Json]:
    """The messages that instructions and input are."""
    found: list[Json] = []
    if asked.instructions:
        found.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        return [*found, {"role": "user", "content": asked.input}]
    for number, item in enumerate(asked.input, start=1):
        _take(found, item, number)
    return found


def _take(found: list[Json], item: Json, number: int) -> None:
    """Put an item behind the messages so far; calls go with what was said before them."""
    kind = item.get("type")
    if kind in SPOKEN:
        found.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        if not found or found[-1]["role"] != "assistant":
            found.append({"role": "assistant", "content": ""})
        found[-1].setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "function",
                                                       "function": function})
    elif kind == "function_call_output":
        found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind != "reasoning":  # what was thought before is left out, as templates do
        raise MixwellError(f"item {number} of input is of the type {kind!r}; expected message, function_call or "
                           "function_call_output.")


class ResponseReply(ChatReply):
    """An answer as a response: items, in the order in which they came."""

    object, prefix = "response", "resp"

    def __init__(self, model: str, spelling: Spelling, prompt: Prompt, row: Row, calls: Sequence[Calls],
                 asked: ResponseRequest) -> None:
        super().__init__(model, spelling, [prompt], [row], False, calls)
        self.asked = asked
        self.items: list[Json] = []
        self.streamed = False
        self.told = 0  # events

    def beginning(self) -> Iterator[Json]:
        """The response before anything was said."""
        self.streamed = True
        for kind in ("created", "in_progress"):
            yield self._event(kind, response=self._response("in_progress"))

    def chunks(self, event: Event) -> Iterator[Json]:
        """The items that an event begins, goes on with or completes."""
        if event.text:
            yield from self._said(event.text)
        for call in event.calls:
            yield from self._called(call)

    def add(self, event: Event) -> None:
        """Take in what is new."""
        super().add(event)
        if not self.streamed:
            for _ in self.chunks(event):
                pass

    def ending(self) -> Iterator[Json]:
        """The last item's end, and the whole."""
        yield from self._closed()
        found = self.whole()
        yield self._event(found["status"], response=found)

    def whole(self) -> Json:
        """The response once it is complete."""
        cut = self.choices[0].finish == "length"
        if not self.streamed:
            for _ in self._closed():
                pass
        found = self._response("incomplete" if cut else "completed")
        if cut:
            found["incomplete_details"] = {"reason": "max_output_tokens"}
        usage = self.usage()
        found["usage"] = {"input_tokens": usage["prompt_tokens"],
                          "input_tokens_details": usage["prompt_tokens_details"],
                          "output_tokens": usage["completion_tokens"],
                          "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": usage["total_tokens"]}
        return found

    def line(self, chunk: Json) -> str:
        """An event with its name."""
        kind = chunk["type"]
        return f"event: {kind}\n{super().line(chunk)}"

    def ended(self) -> str:
        """Nothing: the last event says that it is the last."""
        return ""

    def failure(self, message: str) -> Json:
        """What a stream tells when the answer broke."""
        return self._event("error", code="server_error", message=message, param=None)

    def _response(self, status: str) -> Json:
        asked = self.asked
        found: Json = {"id": self.id, "object": self.object, "created_at": self.created, "status": status}
        found |= {"error": None, "incomplete_details": None, "model": self.model, "output": list(self.items)}
        found |= {name: getattr(asked, name) for name in ("instructions", "max_output_tokens", "temperature", "top_p")}
        found |= {"parallel_tool_calls": asked.parallel_tool_calls is not False, "previous_response_id": None}
        told = asked.model_dump(by_alias=True, exclude_none=True, include={"text", "tools", "tool_choice", "metadata"})
        usual: Json = {"tools": [], "tool_choice": "auto", "metadata": {}}
        return found | usual | told | {"store": False, "truncation": "disabled", "usage": None}

    def _event(self, kind: str, **facts: Any) -> Json:
        name = kind if kind == "error" else f"response.{kind}"
        found = {"type": name, "sequence_number": self.told, **facts}
        self.told += 1
        return found

    @property
    def _index(self) -> int:
        """Of the last item."""
        return len(self.items) - 1

    def _at(self) -> Json:
        """Where the last item stands."""
        last = self.items[-1]
        return {"item_id": last["id"], "output_index": self._index}

    def _said(self, text: str) -> Iterator[Json]:
        """Go on with a message, which begins where none was open."""
        if not self._open():
            message = {"id": f"msg_{uuid4().hex}", "type": "message", "status": "in_progress", "role": "assistant"}
            self.items.append({**message, "content": []})
            yield self._event("output_item.added", output_index=self._index, item=self.items[-1])
            part = _part("")
            yield self._event("content_part.added", **self._at(), content_index=0, part=part)
            self.items[-1] = {**message, "content": [part]}
        before = self.items[-1]["content"][0]["text"]
        self.items[-1] = {**self.items[-1], "content": [_part(before + text)]}
        yield self._event("output_text.delta", **self._at(), content_index=0, delta=text, logprobs=[])

    def _open(self) -> bool:
        *_, last = [{}, *self.items]
        return last.get("status") == "in_progress"

    def _closed(self) -> Iterator[Json]:
        """The end of a message that is open."""
        if not self._open():
            return
        cut = self.choices[0].finish == "length"
        (part,) = self.items[-1]["content"]
        self.items[-1] = {**self.items[-1], "status": "incomplete" if cut else "completed"}
        place = {**self._at(), "content_index": 0}
        yield self._event("output_text.done", **place, text=part["text"], logprobs=[])
        yield self._event("content_part.done", **place, part=part)
        yield self._event("output_item.done", output_index=self._index, item=self.items[-1])

    def _called(self, call: Call) -> Iterator[Json]:
        """A call, from beginning to end; what was said before it ends."""
        yield from self._closed()
        item: Json = {"id": f"fc_{uuid4().hex}", "type": "function_call", "call_id": call.id, "name": call.name}
        self.items.append({**item, "arguments": call.arguments, "status": "completed"})
        started = {**item, "arguments": "", "status": "in_progress"}
        yield self._event("output_item.added", output_index=self._index, item=started)
        place = self._at()
        yield self._event("function_call_arguments.delta", **place, delta=call.arguments)
        yield self._event("function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        yield self._event("output_item.done", output_index=self._index, item=self.items[-1])


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
