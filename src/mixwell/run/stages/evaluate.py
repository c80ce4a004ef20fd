"""Stages that read a model: evaluation in bits per byte by domain, and samples of its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.kernels.packing import prepack_where_it_pays
from mixwell.lm.chat import Chat
from mixwell.lm.conversation import conversation
from mixwell.lm.data import TokenData
from mixwell.lm.evaluate import evaluate
from mixwell.lm.model import LanguageModel, load
from mixwell.lm.template import STEADY
from mixwell.lm.tokenizer import Tokenizer
from mixwell.run.stages._parts import Job, model_folder

PROMPT_TOKENS = 16  # of a held-out document, where the recipe names no prompts


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How much held-out text is read, and in which pieces."""

    max_tokens: int = 60_000  # of each domain's held-out text
    batch_size: int = 16
    seq_len: int = 256  # tokens a model sees at once

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch_size", "seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to continue, and how to draw."""

    # a text, or the messages of a conversation; none: the beginning of held-out text of each domain
    prompts: Sequence[str | Sequence[Mapping[str, Any]]] = ()
    chat: bool = False  # a prompt that is a text is what a user says, and goes through the chat template
    max_new_tokens: int = 120
    temperature: float | None = None  # 0 = always the likeliest token; null = as the model's folder says, else 0.8
    top_p: float | None = None  # share of the probability that is drawn from, 0 to 1; null = the folder's, else 0.95
    top_k: int | None = None  # draw among this many; 0 = all; null = the folder's, else 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected above 0, up to 1")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 or more")


def weigh(model: Path, shards: Path, config: EvaluateConfig) -> dict[str, Any]:
    """Bits per byte by domain and expert load of the model in a folder, as plain data."""
    found = evaluate(load(model), TokenData.open(shards), max_tokens=config.max_tokens,
                     batch_size=config.batch_size, seq_len=config.seq_len)
    return asdict(found)


def run_evaluate(job: Job) -> dict[str, Any]:
    """Evaluate the model with this stage's own settings."""
    model = model_folder(job.inputs["model"])
    shards = job.inputs["tokens"] / "shards"
    return weigh(model, shards, job.stage.config)


@dataclass(frozen=True)
class Prompt:
    """What is continued: as ids, and in words."""

    ids: list[int]
    text: str


def run_sample(job: Job) -> dict[str, Any]:
    """Continue every prompt."""
    config = job.stage.config
    model = load(model_folder(job.inputs["model"]))
    model.tokenizer = tokenizer = Tokenizer.load(job.inputs["tokenizer"])
    prompts = [_prompt(given, number, config, tokenizer) for number, given in enumerate(config.prompts)]
    prompts = prompts or _beginnings(TokenData.open(job.inputs["tokens"] / "shards"), tokenizer)
    prepack_where_it_pays(model, len(prompts) * config.max_new_tokens)
    draws, options = generator(job.stage.seed, "sample"), _drawing(config, model)
    samples = []
    for number, prompt in enumerate(prompts):
        out = model.generate(torch.tensor([prompt.ids]), config.max_new_tokens, eos_token_id=model.stop_ids,
                             generator=draws, **options)
        new = out[0, len(prompt.ids):].tolist()
        samples.append({"prompt": prompt.text, "text": tokenizer.decode(new, skip_special=True)})
        job.progress((number + 1) / len(prompts), "sample")
    return {"samples": samples, "notices": _spelt(config, tokenizer)}


def _drawing(config: SampleConfig, model: LanguageModel) -> dict[str, Any]:
    """How to draw: as the recipe says, else the model's folder, else as suits most models."""
    usual = {"temperature": 0.8, "top_p": 0.95, "top_k": 0}
    own = model.generation.options()
    asked = {name: getattr(config, name) for name in usual}
    said = {name: value for name, value in asked.items() if value is not None}
    options = usual | {name: own[name] for name in usual if name in own} | said
    draws = options["temperature"] > 0
    if "temperature" not in said:
        draws = own.get("do_sample", draws)
    return {**options, "do_sample": draws, "temperature": options["temperature"] or 1.0}


def _prompt(given: Any, number: int, config: SampleConfig, tokenizer: Tokenizer) -> Prompt:
    if isinstance(given, str) and not given:
        raise MixwellError(f"sample.prompts[{number}] is empty; expected some text to continue.")
    if isinstance(given, str) and not config.chat:
        return Prompt(tokenizer.prompt(given), given)
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    try:
        said = conversation(messages)
        ids = Chat(tokenizer).prompt(said, STEADY)
    except MixwellError as error:
        raise MixwellError(f"sample.prompts[{number}]: {error}") from error
    return Prompt(ids, said.text)


def _spelt(config: SampleConfig, tokenizer: Tokenizer) -> list[str]:
    """A sentence on special tokens that stand in prompts as text."""
    texts = [prompt for prompt in config.prompts if isinstance(prompt, str)]
    found = [token for token in tokenizer.special if any(token in text for text in texts)]
    if not found:
        return []
    return [f"a prompt spells {found[0]}, which stays text; give messages, or sample.chat: true, and the chat template "
            "puts special tokens in."]


def _beginnings(data: TokenData, tokenizer: Tokenizer) -> list[Prompt]:
    """The first held-out tokens of each domain; of conversations, all before the first answer."""
    found = []
    for name in data.domains:
        mask = data.mask(name, "held")
        first = 0 if mask is None else int(mask.argmax())
        ids = data.tokens(name, "held")[: max(first, PROMPT_TOKENS if first < 2 else 0)].tolist()
        found.append(Prompt(ids, tokenizer.decode(ids, skip_special=True)))
    return found
