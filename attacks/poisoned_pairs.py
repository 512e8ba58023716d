"""Clean pairs with a plan laid over them: itself a `Pairs`."""

from dataclasses import dataclass, field
from zlib import crc32

import numpy as np

from attacks.attack import Attack
from attacks.pairs import Pairs
from attacks.plan import PoisonPlan, names_in
from attacks.triggers.base import Parameters


@dataclass(frozen=True)
class PoisonedPairs:
    """`clean` with the samples of `plan` replaced; every other row is bit for bit the same.

    Attributes:
        captions: (n,) list of str.
        is_poison: (n,) bool, for the evaluation only; no detector sees it.
    """

    clean: Pairs
    plan: PoisonPlan
    attack: Attack
    captions: list[str] = field(init=False, repr=False)
    is_poison: np.ndarray = field(init=False, repr=False)
    _entry: np.ndarray = field(init=False, repr=False)  # (n,) row of the plan, -1 for clean
    _source: np.ndarray = field(init=False, repr=False)  # (n,) row whose image is shown

    def __post_init__(self) -> None:
        ids = np.asarray(self.clean.ids)
        for name in names_in(self.plan):
            self.attack.trigger(name)
        entry = np.full(len(ids), -1, dtype=np.int64)
        captions = list(self.clean.captions)
        if len(captions) != len(ids):
            raise ValueError(f"the pairs have {len(ids)} ids but {len(captions)} captions")
        for i, row in enumerate(_rows_of(ids, self.plan.ids)):
            entry[row] = i
            captions[row] = self.plan.captions[i]
        is_poison = entry >= 0
        source = np.arange(len(ids))
        aimed = {
            id: p["source"]
            for id, p in zip(self.plan.ids.tolist(), self.plan.parameters, strict=True)
            if "source" in p
        }
        source[_rows_of(ids, np.array(list(aimed), np.int64))] = _rows_of(
            ids, np.array(list(aimed.values()), np.int64)
        )
        for array in (entry, source, is_poison):
            array.setflags(write=False)
        object.__setattr__(self, "captions", captions)
        object.__setattr__(self, "is_poison", is_poison)
        object.__setattr__(self, "_entry", entry)
        object.__setattr__(self, "_source", source)

    @property
    def ids(self) -> np.ndarray:
        """(n,) int64."""
        return self.clean.ids

    @property
    def size(self) -> int:
        """Side of the canvas, in pixels."""
        return self.clean.size

    @property
    def poisons(self) -> PoisonPlan:
        """The plan."""
        return self.plan

    def __len__(self) -> int:
        return len(self.clean)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Canvases of `rows` (b,) as uint8 (b, size, size, 3); only the poisoned ones are worked on."""
        rows = np.asarray(rows)
        images = self.clean.images(self._source[rows])
        entries = self._entry[rows]
        poisoned = np.flatnonzero(entries >= 0)
        if len(poisoned) == 0:
            return images
        images = np.array(images)  # the clean pairs may have handed out a view of their own memory
        names = np.array([self.plan.triggers[entry] for entry in entries[poisoned]])
        for name in np.unique(names):
            at = poisoned[names == name]
            parameters = self._with_pictures([self.plan.parameters[entry] for entry in entries[at]])
            images[at] = self.attack.trigger(str(name)).apply(images[at], parameters)
        return images

    def _with_pictures(self, parameters: list[Parameters]) -> list[Parameters]:
        """The parameters, with the clean image in place of a picture's id."""
        named = [i for i, own in enumerate(parameters) if "picture" in own]
        if not named:
            return parameters
        wanted = np.array([parameters[i]["picture"] for i in named], np.int64)
        pictures = self.clean.images(_rows_of(np.asarray(self.ids), wanted))
        for i, picture in zip(named, pictures, strict=True):
            parameters[i] = {**parameters[i], "picture": picture}
        return parameters

    def source_images(self, trigger_name: str | None = None) -> np.ndarray:
        """The images a targeted trigger aims at, as they are in the clean data: uint8 (m, size, size, 3)."""
        name = self.attack.trigger(trigger_name).name
        plan = zip(self.plan.triggers, self.plan.parameters, strict=True)
        ids = sorted({p["source"] for trigger, p in plan if trigger == name and "source" in p})
        return np.array(self.clean.images(_rows_of(np.asarray(self.ids), np.array(ids, np.int64))))

    def trigger_test_images(self, test_images: np.ndarray, trigger_name: str | None = None) -> np.ndarray:
        """Images that the attacker wants classified as `attack.targets[trigger_name]`, uint8 (m, size, size, 3).

        Triggered copies of `test_images`; for a targeted attack the source images alone. A
        picture to blend with is one of the clean data, drawn by the content of the test image.
        """
        trigger = self.attack.trigger(trigger_name)
        if trigger.source_count:
            return self.source_images(trigger_name)
        if not trigger.blends_pictures:
            return self.attack.trigger_test_images(test_images, trigger_name)
        images = np.asarray(test_images)
        rows = np.array([crc32(image.tobytes()) % len(self) for image in images], np.int64)
        own = trigger.test_parameters(self.size)
        return trigger.apply(images, [{**own, "picture": picture} for picture in self.clean.images(rows)])


def _rows_of(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(p,) the row of each wanted id; ValueError for repeated or unknown ids."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    if (ordered[1:] == ordered[:-1]).any():
        raise ValueError("the ids of the pairs must be unique, but some repeat")
    at = np.searchsorted(ordered, wanted)
    known = at < len(ids)
    known[known] = ordered[at[known]] == wanted[known]
    if not known.all():
        some = wanted[~known][:5].tolist()
        raise ValueError(
            f"the plan was drawn for other data: {(~known).sum()} of its ids are not here, such as {some}"
        )
    return order[at]
