"""A GGUF file's tokenizer as the files of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from mixwell.core.errors import MixwellError

Metadata = Mapping[str, Any]
CONTROL, USER = 3, 4  # types of tokens: outside the text; written by users of the vocabulary
MARKS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
SPACE = "\u2581"  # stands for a space in SentencePiece's tokens
_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _split(digits: str) -> Any:
    words = pre_tokenizers.Split(Regex(_WORDS % digits), behavior="isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _up_to_three_digits() -> Any:
    return _split("{1,3}")


def _one_digit() -> Any:
    return _split("")


SPLITS: dict[str, Callable[[], Any]] = {  # tokenizer.ggml.pre -> how text is split before merging
    "gpt-2": _gpt2, "olmo": _gpt2, "smollm": _single_digits, "llama-bpe": _up_to_three_digits,
    "llama3": _up_to_three_digits, "qwen2": _one_digit}
_WHOLE_WORDS = ("llama-bpe", "llama3")  # a word of the vocabulary is taken as it is, whatever its merges
_COMPOSED = ("qwen2",)  # text is brought into Unicode's composed form first


def tokenizer_files(metadata: Metadata, where: str) -> dict[str, bytes]:
    """tokenizer.json and its companions, by name; none where the file holds no vocabulary.

    Raises `MixwellError` for a kind that is not read, and for metadata that make none.
    """
    kind = metadata.get("tokenizer.ggml.model", "none")
    if kind in ("none", "no_vocab"):
        return {}
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if kind not in makers:
        raise MixwellError(f"{where}: its tokenizer is of the kind {kind!r}; read are {', '.join(makers)}.")
    try:
        return _files(makers[kind](metadata, where), metadata)
    except MixwellError:
        raise
    except Exception as error:  # lists that are missing or too short; the Rust side raises bare Exception
        raise MixwellError(f"{where}: its tokenizer cannot be made of its metadata ({error!r}); copy the file "
                           "again, or hand in the Hugging Face folder.") from error


def _files(backend: tokenizers.Tokenizer, metadata: Metadata) -> dict[str, bytes]:
    _add_tokens(backend, metadata)
    _add_ends(backend, metadata, metadata["tokenizer.ggml.model"] == "llama")
    main = backend.to_str(pretty=True)
    files = {"tokenizer.json": main.encode(), "tokenizer_config.json": _json(_config(metadata))}
    stops = _stops(metadata)
    if stops:
        files["generation_config.json"] = _json({"eos_token_id": stops})
    return files


def _json(content: Any) -> bytes:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return text.encode()


def _vocabulary(metadata: Metadata) -> dict[str, int]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return {token: number for number, token in enumerate(tokens)}


def _byte_level(metadata: Metadata, where: str) -> tokenizers.Tokenizer:
    """Byte pairs over UTF-8 bytes, as GPT-2's and most since."""
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in SPLITS:
        raise MixwellError(f"{where}: its tokenizer splits text as {pre!r} does; known are {', '.join(SPLITS)}. Hand "
                           "in the Hugging Face folder.")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    model = models.BPE(vocab=_vocabulary(metadata), merges=merges, ignore_merges=pre in _WHOLE_WORDS)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = SPLITS[pre]()
    backend.decoder = decoders.ByteLevel()
    if pre in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    return backend


def _sentence_piece(metadata: Metadata, where: str) -> tokenizers.Tokenizer:
    """SentencePiece's byte pairs: of all neighbours that make a token, the pair of the best score is joined first."""
    vocabulary, scores = _vocabulary(metadata), metadata["tokenizer.ggml.scores"]
    merges = merges_by_score(vocabulary, scores)
    unknown = metadata["tokenizer.ggml.tokens"][metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    before: list[Any] = [normalizers.Replace(" ", SPACE)]
    behind: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        before.insert(0, normalizers.Prepend(SPACE))
        behind.append(decoders.Strip(" ", 1, 0))
    backend.normalizer = normalizers.Sequence(before)
    backend.decoder = decoders.Sequence(behind)
    return backend


def merges_by_score(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, the best score of what it makes first."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, number in vocabulary.items():
        worse = -scores[number]
        for left, right in _halves(token):
            if left in vocabulary and right in vocabulary:
                places = vocabulary[left], vocabulary[right]
                found.append((worse, *places, left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _halves(token: str) -> Iterator[tuple[str, str]]:
    """Every way to cut a token in two."""
    for cut in range(1, len(token)):
        yield token[:cut], token[cut:]


def _add_tokens(backend: tokenizers.Tokenizer, metadata: Metadata) -> None:
    """Tokens outside the text are special; those that users added are found in text before it is split."""
    types = metadata.get("tokenizer.ggml.token_type", ())
    for token, kind in zip(metadata["tokenizer.ggml.tokens"], types):
        if kind == CONTROL:
            backend.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == USER:
            backend.add_tokens([AddedToken(token, normalized=False, special=False)])


def _add_ends(backend: tokenizers.Tokenizer, metadata: Metadata, usual: bool) -> None:
    """The tokens that stand before and behind a text, where the file asks for them."""
    before = _token(metadata, "bos") if metadata.get("tokenizer.ggml.add_bos_token", usual) else None
    behind = _token(metadata, "eos") if metadata.get("tokenizer.ggml.add_eos_token", False) else None
    named = [token for token in (before, behind) if token is not None]
    if not named:
        return
    places = [token for token in (before, "$A", behind) if token is not None]
    numbers = [(token, backend.token_to_id(token)) for token in named]
    backend.post_processor = processors.TemplateProcessing(single=places, special_tokens=numbers)


def _token(metadata: Metadata, name: str) -> str | None:
    number = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return None if number is None else metadata["tokenizer.ggml.tokens"][number]


def _config(metadata: Metadata) -> dict[str, Any]:
    """tokenizer_config.json."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key, name in MARKS.items():
        token = _token(metadata, name)
        if token is not None:
            config[key] = token
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def _stops(metadata: Metadata) -> list[int]:
    """Ids that end a text or a turn, each once."""
    names = ("eos", "eot", "eom")
    ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names]
    return list(dict.fromkeys(number for number in ids if number is not None))
