"""`python -m analysis export <folder> --to <form>`: what a scan or a clean has found, for other tools.

embedding-atlas  one Parquet with scores, captions, 2-D coordinates and neighbours:
                 embedding-atlas atlas.parquet --x projection_x --y projection_y --neighbors neighbors
fiftyone         a folder of pictures with labels.json (FiftyOneImageClassificationDataset)
datacomp         kept_uids.npy: the uids that a clean keeps, as DataComp's resharder reads them
keys             kept_keys.txt: the keys that a clean keeps, one a line
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.embedding_figure import flat_view
from analysis.pages.rendering import plain
from analysis.scan_folder import ScanFolder
from experiments.runtime.safe_text import printable

if TYPE_CHECKING:
    import pandas as pd

UID = re.compile(r"[0-9a-fA-F]{32}")
METHODS = ("pca", "tsne", "umap")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m analysis export`; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.rows is not None and options.rows < 2:
        parser.error(f"--rows must be at least 2, got {options.rows}")
    if options.neighbours < 1:
        parser.error(f"--neighbours must be at least 1, got {options.neighbours}")
    out = options.out or options.folder
    try:
        scan = ScanFolder.read(options.folder)
        out.mkdir(parents=True, exist_ok=True)
        if options.to == "embedding-atlas":
            rows = options.rows or 50_000
            text = write_atlas(scan, out / "atlas.parquet", rows, options.neighbours, options.method)
        elif options.to == "fiftyone":
            text = write_fiftyone(scan, out / "fiftyone", options.rows or 2_000)
        elif options.to == "datacomp":
            text = write_uids(scan, out / "kept_uids.npy")
        else:
            text = write_keys(scan, out / "kept_keys.txt")
    except (ValueError, OSError) as error:
        parser.error(str(error).splitlines()[0])
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of a run of task=scan or task=clean")
    parser.add_argument("--to", required=True, choices=("embedding-atlas", "fiftyone", "datacomp", "keys"))
    parser.add_argument("--out", type=Path, help="default: the folder of the run")
    parser.add_argument("--rows", type=int, help="the most suspicious (atlas: 50,000; fiftyone: 2,000)")
    parser.add_argument("--neighbours", type=int, default=15, help="of each sample in the atlas (default: 15)")
    parser.add_argument("--method", choices=METHODS, default="pca", help="of the 2-D coordinates (default: pca)")
    return parser


def write_atlas(scan: ScanFolder, file: Path, most: int, k: int, method: str = "pca") -> str:
    """One Parquet for Embedding Atlas; returns a line that says what it holds.

    Beside the scan's columns: projection_x and projection_y, and `neighbors`, {"ids": rows of this file,
    "distances": Euclidean, of unit-length image embeddings}: each sample's k nearest among the exported ones,
    without itself.
    """
    import pandas as pd

    from detect import Embeddings, NeighbourSearch, find_neighbours

    table = scan.suspects(most)
    if len(table) < 2:
        raise ValueError(f"{scan.path} holds {len(table)} scored samples, which have no neighbours")
    ids = table["id"].to_numpy(np.int64)
    image = scan.embeddings(ids)
    found = find_neighbours(Embeddings(ids, image), min(k, len(ids) - 1), NeighbourSearch(normalise=True))
    view = flat_view(image, method)
    pairs = zip(found.indices.tolist(), found.distances.tolist(), strict=True)
    near = pd.Series([{"ids": rows, "distances": distances} for rows, distances in pairs])
    table = table.assign(projection_x=view[:, 0], projection_y=view[:, 1], neighbors=near)
    table.to_parquet(file, index=False)
    return (
        f"{file}: {len(table):,} samples; embedding-atlas {file} --x projection_x --y projection_y --text caption "
        "--neighbors neighbors"
    )


def write_fiftyone(scan: ScanFolder, folder: Path, most: int) -> str:
    """A folder that FiftyOne imports: data/<id>.<ending>, and labels.json with label and attributes of each.

    The label is the decision, else what became of the sample, else "suspect". Raises ValueError for a folder that
    holds anything.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} must be new or empty, but it holds files")
    table = scan.suspects(most)
    labels = {}
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    for row, ending, content in scan.pictures(table):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        record = records[row]
        (folder / "data" / f"{record['id']}.{ending}").write_bytes(content)
        label = record.get("decision") or record.get("fate") or "suspect"
        attributes = {str(name): value for name, value in record.items() if value is not None and name != "id"}
        labels[str(record["id"])] = {"label": label, "attributes": attributes}
    if not labels:
        raise ValueError(f"{scan.path}: none of {len(table):,} pictures can be read")
    text = json.dumps({"labels": plain(labels)}, indent=1, allow_nan=False)
    (folder / "labels.json").write_text(text, encoding="utf-8")
    missing = len(table) - len(labels)
    return f"{folder}: {len(labels):,} pictures" + (f"; {missing:,} could not be read" if missing else "")


def write_uids(scan: ScanFolder, file: Path) -> str:
    """DataComp's subset file: the kept uids, of 32 hexadecimal digits, as a sorted (n,) array of dtype u8,u8.

    A uid that a removed sample has too is left out. Raises ValueError for a scan, and for samples without a uid.
    """
    kept, gone = _fates(scan)
    if "uid" not in kept:
        raise ValueError(f"{scan.path}: scores.parquet has no column uid, which DataComp's json files hold")
    wrong = ~kept["uid"].astype(str).str.fullmatch(UID).to_numpy()
    if wrong.any():
        at, number = int(wrong.argmax()), int(wrong.sum())
        uid = printable(kept["uid"].iloc[at])[:80]
        raise ValueError(
            f"{scan.path}: {number:,} kept samples have no uid of 32 hexadecimal digits, such as id "
            f"{kept['id'].iloc[at]}: {uid!r}"
        )
    taken = set(gone["uid"].dropna().astype(str).str.lower())
    uids = [uid for uid in kept["uid"].str.lower() if uid not in taken]
    pairs = np.unique(np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], "u8,u8"))
    np.save(file, pairs, allow_pickle=False)
    return f"{file}: {len(pairs):,} uids"


def write_keys(scan: ScanFolder, file: Path) -> str:
    """The keys of the kept samples, one a line. Raises ValueError where keys are unknown or of several samples."""
    kept, _ = _fates(scan)
    keys = kept["key"]
    if keys.isna().any():
        raise ValueError(f"{scan.path}: {int(keys.isna().sum()):,} kept samples have no key: use kept.parquet")
    several = scan.table["key"].duplicated(keep=False) & scan.table["key"].isin(keys)
    if several.any():
        key = printable(scan.table["key"][several].iloc[0])
        raise ValueError(
            f"{scan.path}: {several.sum():,} samples share their key, such as {key!r}: use kept.parquet"
        )
    if keys.str.contains("[\r\n]").any():
        raise ValueError(f"{scan.path}: a key holds a line break: use kept.parquet")
    file.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    return f"{file}: {len(keys):,} keys"


def _fates(scan: ScanFolder) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The kept samples, those kept without a score too, and all others; ValueError for a scan, which has none."""
    import pandas as pd

    if "fate" not in scan.table or not (scan.path / "kept.parquet").is_file():
        raise ValueError(f"{scan.path} is of a scan, which removes nothing: name the folder of a task=clean")
    stays = scan.table["id"].isin(pd.read_parquet(scan.path / "kept.parquet", columns=["id"])["id"])
    return scan.table[stays], scan.table[~stays]


if __name__ == "__main__":
    sys.exit(main())
