"""Additive mixture whose factors explain each other away, fitted by EM with a generative flow network as its posterior.

**Equation:** z_l ~ Categorical(pi_l), l = 1..L, x ~ N(b + sum_l w_(l, z_l), s^2 I): a mixture of K^L components whose
means are sums. The E step trains a policy q(z | x) = prod_t P(z_t | z_<t, x), which draws one factor after another, by
trajectory balance (log Z(x) + sum_t log P(z_t | z_<t, x) - log p(x, z))^2 on its own draws; where it is zero q is the
posterior and log Z the log likelihood. A share of steps may be asleep: z, x from the model, loss -log q(z | x). The M
step maximises sum log p(x, z) over draws of q, in closed form, and waits while the balance is worse than `threshold`.

**Shapes:** X (N, D); codes z (N, L); `means_` (L, K, D), `level_` (D,), `weights_` (L, K).

**Reference:** Hu, Malkin, Jain, Everett, Graikos, Bengio (2023), GFlowNet-EM for learning compositional latent variable
models, arXiv:2302.06576, and its released code: toy of petals, discrete autoencoders.

**Differs:** the model is the additive mixture, with a prior that is learnt, in place of images and grammars. log Z is a
network of x (released: one number for all images). The M step is a regression on several draws a row instead of a
gradient step or the likeliest code. Factors are drawn in a fixed order, so there is one way to each code.

**Fails when:** the policy never draws a good code (explore, or sleep); M steps before it has learnt move towards what
it happens to draw; too few E steps a round, when the posterior runs ahead of it.

**Cost:** O(e_steps * batch * L^2 K * hidden) a round; exact likelihoods O(N K^L D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils import skip_init

from mixwell.core.method import method
from mixwell.density._gaussian import Array, log_normal
from mixwell.density._options import Configured
from mixwell.density._training import update

ENUMERATED = 4096  # codes up to which likelihoods are summed, not estimated


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the additive mixture; `ValueError` for one out of range."""

    n_factors: int = 2  # L
    n_values: int = 4  # K, of every factor
    rounds: int = 40  # of E and M
    e_steps: int = 100  # of the policy's descent a round; ten times as many in the first
    batch: int = 128  # rows, or dreams, a step
    lr: float = 3e-3
    hidden: int = 32  # units in both layers of the policy, and of log Z
    draws: int = 4  # codes a row in the M step
    threshold: float = math.inf  # mean squared balance above which the M step waits, in nats^2
    floor: float = -20.0  # least log p(x, z) less the batch's largest that balances are held to
    explore: float = 0.1  # share of uniform choices among training draws
    sleep: float = 0.0  # share of steps on the model's own draws
    random_state: Any = None

    def __post_init__(self) -> None:
        for name in ("n_factors", "n_values", "rounds", "e_steps", "batch", "lr", "hidden", "draws", "threshold"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")
        for name in ("explore", "sleep"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; expected 0 to 1")
        if self.floor >= 0:
            raise ValueError(f"floor is {self.floor}; expected below 0")


class Model(NamedTuple):
    """What the M step fits."""

    log_pi_LK: Tensor
    coef_PD: Tensor  # b, then w of every value of every factor: P = 1 + L K
    variance: Tensor  # s^2


def design(z_NL: Tensor, values: int) -> Tensor:
    """Codes as rows (N, 1 + L K) of a regression."""
    hot_NLK = one_hot(z_NL, values)
    ones_N1 = torch.ones_like(z_NL[:, :1])
    return torch.cat([ones_N1, hot_NLK.flatten(1)], 1).double()


def log_joint(model: Model, x_ND: Tensor, z_NL: Tensor) -> Tensor:
    """log p(x, z) (N,)."""
    L, K = model.log_pi_LK.shape
    D = x_ND.shape[1]
    h_NP = design(z_NL, K)
    gap_ND = x_ND - h_NP @ model.coef_PD
    square_N = gap_ND.square().sum(1)
    log_scale = 0.5 * D * model.variance.log()
    log_x_N = log_normal(square_N / model.variance, log_scale, D)
    place_L = torch.arange(L)
    log_z_NL = model.log_pi_LK[place_L, z_NL]
    return log_x_N + log_z_NL.sum(1)


def maximise(x_ND: Tensor, first_NP: Tensor, second_PP: Tensor, factors: int) -> Model:
    """The likeliest model given expectations of the design (N, P) and sums of those of its squares (P, P).

    Means are the regression of least norm (adding to one factor what another loses changes nothing).
    """
    cross_PD = first_NP.T @ x_ND
    inverse_PP = torch.linalg.pinv(second_PP, rtol=1e-9, hermitian=True)
    coef_PD = inverse_PP @ cross_PD
    explained_PD = coef_PD * cross_PD
    left = x_ND.square().sum() - explained_PD.sum()
    variance = left / x_ND.numel()
    least = 1e-6 * x_ND.var()
    count_P = first_NP.sum(0) + 1e-3
    count_LK = count_P[1:].view(factors, -1)
    total_L1 = count_LK.sum(1, keepdim=True)
    pi_LK = count_LK / total_L1
    return Model(pi_LK.log(), coef_PD, torch.maximum(variance, least))


def every_code(factors: int, values: int) -> Tensor:
    """All codes (K^L, L)."""
    each = [torch.arange(values)] * factors
    return torch.cartesian_prod(*each).view(-1, factors)


def log_table(model: Model, x_ND: Tensor) -> Tensor:
    """log p(x, z) (N, K^L) of every code in the order of `every_code`."""
    codes = every_code(*model.log_pi_LK.shape)
    columns = [log_joint(model, x_ND, code.expand(len(x_ND), -1)) for code in codes]
    return torch.stack(columns, 1)


class Flow(nn.Module):
    """q(z | x), and log Z(x)."""

    def __init__(self, columns: int, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.factors = config.n_factors
        self.values = config.n_values
        prefix = self.factors * self.values
        seen = columns + prefix + self.factors
        self.policy = _network(seen, config.hidden, self.values, generator)
        self.log_total = _network(columns, config.hidden, 1, generator)

    def log_choices(self, x_ND: Tensor, z_NL: Tensor) -> Tensor:
        """log P (N, L, K) of every factor's values, given the factors before it in z."""
        N, L = z_NL.shape
        earlier_LL = torch.ones(L, L).tril(-1)
        hot_NLK = one_hot(z_NL, self.values)
        prefix_NLLK = torch.einsum("tl,nlk->ntlk", earlier_LL, hot_NLK.float())
        place_LL = torch.eye(L)
        place_NLL = place_LL.expand(N, L, L)
        row_NLD = x_ND[:, None].expand(N, L, -1)
        seen = torch.cat([row_NLD, prefix_NLLK.flatten(2), place_NLL], 2)
        logits_NLK = self.policy(seen.float())
        return logits_NLK.log_softmax(2)

    def log_prob(self, x_ND: Tensor, z_NL: Tensor) -> Tensor:
        """log q(z | x) (N,)."""
        choices_NLK = self.log_choices(x_ND, z_NL)
        chosen_NL1 = choices_NLK.gather(2, z_NL[:, :, None])
        return chosen_NL1.sum((1, 2))

    @torch.no_grad()
    def draw(self, x_ND: Tensor, generator: torch.Generator | None, explore: float = 0.0) -> Tensor:
        """Codes (N, L), a share of choices uniform; without a generator the likeliest choice each time."""
        z_NL = torch.zeros(len(x_ND), self.factors, dtype=torch.long)
        for place in range(self.factors):
            log_p_NLK = self.log_choices(x_ND, z_NL)
            p_NK = log_p_NLK[:, place].exp()
            if generator is None:
                z_NL[:, place] = p_NK.argmax(1)
                continue
            mixed_NK = (1 - explore) * p_NK + explore / self.values
            chosen_N1 = torch.multinomial(mixed_NK, 1, generator=generator)
            z_NL[:, place] = chosen_N1[:, 0]
        return z_NL

    def balance(self, x_ND: Tensor, z_NL: Tensor, log_joint_N: Tensor) -> Tensor:
        """log Z + log q - log p(x, z) (N,), zero where q is the posterior."""
        log_total_N = self.log_total(x_ND.float())[:, 0]
        return log_total_N + self.log_prob(x_ND, z_NL) - log_joint_N.float()


def _network(columns: int, hidden: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    network = nn.Sequential(
        skip_init(nn.Linear, columns, hidden),
        nn.ReLU(),
        skip_init(nn.Linear, hidden, hidden),
        nn.ReLU(),
        skip_init(nn.Linear, hidden, outputs),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            width = parameter.shape[-1] if parameter.ndim > 1 else hidden
            bound = width**-0.5
            parameter.uniform_(-bound, bound, generator=generator)
    return network


def dream(model: Model, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows (N, D) and codes (N, L) drawn from the model."""
    K = model.log_pi_LK.shape[1]
    pi_LK = model.log_pi_LK.exp()
    z_LN = torch.multinomial(pi_LK, rows, replacement=True, generator=generator)
    h_NP = design(z_LN.T, K)
    mean_ND = h_NP @ model.coef_PD
    noise_ND = torch.randn(mean_ND.shape, generator=generator, dtype=mean_ND.dtype)
    spread = model.variance.sqrt()
    return mean_ND + spread * noise_ND, z_LN.T


def e_step(flow: Flow, optimizer: torch.optim.Optimizer, model: Model, x_ND: Tensor, config: Config,
           generator: torch.Generator, steps: int) -> float:
    """Descend the balance on rows drawn anew; gives its mean square over the last quarter of the steps."""
    squares = []
    for _ in range(steps):
        chance = torch.rand((), generator=generator)
        if float(chance) < config.sleep:
            dreamt_BD, z_BL = dream(model, config.batch, generator)
            loss = -flow.log_prob(dreamt_BD, z_BL).mean()
            update(optimizer, loss)
            continue
        rows_B = torch.randint(len(x_ND), (config.batch,), generator=generator)
        batch_BD = x_ND[rows_B]
        z_BL = flow.draw(batch_BD, generator, config.explore)
        log_p_B = log_joint(model, batch_BD, z_BL)
        least = log_p_B.max() + config.floor
        balance_B = flow.balance(batch_BD, z_BL, log_p_B.clamp(min=least))
        loss = balance_B.square().mean()
        update(optimizer, loss)
        squares.append(loss.item())
    last = squares[len(squares) * 3 // 4 :]
    return float(np.mean(last)) if last else 0.0


def m_step(flow: Flow, x_ND: Tensor, config: Config, generator: torch.Generator) -> Model:
    """The model that is likeliest for several codes a row drawn by the policy."""
    repeated_SD = x_ND.repeat(config.draws, 1)
    z_SL = flow.draw(repeated_SD, generator)
    h_SP = design(z_SL, config.n_values)
    second_PP = h_SP.T @ h_SP
    return maximise(repeated_SD, h_SP, second_PP, config.n_factors)


def first_model(x_ND: Tensor, config: Config, generator: torch.Generator) -> Model:
    """Values of every factor at random rows, each factor's share of their distance from the mean."""
    L, K = config.n_factors, config.n_values
    level_D = x_ND.mean(0)
    rows = torch.randint(len(x_ND), (L * K,), generator=generator)
    apart_PD = x_ND[rows] - level_D
    coef_PD = torch.cat([level_D[None], apart_PD / L])
    pi_LK = torch.full((L, K), 1 / K, dtype=torch.float64)
    return Model(pi_LK.log(), coef_PD, x_ND.var())


@method(
    title="Additive mixture fitted by GFlowNet-EM",
    paper="GFlowNet-EM for learning compositional latent variable models",
    year=2023,
    tags={"estimator"},
)
class AdditiveMixture(Configured, config=Config):
    """Mixture of K^L components whose means are sums; see the module's card.

    After `fit`: `means_`, `level_`, `weights_`, `variance_`, `balances_` (nats^2, one a round), `waited_` (rounds
    without an M step), `flow_` (the policy).
    """

    def fit(self, X: Any, y: Any = None) -> AdditiveMixture:
        """Fit rows X (N, D); `ValueError` for options out of range or rows that are not finite numbers."""
        config = self._config()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        x_ND = torch.from_numpy(X)
        source = check_random_state(config.random_state)
        generator = torch.Generator()
        generator.manual_seed(source.randint(2**31 - 1))
        self._centre, spread = x_ND.mean(0), x_ND.std()
        self._scale = spread.clamp(min=1e-12)
        x_ND = (x_ND - self._centre) / self._scale
        self.flow_ = Flow(x_ND.shape[1], config, generator)
        optimizer = torch.optim.Adam(self.flow_.parameters(), lr=config.lr)
        model = first_model(x_ND, config, generator)
        self.balances_, self.waited_ = [], 0
        for turn in range(config.rounds):
            steps = config.e_steps if turn else 10 * config.e_steps
            balance = e_step(self.flow_, optimizer, model, x_ND, config, generator, steps)
            self.balances_.append(balance)
            if balance > config.threshold:
                self.waited_ += 1
                continue
            model = m_step(self.flow_, x_ND, config, generator)
        e_step(self.flow_, optimizer, model, x_ND, config, generator, config.e_steps)
        self._model = model
        self._publish(model)
        return self

    def _publish(self, model: Model) -> None:
        coef_PD = model.coef_PD * self._scale
        pi_LK = model.log_pi_LK.exp()
        level_D = coef_PD[0] + self._centre
        means_LKD = coef_PD[1:].view(*pi_LK.shape, -1)
        variance = model.variance * self._scale**2
        self.level_, self.means_ = level_D.numpy(), means_LKD.numpy()
        self.weights_ = pi_LK.numpy()
        self.variance_ = float(variance)

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return (torch.from_numpy(X) - self._centre) / self._scale

    def predict(self, X: Any) -> Array:
        """Codes (N, L), each factor's likeliest value given those before it; errors as in `fit`."""
        return self.flow_.draw(self._rows(X), None).numpy()

    def sample_codes(self, X: Any, seed: int = 0) -> Array:
        """Codes (N, L) drawn from the policy, an approximate posterior; errors as in `fit`."""
        generator = torch.Generator().manual_seed(seed)
        return self.flow_.draw(self._rows(X), generator).numpy()

    @torch.no_grad()
    def score_samples(self, X: Any, draws: int = 1000) -> Array:
        """Log densities (N,): exact up to 4,096 codes, else by importance sampling from the policy; errors as in
        `fit`."""
        x_ND = self._rows(X)
        factors, values = self.weights_.shape
        if values**factors <= ENUMERATED:
            log_NC = log_table(self._model, x_ND)
            found_N = log_NC.logsumexp(1)
        else:
            found_N = self._estimated(x_ND, draws)
        moved_N = found_N - x_ND.shape[1] * self._scale.log()
        return moved_N.numpy()

    @torch.no_grad()
    def _estimated(self, x_ND: Tensor, draws: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        ratios = []
        for _ in range(draws):
            z_NL = self.flow_.draw(x_ND, generator)
            log_p_N = log_joint(self._model, x_ND, z_NL)
            log_q_N = self.flow_.log_prob(x_ND, z_NL)
            ratios.append(log_p_N - log_q_N)
        total_N = torch.stack(ratios).logsumexp(0)
        return total_N - math.log(draws)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density in nats a row; errors as in `fit`."""
        return float(self.score_samples(X).mean())


def example(generator: torch.Generator) -> dict[str, Any]:
    """Sums of a place to the left or right and one above or below."""
    side_N = torch.randint(2, (60,), generator=generator)
    height_N = torch.randint(2, (60,), generator=generator)
    noise_N2 = torch.randn(60, 2, generator=generator)
    x_N2 = torch.stack([side_N, height_N], 1) + 0.1 * noise_N2
    return {
        "estimator": AdditiveMixture(n_values=2, rounds=4, e_steps=10, hidden=8, random_state=0),
        "X": x_N2.double().numpy(),
    }
