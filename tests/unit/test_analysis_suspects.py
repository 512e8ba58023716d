"""The suspects page and the scan's summary take any result that has the parts they show."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis.pages import suspects


@pytest.fixture
def result():
    n = 12
    score = np.linspace(0, 1, n)
    group = SimpleNamespace(
        rows=np.array([11, 10, 9, 8]),
        caption="a cake | of\nletters",
        size=4,
        **dict.fromkeys(("similarity", "pixels", "shared", "concentration", "isolation", "surprise"), 0.5),
        strength=1.25,
        alarming=True,
    )
    table = pd.DataFrame(
        {
            "id": np.arange(n) + 2**60,
            "key": [f"{row:03d}" for row in range(n)],
            "shard": "a|b.tar",
            "url": "",
            "caption": [f"caption {row} | x\ny" for row in range(n)],
            "slof_raw": score,
            "score": score,
            "p": 1 - score,
            "rank": n - np.arange(n),
        }
    )
    draw = np.random.default_rng(0)
    samples = SimpleNamespace(
        images=lambda rows: draw.integers(0, 256, (len(rows), 8, 8, 3), dtype=np.uint8),
        nearest=lambda rows, k: {row: [((row + 1) % n, 0.5)] for row in rows},
    )
    measures = {"auroc": 0.9, "auprc": 0.8, "fpr95": 0.1, "fpr100": 0.2}
    measures |= {f"recall_at_{share}pct": share / 10 for share in (1, 5, 10)}
    metadata = {"n": n, "members": n + 2, "data": "shards", "model": "rn50", "truth": 4}
    return SimpleNamespace(
        table=table,
        order=np.arange(n)[::-1],
        detectors=["slof_raw"],
        ranked_by=["slof_raw"],
        samples=samples,
        groups=[group],
        truth=np.arange(n) > 7,
        metrics={"slof_raw": measures, "score": measures},
        failed={"lof": "ValueError: no"},
        metadata=metadata | {"unscored": {"broken image": 2}, "lost": {}},
    )


def columns(line):
    return len(re.findall(r"(?<!\\)\|", line))


def test_every_table_of_the_summary_keeps_its_columns(result):
    text = suspects.summary(result)
    assert "12 samples (shards, model rn50), ranked by SLOF (raw)." in text
    assert "**LOF failed:** ValueError: no" in text
    assert r"| 1 | 1152921504606846987 | a\|b.tar 011 | 1 | caption 11 \| x y |" in text
    assert r"| 1.25 | 4 | a cake \| of letters | 0.50 | 0.50 | 0.50 | 0.50 |" in text
    assert "| the ranking | 0.900 | 0.800 | 0.100 | 0.200 | 0.100 | 0.500 | 1.000 |" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({columns(line) for line in table.splitlines()}) == 1


def test_the_page_holds_what_it_shows(result, tmp_path):
    page = suspects.write(result, tmp_path / "suspects.html", gallery=3).read_text()
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
    assert data["metadata"]["unscored"] == {"broken image": 2}
    assert data["order"] == [11, 10, 9]
    assert data["groups"][0]["rows"] == [11, 10, 9, 8]
    assert data["samples"]["11"]["id"] == str(2**60 + 11)
    assert [row["detector"] for row in suspects.result_rows(result)] == ["slof_raw", "score"]
