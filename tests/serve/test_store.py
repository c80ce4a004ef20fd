"""Keys and values in few bits: rounded as a loop rounds them, the same for whoever reads them, in less memory."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.serve.engine import Engine, Limits
from mixwell.serve.store import Plain, Rounded, bytes_of
from tests.serve.conftest import engine, finish, row, small_model


@pytest.mark.parametrize("width", [6, 5])
@pytest.mark.parametrize("bits", [8, 4])
def test_vectors_are_rounded_as_a_loop_rounds_them(bits, width):
    most = 2 ** (bits - 1) - 1
    new = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(bits))
    new[0, 1] = 0
    new[1, 2, 0] = -30  # the largest by far, and negative
    wanted = torch.zeros_like(new)
    for g in range(2):
        for t in range(3):
            vector = new[g, t].tolist()
            step = max(abs(value) for value in vector) / most
            wanted[g, t] = torch.tensor([round(value / step) * step if step else 0.0 for value in vector])
    for place in (slice(2, 5), torch.tensor([7, 1, 4])):
        store = Rounded((2, 8, width), torch.float32, bits)
        store.put(place, new)
        torch.testing.assert_close(store.get(place), wanted)
        kept = store.codes[:, 0].nbytes + store.scale[:, 0].nbytes
        assert kept == bytes_of((2, width), torch.float32, bits) < bytes_of((2, width), torch.float32, None)
        plain = Plain((2, 8, width), torch.float32)
        plain.put(place, new)
        assert torch.equal(plain.get(place), new)
        assert plain.held[:, 0].nbytes == bytes_of((2, width), torch.float32, None)


@pytest.mark.parametrize("bits", [8, 4])
def test_an_answer_hangs_on_no_one_else(model, bits):
    """Alone, in pieces, beside others and after them: the same ids, by the same rounded keys and values."""
    prompts = [[1, 5, 9, 1, 5, 9, 1, 5, 3, 3], [7, 7, 7, 7], list(range(20)), [1, 5, 9, 1, 5, 9, 1, 5, 8]]
    found = []
    for limits in ({"max_rows": 1, "step_tokens": 64}, {"max_rows": 4, "step_tokens": 5}, {"max_rows": 2}):
        rows = [row(model, prompt, logprobs=0) for prompt in prompts]
        events = finish(engine(model, cache_bits=bits, **limits), rows)
        ids = [one.said for one in rows]
        logprobs = [[token.logprob for event in events if event.row is one for token in event.tokens] for one in rows]
        found.append((ids, logprobs))
    (ids, logprobs), *others = found
    for other_ids, other_logprobs in others:
        assert other_ids == ids
        for one, other in zip(logprobs, other_logprobs):
            assert one == pytest.approx(other, abs=1e-5)


def test_more_bits_are_nearer_and_fewer_take_less():
    prompt = list(range(30))
    model = small_model(channel_mixer={"method": "experts.layers.swiglu", "hidden_dim": 8})  # no router that turns over

    def told(bits):
        one = row(model, prompt, 0, logprobs=0, prompt_logprobs=True)
        (event,) = finish(engine(model, cache_bits=bits, step_tokens=64), [one])
        return torch.tensor([token.logprob for token in event.prompt[1:]])

    plain = told(None)
    eight, four = (float((told(bits) - plain).abs().mean()) for bits in (8, 4))
    assert 0 < eight < four / 4
    sizes = [engine(small_model(dtype=torch.float32), cache_bits=bits).position_bytes for bits in (None, 8, 4)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_bits_that_are_not_there_are_refused(model):
    with pytest.raises(MixwellError, match="cache_bits is 3; expected 8 or 4"):
        Engine(model, Limits(cache_bits=3))
    with pytest.raises(MixwellError, match="leave cache_bits out"):
        Engine(small_model({"method": "sequence.mamba"}), Limits(cache_bits=8))
