"""Estimators whose constructor parameters are the fields of a config, so that each is written down once."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from mixwell.core.errors import MixwellError

try:
    from sklearn.base import BaseEstimator
except ImportError as error:
    raise MixwellError("mixture models need scikit-learn 1.6 or later: pip install 'mixwell[tables]'.") from error


class Configured(BaseEstimator):
    """An estimator with scikit-learn's `get_params` and `set_params` over a config's fields.

    `class X(Configured, config=Config)` makes the constructor, in which fields that are not keyword-only may come by
    place; `fit` builds the config, which checks the ranges.
    """

    _config_class: type

    def __init_subclass__(cls, config: type | None = None, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if config is not None:
            cls._config_class = config
            cls.__init__ = _constructor(config)  # type: ignore[method-assign]

    def _config(self) -> Any:
        return self._config_class(**self.get_params(deep=False))


def _constructor(config: type) -> Callable[..., None]:
    fields = dataclasses.fields(config)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    placed = [_parameter(f) for f in fields if not f.kw_only]
    named = [_parameter(f) for f in fields if f.kw_only]
    signature = inspect.Signature([own, *placed, *named])

    def __init__(self: Any, *args: Any, **values: Any) -> None:
        bound = signature.bind(self, *args, **values)
        bound.apply_defaults()
        for field in fields:
            setattr(self, field.name, bound.arguments[field.name])

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY if field.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(field.name, kind, default=field.default)
