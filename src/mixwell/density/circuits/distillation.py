"""Latent variable distillation: a circuit's hidden states are first read off a teacher's features, then let go.

**Equation:** every patch i of a row has teacher features phi_i(x); z_i is their cluster (k-means). Leaves p(x_f | z_i)
and a tree p(z) (Chow-Liu over z, counts) maximise the completed likelihood sum_n log p(x_n, z_n), which is at most
sum_n log p(x_n); then EM on log p(x) lets the circuit pass its teacher. Growing: every cluster splits in two (2-means
within it), everything is fitted again, until held-out likelihood gains less than `min_gain` or `max_states` is met.

**Shapes:** x (N, F) with categories 0, ..., V - 1; node_F (F,) the patch of every feature; features (N, D, P) of D
patches; log densities (N,), in nats.

**Reference:** Liu, Liu, Van den Broeck, Liang (2023), Understanding the Distillation Process from Deep Generative
Models to Tractable Probabilistic Circuits, ICML, arXiv:2302.08086, sections 3 to 5; Liu, Zhang, Van den Broeck (2022),
Scaling Up Probabilistic Circuits by Latent Variable Distillation.

**Differs:** written from memory of the paper. One latent tree with features independent given their patch's state,
instead of hidden Chow-Liu trees inside patches. Growth doubles all patches' clusters at once.

**Fails when:** the teacher's features do not predict the patch: the start is then no better than chance.

**Cost:** k-means O(N D P K) and O(N (F K + D K^2)) an EM step, for every size tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.circuits.trees import TreeCircuit, chow_liu


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of latent variable distillation."""

    n_states: int = 8  # K to begin with
    max_states: int = 8  # K at most; beyond n_states the latents grow by doubling
    n_categories: int = 2  # V
    em_steps: int = 20  # of finetuning, for every size
    smoothing: float = 0.01  # added to every count
    valid_share: float = 0.1  # of the rows, held out to stop growth
    min_gain: float = 0.0  # of held-out log-likelihood for growth to go on, in nats a row

    def __post_init__(self) -> None:
        if not 2 <= self.n_states <= self.max_states or self.n_categories < 2 or self.em_steps < 0:
            raise ValueError(f"n_states, max_states, n_categories, em_steps are {self.n_states}, {self.max_states}, "
                             f"{self.n_categories}, {self.em_steps}; expected 2 to max_states, and at least 2, 0")
        if self.smoothing <= 0 or not 0 < self.valid_share < 1 or self.min_gain < 0:
            raise ValueError(f"smoothing, valid_share, min_gain are {self.smoothing}, {self.valid_share}, "
                             f"{self.min_gain}; expected above 0, within (0, 1), and at least 0")


@dataclass(frozen=True)
class Distilled:
    """A finetuned circuit and what it came from."""

    circuit: TreeCircuit
    start: TreeCircuit  # before EM
    z_ND: Tensor  # the teacher's states
    teacher_bound: float  # mean log p(x, z) of the start, at most its mean log p(x), in nats
    valid_log_likelihoods: tuple[float, ...]  # one for each size tried


def cluster(features_NP: Tensor, states: int, seed: int) -> Tensor:
    """Clusters (N,) of one patch's features by k-means."""
    found = KMeans(states, n_init=1, random_state=seed).fit_predict(features_NP.double().numpy())
    return torch.from_numpy(found).long()


def split_clusters(features_NP: Tensor, z_N: Tensor, states: int, seed: int) -> Tensor:
    """Every cluster in two: z or z + `states`, by 2-means within it."""
    new_N = z_N.clone()
    for k in range(states):
        rows = (z_N == k).nonzero()[:, 0]
        if len(features_NP[rows].unique(dim=0)) > 1:
            new_N[rows] += states * cluster(features_NP[rows], 2, seed)
    return new_N


def join(x_NF: Tensor, node_F: Tensor, z_ND: Tensor, states: int, config: Config) -> TreeCircuit:
    """The circuit whose leaves and tree maximise the smoothed likelihood of rows completed by z."""
    parent = chow_liu(z_ND, states)
    one_hot_NDK = torch.nn.functional.one_hot(z_ND, states).double()
    above_D = torch.tensor(parent).clamp(min=0)
    edge_DKK = torch.einsum("ndi,ndj->dij", one_hot_NDK[:, above_D], one_hot_NDK) + config.smoothing
    root_K = one_hot_NDK[:, parent.index(-1)].sum(0) + config.smoothing
    codes_NFV = torch.nn.functional.one_hot(x_NF.long(), config.n_categories).double()
    table_FKV = torch.einsum("nfk,nfv->fkv", one_hot_NDK[:, node_F], codes_NFV) + config.smoothing
    root_K, edge_DKK, table_FKV = ((t / t.sum(-1, keepdim=True)).log() for t in (root_K, edge_DKK, table_FKV))
    return TreeCircuit(parent, node_F, root_K, edge_DKK, table_FKV)


def completed_log_prob(circuit: TreeCircuit, x_NF: Tensor, z_ND: Tensor) -> Tensor:
    """log p(x, z) (N,)."""
    total_N = circuit.log_leaf(x_NF).gather(2, z_ND[..., None])[..., 0].sum(1)
    for node, above in enumerate(circuit.parent):
        log = circuit.log_root_K if above < 0 else circuit.log_edge_DKK[node, z_ND[:, above]]
        total_N = total_N + (log[z_ND[:, node]] if above < 0 else log.gather(1, z_ND[:, [node]])[:, 0])
    return total_N


@method(
    title="Latent variable distillation",
    paper="Understanding the Distillation Process from Deep Generative Models to Tractable Probabilistic Circuits",
    year=2023,
    tags={"value"},
)
def distil(x_NF: Tensor, node_F: Tensor, features_NDP: Tensor, generator: torch.Generator,
           config: Config | None = None) -> Distilled:
    """Fit a latent-tree circuit to rows whose patches a teacher describes; see the module's card."""
    config = config or Config()
    N, D = len(x_NF), features_NDP.shape[1]
    if features_NDP.ndim != 3 or len(features_NDP) != N or node_F.shape != x_NF.shape[1:] \
            or not torch.equal(node_F.unique(), torch.arange(D)):
        raise ValueError(f"x {tuple(x_NF.shape)}, node {tuple(node_F.shape)}, features {tuple(features_NDP.shape)}; "
                         "expected (N, F), (F,) with every patch 0, ..., D - 1, and (N, D, P)")
    if bool(((x_NF != x_NF.floor()) | (x_NF < 0) | (x_NF >= config.n_categories)).any()):
        raise ValueError(f"x holds values outside 0, ..., {config.n_categories - 1}; code the categories so")
    held = torch.zeros(N, dtype=torch.bool)
    held[torch.randperm(N, generator=generator)[: max(1, int(config.valid_share * N))]] = True
    x_NF, seed = x_NF.double(), int(torch.randint(2**31, (), generator=generator))
    features_NDP, train_NF = features_NDP[~held], x_NF[~held]
    states, best, heights = config.n_states, None, []
    z_ND = torch.stack([cluster(features_NDP[:, d], states, seed) for d in range(D)], 1)
    while True:
        start = circuit = join(train_NF, node_F, z_ND, states, config)
        for _ in range(config.em_steps):
            circuit, _ = circuit.em_step(train_NF, config.smoothing)
        heights.append(float(circuit.log_prob(x_NF[held]).mean()))
        if best is not None and heights[-1] <= heights[-2] + config.min_gain:
            break
        best = circuit, start, z_ND, float(completed_log_prob(start, train_NF, z_ND).mean())
        if 2 * states > config.max_states:
            break
        z_ND = torch.stack([split_clusters(features_NDP[:, d], z_ND[:, d], states, seed) for d in range(D)], 1)
        states *= 2
    return Distilled(*best, tuple(heights))


def example(generator: torch.Generator) -> dict[str, Any]:
    """Forty rows of two patches of two bits that agree with a hidden one."""
    hidden = torch.randint(0, 2, (40, 1), generator=generator)
    flips = torch.from_numpy(np.array([0.1])) > torch.rand(40, 4, generator=generator)
    x_NF = (hidden ^ flips.long()).float()
    return {"x_NF": x_NF, "node_F": torch.tensor([0, 0, 1, 1]), "features_NDP": x_NF.view(40, 2, 2),
            "generator": generator, "config": Config(n_states=2, max_states=4, em_steps=3)}
