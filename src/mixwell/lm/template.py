"""Chat templates: the Jinja programs of tokenizers that write a conversation as text.

They come with models and are run in Jinja's sandbox, which lets them reach nothing but what they are handed.
"""

from __future__ import annotations

import functools
import json
from datetime import date
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mixwell.core.errors import MixwellError

# For tokenizers without a template: the form that most instruction-tuned models share.
CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
ANSWER = "generation"  # the block that templates put around what the model gave
STEADY = date(2024, 7, 26)  # what templates that write the date are told where the same bits are wanted


class _Answers(Extension):
    """`{% generation %}`: what it encloses is put between the two marks that the template is handed."""

    tags = {ANSWER}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements((f"name:end{ANSWER}",), drop_needle=True)
        begin, end = (nodes.Output([nodes.Name(name, "load")]) for name in ("answer_begins", "answer_ends"))
        return [begin.set_lineno(line), *body, end.set_lineno(line)]


def _refused(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """JSON as templates expect it: Jinja's own filter writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[_Answers, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refused
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise MixwellError(f"the chat template is no Jinja template ({error}); restore it.") from error


def marks_answers(source: str) -> bool:
    """Whether the template says itself which text the model gave."""
    return f"end{ANSWER}" in source


def render(source: str, today: date = STEADY, **variables: Any) -> str:
    """The text that the template makes of `variables` (messages, tools, add_generation_prompt, bos_token, ...).

    today: what a template that writes the date is told. A template that refuses the conversation raises
    `MixwellError` with what it says.
    """
    template = _compiled(source)
    handed: dict[str, Any] = {"strftime_now": today.strftime, "answer_begins": "", "answer_ends": ""}
    try:
        return template.render(handed | variables)
    except (jinja2.TemplateError, TypeError, KeyError, AttributeError, OverflowError, ValueError) as error:
        raise MixwellError(f"the chat template refuses the conversation: {error}") from error
