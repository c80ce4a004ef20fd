"""Images made from batch norm's statistics show a network's ranges better than noise; bits by KL beat equal ones.

Paper: ZeroQ: A Novel Zero Shot Quantization Framework.
Tried: a network of three convolutions with batch norm, trained on scikit-learn's digits; the largest activation of each
layer on 32 made images and on 32 of noise, against that on the digits. Then the bench's mixture after 150,000 tokens:
2, 3 or 4 bits a matrix and expert, 3 on average, by KL on 512 tokens that the model writes, against 3 everywhere.
Beside: images matched over the batch. Against it: ranges that are no closer, or a mean KL that is no lower.
"""

from __future__ import annotations

import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.claims.bench import Bench
from mixwell.claims.claim import Claim, Comparison
from mixwell.claims.precision._weighing import against_equal, trained
from mixwell.core.rng import generator
from mixwell.precision.zeroq import distilled

CLAIM = Claim("Made images show ranges better than noise, and bits by KL beat equal ones.",
              "mean |log| of largest activations over those on the digits", quantity="range",
              provided=(Comparison(quantity="KL"),))
STEPS, ROWS = 150, 64
SHAPE = 1, 8, 8


def trial(bench: Bench, seed: int) -> dict[str, dict[str, float]]:
    """Errors of ranges, and KL of rounded mixtures."""
    before = trained(bench, seed)
    sides = against_equal(bench, before, seed, "zeroq", tokens=512)
    sides["batch"] = {}
    for side, error in ranges(seed).items():
        sides[side]["range"] = error
    return sides


def ranges(seed: int) -> dict[str, float]:
    """Errors of the largest activations on made images, by side."""
    images, labels = _digits()
    net = _network()
    _train(net, images, labels, seed)
    real = _largest(net, images)
    draws = generator(seed, "zeroq")
    made = distilled(net, SHAPE, generator=draws)
    together = distilled(net, SHAPE, per_image=False, generator=draws)
    noise = torch.randn(made.shape, generator=draws)
    sides = {"method": made, "batch": together, "baseline": noise}
    return {name: _error(net, own, real) for name, own in sides.items()}


def _digits() -> tuple[Tensor, Tensor]:
    """Images [N, 1, 8, 8] of mean 0 and width 1, and their labels."""
    found = load_digits()
    images = torch.from_numpy(found.images).float()
    spread = images.std()
    scaled = (images - images.mean()) / spread
    return scaled.unsqueeze(1), torch.from_numpy(found.target)


def _network() -> nn.Module:
    """Three convolutions with batch norm, and a linear map."""
    parts: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 32)):
        convolution = nn.Conv2d(before, after, 3, padding=1)
        parts += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    head = nn.Linear(32, 10)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def _train(net: nn.Module, images: Tensor, labels: Tensor, seed: int) -> None:
    """A few passes over the digits, from a start of this seed."""
    draws = generator(seed, "digits")
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, generator=draws)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(STEPS):
        rows = torch.randint(0, len(images), (ROWS,), generator=draws)
        loss = F.cross_entropy(net(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()


@torch.no_grad()
def _largest(net: nn.Module, images: Tensor) -> list[float]:
    """The largest activation behind each ReLU."""
    found = []
    x = images
    for module in net.children():
        x = module(x)
        if isinstance(module, nn.ReLU):
            found.append(float(x.max()))
    return found


def _error(net: nn.Module, images: Tensor, real: list[float]) -> float:
    """Mean |log| of the largest activations over the real ones."""
    found = _largest(net, images)
    shares = [own / true for own, true in zip(found, real)]
    apart = [abs(math.log(share)) for share in shares]
    return sum(apart) / len(apart)
