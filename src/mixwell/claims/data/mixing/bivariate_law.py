"""BiMix: a domain's own weight and the steps foretell its loss on unseen mixtures.

Paper: Data Mixing Made Efficient: A Bivariate Scaling Law for Language Model Pretraining.
Tried: four domains whose words (a heavy tail of 3,000) are counted apart, each domain's count its weight times the
steps: no loss of the law's own form. Twelve mixtures at four checkpoints, the law against a power law with a floor in
the steps alone, on forty other mixtures at the last checkpoint. Against it: an error that is not a tenth
lower.
"""

from __future__ import annotations

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.data.mixing._simulated import DOMAINS, NAMES, percent
from mixwell.data.mixing.bivariate_law import BivariateLaw
from mixwell.data.runs import MixingRuns
from mixwell.scaling.laws.saturating_power import SaturatingPower

CLAIM = Claim("Weight and steps foretell the loss of unseen mixtures.", "error of log loss in percent",
              at_least=0.1, relative=True)
WORDS, BATCH = 3000, 8
CHECKPOINTS = np.array([100.0, 200.0, 400.0, 800.0])


def shares(rng: np.random.Generator) -> np.ndarray:
    """Word shares of every domain, i^-1.0 to i^-1.5: [D, V]."""
    place_V = np.arange(1, WORDS + 1.0)
    power_D = rng.uniform(1.0, 1.5, DOMAINS)
    rows = []
    for power in power_D:
        share_V = place_V**-power
        rows.append(share_V / share_V.sum())
    return np.stack(rows)


def runs(share_DV: np.ndarray, mixtures: int, steps: np.ndarray, rng: np.random.Generator) -> MixingRuns:
    """Mixtures at every checkpoint, each counted afresh."""
    weights_ND = rng.dirichlet(np.full(DOMAINS, 3.0), mixtures)
    every_ND = np.repeat(weights_ND, len(steps), 0)
    steps_N = np.tile(steps, mixtures)
    losses_ND = np.empty_like(every_ND)
    for place, share_V in enumerate(share_DV):
        own_N = every_ND[:, place] * steps_N
        tokens_N = BATCH * own_N
        losses_ND[:, place] = counted(share_V, tokens_N.astype(int), rng)
    return MixingRuns(NAMES, NAMES, every_ND, losses_ND, steps_N)


def counted(share_V: np.ndarray, tokens_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cross-entropy under smoothed counts: [N]."""
    count_NV = rng.multinomial(tokens_N, share_V) + 0.1
    log_NV = np.log(count_NV / count_NV.sum(1, keepdims=True))
    return -log_NV @ share_V


def blind(seen: MixingRuns, held: MixingRuns) -> np.ndarray:
    """What steps alone foretell: [N, M]."""
    law = SaturatingPower(starts=24)
    told = []
    for loss_N in seen.losses_NM.T:
        table = {"x": seen.steps_N, "loss": loss_N}
        fit = law.fit(table)
        told_N = fit.predict({"x": held.steps_N})
        told.append(told_N)
    return np.stack(told, 1)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Both errors."""
    rng = np.random.default_rng([seed, 16])
    share_DV = shares(rng)
    seen = runs(share_DV, 12, CHECKPOINTS, rng)
    held = runs(share_DV, 40, CHECKPOINTS[-1:], rng)
    fitted = BivariateLaw().fit(seen)
    told_NM = fitted.predict(held.weights_ND, held.steps_N)
    blind_NM = blind(seen, held)
    true_NM = held.losses_NM
    return {"method": percent(told_NM, true_NM), "baseline": percent(blind_NM, true_NM)}
