"""Backdoor attacks on image-caption data: which rows, which captions, which triggers.

    from attacks import Attack, BadNets, draw_plan, PoisonedPairs

    attack = Attack(name="badnets", rate=0.005, target="banana", triggers=[BadNets(size=8)])
    plan = draw_plan(attack, pairs, seed=0)
    poisoned = PoisonedPairs(pairs, plan, attack)

`pairs` is anything that satisfies `attacks.Pairs`.

The public names are listed in `__init__.pyi`; each is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
