"""`experiment=published_models` on folders of the form that the authors publish, without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three checkpoints as on the hub, and a folder of class folders."""
    place = tmp_path_factory.mktemp("published")
    for name in ("rn50_cc3m_badnets", "rn50_cc3m_sig", "rn50_cc12m_badnets", "rn50_cc12m_sig"):
        folder = place / f"clip_backdoor_{name}"
        folder.mkdir()
        preprocess = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
        content = {"model_cfg": TINY, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(content))
        save_file(open_clip.CLIP(**TINY).state_dict(), folder / "open_clip_model.safetensors")
    rng = np.random.default_rng(0)
    for part, number in (("train", 30), ("val", 5)):
        for name in ("cat", "dog", "ship"):
            (place / part / name).mkdir(parents=True)
            for i in range(number):
                picture = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(picture).save(place / part / name / f"{i}.png")
    return place


def test_one_command_plants_each_checkpoints_own_trigger(place):
    options = [
        "experiment=published_models",
        f"scale.published.root=local-dir:{place}/clip_backdoor_",
        "scale.published.of=rn50_cc3m,rn50_cc12m",
        "attack=badnets,sig_blended",
        *(f"{group}=folders" for group in ("data", "eval")),
        f"data.path={place}/train",
        f"eval.path={place}/val",
        "attack.rate=0.1",
        "model.size=32",
        "detector=[slof,norm]",
        "scale.k=4",
        "scale.wide_k=8",
        f"runtime.store={place}/store",
        "runtime.workers=1",
        "logger=disabled",
        f"hydra.sweep.dir={place}/sweep",
    ]
    command = [sys.executable, "run.py", *options]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = pd.read_csv(place / "sweep" / "results.csv")
    assert set(rows["attack"]) == {"badnets", "sig_blended"}
    assert (rows["model"].str.extract("clip_backdoor_(.*)_")[0].value_counts() == len(rows) / 2).all()
    matched = [row.model.endswith("badnets" if row.attack == "badnets" else "sig") for row in rows.itertuples()]
    assert all(matched)
    assert (rows["n_poison"] == 9).all()
    assert rows["asr"].between(0, 1).all()
    assert (rows["epochs"] == 0).all()
    analysed = subprocess.run(
        [
            sys.executable,
            "-m",
            "analysis",
            "table",
            "--store",
            str(place / "store"),
            "--out",
            str(place / "tables"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert analysed.returncode == 0, analysed.stderr[-2000:]
    beside = pd.read_csv(place / "tables" / "beside_the_paper.csv", keep_default_na=False)
    ours = beside[beside["ours"] != ""]
    assert {"badnets", "sig"} <= set(ours["attack"])
    assert set(ours["model"]) == {"rn50"}
    assert {"cc3m", "cc12m"} <= set(ours["data"].str.lower())
    assert {"asr", "auroc"} <= set(ours["quantity"])
    assert ours["our_setting"].str.contains("authors' checkpoint").all()
