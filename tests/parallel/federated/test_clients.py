"""Rows dealt out to clients: none lost, none twice, unequal as alpha says; what liars say."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.parallel.federated.attacks import ATTACKS
from mixwell.parallel.federated.clients import Table, batches, by_dirichlet, clients_of, size_bytes

LABELS = torch.arange(600) % 6


def spread(alpha, seed=0):
    """Mean over clients of the share of the most frequent label."""
    parts = by_dirichlet(LABELS, 8, alpha, generator(seed, "parts"), least=2)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(600))
    assert min(map(len, parts)) >= 2
    return sum(float(LABELS[part].bincount().max() / len(part)) for part in parts) / 8


def test_every_row_goes_to_one_client_and_small_alpha_gives_few_labels():
    assert spread(0.05) > 0.75 > 0.55 > spread(1.0) > spread(1000.0)
    assert spread(1000.0) < 0.22
    assert spread(0.05) == spread(0.05) != spread(0.05, seed=1)


def test_shares_have_the_moments_of_a_dirichlet():
    """Of 4 clients at alpha = 1: mean 1/4, variance (1/4)(3/4) / (4 + 1)."""
    labels = torch.zeros(1000, dtype=torch.int64)
    draws = generator(3)
    share = torch.tensor([len(by_dirichlet(labels, 4, 1.0, draws)[0]) / 1000 for _ in range(400)])
    assert share.mean() == pytest.approx(0.25, abs=0.03) and share.var() == pytest.approx(0.0375, abs=0.006)


def test_clients_hold_their_rows_and_batches_are_theirs():
    table = Table(torch.arange(600.0), LABELS)
    clients = clients_of(table, [torch.tensor([1, 3]), torch.arange(10, 40)])
    assert clients[0].rows.x.tolist() == [1, 3] and clients[0].rows.y.tolist() == [1, 3] and clients[1].number == 1
    assert [len(part) for part in batches(clients[0].rows, 2, 3, generator(0))] == [2, 2, 2]
    seen = torch.cat([part.x for part in batches(clients[1].rows, 5, 40, generator(0))])
    assert len(seen) == 200 and set(seen.tolist()) == set(range(10, 40))
    assert size_bytes({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.uint8)}) == 14


def test_lies():
    honest = torch.tensor([[1.0, 2], [3, 2]])
    before, draws = torch.tensor([1.0, 1]), generator(0)
    said = {name: attack(honest, before, 2.0, draws) for name, attack in ATTACKS.items()}
    assert said["opposite"].tolist() == [-1, -1]  # the honest step is (1, 1)
    assert said["little"].tolist() == [0, 2]  # mean (2, 2), deviation (1, 0)
    assert said["nothing"].tolist() == [1, 1]
    assert (said["noise"] - honest.mean(0)).norm().item() == pytest.approx(2 * 2**0.5)


def test_refusals():
    with pytest.raises(MixwellError, match="3 inputs came with 2 targets"):
        Table(torch.zeros(3), torch.zeros(2))
    with pytest.raises(MixwellError, match="clients=0, alpha=1; expected at least 1"):
        by_dirichlet(LABELS, 0, 1, generator(0))
    with pytest.raises(MixwellError, match="600 rows came for 8 clients with 80 each"):
        by_dirichlet(LABELS, 8, 1.0, generator(0), least=80)
    with pytest.raises(MixwellError, match="no draw of 200 left each of 8 clients 75 rows at alpha"):
        by_dirichlet(LABELS, 8, 0.1, generator(0), least=75)
