"""A mistyped word on the command line is answered with the choices there are, in one line, before any work."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiments.pipeline import config
from experiments.pipeline.config_values import check_runtime, check_values, follow_size, settle_size
from experiments.pipeline.renamed import KEYS, VALUES, renamed

FOLDER = Path(__file__).parents[2] / "conf"
config.register()


def composed(*overrides):
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        return compose("config", list(overrides))


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["sed=1"], "sed: there is no 'sed'; did you mean 'seed'?"),
        (["attack=badnet"], "attack=badnet: there is no 'badnet'; did you mean 'badnets'?"),
        (["attack=BadNets"], "attack=BadNets: there is no 'BadNets'; did you mean 'badnets'?"),
        (["attack=clean"], "attack=clean: there is no 'clean'; did you mean 'none'?"),
        (["logger=none"], "logger=none: there is no 'none'; did you mean 'disabled'?"),
        (["detector=[slof,doa]"], "detector=doa: there is no 'doa'; did you mean 'dao'?"),
        (["detector=[slof]", "detector.slof.kk=3"], "detector.slof.kk: there is no 'kk'; did you mean 'k'?"),
        (["detector=[slof]", "detector.dao.k=3"], "detector.dao.k: there is no 'dao' (known here are slof)"),
        (["attack=sig", "train.epoch=3"], "train.epoch: there is no 'epoch'; did you mean 'epochs'?"),
        (["train.Epochs=3"], "train.Epochs: there is no 'Epochs'; did you mean 'epochs'?"),
        (["train/loss=siglp"], "train/loss=siglp: there is no 'siglp'; did you mean 'siglip'?"),
        (["rate=0.1"], "rate: there is no 'rate'; did you mean 'attack.rate'?"),
        (["lr=0.1"], "lr: there is no 'lr'; did you mean 'train.lr'?"),
        (["k=3"], "k: there is no 'k'; did you mean 'scale.k' or 'detector.*.k'?"),
        (["K=3"], "K: there is no 'K'; did you mean 'scale.k' or 'detector.*.k'?"),
        (["detector.k=3"], "detector.k: there is no 'k'; did you mean 'detector.*.k'?"),
        (
            ["attack=blended", "attack.alpha=1"],
            "attack.alpha: there is no 'alpha'; did you mean 'attack.triggers.0.alpha'?",
        ),
        (["detector=_local"], "detector=_local: there is no '_local' (detector is one of abl,"),
        (["train=_options"], "train=_options: there is no '_options' (train is one of paper, photos, small)"),
        (["-m", "attack=sig,bad"], "attack=bad: there is no 'bad'"),
    ],
)
def test_unknown_words_get_their_choices(arguments, answer):
    found = config.explain(arguments, FOLDER)
    assert found is not None
    assert found.startswith(answer)
    assert config.refused(arguments) == found


@pytest.mark.parametrize(
    ("argument", "now"),
    [
        ("data.max_bad=3", "data.max_damaged=3"),
        ("+eval.max_bad=0.1", "eval.max_damaged=0.1"),
        ("scale.lid_k=64", "scale.wide_k=64"),
        ("scale.attacks.multi.rate=0.1", "scale.attacks.multi_trigger.rate=0.1"),
        ("task.grouping.near=0.9", "task.grouping.near_cosine=0.9"),
        ("task.grouping.like=0.9", "task.grouping.like_cosine=0.9"),
        ("task.grouping.shared=0.9", "task.grouping.caption_jaccard=0.9"),
        ("task.grouping={suspects: 0.1, near: 0.9}", "task.grouping.near_cosine=0.9"),
        ("detector.flicker.slight=0.1", "detector.flicker.eps=0.1"),
        ("detector.tandem.slight=0.1,0.2", "detector.tandem.eps=0.1,0.2"),
        (
            "task.ways.safeclip.train.loss.slow_pace=0.1",
            "task.ways.safeclip.train.loss.slow_lr_scale=0.1",
        ),
        ("neighbours.convention=reference", "neighbours.convention=paper_code"),
        ("detector.slof.convention=published,reference", "detector.slof.convention=published,paper_code"),
        ("neighbours={convention: reference}", "neighbours.convention=paper_code"),
        ("runtime.decoder=torchvision", "runtime.decoder=device"),
        ("experiment=normalise", "experiment=raw_vs_normalised"),
        ("experiment=collapse", "experiment=k_vs_poisons"),
        ("experiment=adaptive", "experiment=adaptive_attacks"),
        ("hydra.sweeper.params.data.max_bad=1,2", "hydra.sweeper.params.data.max_damaged=1,2"),
        ("detector.dao.log=true", "detector.dao.form=mean_log"),
        ("detector.dao.log=False", "detector.dao.form=published"),
        ("attack=sig_reference", "attack=sig_blended"),
        ("attack=[badnets,sig_reference]", "attack=[badnets,sig_blended]"),
        ("attack.triggers.0.variant=reference", "attack.triggers.0.variant=blended"),
    ],
)
@pytest.mark.parametrize("others", [[], ["-m"], ["--cfg", "job"]])
def test_an_old_name_is_refused_with_the_new_one(argument, now, others):
    found = config.refused([*others, argument])
    assert found is not None
    assert found.endswith(f": this was renamed, write {now}")
    assert "\n" not in found
    assert renamed([now]) is None


@pytest.mark.parametrize(
    "argument",
    [
        "neighbours.scope=reference",
        "experiment=k_vs_poisons",
        "attack=multi_trigger",
        "data.path=a/reference/max_bad",
        "detector.dao.form=published",
        "data.caption_column=normalise",
        "task.remove.reference=known.txt",
    ],
)
def test_what_only_resembles_an_old_name_stays(argument):
    assert renamed([argument]) is None


def test_the_new_names_exist():
    text = "\n".join(file.read_text() for file in FOLDER.rglob("*.yaml"))
    assert [new for new in KEYS.values() if f"{new.split('.')[-1]}:" not in text] == []
    for group in ("attack", "experiment"):
        assert all((FOLDER / group / f"{name}.yaml").exists() for name in VALUES[group].values())


@pytest.mark.parametrize("others", [[], ["-m"]])
@pytest.mark.parametrize("argument", ["detector=[]", "detector=[ ]", "attack=", "train/loss="])
def test_a_group_without_a_choice_is_one_line(argument, others):
    group = argument.partition("=")[0]
    found = config.refused([*others, argument])
    assert found is not None
    assert found.startswith(f"{argument}: must name at least one choice ({group} is one of ")


def test_known_words_need_no_explanation():
    known = [
        "data=webdataset",
        "data.shards=x",
        "attack=sig",
        "seed=3",
        "detector=[slof,dao]",
        "detector.dao.k=4",
        "hydra.run.dir=x",
        "--help",
        "-m",
        "+new=1",
    ]
    assert config.explain(known, FOLDER) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["data=webdataset", "data.shards=a/{0..3}.tar"],
        ["-m", "attack=sig,badnets", "seed=0,1"],
        ["experiment=k", "scale.k=4,8"],  # a sweep, as the experiment asks for one
        ["task=defences", "~task.ways.safeclip"],
        ["hydra/launcher=processes", "train/loss=siglip"],
        ["-m", "detector=[slof],[dao,lof]"],
        ["~experiment"],
        ["--cfg", "job"],
    ],
)
def test_what_hydra_understands_is_left_to_it(arguments):
    assert config.refused(arguments) is None


@pytest.mark.parametrize(
    ("argument", "says"),
    [("seed=x", "'x' of type 'str' could not be converted to Integer"), ("detector=3", "3"), ("seed=[", "seed")],
)
def test_a_value_that_hydra_refuses_is_one_line(argument, says):
    found = config.refused([argument])
    assert found is not None
    assert says in found
    assert "\n" not in found


def test_the_help_offers_no_shared_file():
    listed = config.groups(FOLDER)
    assert "detector: abl, " in listed
    assert "train/loss: cleanclip, clip, " in listed
    assert ": _" not in listed
    assert ", _" not in listed
    assert OmegaConf.create({"text": "${lookout.groups:}"}).text == listed
    help_text = (FOLDER / "config.yaml").read_text().partition("help:")[2]
    assert "${lookout.groups:}" in help_text
    assert "$APP_CONFIG_GROUPS" not in help_text


@pytest.mark.parametrize(
    ("task", "attack", "name"),
    [
        ("detect", "sig", "sig"),
        ("detect", "none", "clean-csv"),
        ("scan", "none", "scan-csv"),
        ("clean", "sig", "clean-sig"),
    ],
)
def test_a_run_is_named_by_what_it_does(task, attack, name):
    assert config.run_name(task, attack, "csv") == name
    text = "lookout.run_name:${hydra:runtime.choices.task},${hydra:runtime.choices.attack}"
    assert (FOLDER / "config.yaml").read_text().count(text) == 2  # of a run and of a sweep's job


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("detector.lof.k=2.5", "detector.lof.k must be a whole number, got 2.5"),
        ("detector.lof.k=true", "detector.lof.k must be a whole number, got True"),
        ("attack.rate=much", "attack.rate must be a number, got 'much'"),
        ("attack.triggers.0.size=x", "attack.triggers.0.size must be a whole number, got 'x'"),
        ("train.augment.pixels=x", "train.augment.pixels must be a whole number, got 'x'"),
        ("train.clip_norm=x", "train.clip_norm must be a number or null, got 'x'"),
        ("logger.cells=3", "logger.cells must be true or false, got 3"),
        ("seed=-1", r"seed must lie in 0\.\.4294967295, got -1"),
        ("seed=4294967296", r"seed must lie in 0\.\.4294967295, got 4294967296"),
        ("data.seed=-1", r"data\.seed must lie in 0\.\.4294967295, got -1"),
    ],
)
def test_values_of_the_wrong_kind_are_named(override, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        check_values(composed(override))


@pytest.mark.parametrize(
    ("task", "option"),
    [
        ("scan", "gallery"),
        ("scan", "grouping.near_cosine"),
        ("clean", "remove.count"),
        ("invert", "images"),
        ("invert", "lr"),
        ("inspect", "steps"),
        ("inspect", "false_alarms"),
        ("defences", "holdout"),
        ("defences", "ways.cleanclip.finetune"),
        ("clean_and_retrain", "groups"),
    ],
)
def test_options_of_tasks_are_checked(task, option):
    check_values(composed(f"task={task}"))
    with pytest.raises(ValueError, match=rf"^task\.{option} must be .*, got 'x'"):
        check_values(composed(f"task={task}", f"task.{option}=x"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("runtime.device=cuda:99", "runtime.device=cuda:99 cannot be used: torch sees"),
        ("runtime.device=gpu", "runtime.device must be auto, cpu, cuda or cuda:<number>, got 'gpu'"),
        ("runtime.workers=-1", "runtime.workers must be at least 0, got -1"),
        ("runtime.threads=0", "runtime.threads must be at least 1, got 0"),
        ("runtime.log_every=-1", "runtime.log_every must be at least 0, got -1"),
        ("runtime.workers=1000000", "runtime.workers must be at most 1024, got 1000000"),
        ("runtime.threads=1000000", "runtime.threads must be at most 1024, got 1000000"),
        ("runtime.store=''", "runtime.store must name a folder, got ''"),
        ("runtime.decoder=x", "runtime.decoder must be pillow or device, got 'x'"),
    ],
)
def test_a_place_to_compute_that_is_not_there_is_refused(override, says):
    with pytest.raises(ValueError, match=says):
        check_runtime(composed(override).runtime)


@pytest.mark.parametrize(
    ("overrides", "model", "data"),
    [
        (["model=rn50"], 224, 224),
        (["model=small"], 32, 32),
        (["scale.data.size=48"], 48, 48),
        (["data.size=64"], 32, 64),  # refused afterwards, by name
        (["model=open_clip", "model.name=ViT-B-32"], 224, 224),
        (["model=open_clip", "model.name=ViT-L-14-336"], 336, 336),
        (["model=open_clip", "model.name=RN50", "data.size=64"], 64, 64),
        (["model=open_clip", "model.name=RN50", "model.size=96"], 96, 96),
    ],
)
def test_the_size_of_the_data_follows_the_model(overrides, model, data):
    for source in ([], ["data=webdataset", "data.shards=x"], ["eval=folders", "eval.path=x"]):
        config = settle_size(composed(*overrides, *source))
        config = follow_size(config, config.model.size)
        assert (config.model.size, config.data.size) == (model, data)
        if source and source[0] == "eval=folders":
            assert config.eval.size == model


def test_the_size_follows_a_model_folder():
    config = follow_size(settle_size(composed("model=trained", "model.folder=x")), 96)
    assert config.data.size == 96


@pytest.mark.parametrize(
    ("arguments", "mode", "added"),
    [
        ([], "disabled", ["logger=disabled"]),
        (["seed=1"], "dryrun", ["logger=offline"]),
        ([], "ONLINE", ["logger=online"]),
        (["logger=offline"], "disabled", []),
        (["logger.mode=offline"], "disabled", []),
        ([], None, []),
        ([], "", []),
    ],
)
def test_wandb_mode_counts_where_no_logger_is_named(arguments, mode, added):
    assert config.tracking_mode(arguments, mode) == added


def test_an_unknown_wandb_mode_is_named():
    with pytest.raises(ValueError, match="WANDB_MODE must be online, offline or disabled, got 'on'"):
        config.tracking_mode([], "on")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data.shards=a/{00000..00007}.tar", "a/{00000..00007}.tar"),
        ("data.shards={00000..00007}.tar", "{00000..00007}.tar"),
        ("data.shards='a/{00000..00007}.tar'", "a/{00000..00007}.tar"),
        ("data.shards=/my sets/{a..c}/{0..7}.tar", "/my sets/{a..c}/{0..7}.tar"),
        ("data.shards=s3://b/{0..7}.tar", "s3://b/{0..7}.tar"),
        ("data.shards=[a/{0..3}.tar, b/{0..7}.tar,c]", ["a/{0..3}.tar", "b/{0..7}.tar", "c"]),
        ("neighbours={scope: batch, batch_size: 100}", {"scope": "batch", "batch_size": 100}),
        ("data.shards=${oc.env:HOME}/x", "${oc.env:HOME}/x"),
    ],
)
def test_brace_patterns_reach_hydra_whole(argument, expected):
    override = OverridesParser.create().parse_override(config.quote_patterns(argument))
    value = override.value()
    assert getattr(value, "text", value) == expected


def test_brace_patterns_can_be_swept_over():
    override = OverridesParser.create().parse_override(
        config.quote_patterns("data.shards=a/{0..3}.tar,b/{0..7}.tar")
    )
    assert override.is_sweep_override()
    assert config.quote_patterns("--config-dir=a/{0..3}") == "--config-dir=a/{0..3}"
