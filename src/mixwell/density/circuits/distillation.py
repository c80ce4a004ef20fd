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
instead of hidden Chow-Liu trees inside patches. Growth doubles all patches' clusters at once. The teacher's features
are the caller's, and any network may give them; the claim's teacher is shallow (grey values of a patch and its
neighbours) where the paper's are deep generative models.

**Fails when:** the teacher's features do not predict the patch: the start is then no better than chance.

**Cost:** k-means O(N D P K) and O(N (F K + D K^2)) an EM step, for every size tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from mixwell.core.method import method
from mixwell.density._ascent import ascend
from mixwell.density.circuits.trees import TreeCircuit, check_codes, chow_liu, log_shares


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of latent variable distillation; `ValueError` for one out of range."""

    n_states: int = 8  # K to begin with
    max_states: int = 8  # K at most; beyond n_states the latents grow by doubling
    n_categories: int = 2  # V
    em_steps: int = 20  # of finetuning, for every size
    smoothing: float = 0.01  # added to every count
    valid_share: float = 0.1  # of the rows, held out to stop growth
    min_gain: float = 0.0  # of held-out log-likelihood for growth to go on, in nats a row

    def __post_init__(self) -> None:
        growing = 2 <= self.n_states <= self.max_states
        if not growing or self.n_categories < 2 or self.em_steps < 0:
            raise ValueError(f"n_states, max_states, n_categories, em_steps are {self.n_states}, {self.max_states}, "
                             f"{self.n_categories}, {self.em_steps}; expected 2 to max_states, and at least 2, 0")
        share = 0 < self.valid_share < 1
        if not share or self.smoothing <= 0 or self.min_gain < 0:
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
    kmeans = KMeans(states, n_init=1, random_state=seed)
    found = kmeans.fit_predict(features_NP.double().numpy())
    return torch.from_numpy(found).long()


def split_clusters(features_NP: Tensor, z_N: Tensor, states: int, seed: int) -> Tensor:
    """Every cluster in two: z or z + `states`, by 2-means within it."""
    new_N = z_N.clone()
    for k in range(states):
        rows = (z_N == k).nonzero()[:, 0]
        distinct = features_NP[rows].unique(dim=0)
        if len(distinct) > 1:
            half = cluster(features_NP[rows], 2, seed)
            new_N[rows] += states * half
    return new_N


def join(x_NF: Tensor, node_F: Tensor, z_ND: Tensor, states: int, config: Config) -> TreeCircuit:
    """The circuit whose leaves and tree maximise the smoothed likelihood of rows completed by z."""
    parent = chow_liu(z_ND, states)
    one_hot_NDK = torch.nn.functional.one_hot(z_ND, states).double()
    codes_NFV = torch.nn.functional.one_hot(x_NF.long(), config.n_categories).double()
    above_D = torch.tensor(parent).clamp(min=0)  # the root's own edge is not read
    above_NDK = one_hot_NDK[:, above_D]
    owner_NFK = one_hot_NDK[:, node_F]
    root_K = one_hot_NDK[:, parent.index(-1)].sum(0)
    edge_DKK = torch.einsum("ndi,ndj->dij", above_NDK, one_hot_NDK)
    table_FKV = torch.einsum("nfk,nfv->fkv", owner_NFK, codes_NFV)
    smoothed = [log_shares(counts + config.smoothing) for counts in (root_K, edge_DKK, table_FKV)]
    return TreeCircuit(parent, node_F, *smoothed)


def completed_log_prob(circuit: TreeCircuit, x_NF: Tensor, z_ND: Tensor) -> Tensor:
    """log p(x, z) (N,)."""
    leaf_NDK = circuit.log_leaf(x_NF)
    leaf_ND1 = leaf_NDK.gather(2, z_ND[..., None])
    total_N = leaf_ND1[..., 0].sum(1)
    for node, above in enumerate(circuit.parent):
        state_N = z_ND[:, node]
        if above < 0:
            log_N = circuit.log_root_K[state_N]
        else:
            log_N = circuit.log_edge_DKK[node, z_ND[:, above], state_N]
        total_N = total_N + log_N
    return total_N


def finetune(circuit: TreeCircuit, x_NF: Tensor, config: Config) -> TreeCircuit:
    """The circuit after `em_steps` of EM."""
    run = ascend(
        lambda now: now.em_step(x_NF, config.smoothing),
        circuit,
        tol=-math.inf,  # all steps, whatever they gain
        max_iter=config.em_steps,
    )
    return run.state


@method(
    title="Latent variable distillation",
    paper="Understanding the Distillation Process from Deep Generative Models to Tractable Probabilistic Circuits",
    year=2023,
    tags={"value"},
)
def distil(x_NF: Tensor, node_F: Tensor, features_NDP: Tensor, generator: torch.Generator,
           config: Config | None = None) -> Distilled:
    """Fit a latent-tree circuit to rows whose patches a teacher describes; see the module's card.

    x (N, F), node (F,), features (N, D, P). `ValueError` where shapes do not fit or x holds more than categories.
    """
    config = config or Config()
    _check(x_NF, node_F, features_NDP)
    check_codes(x_NF.nan_to_num(-1), config.n_categories)  # no value may be missing
    valid_N = _held_out(len(x_NF), config.valid_share, generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    x_NF = x_NF.double()
    train_NF, valid_NF = x_NF[~valid_N], x_NF[valid_N]
    patches = features_NDP[~valid_N].unbind(1)
    states = config.n_states
    z_ND = torch.stack([cluster(patch_NP, states, seed) for patch_NP in patches], 1)
    best = None
    valid_log_likelihoods: list[float] = []
    while True:
        start = join(train_NF, node_F, z_ND, states, config)
        circuit = finetune(start, train_NF, config)
        valid_log_likelihoods.append(float(circuit.log_prob(valid_NF).mean()))
        if best is not None and not _grew(valid_log_likelihoods, config.min_gain):
            break
        bound = completed_log_prob(start, train_NF, z_ND).mean()
        best = circuit, start, z_ND, float(bound)
        if 2 * states > config.max_states:
            break
        columns = zip(patches, z_ND.unbind(1))
        z_ND = torch.stack([split_clusters(patch_NP, z_N, states, seed) for patch_NP, z_N in columns], 1)
        states *= 2
    return Distilled(*best, tuple(valid_log_likelihoods))


def _grew(values: list[float], least: float) -> bool:
    before, now = values[-2:]
    return now > before + least


def _held_out(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Which rows (N,) only judge; one or more."""
    size = max(1, int(share * count))
    order = torch.randperm(count, generator=generator)
    valid_N = torch.zeros(count, dtype=torch.bool)
    valid_N[order[:size]] = True
    return valid_N


def _check(x_NF: Tensor, node_F: Tensor, features_NDP: Tensor) -> None:
    fits = features_NDP.ndim == 3 and len(features_NDP) == len(x_NF) and node_F.shape == x_NF.shape[1:]
    if fits:
        every_D = torch.arange(features_NDP.shape[1])
        fits = torch.equal(node_F.unique(), every_D)
    if not fits:
        shapes = [tuple(v.shape) for v in (x_NF, node_F, features_NDP)]
        raise ValueError(f"x {shapes[0]}, node {shapes[1]}, features {shapes[2]}; expected (N, F), (F,) with every "
                         "patch 0, ..., D - 1, and (N, D, P)")


def example(generator: torch.Generator) -> dict[str, Any]:
    """Forty rows of two patches of two bits that agree with a hidden one."""
    hidden_N1 = torch.randint(0, 2, (40, 1), generator=generator)
    flips_NF = torch.rand(40, 4, generator=generator) < 0.1
    x_NF = (hidden_N1 ^ flips_NF.long()).float()
    config = Config(n_states=2, max_states=4, em_steps=3)
    return {
        "x_NF": x_NF,
        "node_F": torch.tensor([0, 0, 1, 1]),
        "features_NDP": x_NF.view(40, 2, 2),
        "generator": generator,
        "config": config,
    }
