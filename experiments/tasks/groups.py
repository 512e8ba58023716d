"""Natural backdoors: groups of suspects that a model could learn to answer with one caption.

The typical case is one that the paper found in CC3M: 798 near-identical pictures of a birthday cake, all with the
caption "the birthday cake with candles in the form of a number icon", act as a trigger that nobody planted. A
planted one is a group of the same kind.

The most suspicious samples are linked where their images are near-identical in the embedding, or alike under a
near-shared caption; connected components are then grown by every other sample that is as near. Groups are ranked
by how much a model could learn from them:

    strength = log2(size) * similarity * concentration * isolation * surprise

`concentration` asks whether the captions say the same. `isolation` asks whether captions of like meaning go with
other images: it is 0 where images under the nearest other captions are as close to the group as its own members are
(an ordinary class), and 1 where they are as far as any image. Seen in the demo: a natural backdoor 2.6, planted
attacks 1.1 to 2.0, the strongest group of clean data 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from experiments.tasks.caption_words import jaccard, leading_caption, words_of
from experiments.tasks.group_measures import Group, Source, centre, mean, measured, nearest_captions

MANY = 20  # groups from which on their strengths have a median and a deviation


@dataclass(frozen=True)
class Grouping:
    """How suspects are grouped.

    suspects: share of the samples, the most suspicious, that groups start from; at most `most_suspects`.
    near_cosine: cosine from which images count as near-identical; None: the `near_quantile` of the cosines of
        samples with their nearest neighbours, as models differ in how close ordinary images lie.
    like_cosine: cosine from which images under a near-shared caption are linked; None: by `like_quantile`.
    caption_jaccard: share of words in common (Jaccard) from which captions are near-shared.
    smallest: members that a group must have.
    alarm_size, alarm_strength: a group is reported as alarming if it reaches both, and
    alarm_deviations: where there are at least `MANY` groups, if its strength is so many standard deviations above
        their median, as ordinary pictures of some data form groups of some strength throughout. The deviation is
        estimated robustly, from the median absolute one.
    """

    suspects: float = 0.02
    most_suspects: int = 20_000
    near_cosine: float | None = 0.95
    like_cosine: float | None = 0.9
    near_quantile: float = 0.99
    like_quantile: float = 0.9
    caption_jaccard: float = 0.8
    smallest: int = 4
    alarm_size: int = 10
    alarm_strength: float = 1.0
    alarm_deviations: float = 4.0
    most_groups: int = 50

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None and name in ("near_cosine", "like_cosine"):
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise ValueError(f"grouping.{name} must be a number, got {value!r}")
        if not 0 < self.suspects <= 1:
            raise ValueError(f"grouping.suspects must lie in (0, 1], got {self.suspects}")
        for kind in ("cosine", "quantile"):
            like, near = (getattr(self, f"{name}_{kind}") for name in ("like", "near"))
            given = [value for value in (like, near) if value is not None]
            if given != sorted(given) or not all(0 < value <= 1 for value in given):
                rule = f"0 < like_{kind} <= near_{kind} <= 1"
                raise ValueError(f"grouping needs {rule}, got like_{kind}={like}, near_{kind}={near}")
        if not 0 < self.caption_jaccard <= 1:
            raise ValueError(f"grouping.caption_jaccard must lie in (0, 1], got {self.caption_jaccard}")
        if self.smallest < 2:
            raise ValueError(f"grouping.smallest must be at least 2, got {self.smallest}")

    def _same_caption(self, a: frozenset[str], b: frozenset[str]) -> bool:
        return jaccard(a, b) >= self.caption_jaccard

    def find(self, samples: Source, score: np.ndarray) -> list[Group]:
        """Groups of the most suspicious samples, the strongest first; score: (n,), higher is more suspicious."""
        order = np.argsort(-score, kind="stable")
        percentile = np.empty(len(order))
        percentile[order] = 1 - np.arange(len(order)) / max(len(order) - 1, 1)
        return self.among(samples, percentile, order[: self.number(len(order))])

    def number(self, n: int) -> int:
        """How many of n samples groups start from."""
        return min(max(round(self.suspects * n), self.smallest), self.most_suspects, n)

    def among(
        self,
        samples: Source,
        percentile: np.ndarray,
        suspects: np.ndarray,
        links: tuple[float, float] | None = None,
        means: Mapping[str, np.ndarray] | None = None,
    ) -> list[Group]:
        """Groups that start from the rows `suspects`, the strongest first.

        percentile: (n,) share of all samples that are less suspicious.  links, means: see `links` and
        `group_measures.mean`; None: of `samples`.
        """
        grown = self.clusters(samples, percentile, suspects, links)
        if not grown:
            return []
        means = means or {kind: mean(samples, kind) for kind in ("image", "text")}
        texts = nearest_captions(samples, grown)
        groups = [
            measured(samples, rows, percentile, means, other, self.caption_jaccard)
            for rows, other in zip(grown, texts, strict=True)
        ]
        judged = self._judged(groups) if any(samples.captions) else [_without_caption(group) for group in groups]
        return sorted(judged, key=lambda group: -group.strength)[: self.most_groups]

    def _judged(self, groups: Sequence[Group]) -> list[Group]:
        """The groups, and which of them are alarming."""
        least = self.alarm_strength
        if len(groups) >= MANY:
            strengths = np.array([group.strength for group in groups])
            deviation = 1.4826 * np.median(np.abs(strengths - np.median(strengths)))
            least = max(least, float(np.median(strengths) + self.alarm_deviations * deviation))
        return [replace(g, alarming=g.size >= self.alarm_size and g.strength >= least) for g in groups]

    def clusters(
        self,
        samples: Source,
        percentile: np.ndarray,
        suspects: np.ndarray,
        links: tuple[float, float] | None = None,
    ) -> list[np.ndarray]:
        """Rows of the samples that belong together, the most suspicious first; see `among`."""
        if not any(samples.captions) and self.like_cosine != self.near_cosine:
            return replace(self, like_cosine=self.near_cosine).clusters(samples, percentile, suspects, links)
        links = links or self.links(samples)
        components = self._components(samples, suspects, links)
        return self._grow(samples, components, percentile, links) if components else []

    def links(self, samples: Source, drawn: int = 1000) -> tuple[float, float]:
        """The cosines `near` and `like`; where they are not given, from `drawn` samples' nearest neighbours."""
        n = len(samples)
        if n < 2 or (self.near_cosine is not None and self.like_cosine is not None):
            return self.near_cosine or 1.0, self.like_cosine or 1.0
        rows = np.sort(np.random.default_rng(0).choice(n, min(n, drawn), replace=False))
        queries, nearest = samples.vectors("image", rows), np.full(len(rows), -1.0)
        for start, block in samples.blocks("image"):
            cosines = queries @ block.T
            own = np.flatnonzero((rows >= start) & (rows < start + len(block)))
            cosines[own, rows[own] - start] = -1
            np.maximum(nearest, cosines.max(axis=1), out=nearest)
        near, like = np.quantile(nearest, (self.near_quantile, self.like_quantile))
        near = (
            min(float(near), 1 - 1e-4) if self.near_cosine is None else self.near_cosine
        )  # for data full of copies
        return near, min(float(like) if self.like_cosine is None else self.like_cosine, near)

    def _components(self, samples: Source, suspects: np.ndarray, links: tuple[float, float]) -> list[np.ndarray]:
        """Linked suspects, (m,) rows each, of at least two; the largest first."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        near_cosine, like_cosine = links
        vectors = samples.vectors("image", suspects)
        words = [words_of(samples.captions[row]) for row in suspects]
        left, right = [], []
        for start in range(0, len(suspects), 1024):
            similar = vectors[start : start + 1024] @ vectors.T
            i, j = np.nonzero(similar >= like_cosine)
            keep = i + start < j
            i, j = i[keep], j[keep]
            near = similar[i, j] >= near_cosine
            alike = [
                bool(sure) or self._same_caption(words[a + start], words[b])
                for a, b, sure in zip(i, j, near, strict=True)
            ]
            left.append(i[alike] + start)
            right.append(j[alike])
        ends = np.concatenate(left), np.concatenate(right)
        shape = (len(suspects), len(suspects))
        graph = coo_matrix((np.ones(len(ends[0]), np.int8), ends), shape=shape)
        number, label = connected_components(graph, directed=False)
        parts = [suspects[label == one] for one in np.flatnonzero(np.bincount(label, minlength=number) > 1)]
        return sorted(parts, key=len, reverse=True)[: 4 * self.most_groups]

    def _grow(
        self, samples: Source, components: list[np.ndarray], percentile: np.ndarray, links: tuple[float, float]
    ) -> list[np.ndarray]:
        """Each component with every sample that is near its centre, or like it under the same caption."""
        near_cosine, like_cosine = links
        centres = np.stack([centre(samples.vectors("image", rows)) for rows in components])
        captions = [
            leading_caption([samples.captions[row] for row in rows], self.caption_jaccard)[0] for rows in components
        ]
        words = [words_of(caption) for caption in captions]
        members: list[list[np.ndarray]] = [[rows] for rows in components]
        for start, block in samples.blocks("image"):
            similar = centres @ block.T
            for i, near in enumerate(similar):
                close = np.flatnonzero(near >= like_cosine)
                for_sure = near[close] >= near_cosine
                same = [
                    bool(sure) or self._same_caption(words[i], words_of(samples.captions[start + row]))
                    for row, sure in zip(close, for_sure, strict=True)
                ]
                members[i].append(start + close[same] if len(close) else close)
        grown: list[np.ndarray] = []
        taken: list[set[int]] = []
        for parts in members:
            rows = np.unique(np.concatenate(parts))
            rows = rows[np.argsort(-percentile[rows], kind="stable")]
            inside = set(rows.tolist())
            # Components of one dense cluster grow into each other.
            double = any(len(inside & other) > len(inside) / 2 for other in taken)
            if len(rows) >= self.smallest and not double:
                grown.append(rows)
                taken.append(inside)
        return grown


def _without_caption(group: Group) -> Group:
    """Near-identical pictures without captions: these teach no caption, and are not alarming."""
    strength = float(np.log2(group.size) * max(group.similarity, 0) * group.surprise)
    return replace(group, shared=0.0, concentration=0.0, isolation=0.0, strength=strength)
