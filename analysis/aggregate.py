"""Many cells -> the usual setting, one axis at a time, means over seeds and their intervals.

A store holds the cells of many sweeps side by side. The *usual* setting of an attack (rate, epochs, ...) and
of a detector (k, scope, ...) is the one that most cells share, the oldest one on a tie; the main table shows
the usual cells, and an ablation shows those that differ from the usual ones along one axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.stored_cells import SETTINGS_DIGESTS, StoredCell
from analysis.style import CONTROL_ATTACKS, CONTROLS, attack_label, attack_order, detector_order
from analysis.tables import MEASURES, SUCCEEDED_AT

if TYPE_CHECKING:
    import pandas as pd

GROUP_COLUMNS = ("scale", "data", "test_set", "model")  # cells that differ in these never stand in one table
OF_ATTACK = ("rate", "n", "epochs", "captions", "target", "data_variant", "attack_variant", "train_variant")
OF_DETECTOR = ("k", "scope", "scope_size", "modality", "convention", "detector_variant")


def result_groups(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split cells by scale, data set and model: (name, rows), in order of the first cell."""
    columns = [column for column in GROUP_COLUMNS if column in table]
    if table.empty or not columns:
        return [("all", table)]
    groups = table.groupby(columns, sort=False, dropna=False)
    return [(group_name(dict(zip(columns, key, strict=True))), rows) for key, rows in groups]


def group_name(parts: Mapping[str, Any]) -> str:
    """`demo shapes small`; the evaluation set is named where the data did not bring it along."""
    known = [
        str(part) for column, part in parts.items() if part == part and (column, part) != ("test_set", "builtin")
    ]
    return " ".join(known)


def usual(table: pd.DataFrame, free: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of the usual setting; the columns in `free` may take any value.

    The usual value is chosen column after column, among the rows that the columns before have left.
    """
    for owner, columns in (("case", OF_ATTACK), ("detector", OF_DETECTOR)):
        for column in columns:
            if column in free or column not in table or table[column].nunique(dropna=True) < 2:
                continue
            wanted = table[owner].map(_commonest(table, owner, column))
            # A failed cell may not know all of its setting.
            table = table[(table[column] == wanted) | table[column].isna()]
    return latest(table)


def latest(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each cell: the latest of equal cells, and no failure if a later run succeeded.

    A failed cell does not know the digests of its stages, so it is compared without them.
    """
    say = [
        c for c in (*GROUP_COLUMNS, "case", *OF_ATTACK, "detector", "normalise", *OF_DETECTOR, "seed") if c in table
    ]
    known = [column for column in say if column not in SETTINGS_DIGESTS]
    text = table[say].astype(str)
    done = table["status"] == "ok"
    succeeded = set(text.loc[done, known].itertuples(index=False, name=None))
    void = [row in succeeded for row in text[known].itertuples(index=False, name=None)]
    return table[~text.duplicated(keep="last") & (done | ~np.array(void, bool))]


def _commonest(table: pd.DataFrame, owner: str, column: str) -> dict[str, Any]:
    """For each owner (case or detector) the value with the most distinct (case, detector, seed); the first of
    equals.
    """
    distinct = table[["case", "detector", "seed", column]].drop_duplicates()
    counts = distinct.groupby([owner, column], sort=False, dropna=False).size()
    return dict(list(counts.groupby(level=0, sort=False).idxmax()))


def along(table: pd.DataFrame, *axes: str) -> pd.DataFrame:
    """The rows that differ from the usual setting along `axes` only; empty unless each axis has two values.

    Attacks and detectors with only one value are left out.
    """
    if any(axis not in table for axis in axes):
        return table.iloc[:0]
    rows = usual(table, free=axes)
    for axis in axes:
        values = rows[rows[axis].notna()].groupby(["case", "detector"])[axis].transform("nunique")
        rows = rows.loc[values[values > 1].index] if len(values) else rows.iloc[:0]
    return rows


@dataclass(frozen=True)
class Interval:
    """A bootstrap confidence interval of a mean AUROC."""

    low: float
    high: float


def bootstrap_auroc(cells: Sequence[StoredCell], draws: int = 1000, seed: int = 0) -> Interval | None:
    """95 % interval of the AUROC's mean over the given cells (seeds), from resampled samples.

    The AUROC is the mean over poisons of the share of clean samples below them (Mann and Whitney). Poisons
    are resampled with replacement. The many clean samples enter through the normal limit of their own
    bootstrap (variance of their placements / their number, as in DeLong et al. 1988), since they add little.
    It holds the trained models fixed: how much training varies is what the standard deviation over seeds
    says.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros(draws)
    for cell in cells:
        scores, is_poison = cell.scores, cell.is_poison
        if scores is None or not is_poison.any() or is_poison.all():
            return None
        clean, poison = np.sort(scores[~is_poison]), np.sort(scores[is_poison])
        of_poison = _share_below(clean, poison)
        of_clean = 1 - _share_below(poison, clean)
        sampled = of_poison[rng.integers(0, len(poison), (draws, len(poison)))].mean(1)
        means += sampled + rng.normal(0, of_clean.std() / np.sqrt(len(clean)), draws)
    low, high = np.quantile(means / len(cells), (0.025, 0.975))
    return Interval(float(max(low, 0)), float(min(high, 1)))


def _share_below(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each value the share of `ordered` (sorted) below it, ties counting half."""
    below, upto = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return (below + upto) / (2 * len(ordered))


def aggregate(table: pd.DataFrame, cells: Sequence[StoredCell]) -> pd.DataFrame:
    """A row per attack, detector and normalised or raw: mean and standard deviation over seeds, and the
    interval.

    Failed and missing cells stay as rows with their state in `status`: `ok`, `failed`, `missing`, or `partly`
    (some seeds failed). The standard deviation is that of a sample (n - 1), empty for a single seed.
    """
    import pandas as pd

    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    records: list[dict[str, Any]] = table.astype(object).to_dict("records")  # type: ignore[assignment]
    for record in records:
        groups.setdefault((record["case"], record["detector"], _side(record["normalise"])), []).append(record)
    told = (*GROUP_COLUMNS, "test_set", *OF_ATTACK, *OF_DETECTOR, "n_poison")
    shared = [column for column in told if column in table]
    rows = []
    sides = table.drop_duplicates(["detector", "normalise"])[["detector", "normalise"]]
    sides = sides.sort_values("detector", key=lambda names: names.map(detector_order), kind="stable")
    for case_name in sorted(table["case"].drop_duplicates(), key=case_order):
        learned = table[table["case"] == case_name].drop_duplicates("seed")
        asr, zero_shot = learned["asr"].mean(), learned["zero_shot_top1"].mean()
        for detector, normalise in sides.itertuples(index=False):
            same = groups.get((case_name, detector, _side(normalise)), [])
            done = [record for record in same if record["status"] == "ok"]
            state = "ok" if len(done) == len(same) else "partly"
            if not done:
                state = "failed" if same else "missing"
            row: dict[str, Any] = {
                "case": case_name,
                "attack": case_name.partition("@")[0],
                "detector": detector,
                "normalise": normalise,
                "seeds": len(done),
                "status": state,
                "error": "; ".join(sorted({str(record["error"]) for record in same if record["error"]})),
                "zero_shot_top1": zero_shot,
                "asr": asr,
                "attack_succeeded": bool(asr >= SUCCEEDED_AT) if asr == asr else None,
                "control": is_control_case(case_name) or detector in CONTROLS,
            }
            for column in shared:
                if len({record[column] for record in same if not pd.isna(record[column])}) == 1:
                    row[column] = same[0][column]
            for measure in (*MEASURES, "seconds", "memory_mb"):
                row[measure], row[f"{measure}_std"] = _mean_and_std([record[measure] for record in done])
            interval = bootstrap_auroc([cells[record["place"]] for record in done]) if done else None
            row["auroc_low"], row["auroc_high"] = (interval.low, interval.high) if interval else (np.nan, np.nan)
            rows.append(row)
    return pd.DataFrame(rows)


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of the known values; NaN without a value, or for the deviation of one."""
    known = np.array([value for value in values if value == value], float)
    return (
        float(known.mean()) if len(known) else np.nan,
        float(known.std(ddof=1)) if len(known) > 1 else np.nan,
    )


def is_control_case(name: str) -> bool:
    """Whether a case is a control: no real attack, or a clean model's view of one."""
    return name.endswith("@clean") or name in CONTROL_ATTACKS


def case_order(name: str) -> tuple[bool, int, str]:
    """Sorting key of cases: attacks in the house's order, then controls."""
    return is_control_case(name), attack_order(name.partition("@")[0]), name


def case_label(name: str) -> str:
    attack, _, clean = name.partition("@")
    return attack_label(attack) + (", clean model" if clean else "")


def _side(normalise: Any) -> str:
    """`None` and NaN are one: a detector that does not depend on the norm."""
    return "either" if normalise is None or normalise != normalise else str(bool(normalise))
