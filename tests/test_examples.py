"""Every script in examples/ runs, warns of nothing and says what its first line promises."""

import runpy
import warnings
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def said(name, capsys):
    """What a script prints; a warning of its own is an error, as it would be noise to whoever tries it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def number_after(words, text):
    return float(text.split(words)[1].split()[0].rstrip(",;"))


def test_bits_per_byte_falls(capsys):
    before, after = said("bits_per_byte", capsys).split("mean over the domains:")[1].split("->")
    assert float(after) < 0.6 * float(before)


def test_routers_learn_the_clusters(capsys):
    lines = said("compare_routers", capsys).splitlines()
    found = {line.split()[0]: number_after("error", line) for line in lines if "busiest" in line}
    assert set(found) == {"top_k", "sinkhorn", "expert_choice", "cosine"}
    assert max(found.values()) < 0.4  # the targets' mean leaves 1
    busiest = next(number_after("expert", line.split("busiest")[1]) for line in lines if "expert_choice" in line)
    assert busiest == 1.0


def test_the_own_router_routes_and_learns(capsys):
    text = said("custom_router", capsys)
    assert "best expert: 0 of 64" in text
    assert number_after("gradient norm", text) > 0


def test_the_mixture_is_found_among_gaps(capsys):
    means = [line.split("mean")[1].strip(" []").split() for line in said("fit_mixture", capsys).splitlines()
             if line.startswith("weight")]
    expected = [[0, 0, 0], [4, 4, 0], [0, 4, 4]]
    assert [[round(float(v)) for v in row] for row in means] == expected


def test_a_folder_gives_the_same_logits(capsys):
    text = said("hugging_face_folder", capsys)
    assert number_after("round trip:", text) <= 1e-6
    assert "config.json" in text and "model.safetensors" in text


def test_mixtures_as_values_agree_with_the_algebra(capsys):
    text = said("mixture_values", capsys)
    assert "grow by [0.25, 0.25]" in text
    # by hand: 0.6 N(2.5; 0, 1) against 0.4 N(2.5; 3, 0.5)
    assert "weights [0.056, 0.944]" in text


def test_the_layer_shares_out_its_slots(capsys):
    text = said("moe_layer", capsys)
    shares = text.split("by expert: [")[1].split("]")[0].split(",")
    assert len(shares) == 8 and abs(sum(map(float, shares)) - 1) < 0.05
    assert number_after("learns:", text) > 0


def test_the_upcycled_model_keeps_its_promise(capsys):
    text = said("upcycle", capsys)
    assert "kept: True" in text
    assert number_after("largest logit error", text) <= 1e-3


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_a_script_is_short_tested_and_listed(path):
    assert path.read_text().count("\n") <= 50
    assert f'said("{path.stem}", capsys)' in Path(__file__).read_text()
    assert f"examples/{path.name}" in (FOLDER.parent / "docs" / "examples.md").read_text()
