"""Fisher merging: two nets tuned on halves of the digits read all ten better when their Fishers weigh the mean.

Paper: Merging Models with Fisher-Weighted Averaging.
Tried: a small net tuned on digits 0 to 4 and, apart from that, on 5 to 9, merged; test accuracy on all ten, the models'
shares chosen on validation rows from the same grid. Against it: an accuracy that is no higher than that of the plain
mean. Beside it: RegMean.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim
from mixwell.claims.merge._digits import Rows, Tensors, accuracy, answer, digits, fresh, module, tuned
from mixwell.core.rng import generator

SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)
CLAIM = Claim("Fisher weights beat the plain mean.", "accuracy on all ten digits", lower_is_better=False)


def halves(rows: Rows) -> list[Rows]:
    """Rows of digits 0 to 4, and of 5 to 9."""
    low = rows.y < 5
    return [rows.of(low), rows.of(~low)]


def log_shares(net: Tensors, image: Tensor) -> Tensor:
    """Log probabilities of one image [1, 10]."""
    return answer(net, image.unsqueeze(0)).log_softmax(-1)


def grams(net: Tensors, x: Tensor) -> dict[str, Tensor]:
    """Mean products of the inputs of each map."""
    found = {}
    last = len(net) // 2
    for layer in range(last):
        found[f"w{layer}"] = x.T @ x / len(x)
        x = (x @ net[f"w{layer}"].T + net[f"b{layer}"]).relu()
    return found


def chosen(merge: Callable[[float], Tensors], valid: Rows, test: Rows) -> float:
    """Test accuracy with the share that is best on validation rows."""
    nets = [merge(share) for share in SHARES]
    scores = [accuracy(net, valid) for net in nets]
    return accuracy(nets[scores.index(max(scores))], test)


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of Fisher merging, of the plain mean, and of RegMean."""
    split = digits(seed)
    base = tuned(fresh(seed), split.train, seed, steps=40)
    parts = halves(split.train)
    models = [tuned(base, part, seed + number, steps=100) for number, part in enumerate(parts)]
    own, other = module("merge.fisher"), module("merge.regmean")
    draws = generator(seed, "fisher")
    sure = [own.diagonal(log_shares, model, part.x[:150], own.Config(), draws)
            for model, part in zip(models, parts)]
    seen = [grams(model, part.x) for model, part in zip(models, parts)]
    flat = [{name: tensor.new_ones(tensor.shape) for name, tensor in model.items()} for model in models]

    def weighed(statistics: list[dict[str, Tensor]]) -> Callable[[float], Tensors]:
        return lambda share: own.fisher(models, statistics, own.Config(weight=(1 - share, share)))

    def regmean(share: float) -> Tensors:
        return other.regmean(models, seen, other.Config(weight=(1 - share, share)))

    return {"method": chosen(weighed(sure), split.valid, split.test),
            "baseline": chosen(weighed(flat), split.valid, split.test),
            "RegMean": chosen(regmean, split.valid, split.test)}
