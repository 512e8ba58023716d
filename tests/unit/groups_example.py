"""Samples with embeddings, for tests of groups."""

import numpy as np

from detect.embeddings import unit

CAKE = "the birthday cake with candles in the form of number icon 3"


class Planted:
    """Ten classes with captions of their own; if wanted, `copies` near-identical images with one odd caption."""

    def __init__(self, copies, n=1000, d=32, seed=0):
        rng = np.random.default_rng(seed)
        centres = unit(rng.normal(size=(11, d)))
        texts = unit(rng.normal(size=(11, d)))
        labels = np.arange(n) % 10
        labels[n - copies :] = 10
        noise = np.where(labels == 10, 0.01, 0.08)[:, None]
        self._vectors = {
            "image": unit(centres[labels] + noise * rng.normal(size=(n, d))),
            "text": unit(texts[labels] + 0.01 * rng.normal(size=(n, d))),
        }
        self.captions = [f"a photo of thing {'abcdefghij'[label]}" if label < 10 else CAKE for label in labels]
        self.pictures = rng.integers(0, 256, (11, 16, 16, 3)).astype(np.uint8)
        self.labels = labels
        self.score = rng.normal(size=n) + 3 * (labels == 10)

    def __len__(self):
        return len(self.labels)

    def images(self, rows):
        return self.pictures[self.labels[rows]]

    def vectors(self, kind, rows):
        return self._vectors[kind][rows]

    def blocks(self, kind):
        for begin in range(0, len(self), 300):
            yield begin, self._vectors[kind][begin : begin + 300]
