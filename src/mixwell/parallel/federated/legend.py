"""LEGEND: low-rank adapters on so many of the last layers as a device is fast, of ranks that rise towards the output.

**Equation:** ranks r_1 <= .. <= r_L in steps as equal as whole numbers allow, sum r = budget. A device with depth l has
    the adapters of the last l layers; a round takes it t(l) = K (L f + 2 l f) + bytes(l) / w: K steps, f seconds a
    layer forward and twice that backward, which stops where adapters end; w bytes a second. Greedily: all have depth L;
    while t(l) is above the target, g times the mean of t(L), a device loses a layer, down to one. f and w are running
    means of what was measured, x <- m x + (1 - m) measured. Each layer's A and each layer's B are averaged over the
    devices that have the layer, weights n.
**Shapes:** A [r, I], B [O, r] by names that hold the layer's number.
**Reference:** Liu et al. 2024 (2412.20004).
**Differs:** the paper was read in its abstract and summaries; target and greedy order are ours. Layers that a device
    has no adapters of are as in the base for it. Times are simulated: a device's own, times e^(jitter z), z normal.
**Fails when:** devices are equally fast (all depths are L); what is to be learnt sits in the first layers; the mean of
    A times the mean of B is far from the mean of B A (starts with B = 0 and one A keep it near).
**Cost:** the server O(C L); a device no more than the target, where one layer allows it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_above, check_not_negative, check_rate
from mixwell.parallel.federated._example import CLASSES, COLUMNS, federation
from mixwell.parallel.federated.clients import Client, Table, Tensors, batches, size_bytes
from mixwell.parallel.federated.learning import Averaging, Learning, Task, change, descended, moved, together
from mixwell.parallel.federated.simulation import Answer, Answers, Turn

LAYER = re.compile(r"layers\.(\d+)\.")
PACE = "measured"  # seconds of a layer forward and bytes a second, as answers and states hold them


@dataclass(frozen=True, kw_only=True)
class Config(Learning):
    """Options of LEGEND, beside those of `Learning`."""

    target: float = 1.0  # g, of the mean time of a round at full depth
    keep: float = 0.5  # m, of the running means of what was measured, 0 up to 1
    jitter: float = 0.0  # of the times, in their logarithms
    even: bool = False  # whether every device has all layers, for comparison

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above(self, target=0)
        check_rate(self, "keep")
        check_not_negative(self, "jitter")


@dataclass(frozen=True)
class Device:
    """How fast a client is."""

    layer_s: float  # f, of one step forward through a layer
    bytes_per_s: float  # w, to the server and back
    most_layers: int | None = None  # adapters that its memory holds; None: all

    def __post_init__(self) -> None:
        if not min(self.layer_s, self.bytes_per_s) > 0:
            raise MixwellError(f"a device has layer_s={self.layer_s}, bytes_per_s={self.bytes_per_s}; expected numbers "
                               "above 0.")


def rising_ranks(layers: int, budget: int, rise: float = 1.0) -> list[int]:
    """Ranks from the first layer to the last that sum to a budget, the last ones higher by `rise` of the mean.

    rise: 0 = equal, 1 = from half the mean to one and a half of it. Raises `MixwellError` where there is no 1 for each.
    """
    if budget < layers or not 0 <= rise <= 2:
        raise MixwellError(f"a budget of {budget} came for {layers} layers, rise={rise}; expected at least 1 a layer, "
                           "and a rise of 0 to 2.")
    middle = budget / layers
    wanted = [middle]
    if layers > 1:
        last = layers - 1
        heights = [place / last - 0.5 for place in range(layers)]
        wanted = [middle * (1 + rise * height) for height in heights]
    return _whole(wanted, budget)


def _whole(wanted: Sequence[float], total: int) -> list[int]:
    """Whole numbers of 1 and more near those wanted, in their order, that sum to a total."""
    found = [max(1, math.floor(one)) for one in wanted]
    while sum(found) < total:
        missing = [want - own for want, own in zip(wanted, found)]
        last = max(range(len(found)), key=lambda place: (missing[place], place))
        found[last] += 1
    while sum(found) > total:
        largest = max(range(len(found)), key=lambda place: (found[place], -place))
        found[largest] -= 1
    return sorted(found)


def round_seconds(layer_s: float, bytes_per_s: float, depth: int, layers: int, steps: int, size: int) -> float:
    """t(l): forward through all layers, backward through the last ones, and `size` bytes each way."""
    forward = layers * layer_s
    backward = 2 * depth * layer_s
    return steps * (forward + backward) + 2 * size / bytes_per_s


def depths(paces: Sequence[tuple[float, float]], sizes: Sequence[int], steps: int, target: float) -> list[int]:
    """l of every device: as deep as its time stays within the target, one at least.

    paces: (f, w) of each; sizes: bytes of the adapters of each layer, the first layer first.
    """
    layers = len(sizes)

    def seconds(pace: tuple[float, float], depth: int) -> float:
        size = sum(sizes[layers - depth:])
        return round_seconds(*pace, depth, layers, steps, size)

    full = [seconds(pace, layers) for pace in paces]
    allowed = target * sum(full) / len(full)
    found = []
    for pace in paces:
        depth = layers
        while depth > 1 and seconds(pace, depth) > allowed:
            depth -= 1
        found.append(depth)
    return found


def layer_of(name: str) -> int:
    """The layer that a tensor is of, by its name (`layers.3.A`)."""
    found = LAYER.search(name)
    if found is None:
        raise MixwellError(f"{name} names no layer; expected 'layers.' and a number in it.")
    return int(found.group(1))


@method(
    title="LEGEND: adapter depths by device, ranks rising towards the output",
    paper="Adaptive Parameter-Efficient Federated Fine-Tuning on Heterogeneous Devices",
    year=2024,
)
class Legend(Averaging):
    """See the module's card. The state: the adapters, and `measured` [C, 2], f and w as the server knows them."""

    config: Config

    def __init__(self, task: Task, config: Config, devices: Sequence[Device]) -> None:
        super().__init__(task, config)
        self.devices = devices
        self.layers = 1 + max(map(layer_of, task.start))
        parts = [self.adapter(layer) for layer in range(self.layers)]
        self.sizes = list(map(size_bytes, parts))

    def adapter(self, layer: int) -> dict[str, Tensor]:
        """The tensors of a layer at their start."""
        pairs = self.task.start.items()
        return {name: tensor for name, tensor in pairs if layer_of(name) == layer}

    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """The task's adapters, and devices of which nothing is known (0)."""
        devices, count = len(self.devices), len(clients)
        if devices < count:
            raise MixwellError(f"{devices} devices came for {count} clients; expected one each.")
        unknown_C2 = torch.zeros(count, 2, dtype=torch.float64)
        return {**self.task.start, PACE: unknown_C2}

    def depth_of(self, state: Tensors, client: int) -> int:
        """How many layers a client adapts: all until everybody was measured once, and no more than fit its memory."""
        config = self.config
        deepest = self.devices[client].most_layers or self.layers
        measured_C2 = state[PACE]
        if config.even or not bool((measured_C2 > 0).all()):
            return min(deepest, self.layers)
        paces = [(one[0], one[1]) for one in measured_C2.tolist()]
        found = depths(paces, self.sizes, config.steps, config.target)
        return min(deepest, found[client])

    def message(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """The adapters of the last layers."""
        first = self.layers - self.depth_of(state, client.number)
        adapters = {}
        for name, tensor in state.items():
            if name != PACE and layer_of(name) >= first:
                adapters[name] = tensor
        return adapters

    def answer(self, client: Client, message: Tensors, memory: Tensors, turn: Turn) -> Answer:
        """The change of these adapters, and what the device measured."""
        config, rows = self.config, client.rows
        draws = turn.draws("batches", client.number)
        parts = batches(rows, config.batch_size, config.steps, draws)
        after = descended(self._within(message), message, parts, config.lr)
        step = change(after, message)
        pace = self._today(client.number, turn)
        seconds = self._seconds(pace, message)
        measured = torch.tensor(pace, dtype=torch.float64)
        return Answer({**step, PACE: measured}, len(rows), seconds=seconds)

    def _seconds(self, pace: tuple[float, float], adapters: Tensors) -> float:
        """That a round with these adapters takes."""
        depth = len({layer_of(name) for name in adapters})
        size = size_bytes(adapters)
        return round_seconds(*pace, depth, self.layers, self.config.steps, size)

    def _within(self, message: Tensors) -> Any:
        """The loss of some adapters, the others as they were at the start."""
        start, loss = self.task.start, self.task.loss
        missing = start.keys() - message.keys()
        others = {name: start[name] for name in missing}

        def within(tensors: Tensors, rows: Any) -> Tensor:
            return loss({**others, **tensors}, rows)

        return within

    def _today(self, client: int, turn: Turn) -> tuple[float, float]:
        """f and w of a device in this round."""
        device = self.devices[client]
        draws = turn.draws("jitter", client)
        drawn = torch.randn(2, generator=draws, dtype=torch.float64)
        logs = self.config.jitter * drawn
        slower, wider = logs.exp().tolist()
        return slower * device.layer_s, wider * device.bytes_per_s

    def merged(self, state: Tensors, answers: Answers, turn: Turn) -> Tensors:
        """Each layer moved by what those made of it who have it."""
        steps: dict[str, Tensor] = {}
        for layer in range(self.layers):
            names = self.adapter(layer).keys()
            said = [answer for answer in answers.values() if names <= answer.tensors.keys()]
            if said:
                own = [{name: answer.tensors[name] for name in names} for answer in said]
                weights = [answer.weight for answer in said]
                steps |= together(own, weights, self.config.aggregation)
        adapters = {name: tensor for name, tensor in state.items() if name != PACE}
        after = moved(adapters, steps, self.config.server_lr)
        return {**after, PACE: self._known(state[PACE], answers)}

    def _known(self, before_C2: Tensor, answers: Answers) -> Tensor:
        """What the server knows of the devices after their answers."""
        found_C2 = before_C2.clone()
        for own, answer in answers.items():
            fresh_2 = answer.tensors[PACE].clamp_min(1e-12)
            old_2 = before_C2[own]
            smoothed_2 = torch.lerp(fresh_2, old_2, self.config.keep)
            found_C2[own] = torch.where(old_2 > 0, smoothed_2, fresh_2)
        return found_C2


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five clients, each faster than the one before, and a frozen net of three layers with adapters."""
    given = federation(generator)
    base = 0.5 * torch.randn(3, COLUMNS, COLUMNS, generator=generator)
    head = torch.randn(CLASSES, COLUMNS, generator=generator)
    start = {}
    for layer, rank in enumerate(rising_ranks(3, 6)):
        start[f"layers.{layer}.A"] = 0.5 * torch.randn(rank, COLUMNS, generator=generator)
        start[f"layers.{layer}.B"] = torch.zeros(COLUMNS, rank)

    def loss(tensors: Tensors, rows: Table) -> Tensor:
        h = rows.x
        for layer, frozen in enumerate(base.to(h.dtype)):
            A, B = tensors[f"layers.{layer}.A"], tensors[f"layers.{layer}.B"]
            weight = frozen + B @ A
            h = h + (h @ weight.T).tanh()
        said_NC = F.linear(h, head.to(h.dtype))
        return F.cross_entropy(said_NC, rows.y)

    devices = [Device(1.0 / (1 + number), 1000.0) for number in range(len(given["clients"]))]
    return {"task": Task(start, loss), "clients": given["clients"], "devices": devices,
            "config": Config(steps=2, batch_size=4, lr=0.3)}
