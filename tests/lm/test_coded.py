"""Weights in few bits as a checkpoint brings them: what their parts may be."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from mixwell.lm.model import LanguageModel
from mixwell.precision import integers, mxfp4
from tests.contracts._conversions import whole

NAME = "layers.0.channel_mixer.down_proj"


@pytest.fixture(scope="module")
def checkpoints():
    source = whole(integers.example(seeded(1))["checkpoint"])
    rounding = integers.Config(group_size=8, input_bits=4, symmetric=False)
    return {"integers": integers.integers(source, rounding, seeded(1)),
            "mxfp4": mxfp4.mxfp4(source, mxfp4.Config(group_size=8), seeded(1))}


def full(value, like):
    return torch.full_like(like, value)


@pytest.mark.parametrize("kind, part, change, message", [
    ("integers", "bits", lambda old: old[:, :-1], r"down_proj\.bits is uint8 \[3, 15\]; expected uint8 \[3, 16\]"),
    ("integers", "bits", lambda old: full(9, old), "down_proj has 9 to 9 bits in rows of 8; expected 1 to 8"),
    ("integers", "scale", lambda old: old.expand(-1, -1, 3), r"down_proj\.scale has 3 groups in rows of 8"),
    ("integers", "zero", lambda old: old[:2], r"down_proj\.zero has shape \[2, 16, 1\]; expected \[3, 16, 1\]"),
    ("integers", "input_bits", lambda old: full(1, old), r"down_proj\.input_bits is 1; expected 2 to 8"),
    ("integers", "input_bits", lambda old: full(200, old), r"down_proj\.input_bits is 200; expected 2 to 8"),
    ("mxfp4", "scale", lambda old: full(255, old), r"down_proj\.scale holds the exponent 255"),
    ("mxfp4", "table", lambda old: old[:, :8], r"down_proj\.table has shape \[3, 8\]; expected \[3, 16\]"),
])
def test_parts_that_do_not_fit_are_refused(checkpoints, kind, part, change, message):
    checkpoint = checkpoints[kind]
    name = f"{NAME}.{part}"
    LanguageModel.from_checkpoint(checkpoint)
    damaged = checkpoint.derive(tensors={**checkpoint.tensors, name: change(checkpoint.tensors[name])})
    with pytest.raises(MixwellError, match=message):
        LanguageModel.from_checkpoint(damaged)


def test_codes_without_a_scale_or_of_another_length_are_refused(checkpoints):
    checkpoint = checkpoints["integers"]
    without = {name: value for name, value in checkpoint.tensors.items() if name != f"{NAME}.scale"}
    with pytest.raises(MixwellError, match=r"down_proj\.scale is missing"):
        LanguageModel.from_checkpoint(checkpoint.derive(tensors=without))
    shorter = {**checkpoint.tensors, NAME: checkpoint.tensors[NAME][:-1]}
    with pytest.raises(MixwellError, match=r"down_proj has shape \[191\]; expected \[192\]"):
        LanguageModel.from_checkpoint(checkpoint.derive(tensors=shorter))


def test_books_are_counted_past_a_byte(checkpoints):
    """272 bits of words are no 16 bits of numbers, though both are 16 in a byte."""
    tensors = dict(checkpoints["integers"].tensors)
    del tensors[f"{NAME}.zero"]
    rows = torch.full((3, 16), 2, dtype=torch.uint8)
    wrong = {NAME: tensors[NAME][: 3 * 16 * 2], f"{NAME}.bits": rows, f"{NAME}.codebooks": torch.zeros(3, 34, 256, 8)}
    with pytest.raises(MixwellError, match=r"codebooks is .* expected books of"):
        LanguageModel.from_checkpoint(checkpoints["integers"].derive(tensors={**tensors, **wrong}))
