"""Rank samples by embeddings that lie in files: `python -m detect img_emb/ --out scores.csv`.

For those who have embeddings already, such as clip-retrieval's or LAION's folders of `img_emb_<n>.npy`. No model,
no images, no labels: the order is the mean of the ranks that the chosen detectors give.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detect import DAO, LID, LOF, SLOF, Embeddings, IsolationForest, KDistance, LocalDetector, find_neighbours
from detect.metrics import rank, rank_share

if TYPE_CHECKING:
    import pandas as pd

DETECTORS = {"kdist": KDistance, "lid": LID, "slof": SLOF, "lof": LOF, "dao": DAO, "forest": IsolationForest}
ENDINGS = (".csv", ".parquet")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry; the exit status. Bad input ends with status 2 and a line that names it."""
    parser = argparse.ArgumentParser(
        prog="python -m detect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help=".npy files of (n, d) arrays, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("scores.csv"), help=".csv or .parquet (scores.csv)")
    parser.add_argument("--detectors", nargs="+", default=["slof", "lof", "dao"], choices=DETECTORS, metavar="NAME",
                        help=f"of {', '.join(DETECTORS)} (slof lof dao)")  # fmt: skip
    parser.add_argument("--k", type=int, default=16, help="neighbours; above the poisons in a scope (16)")
    parser.add_argument("--batch-size", type=int, default=2048, help="samples of a neighbourhood scope (2048)")
    parser.add_argument("--full", action="store_true", help="search among all samples instead of in batches")
    parser.add_argument("--reference", nargs="+", type=Path, help="search among these trusted embeddings instead")
    parser.add_argument("--raw", action="store_true", help="keep lengths; else rows are brought to unit length")
    parser.add_argument("--device", help="where to search, such as cpu (a GPU if there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of the random batches (0)")
    parser.add_argument("--top", type=int, default=10, help="most suspicious rows to print (10)")
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix not in ENDINGS:
            raise ValueError(f"--out must end with {' or '.join(ENDINGS)}, got {options.out}")
        if options.full and options.reference:
            raise ValueError("--full and --reference exclude each other")
        detectors = {name: _built(name, options) for name in options.detectors}
        parts = _parts(options.files)
        embeddings = _joined(parts)
        reference = None if options.reference is None else _joined(_parts(options.reference))
        table = _table(parts, _scores(detectors, embeddings, reference, options.device))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.suffix == ".csv":
        table.to_csv(options.out, index=False)
    else:
        table.to_parquet(options.out, index=False)
    print(table.nsmallest(options.top, "rank").to_string(index=False, float_format="%.4g"))
    print(f"{len(table):,} rows in {options.out}")
    return 0


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
        found = [path] if not path.is_dir() else sorted(path.glob("*.npy"), key=_numbers)
        if not found:
            raise ValueError(f"no .npy files in {path}")
        files += found
    parts: list[tuple[Path, np.ndarray]] = []
    for file in files:
        try:
            part = np.load(file, mmap_mode="r", allow_pickle=False)
        except (EOFError, ValueError) as error:
            raise ValueError(f"{file} is no .npy file of numbers: {error}") from None
        if getattr(part, "ndim", 0) != 2 or part.dtype.kind != "f":
            raise ValueError(f"{file} must hold an (n, d) array of floats, got {part.dtype} {part.shape}")
        if parts and part.shape[1] != parts[0][1].shape[1]:
            raise ValueError(f"all files must be equally wide, but {file} has {part.shape[1]} columns, "
                             f"and {parts[0][0]} has {parts[0][1].shape[1]}")  # fmt: skip
        parts.append((file, part))
    return parts


def _numbers(path: Path) -> list[Any]:
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", path.name)]


def _joined(parts: Sequence[tuple[Path, np.ndarray]]) -> Embeddings:
    whole = np.empty((sum(len(part) for _, part in parts), parts[0][1].shape[1]), np.float32)
    begin = 0
    for _, part in parts:
        whole[begin : begin + len(part)] = part
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
    return {
        name: detector.score(embeddings, neighbours)
        if isinstance(detector, LocalDetector)
        else detector.score(embeddings)
        for name, detector in detectors.items()
    }


def _table(parts: Sequence[tuple[Path, np.ndarray]], scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """A row per sample in the order of the files: file, row in it, a column per detector, share, rank."""
    import pandas as pd

    share = np.mean([rank_share(values) for values in scores.values()], axis=0)
    lengths = [len(part) for _, part in parts]
    names = np.repeat([str(file) for file, _ in parts], lengths)
    rows = np.concatenate([np.arange(length) for length in lengths])
    return pd.DataFrame({"file": names, "row": rows, **scores, "share": share, "rank": rank(share)})


if __name__ == "__main__":
    sys.exit(main())
