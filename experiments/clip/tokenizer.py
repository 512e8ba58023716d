"""open_clip's tokenizer, cut down to the tokens that occur.

A small text tower would otherwise be mostly embedding table: 49,408 entries, of which a drawn data set uses
some hundred. The order of ids is kept, so that the end-of-text token stays the largest, where CLIP's text
tower looks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

PADDING, UNKNOWN = 0, 1


class CompactTokenizer:
    """Texts -> (b, context_length) ids below `vocab_size`; tokens outside the vocabulary become UNKNOWN."""

    def __init__(self, vocabulary: Sequence[int], context_length: int) -> None:
        from open_clip import SimpleTokenizer

        self.context_length = context_length
        self._tokenizer = SimpleTokenizer(context_length=context_length)
        if not all(isinstance(token, int) and 0 <= token < self._tokenizer.vocab_size for token in vocabulary):
            raise ValueError(f"vocabulary must hold ids below {self._tokenizer.vocab_size:,}, open_clip's own")
        self.vocabulary = sorted(set(vocabulary) - {PADDING})
        self._compact = np.full(self._tokenizer.vocab_size, UNKNOWN, dtype=np.int64)
        self._compact[PADDING] = PADDING
        self._compact[self.vocabulary] = np.arange(2, 2 + len(self.vocabulary))

    @classmethod
    def from_texts(cls, texts: Iterable[str], context_length: int) -> CompactTokenizer:
        """A vocabulary of the tokens that `texts` hold."""
        from open_clip import SimpleTokenizer

        tokens = SimpleTokenizer(context_length=context_length)(sorted(set(texts)))
        return cls(tokens.unique().tolist(), context_length)

    @property
    def vocab_size(self) -> int:
        return 2 + len(self.vocabulary)

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        tokens = self._tokenizer([texts] if isinstance(texts, str) else list(texts))
        return torch.from_numpy(self._compact[tokens.numpy()])
