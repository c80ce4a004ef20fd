"""The ways that a single position takes, against the blocks that serve many."""

import pytest
import torch

from mixwell.kernels.attention import attend
from mixwell.kernels.rotary import rotary_angles, rotate, rotate_one, turns_one

SCALING = {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_one_query_sees_what_the_last_of_many_sees(window, masked, kv_heads, generator):
    q, k, v = (torch.randn(2, heads, 7, 6, generator=generator) for heads in (4, kv_heads, kv_heads))
    keep = None
    if masked:
        keep = torch.ones(2, 7, dtype=torch.bool)
        keep[0, :5], keep[1, 6] = False, False
    want = attend(q.double(), k.double(), v.double(), window=window, keep_BS=keep)[:, :, -1:]
    before = None if keep is None else keep.clone()
    with torch.no_grad():
        got = attend(q[:, :, -1:], k, v, window=window, keep_BS=keep)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    assert keep is None or keep.equal(before)


@pytest.mark.parametrize("scaling", [None, SCALING])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_position_is_turned_as_among_many(scaling, dtype, generator):
    x = torch.randn(2, 1, 3, 8, generator=generator).to(dtype)
    positions = torch.tensor([[3], [41]])
    want = rotate(x, rotary_angles(positions, 8, 100.0, scaling))
    assert not turns_one(x)
    with torch.no_grad():
        assert turns_one(x) and not turns_one(x.expand(2, 2, 3, 8))
        got = rotate_one(x, positions, 100.0, scaling).transpose(1, 2)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
