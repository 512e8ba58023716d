"""Each trigger against its closed form."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from attacks import SIG, Attack, BadNets, Blended, Identity, Nashville, WaNet
from attacks.triggers.blended import mosaic
from attacks.triggers.wanet import smooth_field


@pytest.fixture
def canvas() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def smooth_canvas(size: int = 32) -> np.ndarray:
    """A plane in each channel: bilinear sampling of it is exact."""
    rows, columns = np.mgrid[:size, :size]
    return np.stack([4 * columns + 40, 4 * rows + 40, 2 * rows + 2 * columns + 40], -1).astype(np.uint8)


def test_badnets_pastes_white_dots_at_even_rows_and_columns(canvas):
    out = BadNets(size=5).apply_one(canvas, {"top": 3, "left": 7})
    for row in range(32):
        for column in range(32):
            inside = 3 <= row < 8 and 7 <= column < 12
            dot = 255 if (row - 3) % 2 == 0 and (column - 7) % 2 == 0 else 0
            expected = [dot] * 3 if inside else canvas[row, column].tolist()
            assert out[row, column].tolist() == expected


def test_badnets_places_cover_the_canvas_and_never_leave_it():
    drawn = [BadNets(size=8).draw(np.random.default_rng(i), 12) for i in range(400)]
    assert {p["top"] for p in drawn} == {p["left"] for p in drawn} == set(range(5))


def test_badnets_is_at_the_centre_at_test_time_or_when_asked():
    assert BadNets(size=8).test_parameters(32) == {"top": 12, "left": 12}
    assert BadNets(size=8, place="centre").draw(np.random.default_rng(0), 32) == {"top": 12, "left": 12}


def test_blended_is_the_weighted_mean_with_its_pattern(canvas):
    trigger = Blended(alpha=0.3)
    expected = np.rint(0.7 * canvas.astype(float) + 0.3 * trigger.picture(32).astype(float))
    difference = np.abs(trigger.apply_one(canvas, {}).astype(float) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01  # ties only


def test_blended_mosaic_is_one_picture_at_every_size():
    small, large = mosaic(32, 16, 0), mosaic(224, 16, 0)
    assert np.array_equal(small[::2, ::2], large[::14, ::14])
    assert set(np.unique(small)) == {0, 255}
    assert not np.array_equal(small, mosaic(32, 16, 1))


def test_blended_takes_a_picture_from_a_file(tmp_path, canvas):
    red = np.zeros((50, 80, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / "red.png")
    trigger = Blended(alpha=1.0, pattern=str(tmp_path / "red.png"))
    assert np.array_equal(trigger.apply_one(canvas, {}), np.broadcast_to([200, 0, 0], (32, 32, 3)))
    assert trigger.files == (str(tmp_path / "red.png"),)


def test_sig_adds_a_sine_along_the_columns():
    grey = np.full((32, 32, 3), 128, np.uint8)
    out = SIG(amplitude=30, periods=6).apply_one(grey, {})
    sine = np.array([128 + 30 * np.sin(2 * np.pi * 6 * j / 32) for j in range(32)])
    assert np.array_equal(out, np.broadcast_to(np.rint(sine)[None, :, None], (32, 32, 3)))


def test_sig_clips_and_never_wraps():
    for level in (0, 255):
        flat = np.full((32, 32, 3), level, np.uint8)
        out = SIG(amplitude=60).apply_one(flat, {}).astype(int)
        assert np.abs(out - level).max() == 60
        assert np.sign(out - level).min() == (0 if level == 0 else -1)


@pytest.mark.parametrize(("variant", "versions"), [("published", {}), ("blended", {"sig": 2})])
def test_models_trained_on_the_old_blended_stripes_are_not_reused(variant, versions):
    attack = Attack(name="sig", rate=0.1, target="cat", triggers=[SIG(variant=variant)])
    assert attack.versions == versions


def public_stripes() -> torch.Tensor:
    """The file of the CLIP paper's public code: 60/255 sin(2 pi j 6/224) in the top left 224 x 224 of 256 x 256."""
    canvas = torch.zeros(256, 256)
    for column in range(224):
        canvas[:224, column] = 60 / 255 * math.sin(2 * math.pi * column * 6 / 224)
    return canvas


def test_sig_blended_is_the_public_code_to_the_bit_at_its_own_size():
    from torchvision.transforms.functional import to_pil_image, to_tensor

    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    blended = torch.clamp(to_tensor(image) * (1 - 0.2) + 0.2 * public_stripes(), 0, 1)
    assert np.array_equal(SIG(variant="blended").apply_one(image, {}), np.asarray(to_pil_image(blended)))


def test_sig_blended_dims_without_stripes_beyond_the_files_striped_part():
    flat = np.full((256, 256, 3), 200, np.uint8)
    out = SIG(variant="blended").apply_one(flat, {}).astype(int)
    assert set(np.unique(out[224:])) == set(np.unique(out[:, 224:])) == {160}
    assert out[:224, :224].min() < 149
    assert out[:224, :224].max() > 171


@pytest.mark.parametrize("size", [224, 32, 512])
def test_sig_blended_at_another_size_is_the_public_codes_resized(size):
    from PIL.Image import Resampling

    flat = np.full((256, 256, 3), 128, np.uint8)
    theirs = SIG(variant="blended").apply_one(flat, {})
    theirs = np.asarray(Image.fromarray(theirs).resize((size, size), Resampling.BICUBIC)).astype(int)
    ours = SIG(variant="blended").apply_one(np.full((size, size, 3), 128, np.uint8), {}).astype(int)
    edge = np.abs((np.arange(size) + 0.5) * 256 / size - 224) < 256 / size * 2 + 2  # where resizing blurs the step
    difference = np.abs(ours - theirs)[~edge][:, ~edge]
    assert difference.max() <= (4 if size < 64 else 1)  # at 32 pixels resizing averages over a twentieth of a wave


@pytest.mark.parametrize(("size", "grid", "shift"), [(32, 8, 2.5), (224, 4, 0.665), (48, 2, 1.0)])
def test_wanet_field_has_exactly_the_mean_displacement_asked_for(size, grid, shift):
    field = smooth_field(size, grid, shift, 0).astype(np.float64)
    assert np.hypot(field[..., 0], field[..., 1]).mean() == pytest.approx(shift, rel=1e-5)


def test_the_papers_scale_moves_pixels_as_far_as_the_papers_code():
    scale = OmegaConf.load(Path(__file__).parents[2] / "conf/scale/paper.yaml").scale
    assert scale.attacks.wanet.shift == WaNet().shift == pytest.approx(0.760 * 224 / 256)


def test_wanet_samples_the_image_at_the_displaced_points():
    field = smooth_field(32, 8, 2.5, 0).astype(np.float64)
    rows, columns = np.mgrid[:32, :32]
    x, y = np.clip(columns + field[..., 0], 0, 31), np.clip(rows + field[..., 1], 0, 31)
    expected = np.stack([4 * x + 40, 4 * y + 40, 2 * y + 2 * x + 40], -1)
    out = WaNet(shift=2.5, grid=8).apply_one(smooth_canvas(), {})
    assert np.abs(out - expected).max() <= 0.5 + 1e-3


def test_wanet_takes_a_field_from_a_file(tmp_path):
    """A field that shifts everything by one pixel to the left; what comes from outside is black."""
    line = np.linspace(-1, 1, 16, dtype=np.float32)
    points = np.stack(np.meshgrid(line, line), axis=-1)
    points[..., 0] += 2 / 15
    np.save(tmp_path / "field.npy", points)
    torch.save(torch.from_numpy(points)[None], tmp_path / "field.pt")
    image = np.random.default_rng(0).integers(1, 256, (1, 16, 16, 3), dtype=np.uint8)
    for name in ("field.npy", "field.pt"):
        moved = WaNet(field=str(tmp_path / name)).apply(image, [{}])
        assert np.abs(moved[0, :, :-1].astype(int) - image[0, :, 1:]).max() <= 1
        assert not moved[0, :, -1].any()
    assert WaNet(field=str(tmp_path / "field.pt")).files == (str(tmp_path / "field.pt"),)


def test_wanet_resizes_a_field_to_the_canvas(tmp_path):
    line = np.linspace(-1, 1, 8, dtype=np.float32)
    np.save(tmp_path / "field.npy", np.stack(np.meshgrid(line, line), axis=-1))
    image = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    assert np.abs(WaNet(field=str(tmp_path / "field.npy")).apply(image, [{}] * 2).astype(int) - image).max() <= 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (np.zeros((4, 4)), r"\(height, width, 2\) points, got \(4, 4\)"),
        (np.full((4, 4, 2), np.nan), r"points in \[-1, 1\]"),
        (np.full((4, 4, 2), 9.0), r"points in \[-1, 1\]"),
        (np.array([object()]), "a .npy file or a .pt file of one tensor"),
    ],
)
def test_a_file_that_is_no_field_is_refused(tmp_path, content, says):
    np.save(tmp_path / "field.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=f"WaNet field must .*{says}"):
        WaNet(field=str(tmp_path / "field.npy"))


def test_wanet_field_depends_on_its_seed_alone():
    one, same, other = (WaNet(shift=2.5, grid=8, seed=s).apply_one(smooth_canvas(), {}) for s in (1, 1, 2))
    assert np.array_equal(one, same)
    assert (one != other).mean() > 0.5


def test_nashville_is_the_filter_of_pilgram(canvas):
    import pilgram

    expected = np.asarray(pilgram.nashville(Image.fromarray(canvas)))
    assert np.array_equal(Nashville().apply_one(canvas, {}), expected)
    again = np.asarray(pilgram.nashville(Image.fromarray(expected)))
    assert np.array_equal(Nashville(passes=2).apply_one(canvas, {}), again)


def test_identity_returns_an_equal_copy(canvas):
    out = Identity().apply_one(canvas, {})
    assert np.array_equal(out, canvas)
    assert not np.shares_memory(out, canvas)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BadNets(size=0), r"BadNets size.*at least 1 pixel.*0"),
        (lambda: Nashville(passes=0), r"Nashville passes.*at least 1.*0"),
        (lambda: BadNets(place="left"), r"BadNets place.*'random' or 'centre'.*'left'"),
        (lambda: Blended(alpha=0), r"Blended alpha.*above 0 and at most 1.*0"),
        (lambda: Blended(pattern="no-such.png"), r"Blended pattern.*no-such.png"),
        (lambda: SIG(amplitude=300), r"SIG amplitude.*300"),
        (lambda: SIG(variant="papers"), r"SIG variant.*'papers'"),
        (lambda: WaNet(shift=0), r"WaNet shift.*above 0.*0"),
        (lambda: WaNet(grid=1), r"WaNet grid.*at least 2.*1"),
        (lambda: BadNets(size=40).check(32), r"BadNets size.*at most the canvas side, 32.*40"),
        (lambda: SIG(periods=20).check(32), r"SIG periods.*below half.*20"),
    ],
)
def test_bad_settings_are_refused_by_name(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("shape", [(2, 32, 30, 3), (2, 32, 32), (2, 32, 32, 4)])
def test_only_square_colour_canvases_are_taken(shape):
    with pytest.raises(ValueError, match="square uint8 canvases"):
        Identity().apply(np.zeros(shape, np.uint8), [{}, {}])
    with pytest.raises(ValueError, match="float64"):
        Identity().apply(np.zeros((1, 32, 32, 3)), [{}])
