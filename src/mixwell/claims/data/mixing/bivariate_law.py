"""BiMix: a domain's own weight and the steps foretell its loss on unseen mixtures at later steps.

Paper: Data Mixing Made Efficient: A Bivariate Scaling Law for Language Model Pretraining.
Tried: four domains whose words (a heavy tail of 3,000) are counted apart, each domain's count its weight times the
steps: no loss of the law's own form. Twelve mixtures at four checkpoints, the law against a power law with a floor in
the steps alone, on forty other mixtures at twice the steps. Against it: an error that is not halved.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.data.mixing._simulated import DOMAINS, NAMES
from mixwell.data.mixing.bivariate_law import BivariateLaw
from mixwell.data.runs import MixingRuns
from mixwell.scaling.laws.saturating_power import SaturatingPower

CLAIM = Claim("Weight and steps foretell later losses.", "error of log loss in percent", at_least=0.5, relative=True)
WORDS, BATCH = 3000, 64
CHECKPOINTS = np.array([100.0, 200.0, 400.0, 800.0])


def shares(rng: np.random.Generator) -> np.ndarray:
    """Word shares of every domain, i^-1.0 to i^-1.5: [D, V]."""
    place_V = np.arange(1, WORDS + 1.0)
    power_D = rng.uniform(1.0, 1.5, DOMAINS)
    share_DV = place_V ** -power_D[:, None]
    return share_DV / share_DV.sum(1, keepdims=True)


def runs(share_DV: np.ndarray, mixtures: int, steps: np.ndarray, rng: np.random.Generator) -> MixingRuns:
    """Mixtures at every checkpoint, each counted afresh."""
    weights_ND = rng.dirichlet(np.full(DOMAINS, 3.0), mixtures)
    every_ND = np.repeat(weights_ND, len(steps), 0)
    steps_N = np.tile(steps, mixtures)
    tokens_ND = (every_ND * steps_N[:, None] * BATCH).astype(int)
    losses_ND = np.empty_like(every_ND)
    for place, share_V in enumerate(share_DV):
        losses_ND[:, place] = counted(share_V, tokens_ND[:, place], rng)
    return MixingRuns(NAMES, NAMES, every_ND, losses_ND, steps_N)


def counted(share_V: np.ndarray, tokens_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cross-entropy under smoothed counts: [N]."""
    count_NV = rng.multinomial(tokens_N, share_V) + 0.1
    log_NV = np.log(count_NV / count_NV.sum(1, keepdims=True))
    return -log_NV @ share_V


def error(told_NM: np.ndarray, held: MixingRuns) -> float:
    """Root mean square of log L in percent."""
    off_NM = np.log(told_NM) - np.log(held.losses_NM)
    square = np.mean(off_NM**2)
    return 100 * float(np.sqrt(square))


def blind(seen: MixingRuns, held: MixingRuns) -> np.ndarray:
    """What steps alone foretell: [N, M]."""
    told = []
    for loss_N in seen.losses_NM.T:
        fit = SaturatingPower(starts=24).fit({"x": seen.steps_N, "loss": loss_N})
        told.append(fit.predict({"x": held.steps_N}))
    return np.stack(told, 1)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Both errors."""
    rng = np.random.default_rng([seed, 16])
    share_DV = shares(rng)
    seen = runs(share_DV, 12, CHECKPOINTS, rng)
    held = runs(share_DV, 40, 2 * CHECKPOINTS[-1:], rng)
    told_NM = BivariateLaw().fit(seen).predict(held.weights_ND, held.steps_N)
    return {"method": error(told_NM, held), "baseline": error(blind(seen, held), held)}
