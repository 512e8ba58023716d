"""`python -m analysis [table|figures|report|paper]`: from the store alone, in seconds, without torch or a
GPU.

table    the main table on the screen, and as CSV, Markdown and LaTeX, with the paper's numbers beside ours
figures  every figure whose cells exist, as PNG and PDF
report   one self-contained HTML page
paper    all of these

`python -m analysis export --help`: what a scan or a clean has found, in the forms of other tools.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.output_cache import OutputCache, store_state
from experiments.runtime.console import replace_unprintable

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from analysis.stored_cells import StoredCell


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m analysis`; returns the exit status."""
    replace_unprintable()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["export"]:
        from analysis import export

        return export.main(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    cache = OutputCache(options.out)
    whole = cache.digest(
        store_state(options.store), str(options.store), options.where, options.formats, options.scenes
    )
    before = cache.files(options.what, whole)
    if before and options.what != "table":  # a table is asked for to be read
        print(f"up to date: {options.store} holds nothing new since {options.what} was written to {options.out}")
        _say_where(before)
        return 0

    from analysis.stored_cells import read_cells

    where = dict(item.partition("=")[::2] for item in options.where)
    try:
        cells = read_cells(options.store, where)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if not cells:
        parser.error(f"no cells in {options.store}{' with ' + ' '.join(options.where) if where else ''}")
    cache.note(options.what, whole, _write(options, cells, cache))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ("table", "figures", "report", "paper")
    parser.add_argument("what", nargs="?", default="table", choices=choices, help="default: table")
    parser.add_argument("--store", default="store", type=Path, help="the stage store (default: store)")
    parser.add_argument("--out", default=Path("runs/analysis"), type=Path, help="default: runs/analysis")
    parser.add_argument("--formats", nargs="+", default=["png", "pdf"], help="of figures (default: png pdf)")
    parser.add_argument(
        "--where",
        nargs="+",
        default=[],
        metavar="COLUMN=VALUE",
        help="only cells whose row says so, such as attack=badnets seed=0",
    )
    parser.add_argument("--scenes", type=int, default=6, help="attack-and-seed views in the page (default: 6)")
    return parser


def _write(options: argparse.Namespace, cells: list[StoredCell], cache: OutputCache) -> list[Path]:
    """Write what was asked for; return its files."""
    from rich.console import Console

    from analysis.aggregate import aggregate, result_groups, usual
    from analysis.stored_cells import cell_frame

    console = Console() if sys.stdout.isatty() else Console(width=170)
    table = cell_frame(cells)
    failed = int((table["status"] != "ok").sum())
    console.print(f"{len(cells)} cells in {options.store}, {failed} failed", highlight=False)
    options.out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    summaries: dict[str, pd.DataFrame] = {}
    if options.what != "figures":
        summaries = {name: aggregate(usual(rows), cells) for name, rows in result_groups(table)}
    if options.what in ("table", "paper"):
        files += write_tables(table, summaries, options.out, console)
        files += _write_peers(options.store, summaries, options.out)
    if options.what in ("figures", "paper"):
        from analysis.figure_set import draw_all

        files += draw_all(table, cells, options.store, cache, options.formats, console)
    if options.what in ("report", "paper"):
        from analysis.pages.results import write_page

        page = write_page(table, cells, options.store, options.out / "report.html", options.scenes, summaries)
        console.print(f"page: {page} ({page.stat().st_size / 1e6:.1f} MB)", highlight=False)
        files.append(page)
    return files


def _say_where(files: Sequence[Path]) -> None:
    figures: dict[Path, int] = {}
    for file in files:
        if file.suffix in (".html", ".md"):
            print(f"  {file}")
        elif file.parent.name.startswith("figures_"):
            figures[file.parent] = figures.get(file.parent, 0) + 1
    for folder, count in figures.items():
        print(f"  {folder}: {count} files")


def write_tables(
    table: pd.DataFrame, summaries: Mapping[str, pd.DataFrame], out: Path, console: Console
) -> list[Path]:
    """`cells.csv`, a main table per result group, and the comparison with the paper."""
    from analysis import oracle_k, published, table_export
    from analysis.aggregate import result_groups
    from analysis.figure_set import stem
    from experiments.runtime.safe_text import csv_table

    files = [out / name for name in ("cells.csv", "beside_the_paper.csv", "beside_the_paper.md")]
    csv_table(table.drop(columns="place")).to_csv(files[0], index=False)
    for name, summary in summaries.items():
        title = f"Detection of backdoor samples ({name})"
        paths = table_export.write_tables(summary, out, f"main_table_{stem(name)}", title)
        console.print(table_export.console_table(summary, title))
        console.print("  ".join(str(path) for path in paths), style="dim", highlight=False)
        files += paths
    for name, rows in result_groups(table):
        files += oracle_k.write(rows, out, stem(name), f"Detectors against the oracle-chosen k ({name})")
    beside = published.side_by_side(dict(summaries))
    beside.to_csv(files[1], index=False)
    files[2].write_text(published.markdown(beside), encoding="utf-8")
    return files


def _write_peers(store: Path, summaries: Mapping[str, pd.DataFrame], out: Path) -> list[Path]:
    """Attacks, detectors and defences in one table, for each group that has defences."""
    from analysis import peers
    from analysis.figure_set import stem

    defences = peers.read_defences(store)
    written = [peers.write(summary, defences, out, stem(name), name) for name, summary in summaries.items()]
    return [file for files in written for file in files]


if __name__ == "__main__":
    sys.exit(main())
