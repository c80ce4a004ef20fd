"""ProWD: clients of unequal bit widths; the server makes few-bit weights into many-bit ones step by step, and chooses.

**Equation:** a client of b bits trains through Q_b(w) (straight-through) and sends its codes; Q_b(w) = s round(w / s)
    with codes up to 2^(b-1) - 1, s of least squared error. The server lifts w^(b) to w^(2b) = phi_b(w^(b)), 2b to 4b,
    up to 32 bits, phi_b(x) = x + a small network's change, on blocks of a flattened matrix in units of its root mean
    square; it learns phi on its own last full-precision w, from phi(Q_b(w)) towards Q_2b(w) and in the end towards w.
    Chosen: an entry of a lifted matrix stays where its sign is that of h, the mean of the highest width's, and it is
    within r root mean squares of h from it; elsewhere h stands in. Then the mean over all, weights n, is sent as Q_b to
    each.
**Shapes:** matrices [O, I] by name; what has fewer axes stays in full precision. Codes are packed, 8 / b to a byte.
**Reference:** Yoon et al. 2022 (2202.11453).
**Differs:** the paper was read in its abstract: the network, its losses and the choice of entries are ours, and the
    paper's distillation on data that the server holds is left out. `lift` "scale" puts in the network's place the
    factor that gives a matrix the root mean square of h.
**Fails when:** clients of few bits know nothing that the others do not: h alone is then better. Where nobody has 32
    bits the last w is an old mean.
**Cost:** b bits a weight and way; server_steps of a network of a block's width at the server a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mixwell.core.method import method
from mixwell.mixing import check_above, check_least
from mixwell.parallel.federated._example import federation
from mixwell.parallel.federated.clients import Client, Tensors, batches
from mixwell.parallel.federated.codes import WIDTHS, expanded, nearest, packed
from mixwell.parallel.federated.learning import Learning, Loss, Task, change, descended, moved, together
from mixwell.parallel.federated.simulation import Answer, Answers, Federated, Turn

FULL = 32


@dataclass(frozen=True, kw_only=True)
class Config(Learning):
    """Options of ProWD, beside those of `Learning`."""

    bits: tuple[int, ...] = field(default=(2, 4, 8, 32))  # of client 0, 1, ...; from the first again after the last
    lift: Literal["network", "scale", "none"] = "network"  # what few-bit matrices are made into
    agreement: float = 1.0  # r; 0: every entry stays
    block: int = 16  # weights that phi sees at once
    hidden: int = 32  # units of phi
    server_steps: int = 30  # of phi in a round, on blocks of the server's model
    server_rate: float = 0.01  # of these steps, by Adam

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, agreement=0, block=1, hidden=1, server_steps=0)
        check_above(self, server_rate=0)
        known = {*WIDTHS, FULL}
        if not self.bits or not known.issuperset(self.bits):
            raise ValueError(f"bits is {self.bits}; expected some of 2, 4, 8 and 32")

    def bits_of(self, client: int) -> int:
        """The width of a client by its number."""
        return self.bits[client % len(self.bits)]


def through(loss: Loss, bits: int) -> Loss:
    """The loss of tensors as they are at a bit width, with the gradient of what they were."""
    if bits == FULL:
        return loss

    def rounded(tensors: Tensors, rows: Any) -> Tensor:
        seen = dict(tensors)
        for name, tensor in tensors.items():
            if tensor.ndim > 1:
                fixed = tensor.detach()
                away = nearest(fixed, bits) - fixed
                seen[name] = tensor + away
        return loss(seen, rows)

    return rounded


def agreeing(lifted: Tensor, h: Tensor, agreement: float) -> Tensor:
    """The lifted matrix with h in the place of entries that do not agree with it."""
    if agreement == 0:
        return lifted
    same_sign = lifted.sign() == h.sign()
    near = (lifted - h).abs() <= agreement * size_of(h)
    return torch.where(same_sign & near, lifted, h)


def size_of(matrix: Tensor) -> Tensor:
    """Its root mean square."""
    return matrix.square().mean().sqrt()


def rescaled(matrix: Tensor, h: Tensor) -> Tensor:
    """A matrix with the root mean square of another."""
    own = size_of(matrix).clamp_min(1e-12)
    return matrix * (size_of(h) / own)


class Dequantiser:
    """phi of each width below full precision: a network of one hidden layer a width."""

    def __init__(self, config: Config, generator: torch.Generator, dtype: torch.dtype) -> None:
        self.config = config
        self.parts: dict[str, Tensor] = {}
        shape = config.hidden, config.block
        scale = config.block**-0.5
        for bits in WIDTHS:
            into = torch.randn(shape, generator=generator, dtype=dtype)
            self.parts[f"{bits}.in"] = scale * into
            self.parts[f"{bits}.out"] = torch.zeros_like(into.T)

    def lifted(self, blocks_NB: Tensor, bits: int, parts: Tensors) -> list[Tensor]:
        """Blocks in twice as many bits, in four times as many, ..., in full precision."""
        first = WIDTHS.index(bits)
        found = []
        for width in WIDTHS[first:]:
            hidden_NH = F.linear(blocks_NB, parts[f"{width}.in"]).relu()
            moved_NB = F.linear(hidden_NH, parts[f"{width}.out"])
            blocks_NB = blocks_NB + moved_NB
            found.append(blocks_NB)
        return found

    def fit(self, matrices: Sequence[Tensor]) -> None:
        """Learn the steps up from a model in full precision."""
        widths = (*WIDTHS, FULL)
        goals = {bits: self._all_blocks(matrices, bits) for bits in widths}
        leaves = {name: part.clone().requires_grad_() for name, part in self.parts.items()}
        optimizer = torch.optim.Adam(leaves.values(), lr=self.config.server_rate)
        with torch.enable_grad():
            for _ in range(self.config.server_steps):
                missed = self._missed(goals, leaves)
                optimizer.zero_grad()
                missed.backward()
                optimizer.step()
        self.parts = {name: leaf.detach() for name, leaf in leaves.items()}

    def _all_blocks(self, matrices: Sequence[Tensor], bits: int) -> Tensor:
        """Blocks of all matrices at a width, in units of what they are in full precision."""
        found = []
        for matrix in matrices:
            seen = matrix if bits == FULL else nearest(matrix, bits)
            found.append(self.blocks(seen, size_of(matrix)))
        return torch.cat(found)

    def _missed(self, goals: dict[int, Tensor], leaves: Tensors) -> Tensor:
        """Squared error of the first step from every width, and of the last."""
        total = goals[FULL].new_zeros(())
        for bits in WIDTHS:
            steps = self.lifted(goals[bits], bits, leaves)
            above = goals.get(2 * bits, goals[FULL])
            total = total + F.mse_loss(steps[0], above)
            total = total + F.mse_loss(steps[-1], goals[FULL])
        return total

    def blocks(self, matrix: Tensor, size: Tensor | None = None) -> Tensor:
        """Blocks [N, B] of a matrix in units of a root mean square, its own by default; zeros fill the last."""
        unit = size_of(matrix) if size is None else size
        flat_P = matrix.flatten() / unit.clamp_min(1e-12)
        block = self.config.block
        missing = -len(flat_P) % block
        filled_P = F.pad(flat_P, (0, missing))
        return filled_P.view(-1, block)

    def __call__(self, matrix: Tensor, bits: int, size: Tensor) -> Tensor:
        """A matrix of few bits in full precision; `size` is the root mean square that its blocks are told in."""
        blocks_NB = self.blocks(matrix, size)
        *_, whole_NB = self.lifted(blocks_NB, bits, self.parts)
        flat_P = whole_NB.flatten()
        count = matrix.numel()
        whole = flat_P[:count].view_as(matrix)
        return size * whole


@method(
    title="ProWD: bit widths that differ, lifted step by step",
    paper="Bitwidth Heterogeneous Federated Learning with Progressive Weight Dequantization",
    year=2022,
)
class ProWD(Federated):
    """See the module's card. The state holds the model in full precision."""

    def __init__(self, task: Task, config: Config) -> None:
        self.task = task
        self.config = config

    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """The task's tensors."""
        return dict(self.task.start)

    def model(self, state: Tensors) -> Tensors:
        """The state."""
        return state

    def message(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """The model at the client's width."""
        return packed(state, self.config.bits_of(client.number))

    def before(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """The same."""
        return self.message(state, client, turn)

    def answer(self, client: Client, message: Tensors, memory: Tensors, turn: Turn) -> Answer:
        """The model after steps through its width."""
        config, rows = self.config, client.rows
        bits = config.bits_of(client.number)
        draws = turn.draws("batches", client.number)
        parts = batches(rows, config.batch_size, config.steps, draws)
        loss = through(self.task.loss, bits)
        before = expanded(message, bits, self.task.start)
        after = descended(loss, before, parts, config.lr)
        return Answer(packed(after, bits), len(rows))

    def merged(self, state: Tensors, answers: Answers, turn: Turn) -> Tensors:
        """A step towards the mean of what was chosen."""
        config = self.config
        models: dict[int, Tensors] = {}
        weights: dict[int, float] = {}
        for own, answer in answers.items():
            models[own] = expanded(answer.tensors, config.bits_of(own), self.task.start)
            weights[own] = answer.weight
        most = max(map(config.bits_of, answers))
        high = [own for own in answers if config.bits_of(own) == most]
        h = self._mean(models, weights, high) if most == FULL else state
        few = [own for own in answers if config.bits_of(own) < FULL]
        lift = self._lifting(h, turn) if few else None
        for own in few:
            bits = config.bits_of(own)
            models[own] = self._chosen(models[own], h, bits, lift)
        mean = self._mean(models, weights, list(answers))
        return moved(state, change(mean, state), config.server_lr)

    def _mean(self, models: dict[int, Tensors], weights: dict[int, float], chosen: Sequence[int]) -> dict[str, Tensor]:
        said = [models[own] for own in chosen]
        counts = [weights[own] for own in chosen]
        return together(said, counts, self.config.aggregation)

    def _lifting(self, h: Tensors, turn: Turn) -> Dequantiser | None:
        """The dequantiser, learnt from the model that is known best."""
        matrices = [tensor for tensor in h.values() if tensor.ndim > 1]
        if self.config.lift != "network" or not matrices:
            return None
        made = Dequantiser(self.config, turn.draws("lift"), matrices[0].dtype)
        made.fit(matrices)
        return made

    def _chosen(self, model: Tensors, h: Tensors, bits: int, lift: Dequantiser | None) -> dict[str, Tensor]:
        """A client's model in full precision, as far as it agrees with the best known one."""
        found = dict(model)
        for name, tensor in model.items():
            if tensor.ndim < 2:
                continue
            if lift is not None:
                tensor = lift(tensor, bits, size_of(h[name]))
            elif self.config.lift == "scale":
                tensor = rescaled(tensor, h[name])
            found[name] = agreeing(tensor, h[name], self.config.agreement)
        return found


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five clients, of 2, 4, 8, 32 and 2 bits."""
    config = Config(steps=3, batch_size=4, block=4, hidden=8, server_steps=5)
    return {**federation(generator), "config": config}
