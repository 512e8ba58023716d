"""The root of the configuration: a schema, so that Hydra refuses a key that does not exist, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.pipeline.quoted_paths import quote_paths


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
    """Where and how to compute; never part of a stage's key, but for the decoder."""

    store: str = "store"
    device: str = "auto"
    workers: int | None = None  # processes that draw, decode and load; None: the number of cores
    # torch's threads; None: the number of cores. Results are the same to the bit only for the same number, and
    # one thread is not slowed down tenfold by whatever else a laptop does: sweeps run jobs side by side instead.
    threads: int | None = 1
    checkpoint_seconds: float = 20.0
    # Of shards' images where they are embedded: "pillow" in `workers` processes, or "torchvision", batch by batch
    # on the device: on a GPU by nvJPEG, for machines with few cores. Canvases differ by a few levels of 255.
    decoder: str = "pillow"


@dataclass
class Root:
    seed: int = 0
    target: str = "banana"
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


_PATTERN = re.compile(r"""[^\s,\[\]'"=][^,\[\]'"]*\{\w+\.\.\w+\}[^,\[\]'"]*|\{\w+\.\.\w+\}[^,\[\]'"]*""")


def quote_patterns(argument: str) -> str:
    """`key=a/{00..07}.tar` -> `key='a/{00..07}.tar'`, alone or in lists: Hydra takes a brace for a dictionary's,
    and the shell has removed the quotes that the user wrote. No dictionary of Hydra's holds `..`."""
    key, sign, value = argument.partition("=")
    if argument.startswith("-") or not sign or "'" in value or '"' in value:
        return quote_paths(argument)
    return quote_paths(key + sign + _PATTERN.sub(lambda found: f"'{found.group().rstrip()}'", value))


def explain(arguments: Sequence[str], folder: Path) -> str | None:
    """What is wrong with the first command-line argument that names nothing, with the choices there are.

    folder: where the YAML files lie.  None if every key exists (the value must be what Hydra refused).
    """
    groups = {path.name: path for path in folder.iterdir() if path.is_dir() and path.name != "hydra"}
    given = [argument.lstrip("+~").split("=", 1) for argument in arguments if not argument.startswith("-")]
    chosen = [f"{key}={value}" for key, value in (pair for pair in given if len(pair) == 2) if key in groups]
    for key, *value in given:
        if key in groups:
            choices = [path.stem for path in groups[key].glob("[!_]*.yaml")]
            for name in value[0].strip("[]").split(",") if value else ():
                if name.strip() not in [*choices, "null"]:
                    return _unknown(f"{key}={name.strip()}", name.strip(), choices, f"{key} is one of")
    for key, *_ in given:
        if key in groups or key.startswith("hydra"):
            continue
        node: Any = _composed(chosen, folder)
        for part in key.split("."):
            if not isinstance(node, DictConfig):
                break
            if part not in node.keys():  # noqa: SIM118  `in` alone denies a key whose value must still be given
                return _unknown(key, part, [str(name) for name in node], "known here are")
            node = node._get_node(part)
    return None


def _composed(overrides: list[str], folder: Path) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
        return OmegaConf.structured(compose("config", overrides))


def _unknown(key: str, part: str, choices: Sequence[str], introduction: str) -> str:
    near = get_close_matches(part, choices, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{key}: there is no {part!r}{hint} ({introduction} {', '.join(sorted(choices))})"
