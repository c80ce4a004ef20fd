"""A conversation as a value: who said what, read from the rows that people have."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixwell.core.errors import MixwellError

FIELDS = ("messages", "conversations", "conversation")  # of a row, looked for in this order
ANSWERING = "assistant"
SAID = {"from": "role", "value": "content"}  # another usual spelling of a message's keys
ROLES = {"human": "user", "gpt": ANSWERING, "bot": ANSWERING, "model": ANSWERING}  # and of who speaks
ROLE = re.compile(r"[A-Za-z][\w-]*")  # a template may write the role between the signs of a special token


@dataclass(frozen=True)
class Conversation:
    """Messages in their order, each with a `role` and what was said, and the tools that the answering side may call."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def text(self) -> str:
        """What was said, one message after the other."""
        return "\n".join(filter(None, map(_said, self.messages)))

    @property
    def answers(self) -> list[int]:
        """Places of the messages that the model is to learn to give."""
        roles = [message["role"] for message in self.messages]
        return [place for place, role in enumerate(roles) if role == ANSWERING]

    def to_json(self) -> str:
        """The conversation as one line; equal conversations give equal lines."""
        value: dict[str, Any] = {"messages": list(self.messages)}
        if self.tools:
            value["tools"] = list(self.tools)
        return json.dumps(value, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Conversation:
        """What `to_json` wrote."""
        value = json.loads(line)
        return cls(tuple(value["messages"]), tuple(value.get("tools", ())))


def conversation(messages: Any, tools: Any = None) -> Conversation:
    """A conversation from a row's list of messages; `MixwellError` names what is wrong with it."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise MixwellError(f"messages are {type(messages).__name__}; expected a list such as "
                           '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].')
    read = [_message(number, message) for number, message in enumerate(messages, start=1)]
    if isinstance(tools, str):
        tools = json.loads(tools)
    given = tools or ()
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise MixwellError(f"tools are {type(given).__name__}; expected a list of what the model may call.")
    return Conversation(tuple(read), tuple(map(_given, given)))


def _message(number: int, message: Any) -> Mapping[str, Any]:
    if not isinstance(message, Mapping):
        raise MixwellError(f"message {number} is {type(message).__name__}; expected role and content.")
    named = {SAID.get(name, name): value for name, value in _given(message).items()}
    role = named.get("role")
    if not isinstance(role, str) or not ROLE.fullmatch(role):
        raise MixwellError(f"message {number} has the role {role!r}; expected user, assistant, system or tool.")
    content = named.setdefault("content", "")
    if not isinstance(content, str):
        named["content"] = _joined(number, content)
    return named | {"role": ROLES.get(role, role)}


def _joined(number: int, content: Any) -> str:
    """The text of a content that comes in parts."""
    parts = content if isinstance(content, Sequence) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise MixwellError(f"message {number} holds more than text; leave pictures and sound out.")
    return "".join(map(str, texts))


def _given(value: Any) -> Any:
    """Plain data without the keys that hold nothing: tables of rows fill what one message lacks."""
    if isinstance(value, Mapping):
        return {name: _given(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [_given(inner) for inner in value]
    return value


def _said(message: Mapping[str, Any]) -> str:
    parts = [message.get(name) for name in ("reasoning_content", "content")]
    calls = message.get("tool_calls")
    if calls:
        parts.append(json.dumps(calls, ensure_ascii=False))
    return "\n".join(part for part in parts if isinstance(part, str) and part)
