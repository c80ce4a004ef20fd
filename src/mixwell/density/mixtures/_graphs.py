"""Mixtures whose log densities are written down as an ONNX graph.

D columns, K components.
"""

from __future__ import annotations

import numpy as np
import torch

from mixwell.density._gaussian import log_positive
from mixwell.density.mixtures._columns import CountMixture
from mixwell.density.mixtures._normal import NormalMixture
from mixwell.density.mixtures._scores import as_array
from mixwell.density.mixtures.em.exported import Graph
from mixwell.density.mixtures.em.kernels import MATRICES


class EllipticalMixture(NormalMixture):
    """Components are functions of the squared distance to their mean."""

    def _log_joint_graph(self, graph: Graph) -> str:
        roots, log_scale_K = self._whole_roots()
        means_KD = as_array(self.means_).astype(float)
        weights_K = as_array(self.weights_).astype(float)
        distance = graph.squared_distances(means_KD, roots)
        constant_K = log_positive(weights_K) + log_scale_K
        return self._profile_graph(graph, distance, constant_K)

    def _profile_graph(self, graph: Graph, distance: str, constant_K: np.ndarray) -> str:
        """Log joint densities from squared distances, and what does not depend on them."""
        halves_K = np.full(len(constant_K), -0.5)
        return graph.scaled(distance, halves_K, constant_K)

    def _whole_roots(self) -> tuple[np.ndarray, np.ndarray]:
        """Roots of the precisions (K, D, D), or (K, D) on the axes, and the logarithms of their determinants (K,)."""
        K, D = self.means_.shape
        root = as_array(self.precisions_cholesky_).astype(float)
        if self._layout in MATRICES:
            roots = np.broadcast_to(root, (K, D, D))
            diagonal_KD = np.diagonal(roots, axis1=1, axis2=2)
        else:
            columns = root.reshape(K, -1)
            roots = diagonal_KD = np.broadcast_to(columns, (K, D))
        log_KD = np.log(diagonal_KD)
        return roots, log_KD.sum(1)


class LinearMixture(CountMixture):
    """Log densities are linear in the rows, up to what all components share."""

    def _log_joint_graph(self, graph: Graph) -> str:
        cpu = torch.device("cpu")
        family = self._family(self.n_features_in_, cpu)
        params = self._params(cpu)
        slopes_KD, constants_KD = family.coefficients(params)  # type: ignore[attr-defined]
        log_weights_K = log_positive(params["weights"])
        constant_K = log_weights_K + constants_KD.sum(1)
        return graph.linear(slopes_KD.numpy(), constant_K.numpy())
