"""Mixtures over blocks of columns as ONNX graphs: every block's own operations on its columns, added up.

N rows, K components, C categories of a column.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from mixwell.density._gaussian import log_positive
from mixwell.density.mixtures.em.exported import Graph


class OfColumns(Graph):
    """A graph whose rows are some columns of another's, to which all its operations go."""

    def __init__(self, graph: Graph, places: Sequence[int]) -> None:
        self._helper, self._numbers = graph._helper, graph._numbers
        self.nodes, self.constants = graph.nodes, graph.constants
        index = self.constant(np.array(places))
        self.rows = graph.add("Gather", "X", index, axis=1)

    def add(self, operator: str, *inputs: str, **options: Any) -> str:
        own = [self.rows if name == "X" else name for name in inputs]
        return super().add(operator, *own, **options)


def joined(graph: Graph, blocks: Sequence[Any], weights_K: np.ndarray) -> str:
    """Log weights plus log densities (K, N) of fitted blocks, up to what all components share."""
    parts = [_of_block(OfColumns(graph, block.columns), block) for block in blocks]
    total = reduce(lambda one, other: graph.add("Add", one, other), parts)
    ones_K = np.ones(len(weights_K))
    return graph.scaled(total, ones_K, log_positive(weights_K))


def _of_block(graph: OfColumns, block: Any) -> str:
    """Log densities (K, N) of a block's columns, without weights."""
    if block.kind == "category":
        return _of_categories(graph, block.estimator.probabilities_)
    unweighted = copy.copy(block.estimator)
    unweighted.weights_ = np.ones_like(block.estimator.weights_)
    return str(unweighted._log_joint_graph(graph))


def _of_categories(graph: OfColumns, probabilities: Sequence[np.ndarray]) -> str:
    """Logarithms looked up by the codes of every column."""
    parts = []
    flat = graph.constant(np.array([-1]))
    for column, shares_KC in enumerate(probabilities):
        place = graph.constant(np.array([column]))
        values_N1 = graph.add("Gather", "X", place, axis=1)
        values_N = graph.add("Reshape", values_N1, flat)
        codes_N = graph.add("Cast", values_N, to=7)  # 64-bit whole numbers
        positive_KC = np.maximum(shares_KC, 1e-300)
        logs_KC = graph.constant(np.log(positive_KC))
        parts.append(graph.add("Gather", logs_KC, codes_N, axis=1))
    return reduce(lambda one, other: graph.add("Add", one, other), parts)
