"""What a stage is: a function with declared inputs, whose result is kept under a key of all that can change it.

The function's first parameter is the `Run`. The other positional parameters name values that other stages give, and
keyword-only parameters are the settings of one call. `experiments.pipeline.stages` lists all stages.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.pipeline.experiment import Experiment
from experiments.pipeline.resources import Resources

STAGES: dict[str, Stage] = {}
"""The name of a value -> the stage that gives it, in the order of the pipeline."""


@dataclass(frozen=True)
class Call:
    """The value that is asked for, by name, with the settings of the call.

    changes: keys of the configuration that differ in the experiment whose value it is, such as `train_on`.
    """

    gives: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One step.

    name: the store's folder; None for a value that is made anew from its inputs and not stored.
    gives: the value's name.  compute: (run, inputs, settings) -> value, or None where it writes into `run.folder`.
    version: raised when the code changes its results; (experiment, settings) -> a value where that depends on them.
    reads: parts of the experiment that the computation may use, and on which the key depends.
    inputs: (experiment, settings) -> the values that it takes, by parameter.
    key_settings: (experiment, settings) -> what else belongs to the key.
    instead: experiment -> the name of the value that stands for this one, or None.
    form: how a stored value is saved and loaded (`values.Form`).
    collective: under torchrun all processes compute it together.  quiet: logged for debugging only.
    wider: the setting for which a stored result with a larger value can be used as well.
    """

    name: str | None
    gives: str
    compute: Callable[..., Any]
    version: Callable[..., Any]
    inputs: Callable[..., Mapping[str, Call]]
    reads: tuple[str, ...] = ()
    key_settings: Callable[..., Mapping[str, Any]] = lambda experiment, **settings: settings
    instead: Callable[[Experiment], str | None] = lambda experiment: None
    form: Any = None
    collective: bool = False
    quiet: bool = False
    wider: str | None = None


def stage(
    name: str | None,
    gives: str,
    *,
    version: int | Callable[..., Any] = 1,
    inputs: Callable[..., Mapping[str, Call]] | None = None,
    optional: Mapping[str, Callable[[Experiment], bool]] | None = None,
    **options: Any,
) -> Callable[[Callable[..., Any]], Stage]:
    """Declare the function below as a stage; see `Stage`, also for the other options.

    inputs: by default the positional parameters after `run`, those in `optional` only where its function says so.
    """

    def declare(compute: Callable[..., Any]) -> Stage:
        names = inspect.getfullargspec(compute).args[1:]

        def from_signature(experiment: Experiment, **settings: Any) -> dict[str, Call]:
            return {n: Call(n) for n in names if optional is None or n not in optional or optional[n](experiment)}

        versions = version if callable(version) else lambda experiment, **settings: version
        return STAGES.setdefault(gives, Stage(name, gives, compute, versions, inputs or from_signature, **options))

    return declare


class Run:
    """What a computation may use beside its inputs; reading anything else raises AttributeError.

    folder: where the files of a stored value go, until it has ended; None for others.  resources: are in no key.
    Beside them the parts of the experiment that the stage declares.
    """

    def __init__(self, of: Stage, experiment: Experiment, resources: Resources, folder: Any = None) -> None:
        self._stage, self._experiment, self.resources = of, experiment, resources.ready()
        self.folder: Path = folder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._stage.reads:
            declared = ", ".join(self._stage.reads) or "nothing"
            raise AttributeError(f"stage {self._stage.gives!r} declares {declared}; it may not read {name!r}")
        return getattr(self._experiment, name)
