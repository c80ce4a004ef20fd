"""Layer-wise distillation: each dense block is cut into experts that learn, with a router, to give what it gave.

**Equation:** E_i = units (i - 1) F / E + 1 .. i F / E;  minimise over router and experts, on the inputs x that the
    dense model's layer saw:  || sum_{i in top-k} g_i(x) E_i(x) - MLP(x) ||^2,  g = softmax over the chosen logits.
    W_down starts times E. With `mass`, a layer's k is the smallest whose gates carry that share on average.
**Shapes:** gate_up_proj [2 F, D] -> [E, 2 F / E, D]; down_proj [D, F] -> [E, D, F / E]; router.weight [E, D].
**Reference:** Kim et al. 2024, LaDiMo (2408.04278), sections 3.1-3.3.
**Differs:** rebuilt from the abstract, no code being public: slices in order, Adam with the rate falling in a line, all
    layers in the same passes, each on inputs of the dense model. The policy chooses k for each layer; the paper also
    a threshold.
**Fails when:** all layers are converted at once: later ones then read what earlier ones changed. See the receipt.
**Cost:** `passes` forward passes of the model, and of each block forward and backward, dense, on every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from mixwell.convert._parts import (
    DOWN,
    GATE_UP,
    SPARSE,
    Rewrite,
    channel,
    dense_example,
    dense_layers,
    expert_units,
    smallest_k,
    stacked,
)
from mixwell.convert._usage import expert_output
from mixwell.convert.calibration import Calibration, Needs
from mixwell.core.checkpoint import Checkpoint
from mixwell.core.errors import MixwellError
from mixwell.core.method import method
from mixwell.core.rng import normal
from mixwell.mixing import check_above, check_least


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of layer-wise distillation."""

    num_experts: int = 8  # E, at least 2
    k: int = 2  # experts per token, 1 to E; with mass the most
    mass: float | None = None  # share of the gates that a layer's own k carries, above 0, up to 1
    passes: int = 2  # over the text, at least 1
    lr: float = 1e-3  # above 0
    layers: tuple[int, ...] | None = None  # which layers, from 0; default all that are dense
    tokens: int = 16384  # of text learnt on

    def __post_init__(self) -> None:
        check_least(self, num_experts=2, k=1, passes=1, tokens=1)
        check_above(self, lr=0, mass=0)
        if self.k > self.num_experts or (self.mass or 0) > 1:
            raise ValueError(f"k is {self.k} of {self.num_experts} experts and mass {self.mass}; expected k up to "
                             "num_experts, mass up to 1")


def needs(config: Config) -> Needs:
    """Text, whose states are learnt on."""
    return Needs(tokens=config.tokens)


def promises(config: Config) -> dict[str, float]:
    """Nothing: what was learnt is near, not equal."""
    return {}


class Student:
    """One layer's experts and router, float32, while they learn."""

    def __init__(self, gate_up: Tensor, down: Tensor, config: Config, generator: torch.Generator) -> None:
        hidden = down.shape[1]
        size = hidden // config.num_experts
        slices = torch.arange(hidden).split(size)
        wide = gate_up.float(), config.num_experts * down.float()
        self.gate_up_E, self.down_E = stacked(expert_units(*wide, units) for units in slices)
        self.router_ED = normal((config.num_experts, down.shape[0]), 0.02, generator)
        self.parameters = [self.gate_up_E, self.down_E, self.router_ED]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def gates(self, x_TD: Tensor, k: int) -> Tensor:
        """Weights of the experts of each token [T, E], 0 where not chosen."""
        logits_TE = x_TD @ self.router_ED.T
        top = logits_TE.topk(k, dim=-1)
        weights = top.values.softmax(-1)
        nothing = torch.zeros_like(logits_TE)
        return nothing.scatter(1, top.indices, weights)

    def output(self, x_TD: Tensor, k: int) -> Tensor:
        """sum_i g_i E_i(x) [T, D]."""
        both_ETF = x_TD @ self.gate_up_E.transpose(1, 2)
        gate, up = both_ETF.chunk(2, dim=-1)
        hidden = silu(gate) * up
        out_ETD = hidden @ self.down_E.transpose(1, 2)
        gates_TE = self.gates(x_TD, k)
        return torch.einsum("etd,te->td", out_ETD, gates_TE)


def learn(checkpoint: Checkpoint, students: dict[int, Student], config: Config, calibration: Calibration) -> None:
    """Bring each student's output closer to its dense block's, in place."""
    parameters = [parameter for student in students.values() for parameter in student.parameters]
    optimizer = torch.optim.Adam(parameters, lr=config.lr)
    steps = config.passes * len(calibration.batches)
    done = 0
    for _ in range(config.passes):
        for seen in calibration.seen(checkpoint):
            optimizer.param_groups[0]["lr"] = config.lr * (1 - done / steps)
            losses = [miss(student, seen[layer].x_TD, _block(checkpoint, layer), config.k)
                      for layer, student in students.items()]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            done += 1


def miss(student: Student, x_TD: Tensor, block: tuple[Tensor, Tensor], k: int) -> Tensor:
    """Mean squared error of the student's output, over the mean square of the block's own."""
    target_TD = expert_output(x_TD, *block)
    error_TD = student.output(x_TD, k) - target_TD
    missed = error_TD.square().mean()
    size = target_TD.square().mean()
    return missed / size.clamp_min(1e-12)


def _block(checkpoint: Checkpoint, layer: int) -> tuple[Tensor, Tensor]:
    gate_up = checkpoint.tensors[channel(layer, GATE_UP)]
    down = checkpoint.tensors[channel(layer, DOWN)]
    return gate_up, down


@torch.no_grad()
def own_k(checkpoint: Checkpoint, students: dict[int, Student], config: Config,
          calibration: Calibration) -> dict[int, int]:
    """The k of each layer: `k`, or the smallest whose gates carry `mass` on average."""
    if config.mass is None:
        return dict.fromkeys(students, config.k)
    found: dict[int, Tensor] = {}
    for seen in calibration.seen(checkpoint):
        for layer, student in students.items():
            gates_TE = student.gates(seen[layer].x_TD, config.k)
            ordered = gates_TE.sort(dim=1, descending=True).values.sum(0)
            found[layer] = found.get(layer, 0) + ordered
    return {layer: smallest_k(weights, config.mass) for layer, weights in found.items()}


@method(
    title="Layer-wise distillation into experts",
    paper="LaDiMo: Layer-wise Distillation Inspired MoEfier",
    year=2024,
)
def layerwise(checkpoint: Checkpoint, config: Config, generator: torch.Generator,
              calibration: Calibration) -> Checkpoint:
    """Turn dense layers into mixtures that were taught to give what these gave.

    Raises `MixwellError` where the hidden units do not fall into so many experts.
    """
    work = Rewrite(checkpoint, "distilling layers")
    students = {}
    for layer in dense_layers(work.specs, config.layers, "distilling layers"):
        hidden = work.specs[layer]["hidden_dim"]
        if hidden % config.num_experts:
            raise MixwellError(f"layer {layer} has {hidden} hidden units; expected num_experts to be a divisor.")
        students[layer] = Student(*_block(checkpoint, layer), config, generator)
    learn(checkpoint, students, config, calibration)
    for layer, k in own_k(checkpoint, students, config, calibration).items():
        _place(work, layer, students[layer], k, config)
    return work.result()


def _place(work: Rewrite, layer: int, student: Student, k: int, config: Config) -> None:
    """Put what a student learnt in its block's place."""
    gate_up, down = work.take_block(layer)
    learnt = student.gate_up_E.detach(), student.down_E.detach()
    work.put_block(layer, (learnt[0].to(gate_up.dtype), learnt[1].to(down.dtype)))
    rows_ED = student.router_ED.detach()
    work.put(layer, "router.weight", rows_ED)
    router = {"method": "top_k", "k": k, "renormalise": True} | ({"constant": True} if k == 1 else {})
    size = student.down_E.shape[2]
    work.specs[layer] = {"method": SPARSE, "num_experts": config.num_experts, "hidden_dim": size, "router": router}


def example(generator: torch.Generator) -> dict[str, Any]:
    """A dense model of two layers, four experts of two units in each."""
    checkpoint = dense_example(generator)
    config = Config(num_experts=4, passes=1, tokens=48)
    return {"checkpoint": checkpoint, "config": config, "generator": generator}
