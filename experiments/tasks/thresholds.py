"""Which samples of a scan count as suspects: a given number of them, or as many as an error rate allows.

Every rule follows the order of the scan's one score, so that it never removes a sample and keeps another that ranks
above it (samples known to be clean, which are always kept, apart).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detect.conformal import conformal, conformal_among, false_discoveries, interval

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

RULES = ("share", "count", "false_positives", "fdr")


@dataclass(frozen=True)
class Threshold:
    """Which samples count as suspects; exactly one of the first four is given, or none, for none of them.

    share: this share of the samples, the most suspicious.
    count: this number of them.
    false_positives: as many as can be removed while at most this share of the clean samples is expected to go.
    fdr: as many as can be removed while at most this share of the removed is expected to be clean.
    reference: a file that names samples known to be clean, by which the last two are calibrated: Parquet or CSV
        with a column `key` (and `shard`, if there are several of a key) or `id`, or a text file with one of either
        in each line. None: all samples are the reference, which bounds false_positives from above, and fdr is
        refused.
    cut: refused; it was a threshold on a score that did not follow the ranks.
    """

    share: float | None = None
    count: int | None = None
    false_positives: float | None = None
    fdr: float | None = None
    reference: str | None = None
    cut: float | None = None

    def __post_init__(self) -> None:
        if self.cut is not None:
            raise ValueError(
                f"task.remove.cut={self.cut} is no longer known, as z did not follow the ranks; use "
                "task.remove.false_positives, the share of the clean samples that may go"
            )
        given = [name for name in RULES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"task.remove needs exactly one of {', '.join(RULES)}, got {given}")
        for name in ("share", "false_positives", "fdr"):
            value = getattr(self, name)
            if value is not None and not (_number(value) and 0 < value < 1):
                raise ValueError(f"task.remove.{name} must lie in (0, 1), got {value!r}")
        count = self.count
        if count is not None and not (isinstance(count, int) and not isinstance(count, bool) and count >= 1):
            raise ValueError(f"task.remove.count must be a whole number of at least 1, got {count!r}")
        if self.fdr is not None and self.reference is None:
            raise ValueError("task.remove.fdr needs task.remove.reference, a file of samples known to be clean")
        if self.reference is not None:
            if self.fdr is None and self.false_positives is None:
                not_this = given[0] if given else "decisions alone"
                raise ValueError(f"task.remove.reference serves false_positives and fdr, not {not_this}")
            if not Path(self.reference).is_file():
                raise ValueError(f"task.remove.reference must be a file, but there is none at {self.reference!r}")
            self._check_size(len(Reference.read(Path(self.reference)).names), f"{self.reference} names")

    @property
    def given(self) -> bool:
        """Whether there is a rule; without one, no sample is a suspect."""
        return any(getattr(self, name) is not None for name in RULES)

    def suspects(self, table: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
        """(n,) bool; and `table` (n rows of a scan: score, rank, id, key, shard), with `p` by the reference, and
        `known_clean`: whether it names the sample.

        Raises ValueError for a count that leaves nothing, and for a reference that is too small for the rate.
        """
        n = len(table)
        if not self.given:
            return np.zeros(n, bool), table.assign(known_clean=False)
        if self.share is not None or self.count is not None:
            number = self.count if self.count is not None else round(self.share * n)  # type: ignore[operator]
            if number >= n:
                raise ValueError(f"task.remove ({self}) would remove {number:,} of {n:,} samples, and leave none")
            return table["rank"].to_numpy(np.int64) <= number, table.assign(known_clean=False)
        score = table["score"].to_numpy()
        clean = np.zeros(n, bool)
        if self.reference is None:
            p = conformal_among(score)
        else:
            clean = Reference.read(Path(self.reference)).rows(table)
            number = int(clean.sum())
            self._check_size(number, f"of those scanned {self.reference} names")
            self._say(number)
            p = conformal(score, score[clean])
        if self.fdr is None:
            removed = (p <= self.false_positives) & ~clean  # type: ignore[operator]
        else:
            removed = np.zeros(n, bool)
            removed[~clean] = false_discoveries(p[~clean], self.fdr)
        return removed, table.assign(p=p, known_clean=clean)

    def _check_size(self, number: int, of: str) -> None:
        """Refuse a reference so small that no p-value is as low as false_positives."""
        rate = self.false_positives
        least = 0 if rate is None else int(np.ceil(1 / rate - 1e-9)) - 1
        if number < least:
            raise ValueError(
                f"task.remove.false_positives={rate} needs at least {least:,} samples known to be clean, but {of} "
                f"{number:,}"
            )

    def _say(self, number: int) -> None:
        """How sure a calibration on this number of samples is."""
        rate = self.false_positives
        if rate is None:
            log.info("calibrated on %d samples known to be clean", number)
            return
        low, high = interval(number, rate)
        log.info(
            "calibrated on %d samples known to be clean: %.2g %% of the clean samples are expected to go, and "
            "with 95 %% probability %.2g to %.2g %%",
            number,
            100 * rate,
            100 * low,
            100 * high,
        )

    def __str__(self) -> str:
        if not self.given:
            return "no threshold"
        text = next(f"{name} = {getattr(self, name)}" for name in RULES if getattr(self, name) is not None)
        return text if self.reference is None else f"{text}, by {self.reference}"


@dataclass(frozen=True)
class Reference:
    """Samples known to be clean, as a file names them.

    on: the columns of a scan's table that `names` are of; None: keys or ids, whichever more of them are.
    """

    file: Path
    on: tuple[str, ...] | None
    names: frozenset[tuple[str, ...]]

    @classmethod
    def read(cls, file: Path) -> Reference:
        """Raises ValueError for a file that cannot be read or names nothing."""
        import pandas as pd

        on: tuple[str, ...] | None = None
        try:
            if file.suffix.lower() in (".parquet", ".pq"):
                table = pd.read_parquet(file)
            elif file.suffix.lower() == ".csv":
                table = pd.read_csv(file, dtype=str, keep_default_na=False)
            else:
                lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
                table = pd.DataFrame({"line": [line for line in lines if line]}, dtype=str)
        except (OSError, ValueError) as error:
            raise ValueError(f"task.remove.reference={file} cannot be read: {str(error).splitlines()[0]}") from None
        if "line" in table:
            columns = ["line"]
        elif "key" in table and table["key"].notna().any():
            columns = ["shard", "key"] if "shard" in table else ["key"]
        elif "id" in table:
            columns = ["id"]
        else:
            has = ", ".join(map(str, table))
            raise ValueError(f"task.remove.reference={file} must have a column key or id, but has {has}")
        if columns != ["line"]:
            on = tuple(columns)
        names = frozenset(table[columns].astype(str).itertuples(index=False, name=None))
        if not names:
            raise ValueError(f"task.remove.reference={file} names no sample")
        return cls(file, on, names)

    def rows(self, table: pd.DataFrame) -> np.ndarray:
        """(n,) bool: the rows of `table` (id, key, shard) that are named.

        A key of several samples names none of them unless its shard is given too. Raises ValueError if none is.
        """
        on = list(self.on or ["id"])
        if self.on is None:
            lines = {line for (line,) in self.names}
            of_keys = len(lines & set(table["key"].dropna().astype(str)))
            if of_keys and of_keys >= len(lines & set(table["id"].astype(str))):
                on = ["key"]
        given = table[on].astype(object).where(table[on].notna(), "").astype(str)
        found = np.array([name in self.names for name in given.itertuples(index=False, name=None)], bool)
        several = given.duplicated(keep=False).to_numpy() & found
        if several.any():
            log.warning(
                "%s: %d samples share their %s with others; none of them counts as known to be clean",
                self.file,
                several.sum(),
                " and ".join(on),
            )
        found &= ~several
        if not found.any():
            raise ValueError(f"task.remove.reference={self.file} names none of the {len(table):,} samples scanned")
        if (missing := len(self.names) - int(found.sum())) > 0:
            log.warning("%s: %d of its %d samples are not among those scanned", self.file, missing, len(self.names))
        return found


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
