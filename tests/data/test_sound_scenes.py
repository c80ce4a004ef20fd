"""Metadata are what lies in the mixture: onsets, order, counts, levels; captions tell them; refusals."""

import dataclasses

import numpy as np
import pytest
import torch

from mixwell.core.errors import MixwellError
from mixwell.data import sound_scenes as module
from mixwell.data.sound_scenes import Config, Library, Scene, sound_scenes
from mixwell.data.waves import Sounds

NAMES, PEOPLE = ("a dog barks", "rain falls", "a voice speaks"), ("a man", "a woman")
CONFIG = Config(events=3, repeats=3, gap=40, between=5, together=0.4)


def fresh(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def library():
    draws = torch.Generator().manual_seed(0)
    samples = torch.randn(6, 30, generator=draws)
    lengths = torch.tensor([10, 30, 20, 25, 15, 12])
    return Library(Sounds(samples, lengths), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([-1, -1, 0, -1, -1, 1]))


def test_every_event_is_where_and_what_its_row_says(library):
    for seed in range(30):
        made = sound_scenes(library, CONFIG, fresh(seed))
        expected, before, latest = torch.zeros_like(made.mixture, dtype=torch.float64), None, 0
        for row, level, stem in zip(made.events.tolist(), made.decibels.tolist(), made.stems):
            sound, kind, speaker, count, together, start, end = row
            assert kind == library.classes_N[sound] and speaker == library.speakers_N[sound]
            wave = library.sounds.samples[sound, : library.sounds.length[sound]].double()
            wave = wave / wave.square().mean().sqrt() * 10 ** (level / 20) * float(made.scale)
            every = len(wave) + 5
            assert end - start == count * every - 5
            for number in range(count):
                expected[start + number * every :][: len(wave)] += wave
            assert not stem[:start].any() and not stem[end:].any()
            assert -12 <= level <= 0
            if before is not None:
                assert start == before[5] if together else 0 <= start - latest <= 40
            before, latest = row, max(latest, end)
        torch.testing.assert_close(made.mixture.double(), expected, rtol=1e-4, atol=1e-5)
        assert made.mixture.abs().max() <= 1.0001 and len(made.mixture) == latest
        kinds = made.events[:, 1].tolist()
        assert len(set(kinds)) == len(kinds) <= 3
        assert float(made.scale) == pytest.approx(1 / max(1, float(made.mixture.abs().max()) / float(made.scale)))


def test_all_numbers_of_events_repeats_and_both_orders_come(library):
    scenes = [sound_scenes(library, CONFIG, fresh(seed)) for seed in range(80)]
    assert {len(scene.events) for scene in scenes} == {1, 2, 3}
    assert {int(count) for scene in scenes for count in scene.events[:, 3]} == {1, 2, 3}
    late = torch.cat([scene.events[1:, 4] for scene in scenes]).double()
    assert float(late.mean()) == pytest.approx(0.4, abs=0.15)
    alone = dataclasses.replace(CONFIG, together=0.0, events=1, repeats=1, quietest=0.0)
    one = sound_scenes(library, alone, fresh())
    assert one.events[0, 3:5].tolist() == [1, 0] and float(one.decibels) == 0


def told(count, together, level, speaker=-1):
    first, second = [0, 0, -1, 2, 0, 0, 10], [1, 1, speaker, count, together, 12, 20]
    return Scene(torch.zeros(20), torch.zeros(2, 20), torch.tensor([first, second]), torch.tensor([-11.0, level]),
                 torch.tensor(1.0))


def test_captions_tell_count_loudness_order_and_speaker():
    words = module.caption(told(3, 0, -1.0, 1), NAMES, -12.0, fresh(1), PEOPLE)
    assert words.startswith("A dog barks twice softly")
    assert words.endswith("rain falls three times loudly from a woman.")
    assert any(joint in words for joint in module.AFTER)
    beside = {module.caption(told(1, 1, -6.0), NAMES, -12.0, fresh(seed)) for seed in range(20)}
    assert beside == {f"A dog barks twice softly{joint}rain falls once moderately." for joint in module.WITH}
    assert module.facts(told(1, 1, -6.0, 0), NAMES, -12.0, PEOPLE) == [
        "a dog barks, twice, softly", "rain falls, once, moderately, by a man, together with the one before"]
    assert module.facts(told(2, 0, 0.0), NAMES, -12.0)[1] == "rain falls, twice, loudly, after the one before"
    assert module.loudness(0.0, 0.0) == "loudly"


def test_refusals(library):
    with pytest.raises(MixwellError, match=r"\(6, 5, 6\); expected as many of each"):
        sound_scenes(library._replace(classes_N=torch.arange(5)), CONFIG, fresh())
    with pytest.raises(MixwellError, match="is silent"):
        sound_scenes(library._replace(sounds=Sounds(torch.zeros(6, 3), torch.full((6,), 3))), CONFIG, fresh())
    for values in ({"events": 0}, {"repeats": 0}, {"repeats": 6}, {"gap": -1}, {"between": -1}, {"together": 2},
                   {"quietest": 1}, {"quietest": -40}):
        with pytest.raises(ValueError, match="expected"):
            Config(**values)
