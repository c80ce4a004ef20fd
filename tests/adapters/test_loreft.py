"""LoReFT against a loop over positions, the subspace that it keeps to, prompts alone, and decoding token by token."""

import pytest
import torch

from mixwell.adapters.loreft import Config, LoReFT, ends, orthonormal, prompt_lengths, prompts
from mixwell.core.errors import MixwellError
from mixwell.kernels.linear import Linear
from tests.contracts._adapters import TOKENS, logits, model, moved
from tests.contracts._tools import fresh

CONFIG = Config(rank=3, first=2, last=3)


def beside(config=CONFIG):
    there = moved(LoReFT.attach(model(), "layers.1", config, fresh(1)), size=0.2)
    there.model.double()
    return there, there.adapters["layers.1"]


def states(there):
    """(what the edited layer gives without the edit, with it)."""
    seen = []
    (adapter,) = there.adapters.values()
    layer = there.model.layers[1]
    hook = layer.register_forward_hook(lambda module, given, result: seen.append((given, result[0])))
    there.model(TOKENS)
    hook.remove()
    (given, edited), = seen
    return adapter.base(*given)[0], edited


def rows_of(adapter):
    """R of each set, by Gram-Schmidt."""
    found = []
    for columns in adapter.directions:
        basis = []
        for column in columns.T:
            for other in basis:
                column = column - (column @ other) * other
            basis.append(column / column.norm())
        found.append(torch.stack(basis))
    return found


@pytest.mark.parametrize("options", [{}, {"direct": True}, {"tied": True}, {"free": True}])
def test_an_edit_and_its_gradient_agree_with_a_loop(options):
    there, adapter = beside(Config(rank=3, first=2, last=3, **options))
    before, after = states(there)
    before = before.detach()
    tied = options.get("tied", False)
    assert adapter.weight.shape == (1 if tied else 2, 3, 16)
    R = list(adapter.directions.mT) if options.get("free") else rows_of(adapter)
    expected = before.clone()
    for n in range(3):
        for t in [0, 1, 14, 15, 16]:
            place, h = (0 if t < 2 or tied else 1), before[n, t]
            target = adapter.weight[place] @ h + adapter.shift[place]
            target = target if options.get("direct") else target - R[place] @ h
            expected[n, t] = h + R[place].T @ target
    torch.testing.assert_close(after, expected)
    parts = [adapter.directions, adapter.weight, adapter.shift]
    for one, other in zip(torch.autograd.grad(after.square().sum(), parts),
                          torch.autograd.grad(expected.square().sum(), parts)):
        torch.testing.assert_close(one, other)


def test_only_the_subspace_changes_and_becomes_what_the_map_says():
    there, adapter = beside()
    before, after = states(there)
    R = orthonormal(adapter.directions)
    eye = torch.eye(3, dtype=torch.float64)
    for place, columns in enumerate([[0, 1], [14, 15, 16]]):
        own = R[place]
        torch.testing.assert_close(own @ own.T, eye)
        h, edited = before[:, columns], after[:, columns]
        torch.testing.assert_close(edited - edited @ own.T @ own, h - h @ own.T @ own)
        torch.testing.assert_close(edited @ own.T, h @ adapter.weight[place].T + adapter.shift[place])


def test_orthonormal_rows_stay():
    columns = torch.linalg.qr(torch.randn(6, 3, generator=fresh(2), dtype=torch.float64)).Q * torch.tensor([1, -1, 1])
    torch.testing.assert_close(orthonormal(columns), columns.T)


def test_where_the_ends_are():
    early, late = ends(torch.tensor([0, 0, 2, 0]), torch.tensor([8, 3, 5, 0]), 8, CONFIG)
    marks = ["".join("fl."[0 if a else 1 if b else 2] for a, b in zip(*rows)) for rows in zip(early, late)]
    assert marks == ["ff...lll", "f.l.....", "..ff.ll.", "........"]


def test_answers_behind_prompts_are_not_edited():
    there, _ = beside()
    lengths = torch.tensor([9, 4, 17])
    whole = there.model(TOKENS).logits_BTV
    with prompts(there, lengths):
        cut = there.model(TOKENS).logits_BTV
    for row, length in enumerate(lengths.tolist()):
        alone = there.model(TOKENS[row : row + 1, :length]).logits_BTV
        torch.testing.assert_close(cut[row, :length], alone[0])
    assert not torch.allclose(whole, cut)
    torch.testing.assert_close(there.model(TOKENS).logits_BTV, whole)


def test_the_prompt_ends_where_the_answer_is_foretold():
    targets = torch.tensor([[-100, -100, 5, 6], [3, 4, -100, -100], [-100, -100, -100, -100]])
    assert prompt_lengths(targets).tolist() == [3, 1, 4]


def test_decoding_token_by_token_edits_the_prompt_alone():
    there, _ = beside()
    with torch.no_grad():
        with prompts(there, torch.full((3,), 9)):
            expected = there.model(TOKENS).logits_BTV
        cache = there.model.new_cache()
        found = [there.model(TOKENS[:, :9], cache=cache).logits_BTV]
        found += [there.model(TOKENS[:, t : t + 1], cache=cache).logits_BTV for t in range(9, 17)]
    torch.testing.assert_close(torch.cat(found, 1), expected)


def test_padding_is_no_part_of_a_prompt():
    there, _ = beside()
    mask = torch.ones(3, 17, dtype=torch.bool)
    mask[:, :5] = False
    padded = there.model(TOKENS, mask_BT=mask).logits_BTV
    torch.testing.assert_close(padded[:, 5:], there.model(TOKENS[:, 5:]).logits_BTV)


def test_all_layers_are_edited_by_default_and_nothing_merges():
    there = LoReFT.attach(model(), None, CONFIG, fresh())
    assert list(there.adapters) == ["layers.0", "layers.1"] and there.num_parameters == 2 * 2 * (3 * 16 * 2 + 3)
    before = logits(there.model)
    with pytest.raises(MixwellError, match="no matrix holds it"):
        there.merge()
    assert torch.equal(logits(there.model), before)


@pytest.mark.parametrize("options, message", [({"rank": 0}, "rank is 0"), ({"first": -1}, "first is -1"),
                                              ({"last": -2}, "last is -2"), ({"first": 0, "last": 0}, "are 0")])
def test_refuses_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_refuses_what_is_no_layer_a_rank_above_the_width_and_lengths_of_other_rows():
    with pytest.raises(MixwellError, match="is no layer of a decoder"):
        LoReFT.attach(torch.nn.Sequential(Linear(4, 4, False, fresh())), "0", CONFIG)
    with pytest.raises(MixwellError, match=r"rank is 17 at layers\.0, which is 16 wide"):
        LoReFT.attach(model(), None, Config(rank=17))
    there, _ = beside()
    for lengths, message in ((torch.tensor([3]), "1. lengths came for 3 rows"), (torch.tensor([3, 18, 4]), "18")):
        with prompts(there, lengths), pytest.raises(MixwellError, match=message):
            there.model(TOKENS)
