"""The stage `train`: what of the experiment and of its data the trainer is given."""

from __future__ import annotations

import functools
from typing import Any

from attacks.captions import templates
from experiments.data.pairs import TestSet
from experiments.pipeline.graph import Run
from experiments.pipeline.values import Poisoning, measure_model


def train_model(run: Run, pairs: Any, clean: Any, test: TestSet, poisoning: Poisoning | None) -> None:
    """Train on `pairs`, into the stage's folder. The others are for the measures of each epoch."""
    from experiments.training.trainer import train

    # Zero-shot evaluation puts every class into every prompt; the vocabulary must cover these texts as well.
    prompts = [*templates(), *(template.format for template in test.templates)]
    train(
        run.model_spec,
        run.training,
        pairs,
        run.folder,
        seed=run.seed,
        texts=[prompt(name) for name in test.classes for prompt in prompts],
        evaluate_zero_shot=functools.partial(measure_model, test=test, poisoning=poisoning, clean=clean),
        **run.resources.training(clean),
    )
