"""Fitted mixtures as ONNX models: labels and responsibilities of whole rows, without this library.

N rows, D columns, K components.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixwell.core.errors import MixwellError

OPSET, FORMAT = 17, 8  # versions of the operators and of the file, which runtimes of 2022 read


class Graph:
    """Operations on the rows X (N, D), float64, one after the other; each is named by its result."""

    def __init__(self) -> None:
        try:
            from onnx import helper, numpy_helper
        except ImportError as error:
            raise MixwellError("ONNX models need the onnx package: pip install onnx.") from error
        self._helper, self._numbers = helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any) -> str:
        """Numbers that are known beforehand."""
        name = f"constant_{len(self.constants)}"
        tensor = self._numbers.from_array(np.ascontiguousarray(value), name)
        self.constants.append(tensor)
        return name

    def add(self, operator: str, *inputs: str, **options: Any) -> str:
        """The result of an operator."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        node = self._helper.make_node(operator, list(inputs), [name], **options)
        self.nodes.append(node)
        return name

    def squared_distances(self, means_KD: np.ndarray, roots: np.ndarray) -> str:
        """Squares of (x - mean) times the root, summed (K, N); roots (K, D, D), or (K, D) on the axes."""
        means = self.constant(means_KD[:, None])
        gap = self.add("Sub", "X", means)
        root = self.constant(roots if roots.ndim == 3 else roots[:, None])
        white = self.add("MatMul" if roots.ndim == 3 else "Mul", gap, root)
        return self.add("ReduceSumSquare", white, axes=[2], keepdims=0)

    def scaled(self, value_KN: str, factor_K: np.ndarray, constant_K: np.ndarray) -> str:
        """A value times a factor of every component, plus a constant of each (K, N)."""
        factor = self.constant(factor_K[:, None])
        product = self.add("Mul", value_KN, factor)
        constant = self.constant(constant_K[:, None])
        return self.add("Add", product, constant)

    def linear(self, slopes_KD: np.ndarray, constant_K: np.ndarray) -> str:
        """X times slopes, plus constants (K, N)."""
        slopes = self.constant(slopes_KD.T)
        product_NK = self.add("MatMul", "X", slopes)
        product_KN = self.add("Transpose", product_NK, perm=[1, 0])
        ones_K = np.ones(len(constant_K))
        return self.scaled(product_KN, ones_K, constant_K)

    def serialised(self, log_joint_KN: str, columns: int) -> bytes:
        """An ONNX model with the outputs `labels` (N,) and `responsibilities` (N, K)."""
        helper = self._helper
        log_NK = self.add("Transpose", log_joint_KN, perm=[1, 0])
        last = [helper.make_node("ArgMax", [log_NK], ["labels"], axis=1, keepdims=0),
                helper.make_node("Softmax", [log_NK], ["responsibilities"], axis=1)]
        double, whole = 11, 7  # types of numbers
        rows = helper.make_tensor_value_info("X", double, ["N", columns])
        labels = helper.make_tensor_value_info("labels", whole, ["N"])
        shares = helper.make_tensor_value_info("responsibilities", double, ["N", None])
        graph = helper.make_graph([*self.nodes, *last], "mixture", [rows], [labels, shares], self.constants)
        versions = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=FORMAT, producer_name="mixwell")
        return model.SerializeToString()
