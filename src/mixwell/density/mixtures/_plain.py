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
    """A mixture with one attribute for each parameter."""

    _attributes: ClassVar[dict[str, str]] = {}  # parameter of the family -> fitted attribute

    @abstractmethod
    def _family(self, columns: int, device: torch.device) -> Family:
        """The family for so many columns."""

    def _build_family(self, rows: Rows, weights_N: Tensor | None) -> Family:
        return self._family(rows.n_columns, rows.device)

    def _warm(self, family: Family) -> Params:
        return self._params(self._device)

    def _named(self) -> dict[str, str]:
        """Parameter of the family -> fitted attribute, the weights' included."""
        return {"weights": "weights_", **self._attributes}

    def _params(self, device: torch.device) -> Params:
        """The fitted attributes as parameters."""
        params = {}
        for name, attribute in self._named().items():
            value = torch.as_tensor(getattr(self, attribute))
            params[name] = value.to(device, torch.float64)
        return params

    def _scoring(self, dtype: torch.dtype, device: torch.device) -> tuple[Family, Params]:
        return self._family(self.n_features_in_, device), self._params(device)

    def _publish(self, family: Family, params: Params, like: Any) -> None:
        for name, attribute in self._named().items():
            value = params[name].to(self._dtype)
            setattr(self, attribute, self._emit(value, like))
