"""Parts scanned apart end with one page, one list of what stays and one summary; groups reach across the parts."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from groups_example import CAKE, Planted

from detect.conformal import conformal_among
from detect.metrics import rank
from experiments.tasks import merged_suspects
from experiments.tasks.groups import Grouping
from experiments.tasks.merged_suspects import Listed
from experiments.tasks.part_suspects import SUSPECT, write_suspects
from experiments.tasks.rank import main

pytest.importorskip("duckdb", reason="optional extra `scale`")
PARTS, N, COPIES = 8, 2000, 40
GROUPING = Grouping(suspects=0.03)


class Some:
    """Some of the rows of other samples, as the samples of a part."""

    def __init__(self, samples, rows):
        self.captions = [samples.captions[row] for row in rows]
        self._samples, self._rows = samples, rows

    def __len__(self):
        return len(self._rows)

    def images(self, rows):
        return self._samples.images(self._rows[rows])

    def vectors(self, kind, rows):
        return self._samples.vectors(kind, self._rows[rows])

    def blocks(self, kind):
        yield 0, self.vectors(kind, np.arange(len(self)))


@pytest.fixture(scope="module")
def planted():
    return Planted(copies=COPIES, n=N)


@pytest.fixture(scope="module")
def scanned(planted, tmp_path_factory):
    """Folder of 8 parts, to which the copies are dealt out, 5 each; and all samples as one table."""
    folder = tmp_path_factory.mktemp("parts")
    tables = [write_part(folder, planted, part) for part in range(PARTS)]
    return folder, pd.concat(tables, ignore_index=True)


def write_part(folder, planted, part, **about):
    rows = np.arange(part, N, PARTS)
    table = pd.DataFrame({"id": rows + part * 2**20, "key": [f"{row:05d}" for row in rows], "shard": f"{part}.tar"})
    table["url"] = [f"https://{'cakes' if planted.labels[row] == 10 else 'www'}.example.com/{row}" for row in rows]
    table["caption"] = [planted.captions[row] for row in rows]
    table["slof"], table["status"] = planted.score[rows], "scored"
    broken = pd.DataFrame({"id": [part * 2**20 + 10**5], "key": ["broken"], "shard": [f"{part}.tar"]})
    broken["status"] = "truncated"
    table = pd.concat([broken, table], ignore_index=True)
    table.to_parquet(folder / f"part-{part:05d}.parquet", index=False)
    about = {"data": "cc3m", "model": "rn50", "lost": {"broken tar": 3}, **about}
    file = folder / f"suspects-{part:05d}.parquet"
    samples = Some(planted, rows)
    write_suspects(file, table, np.arange(1, len(table)), samples, planted.score[rows], GROUPING, **about)
    return table


def ranked(folder, out, *options):
    return main([str(folder / "part-*.parquet"), "--rank-by", "slof", "--out", str(out), *options])


def page_data(out):
    page = (out / "suspects.html").read_text()
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])


def keys(file):
    return set(pd.read_parquet(file)["key"])


@pytest.fixture(scope="module")
def done(scanned, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranked")
    assert ranked(scanned[0], out, "--remove", "count=10") == 0
    return out


def test_a_natural_backdoor_spread_over_the_parts_is_one_group_as_in_memory(planted, done):
    expected = Grouping(suspects=0.03).find(planted, planted.score)
    data = page_data(done)
    alarming = [group for group in data["groups"] if group["alarming"]]
    assert len(alarming) == 1 == sum(group.alarming for group in expected)
    assert alarming[0]["size"] == COPIES == expected[0].size
    assert alarming[0]["caption"] == CAKE
    for measure in ("similarity", "pixels", "concentration", "isolation", "surprise", "strength"):
        assert alarming[0][measure] == pytest.approx(getattr(expected[0], measure), rel=0.02), measure


def test_no_part_holds_the_group(scanned, planted):
    """So that it is the merging that finds it."""
    for part in range(PARTS):
        rows = np.arange(part, N, PARTS)
        found = GROUPING.find(Some(planted, rows), planted.score[rows])
        assert not [group for group in found if group.alarming]


def test_kept_and_removed_are_all_samples_with_a_score(scanned, planted, done):
    copies = {f"{row:05d}" for row in np.flatnonzero(planted.labels == 10)}
    first = {f"{row:05d}" for row in np.argsort(-planted.score)[:10]}
    removed, kept = keys(done / "removed.parquet"), pd.read_parquet(done / "kept.parquet")
    assert removed == copies | first
    assert set(kept["key"]) == {f"{row:05d}" for row in range(N)} - removed
    assert list(kept) == ["id", "key", "shard"]
    table = scanned[1]
    stays = table[(table["status"] == "scored") & ~table["key"].isin(removed)]
    assert kept["id"].tolist() == stays["id"].tolist()
    assert (done / "kept.txt").read_text().split() == [str(id) for id in stays["id"]]
    assert not [file for file in done.iterdir() if file.name.startswith(("suspects.t", "ranking", "."))]


def test_scores_are_those_of_memory(scanned, done):
    scored = scanned[1][scanned[1]["status"] == "scored"].reset_index(drop=True)
    score = scored["slof"].to_numpy()
    expected = scored[["id", "key", "shard"]].assign(score=score, p=conformal_among(score), rank=rank(score))
    pd.testing.assert_frame_equal(pd.read_parquet(done / "scores.parquet"), expected, check_dtype=False)


def test_the_page_shows_the_suspects_of_all_parts(planted, done):
    data = page_data(done)
    order = np.argsort(-planted.score)
    shown = [data["samples"][str(row)] for row in data["order"]]
    suspects = GROUPING.number(N)
    assert [sample["key"] for sample in shown][:30] == [f"{row:05d}" for row in order[:30]]
    assert [sample["rank"] for sample in shown[:30]] == list(range(1, 31))
    assert len(shown) >= suspects
    assert {sample["shard"] for sample in shown} == {f"{part}.tar" for part in range(PARTS)}
    assert sum(data["histogram"]["counts"]) == N
    assert data["metadata"]["n"] == N
    assert data["metadata"]["unscored"] == {"truncated": PARTS}
    assert data["metadata"]["lost"] == {"broken tar": 3 * PARTS}
    assert data["metadata"]["domains"]["rows"][0]["domain"] == "cakes.example.com"
    assert data["cleaned"]["kept"] + data["cleaned"]["removed"] + PARTS == data["cleaned"]["members"] == N + PARTS
    near = data["near"][str(data["order"][0])]
    assert len(near) == 6


def test_the_summary_says_what_to_do(done):
    text = (done / "summary.md").read_text()
    assert (
        f"{COPIES} (2.000%) lie beyond the threshold (count = 10), or are in 1 alarming groups of {COPIES}." in text
    )
    assert "## Groups that a model could learn" in text
    assert f"Groups start from the {GROUPING.number(N)} samples that rank highest." in text
    assert "were not grouped" not in text
    assert "Some samples could not be read at all, about: broken tar 24." in text
    assert "Then run the same command with --decisions decisions.csv." in text


def test_decisions_win_over_threshold_and_groups(scanned, planted, tmp_path):
    copies = np.flatnonzero(planted.labels == 10)
    table = scanned[1].set_index("key")
    fine, poison = f"{copies[0]:05d}", "00003"
    assert planted.labels[3] != 10
    csv = pd.DataFrame({"id": [table.loc[fine, "id"], table.loc[poison, "id"], 10**5], "decision": "poison"})
    csv["key"], csv.loc[0, "decision"] = [fine, poison, "broken"], "fine"
    csv.to_csv(tmp_path / "decisions.csv", index=False)
    chosen = ["--remove", "count=10", "--decisions", str(tmp_path / "decisions.csv")]
    assert ranked(scanned[0], tmp_path / "out", *chosen) == 0
    removed = keys(tmp_path / "out/removed.parquet")
    assert fine not in removed
    assert fine in keys(tmp_path / "out/kept.parquet")
    assert removed == {f"{row:05d}" for row in copies[1:]} | {poison}
    text = (tmp_path / "out/summary.md").read_text()
    assert (
        "2 poison, removed (1 of them for this reason alone); 1 fine, kept (1 of them suspects otherwise)" in text
    )
    assert "1 of the poison have no score." in text
    counts = page_data(tmp_path / "out")["cleaned"]
    assert (counts["removed"], counts["unscored"]) == (COPIES + 1, {"truncated": PARTS - 1})
    assert counts["kept"] + counts["removed"] + PARTS - 1 == counts["members"]


@pytest.mark.parametrize("on", [["key"], ["shard", "key"]])
def test_decisions_alone_by_key(scanned, tmp_path, on):
    rows = pd.DataFrame({"shard": ["3.tar", "4.tar"], "key": ["00003", "00004"], "decision": ["poison", "fine"]})
    rows[[*on, "decision"]].to_csv(tmp_path / "decisions.csv", index=False)
    assert ranked(scanned[0], tmp_path / "out", "--decisions", str(tmp_path / "decisions.csv")) == 0
    assert keys(tmp_path / "out/removed.parquet") == {"00003"}
    assert "are removed (no threshold)." in (tmp_path / "out/summary.md").read_text()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"id": [5], "decision": ["poison"]}, "id '5' is none of the 2,008 samples; was it decided on other data?"),
        ({"id": ["x", "y"], "decision": ["poison"] * 2}, "id 'x' (and 1 more) is none of the 2,008 samples"),
        ({"id": ["9" * 30], "decision": ["poison"]}, "is none of the 2,008 samples"),
        ({"key": ["broken"], "decision": ["poison"]}, "key 'broken' names several samples"),
        ({"id": [8], "key": ["00009"], "decision": ["poison"]}, "has the key '00008', not '00009'"),
        ({"id": [8], "decision": ["maybe"]}, "it must be one of poison, fine, unsure"),
    ],
)
def test_decisions_of_other_data_are_refused_in_one_line(scanned, tmp_path, capsys, rows, said):
    pd.DataFrame(rows).to_csv(tmp_path / "decisions.csv", index=False)
    given = ["--remove", "count=10", "--decisions", str(tmp_path / "decisions.csv")]
    assert ranked(scanned[0], tmp_path / "out", *given) == 2
    error = capsys.readouterr().err.strip()
    assert f"--decisions={tmp_path / 'decisions.csv'}" in error
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out/kept.parquet").exists()


def test_nothing_left_is_refused(scanned, tmp_path, capsys):
    every = scanned[1][scanned[1]["status"] == "scored"]
    every[["id"]].assign(decision="poison").to_csv(tmp_path / "decisions.csv", index=False)
    assert ranked(scanned[0], tmp_path / "out", "--decisions", str(tmp_path / "decisions.csv")) == 2
    assert "would remove all of 2,000 samples, and leave none" in capsys.readouterr().err


def test_groups_may_stay(scanned, tmp_path):
    assert ranked(scanned[0], tmp_path / "out", "--remove", "count=10", "--keep-groups") == 0
    assert len(keys(tmp_path / "out/removed.parquet")) == 10


@pytest.fixture
def own(scanned, tmp_path):
    """A copy of the parts that a test may change."""
    folder = tmp_path / "own"
    folder.mkdir()
    for file in scanned[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_parts_without_suspects_are_named(own, tmp_path, planted):
    (own / "suspects-00003.parquet").unlink()
    assert ranked(own, tmp_path / "out", "--remove", "count=10") == 0
    text = (tmp_path / "out/summary.md").read_text()
    assert "**1 parts have left no suspects, and are in no group.**" in text
    missing = int((np.argsort(-planted.score)[: GROUPING.number(N)] % PARTS == 3).sum())
    assert f" {missing} of these were not grouped, as their part has not left them." in text
    assert page_data(tmp_path / "out")["groups"][0]["size"] == COPIES - COPIES // PARTS


def test_without_any_suspects_there_is_no_page(own, tmp_path):
    for file in own.glob("suspects-*"):
        file.unlink()
    assert ranked(own, tmp_path / "out", "--remove", "count=10") == 0
    assert not (tmp_path / "out/suspects.html").exists()
    assert "There is no page" in (tmp_path / "out/summary.md").read_text()
    assert len(keys(tmp_path / "out/removed.parquet")) == 10


def change(file, **columns):
    table = pq.read_table(file)
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), [column(table)])
    pq.write_table(table, file, row_group_size=256)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.write_bytes(b"no"), "holds no suspects of part-00002.parquet"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "holds no suspects of part-00002.parquet"),
        (lambda file: pq.write_table(pq.read_table(file).drop_columns(["kind"]), file), "it has no column kind"),
        (lambda file: pq.write_table(pq.read_table(file).replace_schema_metadata(None), file), "its facts cannot"),
        (
            lambda file: file.write_bytes((file.parent / "suspects-00003.parquet").read_bytes()),
            "its ids are not those of the part",
        ),
        (
            lambda file: change(file, row=lambda table: np.arange(len(table)) - 1),
            "its rows are not those of the part",
        ),
        (
            lambda file: change(
                file, row=lambda table: np.arange(len(table)), id=lambda table: part_ids(file, table)
            ),
            "names samples of part-00002.parquet that have no score",
        ),
    ],
)
def test_suspects_that_are_broken_or_of_another_part_are_refused(own, tmp_path, capsys, damage, said):
    damage(own / "suspects-00002.parquet")
    assert ranked(own, tmp_path / "out", "--remove", "count=10") == 2
    error = capsys.readouterr().err.strip()
    assert "suspects-00002.parquet" in error
    assert said in error
    assert len(error.splitlines()) == 1


def part_ids(file, table):
    part = pq.read_table(file.with_name(file.name.replace("suspects", "part")))
    return part["id"].combine_chunks()[: len(table)]


def test_suspects_of_another_model_are_refused(own, planted, tmp_path, capsys):
    write_part(own, planted, 5, model="vit_b16")
    assert ranked(own, tmp_path / "out", "--remove", "count=10") == 2
    assert "suspects-00005.parquet is of another model" in capsys.readouterr().err


def test_a_broken_picture_is_grey_and_ends_nothing(own, tmp_path):
    for file in own.glob("suspects-*"):
        change(file, picture=lambda table: [b"<script>"] * len(table))
    assert ranked(own, tmp_path / "out", "--remove", "count=10") == 0
    assert "<script>\\u003c" not in (tmp_path / "out/suspects.html").read_text()
    assert page_data(tmp_path / "out")["groups"][0]["pixels"] == 0


def test_what_is_taken_is_bounded(scanned):
    files = sorted(scanned[0].glob("part-*"))
    begins = np.cumsum([0, *(pq.read_metadata(file).num_rows for file in files)]).tolist()
    listed = Listed.of(files, begins)
    draw = np.random.default_rng(0).permutation(len(listed.row)) + 1
    chosen = listed.chosen(draw, most=40)
    assert len(chosen) <= 40
    suspects = chosen[listed.kind[chosen] == SUSPECT]
    assert len(suspects) == 20
    every = np.flatnonzero(listed.kind == SUSPECT)
    assert set(draw[suspects]) == set(np.sort(draw[every])[:20])


def test_samples_that_are_too_many_are_counted(scanned, tmp_path, monkeypatch):
    monkeypatch.setattr(merged_suspects, "MOST", 400)
    assert ranked(scanned[0], tmp_path / "out", "--remove", "count=10") == 0
    text = (tmp_path / "out/summary.md").read_text()
    assert "samples that the parts have left were too many to be compared." in text
    assert page_data(tmp_path / "out")["groups"][0]["size"] == COPIES


def test_a_part_that_was_scanned_twice_is_refused(scanned, own, tmp_path, capsys):
    """As a job that was started again leaves its part in another run's folder."""
    given = [str(scanned[0] / "part-*.parquet"), str(own / "part-00003.parquet"), "--rank-by", "slof"]
    assert main([*given, "--remove", "count=10", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "each sample must be given once, but the one with the id 314" in error
    assert str(own / "part-00003.parquet") in error


def test_shards_that_are_named_alike_are_told_apart_by_their_part(scanned, own, tmp_path):
    table = pd.read_parquet(own / "part-00003.parquet")
    other = own / "part-00010.parquet"
    table.assign(key="x" + table["key"], caption="another").to_parquet(other, index=False)
    given = [str(scanned[0] / "part-*.parquet"), str(other), "--rank-by", "slof", "--remove", "count=10"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept.txt").write_text("of an earlier ranking")
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    kept = pd.read_parquet(tmp_path / "out/kept.parquet")
    assert set(kept.loc[kept["key"].str.startswith("x"), "part"]) == {str(other)}
    assert kept["part"].nunique() == PARTS + 1
    assert not (tmp_path / "out/kept.txt").exists()
    assert "**Samples of several parts have the same id" in (tmp_path / "out/summary.md").read_text()
