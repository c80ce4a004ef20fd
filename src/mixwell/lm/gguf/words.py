"""A tokenizer as the metadata of a GGUF file, in which the reader finds the same tokenizer again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mixwell.core.errors import MixwellError
from mixwell.lm import tokenizer_files as layout
from mixwell.lm.generation import FILE as SAMPLING
from mixwell.lm.gguf.tokenizer import CONTROL, MARKS, SPLITS, USER, tokenizer_files
from mixwell.lm.tokenizer import Tokenizer

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6  # types of tokens, beside `CONTROL` and `USER`
PREFIX = "tokenizer.ggml."
_SAID = ("normalizer", "pre_tokenizer")  # what must be read again as it is, beside the model
_MODEL = ("vocab", "merges", "ignore_merges", "byte_fallback")
_SILENT = ("trim_offsets", "invert")  # options that change no token


def words_of(files: Mapping[str, bytes], rows: int) -> dict[str, Any]:
    """Metadata of the tokenizer among a model's files, for an embedding of so many rows; "none" without a tokenizer.

    One that GGUF cannot say, as the reader would find it, raises `MixwellError`.
    """
    if layout.MAIN not in files:
        return {f"{PREFIX}model": "none"}
    tokenizer = Tokenizer.from_files(files)
    understood = tokenizer._understood
    if tokenizer.vocab_size > rows:
        raise MixwellError(f"the tokenizer has {tokenizer.vocab_size} ids, the embedding {rows} rows; expected no more "
                           "ids than rows.")
    found = _lists(understood, tokenizer, rows) | _ends(tokenizer, files)
    for own in _kinds(understood, rows):
        said = {**found, **own}
        if _reads_the_same(said, understood, tokenizer):
            template = layout.chat_template(files)
            return said if template is None else {**said, "tokenizer.chat_template": template}
    raise MixwellError("the tokenizer cannot be written as GGUF: none of the ways of splitting text that llama.cpp has "
                       f"names for ({', '.join(SPLITS)}; SentencePiece's byte pairs) is its own. Remove tokenizer.json "
                       "from a copy of the folder to write the weights alone.")


def _lists(understood: Mapping[str, Any], tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """Tokens by id, with their types; rows without a token get a name that no text has."""
    added = understood["added_tokens"]
    special = {entry["content"]: entry["special"] for entry in added}
    model = understood["model"]
    unknown = model.get("unk_token")
    numbers = range(rows)
    tokens = [f"[PAD{number}]" for number in numbers]
    types = [UNUSED] * rows
    for token, number in tokenizer.vocabulary.items():
        tokens[number] = token
        types[number] = _type(token, special, unknown)
    return {f"{PREFIX}tokens": tokens, f"{PREFIX}token_type": types}


def _type(token: str, special: Mapping[str, bool], unknown: str | None) -> int:
    if token == unknown:
        return UNKNOWN
    if token in special:
        return CONTROL if special[token] else USER
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return BYTE if is_byte else NORMAL


def _ends(tokenizer: Tokenizer, files: Mapping[str, bytes]) -> dict[str, Any]:
    """Ids of the tokens that are named, and whether they stand around every text."""
    found: dict[str, Any] = {}
    for key, name in MARKS.items():
        number = tokenizer.id_of(tokenizer.names.get(key))
        if number is not None:
            found[f"{PREFIX}{name}_token_id"] = number
    bos, eos = (found.get(f"{PREFIX}{name}_token_id") for name in ("bos", "eos"))
    before, behind = tokenizer.around
    for name, there, number in (("bos", before, bos), ("eos", behind, eos)):
        if there not in ((), (number,)):
            raise MixwellError(f"the tokenizer puts the ids {list(there)} around a text; GGUF can say its {name} token "
                               "or none.")
        found[f"{PREFIX}add_{name}_token"] = bool(there)
    stop = _other_stop(files, eos)
    return found if stop is None else {**found, f"{PREFIX}eot_token_id": stop}


def _other_stop(files: Mapping[str, bytes], eos: int | None) -> int | None:
    """The id beside the end of a text that ends a turn, where generation_config.json names one."""
    content = layout.keys(files.get(SAMPLING, b"{}"), SAMPLING)
    said = content.get("eos_token_id")
    ids = said if isinstance(said, list) else [said]
    known = (None, eos)
    others = (number for number in ids if number not in known)
    return next(others, None)


def _kinds(understood: Mapping[str, Any], rows: int) -> list[dict[str, Any]]:
    """What may be said of the kind of tokenizer, most of it to be found wrong by reading it again."""
    model = understood["model"]
    if model["type"] != "BPE":
        return []
    if model.get("byte_fallback"):
        prepends = "Prepend" in json.dumps(understood.get("normalizer"))
        scores = _scores(model["vocab"], model["merges"], rows)
        return [{f"{PREFIX}model": "llama", f"{PREFIX}pre": "default", f"{PREFIX}scores": scores,
                 f"{PREFIX}add_space_prefix": prepends}]
    merges = [" ".join(pair) for pair in model["merges"]]
    return [{f"{PREFIX}model": "gpt2", f"{PREFIX}pre": name, f"{PREFIX}merges": merges} for name in SPLITS]


def _scores(vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]], rows: int) -> list[float]:
    """A score for each row, the better the earlier a merge makes its token."""
    scores = [0.0] * rows
    for rank, pair in enumerate(merges, start=1):
        number = vocabulary["".join(pair)]
        scores[number] = scores[number] or -float(rank)
    return scores


def _reads_the_same(said: Mapping[str, Any], understood: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    """Whether the reader makes the same tokenizer of these metadata, names for rows without a token apart."""
    try:
        again = Tokenizer.from_files(tokenizer_files(said, "the metadata"))
    except MixwellError:
        return False
    read = again._understood
    known = tokenizer.vocabulary
    read["model"]["vocab"] = {word: number for word, number in read["model"]["vocab"].items() if word in known}
    ours, theirs = _essence(understood, known), _essence(read, known)
    return ours == theirs and again.around == tokenizer.around


def _essence(main: Mapping[str, Any], known: Mapping[str, int]) -> dict[str, Any]:
    """What decides which ids a text becomes."""
    model = main["model"]
    essence = {key: model.get(key) for key in _MODEL}
    own = essence["vocab"]
    essence["vocab"] = {**known, **own}
    for key in _SAID:
        part = main.get(key)
        essence[key] = _loud(part)
    added = main["added_tokens"]
    essence["added"] = {entry["content"]: entry["special"] for entry in added}
    return essence


def _loud(part: Any) -> Any:
    """A part without the options that change no token."""
    if isinstance(part, Mapping):
        return {key: _loud(value) for key, value in part.items() if key not in _SILENT}
    if isinstance(part, list):
        return [_loud(one) for one in part]
    return part
