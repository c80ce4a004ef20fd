"""Two processes that hold a part each: the numbers of one process, and states that any number goes on from."""

import json
import os
import traceback

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.lm.data import TokenData
from mixwell.lm.training.loop import DamagedState, saved, train
from mixwell.parallel.launch import crew, team_of
from mixwell.parallel.team import Layout
from tests.lm.tiny import DENSE, tiny_config, tiny_data, tiny_model
from tests.parallel.test_launch import code_of, places
from tests.parallel.test_team import BIASED, Killed, close

SHARD, SPREAD = Layout(shard=True), Layout(expert=2)
OPTIONS = {"plain": {}, "options": {"accumulate": 2, "checkpointing": True, "freeze": "layers.0.*"}}
RECURRENT = {**BIASED, "router": {"method": "recurrent", "k": 2}}



def trained(data, folder, team=None, mixer=BIASED, stop=None, **options):
    """A training that is killed behind step `stop`."""
    def note(step, share, info):
        if step == stop:
            raise Killed

    return train(tiny_model(layers=(DENSE, mixer)), data, tiny_config(dtype="fp32", **options), folder, team=team,
                 progress=note)


def refusal(call):
    try:
        call()
    except MixwellError as error:
        return str(error)
    return ""


def work(folder):
    """What each of the two processes does."""
    torch.set_num_threads(1)
    found = {}
    data = TokenData.open(folder / "tokens")
    with crew(SHARD) as processes:
        team = processes.team
        for name, options in OPTIONS.items():
            done = trained(data, folder / name, team, **options)
            if team.leads:
                torch.save([dict(done.model.named_parameters()), done.metrics], folder / f"{name}.pt")
        trained(data, folder / "recurrent", team, mixer=RECURRENT)
        spread = team_of(SPREAD.over(2))
        for name, one in (("shard", team_of(SHARD)), ("expert", spread)):
            with pytest.raises(Killed):
                trained(data, folder / name, one, stop=7)
        done = trained(data, folder / "from one", team_of(SHARD))
        found["from one"] = done.metrics
        found["bf16"] = refusal(lambda: train(tiny_model(layers=(DENSE, BIASED)), data, tiny_config(dtype="bf16"),
                                              folder / "bf16", team=team_of(SHARD)))
        if team.leads:
            (folder / "found.json").write_text(json.dumps(found))


def split_off(place, folder):
    """The id of a process that does its part of the work, without importing all of it again."""
    child = os.fork()
    if not child:
        os.environ.update(place)
        try:
            work(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of what the two processes did, the text, and the runs of one process."""
    folder = tmp_path_factory.mktemp("shards")
    data = tiny_data(folder / "tokens")
    with pytest.raises(Killed):
        trained(data, folder / "from one", stop=7)
    crew = [split_off(place, folder) for place in places(2)]
    one = {name: trained(data, folder / "one" / name, **options) for name, options in OPTIONS.items()}
    assert [code_of(process) for process in crew] == [0, 0]
    return folder, data, one, json.loads((folder / "found.json").read_text())


def losses(metrics):
    return [line["loss_nats"] for line in metrics]


@pytest.mark.parametrize("name", OPTIONS)
def test_sharded_processes_make_the_run_of_one(ran, name):
    folder, _, one, _ = ran
    parameters, metrics = torch.load(folder / f"{name}.pt")
    assert losses(metrics) == pytest.approx(losses(one[name].metrics), rel=1e-6)
    for a, b in zip(one[name].metrics, metrics, strict=True):
        assert a["load"] == b["load"] and b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    for key, value in one[name].model.named_parameters():
        torch.testing.assert_close(parameters[key], value.detach(), atol=2e-5, rtol=1e-4)


def test_each_process_keeps_half(ran):
    """Its own file of the state holds the half of all parameters and moments."""
    folder, *_ = ran
    sizes = [path.stat().st_size for path in (folder / "shard/state").glob("step-*/*.safetensors")]
    assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes)


@pytest.mark.parametrize("name", ["shard", "expert"])
def test_one_process_goes_on_from_the_parts_of_two(ran, name):
    folder, data, one, _ = ran
    assert json.loads((folder / name / "state/state.json").read_text())["step"] == 6
    close(one["plain"], trained(data, folder / name))
    assert [path.suffix for path in (folder / name / "state").glob("step-*")] == [".safetensors"]


def test_two_processes_go_on_from_the_state_of_one(ran):
    _, _, one, found = ran
    assert losses(found["from one"]) == pytest.approx(losses(one["plain"].metrics), rel=1e-6)


def test_a_part_that_changed_is_told(ran):
    folder, *_ = ran
    saved(folder / "recurrent")
    path = next((folder / "recurrent/state").glob("step-*/*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedState, match=r"is not as it was written: its digest is another, or it is gone"):
        saved(folder / "recurrent")


def test_what_shards_cannot_do_is_refused(ran):
    *_, found = ran
    assert found["bf16"].startswith("parallel: shard=true computes in fp32, and bf16 is asked for; set train.dtype")
    with pytest.raises(ValueError, match="shard with expert=2; expected one of them"):
        Layout(shard=True, expert=2)
