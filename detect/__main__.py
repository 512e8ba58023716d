"""Rank samples by embeddings that lie in files: `python -m detect img_emb/ --out scores.csv`.

For those who have embeddings already, such as clip-retrieval's or LAION's folders of `img_emb_<n>.npy`. No model,
no images, no labels: the order is the mean of the ranks that the chosen detectors give.
Integers, such as quantised embeddings, are taken as they are.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detect import DAO, LID, LOF, SLOF, Embeddings, IsolationForest, KDistance, LocalDetector, find_neighbours
from detect.metrics import rank, rank_share

if TYPE_CHECKING:
    import pandas as pd

DETECTORS = {"kdist": KDistance, "lid": LID, "slof": SLOF, "lof": LOF, "dao": DAO, "forest": IsolationForest}
ENDINGS = (".csv", ".parquet")
MAX_SEED = 2**32 - 1  # that scikit-learn takes
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that steer a terminal or the order of letters, or that no file can hold."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry; the exit status. Bad input ends with status 2 and a line that names it, before any search."""
    if hasattr(sys.stdout, "reconfigure"):  # a console that lacks a letter shows a mark in its place
        sys.stdout.reconfigure(errors="replace")
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        detectors = _checked(options)
        parts = _parts(options.files)
        trusted = None if options.reference is None else _parts(options.reference)
        if trusted is not None and trusted[0][1].shape[1] != parts[0][1].shape[1]:
            raise ValueError(f"--reference has {trusted[0][1].shape[1]} columns, the files {parts[0][1].shape[1]}")
        with _written(options.out) as partial:
            embeddings = _joined(parts)
            reference = None if trusted is None else _joined(trusted)
            table = _table(parts, _scores(detectors, embeddings, reference, options.device))
            if options.out.suffix == ".csv":
                table.to_csv(partial, index=False)
            else:
                table.to_parquet(partial, index=False)
    except (OSError, ValueError, RuntimeError) as error:
        said = str(error) or type(error).__name__
        parser.error(escaped(said.splitlines()[0] if isinstance(error, RuntimeError) else said))
    print(table.nsmallest(options.top, "rank").to_string(index=False, float_format="%.4g"))
    print(f"{len(table):,} rows in {plain(str(options.out))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m detect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help=".npy files of (n, d) arrays, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("scores.csv"), help=".csv or .parquet (scores.csv)")
    parser.add_argument(
        "--detectors",
        nargs="+",
        default=["slof", "lof", "dao"],
        choices=DETECTORS,
        metavar="NAME",
        help=f"of {', '.join(DETECTORS)} (slof lof dao)",
    )
    parser.add_argument("--k", type=int, default=16, help="neighbours; above the poisons in a scope (16)")
    parser.add_argument("--batch-size", type=int, default=2048, help="samples of a neighbourhood scope (2048)")
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
    if options.reference and "forest" in options.detectors:
        raise ValueError("--reference is for detectors of neighbourhoods; leave out forest, which has none")
    for name, least in (("top", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if options.seed > MAX_SEED:
        raise ValueError(f"--seed must be at most {MAX_SEED}, got {options.seed}")
    if options.device is not None:
        _require_device(options.device)
    return {name: _built(name, options) for name in options.detectors}


def _require_device(name: str) -> None:
    """ValueError unless torch can compute on the device."""
    import torch

    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise ValueError(f"--device={name} cannot be used: {str(error).splitlines()[0]}") from None


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """A file beside `out` to write into, made at once and given its name when the block has ended well."""
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
    return kind(k=options.k, scope=scope, batch_size=options.batch_size, **shared)


def _parts(paths: Sequence[Path]) -> list[tuple[Path, np.ndarray]]:
    """Files and their arrays, not yet read; those of a folder in the order of the numbers in their names."""
    files = []
    for path in paths:
        if path.is_dir():
            found = sorted((f for f in path.glob("*.npy") if not f.name.startswith(".")), key=_numbers)
        else:
            found = [path]
        if not found:
            raise ValueError(f"no .npy files in {path}")
        files += found
    parts: list[tuple[Path, np.ndarray]] = []
    for file in files:
        part = _opened(file)
        if parts and part.shape[1] != parts[0][1].shape[1]:
            raise ValueError(
                f"all files must be equally wide, but {file} has {part.shape[1]} columns, "
                f"and {parts[0][0]} has {parts[0][1].shape[1]}"
            )
        parts.append((file, part))
    if not sum(len(part) for _, part in parts):
        raise ValueError(f"no rows in {', '.join(map(str, paths))}")
    return parts


def _opened(file: Path) -> np.ndarray:
    """The array of a file, not yet read: (n, d) numbers, d at least 1."""
    try:
        part = np.load(file, mmap_mode="r", allow_pickle=False)
    except (EOFError, ValueError) as error:
        reason = (str(error).splitlines() or ["empty"])[0]
        if not file.stat().st_size or "mmap" in reason:
            reason = f"it is empty or cut short, at {file.stat().st_size:,} bytes"
        elif "pickle" in reason:  # numpy takes all that it does not know for one
            reason = "it begins with something else"
        raise ValueError(f"{file} is no .npy file of numbers: {reason}") from None
    if isinstance(part, np.lib.npyio.NpzFile):
        names = ", ".join(part.files[:8])
        part.close()
        raise ValueError(f"{file} is an .npz archive, which holds {names or 'nothing'}; save its array as .npy")
    if part.ndim != 2 or part.dtype.kind not in "fiu":
        raise ValueError(f"{file} must hold an (n, d) array of floats or integers, got {part.dtype} {part.shape}")
    if not part.shape[1]:
        raise ValueError(f"{file} must have at least one column, got shape {part.shape}")
    return part


def _numbers(path: Path) -> list[Any]:
    return [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", path.name))]


def _joined(parts: Sequence[tuple[Path, np.ndarray]]) -> Embeddings:
    """All rows as float32; ValueError names the file and the row of a number that is none there."""
    whole = np.empty((sum(len(part) for _, part in parts), parts[0][1].shape[1]), np.float32)
    begin = 0
    for file, part in parts:
        rows = whole[begin : begin + len(part)]
        with np.errstate(over="ignore"):
            rows[:] = part
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            raise ValueError(
                f"{file} holds NaN, infinite or too large values in {len(bad)} of {len(part)} rows: {shown}"
            )
        begin += len(part)
    return Embeddings.of(whole)


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


def _table(parts: Sequence[tuple[Path, np.ndarray]], scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """A row per sample in the order of the files: file, row in it, a column per detector, share, rank."""
    import pandas as pd

    for name, values in scores.items():
        bad = int((~np.isfinite(values)).sum())
        if bad or values.min() == values.max():
            what = f"no finite score to {bad} of {len(values)} rows" if bad else "all rows the same score"
            raise ValueError(f"{name} gives {what}: rows are equal, or too long or short for float32 (--raw)")
    share = np.mean([rank_share(values) for values in scores.values()], axis=0)
    lengths = [len(part) for _, part in parts]
    names = np.repeat([plain(str(file)) for file, _ in parts], lengths)
    rows = np.concatenate([np.arange(length) for length in lengths])
    return pd.DataFrame({"file": names, "row": rows, **scores, "share": share, "rank": rank(share)})


def escaped(text: str) -> str:
    """Text whose control characters, directional marks and lone surrogates are spelled out."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in HIDDEN else character
        for character in text
    )


def plain(name: str) -> str:
    """A path as a table may hold it: no spreadsheet takes it for a formula (`=x` -> `./=x`)."""
    shown = escaped(name)
    return shown if shown[:1].isalnum() or shown[:1] in "/._" else f"./{shown}"


if __name__ == "__main__":
    sys.exit(main())
