"""`detect.Outliers`: detectors in scikit-learn's protocol, by scikit-learn's own checks and on DataFrames."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from detect import DAO, LID, LOF, SLOF, CLIPScore, Embeddings, IsolationForest, KDistance, Norm, Outliers, PyOD

CHECKED = [Outliers(kind(k=3)) for kind in (DAO, LOF, SLOF, LID, KDistance)]
CHECKED += [Outliers(IsolationForest(trees=20)), Outliers(Norm())]
EXCEPTIONS: dict[str, str] = {}
"""Check of scikit-learn -> why it does not apply."""


def exceptions(estimator):
    return EXCEPTIONS


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(CHECKED, expected_failed_checks=exceptions)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture
def x():
    """Row 7 lies apart."""
    x = np.random.default_rng(0).standard_normal((200, 8))
    x[7] *= 9
    return x


def test_lower_is_more_suspicious_and_the_share_is_kept(x):
    outliers = Outliers(SLOF(k=9), contamination=0.05).fit(x)
    np.testing.assert_array_equal(outliers.score_samples(x), -SLOF(k=9).score(x))
    assert outliers.score_samples(x).argmin() == 7
    assert (outliers.predict(x) == -1).sum() == (outliers.decision_function(x) < 0).sum() == 10


def test_new_rows_are_scored_among_the_fitted_ones(x):
    new = np.random.default_rng(1).standard_normal((20, 8))
    for detector, expected in (
        (DAO(k=9, scope="batch", batch_size=50), DAO(k=9, reference_set=x).score(new)),
        (LOF(k=9, reference_set=x[:50]), LOF(k=9, reference_set=x[:50]).score(new)),
        (Norm(), np.linalg.norm(new, axis=1)),
    ):
        outliers = Outliers(detector).fit(x)
        mixed = outliers.score_samples(np.concatenate([x[3:5], new, x[:1]]))
        np.testing.assert_allclose(mixed[2:-1], -expected, rtol=1e-5)
        np.testing.assert_array_equal(mixed[[0, 1, -1]], -outliers.scores_[[3, 4, 0]])


def test_a_detector_that_scores_only_all_together_says_so(x):
    pytest.importorskip("pyod", reason="optional extra `detectors`")
    outliers = Outliers(PyOD(name="ECOD")).fit(x)
    assert outliers.score_samples(x).argmin() == 7
    with pytest.raises(ValueError, match="PyOD scores only the samples that it was fitted on, and these are new"):
        outliers.predict(x + 1)


def test_frames_give_series_with_their_index(x):
    frame = pd.DataFrame(x, index=[f"key{i}" for i in range(200)]).rename(columns=str)
    outliers = Outliers(LOF(k=9)).fit(frame)
    results = [outliers.score_samples(frame), outliers.decision_function(frame), outliers.predict(frame)]
    results += [outliers.fit_predict(frame), LOF(k=9).score(frame), Norm().score(frame)]
    for result in results:
        assert isinstance(result, pd.Series)
        assert list(result.index) == list(frame.index)
    assert results[0].idxmin() == results[4].idxmax() == "key7"
    np.testing.assert_array_equal(results[4], LOF(k=9).score(x))
    with pytest.raises(ValueError, match="feature names"):
        outliers.predict(frame[frame.columns[::-1]])


@pytest.mark.parametrize("shape", [lambda column: column, lambda column: column.to_frame()])
def test_a_column_of_vectors_is_taken_too(x, shape):
    column = pd.Series([list(row) for row in x], index=range(1000, 1200), name="embedding")
    scores = DAO(k=9).score(shape(column))
    np.testing.assert_array_equal(scores, DAO(k=9).score(x))
    assert scores.idxmax() == 1007


def test_frames_that_are_no_embeddings_are_refused(x):
    with pytest.raises(ValueError, match="must hold numbers only, but column 'caption' does not"):
        DAO(k=9).score(pd.DataFrame(x).assign(caption="a cat"))
    with pytest.raises(ValueError, match=r"vectors must be equally long, got shapes \(7,\), \(8,\)"):
        DAO(k=9).score(pd.Series([*map(list, x[:20]), list(x[0, :7])]))


def test_in_a_pipeline_in_a_clone_and_over_parameters(x):
    pipeline = make_pipeline(PCA(6), Outliers(DAO(k=9), contamination=0.05))
    assert (pipeline.fit(x).predict(x) == -1).sum() == 10
    assert pipeline.score_samples(x).argmin() == 7
    copied = clone(pipeline)
    assert not hasattr(copied[-1], "scores_")
    for chosen in ParameterGrid({"outliers__detector__k": [5, 12], "outliers__detector": [LOF(k=3)]}):
        copied.set_params(**chosen)
        assert copied[-1].detector == LOF(k=chosen["outliers__detector__k"])
    assert pipeline[-1].detector == DAO(k=9)


def test_bad_parameters_are_named(x):
    with pytest.raises(ValueError, match="DAO has no parameter 'neighbours'; it has k, scope"):
        Outliers(DAO()).set_params(detector__neighbours=3)
    with pytest.raises(ValueError, match="k must be at least 2 for DAO, got 0"):
        Outliers(DAO()).set_params(detector__k=0)
    with pytest.raises(ValueError, match="Invalid parameter 'k'"):
        Outliers(DAO()).set_params(k=3)
    for share in (0, 0.6, "auto", None):
        with pytest.raises(ValueError, match=r"contamination must lie in \(0, 0.5\], got"):
            Outliers(DAO(k=9), share).fit(x)
    with pytest.raises(ValueError, match="CLIPScore needs text beside embeddings, so it cannot be fitted"):
        Outliers(CLIPScore()).fit(x)
    with pytest.raises(TypeError, match="detector must be one of detect's, such as DAO"):
        Outliers(IsolationForest).fit(x)
    with pytest.raises(ValueError, match="k must lie in"):
        Outliers(DAO(k=500)).fit(x)
    assert len(Embeddings.of(x)) == 200
