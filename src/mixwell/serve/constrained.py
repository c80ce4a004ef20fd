"""Answers of a given form: a JSON schema, a regular expression, a choice or a grammar decides which ids may follow.

llguidance reads the form and says after each token what may come next; here it meets a model's logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError, on_one_line
from mixwell.lm.tokenizer import Tokenizer

MOST_BYTES = 64 << 10  # of a form
BETWEEN = r"(\n[ ]{0,16}|[ ])?"  # between JSON's parts: models that lose their way write blanks without end
NEEDED = "an answer of a given form needs llguidance, which is not installed: pip install 'mixwell[serve]'."


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MixwellError(NEEDED) from error
    return llguidance


def of_schema(schema: Any) -> str:
    """The grammar of a JSON schema."""
    text = _bounded(json.dumps(schema))
    usual = {"whitespace_pattern": BETWEEN}
    return str(_library().LLMatcher.grammar_from_json_schema(text, defaults=usual))


def of_regex(pattern: str) -> str:
    """The grammar of a regular expression, which the whole answer follows."""
    return str(_library().LLMatcher.grammar_from_regex(_bounded(pattern)))


def of_choice(texts: Sequence[str]) -> str:
    """The grammar of one of several texts."""
    quoted = [json.dumps(text) for text in texts]
    rule = " | ".join(quoted)
    return of_lark(f"start: {rule}")


def of_lark(grammar: str) -> str:
    """A grammar as llguidance writes them, in Lark's language."""
    return str(_library().LLMatcher.grammar_from_lark(_bounded(grammar)))


def tagged(tags: Sequence[tuple[str, str, Mapping[str, Any], str]]) -> str:
    """The grammar of text in which a trigger decides what follows: the rest of a beginning, JSON by a schema, an end.

    tags: (trigger, the beginning, the schema, the end).
    """
    found = []
    for trigger, begin, schema, end in tags:
        made = _library().StructTag(trigger=trigger, begin=begin, grammar=dict(schema), end=end)
        found.append(made)
    lark = _library().StructTag.to_grammar(found, assume_special=False)
    return of_lark(lark)


def _bounded(text: str) -> str:
    size = len(text.encode())
    if size > MOST_BYTES:
        raise MixwellError(f"the form has {size} bytes; expected {MOST_BYTES} at most.")
    return text


class Constraint:
    """What may follow in one row."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def copy(self) -> Constraint:
        """Another row's, as far on as this one."""
        return Constraint(self._matcher.deep_copy())

    def allowed(self, logits_V: Tensor) -> Tensor:
        """The logits, minus infinity where the form does not go on."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=len(logits_V), bitorder="little")
        known = torch.from_numpy(mask).bool()
        return logits_V.masked_fill(~known, -torch.inf)

    def take(self, number: int) -> None:
        """Go on by an id that was allowed."""
        if not self._matcher.consume_token(number):
            raise MixwellError(f"the form of the answer broke: {on_one_line(self._matcher.get_error())}")

    @property
    def over(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())


class Constraints:
    """The forms that a model's answers may be given."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.stop_ids = sorted(stop_ids)

    @cached_property
    def _known(self) -> Any:
        """The tokenizer as llguidance reads it."""
        if not self.stop_ids:
            raise MixwellError("the model names no id that ends a text, by which an answer of a given form ends.")
        main = self.tokenizer.save_files()["tokenizer.json"]
        size = max(self.vocab_size, self.tokenizer.vocab_size)
        try:
            return _library().LLTokenizer(main.decode(), n_vocab=size, eos_token=self.stop_ids)
        except (ValueError, RuntimeError) as error:
            reason = on_one_line(str(error))
            raise MixwellError(f"answers of a given form cannot be made with this tokenizer: {reason}") from error

    def check(self, grammar: str) -> str:
        """The grammar; `MixwellError` for one that cannot be followed."""
        wrong = _library().LLMatcher.validate_grammar(grammar, self._known)
        if wrong:
            raise MixwellError(f"the form of the answer cannot be followed: {on_one_line(wrong)}")
        return grammar

    def begin(self, grammar: str) -> Constraint:
        """A row's own."""
        return Constraint(_library().LLMatcher(self._known, grammar))


def grammar_of(response_format: Mapping[str, Any] | None, structured: Mapping[str, Any] | None) -> str | None:
    """The grammar that a request asks for by OpenAI's field or by vLLM's; none where it asks for free text."""
    asked = dict(_forms(response_format, structured))
    if not asked:
        return None
    if len(asked) > 1:
        named = " and ".join(asked)
        raise MixwellError(f"the request asks for several forms, {named}; expected one.")
    ((kind, form),) = asked.items()
    return GRAMMARS[kind](form)


GRAMMARS: dict[str, Any] = {"json": of_schema, "regex": of_regex, "choice": of_choice, "grammar": of_lark}


def _forms(response_format: Mapping[str, Any] | None, structured: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The forms asked for, by kind."""
    found = {name: form for name, form in (structured or {}).items() if form is not None}
    kind = (response_format or {}).get("type", "text")
    if kind == "text":
        return found
    if "json" in found:
        raise MixwellError("the request asks for JSON twice, by response_format and structured_outputs; leave one out.")
    if kind == "json_object":
        return {**found, "json": {"type": "object"}}
    named = (response_format or {}).get("json_schema") or {}
    schema = named.get("schema")
    if schema is None:
        raise MixwellError("response_format is json_schema without json_schema.schema; give the schema.")
    return {**found, "json": schema}
