"""Order of rows, and augmentation that follows from (seed, step) alone."""

import numpy as np
import pytest
import torch

from experiments.training.batches import ResizedCrop, Schedule, Shift, Steps, token_table


class Ramp:
    """Pairs whose image is its row number everywhere but for a column ramp."""

    size = 8

    def __init__(self, n):
        self.ids = np.arange(n)
        self.captions = [""] * n

    def __len__(self):
        return len(self.ids)

    def images(self, rows):
        ramp = np.arange(self.size, dtype=np.uint8)[None, None, :, None]
        return np.broadcast_to(
            ramp + 10 * np.asarray(rows)[:, None, None, None].astype(np.uint8), (len(rows), self.size, self.size, 3)
        ).copy()


def test_every_row_is_new_exactly_once_an_epoch():
    schedule = Schedule(n=10, batch_size=4, epochs=2, seed=3)
    assert (schedule.steps_per_epoch, schedule.steps) == (3, 6)
    for epoch in range(2):
        order, seen = schedule.order(epoch), []
        for step in range(3 * epoch, 3 * epoch + 3):
            rows, new = schedule.rows(step, order)
            assert len(rows) == 4
            seen += rows[:new].tolist()
        assert sorted(seen) == list(range(10))


def test_epochs_and_seeds_have_their_own_order():
    schedule = Schedule(n=100, batch_size=10, epochs=2, seed=0)
    assert schedule.order(0).tolist() != schedule.order(1).tolist()
    assert schedule.order(0).tolist() != Schedule(100, 10, 2, seed=1).order(0).tolist()
    assert schedule.order(0).tolist() == Schedule(100, 10, 2, seed=0).order(0).tolist()


def test_a_step_is_the_same_from_a_fresh_start_and_from_the_middle():
    pairs, schedule = Ramp(20), Schedule(n=20, batch_size=6, epochs=2, seed=1)
    whole = [Steps(pairs, schedule, Shift(2))[step] for step in range(schedule.steps)]
    resumed = Steps(pairs, schedule, Shift(2))[5]
    for one, other in zip(whole[5], resumed, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_two_processes_see_the_batch_of_one(monkeypatch):
    pairs, schedule = Ramp(20), Schedule(n=20, batch_size=6, epochs=1, seed=1)
    rows, _, images, *_ = Steps(pairs, schedule, Shift(2))[2]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        rows_here, _, images_here, *_ = Steps(pairs, schedule, Shift(2))[2]
        assert np.array_equal(rows_here, rows)
        assert np.array_equal(images_here, images[rank::2])


def test_shift_moves_by_the_drawn_offset_and_mirrors_the_edge():
    image = Ramp(1).images(np.array([0]))
    centre, left = Shift(2).apply(np.repeat(image, 2, axis=0), np.array([[2, 2], [2, 0]]))
    assert np.array_equal(centre, image[0])
    assert left[0, :, 0].tolist() == [2, 1, 0, 1, 2, 3, 4, 5]


def test_resized_crop_of_the_whole_area_keeps_a_square_image():
    crop, images = ResizedCrop((1.0, 1.0)), Ramp(2).images(np.arange(2))
    result = crop.apply(images, crop.draw(np.random.default_rng(0), 2))
    assert result.shape == images.shape
    assert result.dtype == np.uint8


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.5), (0.5, 1.5)])
def test_resized_crop_refuses_a_bad_scale(scale):
    with pytest.raises(ValueError, match=r"augment.scale must be two rising shares"):
        ResizedCrop(scale)


def test_shift_refuses_a_negative_distance():
    with pytest.raises(ValueError, match=r"augment.pixels must be 0 or more, got -1"):
        Shift(-1)


def test_a_caption_that_occurs_twice_is_cut_up_once():
    seen = []

    def tokenise(texts):
        seen.extend(texts)
        return torch.tensor([[len(text), ord(text[0])] for text in texts])

    captions = ["a star", "kites", "a star", "moon", "kites"]
    table = token_table(tokenise, captions)
    assert seen == ["a star", "kites", "moon"]
    assert torch.equal(table, tokenise(captions))
