"""A law and boosted trees together are never far above the better of the two.

Paper: none; its parts are those of Data Mixing Laws: Optimizing Data Mixtures by Predicting Language Modeling
Performance and of RegMix: Data Mixture as Regression for Language Model Pre-training.
Tried: 50 mixtures of four domains that share half of their words, learned by smoothed counts of 20,000 words; error of
log loss on 300 other mixtures. Baseline: the exponential law. Beside: trees. Against it: an error that is 5 % above
that of the law, or of trees.
"""

from __future__ import annotations

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, no_worse
from mixwell.claims.data.mixing._simulated import compared
from mixwell.data.mixing.exponential_law import ExponentialLaw
from mixwell.data.mixing.law_and_trees import LawAndTrees
from mixwell.data.mixing.regression import Config, Regression

CLAIM = Claim("Law and trees together are as good as the better one.", "error of log loss in percent", quantity="error",
              at_least=-0.05, relative=True, provided=(no_worse("error", 0.05, baseline="trees"),))


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Errors of all three."""
    trees = Regression(Config(rounds=100, learning_rate=0.1))
    return compared({"method": LawAndTrees(), "baseline": ExponentialLaw(), "trees": trees}, 50, seed)
