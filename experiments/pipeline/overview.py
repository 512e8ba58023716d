"""`python run.py --stages`: every stage, what it reads and takes, and what the store holds of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from experiments.pipeline.graph import STAGES, Call, Stage
from experiments.pipeline.runner import Runner


def overview(runner: Runner) -> str:
    """The graph and the state of the store, as text; nothing is computed, and no result is read."""
    calls = _calls(runner)
    lines = [f"Stages, in order. Their results are in {runner.store.root}.", ""]
    for stage in STAGES.values():
        if stage.name is not None:
            lines += [*_stored_stage(runner, stage, calls.get(stage.gives, [])), ""]
    lines += ["Values that are made from these when they are needed, and not stored:", ""]
    for stage in STAGES.values():
        if stage.name is None:
            reads = f"; reads {', '.join(stage.reads)}" if stage.reads else ""
            lines += [f"{stage.gives}: {summary(stage)}", f"  takes {_takes(stage)}{reads}"]
    return "\n".join(lines) + "\n"


def summary(stage: Stage) -> str:
    """What it computes, in a line."""
    return (stage.compute.__doc__ or "").strip().splitlines()[0]


def _calls(runner: Runner) -> dict[str, list[dict[str, Any]]]:
    """Value -> the settings of each call by which the main job asks for it."""
    found: dict[str, list[dict[str, Any]]] = {}
    waiting = [Call("cell", {"spec": spec}) for spec in runner.experiment.specs()]
    while waiting:
        call = waiting.pop(0)
        gives, settings = runner.provider(call.gives), dict(call.settings)
        if settings not in found.setdefault(gives, []):
            found[gives].append(settings)
            inputs = STAGES[gives].inputs(runner.experiment, **settings).values()
            waiting += [call for call in inputs if not call.changes]  # those are of another configuration
    return found


def _stored_stage(runner: Runner, stage: Stage, calls: list[dict[str, Any]]) -> Iterator[str]:
    numbers = {str(stage.version(runner.experiment, **settings)) for settings in calls or [{}]}
    version = f"version {numbers.pop()}" if len(numbers) == 1 else "versions of the detectors"
    folder = runner.store.root / str(stage.name)
    finished = [file for file in folder.glob("*/meta.json") if file.parent.suffix != ".partial"]
    yield f"{stage.name} ({version}): {summary(stage)}"
    yield f"  gives  {stage.gives}"
    yield f"  takes  {_takes(stage)}"
    yield f"  reads  {', '.join(stage.reads) or 'nothing of the configuration'}"
    yield f"  store  {len(finished)} finished"
    for settings in calls:
        recipe = runner.stored(stage.gives, settings)
        state = "in the store" if runner.store.path(recipe).is_dir() else "not in the store"
        yield f"  here   {recipe.key} {state}{_label(settings)}"
    if not calls:
        yield "  here   not used by this configuration"


def _label(settings: dict[str, Any]) -> str:
    """How one of several calls differs from the others, such as `, slof on raw embeddings`."""
    if "spec" in settings:
        detector, normalise = settings["spec"].detector, settings["spec"].normalise
        side = "" if normalise is None else " on normalised embeddings" if normalise else " on raw embeddings"
        return f", {detector}{side}"
    if "search" in settings:
        identity = " ".join(f"{name}={value}" for name, value in settings["search"].identity.items())
        return f", k={settings['k']} {identity}"
    return ""


def _takes(stage: Stage) -> str:
    """The values that the computation is given, by their names in the graph."""
    spec = inspect.getfullargspec(stage.compute)
    needed = ", and what the detector needs" if spec.varkw else ""
    return (", ".join(spec.args[1:]) or "nothing") + needed
