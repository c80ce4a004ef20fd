"""Coupled mixture autoencoders: variational arms on augmented copies of the rows that must agree on a category.

**Equation:** arm a sees x_a, a copy of x that keeps its type, and infers q(c_a | x_a) = softmax(softmax(h_a) / tau), a
Gumbel-softmax sample c_a of it at temperature T, and q(s_a | c_a, x_a) = N(mu_a, diag sigma_a^2); it decodes
p(x_a | c_a, s_a) = N(xhat_a, I). Minimised over all arms, every term a mean over rows:
L = (A - 1) sum_a [ |x_a - xhat_a|^2 / 2 + beta KL(q(s_a) || N(0, I)) + KL(q(c_a) || uniform) ]
+ lambda sum_{a<b} d^2(q_a, q_b). Distance "scaled": d^2 = sum_k (log q_ak / v_ak - log q_bk / v_bk)^2 with v_ak the
standard deviation of q_ak over the batch; "aitchison": log q less its mean over k in place of log q / v; "euclidean":
q itself. After training, a category's agreement is the rows that two arms both put there over the larger of the numbers
that either puts there, averaged over pairs; the least agreed one is pruned while it is below a threshold.

**Shapes:** X (N, D); A arms, K categories, S state dimensions, P = A (A - 1) / 2 pairs; x_AND, log_prob_ANK, mean_ANS.

**Reference:** Marghi, Gala, Sumbul (2020), Mixture Representation Learning with Coupled Autoencoders,
arXiv:2007.09880; loss, temperatures and pruning as in the authors' released code.

**Differs:** the text of the paper was not at hand: its objective is from memory, checked against the released code. The
augmenter is given (a function, or Gaussian noise), not a trained VAE-GAN, and arms see its copies alone, not the rows
beside them. Gaussian decoders only (the code has counts too). Nets have two hidden layers, without norms and dropout.
The constant of the coupling prior is left out. A single arm keeps the KL of its category (the code drops it) and A - 1
becomes 1. Pruning takes the weights out and restarts Adam. Arms are read together, by the geometric mean of their q,
which is their centre in Aitchison's geometry.

**Fails when:** columns are not scaled to the decoder's unit variance; the augmentation changes a row's type; batches
are so small that v is noise; lambda is large against the reconstruction: the scaled distance starts at many thousand
nats, and categories that lose their rows while it falls stay empty.

**Cost:** O(A N H (D + H)) a pass, O(A^2 N K) for the coupling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from mixwell.core.method import method
from mixwell.density._gaussian import Array, divergence
from mixwell.density._options import Configured
from mixwell.density._training import update

Augment = Callable[[Tensor, torch.Generator], Tensor]  # rows (N, D) to another copy of them
Distance = Literal["scaled", "aitchison", "euclidean"]
ROWS = 8192  # at a time where nothing is trained


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of the coupled autoencoders."""

    n_components: int = 10  # K: categories to begin with
    n_arms: int = 2  # A: 1 is a mixture VAE
    state_dim: int = 2  # S: length of s
    hidden_dim: int = 100  # H: width of the two hidden layers of encoder and decoder
    distance: Distance = "scaled"  # d between two arms' categories
    coupling: float = 1.0  # lambda
    beta: float = 1.0  # weight of the state's divergence
    tau: float = 0.1  # of the categories' second softmax, in (0, 1]
    temperature: float = 1.0  # T of the Gumbel-softmax
    augment: float | Augment = 0.0  # standard deviation of added noise (0: the rows themselves), or a function
    steps: int = 2000  # of Adam
    batch_size: int = 256  # rows a step, drawn without replacement
    lr: float = 1e-3  # Adam's step
    min_agreement: float = 0.0  # prune categories below it, in [0, 1]; 0: none
    prune_steps: int = 500  # of Adam after each category that goes
    random_state: Any = None

    def __post_init__(self) -> None:
        for name, least in (("n_components", 1), ("n_arms", 1), ("state_dim", 1), ("hidden_dim", 1), ("steps", 1),
                            ("batch_size", 2), ("coupling", 0), ("beta", 0), ("prune_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if self.distance not in ("scaled", "aitchison", "euclidean"):
            raise ValueError(f"distance is {self.distance!r}; expected 'scaled', 'aitchison' or 'euclidean'")
        if not 0 < self.tau <= 1 or self.temperature <= 0 or self.lr <= 0:
            raise ValueError(f"tau, temperature, lr are {self.tau}, {self.temperature}, {self.lr}; expected tau in "
                             "(0, 1], the others above 0")
        if not callable(self.augment) and self.augment < 0:
            raise ValueError(f"augment is {self.augment}; expected 0 or more, or a function of rows and a generator")
        if not 0 <= self.min_agreement <= 1 or (self.min_agreement > 0 and self.n_arms < 2):
            raise ValueError(f"min_agreement is {self.min_agreement} with {self.n_arms} arms; expected [0, 1], and two "
                             "arms or more to prune by")


@dataclass(frozen=True)
class Pass:
    """What every arm infers and decodes."""

    log_prob_ANK: Tensor  # log q(c | x)
    mean_ANS: Tensor  # of q(s | c, x)
    log_variance_ANS: Tensor
    decoded_AND: Tensor


@dataclass(frozen=True)
class Terms:
    """The parts of the loss, in nats a row, before their weights."""

    reconstruction_A: Tensor  # half the squared error
    state_A: Tensor  # KL of q(s | c, x) from the standard normal
    category_A: Tensor  # KL of q(c | x) from the uniform
    coupling_P: Tensor  # squared distance of every pair of arms; empty for one arm

    def total(self, coupling: float = 1.0, beta: float = 1.0) -> Tensor:
        """The loss L, a scalar."""
        arms = (self.reconstruction_A + beta * self.state_A + self.category_A).sum()
        return max(len(self.state_A) - 1, 1) * arms + coupling * self.coupling_P.sum()


def relax(log_prob: Tensor, gumbel: Tensor, temperature: float) -> Tensor:
    """Gumbel-softmax sample (..., K) of log probabilities with given standard Gumbel noise."""
    return ((log_prob + gumbel) / temperature).softmax(-1)


def state_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL (...) of diagonal normals (..., S) from the standard normal, in nats."""
    return divergence(mean.square() + log_variance.exp(), -log_variance).sum(-1)


def category_divergence(log_prob: Tensor) -> Tensor:
    """KL (...) of log probabilities (..., K) from the uniform distribution, in nats."""
    return math.log(log_prob.shape[-1]) + (log_prob.exp() * log_prob).sum(-1)


def squared_distance(log_p_NK: Tensor, log_q_NK: Tensor, distance: Distance = "scaled", eps: float = 1e-8) -> Tensor:
    """Mean over N rows of d^2 between two arms' categories; `eps` keeps the batch's variances off zero."""
    sides = []
    for log_NK in (log_p_NK, log_q_NK):
        if distance == "euclidean":
            sides.append(log_NK.exp())
        elif distance == "aitchison":
            sides.append(log_NK - log_NK.mean(-1, keepdim=True))
        else:
            sides.append(log_NK * (log_NK.exp().var(0) + eps).rsqrt())
    return (sides[0] - sides[1]).square().sum(-1).mean()


def loss_terms(x_AND: Tensor, seen: Pass, distance: Distance = "scaled") -> Terms:
    """Every part of the loss of A arms."""
    pairs = [squared_distance(p, q, distance) for p, q in combinations(seen.log_prob_ANK, 2)]
    return Terms(reconstruction_A=0.5 * (x_AND - seen.decoded_AND).square().sum(-1).mean(-1),
                 state_A=state_divergence(seen.mean_ANS, seen.log_variance_ANS).mean(-1),
                 category_A=category_divergence(seen.log_prob_ANK).mean(-1),
                 coupling_P=torch.stack(pairs) if pairs else x_AND.new_zeros(0))


def category_agreement(first_N: Tensor, second_N: Tensor, n_components: int) -> Tensor:
    """Agreement (K,) of two labellings: rows that both put in k over the larger of both counts; 0 for an empty k."""
    both_K = torch.bincount(first_N[first_N == second_N], minlength=n_components)
    counts = [torch.bincount(labels_N, minlength=n_components) for labels_N in (first_N, second_N)]
    return both_K / torch.maximum(*counts).clamp(min=1)


def copies(x_ND: Tensor, arms: int, augment: float | Augment, generator: torch.Generator) -> Tensor:
    """One augmented copy of the rows an arm: (A, N, D)."""
    if not callable(augment):
        x_AND = x_ND.expand(arms, -1, -1)
        return x_AND + augment * _normal(x_AND, generator) if augment else x_AND
    made = [augment(x_ND, generator) for _ in range(arms)]
    if made[0].shape != x_ND.shape:
        raise ValueError(f"augment gives shape {tuple(made[0].shape)}; expected {tuple(x_ND.shape)} as it was given")
    return torch.stack(made)


class ArmLinear(nn.Module):
    """A linear layer an arm: (A, N, I) to (A, N, O)."""

    def __init__(self, arms: int, inputs: int, outputs: int, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()
        reach = inputs**-0.5
        drawn = (torch.rand(arms, n, outputs, dtype=dtype, generator=generator) for n in (inputs, 1))
        self.weight_AIO, self.bias_A1O = (nn.Parameter((2 * u - 1) * reach) for u in drawn)

    def forward(self, x_ANI: Tensor) -> Tensor:
        """Every arm's rows through its own weights."""
        return torch.baddbmm(self.bias_A1O, x_ANI, self.weight_AIO)


class Arms(nn.Module):
    """The encoders and decoders of all arms, side by side."""

    def __init__(self, dim: int, config: Config, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.n_components = config, config.n_components
        A, K, S, H = config.n_arms, config.n_components, config.state_dim, config.hidden_dim

        def linear(inputs: int, outputs: int) -> ArmLinear:
            return ArmLinear(A, inputs, outputs, dtype, generator)

        self.encoder = nn.Sequential(linear(dim, H), nn.ReLU(), linear(H, H), nn.ReLU())
        self.category, self.state, self.read = linear(H, K), linear(H + K, 2 * S), linear(K + S, H)
        self.decoder = nn.Sequential(nn.ReLU(), linear(H, H), nn.ReLU(), linear(H, dim))

    def infer(self, x_AND: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden features (A, N, H) and log q(c | x) (A, N, K)."""
        h_ANH = self.encoder(x_AND)
        return h_ANH, (self.category(h_ANH).softmax(-1) / self.config.tau).log_softmax(-1)

    def states(self, h_ANH: Tensor, c_ANK: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (A, N, S) of q(s | c, x); variances are below one."""
        mean_ANS, raw_ANS = self.state(torch.cat([h_ANH, c_ANK], -1)).chunk(2, -1)
        return mean_ANS, nn.functional.logsigmoid(raw_ANS)

    def forward(self, x_AND: Tensor, gumbel_ANK: Tensor, normal_ANS: Tensor) -> Pass:
        """Categories, states and decoded rows for given standard noise."""
        h_ANH, log_prob_ANK = self.infer(x_AND)
        c_ANK = relax(log_prob_ANK, gumbel_ANK, self.config.temperature)
        mean_ANS, log_variance_ANS = self.states(h_ANH, c_ANK)
        s_ANS = mean_ANS + (0.5 * log_variance_ANS).exp() * normal_ANS
        decoded_AND = self.decoder(self.read(torch.cat([c_ANK, s_ANS], -1)))
        return Pass(log_prob_ANK, mean_ANS, log_variance_ANS, decoded_AND)

    def without(self, k: int) -> Arms:
        """The same arms with category k taken out of every net."""
        other, K, S = deepcopy(self), self.n_components, self.config.state_dim
        kept = [j for j in range(K) if j != k]
        hidden = list(range(self.config.hidden_dim))
        with torch.no_grad():
            other.category.weight_AIO = nn.Parameter(self.category.weight_AIO[..., kept])
            other.category.bias_A1O = nn.Parameter(self.category.bias_A1O[..., kept])
            other.state.weight_AIO = nn.Parameter(self.state.weight_AIO[:, hidden + [len(hidden) + j for j in kept]])
            other.read.weight_AIO = nn.Parameter(self.read.weight_AIO[:, [*kept, *range(K, K + S)]])
        other.n_components = K - 1
        return other


@method(
    title="Coupled mixture autoencoders",
    paper="Mixture Representation Learning with Coupled Autoencoders",
    year=2020,
    tags={"estimator", "responsibilities", "sklearn"},
)
class CoupledAutoencoders(Configured, config=Config):
    """Categories and states of rows by arms that agree; see the module's card and `Config`.

    Fitted: `arms_`, `n_components_` (categories left), `labels_` (N,), `agreement_` (share of rows on which two arms
    agree, mean over pairs; 1 for one arm), `category_agreement_` (K,), `history_` (name -> (steps,) of the loss and its
    terms summed over arms or pairs, in nats a row).
    """

    def fit(self, X: Any, y: Any = None) -> CoupledAutoencoders:
        """Fit rows X (N, D), two or more, with columns on the scale of the decoder's unit variance; returns self."""
        config = self._config()
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        draws = torch.Generator().manual_seed(int(check_random_state(config.random_state).randint(2**31 - 1)))
        x_ND = torch.tensor(X)
        self.arms_ = Arms(X.shape[1], config, draws, x_ND.dtype)
        rows = self._train(x_ND, config.steps, draws)
        self._judge(x_ND)
        while self.n_components_ > 1 and self.category_agreement_.min() < config.min_agreement:
            self.arms_ = self.arms_.without(int(self.category_agreement_.argmin()))
            rows += self._train(x_ND, config.prune_steps, draws)
            self._judge(x_ND)
        names = ("loss", "reconstruction", "state", "category", "coupling")
        self.history_ = dict(zip(names, torch.stack(rows, 1).numpy()))
        self.labels_ = self.predict(X)
        return self

    def _train(self, x_ND: Tensor, steps: int, draws: torch.Generator) -> list[Tensor]:
        """Steps of Adam; the loss and its terms (5,) of each."""
        config, arms = self.arms_.config, self.arms_
        optimizer = torch.optim.Adam(arms.parameters(), lr=config.lr)
        rows = []
        for _ in range(steps):
            batch_BD = x_ND[torch.randperm(len(x_ND), generator=draws)[: config.batch_size]]
            x_ABD = copies(batch_BD, config.n_arms, config.augment, draws)
            shape = x_ABD.shape[:2]
            gumbel_ABK = -x_ABD.new_empty(*shape, arms.n_components).exponential_(generator=draws).log()
            normal_ABS = _normal(x_ABD.new_empty(*shape, config.state_dim), draws)
            terms = loss_terms(x_ABD, arms(x_ABD, gumbel_ABK, normal_ABS), config.distance)
            loss = terms.total(config.coupling, config.beta)
            update(optimizer, loss)
            parts = (terms.reconstruction_A, terms.state_A, terms.category_A, terms.coupling_P)
            rows.append(torch.stack([loss, *(part.sum() for part in parts)]).detach())
        return rows

    def _judge(self, x_ND: Tensor) -> None:
        """Agreement of the arms on the rows themselves."""
        K, labels_AN = self.arms_.n_components, self._log_prob(x_ND).argmax(-1)
        pairs = list(combinations(labels_AN, 2)) or [(labels_AN[0], labels_AN[0])]
        self.n_components_ = K
        self.agreement_ = float(torch.stack([(a == b).double().mean() for a, b in pairs]).mean())
        self.category_agreement_ = torch.stack([category_agreement(a, b, K) for a, b in pairs]).mean(0).numpy()

    @torch.no_grad()
    def _log_prob(self, x_ND: Tensor) -> Tensor:
        """Every arm's log q(c | x) (A, N, K)."""
        arms = self.arms_.config.n_arms
        return torch.cat([self.arms_.infer(rows.expand(arms, -1, -1))[1] for rows in x_ND.split(ROWS)], 1)

    def _rows(self, X: Any) -> Tensor:
        check_is_fitted(self, "arms_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return torch.tensor(X, dtype=self.arms_.category.weight_AIO.dtype)

    def predict_proba(self, X: Any) -> Array:
        """The arms' consensus (N, K): the normalised geometric mean of their q(c | x)."""
        return np.asarray(self._log_prob(self._rows(X)).mean(0).softmax(-1).numpy())

    def predict(self, X: Any) -> Array:
        """The consensus' most probable category (N,), from 0 to `n_components_` - 1."""
        return np.asarray(self.predict_proba(X).argmax(1))

    @torch.no_grad()
    def states(self, X: Any) -> Array:
        """Every arm's mean state (A, N, S) of the rows, given the consensus' category."""
        h_ANH, log_prob_ANK = self.arms_.infer(self._rows(X).expand(self.arms_.config.n_arms, -1, -1))
        c_NK = nn.functional.one_hot(log_prob_ANK.mean(0).argmax(-1), self.n_components_).to(h_ANH)
        return np.asarray(self.arms_.states(h_ANH, c_NK.expand_as(log_prob_ANK))[0].numpy())


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=generator)


def example(generator: torch.Generator) -> dict[str, Any]:
    """Two groups in the plane and two arms."""
    x_ND = torch.randn(40, 2, generator=generator, dtype=torch.float64) + 6.0 * (torch.arange(40) % 2)[:, None]
    model = CoupledAutoencoders(n_components=2, hidden_dim=8, steps=5, batch_size=20, augment=0.1, random_state=0)
    return {"estimator": model, "X": x_ND.numpy()}
