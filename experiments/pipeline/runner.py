"""Computes the values of an experiment, each at most once; owns the store, the processes and the device."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
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
        self._tables: dict[tuple[str, int], Recipe] = {}
        self._others: dict[str, Runner] = {}

    @classmethod
    def of(cls, config: DictConfig) -> Runner:
        """Raises ValueError for what can be known to fail later."""
        experiment = Experiment.of(config)
        check_earlier(experiment)
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
        if stage.wider is not None:  # of a damaged table, one as wide is made
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
        """All that decides a value: its stage's version and settings, what it reads, and the keys of its inputs.

        An input that is not stored stands there with what it reads and takes itself, so that the inputs in a
        meta.json name folders of the store. Where two inputs would have one role, as of two models that are
        compared, the later one's role begins with its parameter: `earlier.embed`.
        """
        stage, experiment = STAGES[gives], self.experiment
        config = {part: experiment.identity(part) for part in stage.reads}
        if own := stage.key_settings(experiment, **settings):
            config["settings"] = dict(own)
        inputs: dict[str, str] = {}
        for parameter, call in stage.inputs(experiment, **settings).items():
            of = self._of(call)
            name = of.provider(call.gives)
            if name in of.given or STAGES[name].name is not None:
                inputs[STAGES[name].name or name] = of.key(name, **call.settings)
            else:
                derived = of.recipe(name, call.settings)
                for role, key in derived.inputs.items():
                    inputs[role if inputs.get(role, key) == key else f"{parameter}.{role}"] = key
                config |= {name: derived.config} if derived.config else {}
        return Recipe(stage.name or gives, stage.version(experiment, **settings), config, inputs)

    def provider(self, gives: str) -> str:
        """The name of the value that stands for this one: itself, but for an `instead`."""
        while gives not in self.given and (other := STAGES[gives].instead(self.experiment)) is not None:
            gives = other
        return gives

    def stored(self, gives: str, settings: Mapping[str, Any]) -> Recipe:
        """Where the result is or will be; of a table, one that is at least as wide."""
        recipe, wider = self.recipe(gives, settings), STAGES[gives].wider
        if wider is None:
            return recipe
        width = int(settings[wider])
        if (recipe.key, width) not in self._tables:  # asked once: rank 0 alone cannot broadcast
            self._tables[recipe.key, width] = distributed.broadcast(self.store.of_width(recipe, width))
        return self._tables[recipe.key, width]

    def _compute(self, stage: Stage, settings: Mapping[str, Any], folder: Path | None = None) -> Any:
        calls = stage.inputs(self.experiment, **settings)
        inputs = {name: self._of(call).value(call.gives, **call.settings) for name, call in calls.items()}
        return stage.compute(Run(stage, self.experiment, self.resources, folder), **inputs, **settings)

    def _of(self, call: Call) -> Runner:
        """The runner of the experiment whose value the call asks for."""
        if not call.changes:
            return self
        changes = json.dumps(call.changes, sort_keys=True)
        if changes not in self._others:
            self._others[changes] = Runner(self.experiment.replace(**call.changes), self.store, self.resources)
        return self._others[changes]

    def _prepare(self, gives: str, **settings: Any) -> None:
        """Have all stored stages that a value needs, without loading them. All processes take part, as some of
        these stages are computed together; rank 0 may then compute the value alone."""
        for call in STAGES[gives].inputs(self.experiment, **settings).values():
            of = self._of(call)
            name = of.provider(call.gives)
            if name not in of.given:
                have = of._prepare if STAGES[name].name is None else of.entry
                have(name, **call.settings)
