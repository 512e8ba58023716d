"""Decisions of a person win over a threshold; what names no sample, two, or another's is refused in one line."""

import numpy as np
import pandas as pd
import pytest

from experiments.data.cleaned_folder import claim
from experiments.tasks import Clean
from experiments.tasks.cleaned_copy import KEPT, REMOVED, UNSCORED, tally
from experiments.tasks.decisions import Decisions, decided_lines
from experiments.tasks.thresholds import Threshold

FIRST = 2**62


@pytest.fixture
def fates():
    """Ten samples; a threshold removes the first four, the last one has no score."""
    return pd.DataFrame(
        {
            "id": FIRST + np.arange(10),
            "shard": ["a.tar"] * 5 + ["b.tar"] * 5,
            "key": [f"{row % 5}" for row in range(9)] + ["=cmd()"],
            "status": ["scored"] * 9 + ["broken image"],
            "known_clean": pd.array([False] * 8 + [True, None], "boolean"),
            "fate": [REMOVED] * 4 + [KEPT] * 5 + [UNSCORED],
        }
    )


@pytest.fixture
def decided(tmp_path):
    """decided(lines) -> the decisions of a CSV file with these lines."""

    def read(*lines, head="id,shard,key,decision,note"):
        file = tmp_path / "decisions.csv"
        file.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
        return Decisions.read(str(file))

    return read


def test_poison_goes_and_fine_stays_wherever_they_rank(fates, decided):
    decisions = decided(
        f'{FIRST + 1},a.tar,1,fine,"a logo, seen"',
        f"{FIRST + 2},a.tar,2,unsure,",
        f"{FIRST + 6},b.tar,1,poison,'=patch",
        f"{FIRST + 7},,,Fine,",
        f"{FIRST + 4},a.tar,4,unsure,",
        f"{FIRST + 3},a.tar,3,poison,",
    )
    after = decisions.overrule(fates)
    assert after["fate"].tolist() == [REMOVED, KEPT, REMOVED, REMOVED, KEPT, KEPT, REMOVED, KEPT, KEPT, UNSCORED]
    assert after["note"].tolist()[1] == "a logo, seen"
    counts = tally(after, 10)
    assert counts["decisions"] == {"fine": 2, "poison": 2, "unsure": 2}
    assert counts["members"] == counts[KEPT] + counts[REMOVED] + sum(counts[UNSCORED].values())
    text = "\n".join(decided_lines(after, keep_unscored=False))
    assert (
        "2 poison, removed (1 of them for this reason alone); 2 fine, kept (1 of them suspects otherwise)" in text
    )
    assert "2 unsure, as the threshold says" in text
    assert "no score" not in text


@pytest.mark.parametrize("choice", ["poison", "fine"])
def test_what_has_no_score_can_be_removed_but_not_saved(fates, decided, choice):
    after = decided(f"b.tar,'=cmd(),{choice}", head="shard,key,decision").overrule(fates)
    assert after["fate"].iloc[9] == (REMOVED if choice == "poison" else UNSCORED)
    assert tally(after, 10)[REMOVED] == 4 + (choice == "poison")
    assert "no score" in "\n".join(decided_lines(after, keep_unscored=False))


def test_a_key_alone_will_do_where_it_is_of_one_sample(fates, decided):
    assert decided("=cmd(),poison", head="\ufeffkey,decision").overrule(fates)["fate"].iloc[9] == REMOVED
    with pytest.raises(ValueError, match=r"key '3' \(and 1 more\) names several samples; name it by its shard"):
        decided("=cmd(),poison", "3,fine", "2,fine", head="key,decision").overrule(fates)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([f"{FIRST},a.tar,0,bad,"], r"has the decision 'bad'; it must be one of poison, fine, unsure"),
        ([f"{FIRST},a.tar,0,,"], r"has the decision ''; it must be"),
        ([f"{FIRST},a.tar,0,poison,", f"{FIRST},a.tar,0,fine,"], "is decided in two ways; keep one"),
        (
            [f"{FIRST},a.tar,0,poison,", "5,a.tar,9,fine,", "6,a.tar,9,fine,"],
            r"id '5' \(and 1 more\) is none of the 10",
        ),
        (["4.61169E+18,a.tar,0,poison,"], r"id '4\.61169E\+18' is none of the 10 samples"),
        ([f"0{FIRST},a.tar,0,poison,"], "is none of the 10 samples"),
        ([f"{FIRST},a.tar,1,poison,"], r"has the key '0', not '1'; was it decided on other data\?"),
        ([f"{FIRST},b.tar,0,poison,"], r"has the shard 'a\.tar', not 'b\.tar'"),
        ([f"{FIRST + 8},b.tar,3,poison,"], r"names 1 samples as poison that task\.remove\.reference names"),
        ([f"{FIRST},,1,poison,"], r"has the key '0', not '1'"),
        ([], "holds no decision"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(fates, decided, lines, message):
    with pytest.raises(ValueError, match=message) as refused:
        decided(*lines).overrule(fates)
    assert "\n" not in str(refused.value)
    assert "task.decisions" in str(refused.value)


def test_not_every_sample_can_be_poison(fates, decided):
    fates = fates.assign(known_clean=False)
    with pytest.raises(ValueError, match="would remove all samples that have a score"):
        decided(*(f"{FIRST + row},poison" for row in range(10)), head="id,decision").overrule(fates)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id;decision\n1;poison\n", "must have the columns id or key, and decision, but has id;decision"),
        (b"", "cannot be read"),
        (b"id,decision\n\xff\xfe\x00,poison\n", "cannot be read"),
        (None, "must be a CSV file, but there is none at"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, message):
    file = tmp_path / "d.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Clean(remove=Threshold(), decisions=str(file))  # before any work


def test_a_clean_needs_a_threshold_or_decisions(decided):
    with pytest.raises(ValueError, match=r"needs exactly one of share, .*fdr, or task\.decisions"):
        Clean(remove=Threshold())
    file = str(decided(f"{FIRST},fine", head="id,decision").file)
    assert Clean(remove=Threshold(), decisions=file)
    with pytest.raises(ValueError, match="reference serves false_positives and fdr, not decisions alone"):
        Threshold(reference=file)


def test_other_decisions_are_another_clean(decided, tmp_path):
    """The order of the rows and the notes change nothing; a decision does."""
    lines = [f"{FIRST},poison,why", f"{FIRST + 1},fine,"]
    head = "id,decision,note"
    first = decided(*lines, head=head).digest
    assert decided(*lines[::-1], head=head).digest == first
    assert decided(lines[0].replace("why", ""), lines[1], head=head).digest == first
    other = decided(lines[0], head=head).digest
    assert other != first
    assert decided(lines[0].replace("poison", "fine"), lines[1], head=head).digest not in (first, other)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/cleaned.json").write_text(f'{{"task.decisions": "{first}"}}')
    claim(tmp_path / "new", [], {"task.decisions": first})
    with pytest.raises(ValueError, match=r"cleaned with another task\.decisions; name another folder"):
        claim(tmp_path / "new", [], {"task.decisions": other})
