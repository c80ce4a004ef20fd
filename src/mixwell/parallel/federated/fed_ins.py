"""FedIns: a pool of scale-and-shift experts beside a frozen network, chosen row by row, pools averaged over clients.

**Equation:** query q(x): features of the frozen network as it is. The k keys of the pool nearest to q by cosine are
    x's; at every point y = gamma * y + beta with the mean gamma and beta of the k, and logits = (mean of the k heads)
    applied to the features so made. Loss: (1 - l) cross-entropy + l (1 - sum of the k cosines). Server: plain averaging
    of keys, gammas, betas and heads, slot by slot.
**Shapes:** features [N, F]; keys [E, F]; gamma, beta of a point [E, D]; heads [E, C, F], biases [E, C].
**Reference:** Feng et al. 2023 (2308.06051); the released code (`train_cifar_tiny.py`).
**Differs:** the choice is each row's own; the released code averages it over the batch, and so runs with batches of one
    row. The mean over clients is weighed by rows (the code's clients count alike). One network gives query and
    features.
**Fails when:** the frozen features do not tell the kinds of rows apart; slots that few clients use are dragged back to
    where they were by those that do not.
**Cost:** two passes of the frozen network; E (2 D + F (C + 1) + C) numbers a point and way, not the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.mixing import check_least, check_rate
from mixwell.parallel.federated._example import CLASSES, COLUMNS, federation
from mixwell.parallel.federated.clients import Client, Tensors
from mixwell.parallel.federated.learning import Averaging, Learning, Task, below

SPREAD = 0.02  # of the draws at the start


@dataclass(frozen=True, kw_only=True)
class Config(Learning):
    """Options of FedIns, beside those of `Learning`."""

    lr: float = 0.01
    pool: int = 25  # E
    top_k: int = 3  # k
    key_share: float = 0.1  # l, of the loss that draws keys to queries, 0 up to 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, pool=1, top_k=1)
        check_rate(self, "key_share")
        k, pool = self.top_k, self.pool
        if k > pool:
            raise ValueError(f"top_k is {k} of a pool of {pool}; expected no more than there are")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen network whose call gives features [N, F], and the modules in it behind which is scaled and shifted.

    points: names of modules that give tensors [N, ..., D]; classes: how many the heads tell apart.
    """

    network: nn.Module
    points: tuple[str, ...]
    classes: int

    def __post_init__(self) -> None:
        known = dict(self.network.named_modules())
        strange = [point for point in self.points if point not in known]
        if strange:
            raise MixwellError(f"the network has no module {strange[0]!r}; it has {', '.join(filter(None, known))}.")

    def features(self, x: Tensor) -> Tensor:
        """Of the network as it is [N, F]."""
        with torch.no_grad():
            return self.network(x)

    def changed(self, x: Tensor, scales: Tensors, shifts: Tensors) -> Tensor:
        """Features [N, F] with what each point gives scaled and shifted, row by row: [N, D] by the point's place."""
        with self._hooks(scales, shifts):
            return self.network(x)

    @contextmanager
    def _hooks(self, scales: Tensors, shifts: Tensors) -> Iterator[None]:
        handles = []
        for place, point in enumerate(self.points):
            module = self.network.get_submodule(point)
            hook = _turning(scales[str(place)], shifts[str(place)])
            handles.append(module.register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def widths(self, x: Tensor) -> list[int]:
        """D of each point."""
        seen: dict[str, int] = {}
        handles = []
        for point in self.points:
            module = self.network.get_submodule(point)
            handles.append(module.register_forward_hook(_noting(seen, point)))
        self.network(x)
        for handle in handles:
            handle.remove()
        return [seen[point] for point in self.points]


def _turning(scale_ND: Tensor, shift_ND: Tensor) -> Any:
    def hook(module: nn.Module, given: Any, y: Tensor) -> Tensor:
        between = [1] * (y.ndim - 2)
        shape = len(y), *between, y.shape[-1]
        scaled = y * scale_ND.view(shape)
        return scaled + shift_ND.view(shape)

    return hook


def _noting(seen: dict[str, int], point: str) -> Any:
    def hook(module: nn.Module, given: Any, y: Tensor) -> None:
        seen[point] = y.shape[-1]

    return hook


def chosen(query_NF: Tensor, keys_EF: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Each row's slots [N, K] and its cosines to their keys [N, K]."""
    unit_NF = F.normalize(query_NF, dim=1)
    unit_EF = F.normalize(keys_EF, dim=1)
    cosine_NE = unit_NF @ unit_EF.T
    found = cosine_NE.topk(top_k, dim=1)
    return found.indices, found.values


def mean_of(slots: Tensor, indices_NK: Tensor) -> Tensor:
    """The mean [N, ...] of each row's slots [E, ...]."""
    return slots[indices_NK].mean(1)


@method(
    title="FedIns: a pool of scale-and-shift experts chosen by instance",
    paper="Towards Instance-adaptive Inference for Federated Learning",
    year=2023,
    tags={"rules"},
)
class FedIns(Averaging):
    """See the module's card. The state: `keys`, `scale.0`, `shift.0`, ..., `head.weight` and `head.bias`."""

    config: Config

    def __init__(self, task: Backbone, config: Config) -> None:
        self.backbone = task
        super().__init__(Task({}, self.loss), config)

    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """Slots near no change, and heads and keys near zero."""
        x = clients[0].rows.x[:1]
        features_1F = self.backbone.features(x)
        E, C, width = self.config.pool, self.backbone.classes, features_1F.shape[1]

        def drawn(*shape: int) -> Tensor:
            normal = torch.randn(shape, generator=generator)
            return SPREAD * normal.to(features_1F.dtype)

        state = {"keys": drawn(E, width), "head.weight": drawn(E, C, width)}
        state["head.bias"] = features_1F.new_zeros(E, C)
        for place, D in enumerate(self.backbone.widths(x)):
            state[f"scale.{place}"] = 1 + drawn(E, D)
            state[f"shift.{place}"] = drawn(E, D)
        return state

    def logits(self, tensors: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, C], and the cosines [N, K] to the chosen keys."""
        query_NF = self.backbone.features(x)
        indices_NK, cosine_NK = chosen(query_NF, tensors["keys"], self.config.top_k)
        own = {name: mean_of(slots, indices_NK) for name, slots in tensors.items() if name != "keys"}
        scales, shifts = below("scale", own), below("shift", own)
        features_NF = self.backbone.changed(x, scales, shifts)
        head_NCF, bias_NC = own["head.weight"], own["head.bias"]
        said_NC = torch.einsum("ncf,nf->nc", head_NCF, features_NF)
        return said_NC + bias_NC, cosine_NK

    def loss(self, tensors: Tensors, rows: Any) -> Tensor:
        """The mean of cross-entropy and of what draws keys to queries."""
        said_NC, cosine_NK = self.logits(tensors, rows.x)
        missed = F.cross_entropy(said_NC, rows.y)
        away = 1 - cosine_NK.sum(1).mean()
        share = self.config.key_share
        return (1 - share) * missed + share * away


class _Layer(nn.Module):
    """A frozen linear map, for the example."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        drawn = torch.randn(outputs, inputs, generator=generator)
        self.register_buffer("weight", 0.5 * drawn)

    def forward(self, x_ND: Tensor) -> Tensor:
        return x_ND @ self.get_buffer("weight").T


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five clients and a pool of four beside a network of two layers."""
    clients = federation(generator)["clients"]
    layers = [_Layer(COLUMNS, 6, generator), nn.ReLU(), _Layer(6, 5, generator)]
    network = nn.Sequential(*layers)
    backbone = Backbone(network, ("0", "2"), CLASSES)
    config = Config(pool=4, top_k=2, steps=3, batch_size=4, lr=0.1)
    return {"task": backbone, "clients": clients, "config": config}
