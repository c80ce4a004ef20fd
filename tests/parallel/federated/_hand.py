"""Softmax regression in plain floats, for references: nothing of the package is used."""

import math


def probabilities(weight, bias, x):
    scores = [sum(w * v for w, v in zip(row, x)) + b for row, b in zip(weight, bias)]
    most = max(scores)
    parts = [math.exp(score - most) for score in scores]
    return [part / sum(parts) for part in parts]


def gradient(model, xs, ys, weights=None):
    """Of the (weighted) mean cross-entropy: (weight [C][D], bias [C])."""
    weight, bias = model
    weights = weights or [1.0] * len(xs)
    grad_w = [[0.0] * len(weight[0]) for _ in weight]
    grad_b = [0.0] * len(bias)
    for x, y, own in zip(xs, ys, weights):
        for c, p in enumerate(probabilities(weight, bias, x)):
            off = own * (p - (c == y)) / len(xs)
            grad_b[c] += off
            for d, v in enumerate(x):
                grad_w[c][d] += off * v
    return grad_w, grad_b


def added(model, step, times):
    """model + times * step."""
    weight, bias = model
    return ([[w + times * s for w, s in zip(row, other)] for row, other in zip(weight, step[0])],
            [b + times * s for b, s in zip(bias, step[1])])


def numbers(model):
    """All of them, weight first."""
    return [w for row in model[0] for w in row] + list(model[1])


def plain(tensors, prefix=""):
    """A model in plain floats."""
    return tensors[f"{prefix}weight"].double().tolist(), tensors[f"{prefix}bias"].double().tolist()


def averaged(models, shares):
    """Their weighted mean."""
    found = added(models[0], models[0], -1)
    for model, share in zip(models, shares):
        found = added(found, model, share / sum(shares))
    return found
