"""The poison plan: an attack drawn for one data set, once, and saved.

Every draw comes from a generator seeded with (seed, sample id, purpose), so a sample's caption and trigger
do not depend on the order of the rows, on the other samples or on how many are poisoned; and the rows
poisoned at a low rate are among those poisoned at a higher one.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from attacks.attack import Attack
from attacks.captions import caption_set, draw_caption, holds_word
from attacks.mixing import GAMMA, mixed
from attacks.pairs import Pairs
from attacks.triggers.base import Parameters

_COLUMNS = ("id", "caption", "trigger", "parameters", "target")
_TRIGGER, _PARAMETERS, _CAPTION = 0, 1, 2  # one stream of random numbers per purpose


@dataclass(frozen=True)
class PoisonPlan:
    """Which samples are poisoned, and how; p rows, sorted by id.

    `ids` is int64 (p,); `captions`, `triggers`, `parameters` and `targets` hold one entry per id.
    """

    ids: np.ndarray
    captions: tuple[str, ...]
    triggers: tuple[str, ...]
    parameters: tuple[Parameters, ...]
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids, dtype=np.int64).reshape(-1)
        columns = (self.captions, self.triggers, self.parameters, self.targets)
        if any(len(column) != len(ids) for column in columns):
            raise ValueError(f"a plan needs columns of equal length, got {[len(ids), *map(len, columns)]}")
        if len(np.unique(ids)) != len(ids):
            raise ValueError("a plan poisons each sample at most once, but ids repeat")
        order = np.argsort(ids)
        ids = ids[order]
        ids.setflags(write=False)
        captions, triggers, parameters, targets = ([column[i] for i in order] for column in columns)
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "captions", tuple(captions))
        object.__setattr__(self, "triggers", tuple(triggers))
        # Through JSON and back, so that a plan equals its saved copy and what JSON cannot hold fails now.
        object.__setattr__(self, "parameters", tuple(json.loads(_json(p)) for p in parameters))
        object.__setattr__(self, "targets", tuple(targets))

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PoisonPlan) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, as hex; equal plans have equal digests on every machine."""
        digest = hashlib.sha256()
        for row in zip(self.ids.tolist(), self.captions, self.triggers, self.parameters, self.targets, strict=True):
            digest.update(_json(row).encode() + b"\n")
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write as Parquet; parameters as JSON text."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = [_json(p) for p in self.parameters]
        columns = [self.ids, self.captions, self.triggers, texts, self.targets]
        types = [pa.int64()] + [pa.string()] * 4
        arrays = [pa.array(column, type=kind) for column, kind in zip(columns, types, strict=True)]
        table = pa.table(dict(zip(_COLUMNS, arrays, strict=True)))
        pq.write_table(table.replace_schema_metadata({"digest": self.digest}), str(path))

    @classmethod
    def load(cls, path: str | Path) -> "PoisonPlan":
        """Read what `save` wrote; nothing is drawn again.

        Raises:
            ValueError: if the content is not what was saved.
        """
        import pyarrow.parquet as pq

        table = pq.read_table(str(path))
        missing = [name for name in _COLUMNS if name not in table.column_names]
        if missing:
            raise ValueError(f"{path} is not a poison plan: it has no column {missing}")
        ids, captions, triggers, texts, targets = (table.column(name).to_pylist() for name in _COLUMNS)
        plan = cls(
            np.array(ids, dtype=np.int64),
            tuple(captions),
            tuple(triggers),
            tuple(json.loads(text) for text in texts),
            tuple(targets),
        )
        saved = (table.schema.metadata or {}).get(b"digest", b"").decode()
        if saved != plan.digest:
            raise ValueError(f"{path} was changed after it was saved: digest {plan.digest}, saved {saved!r}")
        return plan


def draw_plan(attack: Attack, pairs: Pairs, seed: int) -> PoisonPlan:
    """Draw `attack` for `pairs`.

    Raises:
        ValueError: before any other work, for a rate that gives no row, a trigger that does not fit the
            canvas, fewer fitting rows than asked for, or no real caption with the target word.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    attack.check(len(pairs), pairs.size)
    count = attack.count(len(pairs))
    if count == 0:
        return PoisonPlan(np.empty(0, np.int64), (), (), (), ())

    rows = _rows(attack, pairs, count, seed)
    ids = np.asarray(pairs.ids)[rows]
    all_ids = np.sort(pairs.ids)  # so that a draw from them does not depend on the order of the rows
    targets = attack.targets
    wants_real = attack.captions in ("caption_set", "mixed")
    real = {word: caption_set(pairs.captions, word) for word in set(targets.values())} if wants_real else {}

    captions, names, parameters = [], [], []
    for row, id in zip(rows.tolist(), ids.tolist(), strict=True):
        index = _rng(seed, id, _TRIGGER).choice(len(attack.triggers), p=attack.shares)
        trigger = attack.triggers[index]
        rng = _rng(seed, id, _PARAMETERS)
        drawn = trigger.draw(rng, pairs.size)
        if trigger.source_count:
            drawn = {**drawn, "source": int(rng.choice(ids[: trigger.source_count]))}
        if trigger.blends_pictures:
            drawn = {**drawn, "picture": _other_id(all_ids, id, rng)}
        caption_rng = _rng(seed, id, _CAPTION)
        own = pairs.captions[row]
        captions.append(draw_caption(attack.captions, caption_rng, targets[trigger.name], own, real))
        names.append(trigger.name)
        parameters.append(drawn)
    return PoisonPlan(ids, tuple(captions), tuple(names), tuple(parameters), tuple(targets[name] for name in names))


def _other_id(ids: np.ndarray, own: int, rng: np.random.Generator) -> int:
    """One of the sorted `ids` (n,) that is not `own`; the only one there is where n is 1."""
    place = int(np.searchsorted(ids, own))
    return int(ids[(place + int(rng.integers(1, max(len(ids), 2)))) % len(ids)])


def _rows(attack: Attack, pairs: Pairs, count: int, seed: int) -> np.ndarray:
    """(count,) rows to poison: those that fit, with the lowest random keys, the lowest first."""
    ids = np.asarray(pairs.ids)
    fits = np.arange(len(pairs))
    if attack.rows != "random":
        words = set(attack.targets.values())
        holds = np.logical_or.reduce([holds_word(pairs.captions, word) for word in words])
        fitting = holds if attack.rows == "target" else ~holds
        if attack.source is not None:
            fitting &= holds_word(pairs.captions, attack.source)
        fits = np.flatnonzero(fitting)
    if len(fits) < count:
        words_text = " or ".join(repr(word) for word in sorted(set(attack.targets.values())))
        verb = "hold" if attack.rows == "target" else "do not hold"
        if attack.source is not None:
            verb = f"hold {attack.source!r} and not"
        raise ValueError(
            f"attack {attack.name!r} asks for {count} rows (rate {attack.rate} of {len(pairs)}) whose "
            f"captions {verb} {words_text}, but there are only {len(fits)}; "
            f"lower attack.rate to at most {len(fits) / len(pairs):.3g}"
        )
    keys = _keys(ids[fits], seed)
    return fits[np.lexsort((ids[fits], keys))[:count]]


def _keys(ids: np.ndarray, seed: int) -> np.ndarray:
    """(n,) uint64 random keys, one per id, independent of the rows' order."""
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        return mixed((ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA) + start)


def _rng(seed: int, id: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, id % 2**64, purpose])


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)


def names_in(plan: PoisonPlan) -> Sequence[str]:
    """The triggers that the plan uses, sorted."""
    return sorted(set(plan.triggers))
