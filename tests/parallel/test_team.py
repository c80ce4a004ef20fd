"""Several workers train the model that one trains: the same numbers up to rounding, whatever lies where."""

import functools
import json

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.routing import Context, Routing
from mixwell.lm.training.loop import train
from mixwell.mixing import apply_balance, build_balance, softmax_top_k
from mixwell.parallel.team import Layout, Team
from mixwell.parallel.wire import in_threads
from tests.lm.tiny import DENSE, MOE, tiny_config, tiny_data, tiny_model

EXPERTS = {**MOE, "num_experts": 4}
BIASED = {**EXPERTS, "router": {"method": "loss_free_bias", "k": 2}, "balance": {}}
CLOCK = ("seconds", "tokens_per_s")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tokens") / "tokens")


def team_of(wire, expert):
    """The team of a thread: neighbours hold different experts, strangers the same."""
    block = wire.rank // expert
    experts = wire.sub(range(block * expert, (block + 1) * expert))
    copies = wire.sub(range(wire.rank % expert, wire.size, expert))
    return Team(wire, experts, copies)


def trained(data, folder, size=1, expert=1, mixer=EXPERTS, **options):
    """The models and metrics of a training over `size` threads."""
    config = tiny_config(dtype="fp32", save_every=0, **options)

    def work(wire):
        torch.set_num_threads(1)
        return train(tiny_model(layers=(DENSE, mixer)), data, config, folder, team=team_of(wire, expert))

    return in_threads(size, work)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """What one worker makes of it, once for all that are held against it."""
    @functools.cache
    def made(mixer):
        mixers = {"experts": EXPERTS, "biased": BIASED}
        (whole,) = trained(data, tmp_path_factory.mktemp("one"), mixer=mixers[mixer])
        return whole

    return made


def close(one, other):
    """Sums in another order differ in the last digit, which AdamW divides by the root of a tiny second moment."""
    for (name, a), (_, b) in zip(one.model.named_parameters(), other.model.named_parameters()):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, msg=name)
    for a, b in zip(one.metrics, other.metrics, strict=True):
        assert a["loss_nats"] == pytest.approx(b["loss_nats"], rel=1e-6)
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a["load"][1] == b["load"][1]


@pytest.mark.parametrize("size, expert", [(2, 1), (2, 2), (4, 2), (4, 4)])
def test_many_workers_are_one(data, alone, tmp_path, size, expert):
    whole = alone("experts")
    found = trained(data, tmp_path / "many", size, expert)
    close(whole, found[0])
    assert all(result.ledger == whole.ledger for result in found)
    for other in found[1:]:
        for a, b in zip(found[0].model.parameters(), other.model.parameters()):
            assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"checkpointing": True}, {"freeze": "layers.0.*"}])
def test_options_hold_over_workers(data, tmp_path, options):
    (whole,) = trained(data, tmp_path / "one", mixer=BIASED, **options)
    close(whole, trained(data, tmp_path / "many", 2, 2, mixer=BIASED, **options)[0])


class Killed(Exception):
    pass


@pytest.mark.parametrize("before, after", [((2, 2), (1, 1)), ((1, 1), (2, 2)), ((4, 2), (2, 1))])
def test_a_killed_run_goes_on_with_another_number_of_workers(data, alone, tmp_path, before, after):
    whole = alone("biased")

    def stop(step, share, info):
        if step == 7:
            raise Killed

    def work(wire):
        train(tiny_model(layers=(DENSE, BIASED)), data, tiny_config(dtype="fp32"), tmp_path / "many",
              team=team_of(wire, before[1]), progress=stop)

    with pytest.raises(Killed):
        in_threads(before[0], work)
    assert json.loads((tmp_path / "many/state/state.json").read_text())["step"] == 6
    close(whole, trained(data, tmp_path / "many", *after, mixer=BIASED)[0])


def test_batches_with_fewer_answers_count_by_their_answers(data, tmp_path, monkeypatch):
    def labels(domain, split, start, end):
        ids = torch.arange(start, end)
        return torch.where(ids % 7 < (5 if start % 16 else 2), ids % 270, -100).numpy()

    monkeypatch.setattr(data, "labels", labels)
    (whole,) = trained(data, tmp_path / "one", mixer=BIASED)
    close(whole, trained(data, tmp_path / "many", 2, mixer=BIASED)[0])


def test_evaluations_and_metrics_are_the_first_workers(data, tmp_path):
    (whole,) = trained(data, tmp_path / "one", eval_every=6)
    found = trained(data, tmp_path / "many", 2, 2, eval_every=6)
    assert found[1].metrics == []
    for a, b in zip(whole.metrics, found[0].metrics):
        if "evaluation" in a:
            assert b["evaluation"]["mean"] == pytest.approx(a["evaluation"]["mean"], rel=1e-5)


@pytest.mark.parametrize("rule", ["switch", "z_loss", "global_batch"])
def test_balance_is_asked_of_the_tokens_of_all(rule):
    """The loss that each worker sees is that of all tokens, and its gradient, as a share, that of its own."""
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    rules = build_balance({rule: 0.5})

    def measured(logits_TE, peers, share):
        logits_TE = logits_TE.clone().requires_grad_()
        context = Context(peers=peers, batch_shape=(1, len(logits_TE)))
        losses, aux = apply_balance(rules, softmax_top_k(logits_TE, 2), context)
        (aux * share).backward()
        return losses[rule].detach(), logits_TE.grad

    loss, grad = measured(logits, None, 1.0)
    found = in_threads(3, lambda wire: measured(logits.chunk(3)[wire.rank], team_of(wire, 1), 1 / 3))
    for own, _ in found:
        torch.testing.assert_close(own, loss)
    torch.testing.assert_close(torch.cat([part for _, part in found]), grad)


def test_slots_of_other_numbers_are_joined():
    def work(wire):
        slots = 1 + wire.rank
        own = Routing(torch.full((2, slots), wire.rank), torch.ones(2, slots), torch.ones(2, 3) / 3)
        return team_of(wire, 1).joined(own, Context(mask_T=torch.tensor([True, wire.rank == 0])))

    for routing, context in in_threads(2, work):
        assert routing.indices_TK.tolist() == [[0, -1], [0, -1], [1, 1], [1, 1]]
        assert routing.weights_TK.tolist() == [[1, 0], [1, 0], [1, 1], [1, 1]]
        assert routing.logits_TE is None and context.mask_T.tolist() == [True, True, True, False]


@pytest.mark.parametrize("layout, message", [
    ({"expert": 3}, r"parallel: expert=3 does not fit 4 processes; expected data times expert to be their number"),
    ({"data": 1, "expert": 2}, r"parallel: data=1, expert=2 does not fit 4 processes"),
])
def test_a_layout_that_does_not_fit_is_refused(layout, message):
    with pytest.raises(MixwellError, match=message):
        Layout(**layout).over(4)
    assert Layout(expert=2).over(4) == Layout(data=2, expert=2)
    with pytest.raises(ValueError, match="data is 0; expected at least 1"):
        Layout(data=0)
    with pytest.raises(ValueError, match="timeout_s is 0; expected a number above 0"):
        Layout(timeout_s=0)


def test_models_that_cannot_be_spread_are_refused(data, tmp_path):
    with pytest.raises(MixwellError, match="expert=2, and the model has no mixture whose experts could be spread"):
        trained(data, tmp_path / "dense", 2, 2, mixer=DENSE)
    with pytest.raises(MixwellError, match=r"layers.1.channel_mixer: 3 experts over 2 workers; expected a number"):
        trained(data, tmp_path / "three", 2, 2, mixer=MOE)
    with pytest.raises(MixwellError, match="batch_size 4: expected a rank below the number of workers"):
        trained(data, tmp_path / "rows", 3)


def test_a_dense_model_of_a_recipe_is_shared_out_by_its_rows(data, tmp_path):
    def work(wire):
        model = tiny_model(layers=(DENSE, DENSE))
        team = team_of(wire, wire.size)
        assert team.fitting(tiny_model(layers=(DENSE, EXPERTS))) is team
        return train(model, data, tiny_config(dtype="fp32"), tmp_path / str(wire.size), team=team.fitting(model))

    (whole,) = in_threads(1, work)
    many = in_threads(2, work)[0]
    assert [line["loss_nats"] for line in many.metrics] == pytest.approx(
        [line["loss_nats"] for line in whole.metrics], rel=1e-6)
    assert many.ledger == whole.ledger


def test_a_folder_that_not_all_see_is_told():
    with pytest.raises(MixwellError, match=r"the step that is saved is \[0.0, 1.0\] in the processes"):
        in_threads(2, lambda wire: team_of(wire, 1).check_same("the step that is saved", wire.rank))
