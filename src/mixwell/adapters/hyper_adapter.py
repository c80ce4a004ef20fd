"""Prototype-based HyperAdapter: a network writes each layer's adapter for a task from the task's prototype.

**Equation:** y = F(x) + U relu(V x + b) + c, F the frozen block; each of V, b, U, c is a linear head of
    h = norm(W_2 relu(W_1 [k_t; l])), k_t the task's prototype, l the layer's embedding.
    z = R_2 relu(R_1 mean x) of a row's instruction, x what comes into the first target; s = cos / temperature.
    instance loss: minus the mean over rows i, and over rows p of i's task, of
    log(exp s(z_i, z_p) / sum_{a != i} exp s(z_i, z_a));
    prototype loss: -s(z_i, k_own) + log sum_{other t} exp s(z_i, k_t), mean over rows.
    Rows without a label take the task whose prototype is nearest by cosine to z.
**Shapes:** x [T, D]; V [R, D], U [D, R]; prototypes [N, H], layers [L, H]; heads of V and U [R D, H].
**Reference:** Zhao et al. 2023, Prototype-based HyperAdapter (2310.11670), and its released code.
**Differs:** there, z is of an encoder's states and the adapters stand in the decoder; here z is of what comes into the
    first target, which no adapter has touched: take upper layers as targets to have it read deeper. Rows whose task is
    not said are sent to the nearest prototype; there, the task is always said and retrieval serves new tasks
    (`start_task`). As there, heads start within 1e-3 sqrt(3 / (H fan)), so that blocks give the base's to about 1e-3.
**Fails when:** tasks share nothing, or examples are plenty: adapters of their own do as well then.
**Cost:** 4 D R a token; 2 R D H for each matrix, layer and task of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixwell.adapters._parts import LayerAdapter, product, uniform
from mixwell.adapters._routed import check_width, of_instruction, width_of
from mixwell.adapters.attached import Attached
from mixwell.adapters.targets import Target
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.routing import Context
from mixwell.experts.layers.swiglu import Config as Block
from mixwell.experts.layers.swiglu import SwiGLU
from mixwell.mixing import Mixed, check_above, check_least, check_not_negative, normal_parameter

SMALL = 1e-3  # factor on a head's start


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the HyperAdapter."""

    num_tasks: int = 4  # N; labels are 0 to num_tasks - 1
    rank: int = 8  # R, hidden width of an adapter
    code: int = 64  # H, of prototypes, layers and z
    hidden: int = 128  # of the network that writes and of the one that retrieves
    instances: float = 0.1  # coefficient of the instance loss
    prototypes: float = 0.1  # coefficient of the prototype loss
    temperature: float = 0.1  # of both
    until: int | None = None  # id of the token that ends a row's instruction; None: all of the row is read

    def __post_init__(self) -> None:
        check_least(self, num_tasks=1, rank=1, code=1, hidden=1, until=0)
        check_not_negative(self, "instances", "prototypes")
        check_above(self, temperature=0)


def instance_loss(z_BH: Tensor, tasks_B: Tensor, temperature: float) -> Tensor:
    """Supervised contrast of rows; those that are alone in their task are left out, and 0 where all are."""
    unit = F.normalize(z_BH, dim=1)
    s_BB = unit @ unit.T / temperature
    itself = torch.eye(len(z_BH), dtype=torch.bool, device=z_BH.device)
    logs_BB = s_BB.masked_fill(itself, -torch.inf).log_softmax(1)
    alike = (tasks_B[:, None] == tasks_B) & ~itself
    counts_B = alike.sum(1)
    there = counts_B > 0
    if not bool(there.any()):
        return z_BH.sum() * 0
    summed_B = logs_BB.masked_fill(~alike, 0).sum(1)
    means = summed_B[there] / counts_B[there]
    return -means.mean()


def prototype_loss(z_BH: Tensor, prototypes_NH: Tensor, tasks_B: Tensor, temperature: float) -> Tensor:
    """How near each row is to its task's prototype against the others; the own one is not among those summed."""
    s_BN = likeness(z_BH, prototypes_NH) / temperature
    own_B = s_BN.gather(1, tasks_B[:, None]).squeeze(1)
    if s_BN.shape[1] == 1:
        return -own_B.mean()
    others = s_BN.scatter(1, tasks_B[:, None], -torch.inf).logsumexp(1)
    return (others - own_B).mean()


def likeness(z_BH: Tensor, prototypes_NH: Tensor) -> Tensor:
    """Cosines of rows and prototypes [B, N]."""
    rows = F.normalize(z_BH, dim=1)
    prototypes = F.normalize(prototypes_NH, dim=1)
    return rows @ prototypes.T


class Map(nn.Module):
    """x W^T + b, with W uniform within a bound and b at 0."""

    def __init__(self, outputs: int, inputs: int, bound: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(uniform((outputs, inputs), bound, generator))
        self.bias = nn.Parameter(self.weight.new_zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O], in the map's own type."""
        own = x.to(self.weight.dtype)
        return F.linear(own, self.weight, self.bias)


class Writer(nn.Module):
    """What all layers share: prototypes, layer embeddings, the network that writes adapters, the one that retrieves."""

    def __init__(self, config: Config, layers: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        code, hidden, rank = config.code, config.hidden, config.rank
        self.prototypes = normal_parameter((config.num_tasks, code), generator, 1.0)
        self.layers = normal_parameter((layers, code), generator, 1.0)
        self.into = Map(hidden, 2 * code, (2 * code) ** -0.5, generator)
        self.out_of = Map(code, hidden, hidden**-0.5, generator)
        self.norm = nn.LayerNorm(code, eps=1e-6, device=generator.device)
        sizes = {"down": (rank * width, width), "down_bias": (rank, 1), "up": (width * rank, rank),
                 "up_bias": (width, 1)}
        heads = {name: Map(count, code, SMALL * (3 / (code * fan)) ** 0.5, generator)
                 for name, (count, fan) in sizes.items()}
        self.heads = nn.ModuleDict(heads)
        self.reads = Map(hidden, width, width**-0.5, generator)
        self.codes = Map(code, hidden, hidden**-0.5, generator)

    def written(self, layer: int, task: int) -> dict[str, Tensor]:
        """The adapter of a layer for a task, as vectors."""
        both = torch.cat((self.prototypes[task], self.layers[layer]))
        hidden = self.into(both).relu()
        h = self.norm(self.out_of(hidden))
        return {name: head(h) for name, head in self.heads.items()}

    def code_of(self, means_BD: Tensor) -> Tensor:
        """z of rows [B, H]."""
        hidden = self.reads(means_BD).relu()
        found: Tensor = self.codes(hidden)
        return found


@method(
    title="HyperAdapter written from task prototypes",
    paper="Prototype-based HyperAdapter for Sample-Efficient Multi-task Tuning",
    year=2023,
    tags={"inexact-start"},
)
class HyperAdapter(LayerAdapter):
    """An adapter beside a block, written for the task of each row; see the module's card."""

    targets = ("channel_mixer",)
    config: Config

    @classmethod
    def build(cls, targets: Sequence[Target], config: Config, generator: torch.Generator) -> Sequence[Self]:
        """An adapter for each target, one writer for all."""
        width = width_of(targets[0])
        writer = Writer(config, len(targets), width, generator)
        places = enumerate(targets)
        return [cls(target, config, generator, writer, place) for place, target in places]

    def __init__(self, target: Target, config: Config, generator: torch.Generator, writer: Writer | None = None,
                 place: int = 0) -> None:
        super().__init__(target, config)
        width = width_of(target)
        check_width(config.rank, width, target)
        self.place = place
        self.writer = writer or Writer(config, 1, width, generator)

    def forward(self, x_TD: Tensor, context: Context) -> Mixed:
        """[T, D] -> [T, D]; `context.labels_T` are the tasks, which one task alone does not need."""
        mixed: Mixed = self.base(x_TD, context)
        tasks_B = self.tasks(x_TD, context)
        length = len(x_TD) // max(1, len(tasks_B))
        tasks_T = tasks_B.repeat_interleave(length)
        more = torch.zeros_like(mixed.y_TD)
        for task in tasks_B.unique().tolist():
            own = tasks_T == task
            change = self.adapted(x_TD[own], task)
            more = more.masked_scatter(own[:, None], change)
        if context.losses and not self.place:
            self._report(x_TD, tasks_B, context)
        return mixed._replace(y_TD=mixed.y_TD + more)

    def adapted(self, x_ND: Tensor, task: int) -> Tensor:
        """What the adapter of a task adds to rows [N, D]."""
        own = self.writer.written(self.place, task)
        rank, width = self.config.rank, x_ND.shape[1]
        down, up = own["down"].view(rank, width), own["up"].view(width, rank)
        hidden = product(x_ND, down) + own["down_bias"].to(x_ND.dtype)
        out = product(hidden.relu(), up)
        return out + own["up_bias"].to(x_ND.dtype)

    def tasks(self, x_TD: Tensor, context: Context) -> Tensor:
        """The task of each row [B]: as labelled, or the nearest; `MixwellError` where that cannot be."""
        rows, length = context.batch_shape or (1, len(x_TD))
        if self.config.num_tasks == 1:
            return torch.zeros(rows, dtype=torch.long, device=x_TD.device)
        if context.labels_T is not None:
            return _checked(context.labels_T.view(rows, length)[:, 0], self.config.num_tasks)
        if self.training:
            raise MixwellError(f"the HyperAdapter knows {self.config.num_tasks} tasks and trains without labels; give "
                               "labels_B.")
        if context.kept is None:
            raise MixwellError("the HyperAdapter keeps the task that it found for a row, and nothing is kept here; "
                               "give labels_B.")
        if self.writer not in context.kept:
            z_BH = self.codes(x_TD, context)
            context.kept[self.writer] = likeness(z_BH, self.writer.prototypes).argmax(1)
        found: Tensor = context.kept[self.writer]
        return found

    def codes(self, x_TD: Tensor, context: Context) -> Tensor:
        """z of each row [B, H], of what comes into the first target."""
        rows, length = context.batch_shape or (1, len(x_TD))
        own_BS = torch.ones(rows, length, dtype=torch.bool, device=x_TD.device)
        if context.token_ids_T is not None:
            own_BS = of_instruction(context.token_ids_T.view(rows, length), self.config.until)
        if context.mask_T is not None:
            own_BS = own_BS & context.mask_T.view(rows, length)
        x_BSD = x_TD.view(rows, length, -1).to(self.writer.prototypes.dtype)
        summed = (x_BSD * own_BS[..., None]).sum(1)
        counts = own_BS.sum(1).clamp_min(1)
        return self.writer.code_of(summed / counts[:, None])

    def _report(self, x_TD: Tensor, tasks_B: Tensor, context: Context) -> None:
        """Hand the two contrastive losses on."""
        config = self.config
        z_BH = self.codes(x_TD, context)
        alike = instance_loss(z_BH, tasks_B, config.temperature)
        near = prototype_loss(z_BH, self.writer.prototypes, tasks_B, config.temperature)
        aux = config.instances * alike + config.prototypes * near
        self.report({"adapter_instances": alike, "adapter_prototypes": near}, aux)


def _checked(tasks_B: Tensor, num_tasks: int) -> Tensor:
    low, high = (int(tasks_B.min()), int(tasks_B.max())) if len(tasks_B) else (0, 0)
    if low < 0 or high >= num_tasks:
        raise MixwellError(f"the HyperAdapter knows the tasks 0 to {num_tasks - 1} and got {low} to {high}; set "
                           "num_tasks.")
    return tasks_B


@torch.no_grad()
def start_task(attached: Attached, tokens_BT: Tensor, task: int) -> int:
    """Give a task that has not been trained the prototype nearest to these rows' mean z; which one, is the answer."""
    first: HyperAdapter = next(iter(attached.adapters.values()))
    prototypes = first.writer.prototypes
    if not 0 <= task < len(prototypes) or len(prototypes) < 2:
        raise MixwellError(f"task is {task}; expected one of 0 to {len(prototypes) - 1}, and another to start from.")
    found: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
        x_TD, context = given
        z_BH = first.codes(x_TD, context)
        found.append(z_BH)

    hook = first.target.owner.register_forward_pre_hook(keep)
    try:
        labels_B = torch.full((len(tokens_BT),), task)
        attached.model(tokens_BT, labels_B=labels_B)
    finally:
        hook.remove()
    near_N = likeness(found[0].mean(0, keepdim=True), prototypes)[0]
    near_N[task] = -torch.inf
    like = int(near_N.argmax())
    prototypes[task] = prototypes[like]
    return like


def example(generator: torch.Generator) -> dict[str, Any]:
    """One task, an adapter of width two at a block of width six."""
    owner = SwiGLU(6, Block(hidden_dim=5), generator)
    return {"target": Target("channel_mixer", owner), "config": Config(num_tasks=1, rank=2, code=3, hidden=4)}
