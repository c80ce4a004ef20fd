"""Latent-tree circuits: every node of a tree has a discrete hidden state, and features that depend on it.

N rows, F features, D nodes, K states, V categories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixwell.density._gaussian import log_normal


def children_first(parent: Sequence[int]) -> list[int]:
    """Nodes in an order in which every node follows its children; `parent` is -1 at the one root."""
    children: list[list[int]] = [[] for _ in parent]
    for node, above in enumerate(parent):
        if above >= 0:
            children[above].append(node)
    roots = [node for node, above in enumerate(parent) if above < 0]
    order = roots[:1]
    for node in order:
        order.extend(children[node])
    if len(roots) != 1 or len(order) != len(parent):
        raise ValueError(f"parent is {list(parent)}; expected a tree with one root, marked -1")
    return order[::-1]


def chow_liu(codes_NF: Tensor, categories: int) -> tuple[int, ...]:
    """Parents of the tree over the columns with the largest total mutual information; column 0 is the root."""
    one_hot_NFV = torch.nn.functional.one_hot(codes_NF.long(), categories).double()
    joint = torch.einsum("nfv,ngw->fgvw", one_hot_NFV, one_hot_NFV) / len(codes_NF)
    single_FV = one_hot_NFV.mean(0)
    free = single_FV[:, None, :, None] * single_FV[None, :, None, :]
    information_FF = torch.where(joint > 0, joint * (joint / free).clamp(min=1e-300).log(), 0.0).sum((2, 3))
    parent = [-1] * len(information_FF)
    best_F, link_F = information_FF[0].clone(), torch.zeros(len(parent), dtype=torch.long)
    best_F[0] = -math.inf
    for _ in range(len(parent) - 1):
        new = int(best_F.argmax())
        parent[new] = int(link_F[new])
        best_F[new] = -math.inf
        closer_F = (information_FF[new] > best_F) & best_F.isfinite()
        best_F[closer_F], link_F[closer_F] = information_FF[new, closer_F], new
    return tuple(parent)


def upward(log_leaf_NDK: Tensor, parent: Sequence[int], log_root_K: Tensor, log_edge_DKK: Tensor) -> Tensor:
    """Log-likelihood (N,) by messages to the root; `log_edge_DKK[d, i, j]` is log p(z_d = j | state above = i)."""
    held: list[Tensor | None] = [None] * len(parent)
    edge_DKK = log_edge_DKK.exp()
    for node in children_first(parent):
        local_NK, below_NK = log_leaf_NDK[:, node], held[node]
        if below_NK is not None:
            local_NK = local_NK + below_NK
        if parent[node] < 0:
            return torch.logsumexp(local_NK + log_root_K, -1)
        top_N1 = local_NK.detach().amax(-1, keepdim=True)
        sent_NK = (local_NK - top_N1).exp() @ edge_DKK[node].T
        sent_NK = sent_NK.clamp(min=torch.finfo(sent_NK.dtype).tiny).log() + top_N1
        above = held[parent[node]]
        held[parent[node]] = sent_NK if above is None else above + sent_NK
    raise AssertionError("a tree ends at its root")


@dataclass(frozen=True, eq=False)
class TreeCircuit:
    """Hidden tree with categorical features (`log_table_FKV`) or Gaussian ones (`mean_FK`, `log_scale_FK`)."""

    parent: tuple[int, ...]
    node_F: Tensor  # the node each feature hangs from
    log_root_K: Tensor
    log_edge_DKK: Tensor  # the root's is not read
    log_table_FKV: Tensor | None = None
    mean_FK: Tensor | None = None
    log_scale_FK: Tensor | None = None

    @classmethod
    def random(cls, parent: Sequence[int], node_F: Tensor, states: int, categories: int | None,
               generator: torch.Generator) -> TreeCircuit:
        """Flat Dirichlet draws for probabilities, standard normals for means; `categories` None means Gaussian."""
        def dirichlet(*shape: int) -> Tensor:
            draws = -torch.rand(*shape, generator=generator, dtype=torch.float64).clamp(min=1e-12).log()
            return (draws / draws.sum(-1, keepdim=True)).log()

        D, F = len(parent), len(node_F)
        root, edge = dirichlet(states), dirichlet(D, states, states)
        if categories is not None:
            return cls(tuple(parent), node_F, root, edge, dirichlet(F, states, categories))
        means = torch.randn(F, states, generator=generator, dtype=torch.float64)
        return cls(tuple(parent), node_F, root, edge, None, means, torch.zeros_like(means))

    def log_leaf(self, x_NF: Tensor) -> Tensor:
        """Sum over a node's features of log p(x | z) (N, D, K); NaN counts for nothing."""
        seen_NF1 = ~x_NF.isnan()[..., None]
        if self.log_table_FKV is not None:
            code_NF = x_NF.nan_to_num(0).long()
            log_NFK = self.log_table_FKV.transpose(1, 2)[torch.arange(len(self.node_F)), code_NF]
        else:
            assert self.mean_FK is not None and self.log_scale_FK is not None
            z_NFK = (x_NF.nan_to_num(0)[..., None] - self.mean_FK) * (-self.log_scale_FK).exp()
            log_NFK = log_normal(z_NFK**2, self.log_scale_FK)
        empty_NDK = log_NFK.new_zeros(len(x_NF), len(self.parent), log_NFK.shape[-1])
        return empty_NDK.index_add(1, self.node_F, torch.where(seen_NF1, log_NFK, 0.0))

    def log_prob(self, x_NF: Tensor) -> Tensor:
        """Log-likelihood of rows (N,), in nats, with NaN summed or integrated out."""
        if x_NF.ndim != 2 or x_NF.shape[1] != len(self.node_F):
            raise ValueError(f"x has shape {tuple(x_NF.shape)}; expected (rows, {len(self.node_F)})")
        seen = x_NF[~x_NF.isnan()]
        if self.log_table_FKV is not None:
            categories = self.log_table_FKV.shape[-1]
            if bool(((seen != seen.floor()) | (seen < 0) | (seen >= categories)).any()):
                raise ValueError(f"x holds values outside 0, ..., {categories - 1}; code the categories so")
        return upward(self.log_leaf(x_NF), self.parent, self.log_root_K, self.log_edge_DKK)

    def em_step(self, x_NF: Tensor, smoothing: float = 1e-3) -> tuple[TreeCircuit, float]:
        """The circuit after one EM step, and the mean log-likelihood before it.

        Expected counts are the gradient with respect to log parameters; `smoothing` is added to every count.
        """
        with torch.enable_grad():
            leaf = self.log_leaf(x_NF).detach().requires_grad_()
            root, edge = (v.detach().clone().requires_grad_() for v in (self.log_root_K, self.log_edge_DKK))
            total = upward(leaf, self.parent, root, edge).sum()
            resp_NDK, root_count, edge_count = torch.autograd.grad(total, (leaf, root, edge))
        resp_NFK = resp_NDK[:, self.node_F] * ~x_NF.isnan()[..., None]
        x_NF = x_NF.nan_to_num(0)
        new = replace(self, log_root_K=_shares(root_count + smoothing), log_edge_DKK=_shares(edge_count + smoothing))
        if self.log_table_FKV is not None:
            one_hot_NFV = torch.nn.functional.one_hot(x_NF.long(), self.log_table_FKV.shape[-1]).to(resp_NFK.dtype)
            counts_FKV = torch.einsum("nfk,nfv->fkv", resp_NFK, one_hot_NFV)
            return replace(new, log_table_FKV=_shares(counts_FKV + smoothing)), float(total.detach()) / len(x_NF)
        weight_FK = resp_NFK.sum(0) + smoothing
        assert self.mean_FK is not None
        mean_FK = (torch.einsum("nfk,nf->fk", resp_NFK, x_NF) + smoothing * self.mean_FK) / weight_FK
        square_FK = torch.einsum("nfk,nfk->fk", resp_NFK, (x_NF[..., None] - mean_FK) ** 2)
        scale_FK = 0.5 * ((square_FK + smoothing) / weight_FK).clamp(min=1e-12).log()
        return replace(new, mean_FK=mean_FK, log_scale_FK=scale_FK), float(total.detach()) / len(x_NF)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows (count, F) drawn from root to leaves."""
        states_ND = torch.zeros(count, len(self.parent), dtype=torch.long)
        for node in children_first(self.parent)[::-1]:
            above = self.parent[node]
            log_NK = self.log_root_K.expand(count, -1) if above < 0 else self.log_edge_DKK[node, states_ND[:, above]]
            states_ND[:, node] = torch.multinomial(log_NK.exp(), 1, generator=generator)[:, 0]
        at = torch.arange(len(self.node_F)), states_ND[:, self.node_F]
        if self.log_table_FKV is not None:
            p_NFV = self.log_table_FKV[at].exp()
            flat = torch.multinomial(p_NFV.flatten(0, 1), 1, generator=generator)
            return flat.view(count, -1).to(p_NFV.dtype)
        assert self.mean_FK is not None and self.log_scale_FK is not None
        mean_NF = self.mean_FK[at]
        noise_NF = torch.randn(mean_NF.shape, generator=generator, dtype=mean_NF.dtype)
        return mean_NF + noise_NF * self.log_scale_FK[at].exp()

    def n_parameters(self) -> int:
        """Free parameters."""
        D, K = len(self.parent), len(self.log_root_K)
        own = 2 * K * len(self.node_F) if self.log_table_FKV is None \
            else len(self.node_F) * K * (self.log_table_FKV.shape[-1] - 1)
        return K - 1 + (D - 1) * K * (K - 1) + own


def _shares(counts: Tensor) -> Tensor:
    return (counts / counts.sum(-1, keepdim=True)).log()
