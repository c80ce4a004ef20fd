"""Concatenated features: a probe that finds what single nets lack, decay on the map alone, widths checked."""

import pytest
import torch

from mixwell.merge.outputs.concatenated_features import ConcatenatedFeatures, Config


def test_two_nets_together_tell_what_neither_tells_alone(generator):
    bits = torch.randint(0, 2, (400, 2), generator=generator)
    labels = 2 * bits[:, 0] + bits[:, 1]
    features = [bits[:, place, None].float() + 0.05 * torch.randn(400, 1, generator=generator) for place in (0, 1)]

    def accuracy(used):
        net = ConcatenatedFeatures([1] * len(used), 4, Config(steps=300, lr=0.1, weight_decay=0.0), generator)
        net.fit(used, labels)
        return float((net(used).argmax(-1) == labels).float().mean())

    assert accuracy(features) > 0.98 and accuracy(features[:1]) < 0.6


def test_the_decay_is_on_the_map_alone_and_no_gradient_reaches_the_nets(generator):
    features = [torch.randn(50, 3, generator=generator, requires_grad=True)]
    labels = torch.randint(0, 2, (50,), generator=generator)
    free = ConcatenatedFeatures([3], 2, Config(steps=50, weight_decay=0.0), torch.Generator().manual_seed(1))
    held = ConcatenatedFeatures([3], 2, Config(steps=50, weight_decay=20.0), torch.Generator().manual_seed(1))
    free.fit(features, labels)
    held.fit(features, labels)
    assert float(held.probe.weight.detach().norm()) < float(free.probe.weight.detach().norm())
    assert float(held.norm.weight.detach().min()) > 0.5 and features[0].grad is None
    with pytest.raises(ValueError, match=r"widths \[3, 3\] came; expected \[3\]"):
        free([features[0], features[0]])
    with pytest.raises(ValueError, match="steps 0"):
        Config(steps=0)
