"""Mixtures of Gaussians fitted to tables that stay with their owners: FedGMM's rounds from several starts.

Legend: T tables, N rows, D columns, K components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixwell.core.errors import MixwellError
from mixwell.density.values.gaussian_mixture import GaussianMixtureDensity
from mixwell.parallel.federated.clients import Client, Table
from mixwell.parallel.federated.fed_gmm import UNLABELLED, Config, FedGMM, density
from mixwell.parallel.federated.simulation import Outcome, Setting, simulate

TOLD_BYTES = 8  # of the log-likelihood that an owner tells of each start


class SharedMixture(NamedTuple):
    """One set of components for all tables."""

    density: GaussianMixtureDensity  # of all rows together
    weights_TK: Tensor  # of each table's own rows
    log_likelihood: float  # mean over all rows, in nats
    down_bytes: int  # to the owners, over all starts
    up_bytes: int  # from them


def fit_tables(tables: Sequence[Any], n_components: int, *, rounds: int = 50, n_init: int = 3,
               reg_covar: float = 1e-6, personal: bool = False, random_state: int = 0) -> SharedMixture:
    """Fit a mixture to tables [N, D] of numbers (arrays, tensors, frames), of which nothing is sent but sums over rows.

    The components are those of EM over all rows put together, from the same start. personal: each table has weights of
    its own in every step, else all share them. Of `n_init` starts the one with the highest likelihood is kept.
    Raises `MixwellError` for tables with other columns, without rows, or with what is no finite number, and where a
    component has no density.
    """
    if n_init < 1 or rounds < 0:
        raise MixwellError(f"n_init is {n_init}, rounds is {rounds}; expected at least 1 and 0.")
    clients = [Client(place, _checked(table, place)) for place, table in enumerate(tables)]
    _check_columns(clients)
    _check_names(tables)
    config = Config(gaussians=n_components, experts=1, personal=personal, reg_covar=reg_covar, steps=0)
    method = FedGMM(UNLABELLED, config)
    with _density_errors():
        found = [simulate(method, clients, Setting(rounds=rounds + 1, seed=random_state + start))
                 for start in range(n_init)]
        likelihoods = [_likelihood(one, clients, personal) for one in found]
    best = max(range(n_init), key=likelihoods.__getitem__)
    told = TOLD_BYTES * n_init * len(clients)
    kept = found[best]
    weights = [memory["weights"].squeeze(1) for memory in kept.memories.values()]
    return SharedMixture(
        density=_whole(kept), weights_TK=torch.stack(weights), log_likelihood=likelihoods[best],
        down_bytes=sum(one.down_bytes for one in found), up_bytes=told + sum(one.up_bytes for one in found))


def _checked(table: Any, place: int) -> Table:
    """A table in float64."""
    x_ND = _numbers(table, place)
    if x_ND.ndim != 2 or not x_ND.numel():
        raise MixwellError(f"table {place} has the shape {tuple(x_ND.shape)}; expected rows and columns.")
    if not bool(x_ND.isfinite().all()):
        raise MixwellError(f"table {place} holds NaN or infinity; expected finite numbers.")
    return Table(x_ND, x_ND[:, 0])


def _numbers(table: Any, place: int) -> Tensor:
    if isinstance(table, Tensor):
        return table.detach().to(torch.float64)
    try:
        array = np.array(table, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MixwellError(f"table {place} holds what is no number ({error}); leave it out or encode it.") from None
    return torch.from_numpy(array)


def _check_names(tables: Sequence[Any]) -> None:
    """Raise `MixwellError` for data frames whose columns are not the same in the same order."""
    named = [list(table.columns) for table in tables if hasattr(table, "columns")]
    for names in named:
        if names != named[0]:
            raise MixwellError(f"tables with the columns {named[0]} and {names} came; expected the same in one order.")


@contextmanager
def _density_errors() -> Iterator[None]:
    """One line for covariances that are none."""
    try:
        yield
    except MixwellError:
        raise
    except (ValueError, torch.linalg.LinAlgError) as error:
        raise MixwellError("a component has no density: its rows are too few, or differ too little beside the size of "
                           "their numbers. Centre and scale the columns, raise reg_covar, or ask for fewer "
                           "components.") from error


def _check_columns(clients: Sequence[Client]) -> None:
    columns = [client.rows.x.shape[1] for client in clients]
    if len(set(columns)) != 1:
        raise MixwellError(f"tables with {columns} columns came; expected at least one, and as many columns in all.")


def _whole(found: Outcome) -> GaussianMixtureDensity:
    return density(found.state, found.state["weights"])


def _likelihood(found: Outcome, clients: Sequence[Client], personal: bool) -> float:
    """The mean over all rows of log p, each table's by its own weights where it has some."""
    total, count = 0.0, 0
    for client in clients:
        own = found.memories[client.number] if personal else found.state
        p = density(found.state, own["weights"])
        total += float(p.log_prob(client.rows.x).sum())
        count += len(client.rows)
    return total / count
