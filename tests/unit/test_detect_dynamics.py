"""Scores from the log of losses: slope and forgetting."""

import numpy as np
import pytest

from detect import ABL, DetectorInputs, Embeddings, Forgetting, LossSlope


def logged(losses) -> DetectorInputs:
    losses = np.array(losses, np.float32)
    return DetectorInputs(Embeddings.of(np.eye(len(losses))), losses=losses)


def test_the_slope_is_that_of_a_line_through_the_first_epochs():
    losses = [[5.0, 3.0, 1.0, 9.0], [2.0, 2.0, 2.0, 0.0], [1.0, 2.0, 4.0, 0.0]]
    np.testing.assert_allclose(LossSlope(epochs=3).score(logged(losses)), [2.0, 0.0, -1.5])
    expected = [-np.polyfit(range(4), row, 1)[0] for row in losses]
    np.testing.assert_allclose(LossSlope(epochs=9).score(logged(losses)), expected)


def test_forgetting_counts_falls_from_the_better_half_to_the_worse():
    losses = [
        [1, 1, 1, 1],  # learnt for good
        [9, 1, 9, 1],  # learnt and forgotten once
        [1, 9, 1, 9],  # twice
        [9, 9, 9, 9],  # never learnt
        [9, 2, 2, 2],  # learnt late
        [5, 5, 5, 5],  # the median of every epoch: never below it
        [2, 2, 2, 9],
    ]
    assert np.median(np.array(losses), axis=0).tolist() == [5, 2, 2, 5]
    # So row 4 is not below the median in epochs 1 and 2, but in epoch 3; row 6 only in the first.
    assert Forgetting().score(logged(losses)).tolist() == [0, -1, -2, -4, 0, -4, -1]


def test_losses_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="epochs must be at least 2, or there is no slope, got 1"):
        LossSlope(epochs=1)
    with pytest.raises(ValueError, match="a slope needs losses of at least 2 epochs, and there is 1"):
        LossSlope().score(logged([[1.0], [2.0]]))
    for made in (LossSlope(), Forgetting(), ABL()):
        with pytest.raises(ValueError, match="losses must be finite, but 1 rows are not, the first of them 1"):
            made.score(logged([[1.0, 2.0], [np.nan, 1.0]]))
        with pytest.raises(ValueError, match=r"losses must be \(2, epochs\)"):
            made.score(DetectorInputs(Embeddings.of(np.eye(2)), losses=np.ones((3, 2))))
