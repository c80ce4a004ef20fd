"""Hidden Markov models against a loop over all paths, and against hmmlearn 0.3.3 (constants) from the same start."""

from itertools import pairwise, product

import numpy as np
import pytest
from scipy import stats

from mixwell.density import (
    BayesianGaussianMixture,
    CategoricalMixture,
    GaussianMixture,
    HiddenMarkovModel,
    PoissonMixture,
    ProductMixture,
)
from mixwell.density.chains import likeliest_path
from mixwell.density.mixtures.hidden_markov import smooth
from mixwell.density.mixtures.product import Block

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X = np.array([
    [1.5, -1.3], [1.5, 1.3], [0.8, 0.3], [-0.3, 1.5], [2.0, 1.8], [1.3, 0.4], [0.8, 1.0], [2.7, -0.3], [2.4, 1.4],
    [2.7, -0.2], [1.3, 0.6], [0.8, 2.7], [-0.5, 0.3], [-0.3, 1.6], [1.3, 0.6], [-2.2, 0.1], [0.7, 1.0], [-0.6, 1.8],
    [-1.3, -0.7], [0.9, 0.0], [2.0, 0.2], [-0.6, -0.4], [-1.1, -1.3], [0.6, 0.6], [1.3, -0.8], [1.7, -0.3],
    [1.6, -0.4], [1.3, 1.2], [3.0, 1.2], [1.4, -0.3], [0.6, 1.5], [3.0, 0.8], [0.9, 1.9], [-1.3, -0.7], [0.6, -2.3],
    [0.4, -0.6], [0.1, -0.1], [0.2, 0.7], [-0.8, 1.4], [2.7, 1.8]])
LENGTHS = [25, 15]
PI, A = np.array([0.6, 0.4]), np.array([[0.7, 0.3], [0.4, 0.6]])
# hmmlearn 0.3.3, GaussianHMM without priors, four steps from START: log likelihood, that of the paths, first mean,
# first variance, stay in the first state
HMMLEARN = {
    "full": (-119.26494258201816, -123.2353894598991, 0.01681251986164969, 1.1264973166930954, 0.8552186433638747),
    "tied": (-120.33887382398561, -123.51823499586571, -0.047784537611107784, 0.8825499454104673, 0.834028677826793),
    "spherical": (-119.89230903353547, -123.57441688632642, 0.00750693141529621, 1.184501980876655, 0.8460392323193761),
    "diag": (-119.77142205966491, -123.76158649435524, -0.014852585652117452, 1.0644605837151850, 0.8389146259392389),
}


def started(kind):
    """Means (0, 0.5) and (1.5, 1), unit covariances."""
    eye = {"full": np.tile(np.eye(2), (2, 1, 1)), "tied": np.eye(2), "diag": np.ones((2, 2)), "spherical": np.ones(2)}
    return GaussianMixture(2, covariance_type=kind, reg_covar=0.0, max_iter=0, weights_init=[0.5, 0.5],
                           means_init=[[0, 0.5], [1.5, 1]], precisions_init=eye[kind]).fit(X)


@pytest.mark.parametrize("kind", HMMLEARN)
def test_four_steps_are_hmmlearns(kind):
    model = HiddenMarkovModel(started(kind), 4, tol=0.0, init="given", startprob_init=PI, transmat_init=A)
    model.fit(X, lengths=LENGTHS)
    found = (model.score(X, lengths=LENGTHS), model.decode(X, LENGTHS)[0], model.means_[0, 0], model.covars_[0, 0, 0],
             model.transmat_[0, 0])
    np.testing.assert_allclose(found, HMMLEARN[kind], rtol=1e-7)
    assert len(model.log_likelihoods_) == 4 and model.covars_.shape == (2, 2, 2)


def test_sums_are_those_over_all_paths():
    rng = np.random.default_rng(0)
    T, K = 5, 3
    start_K, step_KK, emit_TK = rng.dirichlet(np.ones(K)), rng.dirichlet(np.ones(K), K), rng.gamma(1, size=(T, K))
    step_KK[0] = [0.0, 0.4, 0.6]
    total, best, gamma_TK, moves_KK = 0.0, (0.0, None), np.zeros((T, K)), np.zeros((K, K))
    for path in product(range(K), repeat=T):
        p = start_K[path[0]] * emit_TK[0, path[0]]
        for t in range(1, T):
            p *= step_KK[path[t - 1], path[t]] * emit_TK[t, path[t]]
        total, best = total + p, max(best, (p, path), key=lambda pair: pair[0])
        for t in range(T):
            gamma_TK[t, path[t]] += p
        for pair in pairwise(path):
            moves_KK[pair] += p
    with np.errstate(divide="ignore"):
        logs = np.log(start_K), np.log(step_KK), np.log(emit_TK)
    found = smooth(*logs)
    assert found.log_likelihood == pytest.approx(np.log(total), abs=1e-12)
    np.testing.assert_allclose(np.exp(found.log_gamma_TK), gamma_TK / total, atol=1e-12)
    np.testing.assert_allclose(found.moves_KK, moves_KK / total, atol=1e-12)
    value, path_T = likeliest_path(*logs)
    assert value == pytest.approx(np.log(best[0])) and tuple(path_T) == best[1]


def walked(kind, n=300):
    """Counts or categories from states that stay."""
    rng = np.random.default_rng(1)
    states_N = np.arange(n) // 15 % 2
    if kind is PoissonMixture:
        return rng.poisson(np.array([2.0, 5.0])[states_N])[:, None].astype(float), states_N
    return (rng.random(n) < np.array([0.25, 0.8])[states_N])[:, None].astype(float), states_N


@pytest.mark.parametrize("kind", [PoissonMixture, CategoricalMixture])
def test_other_families_climb_and_find_what_their_rows_alone_do_not_tell(kind):
    x_N1, states_N = walked(kind)
    inner = kind(2, init_params="random", random_state=0).fit(x_N1)
    step = [[0.9, 0.1], [0.1, 0.9]]
    model = HiddenMarkovModel(inner, 60, tol=1e-6, init="given", transmat_init=step).fit(x_N1, lengths=[150, 150])
    assert np.diff(model.log_likelihoods_).min() > -1e-9
    right = np.mean(model.predict(x_N1, [150, 150]) == states_N)
    alone = np.mean(inner.predict(x_N1) == states_N)
    assert max(right, 1 - right) > max(alone, 1 - alone)
    if kind is PoissonMixture:
        log_emit_NK = stats.poisson.logpmf(x_N1, model.lambdas_[:, 0])
    else:
        log_emit_NK = np.log(model.emissionprob_)[:, x_N1[:, 0].astype(int)].T
    chain = np.log(model.startprob_ + 1e-300), np.log(model.transmat_)
    own = [smooth(*chain, part_TK).log_likelihood for part_TK in np.split(log_emit_NK, 2)]
    assert model.score(x_N1, lengths=[150, 150]) == pytest.approx(sum(own), abs=1e-8)


def test_states_keep_their_chain_where_a_mixture_names_the_largest_first():
    """The start's smaller component turns out to be the state of most rows."""
    rng = np.random.default_rng(0)
    states_N = (np.arange(400) // 20 % 4 > 0).astype(int)
    x = np.column_stack([rng.normal(2.5 * states_N), rng.poisson(2 + 4 * states_N)]).astype(float)
    blocks = [Block("numeric", GaussianMixture(), (0,)), Block("count", PoissonMixture(), (1,))]
    inner = ProductMixture(2, blocks=blocks, random_state=0).fit(x[(states_N == 0) | (np.arange(400) < 40)])
    model = HiddenMarkovModel(inner, 40, tol=1e-8, init="given").fit(x)
    assert model.score(x) == pytest.approx(model.log_likelihoods_[-1], abs=1e-4)
    assert np.mean(model.predict(x) == 1 - states_N) > 0.95


def test_rows_are_checked_where_the_mixture_is_given():
    inner = PoissonMixture(2, random_state=0).fit(walked(PoissonMixture)[0])
    with pytest.raises(ValueError, match="Negative values in data passed to PoissonMixture: row 1, column 0"):
        HiddenMarkovModel(inner, init="given").fit([[2.0], [-4.0], [3.0]])


def test_one_state_is_the_family_itself():
    model = HiddenMarkovModel(GaussianMixture(1)).fit(X)
    assert model.score(X) == pytest.approx(len(X) * GaussianMixture(1).fit(X).score(X), rel=1e-9)


def test_draws_follow_the_chain():
    model = HiddenMarkovModel(started("full"), 4, init="given", startprob_init=PI, transmat_init=A, random_state=0)
    x_ND, states_N = model.fit(X).sample(4000)
    stay = np.mean(states_N[1:][states_N[:-1] == 0] == 0)
    assert stay == pytest.approx(model.transmat_[0, 0], abs=0.04)
    np.testing.assert_allclose(x_ND[states_N == 1].mean(0), model.means_[1], atol=0.1)
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)


@pytest.mark.parametrize("options, lengths, message", [
    ({}, [10, 10], "lengths sum to 20 for 40 rows"),
    ({"max_iter": 0}, None, "max_iter=0"),
    ({"init": "random"}, None, "'fit' or 'given'"),
    ({"startprob_init": [0.5, 0.6]}, None, "startprob_init should be probabilities"),
    ({"transmat_init": [0.5, 0.5]}, None, "transmat_init should be probabilities"),
    ({"components": BayesianGaussianMixture()}, None, "components is BayesianGaussianMixture"),
])
def test_refusals(options, lengths, message):
    with pytest.raises(ValueError, match=message):
        HiddenMarkovModel(**options).fit(X, lengths=lengths)
