"""Similarities against loops, copies of one expert, and a router that mirrors its experts."""

import numpy
import pytest
import torch

from mixwell.core.routing import Context
from mixwell.experts.analysis.similarity import Config, similarity


def cosine(a, b):
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("level", ["matrix", "neurons"])
def test_agrees_with_a_loop(generator, level):
    gate_up = torch.randn(4, 10, 6, generator=generator, dtype=torch.float64)
    down = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    router = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    found = similarity(gate_up, down, Config(level=level), Context(), router)
    parts = {"gate": gate_up[:, :5], "up": gate_up[:, 5:], "down": down.transpose(1, 2)}
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    rows = [cosine(router[i], router[j]) for i, j in pairs]
    for name, weights in parts.items():
        values = []
        for i, j in pairs:
            if level == "matrix":
                expected = cosine(weights[i].flatten(), weights[j].flatten())
            else:
                expected = sum(cosine(weights[i, f], weights[j, f]) for f in range(5)) / 5
            values.append(expected)
            assert found[name]["matrix"][i][j] == pytest.approx(expected)
        assert found[name]["mean"] == pytest.approx(sum(values) / 6)
        assert found[name]["router_agreement"] == pytest.approx(numpy.corrcoef(values, rows)[0, 1])
    assert found["router"]["mean"] == pytest.approx(sum(rows) / 6)


def test_copies_are_alike_and_their_agreement_is_undefined(generator):
    gate_up, down = (torch.randn(1, *s, generator=generator).expand(3, *s) for s in ((4, 6), (6, 2)))
    found = similarity(gate_up, down, Config(), Context(), torch.randn(3, 6, generator=generator))
    assert found["up"]["mean"] == pytest.approx(1) and found["up"]["router_agreement"] is None


def test_a_router_that_mirrors_its_experts_agrees_fully(generator):
    down = torch.randn(5, 6, 1, generator=generator)
    found = similarity(torch.randn(5, 2, 6, generator=generator), down, Config(), Context(), down[..., 0])
    assert found["down"]["router_agreement"] == pytest.approx(1)


def test_without_a_router_only_experts_are_compared(generator):
    found = similarity(torch.randn(2, 4, 3, generator=generator), torch.randn(2, 3, 2, generator=generator), Config(),
                       Context())
    assert "router" not in found and found["gate"]["router_agreement"] is None
