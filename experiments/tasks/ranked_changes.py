"""What alarming groups and a person's decisions change about the removal of samples that are ranked out of core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from experiments.data.unscored import SCORED
from experiments.tasks.cleaned_copy import KEPT, REMOVED, UNSCORED
from experiments.tasks.decisions import FINE, NAMES, POISON, Decisions
from experiments.tasks.ranking_work import Work, quoted

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Changes:
    """rows: (m,) in all parts.  gone: (m,) bool, whether each is removed, whatever its rank.

    decided: a row per sample that a person has decided about: id, key, shard, status, fate, decision and `by_rule`,
    whether it would be removed otherwise; None without decisions.
    """

    rows: np.ndarray
    gone: np.ndarray
    decided: pd.DataFrame | None


def changes_of(
    work: Work, decisions: Decisions | None, columns: Sequence[str], in_groups: np.ndarray, most: int
) -> Changes:
    """Of samples in groups (m,), and of decisions, which win.

    columns: of the parts.  most: samples that the threshold removes.  Raises ValueError for decisions that name no
    sample, or several.
    """
    gone = dict.fromkeys(in_groups.tolist(), True)
    decided = None
    if decisions is not None:
        decided = _samples(work, decisions, columns)
        decided = decisions.of(decided, int(work.begins[-1]))
        decided = decided[decided["decision"] != ""].reset_index(drop=True)
        scored = decided["rank"].notna()
        by_rule = (decided["rank"] <= most).fillna(False).astype(bool) | decided["row"].isin(in_groups)
        poison, fine = decided["decision"] == POISON, (decided["decision"] == FINE) & scored
        fate = np.where(scored, np.where(by_rule, REMOVED, KEPT), UNSCORED)
        decided = decided.assign(by_rule=by_rule, fate=np.where(poison, REMOVED, np.where(fine, KEPT, fate)))
        gone |= dict.fromkeys(decided["row"][poison & scored].tolist(), True)
        gone |= dict.fromkeys(decided["row"][fine].tolist(), False)
    return Changes(np.array(list(gone), np.int64), np.array(list(gone.values()), bool), decided)


def _samples(work: Work, decisions: Decisions, columns: Sequence[str]) -> pd.DataFrame:
    """The samples that the decisions may name, each name at most twice: row, id, key, shard, status, rank."""
    on = decisions.on
    if missing := [name for name in on if name not in columns]:
        raise ValueError(
            f"{decisions.option}={decisions.file} names samples by {missing[0]}, which the parts do not have"
        )
    names = decisions.rows[list(on)].drop_duplicates()
    for name in on:  # a cell of a CSV may have a ' before a text that begins like a formula
        raw = names.assign(**{name: names[name].str.removeprefix("'")})
        names = type(names)(np.concatenate([names, raw]), columns=names.columns).drop_duplicates()
    if on == ("id",):
        names = names[names["id"].str.fullmatch(r"-?\d{1,18}|-?[0-8]\d{18}")].astype(np.int64)
    work.give("names", **{name: names[name].tolist() for name in on})
    numbers = on == ("id",)
    same = " AND ".join(f"s.{name}{'' if numbers else '::VARCHAR'} = d.{name}" for name in on)
    own = [f"s.{quoted(name)}" if name in columns else f"NULL AS {name}" for name in NAMES]
    status = "s.status" if "status" in columns else f"'{SCORED}' AS status"
    window = ", ".join(f"d.{name}" for name in on)
    return work.frame(
        f"SELECT x.*, r.rank FROM (SELECT f.begin + s.file_row_number AS row, {', '.join([*own, status])} "
        f"FROM {work.source} s JOIN files f ON f.number = s.file_index JOIN names d ON {same} "
        f"QUALIFY row_number() OVER (PARTITION BY {window}) <= 2) x LEFT JOIN ranked r USING (row) ORDER BY x.row"
    ).drop_duplicates("row", ignore_index=True)
