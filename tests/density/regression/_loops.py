"""Dumb loops that the gated regressions are held to."""

import math


def softmax(values):
    top = max(values)
    total = sum(math.exp(v - top) for v in values)
    return [math.exp(v - top) / total for v in values]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def normal(residual, variance):
    return math.exp(-0.5 * residual**2 / variance) / math.sqrt(2 * math.pi * variance)


def poly(row, degree):
    return [1.0] + [v**p for p in range(1, degree + 1) for v in row]


def gaussian_posterior(rows, targets, gate, coef, variances, degree=1, gate_input=lambda row: [1.0, *row]):
    """(log-likelihood, responsibilities) of a softmax-gated mixture of normal polynomial experts, one response."""
    total, resp = 0.0, []
    for row, y in zip(rows, targets):
        weights = softmax([dot(w, gate_input(row)) for w in gate])
        joint = [g * normal(y - dot(c, poly(row, degree)), v) for g, c, v in zip(weights, coef, variances)]
        total += math.log(sum(joint))
        resp.append([j / sum(joint) for j in joint])
    return total, resp


def standardised(x):
    return (x - x.mean(0)) / x.std(0)
