"""What a detector may see of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from detect import Detector, DetectorInputs

if TYPE_CHECKING:
    from experiments.pipeline.study import Study


def gather(study: Study, detector: Detector) -> DetectorInputs:
    """What `detector` asked to see, and no more."""
    needs = detector.needs
    if "losses" in needs and not study.model_spec.trains:
        raise ValueError("training losses are needed, but the model was not trained here (model.finetune=true)")

    def pixels(rows: np.ndarray) -> Any:
        import torch

        return study.model.pixels(torch.from_numpy(study.pairs.images(rows)))

    return DetectorInputs(
        study.embeddings,
        captions=study.pairs.captions if "captions" in needs else None,
        losses=np.load(study.train_entry.path / "losses.npy") if "losses" in needs else None,
        encoder=study.model if "encoder" in needs else None,
        images=pixels if "images" in needs else None,
        views=np.load(study.views_entry.path / "agreement.npy") if "views" in needs else None,
    )
