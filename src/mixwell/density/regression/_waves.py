"""What is known of people over time, and the parameters of their latent classes, as values.

N people, J waves, L growth factors, K classes, P columns of a design; V free parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mixwell.density._gaussian import Array

Params = dict[str, Array]


@dataclass(frozen=True)
class Waves:
    """Outcomes and times, with zeros where `seen` is False."""

    y_NJ: Array
    t_NJ: Array
    seen_NJ: Array
    bilinear: bool

    def loadings(self, knot: float) -> Array:
        """Lambda (N, J, L), zero at missed waves."""
        gap_NJ = self.t_NJ - knot
        columns = [np.ones_like(gap_NJ), gap_NJ]
        if self.bilinear:
            columns.append(np.abs(gap_NJ))
        all_NJL = np.stack(columns, axis=2)
        return all_NJL * self.seen_NJ[:, :, None]

    def moments(self, knot: float) -> tuple[Array, Array]:
        """Lambda' Lambda (N, L, L) and Lambda' y (N, L)."""
        load_NJL = self.loadings(knot)
        gram_NLL = load_NJL.transpose(0, 2, 1) @ load_NJL
        cross_NL = np.einsum("njl,nj->nl", load_NJL, self.y_NJ)
        return gram_NLL, cross_NL

    def left(self, knot: float, eta_NL: Array) -> Array:
        """Squares (N,) of what curves with these growth factors leave."""
        fitted_NJ = np.einsum("njl,nl->nj", self.loadings(knot), eta_NL)
        rest_NJ = self.y_NJ - fitted_NJ
        return (rest_NJ**2).sum(1)

    def times(self) -> Array:
        """The times of all waves that were seen, in one row."""
        return self.t_NJ[self.seen_NJ]


@dataclass(frozen=True)
class People:
    """What is known of every person: waves, and the designs of gates (N, 1 + D) and growth factors (N, 1 + E)."""

    waves: Waves
    z_NP: Array
    x_NP: Array


class OneClass(NamedTuple):
    """Parameters of one class."""

    coef_PL: Array
    psi_LL: Array
    theta: float
    knot: float

    @classmethod
    def of(cls, params: Params, k: int) -> OneClass:
        """Class k of all."""
        return cls(
            coef_PL=params["coef"][k],
            psi_LL=params["psi"][k],
            theta=float(params["theta"][k]),
            knot=float(params["knot"][k]),
        )


def pack(params: Params, bilinear: bool) -> tuple[Array, dict[str, tuple[int, ...]]]:
    """Unconstrained free parameters as one vector: gates against the last class, log noise, Cholesky factors."""
    gate_KP = params["gate_coef"]
    rows, columns = np.tril_indices(params["psi"].shape[1])
    root_KLL = np.linalg.cholesky(params["psi"])
    parts = {"gate_coef": gate_KP[:-1] - gate_KP[-1], "coef": params["coef"]}
    parts["theta"] = np.log(params["theta"])
    parts["psi"] = root_KLL[:, rows, columns]
    if bilinear:
        parts["knot"] = params["knot"]
    flat = [part.ravel() for part in parts.values()]
    shapes = {name: part.shape for name, part in parts.items()}
    return np.concatenate(flat), shapes


def cut(flat: Array, shapes: dict[str, tuple[int, ...]]) -> Params:
    """A vector in pieces of these shapes."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    ends = np.cumsum(sizes)
    pieces = np.split(flat, ends[:-1])
    found = {}
    for (name, shape), piece in zip(shapes.items(), pieces):
        found[name] = piece.reshape(shape)
    return found


def unpack(flat: Array, shapes: dict[str, tuple[int, ...]]) -> Params:
    """The inverse of `pack`."""
    parts = cut(flat, shapes)
    K, _, L = parts["coef"].shape
    rows, columns = np.tril_indices(L)
    root_KLL = np.zeros((K, L, L))
    root_KLL[:, rows, columns] = parts["psi"]
    psi_KLL = root_KLL @ root_KLL.transpose(0, 2, 1)
    last_1P = np.zeros((1, shapes["gate_coef"][1]))
    gate_KP = np.vstack([parts["gate_coef"], last_1P])
    knot_K = parts.get("knot", np.zeros(K))
    new = {"gate_coef": gate_KP, "coef": parts["coef"], "psi": psi_KLL}
    return new | {"theta": np.exp(parts["theta"]), "knot": knot_K}
