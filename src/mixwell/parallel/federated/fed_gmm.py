"""FedGMM: Gaussians of inputs and models of labels shared by all clients, mixed by weights of each client's own.

**Equation:** client c: p_c(z, y) = sum_{g,m} pi_c[g, m] N(z; mu_g, S_g) p(y | z, theta_m). E: q_n[g, m] ~ pi_c[g, m]
    N(z_n; mu_g, S_g) p(y_n | z_n, theta_m). M, at home: pi_c = mean_n q_n, and theta_m by steps down -mean_n sum_m
    q_n[m] log p(y_n | z_n, theta_m). M, at the server, from sums over all rows of all clients: n_g = sum q_n[g], mu_g =
    sum q_n[g] z_n / n_g, S_g = sum q_n[g] (z_n - mu_g)(z_n - mu_g)' / n_g + r I; theta_m = sum_c n_c pi_c[m] theta_m^c
    / sum_c n_c pi_c[m]. A row is explained by p(m | z) ~ sum_g pi_c[g, m] N(z; mu_g, S_g); it is new where p_c(z) is
    small.
**Shapes:** z [N, D]; pi [G, M]; mu [G, D]; S [G, D, D]; theta tensors [M, ...].
**Reference:** Wu et al. 2023 (2305.01068), sections 3 and 4; the released code (learners_ensemble, gmm, aggregator).
**Differs:** clients send sums (about the server's last means, so that no digits are lost), and the Gaussians are those
    of pooled EM to the last digits; the released code averages the clients' covariances without the scatter of their
    means. r is added once, at the server. Prediction weighs by log pi, where the released code adds pi to log
    densities. The start is drawn from the normal of all rows, whose sums the first round gathers. Sums that no rows can
    have are left out; liars can still say much else.
**Fails when:** D is large against the rows (full covariances); labels depend on z alike everywhere (one model does).
**Cost:** G (1 + D + D^2) numbers and the models both ways; O(N G D^2) and the models' passes a client and round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixwell.core.method import method
from mixwell.density.values.gaussian_mixture import GaussianMixtureDensity
from mixwell.mixing import check_above, check_least, check_not_negative
from mixwell.parallel.federated._example import COLUMNS, federation, logits
from mixwell.parallel.federated.clients import Client, Table, Tensors, batches
from mixwell.parallel.federated.learning import below, descended, prefixed, stacked, unstacked
from mixwell.parallel.federated.simulation import Answer, Answers, Federated, Turn

DEAD = 1e-10  # rows: a Gaussian or model with fewer stays as it is
ROUNDING = 1e-5  # share of the largest square that a scatter may be below 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of FedGMM."""

    gaussians: int = 3  # G
    experts: int = 3  # M, models of the labels
    personal: bool = True  # whether each client has a pi of its own; else all have the server's
    reg_covar: float = 0.1  # r
    lr: float = 0.01  # of the models' steps
    steps: int = 10  # of the models in a round
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_least(self, gaussians=1, experts=1, steps=0, batch_size=1)
        check_above(self, lr=0)
        check_not_negative(self, "reg_covar")


@dataclass(frozen=True, eq=False)
class Conditional:
    """Models of labels: one's tensors at their start, and log p(y | z) [N] of rows under tensors."""

    start: Callable[[torch.Generator], Tensors]
    log_prob: Callable[[Tensors, Any], Tensor]


def _no_tensors(generator: torch.Generator) -> Tensors:
    return {}


def _no_labels(tensors: Tensors, rows: Any) -> Tensor:
    return rows.x.new_zeros(len(rows))


UNLABELLED = Conditional(_no_tensors, _no_labels)  # rows without labels: the Gaussians alone


def log_normals(z_ND: Tensor, means_GD: Tensor, covariances_GDD: Tensor) -> Tensor:
    """log N(z; mu, S) [N, G]."""
    normals = torch.distributions.MultivariateNormal(means_GD, covariances_GDD)
    return normals.log_prob(z_ND[:, None])


def responsibilities(log_pi_GM: Tensor, normal_NG: Tensor, label_NM: Tensor) -> Tensor:
    """q [N, G, M]."""
    normal_NG1 = normal_NG.unsqueeze(2)
    label_N1M = label_NM.unsqueeze(1)
    joint_NGM = log_pi_GM + normal_NG1 + label_N1M
    flat_NP = joint_NGM.flatten(1)
    return flat_NP.softmax(1).view_as(joint_NGM)


def sums(q_NG: Tensor, z_ND: Tensor, means_GD: Tensor) -> dict[str, Tensor]:
    """Count [G], sum [G, D] and squares [G, D, D] of rows about means."""
    away_NGD = z_ND[:, None] - means_GD
    q_NG1 = q_NG.unsqueeze(2)
    weighed_NGD = q_NG1 * away_NGD
    squares_GDD = torch.einsum("ngd,nge->gde", weighed_NGD, away_NGD)
    count_G = q_NG.sum(0)
    sum_GD = weighed_NGD.sum(0)
    return {"count": count_G, "sum": sum_GD, "squares": squares_GDD}


def moments(z_ND: Tensor) -> dict[str, Tensor]:
    """The sums of all rows about the origin, as of one Gaussian."""
    ones_N1 = torch.ones_like(z_ND[:, :1])
    origin_1D = torch.zeros_like(z_ND[:1])
    return sums(ones_N1, z_ND, origin_1D)


def maximised(tally: Tensors, means_GD: Tensor, covariances_GDD: Tensor, reg_covar: float) -> dict[str, Tensor]:
    """Means and covariances from sums about the old means; what no row belongs to keeps its own."""
    count_G11 = tally["count"].clamp_min(DEAD)[:, None, None]
    offset_GD = tally["sum"] / count_G11.squeeze(2)
    scatter_GDD = tally["squares"] / count_G11
    within_GDD = scatter_GDD - outer(offset_GD)
    within_GDD.diagonal(dim1=1, dim2=2).add_(reg_covar)
    alive_G11 = count_G11 > DEAD
    alive_G1 = alive_G11.squeeze(2)
    moved_GD = means_GD + offset_GD
    covariances = torch.where(alive_G11, within_GDD, covariances_GDD)
    means = torch.where(alive_G1, moved_GD, means_GD)
    return {"means": means, "covariances": covariances}


def outer(rows_GD: Tensor) -> Tensor:
    """Each row's products with itself [G, D, D]."""
    columns_GD1 = rows_GD.unsqueeze(2)
    return columns_GD1 * rows_GD.unsqueeze(1)


def possible(tally: Tensors) -> bool:
    """Whether there are rows that such sums may be of: counts of 0 or more, and squares no smaller than the means'."""
    count_G = tally["count"]
    parts = tally.get("parts", count_G)
    fewest = min(count_G.min(), parts.min())
    if float(fewest) < 0:
        return False
    squares_GDD = tally["squares"]
    safe_G11 = count_G.clamp_min(DEAD)[:, None, None]
    of_means_GDD = outer(tally["sum"]) / safe_G11
    spread_GD = torch.linalg.eigvalsh(squares_GDD - of_means_GDD)
    least = float(spread_GD.min())
    largest = float(squares_GDD.abs().max())
    return least >= -ROUNDING * largest


@method(
    title="FedGMM: federated mixtures of inputs and of labels",
    paper="Personalized Federated Learning under Mixture of Distributions",
    year=2023,
)
class FedGMM(Federated):
    """See the module's card. The state: `weights`, `means`, `covariances`, `theta.`; a memory: `weights`."""

    def __init__(self, task: Conditional, config: Config) -> None:
        self.task = task
        self.config = config

    def start(self, clients: Sequence[Client], generator: torch.Generator) -> Tensors:
        """Gaussians at the origin, which the first round moves, and fresh models."""
        G, M = self.config.gaussians, self.config.experts
        x_ND = clients[0].rows.x
        columns = x_ND.shape[1]
        means_GD = x_ND.new_zeros(G, columns)
        unit_GDD = torch.diag_embed(means_GD + 1)
        weights_GM = self._equal(x_ND)
        state = {"weights": weights_GM, "means": means_GD, "covariances": unit_GDD}
        fresh = [self.task.start(generator) for _ in range(M)]
        return state | prefixed("theta", stacked(fresh))

    def remembered(self, client: Client) -> Tensors:
        """Equal weights."""
        return {"weights": self._equal(client.rows.x)}

    def _equal(self, like: Tensor) -> Tensor:
        G, M = self.config.gaussians, self.config.experts
        share = 1 / (G * M)
        return like.new_full((G, M), share)

    def asked(self, state: Tensors, drawn: Sequence[Client], everyone: Sequence[Client], turn: Turn,
              ) -> Sequence[Client]:
        """All clients in the first round, which gathers what the start is drawn from."""
        return drawn if turn.number else everyone

    def message(self, state: Tensors, client: Client, turn: Turn) -> Tensors:
        """What is shared; nothing in the first round."""
        if turn.number == 0:
            return {}
        shared = dict(state)
        if self.config.personal:
            del shared["weights"]
        return shared

    def answer(self, client: Client, message: Tensors, memory: Tensors, turn: Turn) -> Answer:
        """Sums over its rows, and its models."""
        rows = client.rows
        if not message:
            return Answer(moments(rows.x), len(rows), memory)
        personal = self.config.personal
        weights = memory if personal else message
        q_NGM = self.explained(message, weights["weights"], rows)
        tally = sums(q_NGM.sum(2), rows.x, message["means"])
        tally["parts"] = q_NGM.sum(0)
        before = below("theta", message)
        theta = self.trained(before, q_NGM.sum(1), client, turn)
        own = {"weights": q_NGM.mean(0)}
        return Answer(tally | prefixed("theta", theta), len(rows), own)

    def explained(self, state: Tensors, weights_GM: Tensor, rows: Any) -> Tensor:
        """q [N, G, M] of rows."""
        normal_NG = log_normals(rows.x, state["means"], state["covariances"])
        return responsibilities(weights_GM.log(), normal_NG, self.labels(state, rows))

    def labels(self, state: Tensors, rows: Any) -> Tensor:
        """log p(y | z, theta_m) [N, M]."""
        theta = below("theta", state)
        bare: list[dict[str, Tensor]] = [{}] * self.config.experts
        models = unstacked(theta) or bare
        parts = [self.task.log_prob(model, rows) for model in models]
        return torch.stack(parts, 1)

    def trained(self, theta: Tensors, q_NM: Tensor, client: Client, turn: Turn) -> Tensors:
        """The models after steps on rows weighed by their responsibilities."""
        if not theta:
            return {}
        config = self.config
        weighed = Table(torch.arange(len(client.rows)), q_NM)
        parts = batches(weighed, config.batch_size, config.steps, turn.draws("batches", client.number))

        def loss(tensors: Tensors, part: Table) -> Tensor:
            rows = client.rows.of(part.x)
            label_NM = self.labels(prefixed("theta", tensors), rows)
            explained_NM = part.y * label_NM
            mean_M = explained_NM.mean(0)
            return -mean_M.sum()

        return descended(loss, theta, parts, config.lr)

    def merged(self, state: Tensors, answers: Answers, turn: Turn) -> Tensors:
        """The M step over the rows of all who answered, but for sums that no rows have."""
        said = [answer.tensors for answer in answers.values() if possible(answer.tensors)]
        if not said:
            return dict(state)
        every = stacked(said)
        tally = {name: every[name].sum(0) for name in ("count", "sum", "squares")}
        if turn.number == 0:
            drawn = self._drawn(tally, turn)
            return {**state, **drawn}
        shared = maximised(tally, state["means"], state["covariances"], self.config.reg_covar)
        parts_CGM = every["parts"]
        weights_GM = parts_CGM.sum(0) / parts_CGM.sum()
        models, before = below("theta", every), below("theta", state)
        theta = averaged(models, parts_CGM.sum(1), before)
        return {"weights": weights_GM, **shared, **prefixed("theta", theta)}

    def _drawn(self, tally: Tensors, turn: Turn) -> dict[str, Tensor]:
        """Gaussians that start at draws from the normal of all rows, as wide as it is."""
        config = self.config
        zeros_1D = torch.zeros_like(tally["sum"])
        whole = maximised(tally, zeros_1D, tally["squares"], config.reg_covar)
        covariance_1DD = whole["covariances"]
        root_DD = torch.linalg.cholesky(covariance_1DD[0])
        shape = config.gaussians, len(root_DD)
        draws_GD = torch.randn(shape, generator=turn.draws("means"), dtype=root_DD.dtype)
        away_GD = draws_GD @ root_DD.T
        covariances_GDD = covariance_1DD.repeat(config.gaussians, 1, 1)
        return {"means": whole["means"] + away_GD, "covariances": covariances_GDD}

    def shares(self, state: Tensors, weights_GM: Tensor, z_ND: Tensor) -> Tensor:
        """p(m | z) [N, M]: which models a client's rows ask, before their labels are known."""
        normal_NG = log_normals(z_ND, state["means"], state["covariances"])
        joint_NGM = normal_NG[:, :, None] + weights_GM.log()
        return joint_NGM.logsumexp(1).softmax(1)

    def adapted(self, state: Tensors, rows: Any, steps: int = 20) -> Tensor:
        """The weights [G, M] of a client that was never asked: EM on its rows, all that is shared held still."""
        weights_GM = self._equal(rows.x)
        for _ in range(steps):
            weights_GM = self.explained(state, weights_GM, rows).mean(0)
        return weights_GM


def density(state: Tensors, weights_GM: Tensor) -> GaussianMixtureDensity:
    """p_c(z) of a client with these weights, as a density that can be scored, drawn from and conditioned."""
    weights_G = weights_GM.sum(1)
    return GaussianMixtureDensity(weights_G / weights_G.sum(), state["means"], state["covariances"])


def averaged(models: Tensors, parts_CM: Tensor, before: Tensors) -> dict[str, Tensor]:
    """Each model's mean over the clients, weighed by the rows that they give it; the old one where there are none."""
    total_M = parts_CM.sum(0)
    share_CM = parts_CM / total_M.clamp_min(DEAD)
    found = {}
    for name, old in before.items():
        own_CM = share_CM.to(old.dtype)
        mean = torch.einsum("cm,cm...->m...", own_CM, models[name])
        ones = [1] * (old.ndim - 1)
        alive = total_M.view(-1, *ones) > DEAD
        found[name] = torch.where(alive, mean, old)
    return found


def example(generator: torch.Generator) -> dict[str, Any]:
    """Five clients, two Gaussians and two softmax regressions."""
    given = federation(generator)
    start = given["task"].start
    return {"task": Conditional(lambda draws: _near(start, draws), _log_prob), "clients": given["clients"],
            "config": Config(gaussians=2, experts=2, steps=2, batch_size=4, reg_covar=0.1 / COLUMNS)}


def _near(start: Tensors, generator: torch.Generator) -> dict[str, Tensor]:
    """Tensors moved a little."""
    found = {}
    for name, tensor in start.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        found[name] = tensor + 0.1 * drawn.to(tensor.dtype)
    return found


def _log_prob(tensors: Tensors, rows: Table) -> Tensor:
    said_NC = logits(tensors, rows.x).log_softmax(1)
    own_N1 = said_NC.gather(1, rows.y[:, None])
    return own_N1.squeeze(1)
