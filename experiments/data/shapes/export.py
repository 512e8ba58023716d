"""Writes the bundled data as JPEG files in tar shards, on request with damaged or poisoned samples among them.

    python -m experiments.data.shapes.export OUT --pairs 2000 --shards 8 --damage
    python -m experiments.data.shapes.export OUT --pairs 20000 --size 32 --natural-backdoor 40 --poison 0.005

writes OUT/00000.tar ..., OUT/eval/<class>/*.jpg, OUT/planted.json (the number of samples of each kind of damage)
and OUT/planted.csv (the keys of the readable samples that a scan should find).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from attacks import ArrayPairs, Attack, BadNets, PoisonPlan, draw_plan
from experiments.data.shapes.planted_damage import LEFT_OUT, NOTES, encoded, sample_files
from experiments.data.shapes.source import Shapes
from experiments.data.tar_index import read_samples
from experiments.data.tar_members import BrokenTar
from experiments.runtime.console import replace_unprintable
from experiments.runtime.process_pool import run_jobs
from experiments.runtime.progress import track

_EVAL = 7  # a stream of random numbers beside those of Shapes


@dataclass(frozen=True)
class Export:
    """`pairs` photographs of `size` pixels' shorter side in `shards` tar files.

    damage: number of samples of each kind; the end of the last shard is cut off, too.
    natural_backdoor: number of samples that become near-identical images with one odd caption: the last ones or,
        with damage, the first, because the last shard is cut off.
    poison: share of the samples that get BadNets' patch, a quarter as wide as the image, and its caption.
    Poisoned samples and those of the natural backdoor are never damaged.
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
                f"damage={self.damage} of {len(LEFT_OUT + NOTES)} kinds is more than half of the {self.pairs} pairs"
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
        """Place -> kind of damage; none in the last shard, which ends early, nor for the `first` of a shard."""
        if not self.damage:
            return {}
        each, planted = self.per_shard, self.planted
        firsts = {self.first(shard) for shard in range(self.shards)}
        whole = (self.shards - 1) * each if self.shards > 1 else self.pairs
        free = [place for place in range(whole) if place not in planted and place not in firsts]
        kinds = [kind for kind in LEFT_OUT + NOTES for _ in range(self.damage)]
        if len(kinds) > len(free):
            raise ValueError(
                f"damage={self.damage} needs {len(kinds)} samples, but beside the {len(planted)} planted ones only "
                f"{len(free)} are free"
            )
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
            files = sample_files(_framed(image, row), caption, kinds.get(place))
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
        (folder / f"{i:04d}.jpg").write_bytes(encoded(Image.fromarray(image), "JPEG", quality=90))


def _framed(image: np.ndarray, row: int) -> Image.Image:
    """Portrait, square and landscape images in turn; the drawn square is their centre."""
    pad = image.shape[0] // 6
    return Image.fromarray(
        np.pad(image, [((pad, pad), (0, 0), (0, 0)), ((0, 0),) * 3, ((0, 0), (pad, pad), (0, 0))][row % 3], "edge")
    )


def main() -> None:
    replace_unprintable()
    parser = argparse.ArgumentParser(
        prog="python -m experiments.data.shapes.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="shorter side of the images, in pixels")
    damage = "plant N samples of each kind of damage"
    parser.add_argument("--damage", type=int, nargs="?", const=2, default=0, metavar="N", help=damage)
    parser.add_argument(
        "--natural-backdoor",
        type=int,
        default=0,
        metavar="N",
        help="make N samples near-identical images with one odd caption",
    )
    parser.add_argument(
        "--poison", type=float, default=0.0, metavar="SHARE", help="share of the samples to poison by BadNets"
    )
    parser.add_argument("--eval", type=int, default=10, dest="eval_per_class", help="evaluation images per class")
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
