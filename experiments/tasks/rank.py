"""Rank the parts of a scan that are too many for one machine's memory: `python -m experiments.tasks.rank`.

    python -m experiments.tasks.rank runs/*/part-*.parquet --remove share=0.01 --out ranked

The files are those that `task=scan task.part=...` leaves in its run's folder, or other Parquet files with a column
for each detector, such as `python -m detect --out scores.parquet` writes. Needs the extra `scale` (DuckDB).
"""

from __future__ import annotations

import argparse
import glob
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.runtime import refusals
from experiments.runtime.safe_text import printable
from experiments.tasks.decisions import Decisions
from experiments.tasks.ranked_report import write_report
from experiments.tasks.ranking import Ranking
from experiments.tasks.scan import Scan
from experiments.tasks.thresholds import Threshold

RULES = {"share": float, "count": int, "false_positives": float}
NO_SCORE = {"id", "row", "rank", "p", "score", "share", "group", "width", "height"}
"""Columns of numbers that are no detector's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry; the exit status. Bad input ends with status 2 and a line that names it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        files = expanded(options.files)
        columns, detectors = common_columns(files)
        by = Scan(rank_by=options.rank_by).ranking(detectors)
        ranking = Ranking(
            files,
            columns,
            by,
            threshold(options.remove, options.decisions is not None),
            options.top,
            options.memory_mb,
            options.threads,
            None if options.decisions is None else Decisions.read(options.decisions, "--decisions"),
            not options.keep_groups,
        )
        if options.gallery < 1:
            raise ValueError(f"--gallery must be at least 1, got {options.gallery}")
        ranked = ranking.write(options.out)
        text = write_report(ranking, ranked, detectors, options.out, options.gallery)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        if (status := refusals.status(error)) is None:
            raise
        print(f"{parser.prog}: error: {printable(refusals.line(error))}", file=sys.stderr)
        return status
    print(text, end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tasks.rank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", help="Parquet files, or patterns of them")
    parser.add_argument("--remove", help="share=0.01, count=1000 or false_positives=0.01")
    parser.add_argument("--decisions", help="CSV that suspects.html exports; it wins over the threshold")
    parser.add_argument("--keep-groups", action="store_true", help="do not remove alarming groups")
    parser.add_argument(
        "--rank-by", default="density", help="density (multiscale, or the mean rank of slof, lof, dao) or a column"
    )
    parser.add_argument("--gallery", type=int, default=120, help="suspects on the page (120)")
    parser.add_argument("--top", type=int, default=2000, help="suspects written with all columns (2000)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--memory-mb", type=int, default=2000, help="bound on the memory of the engine (2000)")
    parser.add_argument("--threads", type=int, help="threads of the engine (the number of cores)")
    return parser


def threshold(text: str | None, decided: bool = False) -> Threshold:
    """`share=0.01` -> the rule, None -> no rule, if there are decisions; ValueError names the ones there are."""
    if text is None:
        if not decided:
            raise ValueError(f"give --remove ({', '.join(f'{rule}=...' for rule in RULES)}), --decisions, or both")
        return Threshold()
    name, _, value = text.partition("=")
    if name not in RULES:
        raise ValueError(f"--remove must be one of {', '.join(f'{rule}=...' for rule in RULES)}, got {text!r}")
    try:
        number = RULES[name](value)
    except ValueError:
        raise ValueError(f"--remove {name}= must be a number, got {value!r}") from None
    return Threshold(**{name: number})


def expanded(patterns: Sequence[str]) -> list[Path]:
    """The files of all patterns, in order; ValueError for one that names nothing, or a file named twice."""
    files: list[Path] = []
    for pattern in patterns:
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise ValueError(f"there is no file {pattern}")
        files += map(Path, found)
    twice = [str(file) for file, times in Counter(file.resolve() for file in files).items() if times > 1]
    if twice:
        raise ValueError(f"each part must be given once, but {twice[0]} is given twice")
    if odd := [str(file) for file in files if not file.is_file() or glob.has_magic(str(file))]:
        raise ValueError(f"parts must be files without any of * ? [ in their names, got {odd[0]}")
    return files


def common_columns(files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """The columns that all files have, and those of them that hold a detector's scores.

    ValueError for a file that is no Parquet file, or lacks scores that the first one has.
    """
    from pyarrow import ArrowException, types
    from pyarrow.parquet import read_schema

    columns: list[str] = []
    detectors: list[str] = []
    for file in files:
        try:
            schema = read_schema(file)
        except (ArrowException, OSError) as error:
            raise ValueError(f"{file} is no Parquet file: {str(error).splitlines()[0]}") from None
        names = list(schema.names)
        scores = [field.name for field in schema if types.is_floating(field.type) and field.name not in NO_SCORE]
        if file == files[0]:
            columns, detectors = names, scores
        if missing := [name for name in detectors if name not in scores]:
            raise ValueError(f"all parts need the same scores, but {file} has no {missing[0]}, as {files[0]} has")
        columns = [name for name in columns if name in names]
    return columns, detectors


if __name__ == "__main__":
    sys.exit(main())
