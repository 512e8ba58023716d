"""Image files from a table: columns, damage, held-out share, classes, paths, going on after a stop."""

import codecs
import json
import os
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from experiments.data.damage import TooMuchDamage
from experiments.data.image_files import ImageFolder
from experiments.data.pairs import open_pairs, open_test
from experiments.data.tables import Files
from experiments.data.test_set import caption_labels, frequent_words, read_classes, seeded_shares

COLOURS = {"red": (220, 20, 30), "green": (20, 200, 40), "blue": (30, 40, 220)}


def _folder(path, n=60, header=("filepath", "title"), sep=",", name="data.csv", damage=True):
    """n solid-colour pictures whose captions tell the colour; rows 7 and 8 are damaged."""
    (path / "pictures").mkdir(parents=True)
    lines = [sep.join(header)]
    for row in range(n):
        colour = list(COLOURS)[row % 3]
        Image.new("RGB", (24, 16), COLOURS[colour]).save(path / f"pictures/{row}.png")
        caption = f"a {colour} picture" if row % 4 else "some picture"
        lines.append(sep.join([f"pictures/{row}.png", "" if damage and row == 8 else caption]))
    if damage:
        (path / "pictures/7.png").write_bytes(b"")
    (path / name).write_text("\n".join(lines) + "\n")
    return str(path / name)


def _files(table, **options):
    return Files(table, **{"size": 16, "classes": list(COLOURS), "holdout": 0.3, **options})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    files = _files(_folder(source))
    files.build(folder)
    return files, source, folder


def test_every_sound_row_is_there_once_with_its_image(built):
    _, _, folder = built
    pairs, test = open_pairs(folder), open_test(folder)
    assert len(pairs) + len(test) == 58
    assert not {7, 8} & set(pairs.ids)
    expected = np.array([list(COLOURS.values())[row % 3] for row in pairs.ids])
    np.testing.assert_array_equal(pairs.images(np.arange(len(pairs)))[:, 3, 3], expected)
    np.testing.assert_array_equal(
        test.images(np.arange(len(test)))[:, 3, 3], np.array(list(COLOURS.values()))[test.labels]
    )
    assert 5 <= len(test) <= 22
    named = [i for i, row in enumerate(pairs.ids) if row % 4]
    assert all(list(COLOURS)[pairs.ids[i] % 3] in pairs.captions[i] for i in named)
    assert len(test.templates) == 80


def test_damage_is_listed(built):
    summary = json.loads((built[2] / "damage.json").read_text())
    assert summary["damage"] == {"empty file": 1, "missing caption": 1}
    assert summary["left_out"] == 2
    assert "7,pictures/7.png,empty file,,1" in (built[2] / "damage.csv").read_text().splitlines()
    assert not (built[2] / "parts").exists()


def test_same_result_with_two_workers_and_what_is_held_out_does_not_move(built, tmp_path):
    files, source, folder = built
    files.build(tmp_path, workers=2)
    for part in ("images.npy", "test/images.npy", "captions.parquet", "damage.csv"):
        assert (tmp_path / part).read_bytes() == (folder / part).read_bytes(), part
    broken = source / "pictures/11.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:20])
    try:
        again = tmp_path / "again"
        files.build(again)
    finally:
        broken.write_bytes(content)
    assert set(open_pairs(again).ids) == set(open_pairs(folder).ids) - {11}


@pytest.mark.parametrize(
    ("name", "sep", "options"),
    [("data.tsv", "\t", {}), ("data.txt", "\t", {}), ("data.csv", ";", {"sep": ";"})],
)
def test_separators(built, tmp_path, name, sep, options):
    table = _folder(tmp_path, sep=sep, name=name)
    files = _files(table, **options)
    assert files.read_table() == built[0].read_table()


def test_parquet_and_other_columns(tmp_path, built):
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths, captions = built[0].read_table()
    pq.write_table(pa.table({"img": paths, "n": list(range(60)), "text": captions}), tmp_path / "data.parquet")
    files = _files(str(tmp_path / "data.parquet"), img_key="img", caption_key="text", root=str(built[1]))
    assert files.read_table() == (paths, captions)
    files.build(tmp_path / "built")
    assert (tmp_path / "built/images.npy").read_bytes() == (built[2] / "images.npy").read_bytes()


def test_quotes_newlines_and_numbers_in_captions(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    (tmp_path / "data.csv").write_text('filepath,title\n0.png,"red,\n ""big""  house"\n0.png,2024\n0.png,"  "\n')
    _, captions = _files(str(tmp_path / "data.csv")).read_table()
    assert captions == ['red, "big" house', "2024", None]


def _captions(path, content, name="data.csv", **options):
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return _files(str(path / name), **options).read_table()[1]


def test_a_tab_separated_caption_may_begin_with_a_lone_quote(tmp_path):
    lines = [f'{row}.png\t"caption {row}' if row % 50 == 3 else f'{row}.png\tcaption "{row}"' for row in range(200)]
    captions = _captions(tmp_path, "\n".join(["filepath\ttitle", *lines]), "data.tsv")
    assert captions == [line.split("\t")[1] for line in lines]
    content = 'filepath\ttitle\n0.png\t"a ""big""\n house"\n'
    assert _captions(tmp_path, content, "data.tsv", quoting=True) == ['a "big" house']


@pytest.mark.parametrize("end", ['"end', 'end"', 'the "end"', "end"])
def test_an_unclosed_quote_in_a_csv_is_refused_with_its_row(tmp_path, end):
    lines = [f"{row}.png,caption {row}" for row in range(60)]
    lines[20], lines[40] = '20.png,"so it begins', f"40.png,{end}"
    content = "\n".join(["filepath,title", *lines]) + "\n"
    with pytest.raises(ValueError, match=r"row 20 \(line 22\): .*quote.*data.quoting=false") as refused:
        _captions(tmp_path, content)
    assert "\n" not in str(refused.value)
    captions = _captions(tmp_path, content, quoting=False)
    assert (len(captions), captions[20], captions[40]) == (60, '"so it begins', end)


def test_texts_of_several_lines_stay_allowed(tmp_path):
    content = 'filepath,title\n0.png,"red, green\nand blue, and\n\ncat.jpg"\n\n1.png,"b\r\nc"\n'
    assert _captions(tmp_path, content) == ["red, green and blue, and cat.jpg", "b c"]
    content = 'filepath,title\n0.png,"red, green\n1.png, and more"\n'
    assert _captions(tmp_path, content, quoting=True) == ["red, green 1.png, and more"]


def test_words_for_nothing_are_words(tmp_path):
    words = ["NA", "null", "nan", "None", "True", "-1", "1e5", "#N/A"]
    content = "filepath,title\n" + "".join(f"{row}.png,{word}\n" for row, word in enumerate([*words, "", " "]))
    assert _captions(tmp_path, content) == [*words, None, None]


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE])
def test_tables_with_a_byte_order_mark(tmp_path, mark):
    encoding = {3: "utf-8", 2: "utf-16-le", 4: "utf-32-le"}[len(mark)]
    if mark == codecs.BOM_UTF16_BE:
        encoding = "utf-16-be"
    content = mark + 'filepath,title\r\n"0.png",un été\r\n1.png,名前\r\n'.encode(encoding)
    assert _captions(tmp_path, content) == ["un été", "名前"]


def test_encodings(tmp_path):
    content = "filepath,title\n" + "".join(f"{row}.png,caption\n" for row in range(5000))
    content = (content + "5000.png,un été\n5001.png,x\n").encode("latin-1")
    with pytest.raises(ValueError, match=r"data.csv, row 5000 \(line 5002\): not in utf-8 .*give data.encoding"):
        _captions(tmp_path, content)
    assert _captions(tmp_path, content, encoding="latin-1")[5000] == "un été"
    with pytest.raises(ValueError, match=r"row 5000 .*not in ascii"):
        _captions(tmp_path, content, encoding="ascii")
    with pytest.raises(ValueError, match=r"data.encoding='utf-88' is no text encoding"):
        _captions(tmp_path, content, encoding="utf-88")
    with pytest.raises(ValueError, match=r"data.encoding='idna' is no text encoding"):
        _captions(tmp_path, content, encoding="idna")
    with pytest.raises(ValueError, match=r"data.sep must be one character"):
        _captions(tmp_path, content, sep="||")
    odd = "filepath,title\n0.png,a\n".encode("utf-16") + b"1"
    with pytest.raises(ValueError, match="not in utf-16-le"):
        _captions(tmp_path, odd)


@pytest.mark.parametrize("name", ["data.csv", "data.parquet"])
def test_a_column_named_twice_is_refused(tmp_path, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    if name == "data.csv":
        (tmp_path / name).write_text("filepath,title,other,other,title\n0.png,a,b,c,d\n")
    else:
        table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["filepath", "title", "title"])
        pq.write_table(table, tmp_path / name)
    with pytest.raises(ValueError, match=r"data.caption_key='title': .* has 2 columns of this name"):
        _files(str(tmp_path / name)).read_table()


def test_rows_of_the_wrong_length_are_counted(tmp_path):
    table = _folder(tmp_path / "data", n=9, damage=False)
    with open(table, "a") as stream:
        stream.write("pictures/1.png\n\npictures/2.png,a, b\npictures/3.png,last\n")
    _files(table, max_damaged=1, holdout=0).build(tmp_path / "built")
    listed = (tmp_path / "built/damage.csv").read_text()
    assert '9,,broken row,"1 fields, not 2 (row 9 (line 11))",1' in listed
    assert open_pairs(tmp_path / "built").ids.tolist() == [*range(9), 11]


def test_captions_of_a_parquet_table_that_are_no_texts(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def built(captions, kind=None):
        table = pa.table({"filepath": ["0.png"] * len(captions), "title": pa.array(captions, kind)})
        pq.write_table(table, tmp_path / "data.parquet")
        _files(str(tmp_path / "data.parquet"), max_damaged=1, holdout=0).build(tmp_path / "built")
        summary = json.loads((tmp_path / "built/damage.json").read_text())
        return list(open_pairs(tmp_path / "built").captions), summary["damage"], summary["notes"]

    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    first = {"list of captions, first taken": 2}
    assert built([["a", "b"], [], None, ["c"]]) == (["a", "c"], {"missing caption": 2}, first)
    assert built([1.5, float("nan"), None]) == ([], {"missing caption": 2, "broken caption": 1}, {})
    assert built([True, False]) == ([], {"broken caption": 2}, {})
    assert built([{"en": "a"}, None]) == ([], {"broken caption": 1, "missing caption": 1}, {})
    assert built(["NaN", "x" * 3000]) == (["NaN", "x" * 2000], {}, {"caption cut at 2000 characters": 1})
    assert built([b"a cat"], pa.binary()) == (["a cat"], {}, {})


def test_a_million_letters_and_halves_of_surrogates_are_one_samples_matter(tmp_path):
    table = _folder(tmp_path / "data", n=9, damage=False)
    with open(table, "ab") as stream:
        stream.write(b"pictures/1.png," + b"x" * 1_000_000 + b"\n")
        stream.write(b"pictures/1.png,half \xed\xa0\xbd\npictures/\xed\xa0\xbd.png,one\n\0.png,two\n")
    _files(table, max_damaged=1, holdout=0).build(tmp_path / "built")
    summary = json.loads((tmp_path / "built/damage.json").read_text())
    assert summary["damage"] == {"broken caption": 1, "broken file name": 1, "unreadable file": 1}
    assert summary["notes"] == {"caption cut at 2000 characters": 1}


@pytest.mark.parametrize(
    "name", ["a\u202fb.png", "a\u00a0b.png", "a\u3000b.png", "a  b.png", " a.png", "a\u0301.png", "a\tb.png"]
)
def test_names_of_files_are_taken_as_they_are(tmp_path, name):
    folded = " ".join(name.replace("a\u0301", "\u00e1").split())
    Image.new("RGB", (16, 16), "black").save(tmp_path / folded)
    (tmp_path / "data.csv").write_text(f'filepath,title\n"{name}",a caption\n', encoding="utf-8")
    files = _files(str(tmp_path / "data.csv"), holdout=0, max_damaged=1)
    files.build(tmp_path / "built")
    assert len(open_pairs(tmp_path / "built")) == 0
    listed = (tmp_path / "built/damage.csv").read_text()
    assert "missing file" in listed
    assert "of which this is another spelling" in listed
    Image.new("RGB", (16, 16), "white").save(tmp_path / name)
    files.build(tmp_path / "again")
    assert open_pairs(tmp_path / "again").images(np.array([0]))[0, 0, 0].tolist() == [255] * 3


def test_captions_in_which_no_word_comes_twice(tmp_path):
    table = _folder(tmp_path / "data", n=3, damage=False)
    for captions in (["一只猫", "两只狗", "红色的房子"], ["2021-05-01", "2021-05-02", "2021-05-03"]):
        lines = [f"pictures/{row}.png,{caption}" for row, caption in enumerate(captions)]
        Path(table).write_text("\n".join(["filepath,title", *lines]), encoding="utf-8")
        with pytest.raises(ValueError, match=r"fewer than 2 frequent words .*give data.classes"):
            _files(table, classes=20).build(tmp_path / "built")
        _files(table, classes=20, holdout=0).build(tmp_path / captions[0])
        assert list(open_pairs(tmp_path / captions[0]).captions) == captions
    np.testing.assert_array_equal(caption_labels(["a cat", ""], ()), [-1, -1])


def test_paths_may_not_leave_the_folder(tmp_path):
    table = _folder(tmp_path / "data", damage=False)
    Image.new("RGB", (16, 16)).save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", tmp_path / "data/pictures/link.png")
    with open(table, "a") as stream:
        stream.write(f"../secret.png,one\npictures/link.png,two\n{tmp_path}/secret.png,three\n")
        stream.write(f"{tmp_path}/data/pictures/1.png,inside\npictures,a folder\nnone.png,four\n")
    _files(table, max_damaged=1).build(tmp_path / "built")
    summary = json.loads((tmp_path / "built/damage.json").read_text())
    assert summary["damage"] == {"outside the folder": 2, "missing file": 2, "link out of the folder": 1}
    assert "pictures/link.png,link out of the folder" in (tmp_path / "built/damage.csv").read_text()
    assert 63 in open_pairs(tmp_path / "built").ids
    _files(table, max_damaged=1, follow_links=True).build(tmp_path / "followed")
    summary = json.loads((tmp_path / "followed/damage.json").read_text())
    assert summary["damage"] == {"outside the folder": 2, "missing file": 2}
    assert {61, 63} <= set(open_pairs(tmp_path / "followed").ids)


def test_a_path_through_a_link_and_back_is_refused(tmp_path):
    table = _folder(tmp_path / "data", n=9, damage=False)
    (tmp_path / "elsewhere/inner").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "elsewhere/secret.png")
    os.symlink(tmp_path / "elsewhere/inner", tmp_path / "data/out")
    os.symlink("loop", tmp_path / "data/loop")
    with open(table, "a") as stream:
        stream.write("out/../secret.png,one\nloop,two\n")
    _files(table, max_damaged=1, follow_links=True, holdout=0).build(tmp_path / "built")
    summary = json.loads((tmp_path / "built/damage.json").read_text())
    assert summary["damage"]["outside the folder"] == 1
    assert summary["left_out"] == 2


def test_the_layout_of_hugging_faces_cache(tmp_path):
    """Everything in a snapshot is a link to a blob, the table too."""
    table = _folder(tmp_path / "blobs", n=9, damage=False)
    (tmp_path / "snapshot/pictures").mkdir(parents=True)
    os.symlink(table, tmp_path / "snapshot/data.csv")
    for row in range(9):
        os.symlink(tmp_path / f"blobs/pictures/{row}.png", tmp_path / f"snapshot/pictures/{row}.png")
    files = _files(str(tmp_path / "snapshot/data.csv"), max_damaged=1, follow_links=True, holdout=0)
    files.build(tmp_path / "built")
    assert len(open_pairs(tmp_path / "built")) == 9
    before = files.fingerprint()
    Image.new("RGB", (16, 16), "white").save(tmp_path / "blobs/pictures/3.png")
    assert files.fingerprint() != before


def test_too_much_damage_stops_with_the_report_and_keeps_the_rest(tmp_path, monkeypatch):
    table = _folder(tmp_path / "data")
    files = _files(table, max_damaged=0.01)
    with pytest.raises(TooMuchDamage, match=r"2 of 60 .*max_damaged=0\.01 .*damage.csv.*data\.max_damaged=0\.035"):
        files.build(tmp_path / "built")
    assert len((tmp_path / "built/damage.csv").read_text().splitlines()) == 3
    read = _record_reads(monkeypatch)
    _files(table, max_damaged=0.04).build(tmp_path / "built")
    assert read == ["pictures/7.png"]  # and what was read before is not read again
    assert len(open_pairs(tmp_path / "built")) + len(open_test(tmp_path / "built")) == 58


def _record_reads(monkeypatch):
    read, original = [], ImageFolder.read

    def recorded(self, path):
        read.append(path)
        return original(self, path)

    monkeypatch.setattr(ImageFolder, "read", recorded)
    return read


def test_mended_files_are_read_again_and_only_they(tmp_path, monkeypatch):
    """As the store has it: another fingerprint is another folder."""
    table, data = _folder(tmp_path / "data", n=600), tmp_path / "store/data"
    for row in (300, 301):
        (tmp_path / f"data/pictures/{row}.png").write_bytes(b"<html>")
    (data / "one.partial").mkdir(parents=True)
    (data / "two.partial").mkdir()
    before = _files(table).fingerprint()
    with pytest.raises(TooMuchDamage):
        _files(table, max_damaged=0).build(data / "one.partial")
    for row in (7, 300):
        Image.new("RGB", (24, 16), "white").save(tmp_path / f"data/pictures/{row}.png")
    Image.new("RGB", (24, 16), "black").save(tmp_path / "data/pictures/20.png")  # sound before, but another now
    assert _files(table).fingerprint() != before
    read = _record_reads(monkeypatch)
    _files(table, holdout=0).build(data / "two.partial")
    assert sorted(read) == ["pictures/20.png", "pictures/300.png", "pictures/301.png", "pictures/7.png"]
    pairs = open_pairs(data / "two.partial")
    assert set(range(600)) - set(pairs.ids.tolist()) == {8, 301}
    shown = {row: pairs.images(np.flatnonzero(pairs.ids == row))[0, 5, 5].tolist() for row in (7, 20, 300, 301 - 2)}
    assert shown == {7: [255] * 3, 20: [0] * 3, 300: [255] * 3, 299: list(COLOURS["blue"])}
    assert json.loads((data / "two.partial/damage.json").read_text())["left_out"] == 2
    assert not (data / "two.partial/parts").exists()
    assert not list((data / "one.partial/parts").iterdir())  # nobody would ever take them up again


def test_parts_of_a_build_that_goes_on_are_left_to_it(tmp_path):
    table, data = _folder(tmp_path / "data", n=9, damage=False), tmp_path / "store/data"
    (data / "one.partial").mkdir(parents=True)
    (data / "two.partial").mkdir()
    with pytest.raises(ValueError, match="no caption names"):
        _files(table, classes=["x", "y"]).build(data / "one.partial")
    (tmp_path / "data/pictures/1.png").write_bytes(b"")
    with pytest.raises(TooMuchDamage):
        _files(table, max_damaged=0).build(data / "one.partial")
    with FileLock(data / "one.lock"):
        _files(table, max_damaged=1).build(data / "two.partial")
    assert list((data / "one.partial/parts").glob("*/*.npz"))


def test_replaced_images_and_changed_modes_change_the_fingerprint(tmp_path):
    table = _folder(tmp_path / "data", n=9, damage=False)
    seen = [_files(table).fingerprint()]
    picture = tmp_path / "data/pictures/3.png"
    Image.new("RGB", (24, 16), "white").save(picture)
    seen.append(_files(table).fingerprint())
    picture.chmod(0o000)  # root reads it all the same, others do not
    seen.append(_files(table).fingerprint())
    picture.unlink()
    seen.append(_files(table).fingerprint())
    assert len(set(seen)) == 4
    assert _files(table).fingerprint() == seen[-1]


def test_an_unreadable_file_is_counted_and_tried_again(tmp_path, monkeypatch):
    table = _folder(tmp_path / "data", n=9, damage=False)
    original = Path.read_bytes

    def refuse(self):
        if self.name == "4.png":
            raise PermissionError(13, "Permission denied")
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(TooMuchDamage, match="unreadable file 1"):
        _files(table, max_damaged=0).build(tmp_path / "built")
    monkeypatch.undo()
    _files(table, max_damaged=0).build(tmp_path / "built")
    assert len(open_pairs(tmp_path / "built")) + len(open_test(tmp_path / "built")) == 9


@pytest.mark.parametrize("broken", ["npz", "json"])
def test_a_part_that_is_cut_short_is_read_again(tmp_path, broken):
    table = _folder(tmp_path / "data")
    with pytest.raises(TooMuchDamage):
        _files(table, max_damaged=0).build(tmp_path / "built")
    (part,) = (tmp_path / "built/parts").glob(f"*/*.{broken}")
    part.write_bytes(part.read_bytes()[:100])
    _files(table).build(tmp_path / "built")
    assert len(open_pairs(tmp_path / "built")) + len(open_test(tmp_path / "built")) == 58


def test_a_changed_table_is_read_again(tmp_path):
    table = _folder(tmp_path / "data")
    with pytest.raises(TooMuchDamage):
        _files(table, max_damaged=0).build(tmp_path / "built")
    before = _files(table).fingerprint()
    with open(table, "a") as stream:
        stream.write("pictures/0.png,a red one\n")
    assert _files(table).fingerprint() != before
    _files(table).build(tmp_path / "built")
    assert json.loads((tmp_path / "built/damage.json").read_text())["samples"] == 61


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"img_key": "filepaht"},
            r"data.img_key='filepaht' is no column .*'filepath', 'title'; did you mean 'filepath'",
        ),
        ({"caption_key": "x"}, r"data.caption_key='x' is no column of .*its columns: 'filepath', 'title'$"),
        ({"classes": ["cat", "dog"]}, "no caption names exactly one of the 2 classes"),
        ({"classes": ["cat"]}, "at least 2 class names, got 1"),
    ],
)
def test_bad_options_found_before_reading_images(tmp_path, options, message):
    files = _files(_folder(tmp_path / "data"), **options)
    with pytest.raises(ValueError, match=message):
        files.build(tmp_path / "built")
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "none.csv"}, "no file 'none.csv'"),
        ({"root": "nowhere"}, "no folder 'nowhere'"),
        ({"classes": "none.txt"}, "no file 'none.txt'"),
        ({"holdout": 1.0}, r"data.holdout must lie in \[0, 1\), got 1.0"),
        ({"max_damaged": -0.1}, r"data.max_damaged must lie in \[0, 1\], got -0.1"),
    ],
)
def test_bad_options_are_refused_on_construction(tmp_path, options, message):
    table = _folder(tmp_path / "data", n=3)
    with pytest.raises(ValueError, match=message):
        Files(**{"table": table, "size": 16, **options})


def test_nothing_held_out(tmp_path):
    files = _files(_folder(tmp_path / "data"), holdout=0)
    files.build(tmp_path / "built")
    assert (len(open_pairs(tmp_path / "built")), len(open_test(tmp_path / "built"))) == (58, 0)


def test_captions_name_a_class_as_whole_words():
    classes = ("tree", "pine tree", "Cat")
    captions = ["Tree", "a pine  tree", "street", "cat and tree", "CAT, cat", "", "pine tree and tree", "trees"]
    np.testing.assert_array_equal(caption_labels(captions, classes), [0, 1, -1, -1, 2, -1, -1, -1])


def test_class_file_and_frequent_words(tmp_path):
    (tmp_path / "classes.txt").write_text("\ufeffred\n\nblue  # a colour\nred\n# mine\n", encoding="utf-8")
    assert read_classes(str(tmp_path / "classes.txt")) == ("red", "blue")
    captions = ["the cat"] * 3 + ["a dog photo"] * 2 + ["one bird", "x 12 of"] + ["other"] * 13
    assert frequent_words(captions, 2) == ("cat", "dog")


def test_seeded_shares_are_uniform_and_of_id_and_seed_alone():
    ids = np.arange(50_000) * 7
    shares = seeded_shares(ids, 3)
    counts = np.histogram(shares, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 2500).max() < 5 * 2500**0.5
    np.testing.assert_array_equal(seeded_shares(ids[::-5], 3), shares[::-5])
    assert abs(np.corrcoef(shares, seeded_shares(ids, 4))[0, 1]) < 0.02
    assert abs(np.corrcoef(shares[1:], shares[:-1])[0, 1]) < 0.02
