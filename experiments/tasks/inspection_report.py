"""What an inspection leaves: its verdict, a table of all classes, and a picture of the inverted triggers."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.markdown import markdown_table, shortened
from experiments.clip.inversion import InvertedTrigger, to_bytes
from experiments.clip.warp_inversion import InvertedWarp
from experiments.runtime.safe_text import csv_cell, printable
from experiments.tasks.outlier_test import Verdict

SHOWN = 10  # classes in the summary; all are in classes.csv
TILES = 60  # in the picture
TILE, LABEL = 96, 30  # pixels of a tile, and of the two lines below it

MISSES = (
    "A mask finds patches and other local triggers, a warp finds smooth warps. Both may miss triggers that change "
    "the whole image in another way (blended, SIG, Nashville), triggers for single images, targets that are not "
    "among the classes, and captions that were poisoned without a trigger. No alarm does not prove that a model is "
    "clean."
)

ALONE = (
    "Without a clean model to compare with, the test is weak, as classes differ by nature: give task.references, "
    "two or more clean models."
)


@dataclass(frozen=True)
class Inspection:
    """names, triggers: of the classes, in order.  references: number of clean models they were compared with.
    metadata: what the row says of the model; `backdoored` is what an experiment has planted (None: not known).
    warps, warp_verdict: the same by warps; none and None if they were not inverted.
    """

    names: Sequence[str]
    triggers: Sequence[InvertedTrigger]
    verdict: Verdict
    references: int
    metadata: Mapping[str, Any]
    warps: Sequence[InvertedWarp] = ()
    warp_verdict: Verdict | None = None

    @property
    def by_mask(self) -> bool:
        """Whether masks raise an alarm."""
        return self.verdict.alarm and not self.undecided

    @property
    def by_warp(self) -> bool:
        """Whether warps raise an alarm."""
        return self.warp_verdict is not None and self.warp_verdict.alarm

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        verdict, name = self.verdict, printable(self.names[self.verdict.smallest])
        trigger = self.triggers[verdict.smallest]
        if self.by_warp and not self.by_mask:
            return f"backdoored: {self._warp_sentence}"
        z = f"z {verdict.z[verdict.smallest]:.1f}, threshold {verdict.threshold:.1f}, p {verdict.p:.2g}"
        size = f"{100 * trigger.area:.1f} % of the image sends {100 * trigger.success:.0f} % of images there"
        if self.undecided:
            return (
                f"undecided: a trigger was found for {self.reached} of {len(self.names)} classes only; raise "
                "task.steps, or lower task.success"
            )
        if self.by_mask:
            return f"backdoored: the mask of {name!r} is too small for chance ({z}); {size}"
        said = f"no alarm: no mask is too small for chance; the smallest is that of {name!r} ({z}); {size}"
        return said if self.warp_verdict is None else f"{said}; {self._warp_sentence}"

    @property
    def _warp_sentence(self) -> str:
        assert self.warp_verdict is not None
        verdict = self.warp_verdict
        z = f"z {verdict.z[verdict.smallest]:.1f}, threshold {verdict.threshold:.1f}, p {verdict.p:.2g}"
        share = f"sends {100 * self.warps[verdict.smallest].success:.0f} % of images there"
        name = repr(printable(self.names[verdict.smallest]))
        near = "comes too near for chance" if verdict.alarm else "comes nearest"
        return f"of the warps, that of {name} {near} ({z}) and {share}"

    @property
    def reached(self) -> int:
        """Classes for which a trigger was found."""
        return sum(trigger.reached for trigger in self.triggers)

    @property
    def undecided(self) -> bool:
        """Whether most classes have no trigger, so that the masks have no spread to compare with."""
        return self.reached <= len(self.names) / 2

    @property
    def row(self) -> dict[str, Any]:
        """The row of results.csv; `smallest`, z and p are of the test that decides, named in `by`."""
        verdict = self.verdict
        if self.warp_verdict is not None and self.by_warp and not self.by_mask:
            verdict = self.warp_verdict
        alarm = self.by_mask or self.by_warp
        trigger = self.triggers[verdict.smallest]
        row = {"mask_p": self.verdict.p}
        if self.warp_verdict is not None:
            row |= {"warp_p": self.warp_verdict.p}
        return {
            **self.metadata,
            "verdict": "backdoored" if alarm else "undecided" if self.undecided else "no alarm",
            "by": "mask" if verdict is self.verdict else "warp",
            "smallest": self.names[verdict.smallest],
            "z": float(verdict.z[verdict.smallest]),
            "threshold": verdict.threshold,
            "p": verdict.p,
            "false_alarms": verdict.rate * (1 if self.warp_verdict is None else 2),
            "area": trigger.area,
            "success": trigger.success,
            "classes": len(self.names),
            "references": self.references,
            **row,
        }

    def write(self, folder: Path) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """summary.md, classes.csv, triggers.png and triggers.npz; what to print, and the row of results.csv."""
        order = np.argsort(-self.verdict.z, kind="stable")
        self._write_classes(folder / "classes.csv", order)
        np.savez(
            folder / "triggers.npz",
            names=np.array([str(name) for name in self.names]),
            mask=np.stack([trigger.mask for trigger in self.triggers]),
            pattern=np.stack([trigger.pattern for trigger in self.triggers]),
        )
        self._picture(folder / "triggers.png", order[:TILES])
        text = self._summary(order)
        (folder / "summary.md").write_text(text, encoding="utf-8")
        return text, [self.row]

    def _rows(self, order: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "class": self.names[i],
                "z": float(self.verdict.z[i]),
                "area": self.triggers[i].area,
                "success": self.triggers[i].success,
                "before": self.triggers[i].before,
                "reached": self.triggers[i].reached,
            }
            | self._warp_cells(i)
            for i in order
        ]

    def _warp_cells(self, i: int) -> dict[str, float]:
        if self.warp_verdict is None:
            return {}
        return {"warp_z": float(self.warp_verdict.z[i]), "warp_margin": self.warps[i].margin}

    def _write_classes(self, file: Path, order: np.ndarray) -> None:
        rows = self._rows(order)
        with open(file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows({column: csv_cell(value) for column, value in row.items()} for row in rows)

    def _summary(self, order: np.ndarray) -> str:
        rate, count = self.verdict.rate, len(self.names)
        compared = (
            f"each with its mean size in {self.references} clean models" if self.references else "with each other"
        )
        failed = count - self.reached
        cells = [
            [
                shortened(str(row["class"]), 40),
                f"{row['z']:.2f}",
                f"{100 * row['area']:.2f} %" if row["reached"] else "none found",
                f"{row['success']:.3f}",
                f"{row['before']:.3f}",
            ]
            for row in self._rows(order[:SHOWN])
        ]
        lines = [
            "# Is this model backdoored?",
            "",
            f"**{self.sentence[:1].upper()}{self.sentence[1:]}.**",
            "",
            f"A trigger was inverted for each of {count} classes, and the logarithms of the masks' sizes were "
            f"compared {compared}. If these values are normal, {100 * rate:g} % of clean models raise an alarm.",
            *([self._warp_line] if self.warp_verdict is not None else []),
            *([ALONE] if not self.references else []),
            *([f"For {failed} classes no trigger was found; they count as the whole image."] if failed else []),
            "",
            *markdown_table(["class", "z", "mask", "success", "before"], cells),
            "",
            MISSES,
            "",
            "triggers.png: the inverted triggers, the most suspicious first; classes.csv: all classes; "
            "triggers.npz: masks and patterns.",
        ]
        return "\n".join(lines) + "\n"

    @property
    def _warp_line(self) -> str:
        assert self.warp_verdict is not None
        return f"Likewise the mean margins of the warped images, with the same rate: {self._warp_sentence}."

    def _picture(self, file: Path, order: np.ndarray) -> None:
        """Mask times pattern of each class, the most suspicious first; an alarm has a red frame."""
        from PIL import Image, ImageDraw

        columns = min(10, len(order))
        lines = -(-len(order) // columns)
        wide, high = TILE + 10, TILE + LABEL + 10
        page = Image.new("RGB", (columns * wide, lines * high), "white")
        draw = ImageDraw.Draw(page)
        for place, i in enumerate(order):
            x, y = place % columns * wide + 5, place // columns * high + 5
            trigger = self.triggers[i]
            tile = Image.fromarray(to_bytes(trigger.mask[:, :, None] * trigger.pattern))
            page.paste(tile.resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
            alarm = self.verdict.alarm and not self.undecided and i == self.verdict.smallest
            if alarm:
                draw.rectangle((x - 3, y - 3, x + TILE + 2, y + TILE + 2), outline="red", width=3)
            label = (
                f"{shortened(printable(self.names[i]), 16)}\n{100 * trigger.area:.1f} %  z {self.verdict.z[i]:.1f}"
            )
            plain = label.encode("latin-1", "replace").decode("latin-1")  # what PIL's own font can draw
            draw.multiline_text((x, y + TILE + 4), plain, fill="red" if alarm else "black")
        page.save(file)
