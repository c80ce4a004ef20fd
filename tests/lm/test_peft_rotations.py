"""PEFT's folders of rotations and of norms: against weights turned by hand, figures that PEFT gave, and PEFT itself."""

import pytest
import torch

from mixwell.adapters.boft import BOFT
from mixwell.adapters.boft import Config as Turned
from mixwell.adapters.eva import EVA
from mixwell.adapters.eva import Config as Along
from mixwell.adapters.norms import Config as Gains
from mixwell.adapters.norms import Norms
from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator as seeded
from mixwell.lm import peft
from tests.contracts._adapters import moved
from tests.lm.test_peft import DENSE, LAYER, SPARSE, TOKENS, adapter, base, given_by_peft, logits, written_for_peft

TARGETS = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (32, 16), "mlp.up_proj": (32, 48),
           "mlp.down_proj": (48, 32)}  # inputs, outputs
NAMES = {"target_modules": r"model\.layers\.0\.(self_attn\.(q|v)|mlp\.(up|down))_proj"}
BLOCKS = NAMES | {"peft_type": "BOFT", "boft_block_size": 4, "boft_n_butterfly_factor": 1}
TRIANGLES = NAMES | {"peft_type": "OFT", "oft_block_size": 4, "r": 0}


def blocks(factors=1):
    found = {}
    for module, (inputs, outputs) in TARGETS.items():
        found[f"{LAYER}{module}.boft_R"] = (factors, inputs // 4, 4, 4)
        found[f"{LAYER}{module}.boft_s"] = (outputs, 1)
    return found


def triangles(shared=False):
    return {f"{LAYER}{module}.oft_R.weight": (1 if shared else inputs // 4, 6)
            for module, (inputs, _) in TARGETS.items()}


NORMS = {f"{LAYER}input_layernorm.ln_tuning_layers.weight": (32,),
         "base_model.model.model.norm.ln_tuning_layers.weight": (32,)}
FOLDERS = {
    "boft": (BLOCKS, blocks()), "oft": (TRIANGLES | {"use_cayley_neumann": False}, triangles()),
    "oft by a sum": (TRIANGLES, triangles()),
    "oft shared": (TRIANGLES | {"block_share": True, "num_cayley_neumann_terms": 7}, triangles(True)),
    "norms": ({"peft_type": "LN_TUNING", "target_modules": r"model\.(layers\.0\.input_layernorm|norm)"}, NORMS)}
# of the last token of each row, by PEFT 0.21.2
PUBLISHED = {
    "boft": [[0.2873102, -0.6060183, 0.3747553, 0.1966039], [0.4901222, -0.5728695, 0.1357288, 0.424588]],
    "oft": [[0.09819, 0.2328371, -0.3525609, 0.1523301], [0.0111027, 0.0505276, -0.0663033, 0.0219077]],
    "oft by a sum": [[0.106812, 0.2593353, -0.3901322, 0.1668778], [0.0223661, 0.105385, -0.1374977, 0.044829]],
    "oft shared": [[0.2093905, -0.5039704, 0.3411892, 0.1312266], [0.0932957, -0.3823105, 0.3243723, 0.0279386]],
    "norms": [[0.1099762, -0.8174246, 0.7830474, -0.0380426], [0.1140308, -0.813984, 0.775234, -0.0329472]]}


def rotation(config, tensors, module, inputs):
    """Q by its definition, of one factor."""
    eye = torch.eye(4)
    if config["peft_type"] == "BOFT":
        (R,) = tensors[f"{LAYER}{module}.boft_R"]
        skew = [(block - block.T) / 2 for block in R]
    else:
        skew = []
        for upper in tensors[f"{LAYER}{module}.oft_R.weight"]:
            S = torch.zeros(4, 4)
            places = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
            for value, (row, column) in zip(upper, places):
                S[row, column], S[column, row] = value, -value
            skew.append(S)
        skew *= inputs // 4 // len(skew)
    if config["peft_type"] == "OFT" and config.get("use_cayley_neumann", True):
        terms = config.get("num_cayley_neumann_terms", 5)
        powers = [[torch.linalg.matrix_power(S, n) for n in range(terms)] for S in skew]
        return torch.block_diag(*(own[0] + 2 * sum(own[1:-1]) + own[-1] for own in powers))
    return torch.block_diag(*((eye - S) @ torch.linalg.inv(eye + S) for S in skew))


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_agree_with_weights_changed_by_hand(name, tmp_path):
    config, shapes = FOLDERS[name]
    folder, tensors = adapter(tmp_path / "theirs", config, shapes)

    def change(there):
        if name == "norms":
            for full, value in tensors.items():
                there[full.removeprefix("base_model.model.").replace(".ln_tuning_layers", "")].copy_(value)
            return
        for module, (inputs, _) in TARGETS.items():
            weight = there[f"model.layers.0.{module}.weight"]
            gain = tensors.get(f"{LAYER}{module}.boft_s", torch.ones(1))
            weight.copy_(gain * (weight @ rotation(config, tensors, module, inputs).T))

    model = base()
    there = peft.read(folder, model)
    expected = logits(base(change=change))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(expected[:, -1, :4], torch.tensor(PUBLISHED[name]), rtol=1e-4, atol=1e-5)
    there.merge()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    there.detach()
    assert not torch.allclose(expected, logits(base()))


def along(model):
    return EVA.attach(model, None, Along(rank=2, alpha=4.0), seeded(3), text=[TOKENS])


QKV = {"qkv": (32, 16, 16), "gate_up_proj": (48, 48)}
CASES = {
    "boft": (DENSE, lambda m: BOFT.attach(m, None, Turned(block_size=8), seeded(3))),
    "in groups": (DENSE, lambda m: BOFT.attach(m, None, Turned(gain=False, groups=QKV), seeded(3))),
    "series": (DENSE, lambda m: BOFT.attach(m, "out", Turned(block_size=4, gain=False, series=6), seeded(3))),
    "norms": (DENSE, lambda m: Norms.attach(m, None, Gains(output=True), seeded(3))),
    "eva": (DENSE, along), "eva on experts": (SPARSE, along)}
FACTORS = {"factors": (DENSE, lambda m: BOFT.attach(m, None, Turned(block_size=4, factors=2), seeded(3)))}


@pytest.mark.parametrize("case", CASES | FACTORS)
def test_what_is_written_reads_back_as_the_same_model(case, tmp_path):
    arch, attach = (CASES | FACTORS)[case]
    there = moved(attach(base(arch)), size=0.2)
    peft.write(there, tmp_path / "ours")
    model = base(arch)
    peft.read(tmp_path / "ours", model)
    torch.testing.assert_close(logits(model), logits(there.model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case, message", [
    (lambda: BOFT.attach(base(SPARSE), None, Turned(), seeded(3)), "no rotations on experts"),
    (lambda: BOFT.attach(base(), "out", Turned(series=5), seeded(3)), "no series in the place of the inverse"),
    (lambda: BOFT.attach(base(), "qkv", Turned(groups={"qkv": (60, 4)}), seeded(3)), "its groups of rows are not")])
def test_what_peft_cannot_hold_is_refused(case, message, tmp_path):
    with pytest.raises(MixwellError, match=message):
        peft.write(moved(case()), tmp_path / "ours")


@pytest.mark.parametrize("shape, message", [
    ((40, 1), "mlp.up_proj: the file scales 40 outputs, this base has 48"), (None, "mlp.up_proj.boft_s is missing")])
def test_gains_of_another_base_and_missing_ones_are_refused(shape, message, tmp_path):
    shapes = blocks() | {f"{LAYER}mlp.up_proj.boft_s": shape}
    folder, _ = adapter(tmp_path / "theirs", BLOCKS, {name: own for name, own in shapes.items() if own})
    model = base()
    with pytest.raises(MixwellError, match=message):
        peft.read(folder, model)
    assert torch.equal(logits(model), logits(base()))


@pytest.mark.parametrize("changes, shapes, message", [
    ({"coft": True}, triangles(), "asks for coft"),
    ({}, dict.fromkeys(triangles(), (12, 6)), "turns 48 inputs, this base has 32"),
    ({}, triangles() | {f"{LAYER}mlp.down_proj.oft_R.weight": (6, 28)}, "blocks of 8 and of 4|blocks of 4 and of 8"),
    ({}, dict(list(triangles().items())[:3]), "is a target of this adapter and missing")])
def test_what_cannot_be_read_is_refused(changes, shapes, message, tmp_path):
    folder, _ = adapter(tmp_path / "theirs", TRIANGLES | changes, shapes)
    model = base()
    with pytest.raises(MixwellError, match=message):
        peft.read(folder, model)
    assert torch.equal(logits(model), logits(base()))


@pytest.mark.parametrize("case", CASES)
def test_peft_itself_gives_the_same_logits_of_ours(case, tmp_path):
    written_for_peft(*CASES[case], tmp_path)


@pytest.mark.parametrize("name", FOLDERS)
def test_peft_itself_gives_what_is_written_here(name, tmp_path):
    given_by_peft(*FOLDERS[name], DENSE, PUBLISHED[name], tmp_path)
