"""What a CLIP model is, how it is loaded, how it embeds.

YAML files and users name what is here by this package, so that files can move; see `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
