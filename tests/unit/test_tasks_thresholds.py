"""Thresholds of a scan follow its ranks, keep their promised rates, and refuse in one line what makes no sense."""

import numpy as np
import pandas as pd
import pytest

from detect.metrics import rank
from experiments.tasks.thresholds import Reference, Threshold


def table(scores, keys=None, shards=None):
    n = len(scores)
    return pd.DataFrame(
        {
            "id": np.arange(n) + 1000,
            "key": keys or [f"{i:09d}" for i in range(n)],
            "shard": shards or ["a.tar"] * n,
            "score": scores,
            "rank": rank(np.asarray(scores)),
        }
    )


@pytest.fixture(scope="module")
def scanned():
    rng = np.random.default_rng(0)
    clean = np.exp(1.5 * rng.normal(size=10_000))  # a heavy upper tail
    return table(np.concatenate([clean, np.full(100, 1e4) + rng.random(100)])), np.arange(10_100) >= 10_000


@pytest.fixture(scope="module")
def reference(scanned, tmp_path_factory):
    """500 of the clean samples, by key."""
    file = tmp_path_factory.mktemp("clean") / "clean.txt"
    file.write_text("\n".join(scanned[0]["key"][:500]) + "\n")
    return str(file)


def test_so_many_are_removed_by_rank(scanned):
    found, poison = scanned
    removed, _ = Threshold(share=0.05).suspects(found)
    assert removed.sum() == 505
    assert removed[poison].all()
    removed, _ = Threshold(count=7).suspects(found)
    assert set(found["rank"][removed]) == set(range(1, 8))


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_a_requested_rate_of_false_positives_is_kept(scanned, reference, rate):
    """Where 1 % removed 24 % of a set with a heavy tail."""
    found, poison = scanned
    removed, _ = Threshold(false_positives=rate).suspects(found)
    assert removed[~poison].mean() <= rate * 1.01
    removed, with_p = Threshold(false_positives=rate, reference=reference).suspects(found)
    assert removed[poison].all()
    assert rate / 3 <= removed[~poison].mean() <= 2 * rate
    assert (with_p.sort_values("rank")["p"].diff().dropna() >= 0).all()
    assert not removed[:500].any()  # known to be clean


def test_a_rate_of_false_discoveries(scanned, reference):
    found, poison = scanned
    removed, _ = Threshold(fdr=0.3, reference=reference).suspects(found)
    assert removed[poison].all()
    assert removed[~poison].sum() / removed.sum() < 0.5


@pytest.mark.parametrize("rule", [{"share": 0.02}, {"false_positives": 0.02}, {"fdr": 0.2, "by": True}])
def test_no_sample_goes_while_one_above_it_stays(scanned, reference, rule):
    found, _ = scanned
    rule = {**rule, "reference": reference} if rule.pop("by", False) else rule
    removed, _ = Threshold(**rule).suspects(found)
    ranks = found["rank"].to_numpy()
    stays = ~removed
    stays[:500] &= "reference" not in rule
    assert ranks[removed].max() < ranks[stays].min()


def test_the_known_clean_are_named_by_key_shard_or_id(tmp_path):
    found = table([3.0, 2, 1, 0], ["a", "b", "a", "c"], ["x.tar", "x.tar", "y.tar", "y.tar"])

    def named(name, content):
        if name.endswith(".parquet"):
            content.to_parquet(tmp_path / name)
        elif name.endswith(".csv"):
            content.to_csv(tmp_path / name, index=False)
        else:
            (tmp_path / name).write_text(content)
        return Reference.read(tmp_path / name).rows(found).tolist()

    assert named("b.txt", "b\nc\n\n") == [False, True, False, True]
    assert named("ids.txt", "1001\n1003\n77\n") == [False, True, False, True]
    assert named("both.csv", pd.DataFrame({"shard": ["y.tar"], "key": ["a"]})) == [False, False, True, False]
    assert named("id.parquet", pd.DataFrame({"id": [1000]})) == [True, False, False, False]
    assert named("kept.parquet", found[["id", "key", "shard"]][1:3]) == [False, True, True, False]
    # A name of several samples names none: whoever repeats a clean sample's key gains nothing by it.
    assert named("twice.txt", "a\nb\n") == [False, True, False, False]
    with pytest.raises(ValueError, match="names none of the 4 samples"):
        named("none.txt", "z\n")
    with pytest.raises(ValueError, match="must have a column key or id, but has name"):
        named("other.csv", pd.DataFrame({"name": ["a"]}))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    for given in ("broken.parquet", "empty.txt"):  # before any work
        (tmp_path / "empty.txt").write_text("\n")
        with pytest.raises(ValueError, match=r"broken\.parquet cannot be read|empty\.txt names no sample"):
            Threshold(false_positives=0.01, reference=str(tmp_path / given))


def test_a_reference_too_small_for_the_rate_is_refused(scanned, reference):
    with pytest.raises(ValueError, match=r"false_positives=0\.001 needs at least 999 samples .* names 500"):
        Threshold(false_positives=0.001, reference=reference)  # before any work
    with pytest.raises(ValueError, match=r"needs at least 499 samples .* of those scanned .* names 400"):
        Threshold(false_positives=0.002, reference=reference).suspects(scanned[0][100:])


@pytest.mark.parametrize(
    "given",
    [
        {"share": 0.1, "count": 3},
        {"share": 1.5},
        {"count": 0},
        {"count": 2.5},
        {"share": "x"},
        {"cut": 6},
        {"fdr": 0.1},
        {"share": 0.1, "reference": __file__},
        {"false_positives": 0.1, "reference": "none.txt"},
        {"false_positives": True},
    ],
)
def test_thresholds_that_make_no_sense_are_refused(given):
    with pytest.raises(ValueError, match=r"task\.remove"):
        Threshold(**given)


def test_nothing_left_is_refused():
    with pytest.raises(ValueError, match="would remove 4 of 4 samples, and leave none"):
        Threshold(count=4).suspects(table([3.0, 2, 1, 0]))
