"""Detectors of poisoned samples in embedding space; usable without Hydra and without the other packages.

    from detect import DAO
    scores = DAO(k=16).score(embeddings)  # (n, d) array -> (n,), higher is more suspicious

The public names are listed in `__init__.pyi`; each is imported on first use.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
