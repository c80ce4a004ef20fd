"""Second-order tree random field: a distribution over projective trees whose siblings beside each other speak.

**Equation:** p(tree) = exp(sum of s(h -> d) over arcs, plus s(h -> r, d) over neighbours r, d on one side of h) / Z.
With all sums in logarithms, spans of one width at a time: I(i -> j) = s(i -> j) + log(C(j -> i+1) + sum_r I(i -> r)
S(r, j) s(i -> r, j)), S(i, j) = log sum_r C(i -> r) C(j -> r+1), C(i -> j) = log sum_r I(i -> r) C(r -> j), leftwards
the same; log Z = C(0 -> n). Marginals are the gradient of log Z. Heads known in part: the same with other heads masked.

**Shapes:** arcs (B, N, N) by dependent and head, siblings (B, N, N, N) by dependent, head and inner sibling, place 0
the root; lengths (B,) without it; heads (B, N), -1 where unknown.

**Reference:** Zhang, Li, Zhang (2020), Efficient Second-Order TreeCRF for Neural Dependency Parsing, ACL,
arXiv:2005.00975.

**Differs:** scores are given; the paper's network that makes them is not here. A tree's own score is log Z with its
heads alone unmasked. The likeliest tree is the gradient of the same recursion with maxima; minimum risk is that
recursion on marginals, so that either is always a tree. Draws are exact, head by head.

**Fails when:** languages cross their arcs (trees are projective).

**Cost:** O(B N^3) and O(N^2) operations of torch; draws N times that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixwell.core.method import method

MASKED = -1e30  # of an arc that may not be: no infinity, whose gradient would be no number
Sum = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which trees there are."""

    single_root: bool = True  # one word under the root, or any number


class Trees(NamedTuple):
    """The distribution's normaliser and its marginals."""

    log_partition_B: Tensor
    marginals_BNN: Tensor  # p(head of d is h), zero of the root and beyond a sentence's end


def log_sum(terms_KBM: Tensor) -> Tensor:
    """log of the sum over the first dimension of what the terms are logarithms of."""
    return torch.logsumexp(terms_KBM, 0)


def largest(terms_KBM: Tensor) -> Tensor:
    """The maximum over the first dimension; of equal ones, one alone has a gradient."""
    return terms_KBM.max(0).values


class Spans:
    """Sums over spans of every width: item w of a list holds the spans (B, N - w) from i to i + w."""

    def __init__(self, arc_BNN: Tensor, sib_BNNN: Tensor | None, total: Sum, config: Config) -> None:
        self.arc_BNN = arc_BNN
        self.sib_BNNN = sib_BNNN
        self.total = total
        self.config = config
        B, self.N, _ = arc_BNN.shape
        point_BN = arc_BNN.new_zeros(B, self.N)
        none_BN = torch.full_like(point_BN, MASKED)
        self.right_arcs, self.left_arcs = [none_BN], [none_BN]  # I(i -> j), I(j -> i)
        self.right, self.left = [point_BN], [point_BN]  # C(i -> j), C(j -> i)
        self.between = [none_BN]  # S(i, j)
        for width in range(1, self.N):
            self._widen(width)

    def _widen(self, width: int) -> None:
        """All spans of one width, from narrower ones."""
        M = self.N - width
        first_M = torch.arange(M) == 0
        between = self._joined(self.right, self.left, width, range(width), gap=1)
        self.between.append(between)
        rightward_BM = self._rightward(width, M, first_M)
        self.right_arcs.append(rightward_BM)
        leftward_BM = self._leftward(width, M)  # those onto the root are read nowhere
        self.left_arcs.append(leftward_BM)
        right_BM = self._joined(self.right_arcs, self.right, width, range(1, width + 1))
        self.right.append(right_BM)
        left_BM = self._joined(self.left, self.left_arcs, width, range(width))
        self.left.append(left_BM)

    def _pair(self, first: list[Tensor], second: list[Tensor], width: int, k: int, gap: int = 0) -> Tensor:
        """Spans (B, M) of two parts: the first to i + k, the second from i + k + gap on."""
        M = self.N - width
        start = k + gap
        behind_BN = second[width - start]
        behind_BM = behind_BN[:, start : start + M]
        return first[k][:, :M] + behind_BM

    def _joined(self, first: list[Tensor], second: list[Tensor], width: int, cuts: range, gap: int = 0) -> Tensor:
        """The sum (B, M) over cuts of spans of two parts."""
        parts = [self._pair(first, second, width, k, gap) for k in cuts]
        return self._summed(parts)

    def _summed(self, terms: list[Tensor]) -> Tensor:
        stacked_KBM = torch.stack(terms)
        return self.total(stacked_KBM)

    def _rightward(self, width: int, M: int, first_M: Tensor) -> Tensor:
        """I(i -> j) (B, M)."""
        head_M = torch.arange(M)
        terms = [self.left[width - 1][:, 1 : 1 + M]]
        for k in range(1, width):
            before_BM = self._pair(self.right_arcs, self.between, width, k)
            if self.sib_BNNN is not None:
                before_BM = before_BM + self.sib_BNNN[:, head_M + width, head_M, head_M + k]
            if self.config.single_root:
                before_BM = before_BM.masked_fill(first_M, MASKED)
            terms.append(before_BM)
        return self._summed(terms) + self.arc_BNN[:, head_M + width, head_M]

    def _leftward(self, width: int, M: int) -> Tensor:
        """I(j -> i) (B, M)."""
        dep_M = torch.arange(M)
        terms = [self.right[width - 1][:, :M]]
        for k in range(1, width):
            before_BM = self._pair(self.between, self.left_arcs, width, k)
            if self.sib_BNNN is not None:
                before_BM = before_BM + self.sib_BNNN[:, dep_M, dep_M + width, dep_M + k]
            terms.append(before_BM)
        return self._summed(terms) + self.arc_BNN[:, dep_M, dep_M + width]

    def whole(self, lengths_B: Tensor) -> Tensor:
        """C(0 -> n) (B,) of every sentence."""
        from_root = [span_BM[:, 0] for span_BM in self.right]
        root_BN = torch.stack(from_root, 1)
        return root_BN.gather(1, lengths_B[:, None])[:, 0]


def log_partition(arc_BNN: Tensor, sib_BNNN: Tensor | None, lengths_B: Tensor, config: Config,
                  total: Sum = log_sum) -> Tensor:
    """log Z (B,), or with `largest` the score of the best tree."""
    spans = Spans(arc_BNN, sib_BNNN, total, config)
    return spans.whole(lengths_B)


def masked(arc_BNN: Tensor, heads_BN: Tensor) -> Tensor:
    """Arcs without those that known heads rule out."""
    every_N = torch.arange(arc_BNN.shape[2])
    known_BN1 = heads_BN[..., None] >= 0
    other_BNN = heads_BN[..., None] != every_N
    return arc_BNN.masked_fill(known_BN1 & other_BNN, MASKED)


def gradient(arc_BNN: Tensor, sib_BNNN: Tensor | None, lengths_B: Tensor, config: Config,
             total: Sum = log_sum) -> tuple[Tensor, Tensor]:
    """log Z (B,) and its gradient in the arcs: marginals, or with `largest` the best tree's arcs."""
    open_ = arc_BNN.requires_grad
    with torch.enable_grad():
        arcs = arc_BNN if open_ else arc_BNN.detach().requires_grad_()
        value_B = log_partition(arcs, sib_BNNN, lengths_B, config, total)
        (slope_BNN,) = torch.autograd.grad(value_B.sum(), arcs, create_graph=open_)
    return (value_B, slope_BNN) if open_ else (value_B.detach(), slope_BNN)


@method(title="Second-order tree random field", year=2020, tags={"value", "float32", "differentiable"},
        paper="Efficient Second-Order TreeCRF for Neural Dependency Parsing")
def tree_crf(arc_BNN: Tensor, sib_BNNN: Tensor | None = None, lengths_B: Tensor | None = None,
             config: Config | None = None) -> Trees:
    """Normaliser and marginals of projective trees, differentiable in the scores; see the card.

    Without sibling scores the field is of first order. `ValueError` for shapes that disagree.
    """
    lengths_B = _lengths(arc_BNN, sib_BNNN, lengths_B)
    value_B, marginals_BNN = gradient(arc_BNN, sib_BNNN, lengths_B, config or Config())
    return Trees(value_B, marginals_BNN)


def log_likelihood(arc_BNN: Tensor, heads_BN: Tensor, sib_BNNN: Tensor | None = None, lengths_B: Tensor | None = None,
                   config: Config | None = None) -> Tensor:
    """log p of trees (B,), or of all trees with the heads that are known (-1: unknown), in nats.

    `ValueError` where no projective tree has these heads.
    """
    config = config or Config()
    lengths_B = _lengths(arc_BNN, sib_BNNN, lengths_B)
    only_BNN = masked(arc_BNN, heads_BN)
    known_B = log_partition(only_BNN, sib_BNNN, lengths_B, config)
    impossible_B = known_B < MASKED / 2
    if impossible_B.any():
        first = int(impossible_B.nonzero()[0])
        raise ValueError(f"no projective tree has the heads {heads_BN[first].tolist()} of sentence {first}")
    return known_B - log_partition(arc_BNN, sib_BNNN, lengths_B, config)


def likeliest_trees(arc_BNN: Tensor, sib_BNNN: Tensor | None = None, lengths_B: Tensor | None = None,
                    config: Config | None = None, by: Literal["score", "marginals"] = "score") -> Tensor:
    """Heads (B, N) of the best tree, or of the one whose arcs are the most probable in sum; -1 where there is none."""
    config = config or Config()
    if by not in ("score", "marginals"):
        raise ValueError(f"by is {by!r}; expected 'score' or 'marginals'")
    lengths_B = _lengths(arc_BNN, sib_BNNN, lengths_B)
    arc_BNN = arc_BNN.detach()
    if by == "marginals":
        _, arc_BNN = gradient(arc_BNN, sib_BNNN, lengths_B, config)
        sib_BNNN = None
    _, tree_BNN = gradient(arc_BNN, sib_BNNN, lengths_B, config, largest)
    heads_BN = tree_BNN.argmax(2)
    return heads_BN.masked_fill(_outside(arc_BNN, lengths_B), -1)


def draw_trees(arc_BNN: Tensor, generator: torch.Generator, sib_BNNN: Tensor | None = None,
               lengths_B: Tensor | None = None, config: Config | None = None) -> Tensor:
    """Heads (B, N) drawn from the distribution: one after another, each from its marginal given those before."""
    config = config or Config()
    lengths_B = _lengths(arc_BNN, sib_BNNN, lengths_B)
    outside_BN = _outside(arc_BNN, lengths_B)
    heads_BN = torch.full(outside_BN.shape, -1)
    for d in range(1, arc_BNN.shape[1]):
        only_BNN = masked(arc_BNN.detach(), heads_BN)
        _, marginals_BNN = gradient(only_BNN, sib_BNNN, lengths_B, config)
        share_BN = marginals_BNN[:, d].clamp(min=0)
        share_BN[:, 0] += outside_BN[:, d]  # no share at all beyond the end: any draw does
        drawn_B1 = torch.multinomial(share_BN, 1, generator=generator)
        heads_BN[:, d] = drawn_B1[:, 0].masked_fill(outside_BN[:, d], -1)
    return heads_BN


def _outside(arc_BNN: Tensor, lengths_B: Tensor) -> Tensor:
    """Places (B, N) that are the root or beyond a sentence's end."""
    place_N = torch.arange(arc_BNN.shape[1])
    beyond_BN = place_N > lengths_B[:, None]
    return beyond_BN | (place_N == 0)


def _lengths(arc_BNN: Tensor, sib_BNNN: Tensor | None, lengths_B: Tensor | None) -> Tensor:
    """Words of every sentence (B,), with all shapes checked."""
    B, N, M = arc_BNN.shape if arc_BNN.ndim == 3 else (0, 0, -1)
    if N != M or N < 2:
        raise ValueError(f"arcs have shape {tuple(arc_BNN.shape)}; expected (B, N, N) with a root and a word or more")
    if sib_BNNN is not None and sib_BNNN.shape != (B, N, N, N):
        raise ValueError(f"siblings have shape {tuple(sib_BNNN.shape)}; expected {(B, N, N, N)}")
    if lengths_B is None:
        return torch.full((B,), N - 1)
    if lengths_B.shape != (B,) or lengths_B.min() < 1 or lengths_B.max() >= N:
        raise ValueError(f"lengths are {lengths_B.tolist()}; expected {B} of 1 to {N - 1}")
    return lengths_B


def example(generator: torch.Generator) -> dict[str, Any]:
    """Scores of two sentences, of two words and of one."""
    return {
        "arc_BNN": torch.randn(2, 3, 3, generator=generator),
        "sib_BNNN": torch.randn(2, 3, 3, 3, generator=generator),
        "lengths_B": torch.tensor([2, 1]),
        "config": Config(),
    }
