"""The registry: names are paths, headers are read without importing, near names are suggested."""

import importlib
import subprocess
import sys

import pytest

from mixwell.core import registry
from mixwell.core.errors import MixwellError
from mixwell.core.method import card


def test_every_entry_names_its_path_and_object():
    for entry in registry.entries():
        assert entry.path.as_posix().endswith(f"mixwell/{entry.name.replace('.', '/')}.py")
        assert entry.room == entry.name.split(".")[0] and entry.name.startswith(entry.family)
        assert entry.title and 1950 < entry.year < 2100


def test_header_and_object_agree():
    entry = registry.find("experts.routers.top_k")
    found = card(entry.load())
    assert (found.name, found.title, found.papers, found.year, found.tags) == (
        entry.name, entry.title, entry.papers, entry.year, entry.tags)


def test_short_names_inside_a_family_and_suggestions():
    assert registry.find("top_k", "experts.routers").name == "experts.routers.top_k"
    with pytest.raises(MixwellError, match="Did you mean 'top_k'"):
        registry.find("topk", "experts.routers")
    with pytest.raises(MixwellError, match=r"unknown method 'experts\.routers\.topk'\. Did you mean"):
        registry.find("experts.routers.topk")


def test_a_room_hands_its_names_on():
    from mixwell import experts

    assert "MoE" in dir(experts) and experts.MoE.__module__ == "mixwell.experts.layers.moe"
    with pytest.raises(AttributeError, match="Did you mean 'MoE'"):
        experts.MoEE  # noqa: B018


def test_listing_imports_no_method_and_no_torch():
    code = ("import sys, mixwell; from mixwell.core import registry; n = len(registry.entries()); "
            "bad = [m for m in sys.modules if m == 'torch' or m.startswith('mixwell.experts')]; print(n, bad)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    count, bad = out.split(maxsplit=1)
    assert int(count) == len(registry.entries()) and bad.strip() == "[]"


@pytest.mark.parametrize("header, message", [
    ("@method(title=NAME, paper='p', year=2000)\ndef f(): ...\n", "literal"),
    ("@method(title='t', paper='p')\ndef f(): ...\n", "literal"),
    ("@method(title='t', year=2000)\nx = 1\n", "directly above"),
])
def test_a_broken_header_is_named(tmp_path, header, message):
    path = tmp_path / "broken.py"
    path.write_text("'''Card.'''\n" + header)
    with pytest.raises(MixwellError, match=message):
        registry._read(path, "broken")


def test_a_room_offers_all_of_its_names_to_import_star():
    density = importlib.import_module("mixwell.density")
    assert {"GaussianMixture", "RegressionMixture"} <= set(density.__all__) <= set(dir(density))
    for name in density.__all__:
        assert sum(entry.object_name == name for entry in registry.family("density")) == 1
