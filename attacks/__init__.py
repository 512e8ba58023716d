"""Backdoor attacks on image-caption data: which rows, which captions, which triggers.

    from attacks import Attack, BadNets, draw_plan, PoisonedPairs

    attack = Attack(name="badnets", rate=0.005, target="banana", triggers=[BadNets(size=8)])
    plan = draw_plan(attack, pairs, seed=0)
    poisoned = PoisonedPairs(pairs, plan, attack)

`pairs` is anything that satisfies `attacks.Pairs`. Names are loaded on first use, so that `import attacks`
costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks.attack import Attack, NoAttack
    from attacks.pairs import ArrayPairs, Pairs
    from attacks.plan import PoisonPlan, draw_plan
    from attacks.poisoned_pairs import PoisonedPairs
    from attacks.triggers.badnets import BadNets
    from attacks.triggers.base import Trigger
    from attacks.triggers.blended import Blended
    from attacks.triggers.blto import BLTO
    from attacks.triggers.identity import Identity
    from attacks.triggers.nashville import Nashville
    from attacks.triggers.sig import SIG
    from attacks.triggers.targeted import Targeted
    from attacks.triggers.wanet import WaNet

_HOME = {
    "ArrayPairs": "pairs",
    "Attack": "attack",
    "BLTO": "triggers.blto",
    "BadNets": "triggers.badnets",
    "Blended": "triggers.blended",
    "Identity": "triggers.identity",
    "Nashville": "triggers.nashville",
    "NoAttack": "attack",
    "Pairs": "pairs",
    "PoisonPlan": "plan",
    "PoisonedPairs": "poisoned_pairs",
    "SIG": "triggers.sig",
    "Targeted": "triggers.targeted",
    "Trigger": "triggers.base",
    "WaNet": "triggers.wanet",
    "draw_plan": "plan",
}

__all__ = [  # noqa: RUF022 (nouns in the order in which they flow, then the triggers)
    "Pairs",
    "ArrayPairs",
    "Trigger",
    "Attack",
    "NoAttack",
    "PoisonPlan",
    "draw_plan",
    "PoisonedPairs",
    "BadNets",
    "Blended",
    "Identity",
    "Nashville",
    "SIG",
    "WaNet",
    "Targeted",
    "BLTO",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attacks' has no attribute {name!r}; it has {sorted(_HOME)}")
    value = getattr(import_module(f"attacks.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)
