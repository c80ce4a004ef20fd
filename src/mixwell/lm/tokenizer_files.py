"""The files of a Hugging Face tokenizer as plain data: what stands where in them, and copies with something changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mixwell.core.errors import MixwellError

MAIN = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"
OF_CALLERS = ("truncation", "padding", "post_processor")  # keys that change no id's meaning
TEXT_KEEPERS = ("ByteLevel", "Split", "Digits", "Sequence")  # pre-tokenizers that cut text and change none


def text(value: Any) -> bytes:
    """Plain data as the bytes of a file."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def keys(data: bytes, name: str) -> dict[str, Any]:
    """Keys and values of the file `name`; `MixwellError` where it holds something else."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise MixwellError(f"{name} is not readable as JSON ({error}); restore it.") from error
    if not isinstance(value, dict):
        raise MixwellError(f"{name} holds {type(value).__name__}; expected keys and values.")
    return value


def spelling(token: Any) -> str | None:
    """How a token is spelt, which a file says as text or as an object."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def chat_template(files: Mapping[str, bytes]) -> str | None:
    """The template that `transformers` would take: the file of its own before the entry of the configuration."""
    if TEMPLATE in files:
        return files[TEMPLATE].decode()
    found = keys(files.get(CONFIG, b"{}"), CONFIG).get("chat_template")
    if isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found}
        found = named.get("default")
    return found


def has_type(part: Any, wanted: str) -> bool:
    """Whether a part of the tokenizer is of a type, or holds one that is."""
    if not isinstance(part, Mapping):
        return False
    inner = [one for value in part.values() if isinstance(value, list) for one in value]
    return part.get("type") == wanted or any(has_type(one, wanted) for one in inner)


def is_plain_byte_level(main: Mapping[str, Any]) -> bool:
    """Whether text goes through it byte by byte: nothing normalises, adds or drops a character."""
    before = main.get("pre_tokenizer")
    after = main.get("decoder")
    bytewise = has_type(before, "ByteLevel") and has_type(after, "ByteLevel")
    if not bytewise or main.get("normalizer"):
        return False
    return _keeps_text(before) and not _strips(main)


def _keeps_text(before: Any) -> bool:
    """Whether a pre-tokenizer cuts text and changes none of it."""
    for step in before.get("pretokenizers", [before]):
        removes = step.get("behavior") == "Removed"
        prefixes = step.get("add_prefix_space")
        if step["type"] not in TEXT_KEEPERS or removes or prefixes:
            return False
    return True


def _strips(main: Mapping[str, Any]) -> bool:
    """Whether a token that text may become takes the white space beside it away."""
    added = main["added_tokens"]
    plain = [entry for entry in added if not entry["special"]]
    return any(entry["lstrip"] or entry["rstrip"] for entry in plain)


def unknown_token(main: Mapping[str, Any]) -> str | None:
    """The token that stands for what the model does not know."""
    model = main["model"]
    place = model.get("unk_id")
    if model.get("type") == "Unigram" and place is not None:
        return model["vocab"][place][0]
    return model.get("unk_token")


def alias(mark: str, place: int) -> str:
    """The name of the special token at `place` among texts that lack the character `mark`."""
    return f"{mark}{place}{mark}"


def renamed(main: Mapping[str, Any], special: Sequence[str], mark: str) -> dict[str, Any]:
    """A copy whose special tokens go by their aliases, with their ids."""
    names = {token: alias(mark, place) for place, token in enumerate(special)}
    added = [{**entry, "content": names.get(entry["content"], entry["content"])} for entry in main["added_tokens"]]
    model = dict(main["model"])
    words = model["vocab"]
    if isinstance(words, Mapping):
        model["vocab"] = {names.get(word, word): number for word, number in words.items()}
    else:
        model["vocab"] = [[names.get(word, word), score] for word, score in words]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return {**main, "added_tokens": added, "model": model, "post_processor": None}


def with_template(main: Mapping[str, Any], before: Sequence[int], behind: Sequence[int],
                  spelt: Mapping[int, str]) -> dict[str, Any]:
    """A copy that puts the ids `before` and `behind` around a text, and does no more to it than before."""
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for number, name in spelt.items()}
    single = [*_steps(before, spelt, 0), _sequence("A", 0), *_steps(behind, spelt, 0)]
    second = [*_steps(before, spelt, 1), _sequence("B", 1), *_steps(behind, spelt, 1)]
    pair = [*single, *second]
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    old = main.get("post_processor")
    if has_type(old, "ByteLevel"):
        trimming = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
        template = {"type": "Sequence", "processors": [trimming, template]}
    return {**main, "post_processor": template}


def _steps(numbers: Sequence[int], spelt: Mapping[int, str], kind: int) -> list[dict[str, Any]]:
    names = [spelt[number] for number in numbers]
    return [{"SpecialToken": {"id": name, "type_id": kind}} for name in names]


def _sequence(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}
