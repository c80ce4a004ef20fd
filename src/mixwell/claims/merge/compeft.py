"""ComPEFT: a fine-tune kept as signs of a fifth of its changes is as good as the whole, and merges as well.

Paper: ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification and Quantization.
Tried: a small net tuned on digits turned by a quarter; test accuracy with its changes as ternary numbers, a fifth of
them kept and alpha chosen on validation rows, against the changes whole. Against it: an accuracy a point lower or more.
Beside it: bits a weight of the code, and four tasks merged from ternary changes and from whole ones.
"""

from __future__ import annotations

import torch

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, no_worse
from mixwell.claims.merge._digits import Tensors, Tuned, accuracy, best, merged, module, turned_tasks

ALPHAS, SCALES = (1.0, 2.0, 3.0, 4.0, 6.0), (0.2, 0.4, 0.6, 0.8, 1.0)
DENSITY = 0.2
CLAIM = Claim("A fifth of the signs serves as well as the whole change.", "accuracy, or bits a weight",
              quantity="accuracy", lower_is_better=False, at_least=-0.01,
              provided=(no_worse("merged", 0.02, relative=False, lower_is_better=False),))


def bits(task: Tuned) -> float:
    """Bits a weight that the code takes for the second task's signs."""
    own = module("merge.compeft")
    change = flat(task.models[1]) - flat(task.base)
    sizes = change.abs()
    whole = len(change)
    count = int(DENSITY * whole)
    least = sizes.topk(count).values.min()
    large = sizes >= least
    code = own.encoded(change.sign() * large)
    return 8 * len(code) / whole


def flat(net: Tensors) -> torch.Tensor:
    """All parameters in a row."""
    parts = [tensor.flatten() for tensor in net.values()]
    return torch.cat(parts)


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Accuracies of one task, accuracies of four merged, and bits a weight, for signs and for whole changes."""
    task = turned_tasks(seed)
    single = Tuned(task.splits[1:2], task.base, task.models[1:2])

    def signs(alpha: float) -> Tensors:
        return merged("compeft", single, density=DENSITY, alpha=alpha)

    def ternary(scale: float) -> Tensors:
        return merged("compeft", task, density=DENSITY, alpha=2.0, scale=scale)

    def whole(scale: float) -> Tensors:
        return merged("task_arithmetic", task, scale=scale)

    second = task.splits[1]
    own = accuracy(task.models[1], second.test)
    kept = {"accuracy": best(signs, ALPHAS, single), "merged": best(ternary, SCALES, task), "bits": bits(task)}
    raw = {"accuracy": own, "merged": best(whole, SCALES, task), "bits": 32.0}
    return {"method": kept, "baseline": raw}
