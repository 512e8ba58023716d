"""What a person has decided about samples: *poison*, *fine* or *unsure*, as the suspects page writes them to a CSV.

A decision wins over a threshold: *poison* is removed and *fine* is kept, wherever they rank. *Unsure* follows the
threshold. Samples are named by `id`, or by `key` (with `shard`, if there are several of a key). A key or shard
beside the id must be the sample's, so that a file of other data is refused; it may be empty.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.data.unscored import SCORED
from experiments.runtime.safe_text import csv_cell, printable
from experiments.tasks.cleaned_copy import KEPT, REMOVED

if TYPE_CHECKING:
    import pandas as pd

POISON, FINE, UNSURE = "poison", "fine", "unsure"
CHOICES = (POISON, FINE, UNSURE)
MOST_BYTES = 1 << 30
NAMES = ("id", "shard", "key")
OTHER_DATA = "was it decided on other data?"


@dataclass(frozen=True)
class Decisions:
    """on: the columns that tell samples apart, of `id`, or `shard` and `key`, or `key`.

    rows: a row per sample, text only: `on`, what else names it, decision, note ("" for none).
    option: which named the file, for messages.
    """

    file: Path
    on: tuple[str, ...]
    rows: pd.DataFrame
    option: str = "task.decisions"

    @classmethod
    def read(cls, path: str, option: str = "task.decisions") -> Decisions:
        """Raises ValueError for a file that cannot be read, an unknown decision, or two that contradict."""
        import pandas as pd

        file = Path(path)
        if not file.is_file():
            raise ValueError(f"{option} must be a CSV file, but there is none at {path!r}")
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"{option}={file} must be smaller than 1 GiB, got {file.stat().st_size:,} bytes")
        try:
            rows = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{option}={file} cannot be read: {str(error).splitlines()[0]}") from None
        rows = rows.rename(columns=lambda name: str(name).strip())
        on = next((names for names in (("id",), ("shard", "key"), ("key",)) if {*names} <= {*rows}), None)
        if on is None or "decision" not in rows:
            has = ", ".join(printable(name) for name in rows)
            raise ValueError(f"{option}={file} must have the columns id or key, and decision, but has {has}")
        if rows.empty:
            raise ValueError(f"{option}={file} holds no decision")
        rows = rows[[name for name in (*NAMES, "decision", "note") if name in rows]]
        for name in [name for name in NAMES if name in rows]:
            rows[name] = rows[name].str.strip().map(csv_cell)
        rows["decision"] = rows["decision"].str.strip().str.lower()
        if "note" not in rows:
            rows["note"] = ""
        found = cls(file, on, rows, option)
        found._check_choices()
        return cls(file, on, found._once(), option)

    def _name(self, place: int) -> str:
        """A row's sample, in words."""
        return " ".join(f"{name} {printable(self.rows[name].iloc[place])!r}" for name in self.on)

    def _refuse(self, wrong: np.ndarray, what: str, rule: str) -> None:
        """One line that names the first of the rows `wrong` (n,) bool and their number, if there are any."""
        if wrong.any():
            first, number = self._name(int(wrong.argmax())), int(wrong.sum())
            of_them = f" (and {number - 1:,} more)" if number > 1 else ""
            raise ValueError(f"{self.option}={self.file}: {first}{of_them} {what}; {rule}")

    def _check_choices(self) -> None:
        unknown = ~self.rows["decision"].isin(CHOICES).to_numpy()
        given = printable(self.rows["decision"].iloc[int(unknown.argmax())])
        self._refuse(unknown, f"has the decision {given!r}", f"it must be one of {', '.join(CHOICES)}")

    def _once(self) -> pd.DataFrame:
        """Each sample once."""
        names, decision = list(self.on), self.rows["decision"]
        first = self.rows.groupby(names, sort=False)["decision"].transform("first")
        self._refuse((decision != first).to_numpy(), "is decided in two ways", "keep one of the rows")
        return self.rows.drop_duplicates(self._named()).reset_index(drop=True)

    @property
    def digest(self) -> str:
        """Of which sample is decided how, in whatever order; notes are not part of it."""
        columns = [*self.on, "decision"]
        rows = self.rows[columns].sort_values(columns)
        return hashlib.sha256(rows.to_csv(index=False).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    @property
    def counts(self) -> dict[str, int]:
        """Decision -> number of samples."""
        return {name: int((self.rows["decision"] == name).sum()) for name in CHOICES}

    def of(self, samples: pd.DataFrame, total: int | None = None) -> pd.DataFrame:
        """`samples` (a row each: id, key, shard) with the columns `decision` and `note`, "" where there is none.

        total: how many samples there are, if `samples` are only those that the file may name.
        Raises ValueError for names of no sample or of several, and for a key or shard that is not the id's.
        """
        rows = self._places(samples, len(samples) if total is None else total)
        for name in [name for name in self._named() if name not in self.on]:
            has = _texts(samples.iloc[rows], name)
            differs = ((has != self.rows[name]) & (self.rows[name] != "")).to_numpy()
            at = int(differs.argmax())
            what = f"has the {name} {printable(has[at])!r}, not {printable(self.rows[name][at])!r}"
            self._refuse(differs, what, OTHER_DATA)
        columns = {name: np.full(len(samples), "", object) for name in ("decision", "note")}
        for name, column in columns.items():
            column[rows] = self.rows[name].to_numpy()
        return samples.assign(**columns)

    def overrule(self, fates: pd.DataFrame) -> pd.DataFrame:
        """`fates` as a person has decided, with the columns decision, note and `by_rule`: removed without them.

        fates: a row per sample: id, shard, key, status, known_clean, fate. Poison is removed, scored or not. Fine
        is kept if it has a score. Raises ValueError for names that `of` refuses, for poison that is known to be
        clean, and if no sample would be left.
        """
        fates = self.of(fates.assign(by_rule=fates["fate"] == REMOVED))
        poison, fine = (fates["decision"] == name for name in (POISON, FINE))
        both = fates[poison & fates["known_clean"].fillna(False).astype(bool)]
        if len(both):
            raise ValueError(
                f"{self.option}={self.file} names {len(both):,} samples as poison that task.remove.reference "
                f"names as known to be clean, such as id {both['id'].iloc[0]}"
            )
        fate = fates["fate"].mask(poison, REMOVED).mask(fine & (fates["status"] == SCORED), KEPT)
        if not (fate == KEPT).any():
            raise ValueError(
                f"{self.option}={self.file} would remove all samples that have a score, and leave none"
            )
        return fates.assign(fate=fate)

    def _places(self, samples: pd.DataFrame, total: int) -> np.ndarray:
        """The row of `samples` that each decision names; ValueError if it is none, or several."""
        import pandas as pd

        names = list(self.on)
        if names == ["id"]:
            every, wanted = samples["id"].astype(str), self.rows["id"]
        else:
            every, wanted = (
                pd.Series(list(zip(*(column(table, name) for name in names), strict=True)))
                for table, column in ((samples, _texts), (self.rows, lambda rows, name: rows[name]))
            )
        several = wanted.isin(every[every.duplicated(keep=False)]).to_numpy()
        self._refuse(several, "names several samples", "name it by its shard too, or by its id")
        kept = np.flatnonzero(~every.duplicated().to_numpy())
        place = pd.Index(every.to_numpy()[kept], tupleize_cols=False).get_indexer(
            pd.Index(wanted, tupleize_cols=False)
        )
        self._refuse(place < 0, f"is none of the {total:,} samples", OTHER_DATA)
        return kept[place]

    def _named(self) -> list[str]:
        return [name for name in NAMES if name in self.rows]


def decided_lines(fates: pd.DataFrame, keep_unscored: bool) -> list[str]:
    """Lines of a summary on the samples that a person has decided about; fates: see `Decisions.overrule`."""
    scored, gone = fates["status"] == SCORED, fates["fate"] == REMOVED
    number = {name: int((fates["decision"] == name).sum()) for name in CHOICES}
    alone = int((gone & scored & ~fates["by_rule"]).sum())
    spared = int((fates["by_rule"] & ~gone).sum())
    lines = [
        "",
        f"Decided by a person: {number[POISON]:,} poison, removed ({alone:,} of them for this reason alone); "
        f"{number[FINE]:,} fine, kept ({spared:,} of them suspects otherwise); {number[UNSURE]:,} unsure, as the "
        "threshold says.",
    ]
    unscored = {name: int(((fates["decision"] == name) & ~scored).sum()) for name in (POISON, FINE)}
    if unscored[POISON]:
        lines += ["", f"{unscored[POISON]:,} of the poison have no score."]
    if unscored[FINE] and not keep_unscored:
        lines += ["", f"**{unscored[FINE]:,} of the fine have no score, and are dropped all the same.**"]
    return lines


def _texts(samples: pd.DataFrame, name: str) -> pd.Series:
    """A column as the CSV holds it, numbered from 0; "" where it is unknown."""
    column = samples[name].astype(object)
    return column.where(column.notna(), "").astype(str).map(csv_cell).reset_index(drop=True)
