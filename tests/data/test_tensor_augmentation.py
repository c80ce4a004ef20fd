"""Traces are gradients of the last layer, influence and importance against loops, what is drawn, refusals."""

import dataclasses

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.data import tensor_augmentation as module
from mixwell.data.tensor_augmentation import Cells, Completion, Config, tensor_augmentation

SIZES = (5, 4, 3)
CONFIG = Config(embedding=3, hidden=(8, 6), epochs=4, batch=16, lr=1e-2, held=0.25)


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def cells(count=64, seed=0):
    index = torch.stack([torch.randint(size, (count,), generator=fresh(seed + k)) for k, size in enumerate(SIZES)], 1)
    return Cells(index, index.sum(1) / 4 + 0.1 * torch.randn(count, generator=fresh(9)))


def test_a_trace_is_half_the_gradient_of_the_readout():
    network, some = Completion(SIZES, CONFIG, fresh(1)), cells(7)
    trace, off = module.traces(network, some)
    for place in range(7):
        one = some.rows(torch.tensor([place]))
        loss = (network(one.index_CM) - one.value_C).square().sum()
        slope, = torch.autograd.grad(loss, network.readout.weight)
        torch.testing.assert_close(trace[place], slope[0] / 2)
    assert not trace.requires_grad and off.requires_grad
    entity = some.index_CM[0]
    flat = torch.cat([network.tables[mode][entity[mode]] for mode in range(3)])
    torch.testing.assert_close(network.hidden(some.index_CM)[0], network.layers(flat))


def test_influence_sums_products_with_held_out_traces_up_to_the_best_epoch():
    learned, held = module.split(cells(), 0.25, fresh(2))
    assert len(held.value_C) == 16 and len(learned.value_C) == 48
    network, found = module.traced(learned, held, SIZES, CONFIG, fresh(3))
    again, draws = Completion(SIZES, CONFIG, replay := fresh(3)), replay
    optimiser = torch.optim.Adam(again.parameters(), lr=CONFIG.lr)
    total, best = torch.zeros(48, dtype=torch.float64), float("inf")
    for _ in range(CONFIG.epochs):
        wanted = [float(x) for x in ((again(held.index_CM) - held.value_C)[:, None] * again.hidden(held.index_CM))
                  .detach().double().sum(0)]
        for batch in torch.randperm(48, generator=draws).split(16):
            hidden = again.hidden(learned.index_CM[batch])
            off = again(learned.index_CM[batch]) - learned.value_C[batch]
            for row, place in enumerate(batch.tolist()):
                total[place] += sum(float(off[row].detach()) * h * w for h, w in zip(hidden[row].tolist(), wanted))
            optimiser.zero_grad()
            off.square().mean().backward()
            optimiser.step()
        error = module.square_error(again, held)
        if error < best:
            best, expected = error, total.clone()
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    assert module.square_error(network, held) == pytest.approx(best)


def test_importance_adds_the_sizes_of_a_modes_cells():
    index = torch.tensor([[0, 1], [0, 0], [2, 1]])
    first, second = module.importance(torch.tensor([1.0, -3.0, 4.0]), index, (3, 2))
    assert first.tolist() == [0.5, 0, 0.5] and second.tolist() == [0.375, 0.625]
    assert module.importance(torch.zeros(3), index, (3, 2))[1].tolist() == [0.5, 0.5]


def test_new_cells_follow_importance_and_hold_what_the_network_tells():
    drawn = module.new_cells([torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.25, 0.75])], 4000, fresh(4))
    assert drawn[:, 0].unique().tolist() == [1] and float(drawn[:, 1].double().mean()) == pytest.approx(0.75, abs=0.03)
    data = cells()
    made = tensor_augmentation(data, SIZES, CONFIG, fresh(5))
    assert made.cells.shape == (64 + 24, 3) and torch.equal(made.cells[:64], data.index_CM)
    assert torch.equal(made.values[:64], data.value_C)
    assert [float(part.sum()) for part in made.importance.split(SIZES)] == pytest.approx([1, 1, 1])
    learned, held = module.split(data, 0.25, draws := fresh(5))
    network, _ = module.traced(learned, held, SIZES, CONFIG, draws)
    torch.testing.assert_close(made.values[64:], network(made.cells[64:]).detach())
    even = tensor_augmentation(data, SIZES, dataclasses.replace(CONFIG, guided=False, added=1.0), fresh(5))
    assert len(even.values) == 64 + 48 and even.importance[:5].tolist() == pytest.approx([0.2] * 5)
    none = tensor_augmentation(data, SIZES, dataclasses.replace(CONFIG, added=0.0), fresh(5))
    assert torch.equal(none.values, data.value_C)


def test_patience_ends_training_and_cells_beside_are_all_learned_from():
    learned, held = module.split(cells(), 0.25, fresh(2))
    far = Cells(held.index_CM, held.value_C + 100)  # which learning only makes worse
    long = dataclasses.replace(CONFIG, epochs=500, patience=1, lr=1e-3)
    network, _ = module.traced(learned, Cells(far.index_CM, -far.value_C), SIZES, long, fresh(3))
    assert module.square_error(network, far) > 0  # it came back, long before the last epoch
    beside = Cells(torch.zeros(400, 3, dtype=torch.int64), torch.full((400,), 9.0))
    config = dataclasses.replace(CONFIG, epochs=15)
    pulled = module.fitted(cells(), SIZES, config, fresh(6), beside)
    plain = module.fitted(cells(), SIZES, config, fresh(6))
    corner = torch.zeros(1, 3, dtype=torch.int64)
    assert pulled(corner) > plain(corner) + 2


def test_refusals():
    index, value = cells(8)
    for wrong, told in ((Cells(index[:, :2], value), "for 3 modes; expected a row"),
                        (Cells(index, value[:5]), "5 values"),
                        (Cells(index + 3, value), "lies outside a tensor of 5 x 4 x 3"),
                        (Cells(index, value / 0), "not finite")):
        with pytest.raises(MixwellError, match=told):
            tensor_augmentation(wrong, SIZES, CONFIG, fresh())
    with pytest.raises(MixwellError, match="1 cells came; expected more than are held out"):
        module.split(cells(1), 0.2, fresh())
    with pytest.raises(MixwellError, match="diverged; take an lr below 1e"):
        tensor_augmentation(cells(), SIZES, dataclasses.replace(CONFIG, lr=1e30), fresh())
    for values in ({"embedding": 0}, {"hidden": ()}, {"hidden": (0,)}, {"lr": 0}, {"batch": 0}, {"epochs": 0},
                   {"patience": 0}, {"held": 0}, {"held": 1}, {"added": -1}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
