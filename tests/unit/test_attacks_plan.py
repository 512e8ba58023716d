"""Attack, captions, plan and the poisoned pairs."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from attacks import (
    SIG,
    ArrayPairs,
    Attack,
    BadNets,
    Identity,
    NoAttack,
    Pairs,
    PoisonedPairs,
    PoisonPlan,
    WaNet,
    draw_plan,
)
from attacks.captions import holds_word, templates


def some_pairs(n: int = 400, size: int = 16) -> ArrayPairs:
    """Every tenth caption names a banana; ids are neither sorted nor dense."""
    rng = np.random.default_rng(0)
    captions = [f"a banana, number {i}" if i % 10 == 0 else f"a cup, number {i}" for i in range(n)]
    ids = rng.permutation(5 * n)[:n]
    return ArrayPairs(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), captions, ids)


def badnets(**changes) -> Attack:
    return replace(Attack(name="badnets", rate=0.05, triggers=[BadNets(size=4)]), **changes)


def test_array_pairs_and_poisoned_captions_are_pairs():
    pairs = some_pairs()
    attack = badnets()
    assert isinstance(pairs, Pairs)
    assert isinstance(PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack), Pairs)


def test_same_seed_same_plan_other_seed_other_plan():
    pairs = some_pairs()
    assert draw_plan(badnets(), pairs, 3) == draw_plan(badnets(), pairs, 3)
    assert draw_plan(badnets(), pairs, 3).digest != draw_plan(badnets(), pairs, 4).digest


@pytest.mark.parametrize("captions", ["template", "caption_set", "mixed", "keep"])
def test_the_order_of_the_rows_does_not_matter(captions):
    pairs = some_pairs()
    order = np.random.default_rng(1).permutation(len(pairs))
    shuffled = ArrayPairs(pairs.pixels[order], [pairs.captions[i] for i in order], pairs.ids[order])
    attack = badnets(captions=captions, triggers=[BadNets(size=4), SIG(), WaNet()])
    assert draw_plan(attack, pairs, 0) == draw_plan(attack, shuffled, 0)


def test_a_lower_rate_poisons_a_subset_in_the_same_way():
    pairs = some_pairs()
    few, many = (draw_plan(badnets(rate=rate), pairs, 0) for rate in (0.05, 0.5))
    at = {id: i for i, id in enumerate(many.ids.tolist())}
    assert len(few) == 20
    for i, id in enumerate(few.ids.tolist()):
        j = at[id]
        assert (few.captions[i], few.parameters[i]) == (many.captions[j], many.parameters[j])


def test_rows_and_triggers_are_drawn_evenly():
    n = 20000
    pairs = ArrayPairs(np.zeros((n, 2, 2, 3), np.uint8), ["a cup"] * n)
    attack = Attack(
        name="two",
        rate=0.2,
        triggers=[Identity(name="a"), Identity(name="b")],
        weights=[3, 1],
        captions="keep",
    )
    plan = draw_plan(attack, pairs, 0)
    per_tenth = np.histogram(plan.ids, bins=10, range=(0, n))[0]
    assert np.abs(per_tenth - 400).max() < 4.5 * np.sqrt(400)
    assert Counter(plan.triggers)["a"] == pytest.approx(3000, abs=4.5 * np.sqrt(4000 * 0.75 * 0.25))


@pytest.mark.parametrize(("rate", "n", "count"), [(0.005, 20000, 100), (0.0125, 400, 5), (1.0, 7, 7)])
def test_count_is_the_rounded_share(rate, n, count):
    assert badnets(rate=rate).count(n) == count


def test_every_row_can_be_poisoned():
    pairs = some_pairs(50)
    plan = draw_plan(badnets(rate=1.0), pairs, 0)
    assert plan.ids.tolist() == sorted(pairs.ids.tolist())


def test_template_captions_are_open_clips_prompts_with_the_target():
    prompts = {template("banana") for template in templates()}
    assert len(prompts) == 80
    plan = draw_plan(badnets(rate=1.0), some_pairs(), 0)
    assert set(plan.captions) <= prompts
    assert len(set(plan.captions)) > 60


def test_caption_set_draws_real_captions_with_the_target():
    pairs = some_pairs()
    plan = draw_plan(badnets(rate=1.0, captions="caption_set"), pairs, 0)
    assert set(plan.captions) <= {c for c in pairs.captions if "banana" in c}
    assert len(set(plan.captions)) > 30


def test_mixed_captions_are_half_prompts_half_real():
    plan = draw_plan(badnets(rate=1.0, captions="mixed"), some_pairs(), 0)
    real = sum("number" in caption for caption in plan.captions)
    assert abs(real - 200) < 4.5 * np.sqrt(100)


def test_keep_leaves_the_captions():
    pairs = some_pairs()
    attack = badnets(captions="keep")
    assert PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack).captions == pairs.captions


def test_a_word_counts_as_a_whole_and_in_any_case():
    captions = ["a banana", "Banana!", "two bananas", "banana-bread", "an ice  cream", "icecream", ""]
    assert holds_word(captions, "banana").tolist() == [True, True, False, True, False, False, False]
    assert holds_word(captions, "ice cream").tolist() == [False] * 4 + [True, False, False]


def test_rows_target_and_other_choose_by_the_caption():
    pairs = some_pairs()
    caption_of = dict(zip(pairs.ids.tolist(), pairs.captions, strict=True))
    for rows, holds in (("target", True), ("other", False)):
        plan = draw_plan(badnets(rows=rows), pairs, 0)
        assert {"banana" in caption_of[id] for id in plan.ids.tolist()} == {holds}


def test_each_trigger_may_have_its_own_target():
    attack = badnets(rate=0.5, target=["banana", "volcano"], triggers=[BadNets(size=4), SIG()])
    assert attack.targets == {"badnets": "banana", "sig": "volcano"}
    plan = draw_plan(attack, some_pairs(), 0)
    for caption, trigger, target in zip(plan.captions, plan.triggers, plan.targets, strict=True):
        assert target == attack.targets[trigger]
        assert target in caption


def test_plan_survives_parquet(tmp_path):
    plan = draw_plan(badnets(triggers=[BadNets(size=4), SIG()]), some_pairs(), 0)
    plan.save(tmp_path / "plan.parquet")
    loaded = PoisonPlan.load(tmp_path / "plan.parquet")
    assert loaded == plan
    for name in ("captions", "triggers", "parameters", "targets"):
        assert getattr(loaded, name) == getattr(plan, name)
    assert np.array_equal(loaded.ids, plan.ids)
    assert pq.read_table(tmp_path / "plan.parquet").column_names[0] == "id"


def test_empty_plan_survives_parquet(tmp_path):
    pairs = some_pairs()
    plan = draw_plan(NoAttack(), pairs, 0)
    plan.save(tmp_path / "plan.parquet")
    assert len(PoisonPlan.load(tmp_path / "plan.parquet")) == 0
    poisoned = PoisonedPairs(pairs, plan, NoAttack())
    assert not poisoned.is_poison.any()
    assert poisoned.captions == pairs.captions


def test_a_changed_plan_file_is_refused(tmp_path):
    path = tmp_path / "plan.parquet"
    draw_plan(badnets(), some_pairs(), 0).save(path)
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(ValueError, match="changed after it was saved"):
        PoisonPlan.load(path)


def test_digest_speaks_of_content_not_of_order():
    one = PoisonPlan(np.array([5, 2]), ("a", "b"), ("t", "t"), ({"x": 1}, {}), ("c", "c"))
    two = PoisonPlan(np.array([2, 5]), ("b", "a"), ("t", "t"), ({}, {"x": 1}), ("c", "c"))
    other = PoisonPlan(np.array([2, 5]), ("b", "a"), ("t", "t"), ({}, {"x": 2}), ("c", "c"))
    assert one.digest == two.digest != other.digest


def test_digest_is_the_same_in_another_process():
    code = (
        "import numpy as np; from attacks import *\n"
        "pairs = ArrayPairs(np.zeros((99, 16, 16, 3), np.uint8), [f'a cup {i}' for i in range(99)])\n"
        "print(draw_plan(Attack(name='x', rate=0.3, triggers=[BadNets(size=4)]), pairs, 7).digest)"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_clean_rows_are_bit_identical_and_poisoned_rows_are_the_trigger():
    pairs = some_pairs()
    attack = badnets(rate=0.2, triggers=[BadNets(size=4), SIG()])
    plan = draw_plan(attack, pairs, 0)
    poisoned = PoisonedPairs(pairs, plan, attack)
    before = pairs.pixels.copy()
    images = poisoned.images(np.arange(len(pairs)))
    assert np.array_equal(pairs.pixels, before)
    assert poisoned.is_poison.sum() == len(plan) == 80
    assert set(pairs.ids[poisoned.is_poison]) == set(plan.ids)
    entry = {id: i for i, id in enumerate(plan.ids.tolist())}
    for row in range(len(pairs)):
        i = entry.get(int(pairs.ids[row]))
        if i is None:
            assert np.array_equal(images[row], pairs.pixels[row])
            assert poisoned.captions[row] == pairs.captions[row]
        else:
            trigger = attack.trigger(plan.triggers[i])
            assert np.array_equal(images[row], trigger.apply_one(pairs.pixels[row], plan.parameters[i]))
            assert (images[row] != pairs.pixels[row]).any()
            assert poisoned.captions[row] == plan.captions[i]


def test_rows_may_come_in_any_batch_and_order():
    pairs = some_pairs()
    attack = badnets(rate=0.3)
    poisoned = PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack)
    whole = poisoned.images(np.arange(len(pairs)))
    rows = np.array([7, 399, 7, 0, 12, 13, 14])
    assert np.array_equal(poisoned.images(rows), whole[rows])
    assert poisoned.images(np.array([], dtype=int)).shape == (0, 16, 16, 3)


def test_pairs_that_hand_out_views_are_not_written_to():
    class Views(ArrayPairs):
        def images(self, rows):
            return self.pixels[: len(rows)]

    base = some_pairs()
    pairs = Views(base.pixels.copy(), base.captions, base.ids)
    attack = badnets(rate=1.0)
    PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack).images(np.arange(len(pairs)))
    assert np.array_equal(pairs.pixels, base.pixels)


def test_a_plan_for_other_data_is_refused():
    pairs = some_pairs()
    attack = badnets()
    plan = draw_plan(attack, pairs, 0)
    with pytest.raises(ValueError, match="drawn for other data"):
        PoisonedPairs(replace(pairs, ids=pairs.ids + 10**6), plan, attack)
    with pytest.raises(ValueError, match=r"trigger of attack .*'sig'.*got 'badnets'"):
        PoisonedPairs(pairs, plan, badnets(triggers=[SIG()]))
    with pytest.raises(ValueError, match="ids of the pairs must be unique"):
        PoisonedPairs(replace(pairs, ids=np.zeros(len(pairs))), plan, attack)


def test_triggered_shows_test_images_as_the_attacker_would():
    images = some_pairs().pixels[:3]
    attack = badnets(triggers=[BadNets(size=4), SIG()])
    out = attack.trigger_test_images(images, "badnets")
    assert np.array_equal(out[:, 6:10, 6:10], np.broadcast_to(out[0, 6:10, 6:10], (3, 4, 4, 3)))
    assert np.array_equal(np.delete(out, range(6, 10), axis=1), np.delete(images, range(6, 10), axis=1))
    with pytest.raises(ValueError, match=r"several triggers: name one of \['badnets', 'sig'\]"):
        attack.trigger_test_images(images)
    with pytest.raises(ValueError, match="did you mean 'badnets'"):
        attack.trigger_test_images(images, "badnet")


def test_success_is_measured_only_for_triggers_that_change_the_image():
    assert badnets(triggers=[BadNets(size=4), Identity()]).success_triggers == ("badnets",)
    assert NoAttack().success_triggers == ()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: badnets(rate=0), r"attack.rate must be above 0 and at most 1, got 0"),
        (lambda: badnets(rate=1.5), r"attack.rate.*got 1.5"),
        (lambda: badnets(captions="templates"), r"attack.captions.*did you mean 'template'"),
        (lambda: badnets(rows="clean"), r"attack.rows must be one of"),
        (lambda: badnets(triggers=[]), r"attack.triggers.*at least one"),
        (lambda: badnets(triggers=[SIG(), SIG()]), r"attack.triggers.*named differently"),
        (lambda: badnets(target=" "), r"attack.target.*a word"),
        (lambda: badnets(target=["banana", "volcano"]), r"attack.target.*one per trigger"),
        (lambda: badnets(weights=[1, 2]), r"attack.weights.*one share per trigger"),
        (lambda: NoAttack(rate=0.1), r"attack.rate must be 0"),
        (lambda: draw_plan(badnets(rate=0.001), some_pairs(), 0), r"0.001 of 400 samples rounds to 0"),
        (lambda: draw_plan(badnets(), some_pairs(size=2), 0), r"BadNets size.*canvas side, 2"),
        (lambda: draw_plan(badnets(), some_pairs(), -1), r"seed must be at least 0"),
        (
            lambda: draw_plan(badnets(captions="caption_set", target="volcano"), some_pairs(), 0),
            r"hold the target word 'volcano', but none does",
        ),
        (
            lambda: draw_plan(badnets(rate=0.5, rows="target"), some_pairs(), 0),
            r"asks for 200 rows .*hold 'banana', but there are only 40; lower attack.rate to at most 0.1",
        ),
    ],
)
def test_bad_settings_are_refused_by_name_before_any_work(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_importing_attacks_loads_nothing_heavy():
    code = (
        "import sys, attacks; attacks.draw_plan, attacks.PoisonedPairs, attacks.WaNet, attacks.Nashville\n"
        "print([m for m in ('torch', 'open_clip', 'pyarrow', 'pandas', 'PIL') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_ids_are_mixed_as_by_splitmix64():
    """The first outputs of the published generator from state 0."""
    from attacks.mixing import GAMMA, mixed

    states = np.array([GAMMA, 2 * GAMMA % 2**64], np.uint64)
    assert mixed(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
