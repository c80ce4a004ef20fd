"""Greedy ensembles: the loss in a loop, its bounds and gradient, submodularity, noise."""

import math

import pytest
import torch

from mixwell.merge.outputs.greedy_ensemble import Config, greedy_ensemble, noise_like, prediction


def members(generator, count):
    return [torch.randn(6, 4, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(count)]


def test_the_loss_is_that_of_a_loop_and_bounded(generator):
    own, *earlier = members(generator, 4)
    config = Config(diversity=2.0, members=4)
    total = 0.0
    for other in earlier:
        distance = sum(float((own[n] - other[n]).square().sum()) for n in range(6)) / 6
        total += math.exp(-0.5 * distance)
    found = float(greedy_ensemble(own, earlier, config))
    assert found == pytest.approx(math.log(total))
    assert math.log(3) - 2 * 2.0 / 4 <= found <= math.log(3)
    assert float(greedy_ensemble(own, [], config)) == 0
    assert float(greedy_ensemble(own, [own], config)) == 0  # a twin: log 1
    assert torch.autograd.gradcheck(lambda x: greedy_ensemble(x, earlier, config), own.requires_grad_())


def test_gains_of_further_members_diminish(generator):
    def covered(chosen, everyone):  # facility location under the kernel of the loss
        kernel = [[math.exp(-float((a - b).square().sum(-1).mean())) for b in everyone] for a in chosen]
        return sum(max(column) for column in zip(*kernel)) if chosen else 0.0

    everyone = members(generator, 6)
    small, large, new = everyone[:1], everyone[:3], everyone[4]
    gain_small = covered([*small, new], everyone) - covered(small, everyone)
    gain_large = covered([*large, new], everyone) - covered(large, everyone)
    assert gain_small >= gain_large >= 0


def test_noise_is_wider_than_the_inputs_and_predictions_are_means(generator):
    inputs = torch.randn(4000, 2, generator=generator) * torch.tensor([1.0, 3.0]) + 7
    config = Config(spread=5.0)
    noise = noise_like(inputs, config.spread, generator)
    torch.testing.assert_close(noise.std(0), 5 * inputs.std(0), rtol=0.06, atol=0)
    torch.testing.assert_close(noise.mean(0), inputs.mean(0), rtol=0.1, atol=0.5)
    first, second = members(generator, 2)
    torch.testing.assert_close(prediction([first, second]), (first + second) / 2)
    with pytest.raises(ValueError, match="members is 0"):
        Config(members=0)
