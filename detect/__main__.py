"""Rank samples by embeddings that lie in files: `python -m detect img_emb/ --out scores.csv`.

For embeddings that exist already, such as clip-retrieval's or LAION's folders of `img_emb_<n>.npy`: keys, URLs
and captions come from `metadata/metadata_<n>.parquet` beside them. Parquet files have a column of vectors. No
model, no images, no labels: the order is that of Pursuit, or the mean of the ranks that the chosen detectors give.
Integers, such as quantised embeddings, are taken as they are. More than --part-rows rows are scored part by part.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from detect import (
    DAO,
    LID,
    LOF,
    SLOF,
    Embeddings,
    IsolationForest,
    KDistance,
    LocalDetector,
    Multiscale,
    Pursuit,
    find_neighbours,
)
from detect.metrics import rank, rank_share
from detect.sample_table import escaped, pieces, plain, tables_beside, write
from detect.vector_files import blocks, opened

DETECTORS = {"kdist": KDistance, "lid": LID, "slof": SLOF, "lof": LOF, "dao": DAO, "forest": IsolationForest}
DETECTORS |= {"multiscale": Multiscale, "pursuit": Pursuit}
K = 16
ALONE = {"forest", "pursuit"}  # that rank samples only among themselves
ENDINGS = (".csv", ".parquet")
MAX_SEED = 2**32 - 1  # that scikit-learn takes


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry; the exit status. Bad input ends with status 2 and a line that names it, before any search."""
    if hasattr(sys.stdout, "reconfigure"):  # a console without a letter prints a replacement mark
        sys.stdout.reconfigure(errors="replace")
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        detectors = _checked(options)
        files = opened(options.files, options.column)
        detectors = detectors or {
            name: _built(name, options) for name in _usual(options, sum(f.rows for f in files))
        }
        trusted = None if options.reference is None else opened(options.reference, options.column)
        if trusted is not None and trusted[0].width != files[0].width:
            raise ValueError(f"--reference has {trusted[0].width} columns, the files {files[0].width}")
        beside = tables_beside(files)
        with _written(options.out) as partial:
            reference = None if trusted is None else Embeddings.of(next(blocks(trusted, None)))
            parts = (Embeddings.of(block) for block in blocks(files, None if options.full else options.part_rows))
            scored = [_scores(detectors, part, reference, options.device) for part in parts]
            columns = _ranked({name: np.concatenate([part[name] for part in scored]) for name in detectors})
            first = write(pieces(files, beside, columns), partial, options.out.suffix, options.top)
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error) or type(error).__name__
        parser.error(escaped(said.splitlines()[0] if isinstance(error, RuntimeError) else said))
    print(first.to_string(index=False, float_format="%.4g"))
    print(f"{len(columns['rank']):,} rows in {plain(str(options.out))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m detect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help=".npy files of (n, d) arrays, .parquet files, folders, patterns",
    )
    parser.add_argument("--column", help="of .parquet files, the column of vectors (the only one)")
    parser.add_argument("--out", type=Path, default=Path("scores.csv"), help=".csv or .parquet (scores.csv)")
    parser.add_argument(
        "--detectors",
        nargs="+",
        choices=DETECTORS,
        metavar="NAME",
        help=f"of {', '.join(DETECTORS)} (pursuit; slof lof dao where it has too few "
        "rows, and with --k or --reference)",
    )
    parser.add_argument(
        "--k",
        type=int,
        help="neighbours; above the poisons in a scope (16); not of multiscale and pursuit",
    )
    parser.add_argument("--batch-size", type=int, default=2048, help="samples of a neighbourhood scope (2048)")
    parser.add_argument(
        "--part-rows",
        type=int,
        default=1_000_000,
        help="rows at a time, with batches of their own (1000000)",
    )
    parser.add_argument("--full", action="store_true", help="search among all samples instead of in batches")
    parser.add_argument("--reference", nargs="+", type=Path, help="search among these trusted embeddings instead")
    parser.add_argument("--raw", action="store_true", help="keep the norms; else rows are brought to unit norm")
    parser.add_argument("--device", help="where to search, such as cpu (a GPU if there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of the random batches (0)")
    parser.add_argument("--top", type=int, default=10, help="most suspicious rows to print (10)")
    return parser


def _checked(options: argparse.Namespace) -> dict[str, Any]:
    """The detectors; ValueError for what can be known to fail before anything is read."""
    if options.out.suffix not in ENDINGS:
        raise ValueError(f"--out must end with {' or '.join(ENDINGS)}, got {options.out}")
    if options.out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError("--out: .parquet needs the package pyarrow; install it, or write .csv")
    if options.full and options.reference:
        raise ValueError("--full and --reference exclude each other")
    if options.reference and (alone := sorted(ALONE.intersection(options.detectors or ()))):
        raise ValueError(f"--reference is for detectors of neighbourhoods alone; leave out {', '.join(alone)}")
    for name, least in (("top", 1), ("seed", 0), ("part_rows", 2)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    if options.seed > MAX_SEED:
        raise ValueError(f"--seed must be at most {MAX_SEED}, got {options.seed}")
    if options.device is not None:
        _require_device(options.device)
    return {name: _built(name, options) for name in options.detectors or ()}


def _usual(options: argparse.Namespace, rows: int) -> Sequence[str]:
    """The detectors of which nobody chose any."""
    parts = 1 if options.full else -(-rows // options.part_rows)
    if options.k is not None or options.reference or rows // parts <= max(options.batch_size // 8, 1):
        return "slof", "lof", "dao"
    return ("pursuit",)


def _require_device(name: str) -> None:
    """ValueError unless torch can compute on the device."""
    import torch

    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise ValueError(f"--device={name} cannot be used: {str(error).splitlines()[0]}") from None


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """A temporary file beside `out`, made at once. It gets the name `out` when the block ends without an error."""
    if out.is_dir():
        raise ValueError(f"--out must be a file, but {out} is a folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
        partial.touch()
    except OSError as error:
        raise ValueError(f"--out={out} cannot be written: {error.strerror}") from None
    try:
        yield partial
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _built(name: str, options: argparse.Namespace) -> Any:
    kind = DETECTORS[name]
    shared = {"normalise": not options.raw, "seed": options.seed}
    if not issubclass(kind, LocalDetector):
        return kind(**shared)
    scope = "reference" if options.reference else "full" if options.full else "batch"
    if issubclass(kind, Multiscale):  # neighbourhoods of its own: shares of a batch
        wide = max(options.batch_size // 8, 1)
        return kind(k=wide, narrow=max(wide // 8, 1), scope=scope, batch_size=options.batch_size, **shared)
    k = K if options.k is None else options.k
    return kind(k=k, scope=scope, batch_size=options.batch_size, **shared)


def _scores(
    detectors: dict[str, Any], embeddings: Embeddings, reference: Embeddings | None, device: str | None
) -> dict[str, np.ndarray]:
    """Detector -> (n,); one neighbour table serves all that need one."""
    from tqdm import tqdm

    def progress(total: int, label: str) -> Any:
        return tqdm(total=total, desc=label, unit="row", unit_scale=True, leave=False, disable=None)

    local = [detector for detector in detectors.values() if isinstance(detector, LocalDetector)]
    if local:
        k = max(detector.table_width for detector in local)
        neighbours = find_neighbours(embeddings, k, local[0].search, reference, progress, device)
    scores = {}
    for name, detector in detectors.items():
        local_one = isinstance(detector, LocalDetector)
        scores[name] = detector.score(embeddings, neighbours) if local_one else detector.score(embeddings)
    return scores


def _ranked(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The scores, their mean rank share, and the rank by it."""
    for name, values in scores.items():
        bad = int((~np.isfinite(values)).sum())
        if bad or values.min() == values.max():
            what = f"no finite score to {bad} of {len(values)} rows" if bad else "all rows the same score"
            raise ValueError(f"{name} gives {what}: rows are equal, or too long or short for float32 (--raw)")
    share = np.mean([rank_share(values) for values in scores.values()], axis=0)
    return {**scores, "share": share, "rank": rank(share)}


if __name__ == "__main__":
    sys.exit(main())
