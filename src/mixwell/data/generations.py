"""Model dementia: generations of models, each fitted to what the one before it wrote, forget the tails.

**Equation:** n draws x ~ N(mu_g, s2_g), a share p of them from N(mu_0, s2_0) instead; mu_{g+1} and s2_{g+1} are their
    mean and unbiased variance. At p = 0: log s2 drifts by about -1 / (n - 1) a generation with variance 2 / (n - 1);
    E s2 stays; E (mu_G - mu_0)^2 = G s2_0 / n. Words: counts of n draws are the next generation's shares.
**Shapes:** means and variances [C] of chains in, [G + 1, C] of all generations out; shares of words [V], then
    [G + 1, V].
**Reference:** Shumailov et al. 2023 (2305.17493).
**Differs:** Gaussians and word counts, of which the rates are known; variational autoencoders and language models are
    left out.
**Fails when:** read from one chain: the mean of s2 is carried by rare ones; look at medians over a hundred.
**Cost:** O(G n C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.core.method import method


@dataclass(frozen=True, kw_only=True)
class Config:
    """How generations follow each other; `ValueError` for a value out of range."""

    samples: int = 100  # n, at least 2
    generations: int = 50  # G, at least 1
    real: float = 0.0  # p: share of each generation's samples that is real, 0 to 1
    accumulate: bool = False  # every generation learns from all samples so far, instead of the last ones

    def __post_init__(self) -> None:
        if self.samples < 2 or self.generations < 1:
            raise ValueError(f"samples={self.samples}, generations={self.generations}; expected at least 2 and 1")
        if not 0 <= self.real <= 1:
            raise ValueError(f"real is {self.real}; expected 0 to 1")


class Chains(NamedTuple):
    """Means and variances of all generations: [G + 1, C] each."""

    means: Tensor
    variances: Tensor


@method(title="Model dementia", year=2023, paper="Model Dementia: Generated Data Makes Models Forget")
def generations(mean_C: Tensor, variance_C: Tensor, config: Config, generator: torch.Generator) -> Chains:
    """Gaussians over the generations; a variance that is not above 0 raises `MixwellError`."""
    if not (variance_C > 0).all():
        raise MixwellError(f"a variance is {variance_C.min():g}; expected numbers above 0.")
    means, variances = [mean_C], [variance_C]
    kept: list[Tensor] = []
    real = round(config.real * config.samples)
    written = config.samples - real
    for _ in range(config.generations):
        if not config.accumulate:
            kept = []
        own = _drawn(means[-1], variances[-1], written, generator)
        given = _drawn(mean_C, variance_C, real, generator)
        kept += [own, given]
        every = torch.cat(kept)
        means.append(every.mean(0))
        variances.append(every.var(0))
    return Chains(torch.stack(means), torch.stack(variances))


def _drawn(mean_C: Tensor, variance_C: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count, C]."""
    noise = torch.randn(count, len(mean_C), generator=generator, dtype=mean_C.dtype)
    return mean_C + variance_C.sqrt() * noise


def words(share_V: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Shares of words in all generations, [G + 1, V]: a word that is not drawn once never comes back at p = 0."""
    shares = [share_V]
    total_V = torch.zeros_like(share_V)
    for _ in range(config.generations):
        mixed_V = torch.lerp(shares[-1], share_V, config.real)
        drawn = torch.multinomial(mixed_V, config.samples, replacement=True, generator=generator)
        if not config.accumulate:
            total_V = torch.zeros_like(share_V)
        total_V = total_V + torch.bincount(drawn, minlength=len(share_V))
        shares.append(total_V / total_V.sum())
    return torch.stack(shares)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five chains of standard normals."""
    mean_C = torch.zeros(5, dtype=torch.float64)
    variance_C = torch.ones(5, dtype=torch.float64)
    config = Config(samples=20, generations=4)
    return {"mean_C": mean_C, "variance_C": variance_C, "config": config, "generator": generator}
