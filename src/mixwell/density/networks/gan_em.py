"""Clusters of any shape: EM whose components are one conditional generator, and whose posterior learns from its draws.

**Equation:** a generator G(k, u), u uniform, a discriminator with logits d_1..d_K and d_0 (fake), an encoder e(x) whose
softmax w(x) are the responsibilities (1 / K in the first round). With s(t) = log(1 + e^t) the M step descends, for the
discriminator, sum_k w_k(x) s(-d_k(x)) + 2 s(d_0(x)) at rows and sum_k s(d_k) + s(-d_0) at draws; for the generator
s(-d_k) + sum_(j not k) s(d_j) + s(d_0) at draws of k; all over K + 1. The E step descends the cross-entropy of e at
fresh draws G(k, u) from their k: the encoder never learns from rows.

**Shapes:** X (N, D); responsibilities (N, K); draws (M, D) with labels (M,).

**Reference:** Zhao, Wang, Xie, Shi, Xu (2018), GAN-EM: GAN based EM learning framework, arXiv:1812.00335, and its
released code, whose losses these are (the abstract speaks of Lipschitz continuity, of which the code has nothing).

**Differs:** plain networks of two hidden layers on standardised columns in place of convolutions, without batch
normalisation; no semi-supervised loss. Ratios of rates, their decay, the weight of 2 are the code's.

**Fails when:** clusters differ in size (draws are equally many of each); the first round breaks the tie between equal
components badly: they come from the start alone, and no likelihood says which start was better.

**Cost:** O(rounds (gan_steps + e_steps) batch hidden (D + K + hidden)).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.base import ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, softplus
from torch.nn.utils import skip_init

from mixwell.core.method import method
from mixwell.density._gaussian import Array
from mixwell.density._options import Configured
from mixwell.density._training import update

GENERATOR, ENCODER = 3.0, 0.3  # learning rates, in the discriminator's
DECAY = 0.98  # of all rates a round
BETAS = (0.5, 0.999)
REAL = 2.0  # weight of "not fake" at rows


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the clusters; `ValueError` for one out of range."""

    n_components: int = 2  # K
    rounds: int = 10  # of M and E
    gan_steps: int = 200  # a round
    e_steps: int = 100  # a round
    batch: int = 64
    hidden: int = 64  # units of both hidden layers
    noise_dim: int = 4  # of u
    lr: float = 1e-3  # of the discriminator
    random_state: Any = None

    def __post_init__(self) -> None:
        for name in ("n_components", "rounds", "gan_steps", "e_steps", "batch", "hidden", "noise_dim", "lr"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")


def real_loss(logits_NC: Tensor, w_NK: Tensor) -> Tensor:
    """What the discriminator descends at rows (N, K + 1 logits, the fake's last) with responsibilities."""
    K = w_NK.shape[1]
    of_NK, fake_N1 = logits_NC.split([K, 1], dim=1)
    real_NK = w_NK * softplus(-of_NK)
    fake_N1 = REAL * softplus(fake_N1)
    each_NC = torch.cat([real_NK, fake_N1], 1)
    return each_NC.mean()


def fake_loss(logits_NC: Tensor) -> Tensor:
    """What the discriminator descends at draws: to name the fake, as the generator's is to name k."""
    last = logits_NC.shape[1] - 1
    fake_N = torch.full_like(logits_NC[:, 0], last, dtype=torch.long)
    return generator_loss(logits_NC, fake_N)


def generator_loss(logits_NC: Tensor, k_N: Tensor) -> Tensor:
    """What the generator descends at draws of components k."""
    target_NC = one_hot(k_N, logits_NC.shape[1])
    sign_NC = 1 - 2 * target_NC
    each_NC = softplus(sign_NC * logits_NC)
    return each_NC.mean()


class Networks(nn.Module):
    """Generator, discriminator and encoder."""

    def __init__(self, columns: int, config: Config, draws: torch.Generator) -> None:
        super().__init__()
        K, hidden = config.n_components, config.hidden
        self.components = K
        self.noise = config.noise_dim
        inputs = K + self.noise
        self.generator = _network(inputs, hidden, columns, draws)
        self.discriminator = _network(columns, hidden, K + 1, draws)
        self.encoder = _network(columns, hidden, K, draws)

    def draw(self, rows: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows (rows, D) of components drawn alike, and which (rows,)."""
        k_N = torch.randint(self.components, (rows,), generator=draws)
        return self.draw_of(k_N, draws), k_N

    def draw_of(self, k_N: Tensor, draws: torch.Generator) -> Tensor:
        """Rows (N, D) of the components k."""
        hot_NK = one_hot(k_N, self.components)
        noise_NU = torch.rand(len(k_N), self.noise, generator=draws)
        inputs = torch.cat([hot_NK, noise_NU], 1)
        return self.generator(inputs)


def _network(columns: int, hidden: int, outputs: int, draws: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = (columns, hidden, hidden, outputs)
    for inputs, width in pairwise(widths):
        linear = skip_init(nn.Linear, inputs, width)
        bound = inputs**-0.5
        with torch.no_grad():
            linear.weight.uniform_(-bound, bound, generator=draws)
            linear.bias.uniform_(-bound, bound, generator=draws)
        layers += [linear, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def m_step(networks: Networks, x_ND: Tensor, w_NK: Tensor, config: Config, rate: float,
           draws: torch.Generator) -> None:
    """Steps of discriminator and generator in turn, responsibilities (N, K) as they are."""
    discriminator, generator = networks.discriminator, networks.generator
    critic = torch.optim.Adam(discriminator.parameters(), lr=rate, betas=BETAS)
    maker = torch.optim.Adam(generator.parameters(), lr=GENERATOR * rate, betas=BETAS)
    for _ in range(config.gan_steps):
        rows_B = torch.randint(len(x_ND), (config.batch,), generator=draws)
        made_BD, _ = networks.draw(config.batch, draws)
        logits_BC = discriminator(x_ND[rows_B])
        at_rows = real_loss(logits_BC, w_NK[rows_B])
        fake_BC = discriminator(made_BD.detach())
        loss = at_rows + fake_loss(fake_BC)
        update(critic, loss)
        made_BD, k_B = networks.draw(config.batch, draws)
        logits_BC = discriminator(made_BD)
        update(maker, generator_loss(logits_BC, k_B))


def e_step(networks: Networks, config: Config, rate: float, draws: torch.Generator) -> float:
    """Steps of the encoder on fresh draws; gives the cross-entropy of the last, in nats."""
    reader = torch.optim.Adam(networks.encoder.parameters(), lr=ENCODER * rate, betas=BETAS)
    for _ in range(config.e_steps):
        with torch.no_grad():
            made_BD, k_B = networks.draw(config.batch, draws)
        loss = cross_entropy(networks.encoder(made_BD), k_B)
        update(reader, loss)
    return loss.item()


@method(title="Clusters by a conditional generator and EM", paper="GAN-EM: GAN based EM learning framework", year=2018,
        tags={"estimator", "responsibilities"})
class AdversarialMixture(ClusterMixin, Configured, config=Config):
    """Clusters whose shapes a generator learns; see the module's card.

    After `fit`: `labels_` (N,), `networks_`, `encoder_losses_` (nats, one a round: 0 where draws of the components are
    told apart, log K where they are alike).
    """

    def fit(self, X: Any, y: Any = None) -> AdversarialMixture:
        """Fit rows X (N, D); `ValueError` for options out of range or rows that are not finite numbers."""
        config = self._config()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        spread_D = X.std(0)
        self._mean = X.mean(0)
        self._spread = np.maximum(spread_D, 1e-12)
        x_ND = self._scaled(X)
        source = check_random_state(config.random_state)
        draws = torch.Generator()
        draws.manual_seed(source.randint(2**31 - 1))
        networks = Networks(X.shape[1], config, draws)
        K = config.n_components
        w_NK = x_ND.new_full((len(x_ND), K), 1 / K)
        self.networks_, self.encoder_losses_ = networks, []
        for turn in range(config.rounds):
            rate = config.lr * DECAY**turn
            m_step(networks, x_ND, w_NK, config, rate, draws)
            loss = e_step(networks, config, rate, draws)
            self.encoder_losses_.append(loss)
            w_NK = self._responsibilities(x_ND)
        labels_N = w_NK.argmax(1)
        self.labels_ = labels_N.numpy()
        return self

    def _scaled(self, X: Array) -> Tensor:
        scaled = (X - self._mean) / self._spread
        return torch.from_numpy(scaled).float()

    @torch.no_grad()
    def _responsibilities(self, x_ND: Tensor) -> Tensor:
        logits_NK = self.networks_.encoder(x_ND)
        return logits_NK.softmax(1)

    def predict_proba(self, X: Any) -> Array:
        """Responsibilities (N, K) of rows X (N, D); errors as in `fit`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        w_NK = self._responsibilities(self._scaled(X))
        return w_NK.double().numpy()

    def predict(self, X: Any) -> Array:
        """The likeliest component (N,) of rows X (N, D); errors as in `fit`."""
        return self.predict_proba(X).argmax(1)

    def sample(self, n_samples: int = 1, seed: int = 0) -> tuple[Array, Array]:
        """Rows (n_samples, D) that the generator makes, and their components (n_samples,)."""
        check_is_fitted(self)
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            made_ND, k_N = self.networks_.draw(n_samples, draws)
        rows_ND = made_ND.double().numpy() * self._spread + self._mean
        return rows_ND, k_N.numpy()


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups far apart."""
    side_N1 = torch.randint(2, (60, 1), generator=generator)
    noise_ND = torch.randn(60, 2, generator=generator)
    x_ND = 8 * side_N1 + noise_ND
    small = {"batch": 32, "hidden": 16, "lr": 4e-3}
    estimator = AdversarialMixture(rounds=6, gan_steps=60, e_steps=40, random_state=0, **small)
    return {
        "estimator": estimator,
        "X": x_ND.double().numpy(),
    }
