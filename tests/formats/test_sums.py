"""Checksums: every single change is seen, whatever the type, the length and the place."""

import functools

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.formats import sums
from mixwell.formats.tensors import SINGLE, open_file, save_tensors

TYPES = (torch.float32, torch.bfloat16, torch.int8, torch.int64, torch.bool)


def plain(tensor):
    """The same sum in Python's own numbers, word by word."""
    import zlib
    raw = bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
    factors = [factor % 2**64 for factor in sums._factors().tolist()]
    total = zlib.crc32(f"{tensor.dtype} {list(tensor.shape)}".encode())
    for number, start in enumerate(range(0, len(raw), sums.PIECE_BYTES), start=1):
        piece = raw[start : start + sums.PIECE_BYTES]
        whole = len(piece) // 8 * 8
        words = [int.from_bytes(piece[i : i + 8], "little") for i in range(0, whole, 8)]
        value = sum(w * f for w, f in zip(words, factors)) + int.from_bytes(piece[whole:], "little")
        total += value * (2 * number + 1)
    return total % 2**64


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(0,), (), (3,), (5, 7), (70001,)])
def test_agrees_with_plain_numbers_and_sees_each_change(dtype, shape, generator):
    tensor = (torch.randn(shape, generator=generator) * 50).to(dtype)
    assert sums.of(tensor) == plain(tensor)
    flat = tensor.view(-1)
    for place in {0, flat.numel() // 2, flat.numel() - 1} & set(range(flat.numel())):
        other = flat.clone()
        other[place] = ~other[place] if dtype == torch.bool else other[place] + 1
        assert sums.of(other.view(shape)) != sums.of(tensor)


def test_factors_are_odd_and_all_different():
    factors = sums._factors()
    assert bool((factors % 2 != 0).all()) and len(set(factors.tolist())) == sums.PIECE_BYTES // 8


def test_a_first_sum_inside_another_device_is_the_same(monkeypatch):
    tensor = torch.arange(100, dtype=torch.uint8)
    expected = sums.of(tensor)
    monkeypatch.setattr(sums, "_factors", functools.cache(sums._factors.__wrapped__))
    with torch.device("meta"):
        assert sums.of(tensor) == expected
    assert sums.of(tensor) == expected


def test_order_type_and_shape_count(generator):
    tensor = torch.randn(2**17, generator=generator)
    turned = tensor.flip(0)
    pieces = torch.cat(list(reversed(tensor.split(2**16))))
    kinds = [tensor, turned, pieces, tensor.view(2, -1), tensor.view(torch.int32), tensor[:-1]]
    assert len({sums.of(kind) for kind in kinds}) == len(kinds)
    swapped = tensor.clone()
    swapped[[3, 7]] = tensor[[7, 3]]
    assert sums.of(swapped) != sums.of(tensor)


def test_a_place_in_memory_changes_nothing(generator):
    tensor = torch.randn(1001, generator=generator).bfloat16()
    assert sums.of(tensor[1:]) == sums.of(tensor[1:].clone())


def test_a_file_says_what_was_written(tmp_path):
    path = save_tensors(tmp_path / SINGLE, {"b": torch.ones(5), "a": torch.arange(3)}, {"holds": "x"})
    data = path.read_bytes()
    assert torch.equal(open_file(path)["b"], torch.ones(5))
    path.write_bytes(data[:-1] + b"\x01")
    assert torch.equal(open_file(path)["a"], torch.arange(3))
    with pytest.raises(MixwellError, match=r"model\.safetensors: b is not what was written"):
        open_file(path)["b"]
    at = data.index(b"mixwell.sums") + 15
    path.write_bytes(data[:at] + b"z" + data[at + 1 :])
    with pytest.raises(MixwellError, match="is not made of digits"):
        open_file(path)


def test_sums_of_other_tensors_are_refused():
    assert sums.unpacked(sums.packed([1, 2**64 - 1]), ["b", "a"], "x") == {"a": 1, "b": 2**64 - 1}
    with pytest.raises(MixwellError, match="of 2 tensors, the file has 1"):
        sums.unpacked(sums.packed([1, 2]), ["a"], "x")
