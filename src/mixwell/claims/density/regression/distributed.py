"""Distributed mixture of experts: as good as the central fit, in a tenth of the time.

Paper: Distributed Learning of Mixtures of Experts.
Tried: 16,000 rows of four linear experts under softmax gates of two columns, two starts; sixteen shards reduced by
transport against the central fit: time of the central fit over the slowest shard's and the reduction's, and nats a row
that are lost on 4,000 fresh rows. Against it: a ratio of ten or less, or 0.01 nats or more lost.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.density._data import quietly
from mixwell.core.registry import find

ROWS, SHARDS, EXPERTS, FASTER, TOLERATED = 16_000, 16, 4, 10.0, 0.01
GATES = np.array([[6.0, 0.0], [-6.0, 0.0], [0.0, 6.0], [0.0, -6.0]])
SLOPES = np.array([[3.0, 1], [-3, 1], [1, -3], [-1, 3]])
LEVELS = np.array([0.0, 2, -2, 4])

CLAIM = Claim("Sixteen shards reduced by transport are as good as the central fit, in a tenth of the time.",
              "time of the central fit over the slowest shard's and the reduction's", quantity="times as fast",
              baseline=FASTER, lower_is_better=False,
              provided=(Comparison(quantity="nats lost a row", baseline=TOLERATED),))


def simulate(rng: np.random.Generator, rows: int) -> tuple[Any, Any]:
    """Four linear experts under softmax gates of two columns."""
    x = rng.uniform(-1, 1, (rows, 2))
    logits = x @ GATES.T
    noisy = logits + rng.gumbel(size=logits.shape)
    pick = noisy.argmax(1)
    mean = (x * SLOPES[pick]).sum(1) + LEVELS[pick]
    return x, mean + 0.5 * rng.normal(size=rows)


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Time of the central fit over the slowest shard's and the reduction's, and nats a row that are lost."""
    rng = np.random.default_rng(seed)
    x, y = simulate(rng, ROWS)
    test = simulate(rng, 4000)
    options = {"n_experts": EXPERTS, "random_state": seed, "n_init": 2, "tol": 1e-5}
    with quietly():
        began = perf_counter()
        central = find("density.regression.polynomial").load()(**options).fit(x, y)
        whole_s = perf_counter() - began
        model = find("density.regression.distributed").load()(n_shards=SHARDS, **options).fit(x, y)
    sharded_s = max(model.local_s_) + model.reduction_s_
    lost = central.log_likelihood(*test).mean() - model.log_likelihood(*test).mean()
    return {"method": {"times as fast": whole_s / sharded_s, "nats lost a row": float(lost)}}
