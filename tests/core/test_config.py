"""Configs from plain data: every error names the place, what came and what was expected."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate is {self.rate}; expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    kind: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] | None = None
    flag: bool = False
    name: str = "x"
    table: Mapping[str, float] = field(default_factory=dict)


def test_round_trip():
    data = {"steps": 3, "kind": "b", "inner": {"rate": 1}, "sizes": [1, 2], "pair": [1, "u"], "flag": True,
            "name": "y", "table": {"k": 2}}
    config = from_dict(Outer, data)
    assert config.inner == Inner(rate=1.0) and config.sizes == (1, 2) and config.table == {"k": 2.0}
    assert from_dict(Outer, to_dict(config)) == config


@pytest.mark.parametrize("data, message", [
    ({"stepz": 3}, r"train: unknown key 'stepz'\. Did you mean 'steps'\? Known keys: steps, kind"),
    ({}, r"train: missing steps"),
    ({"steps": "many"}, r"train\.steps: expected a whole number, got 'many'"),
    ({"steps": True}, r"train\.steps: expected a whole number, got True"),
    ({"steps": 1.5}, r"expected a whole number"),
    ({"steps": 1, "kind": "c"}, r"train\.kind: 'c' is not one of a, b"),
    ({"steps": 1, "inner": {"rate": -1}}, r"train\.inner: rate is -1"),
    ({"steps": 1, "inner": {"rat": 1}}, r"train\.inner: unknown key 'rat'\. Did you mean 'rate'"),
    ({"steps": 1, "inner": {"rate": "fast"}}, r"train\.inner\.rate: expected a number"),
    ({"steps": 1, "inner": {"rate": 10**400}}, r"inner\.rate: expected a number that a float holds, got 1000.*\.\.\."),
    ({"steps": 1, "sizes": 3}, r"train\.sizes: expected a list"),
    ({"steps": 1, "sizes": [1, "b"]}, r"train\.sizes\[1\]: expected a whole number"),
    ({"steps": 1, "pair": [1]}, r"train\.pair: expected 2 values"),
    ({"steps": 1, "flag": 1}, r"train\.flag: expected true or false"),
    ({"steps": 1, "table": [1]}, r"train\.table: expected keys and values"),
    ([1], r"train: expected keys and values"),
])
def test_errors_name_the_place(data, message):
    with pytest.raises(MixwellError, match=message):
        from_dict(Outer, data, "train")


def test_numbers_that_yaml_reads_as_text_or_as_floats():
    assert from_dict(Inner, {"rate": "3e-4"}).rate == 3e-4
    assert from_dict(Outer, {"steps": 1e6}).steps == 1_000_000
