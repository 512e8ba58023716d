"""A 2-D view of the image embeddings, coloured by a detector's score and by the plan's labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.style import POISON, TARGET, headed, panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def flat_view(image: np.ndarray, method: str = "pca", seed: int = 0) -> np.ndarray:
    """Two coordinates per sample, (n, 2), from image embeddings (n, d) brought to unit length.

    `pca` takes well under a second for 20,000 x 128; `tsne` (and `umap`, if umap-learn is installed) show
    more local structure and are for a few thousand samples.
    """
    unit = image / np.maximum(np.linalg.norm(image, axis=1, keepdims=True), 1e-12)
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, svd_solver="covariance_eigh").fit_transform(unit)
    if method == "tsne":
        from sklearn.manifold import TSNE

        return TSNE(2, init="pca", random_state=seed).fit_transform(unit)
    if method == "umap":
        from umap import UMAP

        return UMAP(random_state=seed).fit_transform(unit)
    raise ValueError(f"method must be pca, tsne or umap, not {method!r}")


@styled
def embedding(
    view: np.ndarray,
    scores: np.ndarray,
    is_poison: np.ndarray,
    is_target: np.ndarray | None = None,
    detector: str = "score",
    method: str = "PCA",
    about: str = "",
) -> Figure:
    """A 2-D view (n, 2) of the embedding: coloured by a detector's score, and by the plan's labels.

    Colours of the score are its rank, because scores are skewed. `is_target` (n,) marks clean samples of the
    class that the attack aims at.
    """
    figure, ((left, right),) = panels(1, 2, (4.8, 4.0), (0.1, 0.1, 0.62, 0.62), (0.15, 0), sharex=True, sharey=True)
    size = float(np.clip(40_000 / max(len(view), 1), 3, 16))
    _by_score(left, view, scores, size, detector)
    target = np.zeros(len(view), bool) if is_target is None else is_target & ~is_poison
    _by_truth(right, view, is_poison, target, size)
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    headed(figure, f"{about}; " * bool(about) + f"{method} of unit-length image embeddings")
    return figure


def _by_score(axes: Axes, view: np.ndarray, scores: np.ndarray, size: float, detector: str) -> None:
    """Colour each sample by the rank of its score; size: of a dot, in square points."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from scipy.stats import rankdata

    figure: Any = axes.figure
    order = np.argsort(scores, kind="stable")
    ranks = 100 * (rankdata(scores, method="ordinal") - 1) / max(len(scores) - 1, 1)
    stretch = 25  # most of the colours go to the top few percent, which is what one looks for
    colours = LinearSegmentedColormap.from_list("suspicion", ["#D8DDE3", "#E69F00", "#B3300A", "#3D0714"])
    axes.scatter(
        view[order, 0],
        view[order, 1],
        c=(ranks[order] / 100) ** stretch,
        cmap=colours,
        s=size,
        linewidths=0,
        rasterized=True,
    )
    width, height = figure.get_size_inches()
    ground = figure.add_axes((0.6 / width, 0.42 / height, 3.8 / width, 0.11 / height))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colours), cax=ground, orientation="horizontal")
    marks = (90, 95, 97, 98, 99, 100)
    bar.set_ticks([(mark / 100) ** stretch for mark in marks], labels=[str(mark) for mark in marks])
    bar.ax.tick_params(labelsize=7.5, length=2, pad=2)
    bar.outline.set_visible(False)
    axes.set_title(f"percentile of the {detector} score (100 = most suspicious)")


def _by_truth(axes: Axes, view: np.ndarray, is_poison: np.ndarray, target: np.ndarray, size: float) -> None:
    """Colour each sample by what it is; target: (n,) clean samples of the class that the attack aims at."""
    from matplotlib.lines import Line2D

    handles = []
    for chosen, colour, label in (
        (~is_poison & ~target, "#C3CAD3", "clean"),
        (target, TARGET, "clean, target class"),
    ):
        axes.scatter(view[chosen, 0], view[chosen, 1], color=colour, s=size, linewidths=0, rasterized=True)
        if chosen.any():
            handles.append(Line2D([], [], marker="o", ls="", color=colour, label=f"{label} ({chosen.sum():,})"))
    if is_poison.any():
        many = is_poison.sum() > 200
        ring: dict[str, Any] = {
            "markeredgecolor": POISON,
            "markerfacecolor": "none",
            "marker": "o",
            "linestyle": "",
        }
        axes.plot(*view[is_poison].T, markersize=3.6 if many else 5, markeredgewidth=0.7, **ring)
        label = f"poisoned ({is_poison.sum():,})"
        handles.append(Line2D([], [], markersize=6, markeredgewidth=1.3, label=label, **ring))
    axes.set_title("the truth")
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, fontsize=8)
