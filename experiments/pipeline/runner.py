"""Computes the values of an experiment, each at most once; owns the store, the processes and the device."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from experiments.pipeline.earlier_model import check_earlier
from experiments.pipeline.experiment import Experiment
from experiments.pipeline.graph import Call, Run, Stage
from experiments.pipeline.resources import Resources
from experiments.pipeline.stages import STAGES
from experiments.runtime import distributed
from experiments.runtime.store import Entry, Recipe, Store

log = logging.getLogger(__name__)


class Runner:
    """Values of one experiment, by name (see `experiments.pipeline.stages`).

    given: values that stand in place of a stage's, such as `train_ids`.
    """

    def __init__(self, experiment: Experiment, store: Store, resources: Resources, **given: np.ndarray) -> None:
        self.experiment, self.store, self.resources, self.given = experiment, store, resources, given
        self._entries: dict[str, Entry] = {}
        self._values: dict[str, Any] = dict(given)
        self._runners: dict[str, Runner] = {"{}": self}

    @classmethod
    def of(cls, config: DictConfig) -> Runner:
        """Raises ValueError for a configuration that would fail later."""
        check_earlier(experiment := Experiment.of(config))
        return cls(experiment, Store(config.runtime.store), Resources.of(config.runtime))

    def replace(self, experiment: Experiment | None = None, **given: np.ndarray) -> Runner:
        """The same graph with an experiment that differs, or with values given in place of a stage's."""
        return Runner(experiment or self.experiment, self.store, self.resources, **self.given | given)

    def value(self, gives: str, **settings: Any) -> Any:
        """The value, computed or taken from the store. Values of a call with settings are not kept in memory."""
        gives = self.provider(gives)
        if gives in self._values:
            return self._values[gives]
        stage = STAGES[gives]
        found = stage.form.load(self.entry(gives, **settings)) if stage.name else self._compute(stage, settings)
        if not settings:
            self._values[gives] = found
        return found

    def entry(self, gives: str, **settings: Any) -> Entry:
        """The finished entry of a stored stage, computed if no one has yet."""
        gives = self.provider(gives)
        stage, recipe = STAGES[gives], self.stored(gives, settings)
        if stage.wider is not None:  # a damaged table is computed again in the same width
            settings = {**settings, stage.wider: recipe.width}
        if recipe.key in self._entries:
            return self._entries[recipe.key]
        report = log.debug if stage.quiet else log.info
        if not distributed.broadcast(self.store.has(recipe)):
            self._prepare(gives, **settings)
            report("%-10s computing", stage.name)

        def make(folder: Path) -> Mapping[str, Any] | None:
            return stage.form.save(self._compute(stage, settings, folder), folder)

        entry = self.store.get(recipe, make, collective=stage.collective)
        state = "reused" if entry.reused else f"done in {entry.seconds:.1f} s"
        report("%-10s %s  (%s)", stage.name, state, recipe.key)
        self._entries[recipe.key] = entry
        return entry

    def key(self, gives: str, **settings: Any) -> str:
        """The key of a value, from the configuration alone: nothing is computed."""
        gives = self.provider(gives)
        if gives in self.given:
            return hashlib.sha256(np.sort(self.given[gives]).astype("<i8").tobytes()).hexdigest()[:16]
        return self.recipe(gives, settings).key

    def recipe(self, gives: str, settings: Mapping[str, Any]) -> Recipe:
        """Everything that a value depends on: its stage's version and settings, what it reads, its inputs' keys.

        An input that is not stored is replaced by what it reads and by its own inputs, so that the inputs in a
        meta.json are folders of the store. Of two inputs with one role, such as the embeddings of two models, the
        later one's role begins with its parameter: `earlier.embed`.
        """
        stage, experiment = STAGES[gives], self.experiment
        config = {part: experiment.identity(part) for part in stage.reads}
        if own := stage.key_settings(experiment, **settings):
            config["settings"] = dict(own)
        inputs: dict[str, str] = {}
        for parameter, of, name, call in self._inputs(stage, settings):
            if name in of.given or STAGES[name].name is not None:
                inputs[STAGES[name].name or name] = of.key(name, **call.settings)
            else:
                derived = of.recipe(name, call.settings)
                for role, key in derived.inputs.items():
                    inputs[role if inputs.get(role, key) == key else f"{parameter}.{role}"] = key
                config |= {name: derived.config} if derived.config else {}
        return Recipe(stage.name or gives, stage.version(experiment, **settings), config, inputs)

    def provider(self, gives: str) -> str:
        """The name of the value that is used for this one: the stage's `instead`, or the name itself."""
        return gives if gives in self.given else STAGES[gives].instead(self.experiment) or gives

    def stored(self, gives: str, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of the stored result. For a table, that of the narrowest stored table that is wide enough."""
        recipe, wider = self.recipe(gives, settings), STAGES[gives].wider
        return recipe if wider is None else self.store.of_width(recipe, int(settings[wider]))

    def _compute(self, stage: Stage, settings: Mapping[str, Any], folder: Path | None = None) -> Any:
        inputs = {n: of.value(name, **call.settings) for n, of, name, call in self._inputs(stage, settings)}
        return stage.compute(Run(stage, self.experiment, self.resources, folder), **inputs, **settings)

    def _inputs(self, stage: Stage, settings: Mapping[str, Any]) -> Iterator[tuple[str, Runner, str, Call]]:
        """Each input of a stage: its parameter, the runner that gives it, the value's name there, and the call."""
        for parameter, call in stage.inputs(self.experiment, **settings).items():
            of = self._of(call.changes)
            yield parameter, of, of.provider(call.gives), call

    def _of(self, changes: Mapping[str, Any]) -> Runner:
        """The runner of an experiment with these changes; nothing is given in place of a stage there."""
        name = json.dumps(changes, sort_keys=True)
        if name not in self._runners:
            self._runners[name] = Runner(self.experiment.replace(**changes), self.store, self.resources)
        return self._runners[name]

    def _prepare(self, gives: str, **settings: Any) -> None:
        """Compute all stored stages that a value needs, without loading them. All processes take part, since they
        compute some of these stages together; rank 0 can then compute the value alone."""
        for _, of, name, call in self._inputs(STAGES[gives], settings):
            if name not in of.given:
                have = of._prepare if STAGES[name].name is None else of.entry
                have(name, **call.settings)
