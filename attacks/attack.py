"""An attack: triggers + captions + a choice of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import numpy as np

from attacks.captions import MODES, check_source, check_targets
from attacks.triggers.base import Trigger, require

ROWS = ("random", "target", "other", "source")


def _one_of(value: str, choices: Sequence[str], parameter: str) -> None:
    if value not in choices:
        near = get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{parameter} must be one of {list(choices)}, got {value!r}{hint}")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What the attacker does to a data set; `attacks.draw_plan` draws it for one.

    Args:
        rate: share of the samples that is poisoned, 0 < rate <= 1.
        target: the word the attacker wants predicted; a list gives each trigger a target of its own.
        captions: "template" (an OpenAI ImageNet prompt with the target), "caption_set" (a real caption of
            the data that holds the target), "mixed" (either, half and half), "keep", or "target" (the target
            itself, which is then a whole caption).
        triggers: one or several; each poisoned sample gets one of them.
        weights: the triggers' shares among the poisoned samples; equal where not given.
        rows: "random" (as in the paper: any row, also one that already names the target), "target" (only
            captions that hold the target word: clean label), "other" (only those that do not) or "source"
            (only those that hold the word `source` and not the target).
        source: a class of the test images. Success is then measured on the images of this class alone, and
            without a change to them where the trigger makes none.
    """

    name: str
    rate: float
    target: str | Sequence[str] = "banana"
    captions: str = "template"
    triggers: Sequence[Trigger] = field(default_factory=tuple)
    weights: Sequence[float] | None = None
    rows: str = "random"
    source: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "triggers", tuple(self.triggers))
        if not isinstance(self.target, str):
            object.__setattr__(self, "target", tuple(self.target))
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))
        self._validate()

    def _validate(self) -> None:
        require(0 < self.rate <= 1, "attack.rate", "above 0 and at most 1", self.rate)
        _one_of(self.captions, MODES, "attack.captions")
        _one_of(self.rows, ROWS, "attack.rows")
        self._validate_source()
        names = [trigger.name for trigger in self.triggers]
        require(len(names) > 0, "attack.triggers", "a list of at least one trigger", names)
        require(len(set(names)) == len(names), "attack.triggers", "named differently", names)
        patched = [trigger.name for trigger in self.triggers if trigger.needs_patch]
        require(len(patched) < 2, "attack.triggers", "with at most one patch to optimise", patched)
        words = [self.target] if isinstance(self.target, str) else list(self.target)
        require(all(isinstance(w, str) and w.strip() for w in words), "attack.target", "a word", self.target)
        if not isinstance(self.target, str):
            require(len(words) == len(names), "attack.target", f"one word, or one per trigger {names}", words)
            require(
                self.rows != "target" or len(set(words)) == 1,
                "attack.rows",
                "'random' or 'other' where triggers have targets of their own",
                self.rows,
            )
        if self.weights is not None:
            ok = len(self.weights) == len(names) and min(self.weights) >= 0 and sum(self.weights) > 0
            require(ok, "attack.weights", f"one share per trigger {names}, none below 0", self.weights)

    def _validate_source(self) -> None:
        given = isinstance(self.source, str) and bool(self.source.strip())
        if self.rows == "source" or self.source is not None:
            require(given, "attack.source", "a word where attack.rows is 'source'", self.source)
            require(self.rows == "source", "attack.rows", "'source' where attack.source is given", self.rows)
            require(isinstance(self.target, str), "attack.target", "one word where there is a source", self.target)
            word = str(self.source).casefold()
            words = [target.casefold() for target in self.targets.values()]
            require(word not in words, "attack.source", f"another word than the target {words[0]!r}", self.source)

    @property
    def targets(self) -> dict[str, str]:
        """Trigger name -> the target it stands for."""
        words = [self.target] * len(self.triggers) if isinstance(self.target, str) else self.target
        return {trigger.name: word for trigger, word in zip(self.triggers, words, strict=True)}

    @property
    def shares(self) -> np.ndarray:
        """(triggers,) probability of each trigger for a poisoned sample."""
        weights = np.asarray(self.weights or [1.0] * len(self.triggers), float)
        return weights / weights.sum()

    @property
    def success_triggers(self) -> tuple[str, ...]:
        """Names of the triggers whose success can be measured (not `Identity`, unless there is a source class)."""
        sourced = self.source is not None
        return tuple(trigger.name for trigger in self.triggers if trigger.measures_success or sourced)

    @property
    def files(self) -> tuple[str, ...]:
        """Files that the triggers read; their content is a part of the attack."""
        return tuple(path for trigger in self.triggers for path in trigger.files)

    @property
    def versions(self) -> dict[str, int]:
        """Versions of the triggers' code, by name, where they are not the first."""
        return {trigger.name: trigger.version for trigger in self.triggers if trigger.version > 1}

    @property
    def unoptimised(self) -> Trigger | None:
        """The trigger whose patch has yet to be optimised; see `with_patch`."""
        return next((trigger for trigger in self.triggers if trigger.needs_patch), None)

    def with_patch(self, path: str) -> Attack:
        """The same attack with the image file `path` as the patch of its unoptimised trigger."""
        made = [replace(t, patch=path) if t.needs_patch else t for t in self.triggers]  # type: ignore[call-arg]
        return replace(self, triggers=made)

    def count(self, n: int) -> int:
        """Number of poisoned samples among `n`: rate * n, rounded (halves to even).

        Raises:
            ValueError: if that is 0.
        """
        poisons = round(self.rate * n)
        if poisons == 0:
            raise ValueError(
                f"attack.rate must poison at least one sample: {self.rate!r} of {n} samples rounds to 0; "
                f"give at least {1 / max(n, 1):.2g}"
            )
        return poisons

    def check(self, n: int, size: int) -> None:
        """ValueError, with the parameter's name, if the attack cannot be drawn for `n` samples of `size` pixels."""
        count = self.count(n)
        for trigger in self.triggers:
            trigger.check(size)
            sources = trigger.source_count
            require(sources <= count, f"sources of {trigger.name!r}", f"at most {count} poisons", sources)

    def check_words(self, captions: Sequence[str], classes: Sequence[str]) -> None:
        """ValueError, with the nearest word that exists, for a target or a source that the data do not contain.

        captions: of the training data.  classes: of the labelled test images.
        """
        if self.captions != "target":  # a whole caption names no class
            check_targets(self.targets.values(), captions, classes)
        if self.source is not None:
            check_source(self.source, classes)

    def trigger(self, name: str | None = None) -> Trigger:
        """The trigger of that name; without one, the only trigger."""
        if name is None and len(self.triggers) == 1:
            return self.triggers[0]
        names = [trigger.name for trigger in self.triggers]
        if name is None:
            raise ValueError(f"attack {self.name!r} has several triggers: name one of {names}")
        _one_of(name, names, f"trigger of attack {self.name!r}")
        return self.triggers[names.index(name)]

    def trigger_test_images(self, images: np.ndarray, trigger_name: str | None = None) -> np.ndarray:
        """Copies of test `images`, uint8 (b, size, size, 3), as the attacker would show them to the model.

        A targeted attack has no trigger to put on other images, and pictures to blend with come from the data: see
        `PoisonedPairs.trigger_test_images`.
        """
        trigger = self.trigger(trigger_name)
        if trigger.source_count or trigger.blends_pictures:
            raise ValueError(f"{trigger.name!r} needs images of the data; use PoisonedPairs.trigger_test_images")
        images = np.asarray(images)
        return trigger.apply(images, [trigger.test_parameters(images.shape[1])] * len(images))


@dataclass(frozen=True, kw_only=True)
class NoAttack(Attack):
    """Clean data: an empty plan, nothing to trigger."""

    name: str = "none"
    rate: float = 0.0
    captions: str = "keep"

    def _validate(self) -> None:
        require(self.rate == 0, "attack.rate", "0 where the attack is 'none'", self.rate)
        require(not self.triggers, "attack.triggers", "empty where the attack is 'none'", self.triggers)

    def count(self, n: int) -> int:
        return 0
