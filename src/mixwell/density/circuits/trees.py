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
    """Nodes in an order in which every node follows its children; `ValueError` unless one root, -1, is above all."""
    children: list[list[int]] = [[] for _ in parent]
    roots = []
    for node, above in enumerate(parent):
        if above < 0:
            roots.append(node)
        else:
            children[above].append(node)
    order = roots[:1]
    for node in order:
        order.extend(children[node])
    if len(roots) != 1 or len(order) != len(parent):
        raise ValueError(f"parent is {list(parent)}; expected a tree with one root, marked -1")
    return order[::-1]


def chow_liu(codes_NF: Tensor, categories: int) -> tuple[int, ...]:
    """Parents of the tree over the columns with the largest total mutual information; column 0 is the root."""
    one_hot_NFV = torch.nn.functional.one_hot(codes_NF.long(), categories).double()
    joint_FGVW = torch.einsum("nfv,ngw->fgvw", one_hot_NFV, one_hot_NFV) / len(codes_NF)
    single_FV = one_hot_NFV.mean(0)
    free_FGVW = single_FV[:, None, :, None] * single_FV[None, :, None, :]
    log_ratio_FGVW = (joint_FGVW / free_FGVW).clamp(min=1e-300).log()
    gain_FGVW = torch.where(joint_FGVW > 0, joint_FGVW * log_ratio_FGVW, 0.0)
    information_FF = gain_FGVW.sum((2, 3))
    return _spanning_tree(information_FF)


def _spanning_tree(information_FF: Tensor) -> tuple[int, ...]:
    """Parents of the largest spanning tree, grown from column 0."""
    parent = [-1] * len(information_FF)
    best_F = information_FF[0].clone()  # of a column outside the tree with one inside
    link_F = torch.zeros(len(parent), dtype=torch.long)
    best_F[0] = -math.inf
    for _ in range(len(parent) - 1):
        new = int(best_F.argmax())
        parent[new] = int(link_F[new])
        best_F[new] = -math.inf
        outside_F = best_F.isfinite()
        closer_F = (information_FF[new] > best_F) & outside_F
        best_F[closer_F] = information_FF[new, closer_F]
        link_F[closer_F] = new
    return tuple(parent)


def upward(log_leaf_NDK: Tensor, parent: Sequence[int], log_root_K: Tensor, log_edge_DKK: Tensor) -> Tensor:
    """Log-likelihood (N,) by messages to the root; `log_edge_DKK[d, i, j]` is log p(z_d = j | state above = i).

    `ValueError` where `parent` is no tree.
    """
    messages: list[Tensor | None] = [None] * len(parent)
    edge_DKK = log_edge_DKK.exp()
    smallest = torch.finfo(edge_DKK.dtype).tiny
    for node in children_first(parent):
        local_NK = log_leaf_NDK[:, node]
        below_NK = messages[node]
        if below_NK is not None:
            local_NK = local_NK + below_NK
        above = parent[node]
        if above < 0:
            return torch.logsumexp(local_NK + log_root_K, -1)
        top_N1 = local_NK.detach().amax(-1, keepdim=True)
        scaled_NK = (local_NK - top_N1).exp()
        sent_NK = scaled_NK @ edge_DKK[node].T
        sent_NK = sent_NK.clamp(min=smallest).log() + top_N1
        others_NK = messages[above]
        messages[above] = sent_NK if others_NK is None else others_NK + sent_NK
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
            uniform = torch.rand(*shape, generator=generator, dtype=torch.float64)
            draws = -uniform.clamp(min=1e-12).log()
            return log_shares(draws)

        D, F = len(parent), len(node_F)
        tree = tuple(parent)
        root_K = dirichlet(states)
        edge_DKK = dirichlet(D, states, states)
        if categories is not None:
            table_FKV = dirichlet(F, states, categories)
            return cls(tree, node_F, root_K, edge_DKK, table_FKV)
        mean_FK = torch.randn(F, states, generator=generator, dtype=torch.float64)
        return cls(tree, node_F, root_K, edge_DKK, None, mean_FK, torch.zeros_like(mean_FK))

    def log_leaf(self, x_NF: Tensor) -> Tensor:
        """Sum over a node's features of log p(x | z) (N, D, K); NaN counts for nothing."""
        seen_NF1 = ~x_NF.isnan()[..., None]
        if self.log_table_FKV is not None:
            code_NF = x_NF.nan_to_num(0).long()
            every_F = torch.arange(len(self.node_F))
            log_NFK = self.log_table_FKV.transpose(1, 2)[every_F, code_NF]
        else:
            assert self.mean_FK is not None and self.log_scale_FK is not None
            precision_FK = (-self.log_scale_FK).exp()
            gap_NFK = x_NF.nan_to_num(0)[..., None] - self.mean_FK
            z_NFK = gap_NFK * precision_FK
            log_NFK = log_normal(z_NFK**2, self.log_scale_FK)
        N, _, K = log_NFK.shape
        empty_NDK = log_NFK.new_zeros(N, len(self.parent), K)
        counted_NFK = torch.where(seen_NF1, log_NFK, 0.0)
        return empty_NDK.index_add(1, self.node_F, counted_NFK)

    def log_prob(self, x_NF: Tensor) -> Tensor:
        """Log-likelihood of rows (N,), in nats, with NaN summed or integrated out.

        `ValueError` for other columns than the circuit's, or values that are no category.
        """
        if x_NF.ndim != 2 or x_NF.shape[1] != len(self.node_F):
            raise ValueError(f"x has shape {tuple(x_NF.shape)}; expected (rows, {len(self.node_F)})")
        if self.log_table_FKV is not None:
            check_codes(x_NF, self.log_table_FKV.shape[-1])
        leaf_NDK = self.log_leaf(x_NF)
        return upward(leaf_NDK, self.parent, self.log_root_K, self.log_edge_DKK)

    def em_step(self, x_NF: Tensor, smoothing: float = 1e-3) -> tuple[TreeCircuit, float]:
        """The circuit after one EM step, and the mean log-likelihood before it.

        Expected counts are the gradient with respect to log parameters; `smoothing` is added to every count.
        """
        leaf_NDK = self.log_leaf(x_NF).detach().requires_grad_()
        root_K = self.log_root_K.detach().clone().requires_grad_()
        edge_DKK = self.log_edge_DKK.detach().clone().requires_grad_()
        with torch.enable_grad():
            total = upward(leaf_NDK, self.parent, root_K, edge_DKK).sum()
            resp_NDK, root_count, edge_count = torch.autograd.grad(total, (leaf_NDK, root_K, edge_DKK))
        bound = float(total.detach()) / len(x_NF)
        log_root_K = log_shares(root_count + smoothing)
        log_edge_DKK = log_shares(edge_count + smoothing)
        new = replace(self, log_root_K=log_root_K, log_edge_DKK=log_edge_DKK)
        seen_NF1 = ~x_NF.isnan()[..., None]
        resp_NFK = resp_NDK[:, self.node_F] * seen_NF1
        return new._with_leaves(resp_NFK, x_NF.nan_to_num(0), smoothing), bound

    def _with_leaves(self, resp_NFK: Tensor, x_NF: Tensor, smoothing: float) -> TreeCircuit:
        """The circuit with the likeliest leaves for rows and the states above them."""
        if self.log_table_FKV is not None:
            one_hot_NFV = torch.nn.functional.one_hot(x_NF.long(), self.log_table_FKV.shape[-1])
            counts_FKV = torch.einsum("nfk,nfv->fkv", resp_NFK, one_hot_NFV.to(resp_NFK.dtype))
            return replace(self, log_table_FKV=log_shares(counts_FKV + smoothing))
        assert self.mean_FK is not None
        weight_FK = resp_NFK.sum(0) + smoothing
        sum_FK = torch.einsum("nfk,nf->fk", resp_NFK, x_NF)
        mean_FK = (sum_FK + smoothing * self.mean_FK) / weight_FK
        gap_NFK = x_NF[..., None] - mean_FK
        square_FK = torch.einsum("nfk,nfk->fk", resp_NFK, gap_NFK**2)
        variance_FK = (square_FK + smoothing) / weight_FK
        log_scale_FK = 0.5 * variance_FK.clamp(min=1e-12).log()
        return replace(self, mean_FK=mean_FK, log_scale_FK=log_scale_FK)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows (count, F) drawn from root to leaves."""
        states_ND = torch.zeros(count, len(self.parent), dtype=torch.long)
        for node in children_first(self.parent)[::-1]:
            above = self.parent[node]
            if above < 0:
                log_NK = self.log_root_K.expand(count, -1)
            else:
                log_NK = self.log_edge_DKK[node, states_ND[:, above]]
            drawn_N1 = torch.multinomial(log_NK.exp(), 1, generator=generator)
            states_ND[:, node] = drawn_N1[:, 0]
        every_F = torch.arange(len(self.node_F))
        at = every_F, states_ND[:, self.node_F]
        if self.log_table_FKV is not None:
            p_NFV = self.log_table_FKV[at].exp()
            flat_M1 = torch.multinomial(p_NFV.flatten(0, 1), 1, generator=generator)
            return flat_M1.view(count, -1).to(p_NFV.dtype)
        assert self.mean_FK is not None and self.log_scale_FK is not None
        mean_NF = self.mean_FK[at]
        scale_NF = self.log_scale_FK[at].exp()
        noise_NF = torch.randn(mean_NF.shape, generator=generator, dtype=mean_NF.dtype)
        return mean_NF + noise_NF * scale_NF

    def n_parameters(self) -> int:
        """Free parameters."""
        D, F, K = len(self.parent), len(self.node_F), len(self.log_root_K)
        of_a_leaf = 2
        if self.log_table_FKV is not None:
            categories = self.log_table_FKV.shape[-1]
            of_a_leaf = categories - 1
        root = K - 1
        edges = (D - 1) * K * root
        leaves = F * K * of_a_leaf
        return root + edges + leaves


def check_codes(x: Tensor, categories: int) -> None:
    """`ValueError` unless every value is NaN or one of 0, ..., categories - 1."""
    seen = x[~x.isnan()]
    whole = seen == seen.floor()
    within = (seen >= 0) & (seen < categories)
    known = whole & within
    if not known.all():
        raise ValueError(f"x holds values outside 0, ..., {categories - 1}; code the categories so")


def log_shares(counts: Tensor) -> Tensor:
    """Logarithms of the counts' shares along the last axis."""
    total = counts.sum(-1, keepdim=True)
    return (counts / total).log()
