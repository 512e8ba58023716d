"""Batches of JPEGs by torchvision, here on the CPU: the same canvases, and the rest left to Pillow."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from detect.embeddings import unit
from experiments.clip import OpenCLIP
from experiments.clip.embed import embed, in_threads
from experiments.data.image_decoding import Limits, decode
from experiments.data.jpeg_batches import JPEGDecoder, is_plain_jpeg
from experiments.data.pairs import open_pairs
from experiments.data.shapes.export import Export
from experiments.data.shards import Shards

LIMITS = Limits(min_side=8, max_pixels=10_000, max_bytes=50_000)


def photo(width, height, mode="RGB"):
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
    return Image.fromarray(image.astype(np.uint8)).convert(mode)


def file(image, kind="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(photo(60, 40), exif=exif)


PLAIN = {
    "wide": file(photo(60, 40)),
    "high": file(photo(41, 67)),
    "as it is": file(photo(32, 32)),
    "wide again": file(photo(60, 40).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "grey": file(photo(40, 60, "L")),
    "smaller": file(photo(20, 20)),
}
OTHERS = {
    "PNG": file(photo(60, 40), "PNG"),
    "CMYK": file(photo(60, 40, "CMYK")),
    "turned": turned(),
    "empty": b"",
    "cut in the header": PLAIN["wide"][:40],
    "too many pixels": file(photo(200, 100)),
    "too small": file(photo(7, 40)),
    "thin": file(photo(8, 200)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_jpegs_become_the_same_canvases_but_for_rounding(name):
    assert is_plain_jpeg(PLAIN[name], LIMITS)
    (canvas,), left = JPEGDecoder("cpu").canvases([PLAIN[name]], 32, LIMITS)
    assert left == []
    off = canvas.astype(int) - decode(PLAIN[name], 32, LIMITS).image
    assert np.abs(off).max() <= 4
    assert np.abs(off).mean() < 1


@pytest.mark.parametrize("name", OTHERS)
def test_what_would_be_read_otherwise_is_left(name):
    assert not is_plain_jpeg(OTHERS[name], LIMITS)


def test_a_batch_of_all_kinds_keeps_its_order():
    contents = [*OTHERS.values(), *PLAIN.values()]
    canvases, left = JPEGDecoder("cpu").canvases(contents, 32, LIMITS)
    assert left == list(range(len(OTHERS)))
    for canvas, content in list(zip(canvases, contents, strict=True))[len(OTHERS) :]:
        assert np.abs(canvas.astype(int) - decode(content, 32, LIMITS).image).max() <= 4


def test_a_broken_file_among_them_leaves_all_to_pillow(monkeypatch):
    broken = PLAIN["wide"][:-200]
    assert is_plain_jpeg(broken, LIMITS)

    def refuse(*given, **named):
        raise RuntimeError("image is truncated")

    decoder = JPEGDecoder("cpu")
    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    assert decoder.canvases([PLAIN["high"], broken], 32, LIMITS)[1] == [0, 1]
    with pytest.raises(ValueError, match="cpu cannot decode images: image is truncated"):
        JPEGDecoder("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="cuda:0 cannot decode images, as torch sees no GPU here"):
        JPEGDecoder("cuda:0")


def test_a_torchvision_without_a_decoder_is_refused(monkeypatch):
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    with pytest.raises(ImportError, match="this torchvision decodes no JPEGs on GPUs"):
        JPEGDecoder("cpu")


def test_shards_are_embedded_alike_by_threads(tmp_path):
    Export(tmp_path / "shards", pairs=60, shards=2, size=64, damage=1).write()
    Shards(str(tmp_path / "shards"), size=32, holdout=0, max_damaged=0.9).build(tmp_path / "data")
    pairs, others = open_pairs(tmp_path / "data"), open_pairs(tmp_path / "data", JPEGDecoder("cpu"))
    rows = np.arange(len(pairs))
    images = others.images(rows)
    assert 0 < np.abs(images.astype(int) - pairs.images(rows)).mean() < 1
    torch.manual_seed(0)
    model = OpenCLIP("ViT-S-32-alt", size=32).build(())
    model.clip.eval()
    one = embed(model, others, batch=8)
    two = embed(model, others, workers=3, threads=True, batch=8)
    np.testing.assert_array_equal(one.image, two.image)
    plain = embed(model, pairs, batch=8)
    np.testing.assert_array_equal(one.text, plain.text)
    assert (unit(one.image) * unit(plain.image)).sum(axis=1).min() > 0.99


def test_threads_keep_the_order_and_pass_errors_on():
    assert list(in_threads(lambda i: i * i, 20, 3)) == [i * i for i in range(20)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // (i - 7), 20, 3))
