"""The contract of data distillation: labelled images and a kind of network in, a few images to store out.

A compact set counts the images that are stored; what a student trains on may be more of them, cut out of these.

Legend: N images, M stored, C channels, H W height and width, Y classes, r tiles a side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixwell.core.errors import MixwellError
from mixwell.mixing import check_above, check_least, check_most

Build = Callable[[torch.Generator], nn.Module]  # a fresh network: images [N, C, H, W] -> logits [N, Y]


class Images(NamedTuple):
    """Images with their classes, from 0."""

    images_NCHW: Tensor
    classes_N: Tensor

    def rows(self, places: Tensor) -> Images:
        """Some of them."""
        return Images(self.images_NCHW[places], self.classes_N[places])

    @property
    def kinds(self) -> int:
        """Classes Y: the largest label and one."""
        return int(self.classes_N.max()) + 1


class Compact(NamedTuple):
    """Images to store, their classes, and how many are tiled in each.

    lr: the step of gradient descent that images were made for, where a method learns one.
    """

    images_MCHW: Tensor
    classes_M: Tensor
    tiles: int = 1
    lr: float = math.nan

    def training(self) -> Images:
        """What a student trains on: every tile at the size of a whole image, [M r^2, C, H, W]."""
        whole = self.images_MCHW
        if self.tiles == 1:
            return Images(whole, self.classes_M)
        size = whole.shape[-2:]
        parts = cut(whole, self.tiles)
        grown = functional.interpolate(parts, size=size, mode="bilinear")
        classes = self.classes_M.repeat_interleave(self.tiles**2)
        return Images(grown, classes)


def check(data: Images, per_class: int) -> None:
    """Raise `MixwellError` for images that no method can compress to so many of each class."""
    images, classes = data
    shapes = images.ndim, classes.ndim
    if shapes != (4, 1) or len(images) != len(classes):
        raise MixwellError(f"images of shape {tuple(images.shape)} came with classes {tuple(classes.shape)}; expected "
                           "[N, C, H, W] and [N].")
    if not torch.isfinite(images).all():
        raise MixwellError("an image holds a number that is not finite.")
    if classes.is_floating_point() or classes.min() < 0:
        raise MixwellError("classes are not whole numbers from 0.")
    have_Y = torch.bincount(classes)
    fewest = int(have_Y.min())
    if fewest < per_class:
        scarce = int(have_Y.argmin())
        raise MixwellError(f"class {scarce} has {fewest} images; {per_class} of each are needed.")


def of_each(data: Images, per_class: int, generator: torch.Generator) -> Tensor:
    """Places of images drawn evenly in each class, none twice, class by class: [Y per_class]."""
    kept = []
    for label in range(data.kinds):
        own = torch.nonzero(data.classes_N == label).flatten()
        order = torch.randperm(len(own), generator=generator)
        kept.append(own[order[:per_class]])
    return torch.cat(kept)


def cut(images_MCHW: Tensor, tiles: int) -> Tensor:
    """Tiles of images, row by row: [M r^2, C, H / r, W / r]."""
    channels = images_MCHW.shape[1]
    high, wide = (side // tiles for side in images_MCHW.shape[2:])
    split = images_MCHW.unflatten(3, (tiles, wide))
    split = split.unflatten(2, (tiles, high))
    ordered = split.permute(0, 2, 4, 1, 3, 5)
    return ordered.reshape(-1, channels, high, wide)


def joined(parts: Tensor, tiles: int) -> Tensor:
    """What `cut` cuts, from its tiles: [M, C, H, W]."""
    split = parts.unflatten(0, (-1, tiles, tiles))
    ordered = split.permute(0, 3, 1, 4, 2, 5)
    rows = ordered.flatten(4)
    return rows.flatten(2, 3)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained on images; `ValueError` for a value out of range."""

    steps: int = 300  # at least 1
    batch: int = 64  # images a step, at least 1; all of them where there are fewer
    lr: float = 3e-3  # of AdamW, falling to 0 by a cosine, above 0
    decay: float = 0.01  # of the weights, 0 or more
    least_area: float = 1.0  # crops have this share of an image's area or more, above 0; 1: none
    temperature: float = 20.0  # of soft labels, above 0

    def __post_init__(self) -> None:
        check_least(self, steps=1, batch=1, decay=0)
        check_above(self, lr=0, temperature=0, least_area=0)
        check_most(self, least_area=1)


def trained(network: nn.Module, data: Images, training: Training, generator: torch.Generator,
            teacher: nn.Module | None = None) -> nn.Module:
    """The network after its training, in evaluation mode; with a teacher it learns that one's soft labels alone."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.steps)
    network.train()
    size = min(training.batch, len(data.classes_N))
    for _ in range(training.steps):
        order = torch.randperm(len(data.classes_N), generator=generator)
        images, classes = data.rows(order[:size])
        seen = cropped(images, training.least_area, generator)
        if teacher is None:
            loss = functional.cross_entropy(network(seen), classes)
        else:
            loss = softly(network(seen), teacher, seen, training.temperature)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def softly(logits_NY: Tensor, teacher: nn.Module, images_NCHW: Tensor, temperature: float) -> Tensor:
    """Divergence of the softened outputs from a teacher's, in the mean of images, without a factor T^2."""
    with torch.no_grad():
        given = teacher(images_NCHW) / temperature
        wanted = given.log_softmax(-1)
    soft = logits_NY / temperature
    told = soft.log_softmax(-1)
    return functional.kl_div(told, wanted, reduction="batchmean", log_target=True)


def cropped(images_NCHW: Tensor, least_area: float, generator: torch.Generator) -> Tensor:
    """Square crops at random places, of `least_area` to all of an image's area evenly, grown back to its size."""
    if least_area == 1:
        return images_NCHW
    count = len(images_NCHW)
    part_N = torch.rand(count, generator=generator)
    area_N = torch.lerp(torch.tensor(least_area), torch.tensor(1.0), part_N)
    side_N11 = area_N.sqrt()[:, None, None]
    place_N21 = torch.rand(count, 2, 1, generator=generator)
    centred_N21 = 2 * place_N21 - 1
    shift_N21 = (1 - side_N11) * centred_N21
    square_N22 = side_N11 * torch.eye(2)
    maps_N23 = torch.cat([square_N22, shift_N21], -1)
    size = list(images_NCHW.shape)
    grid = functional.affine_grid(maps_N23, size, align_corners=False)
    return functional.grid_sample(images_NCHW, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def accuracy(network: nn.Module, data: Images) -> float:
    """Share of the images that a network tells rightly."""
    told_N = network(data.images_NCHW).argmax(-1)
    right_N = told_N == data.classes_N
    return float(right_N.double().mean())


class ConvNet(nn.Module):
    """Blocks of a convolution of 3 x 3, batch norm where asked, rectifier and means over 2 x 2; a linear map last.

    Images of side 2^blocks and multiples are taken; weights come from the generator, at He's scale.
    """

    def __init__(self, channels: int, side: int, classes: int, generator: torch.Generator, *, width: int = 16,
                 blocks: int = 2, norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        into = channels
        for _ in range(blocks):
            convolution = drawn(nn.Conv2d, generator, into, width, 3, padding=1)
            layers.append(convolution)
            into = width
            if norm:
                layers.append(nn.BatchNorm2d(width))
            layers += [nn.ReLU(), nn.AvgPool2d(2)]
        layers.append(nn.Flatten())
        self.features = nn.Sequential(*layers)
        left = side // 2**blocks
        flat = width * left**2
        self.readout = drawn(nn.Linear, generator, flat, classes)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Logits [N, Y]."""
        return self.readout(self.features(images_NCHW))


def drawn(kind: Callable[..., nn.Module], generator: torch.Generator, *sizes: int, **options: int) -> nn.Module:
    """A linear map or a convolution whose weights come from the generator, at He's scale, without a shift."""
    layer = nn.utils.skip_init(kind, *sizes, **options)
    weight = layer.get_parameter("weight")
    nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer


def two_brightnesses(generator: torch.Generator) -> Images:
    """Twenty images of 8 x 8 of each of two classes, one brighter than the other: a smallest example."""
    half = torch.arange(2)
    classes_N = half.repeat(20)
    noise = torch.rand(40, 1, 8, 8, generator=generator)
    level = classes_N[:, None, None, None]
    return Images(noise + level, classes_N)


def small_network(generator: torch.Generator, norm: bool = True) -> ConvNet:
    """A network for them."""
    return ConvNet(1, 8, 2, generator, width=4, norm=norm)
