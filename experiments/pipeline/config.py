"""The root of the configuration: a schema, so that Hydra refuses an unknown key by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from experiments.pipeline import entry_points
from experiments.pipeline.quoted_paths import quote_paths
from experiments.pipeline.renamed import renamed
from experiments.runtime.nearest_name import nearest_names

CONF = Path(conf.__file__).parent


@dataclass
class Neighbourhood:
    """Shared by every local detector; see `detect.NeighbourSearch`."""

    scope: str = "batch"
    batch_size: int = 2048
    modality: str = "image"
    convention: str = "published"  # "paper_code": as the paper's public code computes it
    backend: str = "auto"


@dataclass
class Runtime:
    """Where and how to compute; part of no stage's key, except the decoder and, on CPUs, the number of threads."""

    store: str = "store"
    device: str = "auto"
    workers: int | None = None  # processes that draw, decode and load; None: the number of cores
    # torch's threads; None: the number of cores. Results agree to the bit only for the same number, so on a CPU it
    # is part of the keys of what is trained and embedded. The default is one thread: several threads become up to
    # ten times slower while other programs run. Sweeps run jobs side by side instead.
    threads: int | None = 1
    checkpoint_seconds: float = 20.0
    # Of shards' images where they are embedded: "pillow" in `workers` processes, or "device", batch by batch
    # on the device: on a GPU by nvJPEG, for machines with few cores. Canvases differ by a few levels of 255.
    decoder: str = "pillow"
    log_every: int = 100  # steps of training between two log lines of its progress; 0: none


@dataclass
class Root:
    seed: int = 0
    target: str = "banana"
    target_new: bool = False  # a target that no caption and no class of the data names
    # "poisoned", or "clean": the control in which the model never saw the poisons that it embeds.
    train_on: str = "poisoned"
    normalise: list[bool] = field(default_factory=lambda: [True, False])
    scale: Any = MISSING
    attack: Any = MISSING
    data: Any = MISSING
    eval: Any = MISSING
    model: Any = MISSING
    train: Any = MISSING
    detector: Any = MISSING
    task: Any = MISSING
    neighbours: Neighbourhood = field(default_factory=Neighbourhood)
    runtime: Runtime = field(default_factory=Runtime)
    logger: Any = MISSING


def register() -> None:
    ConfigStore.instance().store(name="schema", node=Root)
    entry_points.register()
    OmegaConf.register_new_resolver("lookout.run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("lookout.groups", lambda: groups(CONF), replace=True)


_PATTERN = re.compile(r"""[^\s,\[\]'"=][^,\[\]'"]*\{\w+\.\.\w+\}[^,\[\]'"]*|\{\w+\.\.\w+\}[^,\[\]'"]*""")


def quote_patterns(argument: str) -> str:
    """`key=a/{00..07}.tar` -> `key='a/{00..07}.tar'`, alone or in lists: Hydra takes a brace for a dictionary's,
    and the shell has removed the quotes that the user wrote. No dictionary of Hydra's holds `..`."""
    key, sign, value = argument.partition("=")
    if argument.startswith("-") or not sign or "'" in value or '"' in value:
        return quote_paths(argument)
    return quote_paths(key + sign + _PATTERN.sub(lambda found: f"'{found.group().rstrip()}'", value))


ALIASES = {  # what people write: the choice that does it
    "logger": dict.fromkeys(("none", "off", "no", "false", "null"), "disabled") | {"wandb": "offline"},
    "attack": {"clean": "none", "no": "none"},
    "data": {"wds": "webdataset", "tar": "webdataset", "shards": "webdataset", "tsv": "csv", "parquet": "csv"},
    "model": {"resnet50": "rn50", "vit-b/16": "vit_b16"},
}
_FLAGS = {"-m", "--multirun"}


def tracking_mode(arguments: Sequence[str], mode: str | None) -> list[str]:
    """The override that W&B's own WANDB_MODE stands for, unless the command line names a logger: ValueError."""
    if not mode or any(re.match(r"[+~]*logger\b", argument) for argument in arguments):
        return []
    mode = {"dryrun": "offline", "run": "online"}.get(mode.lower(), mode.lower())
    if mode not in ("online", "offline", "disabled"):
        raise ValueError(f"WANDB_MODE must be online, offline or disabled, got {mode!r}")
    return [f"logger={mode}"]


def is_plain(arguments: Sequence[str]) -> bool:
    """Whether all arguments are overrides, so that `explain` understands the whole command line."""
    return all("=" in argument or argument in _FLAGS or argument[0] == "~" for argument in arguments if argument)


def refused(arguments: Sequence[str]) -> str | None:
    """One line that says why the command line cannot be composed; None if it can, or if only Hydra knows."""
    entry_points.check(CONF)
    if found := renamed(arguments) or _empty_choice(arguments, CONF):
        return found
    if not is_plain(arguments):
        return None
    if _FLAGS & set(arguments):  # values of a sweep are composed job by job
        return explain(arguments, CONF)
    if found := _unknown_choice(_given(arguments), CONF):
        return found
    try:
        _compose([quote_patterns(argument) for argument in arguments], CONF)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if str(error).startswith("Ambiguous value"):  # a list, or a sweep, which an experiment may allow
            return None
        lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines()]
        said = dict.fromkeys(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))
        given = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
        return explain(arguments, CONF) or given + " ".join(said)
    return None


def composed(arguments: Sequence[str]) -> DictConfig:
    """The configuration that the overrides compose; ValueError for other options and for a sweep."""
    if others := [argument for argument in arguments if not is_plain([argument]) or argument in _FLAGS]:
        raise ValueError(f"--stages takes overrides (key=value) beside it, got {others[0]}")
    try:
        return _compose([quote_patterns(argument) for argument in arguments], CONF)
    except HydraException as error:
        raise ValueError(f"--stages shows one configuration: {' '.join(str(error).split())}") from error


def explain(arguments: Sequence[str], folder: Path) -> str | None:
    """What is wrong with the first argument that names no key or choice, and the choices that exist.

    folder: where the YAML files lie.  None if every key exists (the value must be what Hydra refused).
    """
    given = _given(arguments)
    if found := _unknown_choice(given, folder):
        return found
    groups = _groups(folder)
    chosen, unset = [], []
    for key, value in given:
        group = key.partition("@")[0]
        if group not in groups:
            unset += [key] if key[:5] != "hydra" else []
        elif names := _names(value) if not group.startswith("hydra") else []:
            chosen.append(f"{key}={value if value.startswith('[') else names[0]}")
    try:
        root = _compose(chosen, folder) if unset else None
    except (HydraException, OmegaConfBaseException, ValueError):
        return None  # Hydra will say why
    for key in unset:
        node: Any = root
        for part in key.split("."):
            if not isinstance(node, DictConfig):
                break
            if part not in node.keys():  # noqa: SIM118  `in` alone denies a key whose value must still be given
                return _unknown(key, part, [str(name) for name in node], "known here are", _deeper(key, part, root))
            node = node._get_node(part)
    return None


def _given(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Key and value of each override; those that add a key (`+`) name what need not exist."""
    pairs = (argument.lstrip("~").partition("=") for argument in arguments if not argument.startswith(("-", "+")))
    return [(key, value) for key, _, value in pairs]


def _groups(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_dir()}


def _empty_choice(arguments: Sequence[str], folder: Path) -> str | None:
    """The first group that is given nothing to choose: `detector=[]`, `attack=`."""
    groups = _groups(folder)
    for key, sign, value in (argument.partition("=") for argument in arguments):
        if sign and not value.strip(" []'\",") and key in groups and not key.startswith("hydra"):
            choices = ", ".join(sorted(entry_points.choices(folder, key)))
            return f"{key}={value}: must name at least one choice ({key} is one of {choices})"
    return None


def _unknown_choice(given: Sequence[tuple[str, str]], folder: Path) -> str | None:
    """The first choice that its group does not have. Files that choices share (`_*.yaml`) are not choices."""
    groups = _groups(folder)
    for key, value in given:
        group = key.partition("@")[0]
        if group not in groups or group.startswith("hydra"):
            continue
        choices = entry_points.choices(folder, group)
        for name in _names(value):
            if name not in [*choices, "null"]:
                return _unknown(f"{key}={name}", name, choices, f"{key} is one of", ALIASES.get(group, {}))
    return None


def _names(value: str) -> list[str]:
    """The choices in `a`, `a,b`, `[a,b]` or `[a],[b]`; none where only Hydra can work them out."""
    if not value or any(sign in value for sign in "($*"):
        return []
    return [name for part in value.split(",") if (name := part.strip(" []'\""))]


def _compose(overrides: list[str], folder: Path) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        return OmegaConf.structured(compose("config", overrides))


def _deeper(key: str, part: str, root: Any) -> dict[str, str]:
    """{part: the full keys that end in it, in any case, below where it was looked for}; of all detectors one."""
    found: dict[str, None] = {}
    within = key.rpartition(part)[0].casefold() if "." in key else ""

    def walk(node: Any, path: tuple[str, ...]) -> None:
        inside = (
            node.keys() if isinstance(node, DictConfig) else range(len(node)) if OmegaConf.is_list(node) else ()
        )
        for name in inside:
            here = (*path, str(name))
            full = ".".join(here).casefold()
            if full.startswith(within) and full.endswith("." + part.casefold()):
                found[".".join(("detector", "*", *here[2:]) if here[0] == "detector" and here[2:] else here)] = None
            walk(node._get_node(name), here)

    walk(root, ())
    least = min((full.count(".") for full in found), default=0)
    near = [full for full in found if full.count(".") == least or full.startswith("detector.*")]
    return {part.casefold(): "' or '".join(near)} if near else {}


def _unknown(key: str, part: str, choices: Sequence[str], introduction: str, meant: Mapping[str, str]) -> str:
    near = nearest_names(part, choices)
    known = meant.get(part.casefold())
    if known and not (near and near[0].casefold() == part.casefold()):
        near = [known]
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{key}: there is no {part!r}{hint} ({introduction} {', '.join(sorted(choices))})"


def run_name(task: str, attack: str, data: str) -> str:
    """What a run is called: by its attack, and where nothing is attacked by its data."""
    what = f"clean-{data}" if attack == "none" else attack
    if task == "detect":
        return what
    return f"{task}-{data}" if attack == "none" else f"{task}-{attack}"


def groups(folder: Path) -> str:
    """A line for each group of choices, without the files that choices share (`_*.yaml`)."""
    lines = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        files = sorted(entry_points.choices(folder, name)) if path.is_dir() else []
        if files:
            lines.append(f"{name}: {', '.join(files)}")
    return "\n".join(lines) + "\n"
