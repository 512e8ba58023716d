"""What `help` adds to a detector's own text: the parameters that many detectors share, and an example that runs."""

from __future__ import annotations

import inspect
import re
import textwrap

SHARED = {
    "k": "number of neighbours, self excluded; it must exceed the number of poisons in a scope.",
    "scope": 'where neighbours are searched: "full" (all samples), "batch" (random batches) or "reference".',
    "batch_size": 'samples of a random batch, for scope "batch".',
    "modality": '"image", or "joint": texts are rows of the scope too (needs text embeddings).',
    "normalise": "whether embeddings are brought to unit length first.",
    "convention": '"published", or "paper_code": as the CLIP paper\'s public code computes it.',
    "backend": 'of the search: "auto", "torch", "faiss", or approximate "ivf" and "hnsw".',
    "seed": "of all that is drawn at random.",
    "memory_mb": "bound on the working memory of a search, in megabytes; it changes no score.",
    "reference_set": 'embeddings (m, d) of trusted samples to search among; sets scope to "reference".',
}
GIVEN = {
    "text": "",
    "views": "views=rng.random((300, 5))",
    "drift": "drift=rng.random((300, 5))",
    "earlier": "earlier=Embeddings(np.arange(300), *rng.standard_normal((2, 300, 8)).astype(np.float32))",
    "losses": "losses=rng.random((300, 10))",
}
"""Input -> how the example makes it; a detector that needs others writes an example of its own."""


def documented(kind: type) -> str:
    """The docstring of a detector class, with the parameters and the example that it does not give itself."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or kind.__name__)
    lines = [f"{name}: {SHARED[name]}" for name in parameters(kind) if name in SHARED and not says(text, name)]
    text, start, example = text.partition("\n\n>>> ")
    if lines:
        text += "\n\n" + "\n".join(lines)
    text += start + example
    needs: frozenset[str] = getattr(kind, "needs", frozenset())
    if not inspect.isabstract(kind) and ">>>" not in text and needs <= GIVEN.keys():
        text += f"\n\n{_example(kind.__name__, sorted(needs))}"
    return text + "\n"


def parameters(kind: type) -> list[str]:
    """The fields of a dataclass, its bases' first; also before the decorator has run."""
    names: dict[str, None] = {}
    for base in reversed(kind.__mro__):
        own = inspect.get_annotations(base)
        names |= dict.fromkeys(name for name, what in own.items() if "ClassVar" not in str(what))
    return list(names)


def says(text: str, name: str) -> bool:
    """Whether a docstring explains a parameter: `name: ...` or `name, other: ...`, at the
    beginning of a line or after two spaces."""
    return re.search(rf"(?m)(^ *| {{2}})(\w+, )*{name}(, \w+)*: ", text) is not None


def _example(name: str, needs: list[str]) -> str:
    given = ", ".join(filter(None, (GIVEN[need] for need in needs)))
    classes = ["DetectorInputs", "Embeddings"] if given else ["Embeddings"] if needs else []
    inputs = "Embeddings(np.arange(300), image, text)" if needs else "image"
    if given:
        inputs = f"DetectorInputs({inputs}, {given})"
    return textwrap.dedent(f"""\
        >>> import numpy as np
        >>> from detect import {", ".join(sorted([name, *classes]))}
        >>> rng = np.random.default_rng(0)
        >>> image, text = rng.standard_normal((2, 300, 8)).astype(np.float32)  # (n, d) each
        >>> scores = {name}().score({inputs})
        >>> scores.shape  # higher is more suspicious
        (300,)""")
