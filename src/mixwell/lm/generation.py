"""Generation settings of a model folder: `generation_config.json`, read, changed and written back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mixwell.core.errors import MixwellError, shown
from mixwell.lm import chat
from mixwell.lm import tokenizer_files as layout
from mixwell.lm.tokenizer import Tokenizer

FILE = "generation_config.json"
# Settings that change what is generated, which mixwell does not know, with the values that switch them off.
UNKNOWN: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "no_repeat_ngram_size": (0,), "typical_p": (1.0,), "penalty_alpha": (0.0,),
    "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "encoder_repetition_penalty": (1.0,), "bad_words_ids": (),
    "sequence_bias": (), "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "forced_eos_token_id": (),
    "guidance_scale": (1.0,), "min_length": (0,), "min_new_tokens": (0,), "stop_strings": ()}


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How a model is meant to be sampled from; None where its folder does not say."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None  # share of the likeliest token's probability below which none is drawn
    repetition_penalty: float | None = None  # what the logits of tokens seen before are divided by, where positive
    max_new_tokens: int | None = None
    eos_token_id: tuple[int, ...] | None = None
    pad_token_id: int | None = None
    left_out: tuple[str, ...] = ()  # settings of the file that would change the result and are not known here

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> GenerationSettings:
        """The settings among a model's files; all None where it has none."""
        content = layout.keys(files.get(FILE, b"{}"), FILE)
        found = {name: content.get(name) for name in KNOWN}
        found["eos_token_id"] = _ids(content.get("eos_token_id"))
        for name, value in found.items():
            _check(name, value)
        unknown = [name for name, off in UNKNOWN.items() if content.get(name) not in (None, *off)]
        return cls(**found, left_out=tuple(unknown))

    def written(self, files: Mapping[str, bytes]) -> bytes:
        """The file with these settings, its other keys as they were."""
        content = layout.keys(files.get(FILE, b"{}"), FILE)
        for name in KNOWN:
            value = getattr(self, name)
            content.pop(name, None)
            if value is not None:
                content[name] = list(value) if isinstance(value, tuple) else value
        return layout.text(content)

    def options(self) -> dict[str, Any]:
        """What `generate` is told where the caller says nothing: how to draw and where to stop."""
        given = {name: getattr(self, name) for name in KNOWN if name != "max_new_tokens"}
        said = {name: value for name, value in given.items() if value is not None}
        if said.get("temperature") == 0:  # the likeliest token always
            said |= {"do_sample": False, "temperature": 1.0}
        return said


TYPES: dict[str, Any] = {"do_sample": bool, "eos_token_id": int, "top_k": int, "max_new_tokens": int,
                         "pad_token_id": int}  # of the values; of others, any number
KNOWN = tuple(option.name for option in fields(GenerationSettings) if option.name != "left_out")


def for_tokenizer(tokenizer: Tokenizer) -> GenerationSettings:
    """Settings of a model that has none: its text ends at the end-of-text token and where an answer ends."""
    ends = dict.fromkeys((tokenizer.eos_id, *chat.ends(tokenizer)))
    return GenerationSettings(eos_token_id=tuple(ends))


def _ids(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    return tuple(value) if isinstance(value, list) else (value,)


def _check(name: str, value: Any) -> None:
    """Refuse a value of another type than the setting's."""
    several = value if isinstance(value, tuple) else (value,)
    kind = TYPES.get(name, (int, float))
    for one in several:
        flag = isinstance(one, bool)
        right = flag if kind is bool else isinstance(one, kind) and not flag
        if one is not None and not right:
            expected = "true or false" if kind is bool else "a number"
            raise MixwellError(f"{FILE}: {name} is {shown(value)}; expected {expected}.")
