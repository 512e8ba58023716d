"""Parts ranked out of core: the answer of the scan in memory, resumed after a kill, refused in one line."""

import sys

import numpy as np
import pandas as pd
import pytest

from detect.conformal import conformal_among
from detect.metrics import rank, rank_share
from experiments.tasks.rank import main
from experiments.tasks.ranking import Ranking
from experiments.tasks.ranking_work import WORK
from experiments.tasks.thresholds import Threshold

duckdb = pytest.importorskip("duckdb", reason="optional extra `scale`")
BY = ("slof", "lof", "dao")
N, PARTS = 4000, 8


@pytest.fixture
def parts(tmp_path):
    """Scores with many ties, in parts of different lengths; some samples have none."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"id": np.arange(N) + 10**12, "key": [f"{i:09d}" for i in range(N)]})
    cuts = [0, *sorted(rng.choice(np.arange(1, N), PARTS - 1, replace=False)), N]
    table["shard"] = [f"{np.searchsorted(cuts, i, 'right') - 1:05d}.tar" for i in range(N)]
    table["url"] = [f"https://{'bad' if i % 100 == 3 else 'www'}.example.com:80/{i}.jpg" for i in range(N)]
    table.loc[5, "url"] = None
    table["caption"] = "=a | cat"
    for name in BY:
        table[name] = np.round(rng.normal(size=N), 1 if name == "slof" else 2)
        table.loc[np.arange(N) % 100 == 3, name] += 3
    table["status"] = "scored"
    table.loc[::50, "status"] = "truncated"
    table.loc[::50, list(BY)] = np.nan
    for part in range(PARTS):
        table.iloc[cuts[part] : cuts[part + 1]].to_parquet(tmp_path / f"part-{part:05d}.parquet", index=False)
    return table


def files(folder):
    return sorted(folder.glob("part-*.parquet"))


def in_memory(table, by):
    scored = table[table["status"] == "scored"].reset_index(drop=True)
    columns = [scored[name].to_numpy() for name in by]
    score = columns[0] if len(by) == 1 else np.mean([rank_share(values) for values in columns], axis=0)
    return scored.assign(score=score, p=conformal_among(score), rank=rank(score))


@pytest.mark.parametrize(
    ("by", "rule"),
    [
        (BY, {"share": 0.01}),
        (("slof",), {"count": 7}),
        (("dao",), {"false_positives": 0.02}),
        (BY[:2], {"false_positives": 0.013}),
    ],
)
def test_the_answer_is_that_of_memory(parts, tmp_path, by, rule):
    expected = in_memory(parts, by)
    gone, _ = Threshold(**rule).suspects(expected)
    ranked = Ranking(files(tmp_path), list(parts), by, Threshold(**rule), top=100).write(tmp_path / "out")
    scores = pd.read_parquet(tmp_path / "out/scores.parquet")
    pd.testing.assert_frame_equal(scores, expected[["id", "key", "shard", "score", "p", "rank"]], check_exact=True)
    removed = pd.read_parquet(tmp_path / "out/removed.parquet")
    pd.testing.assert_frame_equal(removed, expected[gone].sort_values("rank").reset_index(drop=True)[list(removed)])
    suspects = pd.read_parquet(tmp_path / "out/suspects.parquet")
    assert suspects["key"].tolist() == expected.sort_values("rank")["key"].tolist()[:100]
    assert (ranked.n, ranked.removed) == (len(expected), gone.sum())
    assert ranked.unscored == {"truncated": N // 50}
    assert not list((tmp_path / "out").glob("ranking*"))


def test_the_table_of_domains(parts, tmp_path):
    ranked = Ranking(files(tmp_path), list(parts), BY, Threshold(share=0.01), top=10).write(tmp_path / "out")
    expected = in_memory(parts, BY)
    domain = expected["url"].str.extract("https://([^:/]+)")[0].fillna("")
    gone = expected["rank"] <= ranked.removed
    for name, n, removed, lift in ranked.domains:
        assert (n, removed) == ((domain == name).sum(), (gone & (domain == name)).sum())
        assert lift == pytest.approx((removed / ranked.removed) / (n / ranked.n))
    assert ranked.domains[0][0] == "bad.example.com"
    table = pd.read_parquet(tmp_path / "out/domains.parquet")
    first = expected[gone & (domain == "bad.example.com")].sort_values("rank")["key"].tolist()[:3]
    assert list(table["examples"][0]) == first


def test_a_killed_ranking_goes_on(parts, tmp_path, monkeypatch):
    ranking = Ranking(files(tmp_path), list(parts), BY, Threshold(share=0.01))
    original, made = Ranking._ranked, []
    monkeypatch.setattr(Ranking, "_ranked", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        ranking.write(tmp_path / "out")
    assert (tmp_path / "out" / WORK).exists()
    monkeypatch.setattr(Ranking, "_ranked", original)
    monkeypatch.setattr("experiments.tasks.ranking_work.log.info", lambda text, name: made.append(name))
    ranking.write(tmp_path / "out")
    assert made[0] == "ranked"
    expected = in_memory(parts, BY)
    np.testing.assert_array_equal(pd.read_parquet(tmp_path / "out/scores.parquet")["rank"], expected["rank"])


def test_another_ranking_does_not_take_up_what_a_killed_one_left(parts, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(Ranking, "_ranked", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            Ranking(files(tmp_path), list(parts), BY, Threshold(share=0.01)).write(tmp_path / "out")
    Ranking(files(tmp_path), list(parts), ("lof",), Threshold(share=0.01)).write(tmp_path / "out")
    expected = in_memory(parts, ("lof",))
    np.testing.assert_array_equal(pd.read_parquet(tmp_path / "out/scores.parquet")["rank"], expected["rank"])


def test_the_command(parts, tmp_path, capsys):
    assert main([str(tmp_path / "part-*.parquet"), "--remove", "share=0.01", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "3,920 samples of 8 files, by slof, lof, dao." in said
    assert "39 (0.995%) lie beyond the threshold (share = 0.01)." in said
    assert "**80 samples have no score, and are not ranked:** truncated 80." in said
    assert "| bad.example.com | 40 |" in said
    assert (tmp_path / "out/summary.md").read_text() == said


def test_detect_s_own_tables_are_ranked_too(tmp_path):
    rng = np.random.default_rng(0)
    for part in range(3):
        rows = pd.DataFrame(
            {"file": f"{part}.npy", "row": range(50), "slof": rng.random(50), "share": 0.5, "rank": 1}
        )
        rows.to_parquet(tmp_path / f"part-{part}.parquet", index=False)
    assert main([str(tmp_path / "part-*.parquet"), "--remove", "count=5", "--out", str(tmp_path / "out")]) == 0
    scores = pd.read_parquet(tmp_path / "out/scores.parquet")
    assert list(scores) == ["file", "row", "score", "p", "rank"]
    assert sorted(scores["rank"]) == list(range(1, 151))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.parquet", "--remove", "share=0.1"], "there is no file nothing.parquet"),
        (
            ["{0}", "--remove", "half"],
            "--remove must be one of share=..., count=..., false_positives=..., got 'half'",
        ),
        (["{0}", "--remove", "share=much"], "--remove share= must be a number, got 'much'"),
        (["{0}", "--remove", "share=2"], "share must lie in (0, 1), got 2.0"),
        (["{0}", "--remove", "count=9999999"], "would remove 9,999,999 of "),
        (["{0}", "{0}", "--remove", "count=1"], "each part must be given once"),
        (["{0}", "--remove", "count=1", "--rank-by", "lid"], "density or one of slof, lof, dao, got 'lid'"),
        (["{0}", "--remove", "count=1", "--top", "0"], "top must be at least 1, got 0"),
        (["{0}", "--remove", "count=1", "--memory-mb", "5"], "memory_mb must be at least 500, got 5"),
        (["{text}", "--remove", "count=1"], "is no Parquet file"),
        (["{0}", "{other}", "--remove", "count=1"], "all parts need the same scores, but"),
        (["{nan}", "--remove", "count=1"], "column slof must hold a finite score for every scored sample"),
        (["{empty}", "--remove", "count=1"], "there is no scored sample to rank"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_one_line(parts, tmp_path, arguments, said, capsys):
    (tmp_path / "text.parquet").write_text("no")
    pd.DataFrame({"slof": [1.0]}).to_parquet(tmp_path / "other.parquet")
    pd.DataFrame({"slof": [1.0, np.nan]}).to_parquet(tmp_path / "nan.parquet")
    pd.DataFrame({"slof": [1.0]}).head(0).to_parquet(tmp_path / "empty.parquet")
    places = {name: tmp_path / f"{name}.parquet" for name in ("text", "other", "nan", "empty")}
    given = [argument.format(files(tmp_path)[0], **places) for argument in arguments]
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


def test_without_the_engine_the_extra_is_named(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert main([str(files(tmp_path)[0]), "--remove", "count=1", "--out", str(tmp_path / "out")]) == 2
    assert "ranking needs the package duckdb; install it with: .venv/bin/uv pip install -e '.[scale]'" in (
        capsys.readouterr().err
    )
