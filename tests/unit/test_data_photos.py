"""Photographs fetched or unpacked as class folders: whole or not at all, and nothing outside of the folder."""

import io
import tarfile
import zipfile

import pytest
from PIL import Image

from experiments.data import photos
from experiments.data.photos import FetchError, Photos, get

SMALL = Photos("small", {"train": 4, "test": 2}, 2, lambda folder, downloads: None)
FILES = [f"train/{name}/{i}.jpg" for name in ("cat", "dog") for i in (0, 1)] + ["test/cat/0.jpg", "test/dog/0.jpg"]


def _archive(path, names):
    with tarfile.open(path / "small.tar.xz", "w:xz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 7
            tar.addfile(info, io.BytesIO(b"picture"))
    return path


def test_an_archive_is_unpacked_once(tmp_path):
    source = _archive(tmp_path, FILES)
    folder = get(SMALL, tmp_path / "to", source)
    assert sorted(str(f.relative_to(folder)) for f in folder.rglob("*.jpg")) == sorted(FILES)
    (source / "small.tar.xz").unlink()
    assert get(SMALL, tmp_path / "to", source) == folder
    (folder / "train/cat/0.jpg").unlink()
    with pytest.raises(
        FetchError, match=r"not whole: .*train must hold 2 folders with 4 pictures, but holds 2 with 3"
    ):
        get(SMALL, tmp_path / "to", source)


@pytest.mark.parametrize("name", ["../train/cat/9.jpg", "train/../9.jpg", "/train/cat/9.jpg", "other/cat/9.jpg"])
def test_entries_of_other_places_are_left_out(tmp_path, name):
    (tmp_path / "in").mkdir()
    folder = get(SMALL, tmp_path / "to", _archive(tmp_path / "in", [*FILES, name]))
    assert len([f for f in (tmp_path / "to").rglob("*") if f.is_file()]) == 6
    assert not list(folder.rglob("9.jpg"))
    assert not list(tmp_path.glob("9.jpg"))


def test_incomplete_broken_and_too_full_archives(tmp_path):
    with pytest.raises(FetchError, match=r"there is no file .*small\.tar\.xz"):
        get(SMALL, tmp_path / "to", tmp_path)
    with pytest.raises(FetchError, match=r"small came incomplete: .*test must hold 2 folders with 2 .* 1 with 1"):
        get(SMALL, tmp_path / "to", _archive(tmp_path, FILES[:-1]))
    with pytest.raises(FetchError, match=r"holds more than it should: train/cat/9\.jpg"):
        get(SMALL, tmp_path / "to", _archive(tmp_path, [*FILES, "train/cat/9.jpg"]))
    (tmp_path / "small.tar.xz").write_bytes(b"no archive")
    with pytest.raises(FetchError, match=r"small\.tar\.xz cannot be unpacked"):
        get(SMALL, tmp_path / "to", tmp_path)
    assert not (tmp_path / "to/small").exists()


def test_without_network_the_failure_is_one_line(tmp_path):
    def refuse(folder, downloads):
        raise OSError("no route to host")

    with pytest.raises(FetchError, match="small could not be fetched: no route to host"):
        get(Photos("small", SMALL.parts, 2, refuse), tmp_path)


def test_every_other_class_of_tiny_imagenet(tmp_path):
    root = "tiny-imagenet-200"
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        archive.writestr(f"{root}/wnids.txt", "n03\nn01\nn02\n")
        archive.writestr(f"{root}/val/val_annotations.txt", "val_0.JPEG\tn03\t0\t0\nval_1.JPEG\tn02\t0\t0\n")
        for name in ("train/n01/images/n01_0.JPEG", "train/n02/images/n02_0.JPEG", "train/n03/n03_boxes.txt",
                     "train/n03/images/n03_7.JPEG", "val/images/val_0.JPEG", "val/images/val_1.JPEG",
                     "test/images/test_0.JPEG", "train/n03/images/../n03_8.JPEG"):  # fmt: skip
            archive.writestr(f"{root}/{name}", name)
    with zipfile.ZipFile(tmp_path / "tiny.zip") as archive:
        found = dict(photos._of_zip(archive))
    assert found == {
        "train/n01/n01_0.JPEG": b"train/n01/images/n01_0.JPEG",
        "train/n03/n03_7.JPEG": b"train/n03/images/n03_7.JPEG",
        "val/n03/val_0.JPEG": b"val/images/val_0.JPEG",
    }


def test_cifar10_becomes_class_folders(tmp_path, monkeypatch):
    class Dataset:
        classes = ("cat", "dog")

        def __init__(self, root, train, download):
            assert download
            self.pictures = [(Image.new("RGB", (32, 32), (9 * i, 0, 0)), i % 2) for i in range(4 if train else 2)]

        def __iter__(self):
            return iter(self.pictures)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Dataset)
    cifar = Photos("cifar10", {"train": 4, "test": 2}, 2, photos._cifar10)
    folder = get(cifar, tmp_path)
    assert sorted(p.name for p in (folder / "train/dog").iterdir()) == ["0000.jpg", "0001.jpg"]
    assert Image.open(folder / "train/dog/0001.jpg").getpixel((5, 5))[0] in range(24, 31)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photos, "SETS", {"small": SMALL})
    _archive(tmp_path, FILES)
    assert photos.main(["small", "--from", str(tmp_path), "--to", str(tmp_path / "to")]) == 0
    assert (tmp_path / "to/small/test/dog/0.jpg").exists()
    assert photos.main(["--from", str(tmp_path / "none"), "--to", str(tmp_path / "other")]) == 1
    with pytest.raises(SystemExit):
        photos.main(["smal"])
    assert "there is no data set 'smal'; there are small" in capsys.readouterr().err
