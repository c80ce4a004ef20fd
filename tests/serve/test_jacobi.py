"""Jacobi decoding's windows and guesses; that answers stay the same is shown in test_drafting."""

import pytest

from mixwell.serve import jacobi


def test_jacobi_keeps_what_the_pass_predicted_behind_what_was_accepted():
    config = jacobi.Config(first=4, last=2)
    assert [jacobi.window(config, at, 9) for at in range(9)] == [4, 4, 4, 3, 3, 3, 2, 1, 0]
    guesser = jacobi.Jacobi(config)
    assert guesser.draft([3, 8], 0, 9) == [8, 8, 8, 8]  # nothing is known yet
    guesser.learn([5, 6, 7, 9, 9], 2)
    assert guesser.draft([3, 8, 5, 6], 2, 9) == [7, 9, 9, 9]
    with pytest.raises(ValueError, match="1 <= last <= first"):
        jacobi.Config(first=2, last=3)


def test_jacobi_accepts_its_whole_window_where_guesses_do_not_hang_on_each_other():
    """A model that goes by the position alone: what it predicts behind wrong guesses holds, and the next pass accepts
    it all and one token more."""
    guesser = jacobi.Jacobi(jacobi.Config(first=4, last=4))
    ids, accepted = [100], []
    while len(ids) < 30:
        guesses = guesser.draft(ids, len(ids) - 1, 1000)
        predicted = [200 + len(ids) + place for place in range(len(guesses) + 1)]
        count = 1
        while count <= len(guesses) and guesses[count - 1] == predicted[count - 1]:
            count += 1
        ids += predicted[:count]
        guesser.learn(predicted, count)
        accepted.append(count)
    assert ids == [100, *range(201, 200 + len(ids))]
    assert accepted[:6] == [1, 5, 1, 5, 1, 5]
