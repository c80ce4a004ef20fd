"""Model stock: two fine-tunes, drawn back to their base by the angle between them, do what a soup of many does.

Paper: none of the catalogue; Model Stock: All we need is just a few fine-tuned models (2403.19522).
Tried: a small net trained on digits turned by all quarters, tuned on 200 upright ones eight times in another order;
mean of the accuracies on upright test digits and on noisy ones, of model stock of two against the mean of the same two.
Against it: an accuracy that is no higher, or one below that of the mean of all eight by a point. Beside: the share of
the way from the base that is best on validation rows. Nothing can be seen where both changes point the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Untestable, no_worse
from mixwell.claims.merge._digits import (
    Rows,
    Split,
    Tensors,
    Tuned,
    accuracy,
    at_best,
    digits,
    fresh,
    merged,
    tuned,
)
from mixwell.claims.merge._moved import between
from mixwell.core.rng import generator

SOUP, FEW, ROWS, STEPS, RATE = 8, 2, 200, 150, 3e-3
NOISE, PARALLEL = 0.4, 0.95
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
OPTIONS = {"floor": 1e-20}  # mergekit's 1e-6 draws nets as small as these back to their base
CLAIM = Claim("Two fine-tunes and their base match a soup of many.", "mean of accuracies on clean and noisy digits",
              lower_is_better=False, provided=(no_worse(baseline="mean of eight", lower_is_better=False),))


def noisy(rows: Rows, seed: int) -> Rows:
    """The images with noise that nothing was trained on."""
    draws = generator(seed, "noise")
    noise = torch.randn(rows.x.shape, generator=draws)
    return rows._replace(x=rows.x + NOISE * noise)


def start(split: Split, seed: int) -> dict[str, Tensor]:
    """A net that reads digits however they are turned."""
    turns = [split.train.turned(quarters) for quarters in range(4)]
    images = torch.cat([rows.x for rows in turns])
    answers = torch.cat([rows.y for rows in turns])
    return tuned(fresh(seed), Rows(images, answers), seed, steps=200)


def both(net: Tensors, rows: Rows, seed: int) -> float:
    """Mean of the accuracies on the rows and on noisy ones."""
    clean = accuracy(net, rows)
    disturbed = accuracy(net, noisy(rows, seed))
    return (clean + disturbed) / 2


def change(base: Tensors, net: Tensors) -> Tensor:
    """What the net learned beyond its base, as one vector."""
    parts = [net[name] - start for name, start in base.items()]
    return torch.cat([part.flatten() for part in parts])


def check_apart(base: Tensors, first: Tensors, second: Tensors) -> None:
    """Raise where the two changes are one."""
    one, other = change(base, first), change(base, second)
    cosine = torch.cosine_similarity(one, other, dim=0)
    if float(cosine) > PARALLEL:
        raise Untestable(f"the two changes have a cosine of {float(cosine):.2f}, and there is no angle to tell from")


def trial(bench: Bench, seed: int) -> dict[str, float]:
    """Accuracies of model stock of two, of their mean, of the mean of eight, and of the best share of the way."""
    split = digits(seed)
    base = start(split, seed)
    few_rows = Rows(split.train.x[:ROWS], split.train.y[:ROWS])
    models = [tuned(base, few_rows, seed + number, steps=STEPS, lr=RATE) for number in range(SOUP)]
    check_apart(base, *models[:FEW])

    def soup(count: int) -> dict[str, Tensor]:
        return merged("linear", Tuned([], base, models[:count]))

    stock = merged("model_stock", Tuned([], base, models[:FEW]), **OPTIONS)
    few, many = soup(FEW), soup(SOUP)
    nets = {"method": stock, "baseline": few, "mean of eight": many, "best share": chosen(base, few, split, seed)}
    return {side: both(net, split.test, seed + 1) for side, net in nets.items()}


def chosen(base: Tensors, mean: Tensors, split: Split, seed: int) -> Tensors:
    """The net on the way that is best on validation rows, noisy ones among them."""
    nets: Sequence[Tensors] = [between(base, mean, share) for share in SHARES]
    scores = [both(net, split.valid, seed) for net in nets]
    return at_best(nets, scores)
