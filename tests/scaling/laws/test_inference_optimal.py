"""Loss wants all experts, serving does not."""

import numpy as np
import pytest

from mixwell.core.errors import MixwellError
from mixwell.scaling.laws import inference_optimal


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
