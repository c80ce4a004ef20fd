"""RAFT against a loop over rounds, its two strategies, a decoder that learns by it, what it refuses."""

import pytest
import torch

from mixwell.adapters.protocols.decoder import Decoder, ended, side_by_side
from mixwell.adapters.protocols.raft import Config, raft, ranked
from mixwell.core.errors import MixwellError
from tests.contracts._adapters import model
from tests.contracts._tools import fresh

PROMPTS = list(range(24))


def drawn(prompts, count):
    """Samples that hang on prompt and place alone."""
    return [[(7 * prompt + 5 * place) % 11 for place in range(count)] for prompt in prompts]


def reward(prompt, sample):
    return float(sample)


def test_local_learns_from_the_best_of_each_prompt():
    learnt = []
    config = Config(rounds=3, prompts=8, share=0.25)
    found = raft(PROMPTS, config, fresh(), draw=drawn, reward=reward, learn=learnt.append)
    assert sorted(prompt for pairs in learnt for prompt, _ in pairs) == PROMPTS  # each once
    for round_, pairs in enumerate(learnt):
        assert len(pairs) == 8
        samples = [drawn([prompt], 4)[0] for prompt, _ in pairs]
        assert [best for _, best in pairs] == [max(own) for own in samples]
        assert float(found.reward_R[round_]) == pytest.approx(sum(own[0] for own in samples) / 8)
        assert float(found.kept_R[round_]) == pytest.approx(sum(max(own) for own in samples) / 8)


def test_top_learns_from_the_best_of_all():
    learnt = []
    config = Config(rounds=2, prompts=3, share=0.25, strategy="top")
    raft(PROMPTS, config, fresh(), draw=drawn, reward=reward, learn=learnt.append)
    order = torch.randperm(24, generator=fresh()).tolist()
    for round_, pairs in enumerate(learnt):
        asked = order[12 * round_ : 12 * round_ + 12]
        best = sorted(((drawn([p], 1)[0][0], -i, p) for i, p in enumerate(asked)), reverse=True)[:3]
        assert pairs == [(p, r) for r, _, p in best]


def test_of_equal_rewards_the_first_is_kept():
    assert ranked(torch.ones(2, 3), Config()) == [(0, 0), (1, 0)]
    assert ranked(torch.ones(4, 1), Config(prompts=2, strategy="top")) == [(0, 0), (1, 0)]


def test_a_decoder_comes_to_write_what_is_rewarded():
    network = model(num_layers=1)
    decoder = Decoder(network, 3, fresh(1), lr=1e-2, epochs=3, batch=8, temperature=1.0)
    prompts = [torch.tensor(ids) for ids in ([1, 2], [3], [4, 5, 6])] * 24
    found = raft(prompts, Config(rounds=4, prompts=16, share=0.125), fresh(2), draw=decoder.draw,
                 reward=lambda _, answer: float((answer < 20).float().mean()), learn=decoder.learn)
    assert found.reward_R[-1] > found.reward_R[0] + 0.2 and (found.kept_R >= found.reward_R).all()


def test_a_decoder_learns_answers_alone_whatever_stands_beside_them():
    network = model(num_layers=1).double()
    pairs = [(torch.tensor([1, 2, 3]), torch.tensor([4])), (torch.tensor([5]), torch.tensor([6, 7]))]
    moved = network.embed.weight.detach().clone()
    decoder = Decoder(network, 2, fresh(), lr=0.0)
    decoder.learn(pairs)
    grad = network.embed.weight.grad.clone()
    network.zero_grad()
    nats = []
    for prompt, answer in pairs:
        row = torch.cat((prompt, answer))
        logits = network(row[None, :-1]).logits_BTV[0].log_softmax(-1)
        nats += [-logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]
    (sum(nats) / len(nats)).backward()
    torch.testing.assert_close(grad, network.embed.weight.grad, rtol=1e-5, atol=1e-8)
    assert torch.equal(moved, network.embed.weight)


def test_a_decoder_answers_as_each_prompt_alone_and_ends_at_a_stop():
    network = model()
    prompts = [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([9, 8])]
    alone = [network.generate(prompt[None], 4, eos_token_id=())[0, len(prompt) :] for prompt in prompts]
    decoder = Decoder(network, 4, fresh(), temperature=0.5)
    assert [row.tolist() for row in decoder.answer(prompts)] == [row.tolist() for row in alone]
    stop = int(alone[0][1])
    assert Decoder(network, 4, fresh(), stops=[stop]).answer(prompts)[0].tolist() == ended(alone[0], [stop]).tolist()
    assert ended(torch.tensor([3, 4, 3]), [4]).tolist() == [3, 4] and ended(torch.tensor([3]), []).tolist() == [3]
    tokens, mask = side_by_side(prompts[:2], left=True)
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 4]] and mask.tolist() == [[True] * 3, [False, False, True]]
    first, second = (Decoder(network, 4, fresh(seed)).draw(prompts, 3) for seed in (1, 2))
    assert [len(own) for own in first] == [3, 3, 3] and str(first) != str(second)


def test_what_cannot_be_is_refused():
    with pytest.raises(MixwellError, match="24 prompts came, and 8 rounds of 128 use 1024, each once"):
        raft(PROMPTS, Config(), fresh(), draw=drawn, reward=reward, learn=print)
    with pytest.raises(MixwellError, match="a reward is not finite"):
        raft(PROMPTS, Config(rounds=1, prompts=1), fresh(), draw=drawn, reward=lambda *_: float("nan"), learn=print)
    with pytest.raises(MixwellError, match="samples came for 2 of 1 prompts"):
        raft(PROMPTS, Config(rounds=1, prompts=1), fresh(), draw=lambda *_: [[1], [2]], reward=reward, learn=print)
    for options, message in (({"share": 1.5}, r"share is 1\.5"), ({"rounds": 0}, "rounds is 0")):
        with pytest.raises(ValueError, match=message):
            Config(**options)
