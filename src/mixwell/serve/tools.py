"""Tools that a model may call: how its template writes a call, the grammar that calls follow, and calls told from text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from mixwell.core.errors import MixwellError
from mixwell.lm.streaming import overlap
from mixwell.serve.constrained import BETWEEN, of_lark, tagged

UNKNOWN = ("the model's chat template writes calls of tools in a form that is not known here; known are <tool_call> "
           'around {"name": ..., "arguments": ...}, and {"name": ..., "parameters": ...}.')
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}  # arguments of a tool that takes none
OTHERS = ("<function=", "<arg_key>")  # within <tool_call>: calls that are no JSON


@dataclass(frozen=True)
class Form:
    """How a template writes a call: JSON of a name and arguments, between two texts."""

    begin: str
    end: str
    arguments: str  # the key of the arguments

    def before(self, name: str) -> str:
        """What stands before the arguments of a call."""
        quoted = json.dumps(name)
        named = f'{{"name": {quoted}, '
        return f'{self.begin}{named}"{self.arguments}": '

    @property
    def after(self) -> str:
        """What stands behind them."""
        return "}" + self.end


TAGGED = Form("<tool_call>\n", "\n</tool_call>", "arguments")  # as Hermes, Qwen and SmolLM write them
BARE = Form("", "", "parameters")  # as Llama 3 writes them: the call is all that is said


@dataclass(frozen=True)
class Tool:
    """A function that may be called, and the JSON schema of its arguments."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call that a model made; arguments are JSON."""

    id: str
    name: str
    arguments: str


def form_of(source: str) -> Form:
    """How a chat template writes calls; `MixwellError` where it knows no tools, or writes them in another way."""
    if "tools" not in source:
        raise MixwellError("the model's chat template knows no tools; leave tools and tool_calls out.")
    if "<tool_call>" in source and not any(other in source for other in OTHERS):
        return TAGGED
    if "<tool_call>" not in source and "parameters" in source:
        return BARE
    raise MixwellError(UNKNOWN)


def calling(tools: Sequence[Tool], form: Form, forced: bool, several: bool) -> str | None:
    """What an answer follows that may call these tools: text with calls in it, or where `forced` calls alone.

    several: whether forced calls may be more than one. None where no text tells a call's beginning and none is forced.
    """
    if forced:
        return of_lark(_calls(tools, form, several and bool(form.end)))
    if not form.begin:
        return None
    trigger = form.begin.strip()
    return tagged([(trigger, form.before(tool.name), _schema(tool), form.after) for tool in tools])


def _calls(tools: Sequence[Tool], form: Form, several: bool) -> str:
    """In Lark's language: calls, one behind the other."""
    numbers = range(len(tools))
    alternatives = " | ".join(f"call{number}" for number in numbers)
    more = ' ("\\n" call)*' if several else ""
    lines = [f"start: call{more}", f"call: {alternatives}"]
    after = json.dumps(form.after)
    for number, tool in enumerate(tools):
        before = json.dumps(form.before(tool.name))
        schema = json.dumps(_schema(tool))
        lines += [f"call{number}: {before} arguments{number} {after}", f"arguments{number}: %json {schema}"]
    return "\n".join(lines)


def _schema(tool: Tool) -> dict[str, Any]:
    """The schema of a call's arguments, an object whatever it says."""
    usual = {"type": "object", "x-guidance": {"whitespace_pattern": BETWEEN}}
    return {**usual, **tool.parameters}


class Calls:
    """Tells text and calls apart as an answer comes."""

    def __init__(self, form: Form, names: Sequence[str]) -> None:
        self.form, self.names = form, frozenset(names)
        self.begin, self.end = form.begin.strip(), form.end.strip()
        self.held, self.inside = "", False
        self.made = 0  # calls so far

    def push(self, text: str) -> tuple[str, list[Call]]:
        """What can be told of an answer that goes on with `text`: words, and calls that are complete."""
        self.held += text
        if not self.begin:
            return self._open()
        said: list[str] = []
        calls: list[Call] = []
        while self._advances(said, calls):
            pass
        return "".join(said), calls

    def close(self) -> tuple[str, list[Call]]:
        """What was held back; nothing will come. A call that is not complete is text."""
        rest, self.held = self.held, ""
        whole = None if self.begin else self._read(rest)
        if whole is not None:
            return "", [whole]
        opened = self.begin if self.inside else ""
        self.inside = False
        return ("" if self.made and not (opened + rest).strip() else opened + rest), []

    def _open(self) -> tuple[str, list[Call]]:
        """Without a text that begins calls: all is held as long as it may be one."""
        started = self.held.lstrip()
        if not started or started.startswith("{"):
            return "", []
        told, self.held = self.held, ""
        return told, []

    def _advances(self, said: list[str], calls: list[Call]) -> bool:
        """Go on to the next beginning or end of a call; False where none is there yet."""
        mark = self.end if self.inside else self.begin
        before, found, after = self.held.partition(mark)
        if not found:
            if not self.inside:
                said.append(self._sure())
            return False
        self.held = after
        if self.inside:
            call = self._read(before)
            said += [] if call else [f"{self.begin}{before}{self.end}"]
            calls += [call] if call else []
        else:
            said.append(before.rstrip())
        self.inside = not self.inside
        return True

    def _sure(self) -> str:
        """Take what is held as text, but for white space at its end and what may begin a call."""
        length = len(self.held) - overlap(self.held, self.begin)
        told = self.held[:length].rstrip()
        self.held = self.held[len(told) :]
        return told

    def _read(self, text: str) -> Call | None:
        """The call that a text is, where it is one of a known tool."""
        try:
            value = json.loads(text)
        except ValueError:
            return None
        if not isinstance(value, dict) or value.get("name") not in self.names:
            return None
        arguments = value.get(self.form.arguments)
        if not isinstance(arguments, dict):
            return None
        self.made += 1
        return Call(f"call_{uuid4().hex[:24]}", value["name"], json.dumps(arguments, ensure_ascii=False))


def as_templates_expect(messages: Sequence[Any]) -> Iterator[Any]:
    """Messages whose calls have their arguments as objects, which clients write as text."""
    for message in messages:
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        yield {**message, "tool_calls": [_with_object(call) for call in calls]} if calls else message


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or "name" not in function:
        raise MixwellError("messages hold a call of a tool without function.name; give it.")
    if not isinstance(arguments, str):
        return call
    try:
        read = json.loads(arguments or "{}")
    except ValueError as error:
        name = function["name"]
        raise MixwellError(f"messages hold a call of {name} whose arguments are no JSON ({error}).") from error
    return {**call, "function": {**function, "arguments": read}}
