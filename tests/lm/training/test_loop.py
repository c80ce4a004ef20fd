"""Training: budgets, metrics, and above all that no kill, Ctrl-C or bad number leaves anything but a whole run."""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from mixwell.core.config import from_dict, to_dict
from mixwell.core.errors import MixwellError, TrainingError
from mixwell.core.interrupts import Terminate
from mixwell.core.rng import generator
from mixwell.formats import sealed, tensors
from mixwell.lm.training import loop
from mixwell.lm.training.loop import TrainConfig, train
from mixwell.lm.training.metrics import Window, evenness, read_lines
from mixwell.lm.training.optimizer import decays
from mixwell.lm.training.sampler import Sampler
from tests.lm.tiny import DENSE, MOE, run, tiny_config, tiny_data, tiny_model

CLOCK = ("seconds", "tokens_per_s")  # what two runs of the same bits may differ in


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return run(data, folder), folder


def without_clock(lines):
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def same_state(one, other):
    """Whether two folders hold the same last state, bit for bit."""
    a, b = (json.loads((f / "state/state.json").read_text()) for f in (one, other))
    a_tensors, b_tensors = (tensors.open_file(f / "state" / v["tensors"]) for f, v in ((one, a), (other, b)))
    assert sorted(a_tensors) == sorted(b_tensors)
    assert all(torch.equal(a_tensors[name], b_tensors[name]) for name in a_tensors)
    assert (a["step"], a["sampler"]) == (b["step"], b["sampler"])
    return True


def test_a_run_learns_and_says_what_it_did(whole):
    result, folder = whole
    assert [line["step"] for line in result.metrics] == [5, 10, 12]
    last = result.metrics[-1]
    assert last["loss_nats"] < result.metrics[0]["loss_nats"] - 0.1
    assert result.tokens == last["tokens"] == sum(result.ledger.values()) == 12 * 32
    assert result.flops == last["flops"] == pytest.approx(12 * 32 * 3 * result.model.flops_per_token(8))
    assert 0 < last["seconds"] <= result.seconds
    assert last["load"][0] is None and sum(last["load"][1]) == pytest.approx(1.0)
    assert last["load_entropy"][1] == pytest.approx(evenness(last["load"][1]))
    assert set(last["losses"]) == {"switch", "z_loss"}
    expected = 0.01 * last["losses"]["switch"] + 0.001 * last["losses"]["z_loss"]
    assert last["aux"] == pytest.approx(expected, rel=1e-4)  # apart from loss_nats
    assert last["lr"] < 0.01 * 0.2 and last["grad_norm"] > 0
    assert not result.model.training
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.jsonl", "state"]
    assert sorted(p.name for p in (folder / "state").iterdir()) == ["state.json", "step-00000012.safetensors"]


def test_one_step_by_hand(data, tmp_path):
    """A float32 step of two micro-batches against plain torch."""
    config = tiny_config(tokens=32, accumulate=2, dtype="fp32", warmup=0.0, decay=0.0, grad_clip=0.1)
    result = train(tiny_model(), data, config, tmp_path, weights={"sums": 1, "words": 3})
    model, batch = tiny_model(), Sampler(data, {"sums": 1, "words": 3}, 4, 8, 0).batch()
    assert batch.domains_B.tolist().count(1) == 3
    losses = [model.loss(batch.tokens_BT[rows], batch.targets_BT[rows]) for rows in (slice(2), slice(2, 4))]
    sum((part.nats + part.aux) / 2 for part in losses).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # both moments' first estimates are the gradient's own
            parameter.mul_(1 - 0.01 * 0.1 * decays(name, parameter))
            parameter.sub_(0.01 * parameter.grad / (parameter.grad.abs() + config.eps))
    named = dict(model.named_parameters())
    line = result.metrics[0]
    assert line["loss_nats"] == pytest.approx(sum(part.nats.item() for part in losses) / 2, rel=1e-6)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    counts = sum(part.routings[1].load_E() for part in losses)
    assert line["load"][1] == pytest.approx((counts / counts.sum()).tolist())
    for name, parameter in result.model.named_parameters():
        torch.testing.assert_close(parameter, named[name], atol=2e-5, rtol=1e-4)


def test_bfloat16_keeps_norms_and_routers_in_float32():
    for name, parameter in tiny_model().cast(torch.bfloat16).named_parameters():
        wide = "norm" in name or "router" in name
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name


def test_accumulating_changes_the_batches_not_the_data(data, tmp_path):
    # Without balance losses, whose statistics are a micro-batch's own, the gradient is that of the whole batch.
    plain = {**MOE, "balance": {}}
    results = [train(tiny_model(layers=(DENSE, plain)), data, tiny_config(dtype="fp32", accumulate=parts),
                     tmp_path / str(parts)) for parts in (1, 4)]
    assert results[0].ledger == results[1].ledger
    for one, four in zip(*(r.metrics for r in results)):
        assert one["loss_nats"] == pytest.approx(four["loss_nats"], rel=1e-4)
        assert "aux" not in one and one["losses"] == {}


@pytest.mark.parametrize(("budget", "steps"), [({"tokens": 100}, 3), ({"flops": 3.5}, 3)])
def test_budgets_pay_for_whole_steps(data, tmp_path, budget, steps):
    if "flops" in budget:
        budget = {"flops": budget["flops"] * 32 * 3 * tiny_model().flops_per_token(8)}
    result = train(tiny_model(), data, tiny_config(**{"tokens": None} | budget), tmp_path)
    assert result.tokens == steps * 32
    if "flops" in budget:
        assert 0.7 < result.flops / budget["flops"] <= 1


def test_a_budget_of_seconds_keeps_the_time_used(data, tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    fractions = []

    def stop(step, fraction, info):
        fractions.append(fraction)
        if step == 10:
            raise Enough

    ticks = itertools.count()  # a step asks for the time when it begins and when it ends
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 32, monotonic=lambda: 0.0))
    config = tiny_config(tokens=None, seconds=20 / 32)
    with pytest.raises(Enough):
        train(tiny_model(), data, config, tmp_path, progress=stop)
    assert fractions == [step / 20 for step in range(1, 11)]
    result = train(tiny_model(), data, config, tmp_path)
    saved = json.loads((tmp_path / "state/state.json").read_text())
    assert saved["step"] == 20 and result.seconds == saved["seconds"] == 20 / 32, "9 steps were saved, 11 were left"
    assert [line["seconds"] for line in result.metrics] == [step / 32 for step in (5, 10, 15, 20)]
    assert result.metrics[-1]["lr"] < config.lr


def test_a_finished_run_is_not_trained_again(whole, data, tmp_path):
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    steps = []
    result = train(tiny_model(), data, tiny_config(), tmp_path, progress=lambda *a: steps.append(a))
    assert not steps and result.metrics == whole[0].metrics and result.ledger == whole[0].ledger
    for one, other in zip(result.model.parameters(), whole[0].model.parameters()):
        assert torch.equal(one, other)


def test_progress_is_told_after_every_step(data, tmp_path):
    seen = []
    train(tiny_model(), data, tiny_config(), tmp_path, progress=lambda *a: seen.append(a))
    assert [step for step, _, _ in seen] == list(range(1, 13))
    assert [fraction for _, fraction, _ in seen] == pytest.approx([i / 12 for i in range(1, 13)])
    assert set(seen[0][2]) == {"loss_nats", "lr", "tokens_per_s", "seconds_left"} and seen[-1][2]["seconds_left"] == 0


@pytest.fixture
def handlers():
    """Those of a command, whatever the test runner has."""
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: Terminate()}
    usual = {number: signal.signal(number, handler) for number, handler in ours.items()}
    yield ours
    for number, handler in usual.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGINT), (4, signal.SIGTERM), (6, signal.SIGINT),
                                              (11, signal.SIGTERM)])
def test_a_signal_saves_and_resuming_ends_with_the_same_bits(whole, data, tmp_path, handlers, step, number):
    def interrupt(done, fraction, info):
        if done == step:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), data, tiny_config(), tmp_path, progress=interrupt)
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    assert json.loads((tmp_path / "state/state.json").read_text())["step"] == step
    result = run(data, tmp_path)
    assert same_state(tmp_path, whole[1])
    assert without_clock(result.metrics) == without_clock(whole[0].metrics)
    assert result.ledger == whole[0].ledger


def test_a_keyboard_interrupt_raised_by_the_callback_saves_too(data, tmp_path):
    def interrupt(done, fraction, info):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_model(), data, tiny_config(save_every=0), tmp_path, progress=interrupt)
    assert json.loads((tmp_path / "state/state.json").read_text())["step"] == 5


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_kills_at_random_moments_end_with_the_same_bits(data, tmp_path):
    """SIGKILL wherever it strikes; each sitting goes on from the last whole state."""
    steps, kills, draws = 40, 4, random.Random(5)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    survived = []
    for _ in range(kills):
        mark = state_step(killed)
        process = split_off(data, killed, steps, pause=mark + 9)  # a slow test finds it waiting there, not at its end
        while state_step(killed) <= mark:
            assert not os.waitpid(process, os.WNOHANG)[0], "it ended by itself"
            time.sleep(0.002)
        time.sleep(draws.random() * 0.03)
        os.kill(process, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        survived.append(state_step(killed))
    for folder in (killed, straight):
        run(data, folder, tokens=32 * steps)
    assert survived == sorted(set(survived)) and survived[0] > 0 and survived[-1] < steps
    assert same_state(killed, straight)
    assert without_clock(read_lines(killed / "metrics.jsonl")) == without_clock(read_lines(straight / "metrics.jsonl"))
    assert len(list((killed / "state").iterdir())) == 2


def split_off(data, folder, steps, pause):
    """The id of a process that trains, and waits for ever at a step."""
    def waiting(step, share, info):
        if step == pause:
            signal.pause()

    child = os.fork()
    if not child:
        try:
            train(tiny_model(), data, tiny_config(tokens=32 * steps), folder, progress=waiting)
        finally:
            os._exit(1)
    return child


def state_step(folder):
    path = folder / "state/state.json"
    return json.loads(path.read_text())["step"] if path.exists() else 0


@pytest.mark.parametrize("left", ["tensors without their JSON", "a part of a tensor file", "a metrics line cut short",
                                  "metrics beyond the state"])
def test_what_a_kill_leaves_behind_does_no_harm(whole, data, tmp_path, left):
    with pytest.raises(ZeroDivisionError):
        train(tiny_model(), data, tiny_config(), tmp_path, progress=lambda step, *_: 1 / (step - 7))
    assert state_step(tmp_path) == 6
    state, metrics = tmp_path / "state", tmp_path / "metrics.jsonl"
    if left == "tensors without their JSON":
        (state / "step-00000009.safetensors").write_bytes(b"whole but not yet named")
    elif left == "a part of a tensor file":
        (state / ".step-00000009.safetensors.part").write_bytes(b"pa")
        (state / ".state.json.abc").write_bytes(b"{")
    elif left == "a metrics line cut short":
        metrics.write_text(metrics.read_text() + '{"step": 10, "tok')
    else:
        metrics.write_text(metrics.read_text() + '{"step": 10, "loss_nats": 7.0}\n')
    run(data, tmp_path)
    assert same_state(tmp_path, whole[1])
    assert without_clock(read_lines(metrics)) == without_clock(whole[0].metrics)
    assert len(list(state.iterdir())) == 2


def test_a_full_disk_keeps_the_last_good_state(whole, data, tmp_path, monkeypatch):
    write, saves = tensors.save_file, []

    def full(*args, **options):
        saves.append(1)
        if len(saves) == 2:
            raise tensors.SafetensorError("I/O error: No space left on device (os error 28)")
        return write(*args, **options)

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(MixwellError, match=r"no space left on the disk while writing .*step-00000006"):
        run(data, tmp_path)
    assert state_step(tmp_path) == 3
    run(data, tmp_path)
    assert same_state(tmp_path, whole[1])


def test_buffers_are_part_of_the_state(data, tmp_path):
    def remembering():
        model = tiny_model()
        model.register_buffer("seen", torch.zeros(2))
        loss = model.loss
        model.loss = lambda *a, **k: (model.seen.add_(1), loss(*a, **k))[1]  # type: ignore[method-assign]
        return model

    with pytest.raises(ZeroDivisionError):
        train(remembering(), data, tiny_config(), tmp_path, progress=lambda step, *_: 1 / (step - 7))
    result = train(remembering(), data, tiny_config(), tmp_path)
    assert result.model.seen.tolist() == [12.0, 12.0]


def test_routers_that_draw_get_the_same_draws_after_a_resume(data, tmp_path):
    def drawing():
        model, loss = tiny_model(), None
        loss, model.drawn = model.loss, []

        def noted(*args, generator, **options):
            model.drawn.append(torch.rand(1, generator=generator).item())
            return loss(*args, generator=generator, **options)

        model.loss = noted
        return model

    one, first, second = drawing(), drawing(), drawing()
    train(one, data, tiny_config(accumulate=2), tmp_path / "one")
    with pytest.raises(ZeroDivisionError):
        train(first, data, tiny_config(accumulate=2), tmp_path / "two", progress=lambda step, *_: 1 / (step - 6))
    train(second, data, tiny_config(accumulate=2), tmp_path / "two")
    assert first.drawn[:12][:6] + second.drawn == one.drawn[:6] + one.drawn[-len(second.drawn):]
    assert len(set(one.drawn)) == 24


@pytest.mark.parametrize("where", ["nats", "gradient"])
def test_a_bad_number_stops_the_run_and_keeps_the_last_good_state(data, tmp_path, where):
    model = tiny_model()
    loss = model.loss

    def spoilt(*args, step, **options):
        found = loss(*args, step=step, **options)
        if step == 7:
            if where == "nats":
                return type(found)(found.nats * float("nan"), found.aux, found.losses, found.routings)
            model.norm.weight.register_hook(lambda grad: grad / 0.0)
        return found

    model.loss = spoilt
    name = "loss_nats is nan" if where == "nats" else "grad_norm is (inf|nan)"
    with pytest.raises(TrainingError, match=f"step 8: {name}. The last good state, step 6, is kept in .*state") as bad:
        train(model, data, tiny_config(), tmp_path)
    assert "\n" not in str(bad.value)
    assert state_step(tmp_path) == 6
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [5]


def test_a_bad_number_before_any_save_says_so(data, tmp_path):
    model = tiny_model()
    model.norm.weight.data.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"step 1: .*No state had been saved yet"):
        train(model, data, tiny_config(), tmp_path)


@pytest.mark.parametrize(("change", "named"), [
    ({"lr": 0.02}, "lr 0.01, and this one has 0.02"), ({"tokens": 640}, "tokens 384, and this one has 640"),
    ({"weights": {"sums": 1}}, "the sampler's state was made with weights"),
])
def test_a_state_of_other_settings_is_refused(whole, data, tmp_path, change, named):
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    weights = change.pop("weights", None)
    with pytest.raises(MixwellError, match=named):
        train(tiny_model(), data, tiny_config(**change), tmp_path, weights=weights)


def test_what_is_only_written_down_may_change_on_a_resume(whole, data, tmp_path):
    with pytest.raises(ZeroDivisionError):
        train(tiny_model(), data, tiny_config(), tmp_path, progress=lambda step, *_: 1 / (step - 4))
    run(data, tmp_path, log_every=1, save_every=0, save_every_s=1e-9, eval_every=6, eval_tokens=100)
    assert same_state(tmp_path, whole[1])
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(4, 13))
    measured = {line["step"]: line["evaluation"] for line in lines if "evaluation" in line}
    assert sorted(measured) == [6, 12]
    assert set(measured[12]["bits_per_byte"]) == {"sums", "words"} and measured[12]["mean"] < measured[6]["mean"]


def test_other_libraries_than_before_are_told_on_a_resume(data, tmp_path):
    with pytest.raises(ZeroDivisionError):
        train(tiny_model(), data, tiny_config(save_every=2), tmp_path, progress=lambda step, *_: 1 / (step - 4))
    file = tmp_path / "state" / "state.json"
    sealed.write(file, {**sealed.read(file, ""), "choices": "of another cache"})
    with pytest.warns(UserWarning, match="other libraries than when the state was saved"):
        run(data, tmp_path, save_every=2)


@pytest.mark.parametrize(("steps", "lines"), [(12, 12), (70, 50), (120, 50)])
def test_by_itself_a_curve_has_points_enough(data, tmp_path, steps, lines):
    result = run(data, tmp_path, tokens=steps * 32, log_every=0, save_every=0)
    assert len(result.metrics) == lines and result.metrics[-1]["step"] == steps


def test_a_curve_by_itself_is_the_same_after_a_kill_and_seldom_ten_steps_silent(data, tmp_path, monkeypatch):
    monkeypatch.setattr("mixwell.lm.training.loop.LOG_POINTS", 2)
    options = {"tokens": 46 * 32, "log_every": 0}
    whole = run(data, tmp_path / "whole", **options)
    assert [line["step"] for line in whole.metrics] == [10, 20, 23, 33, 43, 46]  # 23: half of the budget
    with pytest.raises(ZeroDivisionError):
        train(tiny_model(), data, tiny_config(**options), tmp_path / "cut", progress=lambda step, *_: 1 / (step - 25))
    assert without_clock(run(data, tmp_path / "cut", **options).metrics) == without_clock(whole.metrics)


def test_a_vocabulary_too_small_and_a_budget_below_a_step_are_refused(data, tmp_path):
    with pytest.raises(MixwellError, match=r"the data has 270 token ids, the model 260; use the tokenizer"):
        train(tiny_model(vocab_size=260), data, tiny_config(), tmp_path)
    with pytest.raises(MixwellError, match=r"pays for 31 tokens, and one step reads 32; raise it"):
        train(tiny_model(), data, tiny_config(tokens=31), tmp_path)


def test_tensorboard(data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(data, tmp_path / "a", tensorboard=True, eval_every=12, eval_tokens=60)
    events = EventAccumulator(str(tmp_path / "a/tensorboard")).Reload()
    assert {"loss_nats", "losses/switch", "load_entropy/layer_1", "bits_per_byte/sums"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss_nats")] == [5, 10, 12]
    assert [e.value for e in events.Scalars("loss_nats")] == pytest.approx([x["loss_nats"] for x in result.metrics])


def test_tensorboard_missing_is_said(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MixwellError, match=r"pip install 'mixwell\[tensorboard\]'"):
        run(data, tmp_path, tensorboard=True)


@pytest.mark.parametrize(("options", "message"), [
    ({}, "no budget came; expected exactly one of tokens, steps, epochs, flops, seconds"),
    ({"tokens": 5, "seconds": 5}, "tokens 5.0 and seconds 5.0 came; expected exactly one"),
    ({"steps": 5, "epochs": 1}, "steps 5 and epochs 1.0 came; expected exactly one"),
    ({"tokens": 0}, "tokens is 0.0; expected above 0"),
    ({"steps": 0}, "steps is 0; expected above 0"),
    ({"epochs": -1}, "epochs is -1.0; expected above 0"),
    ({"tokens": 9, "batch_size": 0}, "batch_size is 0; expected at least 1"),
    ({"tokens": 9, "accumulate": 3}, "accumulate is 3; expected a divisor of 16"),
    ({"tokens": 9, "lr": 0.0}, "lr is 0.0; expected above 0"),
    ({"tokens": 9, "min_lr": 1.0}, r"min_lr is 1.0; expected at most lr \(0.002\)"),
    ({"tokens": 9, "warmup": 0.5, "decay": 0.6}, "decay is 0.6; expected 0 to 0.5"),
    ({"tokens": 9, "betas": [0.9, 1.0]}, "betas is"),
    ({"tokens": 9, "grad_clip": -1}, "grad_clip is -1.0; expected 0 or more"),
    ({"tokens": 9, "dtype": "fp16"}, "'fp16' is not one of auto, bf16, fp32"),
    ({"tokens": 9, "decay_shape": "cosine"}, "'cosine' is not one of linear, 1-sqrt"),
])
def test_options_out_of_range(options, message):
    with pytest.raises(MixwellError, match=message):
        from_dict(TrainConfig, options)


def test_options_go_to_plain_data_and_back():
    config = TrainConfig(flops=1e9, decay_shape="1-sqrt", betas=(0.8, 0.9))
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert config.learning_rate(0.7 + 0.3 * 0.25) == pytest.approx(config.lr / 2)


def test_a_window_goes_through_its_state_unchanged():
    draws = generator(1)
    rows = [(dict(zip(("loss_nats", "losses.z"), torch.rand(2, generator=draws).tolist())), [None, [i, 2]], 8, 0.1)
            for i in range(4)]
    one, other = Window(), Window()
    for row in rows[:2]:
        one.add(*row)
        other.add(*row)
    other = Window(json.loads(json.dumps(other.state_dict())))
    for row in rows[2:]:
        one.add(*row)
        other.add(*row)
    assert one.line() == other.line()
    assert one.line()["load"] == [None, [6 / 14, 8 / 14]]
    assert one.line()["losses"]["z"] == pytest.approx(sum(r[0]["losses.z"] for r in rows) / 4)


def test_evenness():
    assert evenness([0.25] * 4) == pytest.approx(1.0)
    assert evenness([1.0, 0.0]) == 0.0 and evenness([1.0]) == 1.0


def test_damaged_metrics_are_named(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(MixwellError, match=r"m.jsonl, line 2, is not JSON .* remove that line"):
        read_lines(tmp_path / "m.jsonl")


def test_no_bit_of_a_saved_training_changes_unseen(data, tmp_path):
    """Names and kinds stand in the header of the tensor file, numbers behind it; both are tried, and all the rest."""
    with pytest.raises(ZeroDivisionError):
        train(tiny_model(), data, tiny_config(log_every=1), tmp_path, progress=lambda step, *_: 1 / (step - 7))
    values, _ = loop.saved(tmp_path)
    path = tmp_path / "state" / values["tensors"]
    header, draws = 8 + int.from_bytes(path.read_bytes()[:8], "little"), random.Random(3)
    ends = {path: path.stat().st_size, tmp_path / "state/state.json": (tmp_path / "state/state.json").stat().st_size,
            tmp_path / "metrics.jsonl": values["metrics"]["bytes"]}
    places = [(path, draws.randrange(header)) for _ in range(40)]
    places += [(file, draws.randrange(end)) for file, end in ends.items() for _ in range(40)]
    for file, place in places:
        whole = file.read_bytes()
        harmed = bytearray(whole)
        harmed[place] ^= 1 << draws.randrange(8)
        file.write_bytes(harmed)
        with pytest.raises(loop.DamagedState, match=rf"{file.name}.* Remove .*state to start afresh"):
            loop.saved(tmp_path)
        file.write_bytes(whole)
    assert loop.saved(tmp_path)[0] == values
    path.unlink()
    with pytest.raises(loop.DamagedState, match=rf"{path.name} is missing"):
        train(tiny_model(), data, tiny_config(log_every=1), tmp_path)


@pytest.mark.parametrize(("weights", "budget"), [(None, 6 * 32), ({"sums": 1.0}, 6 * 32), (None, 10**9)])
def test_a_router_learns_from_no_more_text_than_is_trained_on(data, tmp_path, weights, budget):
    words = {"method": "word_table", "vocab_size": 270}
    model = tiny_model(layers=(DENSE, {**MOE, "router": words}))
    seen = []
    model.fit_tokens = lambda tokens, generator=None: seen.append(tokens) or type(model).fit_tokens(model, tokens)

    def stop(step, fraction, info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, data, tiny_config(tokens=budget), tmp_path, weights=weights, progress=stop)
    there = {d: data.count(d, "train") for d in data.domains}
    shares = weights or {d: count / sum(there.values()) for d, count in there.items()}
    expected = [data.tokens(d, "train")[: round(shares.get(d, 0.0) * budget)].tolist() for d in data.domains]
    assert seen[0].tolist() == [token for domain in expected for token in domain]
