"""Estimators whose fitted attributes are their family's parameters as they stand.

K components, D columns, S starts.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from mixwell.density.mixtures._parts import MixtureEstimator
from mixwell.density.mixtures.em.loop import Family, Params
from mixwell.density.mixtures.em.rows import Rows


class PlainMixture(MixtureEstimator):
    """A mixture with the common constructor and one attribute for each parameter."""

    _attributes: ClassVar[dict[str, str]] = {}  # parameter of the family -> fitted attribute

    def __init__(self, n_components: int = 1, *, tol: float = 1e-3, max_iter: int = 100, n_init: int = 1,
                 init_params: str = "kmeans", random_state: Any = None, warm_start: bool = False, verbose: int = 0,
                 verbose_interval: int = 10, fixed: Any = None, batch_size: int | None = None,
                 learning_decay: float = 0.7, learning_offset: float = 10.0, init_size: int | None = None) -> None:
        self.n_components = n_components
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.fixed = fixed
        self.batch_size = batch_size
        self.learning_decay = learning_decay
        self.learning_offset = learning_offset
        self.init_size = init_size

    @abstractmethod
    def _family(self, columns: int, device: torch.device) -> Family:
        """The family for so many columns."""

    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Family:
        return self._family(rows.n_columns, rows.device)

    def _warm(self, family: Family) -> Params:
        return self._read(self._device)

    def _read(self, device: torch.device) -> Params:
        return {name: torch.as_tensor(getattr(self, attribute)).to(device, torch.float64)
                for name, attribute in {"weights": "weights_", **self._attributes}.items()}

    def _scoring(self, dtype: torch.dtype, device: torch.device) -> tuple[Family, Params]:
        return self._family(self.n_features_in_, device), self._read(device)

    def _publish(self, family: Family, params: Params, like: Any) -> None:
        for name, attribute in {"weights": "weights_", **self._attributes}.items():
            setattr(self, attribute, self._emit(params[name].to(self._dtype), like))
