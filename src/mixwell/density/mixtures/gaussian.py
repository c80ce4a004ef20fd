"""Gaussian mixture: a density as a weighted sum of normal distributions, fitted by expectation-maximisation.

**Equation:** p(x) = sum_k w_k N(x; mu_k, Sigma_k).
    E step: r_nk = w_k N(x_n; mu_k, Sigma_k) / p(x_n).
    M step: w_k, mu_k and Sigma_k are the r-weighted share, mean and covariance, `reg_covar` added to the diagonal.
    Both steps are one matrix product each on the features [1, x_i, x_i x_j (i <= j)] of standardised rows.

**Shapes:** X (N, D); `weights_` (K,), `means_` (K, D), `covariances_` (K, D, D) full, (D, D) tied, (K, D) diag, (K,)
spherical; the models with three letters are kept as the first of these that holds them: EEE as tied, VVI, EEI, VEI, EVI
as diag, VII and EII as spherical, the others as full.

**Reference:** Dempster, Laird, Rubin (1977), Maximum Likelihood from Incomplete Data via the EM Algorithm; Ghahramani,
Jordan (1994), Supervised Learning from Incomplete Data via an EM Approach (missing values); Cappe, Moulines (2009),
On-line Expectation-Maximization Algorithm for Latent Data Models, arXiv:0712.4273 (`partial_fit`, `batch_size`);
Celeux, Govaert (1995), Gaussian Parsimonious Clustering Models (the models with three letters);
Flury, Gautschi (1986), An Algorithm for Simultaneous Orthogonal Transformation of Several Positive Definite Symmetric
Matrices to Nearly Diagonal Form (rotations of EVE and VVE); Fraley, Raftery (2007), Bayesian Regularization for Normal
Mixture Estimation and Model-Based Clustering (`shrinkage`).

**Differs:** a component that no row belongs to keeps its mean and covariance (weight 0). A step whose covariances are
too narrow for float32 or for expanded squares is computed again in float64, or about the components' own means. With
`shrinkage` the priors are N(mean of the data, Sigma / shrinkage) and an inverse Wishart of D + 2 degrees of freedom,
whose scale is the columns' variances over K^(2 / D), where mclust takes their covariance, or one number for all.

**Fails when:** `reg_covar` is 0 and a component collapses onto fewer than D + 1 distinct points (`ValueError`); online
EM sums squares about one origin, so components narrower than 1e-6 of the data's spread lose digits there.

**Cost:** O(N K D^2) a step (full), O(N K D) (tied with D small, diag, spherical); memory O(K D^2) beside the rows; each
pattern of missing values adds O(K D^3).
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval

from mixwell.core.method import method
from mixwell.density.mixtures._graphs import EllipticalMixture
from mixwell.density.mixtures._normal import NormalConfig
from mixwell.density.mixtures.em.gaussian import Gaussian
from mixwell.density.mixtures.em.models import MODELS
from mixwell.density.mixtures.em.penalised import PenalisedGaussian
from mixwell.density.values.gaussian_mixture import GaussianMixtureDensity


@dataclass(frozen=True, kw_only=True)
class Config(NormalConfig):
    """Options beside those of mixtures with means and covariances."""

    shrinkage: float = 0.0  # rows that priors on means are worth; above 0 covariances have priors, too


@method(title="Gaussian mixture", year=1977, tags={"estimator", "mixture", "missing", "online"})
class GaussianMixture(EllipticalMixture, config=Config):
    """Gaussian mixture with scikit-learn's interface: same parameters, defaults, attributes, warnings and errors.

    Parameters beyond scikit-learn's: `covariance_type` may be one of mclust's fourteen models, "EII" to "VVV";
    `reg_covar` may be "scale" (1e-6 of each column's variance); `fixed` names what
    is held at its starting value ("weights", "means", "covariances"); `batch_size` fits by online EM over batches of
    that many rows, with `learning_decay` and `learning_offset` (see `partial_fit`); `init_size` computes the start
    from that many random rows; `shrinkage` above 0 (mclust: 0.01) fits the mode under conjugate priors, so that no
    component collapses, and `lower_bound_` then holds the log prior up to a constant. `fit` takes
    `sample_weight`; NaN marks a missing value (exact EM over what was observed); X may be a tensor, a memory map or
    Parquet files (see `fit`).
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **EllipticalMixture._parameter_constraints,
        "shrinkage": [Interval(Real, 0.0, None, closed="left")],
    }

    def _make_family(self, *arguments: Any) -> Gaussian:
        if not self.shrinkage:
            return super()._make_family(*arguments)
        if self.covariance_type in MODELS:
            raise ValueError(f"shrinkage={self.shrinkage} with covariance_type={self.covariance_type!r}; priors are "
                             "for 'full', 'tied', 'diag', 'spherical', and VVV, EEE, VVI, VII.")
        family = PenalisedGaussian(*arguments)
        family.begin(self.shrinkage, self.n_components)
        return family

    def as_density(self) -> GaussianMixtureDensity:
        """The fitted mixture as a value that can be multiplied, conditioned, reduced and compared."""
        return GaussianMixtureDensity.from_estimator(self)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups of points in the plane, and an estimator for them."""
    centres_2D = torch.tensor([[-3.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    centres_ND = centres_2D.repeat_interleave(60, 0)
    noise_ND = torch.randn(120, 2, generator=generator, dtype=torch.float64)
    x_ND = centres_ND + noise_ND
    return {"estimator": GaussianMixture(2, random_state=0), "X": x_ND.numpy()}
