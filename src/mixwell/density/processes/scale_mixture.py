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
    """Options of the scale mixture process."""

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
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(options)}")
        for name in ("alpha", "beta", "weight_variance", "noise"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected above 0")
        if self.bias_variance < 0 or self.depth < 0 or self.samples < 1:
            raise ValueError(f"bias_variance, depth, samples are {self.bias_variance}, {self.depth}, {self.samples}; "
                             "expected at least 0, 0, 1")


def expected_product(first: Array, second: Array, both: Array, activation: str) -> Array:
    """E[phi(u) phi(v)] for u, v normal with variances `first`, `second` and covariance `both`."""
    if activation == "erf":
        scale = np.sqrt((1 + 2 * first) * (1 + 2 * second))
        return 2 / np.pi * np.arcsin(np.clip(2 * both / scale, -1, 1))
    length = np.sqrt(np.maximum(first * second, 1e-300))
    angle = np.arccos(np.clip(both / length, -1, 1))
    return length * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)


def network_kernel(x_ND: Array, z_MD: Array, config: Config) -> Array:
    """K (N, M) of an infinitely wide net between two sets of rows."""
    w, b, D = config.weight_variance, config.bias_variance, x_ND.shape[1]
    both = b + w * x_ND @ z_MD.T / D
    first, second = (b + w * (v**2).sum(1) / D for v in (x_ND, z_MD))
    for _ in range(config.depth):
        both = b + w * expected_product(first[:, None], second[None], both, config.activation)
        first, second = (b + w * expected_product(v, v, v, config.activation) for v in (first, second))
    return both


def wide_network(x_ND: torch.Tensor, width: int, count: int, config: Config,
                 generator: torch.Generator) -> torch.Tensor:
    """Outputs (count, N) of random nets of finite width whose last layer's variance is s, an inverse gamma draw."""
    w, b = config.weight_variance, config.bias_variance
    phi = torch.relu if config.activation == "relu" else torch.erf

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=x_ND.dtype)

    outputs = []
    for _ in range(count):
        h = x_ND
        for _ in range(config.depth):
            h = phi(h @ normal(h.shape[1], width) * (w / h.shape[1]) ** 0.5 + b**0.5 * normal(width))
        outputs.append(h @ normal(h.shape[1]) * (w / h.shape[1]) ** 0.5 + b**0.5 * normal(1))
    if config.prior != "inverse_gamma":
        raise ValueError(f"prior is {config.prior!r}; wide_network draws inverse gamma scales")
    precision = torch._standard_gamma(torch.full((count,), config.alpha, dtype=x_ND.dtype), generator=generator)
    return torch.stack(outputs) * (config.beta / precision)[:, None].sqrt()


def log_prior(s: Array, config: Config) -> Array:
    """log p(s), inverse gamma or Burr XII."""
    a, b = config.alpha, config.beta
    if config.prior == "inverse_gamma":
        return inverse_gamma_log_pdf(s, a, b)
    return math.log(a * b) + (a - 1) * np.log(s) - (b + 1) * np.logaddexp(0, a * np.log(s))


def inverse_gamma_log_pdf(s: Array, shape: float, rate: float) -> Array:
    """Log density of an inverse gamma distribution."""
    return shape * math.log(rate) - gammaln(shape) - (shape + 1) * np.log(s) - rate / s


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
        """Condition on X (N, D) and y (N,)."""
        config = self._config()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        self._kernel_config = config
        self.X_train_, self.y_train_ = X, y
        values, self._vectors = np.linalg.eigh(network_kernel(X, X, config))
        self._values = np.maximum(values, 0)
        self._turned_y = self._vectors.T @ y
        self.closed_ = config.prior == "constant" or (config.prior == "inverse_gamma" and config.noise_scales)
        square = float((self._turned_y**2 / (self._values + config.noise)).sum())
        if self.closed_:
            self._shape, self._rate = config.alpha + len(y) / 2, config.beta + square / 2
            scale = 1.0 if config.prior == "constant" else self._rate / self._shape
            self.scales_, self.scale_weights_ = np.array([scale]), np.ones(1)
            self.effective_samples_ = math.inf
        else:
            self._draw_scales(check_random_state(config.random_state), square)
        return self

    def _draw_scales(self, rng: np.random.RandomState, square: float) -> None:
        config = self._kernel_config
        shape, rate = 1 + len(self.y_train_) / 4, 1 + square / 4  # twice as wide as the likelihood
        self.scales_ = rate / rng.gamma(shape, size=config.samples)
        log = log_prior(self.scales_, config) + self._log_evidence(self.scales_) \
            - inverse_gamma_log_pdf(self.scales_, shape, rate)
        self._log_marginal = float(logsumexp(log) - math.log(config.samples))
        self.scale_weights_ = np.exp(log - logsumexp(log))
        self.effective_samples_ = float(1 / (self.scale_weights_**2).sum())

    def _noise(self, s_M: Array) -> Array:
        config = self._kernel_config
        return config.noise * s_M if config.noise_scales else np.full_like(s_M, config.noise)

    def _log_evidence(self, s_M: Array) -> Array:
        """log p(y | s) (M,)."""
        found = []
        for s, noise in zip(s_M, self._noise(s_M)):
            spectrum = s * self._values + noise
            found.append(log_normal(self._turned_y**2 / spectrum, 0.5 * np.log(spectrum)).sum())
        return np.array(found)

    def log_marginal_likelihood(self) -> float:
        """log p(y), in nats."""
        check_is_fitted(self)
        config, N = self._kernel_config, len(self.y_train_)
        if not self.closed_:
            return self._log_marginal
        if config.prior == "constant":
            return float(self._log_evidence(self.scales_)[0])
        half_log_det = 0.5 * np.log(self._values + config.noise).sum()
        return float(config.alpha * math.log(config.beta) - gammaln(config.alpha) + gammaln(self._shape)
                     - self._shape * math.log(self._rate) - half_log_det - 0.5 * N * LOG_2PI)

    def _normals(self, X: Any, noisy: bool) -> tuple[Array, Array]:
        """Means and variances (M, N) of the predictions for every scale."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        config = self._kernel_config
        cross = network_kernel(X, self.X_train_, config) @ self._vectors
        own = np.array([network_kernel(x[None], x[None], config)[0, 0] for x in X])
        means, variances = [], []
        for s, noise in zip(self.scales_, self._noise(self.scales_)):
            spectrum = s * self._values + noise
            means.append(s * cross @ (self._turned_y / spectrum))
            left = s * own - s**2 * (cross**2 / spectrum).sum(1)
            variances.append(np.maximum(left, 1e-12 * s * own) + noise * noisy)
        return np.array(means), np.array(variances)

    def _dof(self) -> float:
        closed_t = self.closed_ and self._kernel_config.prior == "inverse_gamma"
        return 2 * self._shape if closed_t else math.inf

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Means (N,), and with `return_std` the standard deviations of f (N,)."""
        means, variances = self._normals(X, noisy=False)
        mean = self.scale_weights_ @ means
        if not return_std:
            return mean
        inflation = 1 if math.isinf(self._dof()) else self._dof() / (self._dof() - 2)
        variance = self.scale_weights_ @ (inflation * variances + (means - mean) ** 2)
        return mean, np.sqrt(variance)

    def log_density(self, X: Any, y: Any) -> Array:
        """Predictive log density of noisy targets y (N,), row by row, in nats."""
        means, variances = self._normals(X, noisy=True)
        y = np.asarray(y, dtype=np.float64)
        if y.shape != means.shape[1:]:
            raise ValueError(f"y has shape {y.shape}; expected {means.shape[1:]}, one value a row of X")
        if math.isfinite(self._dof()):
            return student_t.logpdf(y, self._dof(), means[0], np.sqrt(variances[0]))
        log = log_normal((y - means) ** 2 / variances, 0.5 * np.log(variances))
        return logsumexp(log, axis=0, b=self.scale_weights_[:, None])


def example(generator: torch.Generator) -> dict[str, Any]:
    """Ten noisy points of a sine."""
    x = torch.linspace(-2, 2, 10, dtype=torch.float64)
    y = torch.sin(2 * x) + 0.1 * torch.randn(10, generator=generator, dtype=torch.float64)
    return {"estimator": ScaleMixtureProcess(), "X": x[:, None].numpy(), "y": y.numpy()}
