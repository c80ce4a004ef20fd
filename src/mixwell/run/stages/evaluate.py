"""Stages that read a model: evaluation in bits per byte by domain, and samples of its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.lm.data import TokenData
from mixwell.lm.evaluate import evaluate
from mixwell.lm.model import load
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

    prompts: Sequence[str] = ()  # none: the beginning of held-out text of each domain
    max_new_tokens: int = 120
    temperature: float = 0.8  # 0 = always the likeliest token
    top_p: float = 0.95  # share of the probability that is drawn from, 0 to 1
    top_k: int = 0  # draw among this many; 0 = all

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; expected 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected above 0, up to 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; expected 0 or more")


def weigh(model: Path, shards: Path, config: EvaluateConfig) -> dict[str, Any]:
    """Bits per byte by domain and expert load of the model in a folder, as plain data."""
    found = evaluate(load(model), TokenData.open(shards), max_tokens=config.max_tokens,
                     batch_size=config.batch_size, seq_len=config.seq_len)
    return asdict(found)


def run_evaluate(job: Job) -> dict[str, Any]:
    """Evaluate the model with this stage's own settings."""
    return weigh(model_folder(job.inputs["model"]), job.inputs["tokens"] / "shards", job.stage.config)


def run_sample(job: Job) -> dict[str, Any]:
    """Continue every prompt."""
    config = job.stage.config
    model = load(model_folder(job.inputs["model"]))
    tokenizer = Tokenizer.load(job.inputs["tokenizer"])
    prompts = list(config.prompts) or _beginnings(TokenData.open(job.inputs["tokens"] / "shards"), tokenizer)
    draws, samples = generator(job.stage.seed, "sample"), []
    for number, prompt in enumerate(prompts):
        ids = tokenizer.encode(prompt)
        if not ids:
            raise MixwellError(f"sample.prompts[{number}] is empty; expected some text to continue.")
        out = model.generate(torch.tensor([ids]), config.max_new_tokens, temperature=config.temperature or 1.0,
                             top_p=config.top_p, top_k=config.top_k, do_sample=config.temperature > 0,
                             eos_token_id=tokenizer.eos_id, generator=draws)
        samples.append({"prompt": prompt, "text": tokenizer.decode(out[0, len(ids):].tolist(), skip_special=True)})
        job.progress((number + 1) / len(prompts), "sample")
    return {"samples": samples}


def _beginnings(data: TokenData, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(data.tokens(name, "held")[:PROMPT_TOKENS].tolist()) for name in data.domains]
