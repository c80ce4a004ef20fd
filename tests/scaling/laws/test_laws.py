"""Laws against their papers' own figures."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.scaling.budget import Budget, best
from mixwell.scaling.laws import critical_batch, inference_optimal, power, saturating_power, speed_up, step, upcycling
from mixwell.scaling.laws._experts import blocks_of, effective_experts
from mixwell.scaling.laws._law import Config
from mixwell.scaling.laws.chinchilla import Chinchilla, grid
from mixwell.scaling.laws.granularity import Granularity
from mixwell.scaling.laws.joint_moe import JointMoE
from mixwell.scaling.laws.sparsity import Sparsity


def published(law):
    return law().curve(law.published)


@pytest.mark.parametrize("law", [Chinchilla, JointMoE, Granularity, Sparsity])
def test_the_equation_as_it_stands_in_the_paper(law):
    n, d = 7e8, 3e10
    p = law.published
    if law is Chinchilla:
        other, loss = {}, p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"] + p["E"]
    elif law is JointMoE:
        e = 8.0
        other = {"e": e}
        eh = 1 / (1 / (e - 1 + 1 / (1 / p["E_start"] - 1 / p["E_max"])) + 1 / p["E_max"])
        ln = np.log(eh)
        loss = (p["a"] * eh ** p["delta"] * n ** (p["alpha"] + p["gamma"] * ln)
                + p["b"] * eh ** p["omega"] * d ** (p["beta"] + p["zeta"] * ln) + p["c"])
    elif law is Granularity:
        other = {"g": 4.0}
        loss = p["c"] + (p["g"] / 4 ** p["gamma"] + p["a"]) / n ** p["alpha"] + p["b"] / d ** p["beta"]
    else:
        other, a = {"active": 0.1}, 0.1
        loss = (p["a"] / n ** p["alpha"] + p["b"] / d ** p["beta"] + p["c"] / a ** p["lambda"]
                + p["d"] / (a ** p["delta"] * n ** p["gamma"]) + p["e"])
    assert published(law).predict({"n": n, "d": d, **other})[0] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("e, n, d", [(1, 1.7e9, 9.7e9), (8, 990e6, 17e9), (32, 669e6, 24.9e9)])
def test_compute_optimal_mixtures_of_the_joint_law(e, n, d):
    found = best(published(JointMoE), Budget(flops=1e20), {"e": [e]})
    assert found.columns["n"] == pytest.approx(n, rel=0.02) and found.columns["d"] == pytest.approx(d, rel=0.02)


def test_more_experts_lower_the_joint_law_and_one_row_memory_bounds_them():
    curve = published(JointMoE)
    losses = curve.predict({"n": np.full(3, 3e8), "d": np.full(3, 1.6e10), "e": np.array([1.0, 8.0, 32.0])})
    assert losses == pytest.approx([2.773, 2.685, 2.617], abs=1e-3)
    free = best(curve, Budget(flops=1e22), {"e": [1, 2, 4, 8, 16, 32]})
    held = best(curve, Budget(flops=1e22, memory_bytes=20e9), {"e": [1, 2, 4, 8, 16, 32]})
    assert free.columns["e"] == 32 and held.columns["e"] < 32 and held.total_parameters <= 10e9


@pytest.mark.parametrize("flops, millions, tokens, granularity", [
    (2.95e18, 100, 4.37e9, 8), (1.93e20, 1000, 28.9e9, 16), (6.46e21, 7000, 137.6e9, 32)])
def test_optimal_granularity(flops, millions, tokens, granularity):
    found = best(published(Granularity), Budget(flops=flops), {"g": [1, 2, 4, 8, 16, 32, 64]})
    dense = found.columns["n"] * 12 / (4 + 8 * 64)
    assert found.columns["g"] == granularity
    assert dense == pytest.approx(millions * 1e6, rel=0.1) and found.columns["d"] == pytest.approx(tokens, rel=0.1)


@pytest.mark.parametrize("flops, shares", [
    (1e20, [0.77, 0.87, 0.95, 0.98, 0.99]), (1e21, [0.35, 0.62, 0.84, 0.94, 0.98])])
def test_optimal_sparsity_rises_with_size_and_falls_with_compute(flops, shares):
    active = 1 - np.linspace(0, 0.995, 400)
    found = []
    for n in (0.5e9, 1e9, 3e9, 10e9, 30e9):
        losses = published(Sparsity).predict({"n": n, "active": active, "d": flops / (6 * active * n)})
        found.append(1 - active[losses.argmin()])
    assert found == pytest.approx(shares, abs=0.01)


def test_hubers_loss_bears_outliers():
    law, truth = Chinchilla(), published(Chinchilla)
    runs = grid(np.random.default_rng(0))
    loss = truth.predict(runs)
    loss[:3] *= 1.3
    fit = law.fit({**runs, "loss": loss})
    assert fit.parameters["alpha"] == pytest.approx(0.3478, abs=0.002)
    squares = Chinchilla(Config(delta=10.0)).fit({**runs, "loss": loss})
    assert abs(squares.parameters["alpha"] - 0.3478) > 0.02
    assert Chinchilla(Config(starts=1)).fit({**runs, "loss": loss}).objective >= fit.objective


def test_weights_are_counts_of_runs():
    law = Chinchilla()
    runs = grid(np.random.default_rng(0))
    loss = published(Chinchilla).predict(runs) * np.exp(0.01 * np.random.default_rng(1).standard_normal(40))
    counts = np.where(np.arange(40) < 10, 3, 1)
    weighed = law.fit({**runs, "loss": loss, "count": counts.astype(float)}, weight="count")
    repeated = law.fit({name: np.repeat(value, counts) for name, value in {**runs, "loss": loss}.items()})
    assert weighed.parameters["alpha"] == pytest.approx(repeated.parameters["alpha"], rel=1e-3)


@pytest.mark.parametrize("config", [{"delta": 0.0}, {"delta": float("nan")}, {"starts": 0}])
def test_a_config_checks_its_ranges(config):
    with pytest.raises(ValueError, match="expected"):
        Config(**config)


def test_a_law_takes_its_own_parameters_alone():
    with pytest.raises(MixwellError, match="the law takes the parameters A, B, E, alpha, beta; got A"):
        Chinchilla().curve({"A": 1.0})
    fit = Chinchilla().fit({**grid(np.random.default_rng(0)), "loss": published(Chinchilla).predict(grid(
        np.random.default_rng(0)))})
    with pytest.raises(MixwellError, match="share is 1"):
        fit.largest_left_out(1.0)


def test_effective_experts_begin_at_start_and_saturate():
    found = effective_experts(np.array([1.0, 2.0, 1e9]), 2.0732, 290.4521)
    assert found[0] == pytest.approx(2.0732) and found[2] == pytest.approx(290.4521, rel=1e-6)
    assert found[0] < found[1] < found[2]


def test_blocks_solve_their_equation():
    parameters = np.array([1e6, 1e9, 1e12])
    blocks = blocks_of(parameters, 13, 100_514)
    width = 64 * blocks
    assert 13 * width**2 * blocks + 100_514 * width == pytest.approx(parameters, rel=1e-9)


@pytest.mark.parametrize("size, critical", [(85e6, 745), (151e6, 955), (302e6, 1394), (604e6, 1889), (1.2e9, 2533)])
def test_critical_batches_of_the_paper(size, critical):
    table = {"batch": critical_batch.BATCHES, "steps": critical_batch.PUBLISHED[size]}
    found = critical_batch.critical_batch(table, critical_batch.Config())
    assert found.critical == pytest.approx(critical, abs=1)
    small = critical_batch.Config().smallest
    perfect = found.predict(small) * small / found.critical
    assert found.predict(found.critical) == pytest.approx(1.2 * perfect, rel=1e-9)


def test_critical_batch_grows_with_the_published_exponent():
    batch = critical_batch.BATCHES
    critical = [critical_batch.critical_batch({"batch": batch, "steps": steps}, critical_batch.Config()).critical
                for steps in critical_batch.PUBLISHED.values()]
    sizes = np.array(list(critical_batch.PUBLISHED)) / 1e6
    fit = power.PowerLaw().fit({"x": sizes, "loss": critical})
    assert -fit.parameters["k"] == pytest.approx(0.468, abs=0.02)
    assert fit.parameters["A"] == pytest.approx(93.2, rel=0.1)
    with pytest.raises(MixwellError, match="2 sizes of batch came"):
        critical_batch.critical_batch({"batch": [1, 2], "steps": [4, 3]}, critical_batch.Config())
    with pytest.raises(ValueError, match="overhead=0"):
        critical_batch.Config(overhead=0.0)


def test_the_step_law_is_recovered_from_a_grid_and_its_bootstrap():
    given = step.example(np.random.default_rng(0))
    found = step.step_law(**given)
    assert found.lr == pytest.approx(step.PUBLISHED.lr) and found.batch == pytest.approx(step.PUBLISHED.batch)
    lr, batch = found.predict({"n": 1e9, "d": 1e11})
    assert lr[0] == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307) and batch[0] == pytest.approx(0.58 * 1e11**0.571)
    draws = step.bootstrap(given["table"], given["config"], 10, np.random.default_rng(0))
    assert len(draws) == 10 and np.ptp([one.lr[1] for one in draws]) > 0
    narrow = step.step_law(given["table"], step.Config(plateau=0.0))
    assert narrow.lr == pytest.approx(step.PUBLISHED.lr)


def test_a_grid_that_cannot_tell_the_step_law():
    table = step.example(np.random.default_rng(0))["table"]
    one_size = {name: value[:162] for name, value in table.items()}
    with pytest.raises(MixwellError, match="2 pairs of n and d"):
        step.step_law(one_size, step.Config())
    with pytest.raises(MixwellError, match="do not vary apart"):
        step.step_law({**table, "n": table["d"]}, step.Config())
    with pytest.raises(ValueError, match="plateau is -1"):
        step.Config(plateau=-1)


def test_speed_up_of_parallel_lines_and_outside_of_them():
    given = speed_up.example(np.random.default_rng(0))
    assert speed_up.speed_up(**given) == pytest.approx(3.0)
    outside = {"flops": np.array([1e18, 1e18]), "loss": np.array([99.0, 0.1])}
    assert np.isnan(speed_up.speed_up(given["dense"], outside)).all()
    bumpy = {"flops": np.array([1.0, 10.0, 100.0, 1000.0]), "loss": np.array([4.0, 3.0, 3.2, 2.0])}
    middle = speed_up.speed_up(bumpy, {"flops": np.array([1.0]), "loss": np.array([2.55])})
    assert middle == pytest.approx(np.exp(np.interp(-2.55, [-3.1, -2.0], np.log([100, 1000]))), rel=1e-6)
    with pytest.raises(MixwellError, match="1 dense model came"):
        speed_up.speed_up({"flops": [1.0], "loss": [1.0]}, outside)


def test_a_power_law_with_and_without_a_floor():
    x = np.geomspace(1e6, 1e10, 12)
    straight = 40 * x**-0.1
    fit = power.PowerLaw().fit({"x": x, "loss": straight})
    assert fit.parameters == pytest.approx({"A": 40, "k": 0.1})
    assert saturating_power.reach(fit, 1.0) == pytest.approx(40**10)
    floor = saturating_power.SaturatingPower().curve({"A": 40.0, "k": 0.1, "E": 1.0})
    assert saturating_power.reach(floor, 1.5) == pytest.approx(80.0**10)
    assert saturating_power.reach(floor, 0.9) == np.inf


def test_scratch_overtakes_upcycling_where_both_losses_are_equal():
    upcycled = upcycling.Upcycling().curve(upcycling.example(np.random.default_rng(0))["parameters"])
    scratch = saturating_power.SaturatingPower().curve({"A": 5000.0, "k": 0.35, "E": 1.6})
    found = upcycling.threshold(upcycled, scratch, 1e10)
    own, fresh = upcycled.predict({"d1": 1e10, "d2": found}), scratch.predict({"x": found})
    assert 1e6 < found < 1e15 and own == pytest.approx(fresh, rel=2e-3)
    before = found / 2
    assert upcycled.predict({"d1": 1e10, "d2": before}) < scratch.predict({"x": before})
    assert upcycling.threshold(upcycled, scratch, 1e11) != found
    never = saturating_power.SaturatingPower().curve({"A": 5000.0, "k": 0.35, "E": 3.0})
    assert upcycling.threshold(upcycled, never, 1e10) == np.inf
    always = saturating_power.SaturatingPower().curve({"A": 1.0, "k": 0.35, "E": 0.1})
    assert upcycling.threshold(upcycled, always, 1e10) == 1e6
    slow, quick = (upcycled.predict({"d1": d1, "d2": np.array([1e9, 2e9])}) for d1 in (1e11, 1e9))
    assert slow[0] / slow[1] < quick[0] / quick[1]  # the more of the parent, the flatter


def test_serving_makes_fewer_experts_cheaper():
    law = inference_optimal.InferenceOptimal()
    curve = law.curve(inference_optimal.example(np.random.default_rng(0))["parameters"])
    device = inference_optimal.Device()
    experts = np.array([1.0, 4.0, 16.0, 64.0])
    runs = {"n": np.full(4, 7e9), "d": np.full(4, 1e11), "e": experts}
    losses = curve.predict(runs)
    assert (np.diff(losses) < 0).all()  # loss alone wants the most
    costs = [inference_optimal.serving(total, 7e9, device)[0] for total in law.total_parameters(runs)]
    assert (np.diff(costs) > 0).all()
    cost, count, batch = inference_optimal.serving(7e9, 7e9, device)
    left = count * 80e9 - 14e9
    assert batch == min(left // 1e9, 512 * count)
    step_s = max((14e9 + batch * 1e9) / (count * 2e12), 2 * 7e9 * batch / (count * 300e12))
    assert cost == pytest.approx(count * step_s / batch)
    with pytest.raises(MixwellError, match="fits into no group"):
        inference_optimal.serving(7e9, 7e9, inference_optimal.Device(cache_bytes=1e15))
    with pytest.raises(ValueError, match="flops is 0"):
        inference_optimal.Device(flops=0)
