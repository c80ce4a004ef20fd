"""RegMix: boosted trees rank unseen mixtures better than a line.

Paper: RegMix: Data Mixture as Regression for Language Model Pre-training.
Tried: 256 mixtures of four domains that share half of their words, learned by smoothed counts of 20,000 words;
scikit-learn's trees (100 rounds of 0.1) against linear regression, on 300 other mixtures. Against it: a rank
correlation in the mean of the domains that is no higher, or an error above the line's.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, no_worse
from mixwell.claims.data.mixing._simulated import compared
from mixwell.data.mixing.regression import Config, Regression

CLAIM = Claim("Trees rank mixtures better than a line.", "Spearman's rho", quantity="rho", lower_is_better=False,
              provided=(no_worse("error", 0.01),))


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Rank correlation and error of both."""
    line = Regression(Config(kind="linear"))
    trees = Regression(Config(rounds=100, learning_rate=0.1))
    return compared({"method": trees, "baseline": line}, 256, seed)
