"""Decoding: agreement with torchvision's transform, every colour mode, every kind of damage."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from experiments.data import image_decoding as data_canvas
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
        "id,source,kind,detail,left_out",
        "3,a.jpg,truncated,x,1",
        "8,c.jpg,truncated,,1",
        "9,d.jpg,empty file,,1",
        "1,b.jpg,grey,,0",
    ]
    with pytest.raises(TooMuchDamage, match=r"3 of 10 samples left out \(30.00%\).*data.max_damaged=0.29"):
        report.finalise(tmp_path, 0.29)


def test_report_obeys_no_name(tmp_path):
    report = DamageReport()
    report.add(2, [Issue(0, "=cmd|1.jpg", "truncated", "a\x1b[2J\nb"), Issue(1, "\udcff.jpg", "missing file")])
    report.write(tmp_path)
    lines = (tmp_path / "damage.csv").read_text().splitlines()
    assert lines[1:] == [r"0,'=cmd|1.jpg,truncated,a\x1b[2J\x0ab,1", r"1,\udcff.jpg,missing file,,1"]
    assert str(DecodeError("corrupt", "\x1b[2J")) == r"corrupt: \x1b[2J"


def _exif(*entries):
    """An EXIF block of (tag, type, count, four bytes)."""
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + body + bytes(4) + struct.pack("<ii", -72, 1)


ORIENTED = (0x0112, 3, 1, b"\x06\0\0\0")


@pytest.mark.parametrize(
    "entry",
    [
        (0x011A, 2, 4, b"300\0"),  # the resolution, as text
        (0x011A, 10, 1, struct.pack("<I", 38)),  # and as a negative rational
        (0x011A, 5, 1, struct.pack("<I", 9999)),  # and behind the end of the block
        (0x8769, 4, 1, struct.pack("<I", 9999)),  # a table that is not there
        (0x0131, 99, 7, b"abcd"),  # of a type that is not known
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_of_metadata_only_the_orientation_counts(entry, kind):
    image = _photo(40, 24)
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = decode(_bytes(image.transpose(Image.Transpose.ROTATE_270), kind, **options), 24, LIMITS).image
    canvas = decode(_bytes(image, kind, exif=_exif(ORIENTED, entry), **options), 24, LIMITS)
    assert canvas.notes == ["turned upright"]
    assert np.abs(canvas.image.astype(int) - plain).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "profile", ["\nexif\n      20\n4578696600004d4d0", "\nexif\n 8\n45", "exif", "\nexif\n 4\nzz"]
)
def test_a_raw_profile_cut_short_is_ignored(profile):
    image, text = _photo(40, 24), PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", profile)
    canvas = decode(_bytes(image, "PNG", pnginfo=text), 24, LIMITS)
    assert canvas.notes == []
    np.testing.assert_array_equal(canvas.image, fit(image, 24))


@pytest.mark.parametrize("orientation", [0, 9, 400])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    entry = (0x0112, 3, 1, struct.pack("<HH", orientation, 0))
    canvas = decode(_bytes(_photo(), "PNG", exif=_exif(entry)), 32, LIMITS)
    assert canvas.notes == []
    np.testing.assert_array_equal(canvas.image, fit(_photo(), 32))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_every_orientation_is_turned_as_pillow_does(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = _bytes(_photo(61, 40), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode(content, 32, LIMITS).image, fit(upright, 32))


def test_a_second_frame_that_is_broken_leaves_the_first():
    frames = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8)) for i in range(3)]
    content = _bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    whole = decode(content, 32, LIMITS)
    cut = decode(content[: len(content) // 2], 32, LIMITS)
    np.testing.assert_array_equal(cut.image, whole.image)


def test_floats_keep_their_contrast():
    y, x = np.mgrid[:24, :32]
    ramp = ((x + y) / 54).astype(np.float32)
    expected = fit(Image.fromarray(np.rint(ramp * 255).astype(np.uint8)).convert("RGB"), 24)
    for values in (ramp, ramp * 255, ramp * 65535, ramp * 1e-6, ramp - 0.5):
        canvas = decode(_bytes(Image.fromarray(values), "TIFF"), 24, LIMITS)
        assert canvas.notes == ["more than 8 bits"]
        assert np.abs(canvas.image.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_one_odd_pixel_is_noted_and_leaves_the_others(odd):
    values = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (24, 1))
    sound = decode(_bytes(Image.fromarray(values), "TIFF"), 24, LIMITS).image
    values[0, 31] = odd
    canvas = decode(_bytes(Image.fromarray(values), "TIFF"), 24, LIMITS)
    assert canvas.notes == ["more than 8 bits", "NaN or infinite pixels"]
    np.testing.assert_array_equal(canvas.image[:, :20], sound[:, :20])
    values[:] = odd
    with pytest.raises(DecodeError, match="corrupt: holds no finite number"):
        decode(_bytes(Image.fromarray(values), "TIFF"), 24, LIMITS)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_by_their_type(kind):
    values = np.full((24, 24), 255, np.uint16)
    shown = []
    for top in (255, 256, 300, 65535):
        values[0, 0] = top
        shown.append(decode(_bytes(Image.fromarray(values), kind), 24, LIMITS).image[12, 12, 0])
    assert shown == [1] * 4
    values[:] = 32896
    assert (decode(_bytes(Image.fromarray(values), kind), 24, LIMITS).image == 128).all()


def test_32_bits_are_scaled_by_their_own_range():
    values = np.tile(np.linspace(0, 2_000_000, 24).astype(np.int32), (24, 1))
    image = decode(_bytes(Image.fromarray(values), "TIFF"), 24, LIMITS).image
    assert (image[0, 0, 0], image[0, -1, 0]) == (0, 255)
    small = decode(_bytes(Image.fromarray(values // 10_000), "TIFF"), 24, LIMITS).image
    assert np.abs(small.astype(int) - image).max() <= 2
    flat = decode(_bytes(Image.fromarray(np.full((24, 24), 7, np.int32)), "TIFF"), 24, LIMITS).image
    assert (flat == 128).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_bands_change_nothing(monkeypatch, mode):
    image = _photo(150, 100).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize((150, 100)))
    content = _bytes(image, "PNG")
    whole = decode(content, 32, LIMITS)
    monkeypatch.setattr(data_canvas, "_BAND", 1000)
    banded = decode(content, 32, LIMITS)
    assert banded.notes == whole.notes
    np.testing.assert_array_equal(banded.image, whole.image)


@pytest.mark.parametrize("shape", [(10, 230), (231, 11), (8, 2000)])
def test_a_thin_picture_keeps_its_middle(shape):
    width, height = shape
    values = np.zeros((height, width, 3), np.uint8)
    values[..., 0] = np.linspace(0, 255, height)[:, None]
    values[..., 1] = np.linspace(0, 255, width)[None]
    image = Image.fromarray(values)
    high, wide, top, left = data_canvas.window(height, width, 32)
    uncut = data_canvas._resize(image, high, wide)[top : top + 32, left : left + 32]
    for content in (image, image.convert("RGBA")):
        canvas = decode(_bytes(content, "PNG"), 32, LIMITS).image
        assert canvas.shape == (32, 32, 3)
        assert np.abs(canvas.astype(int) - uncut).max() <= 3


def test_an_icon_is_bounded_by_the_picture_that_it_holds():
    inside = _bytes(_photo(300, 200), "PNG")
    header = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22)
    with pytest.raises(DecodeError, match="decompression bomb: 300 x 200"):
        decode(header + inside, 32, Limits(max_pixels=1000))


def test_webp_is_allowed_half_as_many_pixels():
    content = _bytes(_photo(100, 100), "WEBP")
    assert decode(content, 32, Limits(max_pixels=20_000)).image.shape == (32, 32, 3)
    with pytest.raises(DecodeError, match="decompression bomb: 100 x 100 pixels, more than 9,999"):
        decode(content, 32, Limits(max_pixels=19_999))


_PEAK = """
import resource, sys
from experiments.data.image_decoding import Limits, decode

for file in sys.argv[1:]:
    with open(file, "rb") as stream:
        content = stream.read()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decode(content, 224, Limits())
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes")
def test_memory_is_bounded_by_the_pixels(tmp_path):
    sizes = [(300, 300), (8, 1_000_000), (1_000_000, 8), (5000, 4000)]
    for i, size in enumerate(sizes):
        Image.new("RGB", size, "red").save(tmp_path / f"{i}.png")
    files = [str(tmp_path / f"{i}.png") for i in range(len(sizes))]
    done = subprocess.run([sys.executable, "-c", _PEAK, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, *peaks = (int(line) for line in done.stdout.split())  # the first imports torch
    assert all(peak < limit for peak, limit in zip(peaks, (150, 150, 200), strict=True)), f"{peaks} MB"
