"""The mixing stage: small trainings on different mixtures, a predictor of their losses, the weights of least loss.

Every small training (a proxy) is a row of `proxies.parquet`: weights drawn from Dirichlet distributions around the
text's own shares and around equal ones, and the bits per byte of every domain's held-out text. A training names the
stage, `train: {weights: ID}`, and reads its domains by the weights found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixwell.core import registry
from mixwell.core.config import from_dict
from mixwell.core.errors import MixwellError, shown, suggest
from mixwell.core.machine import hold_memory
from mixwell.data.optimum import best_weights, capped, limited, steadied
from mixwell.data.predictor import FOLDS, Mixture
from mixwell.data.runs import MixingRuns
from mixwell.data.sureness import rank_correlations
from mixwell.lm.data import TokenData
from mixwell.run.stages._parts import Job, model_folder
from mixwell.run.stages.proxies import Proxies, losses
from mixwell.run.stages.train import Training, parse_train

TABLE = "proxies.parquet"
FAMILY = "data.mixing"
STRENGTHS = (1.0, 2.0, 4.0, 8.0)  # of the Dirichlet distributions, in turn: from corners to the middle
LEAST_PROXIES = 10
EVALUATED = 20_000  # held-out tokens of each domain


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How many proxies are trained and how, and what the weights found may be; `ValueError` for what cannot be."""

    train: Training  # of every proxy
    proxies: int = 24  # trainings on different mixtures
    method: str = "law_and_trees"  # of data.mixing: how losses are predicted
    importance: Mapping[str, float] | None = None  # of each domain's held-out text in the mean; default: all alike
    # that will be trained on with the weights found; None = as many as the longest training that names the stage
    tokens: float | None = None
    epochs: float = 4.0  # how often that training may read a domain; with tokens
    same_repetition: bool = True  # proxies read so little of each domain that they repeat it as often; with tokens
    eval_tokens: int = EVALUATED  # held-out tokens of each domain that a proxy is judged by
    steady: float = 1.0  # standard errors within which mixtures are level, and one nearer to a safe one is taken
    workers: int = 0  # proxies that are trained at a time, with a thread each; 0 = as many as the run has threads

    def __post_init__(self) -> None:
        least = least_proxies(self.method)
        if self.proxies < least:
            raise ValueError(f"proxies is {self.proxies}; expected at least {least}, of which four fifths are fitted "
                             "to judge the rest")
        if not self.steady >= 0:
            raise ValueError(f"steady is {self.steady}; expected 0 or more")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; expected 0 or more")
        if self.tokens is not None and not self.tokens > 0:
            raise ValueError(f"tokens is {self.tokens}; expected a number above 0")
        if not self.epochs > 0:
            raise ValueError(f"epochs is {self.epochs}; expected a number above 0")
        if self.train.weights is not None:
            raise ValueError("train.weights is given; expected none, since every proxy has its own")
        if self.train.tokens is None:
            raise ValueError("train has no tokens; expected a budget in tokens, such as train: {tokens: 60k}")
        if self.eval_tokens < 2:
            raise ValueError(f"eval_tokens is {self.eval_tokens}; expected at least 2")


def least_proxies(method: str) -> int:
    """How many the predictor and its folds need."""
    predictor = registry.find(method, FAMILY).load()
    folds = FOLDS / (FOLDS - 1)
    return max(LEAST_PROXIES, math.ceil(folds * predictor.least_runs))


def with_training(options: Mapping[str, Any], usual: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options, a proxy's training filled up with what the recipe says of every training."""
    own = options.get("train", {})
    if not isinstance(own, Mapping):
        raise MixwellError(f"{where}.mix.train: expected options such as {{tokens: 60k}}, got {shown(own)}.")
    return {**options, "train": {**usual, **own}}


def parse_mix(options: Mapping[str, Any], where: str) -> Mixing:
    """The stage's config from plain data."""
    own = dict(options)
    trained = own.pop("train", {})
    settled = parse_train(trained, f"{where}.train")
    return from_dict(Mixing, {**own, "train": settled}, where)


def run_mix(job: Job) -> dict[str, Any]:
    """Train what is missing of the proxies, fit the predictor, and choose the weights."""
    hold_memory()
    config = job.stage.config
    whole = TokenData.open(job.inputs["tokens"] / "shards")
    if len(whole.domains) < 2:
        raise MixwellError("the text has one domain; expected two or more to choose among.")
    _check_importance(config, whole.domains)
    natural_D = _natural(whole)
    draws = np.random.default_rng(job.stage.seed)
    weights_ND = draw(config.proxies, natural_D, draws)
    limits_D = _limits(config, whole, weights_ND)  # of too little text tells now, not behind all proxies
    workers = config.workers or torch.get_num_threads()
    losses_NM = losses(proxies(job), weights_ND, workers, job.progress)
    runs = MixingRuns(whole.domains, whole.domains, weights_ND, losses_NM)
    _write_table(job.folder / TABLE, runs)
    found = choose(runs, config, limits_D, natural_D, job.stage.seed)
    per_proxy = config.train.tokens
    return {**found, "proxies": config.proxies, "tokens": per_proxy * config.proxies, "table": TABLE}


def _check_importance(config: Mixing, domains: Sequence[str]) -> None:
    """Raise where an importance is that of no domain, before anything is trained."""
    known = ", ".join(domains)
    for name in config.importance or ():
        if name not in domains:
            near = suggest(name, domains)
            raise MixwellError(f"importance: unknown domain {name!r}.{near} The text has {known}.")


def proxies(job: Job) -> Proxies:
    """What all proxies share."""
    config = job.stage.config
    training = replace(config.train, seed=job.stage.seed)
    return Proxies(model=model_folder(job.inputs["model"]), shards=job.inputs["tokens"] / "shards", work=job.work,
                   training=training, share=read_share(config), eval_tokens=config.eval_tokens)


def read_share(config: Mixing) -> float:
    """How much of each domain proxies read, so that they repeat it as often as the training that follows would."""
    if config.tokens is None or not config.same_repetition:
        return 1.0
    read = config.train.tokens
    assert read is not None  # checked by the config
    return min(1.0, read / config.tokens)


def _natural(data: TokenData) -> np.ndarray:
    """Each domain's share of the tokens: [D]."""
    sizes = [data.count(name, "train") for name in data.domains]
    return np.array(sizes) / sum(sizes)


def draw(count: int, natural_D: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mixtures, [N, D]: the text's own, the equal one, then Dirichlet draws around the mean of both."""
    equal_D = np.full_like(natural_D, 1 / len(natural_D))
    middle_D = (natural_D + equal_D) / 2
    rows = [natural_D, equal_D]
    while len(rows) < count:
        strength = STRENGTHS[len(rows) % len(STRENGTHS)]
        alpha_D = strength * len(natural_D) / 2 * middle_D
        rows.append(generator.dirichlet(alpha_D))
    return np.stack(rows)


def _limits(config: Mixing, data: TokenData, weights_ND: np.ndarray) -> np.ndarray:
    """The most that each domain may have in the choice, [D]: what any proxy has, and what the text allows."""
    most_D = weights_ND.max(0)
    if config.tokens is None:
        return most_D
    there = {name: data.count(name, "train") for name in data.domains}
    return limited(data.domains, most_D, there, config.tokens, config.epochs)


def choose(runs: MixingRuns, config: Mixing, limits_D: np.ndarray, natural_D: np.ndarray, seed: int) -> dict[str, Any]:
    """The weights, how well losses are predicted, and what is predicted of three mixtures, as plain data."""
    predictor = registry.find(config.method, FAMILY).load()()
    fitted = predictor.fit(runs, np.random.default_rng(seed))
    errors_NM = fitted.out_of_fold(np.random.default_rng(seed))
    least = best_weights(fitted, config.importance, prior_D=natural_D, caps_D=limits_D,
                         generator=np.random.default_rng(seed))
    safe_D = _safe(runs, config, limits_D)
    best = steadied(fitted, least, safe_D, errors_NM, config.steady, config.importance)
    mixtures = {"chosen": best.weights_D, "natural": natural_D, "equal": np.full_like(natural_D, 1 / len(natural_D))}
    predicted = {name: _predicted(fitted, errors_NM, weights_D) for name, weights_D in mixtures.items()}
    return {
        "weights": _by_name(runs.domains, best.weights_D), "caps": _by_name(runs.domains, limits_D),
        "rank_correlations": rank_correlations(runs, errors_NM), "predicted": predicted}


def _safe(runs: MixingRuns, config: Mixing, limits_D: np.ndarray) -> np.ndarray:
    """The text's own shares or equal ones, whichever came to the lower loss as a proxy, under the limits: [D]."""
    importance = config.importance or dict.fromkeys(runs.targets, 1.0)
    wanted_M = [importance.get(name, 0.0) for name in runs.targets]
    first_two = runs.losses_NM[:2] @ wanted_M
    better = int(first_two.argmin())
    return capped(runs.weights_ND[better : better + 1], limits_D)[0]


def _predicted(fitted: Mixture, errors_NM: np.ndarray, weights_D: np.ndarray) -> dict[str, Any]:
    losses_M = fitted.predict(weights_D)[0]
    low_NM, high_NM = fitted.interval(weights_D, errors_NM)
    names = fitted.runs.targets
    return {"weights": _by_name(fitted.runs.domains, weights_D), "losses": _by_name(names, losses_M),
            "low": _by_name(names, low_NM[0]), "high": _by_name(names, high_NM[0])}


def _by_name(names: Sequence[str], values_D: np.ndarray) -> dict[str, float]:
    return dict(zip(names, map(float, values_D)))


def _write_table(path: Path, runs: MixingRuns) -> None:
    import pandas as pd

    weights = {f"weight.{name}": column for name, column in zip(runs.domains, runs.weights_ND.T)}
    losses = {f"loss.{name}": column for name, column in zip(runs.targets, runs.losses_NM.T)}
    pd.DataFrame({**weights, **losses}).to_parquet(path, index=False)
