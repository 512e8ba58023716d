"""Fetch photographs as class folders: `python -m experiments.data.photos [cifar10] [tinyimagenet100]`.

    <to>/cifar10/            train/<class>/*.jpg (50,000), test/<class>/*.jpg (10,000): CIFAR-10 (Krizhevsky 2009)
    <to>/tinyimagenet100/    train/<wnid>/*.JPEG (50,000), val/<wnid>/*.JPEG (5,000): every other class of
                             Tiny-ImageNet (Stanford CS231n) in the order of their WordNet ids

Nothing is fetched that is there. A data set appears under its name once it is whole.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("photos")

_TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_LARGEST_FILE = 1 << 20  # bytes of a picture of 64 pixels, at the very most


class FetchError(Exception):
    """The photographs cannot be fetched; the message says why."""


@dataclass(frozen=True)
class Photos:
    """A data set: name, number of pictures in each part, number of classes, and how it is fetched."""

    name: str
    parts: dict[str, int]
    classes: int
    fetch: Callable[[Path, Path], None]  # (folder to fill, folder for downloads)

    def missing(self, folder: Path) -> str | None:
        """What `folder` lacks; None if it is whole."""
        for part, expected in self.parts.items():
            if not (folder / part).is_dir():
                return f"there is no folder {folder / part}"
            classes = [entry for entry in os.scandir(folder / part) if entry.is_dir()]
            found = sum(len(os.listdir(entry.path)) for entry in classes)
            if (len(classes), found) != (self.classes, expected):
                return (
                    f"{folder / part} must hold {self.classes} folders with {expected:,} pictures, "
                    f"but holds {len(classes)} with {found:,}"
                )
        return None


def get(photos: Photos, to: Path, source: Path | None = None) -> Path:
    """The folder of `photos` in `to`; fetched, or unpacked from <source>/<name>.tar.xz, where it is not there yet.

    Raises FetchError.
    """
    folder = to / photos.name
    if folder.is_dir():
        if problem := photos.missing(folder):
            raise FetchError(f"{folder} is there but not whole: {problem}; move it away to fetch it again")
        return folder
    partial = to / f"{photos.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if source is not None:
        _unpack(source / f"{photos.name}.tar.xz", partial, photos.parts)
    else:
        try:
            photos.fetch(partial, to / "downloads")
        except (OSError, RuntimeError) as error:  # no network, a wrong checksum
            raise FetchError(f"{photos.name} could not be fetched: {error}") from None
    if problem := photos.missing(partial):
        raise FetchError(f"{photos.name} came incomplete: {problem}")
    partial.rename(folder)
    return folder


def _unpack(archive: Path, folder: Path, parts: dict[str, int]) -> None:
    """The pictures of an archive that holds <part>/<class>/<file>; other entries are left out."""
    if not archive.is_file():
        raise FetchError(f"there is no file {archive}")
    try:
        with tarfile.open(archive, "r:xz") as tar:
            left = sum(parts.values())
            for member in tar:
                steps = member.name.removeprefix("./").split("/")
                if not member.isfile() or len(steps) != 3 or steps[0] not in parts or {"", ".", ".."} & {*steps}:
                    continue
                left -= 1
                stream = tar.extractfile(member)
                if left < 0 or stream is None or member.size > _LARGEST_FILE:
                    raise FetchError(f"{archive} holds more than it should: {member.name}")
                _write(folder.joinpath(*steps), stream.read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise FetchError(f"{archive} cannot be unpacked: {error}") from None


def _cifar10(folder: Path, downloads: Path) -> None:
    """Fetch with torchvision, which checks the archive's MD5."""
    from torchvision.datasets import CIFAR10

    for part in ("train", "test"):
        data = CIFAR10(str(downloads), train=part == "train", download=True)
        counts = dict.fromkeys(data.classes, 0)
        for image, label in data:
            name = data.classes[label]
            file = folder / part / name / f"{counts[name]:04d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
            counts[name] += 1


def _tinyimagenet100(folder: Path, downloads: Path) -> None:
    from torchvision.datasets.utils import download_url

    downloads.mkdir(parents=True, exist_ok=True)
    download_url(_TINY, str(downloads), md5=_TINY_MD5)
    with zipfile.ZipFile(downloads / Path(_TINY).name) as archive:
        for place, content in _of_zip(archive):
            _write(folder / place, content)


def _of_zip(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """<part>/<wnid>/<file> and the content of the pictures of every other class."""
    root = "tiny-imagenet-200"
    wnids = set(sorted(archive.read(f"{root}/wnids.txt").decode().split())[::2])
    lines = archive.read(f"{root}/val/val_annotations.txt").decode().splitlines()
    of_val = dict(line.split("\t")[:2] for line in lines)
    for member in archive.infolist():
        file = member.filename.rsplit("/", 1)[-1]
        wnid, part = file.split("_")[0], "train"
        if member.filename == f"{root}/val/images/{file}":
            wnid, part = of_val.get(file, ""), "val"
        elif member.filename != f"{root}/train/{wnid}/images/{file}":
            continue
        if wnid in wnids and file and member.file_size <= _LARGEST_FILE:
            yield f"{part}/{wnid}/{file}", archive.read(member)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


SETS = {
    photos.name: photos
    for photos in (
        Photos("cifar10", {"train": 50_000, "test": 10_000}, 10, _cifar10),
        Photos("tinyimagenet100", {"train": 50_000, "val": 5_000}, 100, _tinyimagenet100),
    )
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.data.photos", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(SETS)}; default: all")
    parser.add_argument(
        "--to",
        type=Path,
        default=Path(os.environ.get("LOOKOUT_DATA", "data")),
        metavar="FOLDER",
        help="where the data sets go (default: $LOOKOUT_DATA, or data)",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FOLDER",
        help="unpack <FOLDER>/<name>.tar.xz instead of fetching",
    )
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in SETS]:
        parser.error(f"there is no data set {unknown[0]!r}; there are {', '.join(SETS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in given.names or SETS:
        try:
            log.info("%s", get(SETS[name], given.to, given.source))
        except FetchError as error:
            log.error("%s", error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
