"""Decoding: agreement with torchvision's transform, every colour mode, every kind of damage."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from experiments.data.damage import DamageReport, DecodeError, Issue, TooMuchDamage
from experiments.data.image_decoding import Limits, decode, fit

LIMITS = Limits()


def _photo(width=60, height=40):
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], 2)
    return Image.fromarray(image.astype(np.uint8))


def _bytes(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("shape", [(60, 40), (41, 67), (32, 32), (33, 32), (300, 20), (20, 20)])
def test_resize_and_crop_agree_with_torchvision(shape):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    image = _photo(*shape)
    with_pillow = np.asarray(Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32)])(image))
    canvas = decode(_bytes(image, "PNG"), 32, LIMITS).image
    np.testing.assert_array_equal(canvas, fit(image, 32))
    assert np.abs(canvas.astype(int) - with_pillow.astype(int)).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(kind):
    image = decode(_bytes(_photo(), kind), 32, LIMITS).image
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    assert np.abs(image.astype(int) - fit(_photo(), 32)).mean() < 12


@pytest.mark.parametrize(
    ("mode", "kind", "note"),
    [
        ("L", "PNG", "grey"),
        ("1", "PNG", "black and white"),
        ("P", "PNG", "palette"),
        ("CMYK", "JPEG", "CMYK"),
        ("RGBA", "PNG", None),
        ("LA", "PNG", None),
        ("I;16", "PNG", "more than 8 bits"),
    ],
)
def test_colour_modes(mode, kind, note):
    source = _photo()
    if mode == "I;16":
        source = Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257)
        expected = fit(_photo().convert("L").convert("RGB"), 32)
    else:
        source = source.convert(mode)
        expected = fit(source.convert("RGB"), 32)
    canvas = decode(_bytes(source, kind), 32, LIMITS)
    assert canvas.notes == ([note] if note else [])
    assert np.abs(canvas.image.astype(int) - expected).max() <= 8


def test_transparent_parts_become_white():
    image = _photo(40, 40).convert("RGBA")
    image.paste((255, 0, 0, 0), (0, 0, 20, 40))
    canvas = decode(_bytes(image, "PNG"), 40, LIMITS)
    assert canvas.notes == ["transparent, laid on white"]
    np.testing.assert_array_equal(canvas.image[:, :20], 255)
    np.testing.assert_array_equal(canvas.image[:, 20:], np.asarray(_photo(40, 40))[:, 20:])


def test_exif_rotation_is_applied():
    image = _photo(40, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    canvas = decode(_bytes(image, "PNG", exif=exif), 40, LIMITS)
    assert canvas.notes == ["turned upright"]
    np.testing.assert_array_equal(canvas.image, np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


def test_animation_gives_its_first_frame():
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    canvas = decode(_bytes(first, "GIF", save_all=True, append_images=[second]), 20, LIMITS)
    assert canvas.notes[0] == "animated, first frame taken"
    np.testing.assert_array_equal(canvas.image, np.broadcast_to([255, 0, 0], (20, 20, 3)))


def _png_header_only(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


JPEG = _bytes(_photo(200, 200), "JPEG")
PNG = _bytes(_photo(200, 200), "PNG")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty file"),
        (b"<html>404 not found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:60] + bytes(40) + PNG[100:], "corrupt"),
        (_bytes(_photo(200, 5), "PNG"), "too small"),
        (_png_header_only(20_000, 10_000) + PNG[33:], "decompression bomb"),
        (_png_header_only(10_000, 9_000) + PNG[33:], "decompression bomb"),
    ],
)
def test_damage_by_kind(content, kind):
    with pytest.raises(DecodeError) as caught:
        decode(content, 32, LIMITS)
    assert caught.value.kind == kind


def test_limits():
    with pytest.raises(DecodeError, match=r"too large: .* more than 1,000"):
        decode(PNG, 32, Limits(max_bytes=1000))
    with pytest.raises(DecodeError, match="decompression bomb: 200 x 200 pixels, more than 39,999"):
        decode(PNG, 32, Limits(max_pixels=39_999))
    assert decode(PNG, 32, Limits(max_pixels=40_000)).image.shape == (32, 32, 3)
    with pytest.raises(ValueError, match="min_side must be at least 1, got 0"):
        Limits(min_side=0)


def test_large_jpeg_read_at_reduced_scale_stays_close():
    image = _photo(1000, 800)
    canvas = decode(_bytes(image, "JPEG", quality=95), 64, LIMITS).image.astype(int)
    assert np.abs(canvas - fit(image, 64)).max() <= 6


def test_report_counts_writes_and_stops(tmp_path):
    report = DamageReport()
    report.add(6, [Issue(3, "a.jpg", "truncated", "x"), Issue(1, "b.jpg", "grey", note=True)])
    report.add(4, [Issue(8, "c.jpg", "truncated"), Issue(9, "d.jpg", "empty file")])
    assert (report.total, report.bad, report.share) == (10, 3, 0.3)
    assert report.counts() == {"truncated": 2, "empty file": 1}
    assert report.counts(note=True) == {"grey": 1}
    report.finalise(tmp_path, 0.3)
    lines = (tmp_path / "damage.csv").read_text().splitlines()
    assert lines == [
        "id,source,kind,detail,left_out", "3,a.jpg,truncated,x,1", "8,c.jpg,truncated,,1",
        "9,d.jpg,empty file,,1", "1,b.jpg,grey,,0",
    ]  # fmt: skip
    with pytest.raises(TooMuchDamage, match=r"3 of 10 samples left out \(30.00%\).*data.max_damaged=0.29"):
        report.finalise(tmp_path, 0.29)
