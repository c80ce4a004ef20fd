"""What the overflow tests share: a plain loop that serves slots in a given order."""

from __future__ import annotations

import torch

from mixwell.core.routing import Routing


def serve_loop(indices, order, capacity):
    """Indices after serving (token, choice) pairs one by one."""
    used, result = {}, [[-1] * len(row) for row in indices]
    for t, k in order:
        e = indices[t][k]
        if e >= 0 and used.get(e, 0) < capacity:
            used[e] = used.get(e, 0) + 1
            result[t][k] = e
    return result


def routing_of(generator, tokens=20, experts=5, k=2):
    logits = torch.randn(tokens, experts, generator=generator, dtype=torch.float64)
    scores = (logits - 0.5 * torch.arange(experts)).softmax(-1)
    weights, indices = scores.topk(k, dim=-1)
    return Routing(indices, weights, scores, logits)
