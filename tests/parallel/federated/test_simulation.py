"""The runner: who is asked, who leaves, who lies, and what is counted, by a method that shows it."""

import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.core.rng import generator
from mixwell.parallel.federated.aggregation import TooFew
from mixwell.parallel.federated.clients import Client, Table
from mixwell.parallel.federated.monna import Config, MoNNA
from mixwell.parallel.federated.simulation import Answer, Federated, Setting, simulate

CLIENTS = [Client(number, Table(torch.zeros(number + 1), torch.zeros(number + 1))) for number in range(6)]


class Counting(Federated):
    """Each client says its number and how often it was heard; codes ride along."""

    def start(self, clients, generator):
        return {"heard": torch.zeros(len(clients)), "said": torch.zeros(len(clients))}

    def remembered(self, client):
        return {"times": torch.zeros(())}

    def message(self, state, client, turn):
        return {"x": torch.zeros(4)}

    def answer(self, client, message, memory, turn):
        times = memory["times"] + 1
        said = {"said": torch.tensor([float(client.number)]), "code": torch.tensor([7], dtype=torch.uint8)}
        return Answer(said, 1, {"times": times}, down_bytes=100, up_bytes=1000, seconds=float(client.number))

    def merged(self, state, answers, turn):
        heard, said = state["heard"].clone(), state["said"].clone()
        for own, answer in answers.items():
            heard[own] += 1
            said[own] = answer.tensors["said"]
            assert answer.tensors["code"].item() == 7
        return {"heard": heard, "said": said}


class Peers(Counting):
    by_peers = True


def test_all_are_asked_and_bytes_are_counted_both_ways():
    seen = []
    found = simulate(Counting(), CLIENTS, Setting(rounds=3), lambda turn, state: seen.append(turn.number))
    assert seen == [0, 1, 2] and found.state["heard"].tolist() == [3] * 6
    assert found.state["said"].tolist() == [0, 1, 2, 3, 4, 5]
    assert all(memory["times"] == 3 for memory in found.memories.values())
    one = found.ledger[0]
    assert (one.asked, one.answered) == (tuple(range(6)), tuple(range(6)))
    assert (one.down_bytes, one.up_bytes, one.seconds) == (6 * 16 + 600, 6 * 5 + 6000, 5.0)
    assert (found.down_bytes, found.up_bytes, found.seconds) == (3 * 696, 3 * 6030, 15.0)


def test_peers_send_to_all_others():
    (one,) = simulate(Peers(), CLIENTS, Setting(rounds=1)).ledger
    assert (one.down_bytes, one.up_bytes) == (6 * 5 * 5 + 600, 6 * 5 * 5 + 6000)


def test_a_share_is_asked_and_some_leave():
    found = simulate(Counting(), CLIENTS, Setting(rounds=200, share=0.5, leave=0.3))
    asked = [len(one.asked) for one in found.ledger]
    answered = sum(len(one.answered) for one in found.ledger)
    assert set(asked) == {3} and answered / 600 == pytest.approx(0.7, abs=0.06)
    heard = found.state["heard"]
    assert heard.sum() == answered and heard.min() > 40
    assert all(set(one.answered) <= set(one.asked) for one in found.ledger)
    for own, memory in found.memories.items():  # who leaves keeps what it knew
        assert memory["times"] == heard[own]
    one = found.ledger[0]
    assert one.down_bytes == 3 * 16 + 100 * len(one.answered) and one.up_bytes == 1005 * len(one.answered)


def test_a_round_that_all_leave_changes_nothing():
    found = simulate(Counting(), CLIENTS[:1], Setting(rounds=60, leave=0.9))
    empty = [one for one in found.ledger if not one.answered]
    assert 40 < len(empty) < 60 and found.state["heard"].item() == 60 - len(empty)
    assert simulate(Counting(), CLIENTS, Setting(rounds=0)).ledger == ()


def test_liars_say_what_the_attack_makes_of_the_honest():
    found = simulate(Counting(), CLIENTS, Setting(rounds=1, liars=2, attack="opposite", factor=3.0))
    assert found.state["said"].tolist() == [0, 1, 2, 3, -4.5, -4.5]  # the mean of 0 to 3, three times, turned
    only = simulate(Counting(), CLIENTS, Setting(rounds=1, liars=5, attack="nothing"))
    assert only.state["said"].tolist() == [0, 0, 0, 0, 0, 0]


def test_a_round_with_too_few_answers_counts_for_nothing_and_no_round_at_all_is_an_error():
    class Careful(Counting):
        def merged(self, state, answers, turn):
            if len(answers) < 5:
                raise TooFew(f"{len(answers)} answers came")
            return super().merged(state, answers, turn)

    found = simulate(Careful(), CLIENTS, Setting(rounds=30, leave=0.3))
    counted = [one for one in found.ledger if one.counted]
    assert 0 < len(counted) < 30 and min(len(one.answered) for one in counted) >= 5
    assert found.state["heard"].sum() == sum(len(one.answered) for one in counted)
    with pytest.raises(TooFew, match="3 answers came"):
        simulate(Careful(), CLIENTS, Setting(rounds=3, share=0.5))
    silent = Setting(rounds=3, leave=0.8, seed=2)
    heard = simulate(Counting(), CLIENTS, silent).ledger
    assert [len(one.answered) for one in heard] == [0, 2, 0]
    assert [one.counted for one in heard] == [False, True, False]
    with pytest.raises(TooFew, match="2 answers came"):
        simulate(Careful(), CLIENTS, silent)


def test_rounds_go_on_from_what_earlier_ones_left(world):
    task, clients = world
    method = MoNNA(task, Config(batch_size=4, momentum=0.5, decay_every=2))
    whole = simulate(method, clients, Setting(rounds=5, share=0.8))
    first = simulate(method, clients, Setting(rounds=3, share=0.8))
    rest = simulate(method, clients, Setting(rounds=2, share=0.8), after=first)
    assert len(first.ledger) == 3 and rest.ledger == whole.ledger
    for name, tensor in whole.state.items():
        assert torch.equal(rest.state[name], tensor)
    for own, memory in whole.memories.items():
        assert torch.equal(rest.memories[own]["weight"], memory["weight"])


def test_draws_hang_on_seed_round_and_keys_alone():
    kept = []
    simulate(Counting(), CLIENTS, Setting(rounds=2, seed=5), lambda turn, state: kept.append(turn))
    first = torch.rand(3, generator=kept[0].draws("x", 1))
    assert torch.equal(first, torch.rand(3, generator=kept[0].draws("x", 1)))
    assert torch.equal(first, torch.rand(3, generator=generator(5, "round", 0, "x", 1)))
    others = [kept[1].draws("x", 1), kept[0].draws("x", 2), kept[0].draws("y", 1)]
    assert not any(torch.equal(first, torch.rand(3, generator=other)) for other in others)


def test_refusals():
    with pytest.raises(MixwellError, match="6 clients came, 6 of them liars; expected an honest one"):
        simulate(Counting(), CLIENTS, Setting(liars=6))
    with pytest.raises(MixwellError, match="client 1 came in place 0; expected them in order"):
        simulate(Counting(), CLIENTS[1:], Setting())
    with pytest.raises(MixwellError, match="client 0 has no rows"):
        simulate(Counting(), [Client(0, Table(torch.zeros(0), torch.zeros(0)))], Setting())
    for options, message in (({"rounds": -1}, "rounds is -1"), ({"share": 0.0}, "share is 0.0"),
                             ({"leave": 1.0}, "leave is 1.0"), ({"attack": "odd"}, "attack is 'odd'"),
                             ({"factor": -1.0}, "factor is -1.0"), ({"liars": -1}, "liars is -1")):
        with pytest.raises(ValueError, match=message):
            Setting(**options)
