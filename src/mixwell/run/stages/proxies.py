"""Small trainings on different mixtures of domains, side by side where there are cores for it.

Every proxy starts from the same weights and reads its domains in the same order, with one thread, so that its losses do
not hang on how many are trained at once. Each leaves a file; those of a run that was killed are not trained again.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixwell.core import disk
from mixwell.core.files import read_json, write_json
from mixwell.lm import folder as folders
from mixwell.lm.data import TokenData
from mixwell.lm.evaluate import evaluate
from mixwell.lm.model import LanguageModel
from mixwell.lm.training.loop import train
from mixwell.run.stages.train import Training, clear_damage
from mixwell.run.workers import prepare

Told = Callable[[float, str], None]  # share done, a few words


class Fewer(TokenData):
    """Token data of which only the beginning of each domain is trained on."""

    def __init__(self, whole: TokenData, share: float, least: int) -> None:
        super().__init__(whole.folder, whole._index)
        self.share, self.least = share, least

    def count(self, domain: str, split: str) -> int:
        """Number of tokens that are left in a stream."""
        there = super().count(domain, split)
        if split != "train":
            return there
        asked = round(self.share * there)
        return min(there, max(self.least, asked))

    def tokens(self, domain: str, split: str) -> Any:
        """What is left of a stream."""
        left = self.count(domain, split)
        return super().tokens(domain, split)[:left]


@dataclass(frozen=True, kw_only=True)
class Proxies:
    """What all proxies share, as another process can be told."""

    model: Path  # folder of the weights that they start from
    shards: Path
    work: Path  # where they leave their losses, and what they need to go on after a kill
    training: Training
    share: float  # of each domain's text, from its beginning, that is read
    eval_tokens: int  # of each domain

    def data(self) -> TokenData:
        """The text, cut to what is read."""
        whole = TokenData.open(self.shards)
        if self.share >= 1:
            return whole
        return Fewer(whole, self.share, self.training.seq_len + 1)

    def file(self, number: int) -> Path:
        """Where the losses of a proxy stand."""
        return self.work / f"proxy-{number}.json"


def losses(proxies: Proxies, weights_ND: np.ndarray, workers: int, told: Told) -> np.ndarray:
    """Bits per byte of each proxy on each domain, [N, D]."""
    proxies.work.mkdir(parents=True, exist_ok=True)
    domains = proxies.data().domains
    mixtures = [dict(zip(domains, weights_D)) for weights_D in weights_ND.tolist()]
    missing = [number for number in range(len(mixtures)) if not proxies.file(number).is_file()]
    done = len(mixtures) - len(missing)
    for _ in _trained(proxies, mixtures, missing, workers):
        done += 1
        told(done / len(mixtures), f"proxy {done} of {len(mixtures)}")
    rows = [read_json(proxies.file(number)) for number in range(len(mixtures))]
    return np.array([[row[name] for name in domains] for row in rows])


def _trained(proxies: Proxies, mixtures: list[dict[str, float]], missing: list[int], workers: int) -> Iterator[None]:
    """Train what is missing, and say so of each."""
    count = min(workers, len(missing))
    if count < 2:
        with _one_thread():
            for number in missing:
                proxy(proxies, number, mixtures[number])
                yield
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, prepare)
    try:
        waiting = [pool.submit(proxy, proxies, number, mixtures[number]) for number in missing]
        for one in as_completed(waiting):
            one.result()
            yield
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def proxy(proxies: Proxies, number: int, weights: Mapping[str, float]) -> None:
    """Train one, and write down its bits per byte by domain."""
    model = LanguageModel.from_checkpoint(folders.read(proxies.model))
    data = proxies.data()
    place = proxies.work / f"proxy-{number}"
    options = replace(proxies.training, weights=None)
    clear_damage(place)
    train(model, data, options, place, weights=weights)
    found = evaluate(model, data, max_tokens=proxies.eval_tokens, batch_size=options.batch_size,
                     seq_len=options.seq_len)
    write_json(proxies.file(number), found.bits_per_byte)
    disk.remove(place)
