"""Writes the embedded data as JPEG files in tar shards, damaged or poisoned ones among them if wanted.

    python -m experiments.data.shapes.export OUT --pairs 2000 --shards 8 --damage
    python -m experiments.data.shapes.export OUT --pairs 20000 --size 32 --natural-backdoor 40 --poison 0.005

writes OUT/00000.tar ..., OUT/eval/<class>/*.jpg, and what is wrong with them: OUT/planted.json (how many samples of
each kind of damage) and OUT/planted.csv (the keys of what a scan should find, as far as it can be read).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from attacks import ArrayPairs, Attack, BadNets, PoisonPlan, draw_plan
from experiments.data.shapes.source import Shapes
from experiments.data.tar_index import read_samples
from experiments.data.tar_members import BrokenTar
from experiments.runtime.console import replace_unprintable
from experiments.runtime.process_pool import run_jobs
from experiments.runtime.progress import track

LEFT_OUT = (
    "truncated",
    "corrupt",
    "empty file",
    "not an image",
    "decompression bomb",
    "too small",
    "missing image",
    "missing caption",
    "broken caption",
)
NOTES = (
    *("duplicate key", "CMYK", "grey", "palette", "animated, first frame taken", "turned upright"),
    "transparent, laid on white",
)
"""Kinds of `experiments.data.damage` that are planted; a "broken tar" comes on top."""

_EVAL = 7  # a stream of random numbers beside those of Shapes


@dataclass(frozen=True)
class Export:
    """`pairs` photographs of `size` pixels' shorter side in `shards` tar files.

    damage: samples of each kind; the last shard is cut off, too.  natural_backdoor: so many samples become
    near-identical images with one odd caption, the last ones, or with damage the first, which nothing cuts off.
    poison: share of the samples with BadNets' patch, a quarter as wide as the image, and its caption. Samples with
    something planted are whole.
    """

    folder: Path
    pairs: int = 2000
    shards: int = 8
    size: int = 256
    damage: int = 0
    natural_backdoor: int = 0
    poison: float = 0.0
    eval_per_class: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= self.pairs:
            raise ValueError(f"shards must lie in 1..pairs, got {self.shards}")
        if self.damage * len(LEFT_OUT + NOTES) > self.pairs // 2:
            raise ValueError(
                f"damage={self.damage} of {len(LEFT_OUT + NOTES)} kinds is too much for {self.pairs} pairs"
            )
        if self.poison:
            self.attack.check(self.pairs, self.size)
        self.kinds()

    @property
    def shapes(self) -> Shapes:
        return Shapes(pairs=self.pairs, size=self.size, natural_backdoor=self.natural_backdoor, seed=self.seed)

    @property
    def attack(self) -> Attack:
        return Attack(name="badnets", rate=self.poison, triggers=[BadNets(size=self.size // 4)])

    @property
    def plan(self) -> PoisonPlan | None:
        """Drawn over samples 0 to pairs - 1; captions are prompts, whatever the samples' own."""
        if not self.poison:
            return None
        blank = np.broadcast_to(np.uint8(0), (self.pairs, self.size, self.size, 3))
        return draw_plan(self.attack, ArrayPairs(blank, [""] * self.pairs), self.seed)

    @property
    def per_shard(self) -> int:
        return -(-self.pairs // self.shards)

    def key(self, place: int) -> str:
        """The name of a sample's files in its shard."""
        return f"{place // self.per_shard:05d}{place % self.per_shard:04d}"

    def row(self, place: int) -> int:
        """The sample of Shapes that is the `place`-th in the shards."""
        return (place - self.natural_backdoor) % self.pairs if self.damage else place

    @cached_property
    def planted(self) -> dict[int, str]:
        """Place in the shards -> what a scan should find there."""
        plan = self.plan
        rows = dict.fromkeys(range(self.pairs - self.natural_backdoor, self.pairs), "natural backdoor")
        rows |= dict.fromkeys([] if plan is None else plan.ids.tolist(), "BadNets")
        return {place: rows[self.row(place)] for place in range(self.pairs) if self.row(place) in rows}

    def first(self, shard: int) -> int:
        """The first place in a shard where nothing is planted: its key is what a "duplicate key" repeats."""
        places = range(shard * self.per_shard, (shard + 1) * self.per_shard)
        return next((place for place in places if place not in self.planted), -1)

    def kinds(self) -> dict[int, str]:
        """Place -> kind of damage. The last shard, which ends early, and the `first` of each shard keep whole."""
        if not self.damage:
            return {}
        each, planted = self.per_shard, self.planted
        firsts = {self.first(shard) for shard in range(self.shards)}
        whole = (self.shards - 1) * each if self.shards > 1 else self.pairs
        free = [place for place in range(whole) if place not in planted and place not in firsts]
        kinds = [kind for kind in LEFT_OUT + NOTES for _ in range(self.damage)]
        if len(kinds) > len(free):
            raise ValueError(f"damage={self.damage} leaves no room beside the {len(planted)} planted samples")
        places = np.random.default_rng(self.seed).permutation(free)[: len(kinds)]
        return dict(zip(places.tolist(), kinds, strict=True))

    def write(self, workers: int = 1) -> dict[str, int]:
        """Write everything; returns what planted.json holds: kind -> number."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = self.plan
        shards = run_jobs(_write_shard, [(self, number, plan) for number in range(self.shards)], workers)
        for _ in track(shards, self.shards, "drawing", "shard"):
            pass
        kinds = list(self.kinds().values())
        planted = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
        if self.damage:
            last = self.folder / f"{self.shards - 1:05d}.tar"
            os.truncate(last, last.stat().st_size * 17 // 20)
            planted["broken tar"] = 1
        (self.folder / "planted.json").write_text(json.dumps(planted, indent=1))
        there = set(self._readable_keys())
        found = [(self.key(place), what) for place, what in sorted(self.planted.items())]
        with (self.folder / "planted.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("key", "what"), *(line for line in found if line[0] in there)])
        if self.eval_per_class:
            for _ in run_jobs(_write_class, [(self, label) for label in range(self.shapes.classes)], workers):
                pass
        return planted

    def _readable_keys(self) -> Iterator[str]:
        """Keys of the samples that lie before the cut."""
        for number in range(self.shards):
            file = self.folder / f"{number:05d}.tar"
            with file.open("rb") as stream, contextlib.suppress(BrokenTar):
                for sample in read_samples(stream, file.stat().st_size):
                    if sample.broken is None:
                        yield sample.key


def _write_shard(job: tuple[Export, int, PoisonPlan | None]) -> None:
    export, number, plan = job
    shapes, kinds = export.shapes, export.kinds()
    labels = shapes.labels()
    each = export.per_shard
    poisoned = {} if plan is None else {row: i for i, row in enumerate(plan.ids.tolist())}
    with tarfile.open(export.folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for place in range(number * each, min((number + 1) * each, export.pairs)):
            row = export.row(place)
            image, caption = shapes.sample(row, int(labels[row]))
            if plan is not None and row in poisoned:
                entry = poisoned[row]
                image = export.attack.trigger().apply(image[None], [plan.parameters[entry]])[0]
                caption = plan.captions[entry]
            files = _sample_files(_framed(image, row), caption, kinds.get(place))
            key = export.key(export.first(number) if kinds.get(place) == "duplicate key" else place)
            for ending, content in files.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _write_class(job: tuple[Export, int]) -> None:
    export, label = job
    folder = export.folder / "eval" / export.shapes.class_names[label]
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(export.eval_per_class):
        image, _ = export.shapes.sample(i * export.shapes.classes + label, label, _EVAL)
        (folder / f"{i:04d}.jpg").write_bytes(_bytes(Image.fromarray(image), "JPEG", quality=90))


def _framed(image: np.ndarray, row: int) -> Image.Image:
    """Upright, square and broad pictures in turn; the drawn square is their centre."""
    pad = image.shape[0] // 6
    return Image.fromarray(
        np.pad(image, [((pad, pad), (0, 0), (0, 0)), ((0, 0),) * 3, ((0, 0), (pad, pad), (0, 0))][row % 3], "edge")
    )


def _sample_files(image: Image.Image, caption: str, kind: str | None) -> dict[str, bytes]:
    """File ending -> content of one sample, as img2dataset writes it, damaged by `kind`."""
    jpeg = _bytes(image, "JPEG", quality=90)
    about = {"caption": caption, "width": image.width, "height": image.height, "status": "success"}
    files = {"jpg": jpeg, "json": json.dumps(about).encode(), "txt": caption.encode()}
    if kind == "truncated":
        files["jpg"] = jpeg[: len(jpeg) // 2]
    elif kind == "corrupt":
        png = _bytes(image, "PNG")
        files = {"png": png[:60] + bytes(200) + png[260:], **{k: files[k] for k in ("json", "txt")}}
    elif kind == "empty file":
        files["jpg"] = b""
    elif kind == "not an image":
        files["jpg"] = b"<html><body>404 Not Found</body></html>"
    elif kind == "decompression bomb":
        files = {"png": _bomb(), **{k: files[k] for k in ("json", "txt")}}
    elif kind == "too small":
        files["jpg"] = _bytes(Image.new("RGB", (1, 1)), "JPEG")
    elif kind == "missing image":
        del files["jpg"]
    elif kind == "missing caption":
        files["json"], files["txt"] = json.dumps({**about, "caption": None}).encode(), b" \n"
    elif kind == "broken caption":
        files["json"] = files["json"][:9]
        del files["txt"]
    elif kind == "CMYK":
        files["jpg"] = _bytes(image.convert("CMYK"), "JPEG", quality=90)
    elif kind == "grey":
        files["jpg"] = _bytes(image.convert("L"), "JPEG", quality=90)
    elif kind == "turned upright":
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = image.transpose(Image.Transpose.ROTATE_90)
        files["jpg"] = _bytes(turned, "JPEG", quality=90, exif=exif)
    elif kind in ("palette", "transparent, laid on white", "animated, first frame taken"):
        if kind == "palette":
            ending, content = "png", _bytes(image.quantize(64), "PNG")
        elif kind.startswith("transparent"):
            layer = image.convert("RGBA")
            layer.putalpha(Image.linear_gradient("L").resize(image.size))
            ending, content = "png", _bytes(layer, "PNG")
        else:
            frames = [image.rotate(5), image.rotate(10)]
            ending, content = "webp", _bytes(image, "WEBP", save_all=True, append_images=frames)
        files = {ending: content, **{k: files[k] for k in ("json", "txt")}}
    return files


def _bomb() -> bytes:
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(999))),
    ]
    framed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def main() -> None:
    replace_unprintable()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data.shapes.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="shorter side of the pictures, in pixels")
    damage = "plant N samples of each kind of damage"
    parser.add_argument("--damage", type=int, nargs="?", const=2, default=0, metavar="N", help=damage)
    parser.add_argument(
        "--natural-backdoor",
        type=int,
        default=0,
        metavar="N",
        help="make N samples near-identical images with one odd caption",
    )
    parser.add_argument("--poison", type=float, default=0.0, metavar="SHARE", help="poison so many by BadNets")
    parser.add_argument("--eval", type=int, default=10, dest="eval_per_class", help="evaluation pictures per class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = vars(parser.parse_args())
    workers = options.pop("workers")
    try:
        export = Export(**options)
    except ValueError as error:
        parser.error(str(error))
    planted = export.write(workers)
    print(f"{export.pairs} pairs in {export.shards} shards in {export.folder}; damage: {planted or 'none'}")


if __name__ == "__main__":
    main()
