"""Scale mixture of neural-network Gaussian processes: a prior on the last layer's variance makes heavy tails.

**Equation:** f | s ~ GP(0, s K), s ~ p(s), K the kernel of an infinitely wide net: K_0 = b + w x.x' / D, K_l = b + w
E[phi(u) phi(u')] with (u, u') ~ N(0, K_{l-1}), in closed form for ReLU and erf. With C = K + noise I, q = y' C^-1 y and
s ~ InvGamma(a, b0), the posterior is s | y ~ InvGamma(a + N / 2, b0 + q / 2) and predictions are Student's t with
2 a + N degrees of freedom, the Gaussian process' mean, and its variance times (b0 + q / 2) / (a + N / 2). Other priors:
s_m from an inverse-gamma proposal, weighted by p(s) p(y | s) / proposal.

**Shapes:** X (N, D), y (N,); means, standard deviations and log densities (N,), in y's unit and in nats.

**Reference:** Lee, Yun, Yang, Lee (2022), Scale Mixtures of Neural Network Gaussian Processes, ICLR, arXiv:2107.01408,
theorems 3.1 to 3.3 and section 3.4.

**Differs:** written from memory of the paper. Importance sampling starts from a proposal of the likelihood's own shape
instead of the prior; the noise may scale with s (then the inverse gamma stays closed) or not. Regression only, of one
output.

**Fails when:** N is beyond some thousands (a dense N x N matrix); y is far from mean zero (centre it).

**Cost:** O(N^3) to fit, O(N^2) a predicted row, O(samples) more where sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import gammaln, logsumexp
from scipy.stats import t as student_t
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from mixwell.core.method import method
from mixwell.density._gaussian import LOG_2PI, Array, log_normal
from mixwell.density._options import Configured


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the scale mixture process; `ValueError` for one out of range."""

    prior: Literal["inverse_gamma", "burr", "constant"] = "inverse_gamma"  # of s; constant is the Gaussian process
    alpha: float = 2.0  # inverse gamma's shape, or Burr's exponent c
    beta: float = 2.0  # inverse gamma's rate, or Burr's exponent k
    depth: int = 2  # hidden layers
    activation: Literal["relu", "erf"] = "relu"
    weight_variance: float = 2.0  # of every layer, over its fan in
    bias_variance: float = 0.1
    noise: float = 0.01  # variance of the noise, in units of s where it scales
    noise_scales: bool = True  # with s, or stays
    samples: int = 2000  # of s, where there is no closed form
    random_state: Any = None

    def __post_init__(self) -> None:
        known = {"prior": ("inverse_gamma", "burr", "constant"), "activation": ("relu", "erf")}
        for name, options in known.items():
            value = getattr(self, name)
            if value not in options:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(options)}")
        for name in ("alpha", "beta", "weight_variance", "noise"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} is {value}; expected above 0")
        for name, least in {"bias_variance": 0, "depth": 0, "samples": 1}.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")


def expected_product(first: Array, second: Array, both: Array, activation: str) -> Array:
    """E[phi(u) phi(v)] for u, v normal with variances `first`, `second` and covariance `both`."""
    if activation == "erf":
        wide = (1 + 2 * first) * (1 + 2 * second)
        cosine = np.clip(2 * both / np.sqrt(wide), -1, 1)
        return 2 / np.pi * np.arcsin(cosine)
    square = np.maximum(first * second, 1e-300)
    length = np.sqrt(square)
    cosine = np.clip(both / length, -1, 1)
    angle = np.arccos(cosine)
    left = np.pi - angle
    arc = np.sin(angle) + left * np.cos(angle)
    return length * arc / (2 * np.pi)


def network_kernel(x_ND: Array, z_MD: Array, config: Config) -> Array:
    """K (N, M) of an infinitely wide net between two sets of rows."""
    D = x_ND.shape[1]
    w, b = config.weight_variance, config.bias_variance

    def layer(first: Array, second: Array, both: Array) -> Array:
        expected = expected_product(first, second, both, config.activation)
        return b + w * expected

    square_N = (x_ND**2).sum(1)
    square_M = (z_MD**2).sum(1)
    product_NM = w * x_ND @ z_MD.T
    both_NM = b + product_NM / D
    first_N = b + w * square_N / D
    second_M = b + w * square_M / D
    for _ in range(config.depth):
        both_NM = layer(first_N[:, None], second_M[None], both_NM)
        first_N = layer(first_N, first_N, first_N)
        second_M = layer(second_M, second_M, second_M)
    return both_NM


def wide_network(x_ND: torch.Tensor, width: int, count: int, config: Config,
                 generator: torch.Generator) -> torch.Tensor:
    """Outputs (count, N) of random nets of finite width whose last layer's variance is s, an inverse gamma draw.

    `ValueError` for another prior.
    """
    if config.prior != "inverse_gamma":
        raise ValueError(f"prior is {config.prior!r}; wide_network draws inverse gamma scales")
    phi = torch.relu if config.activation == "relu" else torch.erf

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=x_ND.dtype)

    def layer(h: torch.Tensor, *outputs: int) -> torch.Tensor:
        fan_in = h.shape[1]
        weight_scale = (config.weight_variance / fan_in) ** 0.5
        bias_scale = config.bias_variance**0.5
        weight = normal(fan_in, *outputs)
        bias = normal(*outputs or (1,))
        weighted = h @ weight * weight_scale
        return weighted + bias_scale * bias

    outputs = []
    for _ in range(count):
        h = x_ND
        for _ in range(config.depth):
            h = phi(layer(h, width))
        outputs.append(layer(h))
    shape = torch.full((count,), config.alpha, dtype=x_ND.dtype)
    precision = torch._standard_gamma(shape, generator=generator)
    deviation = (config.beta / precision).sqrt()
    return torch.stack(outputs) * deviation[:, None]


def log_prior(s: Array, config: Config) -> Array:
    """log p(s), inverse gamma or Burr XII."""
    a, b = config.alpha, config.beta
    if config.prior == "inverse_gamma":
        return inverse_gamma_log_pdf(s, a, b)
    log_s = np.log(s)
    power = (a - 1) * log_s
    above = np.logaddexp(0, a * log_s)
    tail = (b + 1) * above
    return math.log(a * b) + power - tail


def inverse_gamma_log_pdf(s: Array, shape: float, rate: float) -> Array:
    """Log density of an inverse gamma distribution."""
    constant = shape * math.log(rate) - gammaln(shape)
    power = (shape + 1) * np.log(s)
    return constant - power - rate / s


@method(
    title="Scale mixture of network Gaussian processes",
    paper="Scale Mixtures of Neural Network Gaussian Processes",
    year=2022,
    tags={"estimator", "sklearn"},
)
class ScaleMixtureProcess(RegressorMixin, Configured, config=Config):
    """Regression with a scale mixture of Gaussian processes; see the module's card.

    Fitted: `scales_` (M,) and `scale_weights_` (M,), the posterior of s as weighted draws (one, exact, where closed),
    `effective_samples_`.
    """

    def fit(self, X: Any, y: Any) -> ScaleMixtureProcess:
        """Condition on X (N, D) and y (N,); `ValueError` for rows or options out of range."""
        config = self._config()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        self._kernel_config = config
        self.X_train_ = X
        self.y_train_ = y
        values, self._vectors = np.linalg.eigh(network_kernel(X, X, config))
        self._values = np.maximum(values, 0)
        self._turned_y = self._vectors.T @ y
        square_N = self._turned_y**2 / (self._values + config.noise)
        square = float(square_N.sum())
        closed_t = config.prior == "inverse_gamma" and config.noise_scales
        self.closed_ = closed_t or config.prior == "constant"
        if self.closed_:
            self._set_scale(config, square)
        else:
            self._draw_scales(config, square)
        return self

    def _set_scale(self, config: Config, square: float) -> None:
        """The posterior in closed form, which stands for itself as one draw."""
        n_rows = len(self.y_train_)
        self._shape = config.alpha + n_rows / 2
        self._rate = config.beta + square / 2
        scale = self._rate / self._shape
        if config.prior == "constant":
            scale = 1.0
        self.scales_ = np.array([scale])
        self.scale_weights_ = np.ones(1)
        self.effective_samples_ = math.inf

    def _draw_scales(self, config: Config, square: float) -> None:
        """The posterior as weighted draws from an inverse gamma twice as wide as the likelihood."""
        rng = check_random_state(config.random_state)
        shape = 1 + len(self.y_train_) / 4
        rate = 1 + square / 4
        s_M = rate / rng.gamma(shape, size=config.samples)
        log_joint_M = log_prior(s_M, config) + self._log_evidence(s_M)
        log_proposal_M = inverse_gamma_log_pdf(s_M, shape, rate)
        log_ratio_M = log_joint_M - log_proposal_M
        log_total = logsumexp(log_ratio_M)
        log_mean = log_total - math.log(config.samples)
        share_M = np.exp(log_ratio_M - log_total)
        self.scales_ = s_M
        self._log_marginal = float(log_mean)
        self.scale_weights_ = share_M
        self.effective_samples_ = float(1 / (share_M**2).sum())

    def _noise(self, s_M: Array) -> Array:
        noise = self._kernel_config.noise
        if self._kernel_config.noise_scales:
            return noise * s_M
        return np.full_like(s_M, noise)

    def _log_evidence(self, s_M: Array) -> Array:
        """log p(y | s) (M,)."""
        square_N = self._turned_y**2
        found = []
        for s, noise in zip(s_M, self._noise(s_M)):
            spectrum_N = s * self._values + noise
            log_scale_N = 0.5 * np.log(spectrum_N)
            log_density_N = log_normal(square_N / spectrum_N, log_scale_N)
            found.append(log_density_N.sum())
        return np.array(found)

    def log_marginal_likelihood(self) -> float:
        """log p(y), in nats; an error before `fit`."""
        check_is_fitted(self)
        config = self._kernel_config
        if not self.closed_:
            return self._log_marginal
        if config.prior == "constant":
            (log_evidence,) = self._log_evidence(self.scales_)
            return float(log_evidence)
        prior = config.alpha * math.log(config.beta) - gammaln(config.alpha)
        spectrum_N = self._values + config.noise
        half_log_det = 0.5 * np.log(spectrum_N).sum()
        constant = 0.5 * len(self.y_train_) * LOG_2PI
        spread = self._shape * math.log(self._rate)
        integral = prior + gammaln(self._shape) - spread
        return float(integral - half_log_det - constant)

    def _normals(self, X: Any, noisy: bool) -> tuple[Array, Array]:
        """Means and variances (M, N) of the predictions for every scale."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        config = self._kernel_config
        cross_MN = network_kernel(X, self.X_train_, config) @ self._vectors
        own_M = np.concatenate([network_kernel(x[None], x[None], config)[0] for x in X])
        means, variances = [], []
        for s, noise in zip(self.scales_, self._noise(self.scales_)):
            spectrum_N = s * self._values + noise
            means.append(s * cross_MN @ (self._turned_y / spectrum_N))
            prior_M = s * own_M
            explained_M = s**2 * (cross_MN**2 / spectrum_N).sum(1)
            left_M = np.maximum(prior_M - explained_M, 1e-12 * s * own_M)
            variances.append(left_M + noise * noisy)
        return np.array(means), np.array(variances)

    def _dof(self) -> float:
        closed_t = self.closed_ and self._kernel_config.prior == "inverse_gamma"
        return 2 * self._shape if closed_t else math.inf

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Means (N,), and with `return_std` the standard deviations of f (N,); an error before `fit`."""
        mean_MN, variance_MN = self._normals(X, noisy=False)
        mean_N = self.scale_weights_ @ mean_MN
        if not return_std:
            return mean_N
        dof = self._dof()
        inflation = 1 if math.isinf(dof) else dof / (dof - 2)
        between_MN = (mean_MN - mean_N) ** 2
        variance_N = self.scale_weights_ @ (inflation * variance_MN + between_MN)
        return mean_N, np.sqrt(variance_N)

    def log_density(self, X: Any, y: Any) -> Array:
        """Predictive log density of noisy targets y (N,), row by row, in nats.

        `ValueError` for other than one target a row; an error before `fit`.
        """
        mean_MN, variance_MN = self._normals(X, noisy=True)
        y_N = np.asarray(y, dtype=np.float64)
        if y_N.shape != mean_MN.shape[1:]:
            raise ValueError(f"y has shape {y_N.shape}; expected {mean_MN.shape[1:]}, one value a row of X")
        dof = self._dof()
        if math.isfinite(dof):
            return student_t.logpdf(y_N, dof, mean_MN[0], np.sqrt(variance_MN[0]))
        square_MN = (y_N - mean_MN) ** 2 / variance_MN
        log_MN = log_normal(square_MN, 0.5 * np.log(variance_MN))
        return logsumexp(log_MN, axis=0, b=self.scale_weights_[:, None])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Ten noisy points of a sine."""
    x_N = torch.linspace(-2, 2, 10, dtype=torch.float64)
    noise_N = torch.randn(10, generator=generator, dtype=torch.float64)
    sine_N = torch.sin(2 * x_N)
    y_N = sine_N + 0.1 * noise_N
    return {
        "estimator": ScaleMixtureProcess(),
        "X": x_N[:, None].numpy(),
        "y": y_N.numpy(),
    }
