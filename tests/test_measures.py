"Chapter 14.1: metrics against scikit-learn and torchmetrics, their properties, thresholds, several labels."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, roc_curve

from keepfit_nb.measures import (METRICS, at_threshold, best_thresholds, metrics, multi_replicates, per_class, replicates, resample, score_multi,
                                 threshold_at)


def answers(seed=0, n=80, c=4, ties=False):
    rng = np.random.default_rng(seed); y = rng.integers(0, c, n); y[:c] = np.arange(c)
    p = rng.random((n, c)) + .5 * np.eye(c)[y]
    if ties: p = np.round(p, 1) + .1
    return y, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("c", [2, 3, 6])
@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_scikit_learn(c, ties):
    y, p = answers(c, c=c, ties=ties)
    want = average_precision_score(y, p[:, 1]) if c == 2 else average_precision_score(np.eye(c)[y], p, average="macro")
    assert metrics(y, p)["AUPR"] == pytest.approx(want, abs=1e-12)
    assert replicates(y, p, np.ones((1, len(y))))["AUPR"][0] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("c", [2, 5])
def test_calibration_error_equals_torchmetrics(c):
    tm = pytest.importorskip("torchmetrics"); import torch
    y, p = answers(1, n=500, c=c)
    want = tm.functional.classification.multiclass_calibration_error(torch.tensor(p), torch.tensor(y), c, n_bins=15, norm="l1")
    assert metrics(y, p)["ECE"] == pytest.approx(float(want), abs=1e-6)


def test_calibration_by_hand():
    p = np.array([[.9, .1]] * 10); y = np.array([0] * 7 + [1] * 3)            # says .9, is right seven times in ten
    assert metrics(y, p)["ECE"] == pytest.approx(.2) and np.isnan(metrics(y, 5 * p)["ECE"])
    assert metrics([0, 1], np.eye(2))["ECE"] == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.integers(6, 40), st.integers(0, 9999), st.booleans())
def test_order_of_eyes_and_names_of_classes_do_not_matter(c, n, seed, ties):
    y, p = answers(seed, max(n, c), c, ties); rng = np.random.default_rng(seed); base = metrics(y, p)
    eyes = rng.permutation(len(y)); moved = metrics(y[eyes], p[eyes])
    for m in METRICS: assert np.isclose(base[m], moved[m], atol=1e-9, equal_nan=True), m
    if c > 2 and (np.sort(p, 1)[:, -1] > np.sort(p, 1)[:, -2]).all():
        names = rng.permutation(c); renamed = metrics(np.argsort(names)[y], p[:, names])
        for m in METRICS: assert np.isclose(base[m], renamed[m], atol=1e-9, equal_nan=True), m


@settings(max_examples=15, deadline=None)
@given(st.integers(6, 40), st.integers(0, 9999), st.floats(.1, 9))
def test_ranks_do_not_care_for_the_scale(n, seed, power):
    y, p = answers(seed, n, 2); q = np.stack([1 - p[:, 1] ** power, p[:, 1] ** power], 1)
    for m in ("AUC", "AUPR"): assert metrics(y, p)[m] == pytest.approx(metrics(y, q)[m], abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 4))
def test_every_row_twice_changes_nothing(seed, times):
    y, p = answers(seed, 30, 3); base = metrics(y, p); w = np.full((1, 30), times + 1.)
    for m, v in replicates(y, p, w).items(): assert np.isclose(v[0], base[m], atol=1e-6), m


def test_large_counts_and_fractions_are_exact():
    y, p = answers(3, 50, 3); plain = replicates(y, p, np.ones((1, 50)))
    for w in (np.full((1, 50), 1e6), np.full((1, 50), .1)):
        for m, v in replicates(y, p, w).items(): assert np.isclose(v[0], plain[m][0], atol=1e-6), m


def test_classes_one_by_one():
    y, p = answers(2, 100, 3); each = per_class(y, p, ["a", "b", "c"])
    for c in range(3):
        assert each.AUC[c] == pytest.approx(roc_auc_score(y == c, p[:, c])) and each.F1[c] == pytest.approx(f1_score(y == c, p.argmax(1) == c))
    gone = per_class(y[y != 2], p[y != 2]); assert gone.n[2] == 0 and np.isnan(gone.AUC[2]) and np.isnan(gone.recall[2])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.floats(.05, 1), st.integers(0, 999), st.booleans())
def test_threshold_keeps_its_specificity_on_its_own_rows(n, specificity, seed, ties):
    x = np.random.default_rng(seed).normal(size=n); x = np.round(x, 1) if ties else x
    t = threshold_at(x, specificity)
    assert (x <= t).mean() >= specificity - 1e-9
    below = x[x < t]; assert not len(below) or (x <= below.max()).mean() < specificity                # the next lower one would not do


def test_operating_point_lies_on_the_roc_curve():
    rng = np.random.default_rng(0); ill = rng.random(400) < .4; x = rng.normal(size=400) + ill
    t = threshold_at(x[~ill], .9); got = at_threshold(ill, x, t); fpr, tpr, _ = roc_curve(ill, x)
    assert got["sensitivity"][0] == pytest.approx(tpr[np.flatnonzero(fpr <= 1 - got["specificity"][0] + 1e-12)].max())
    for bad in ([], [np.nan]):
        with pytest.raises(ValueError, match="training rows"): threshold_at(bad)
    with pytest.raises(ValueError, match="share above 0"): threshold_at([1.], 0)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 30), st.integers(0, 9999), st.booleans())
def test_best_threshold_is_the_best(n, seed, ties):
    rng = np.random.default_rng(seed); Y, s = rng.random((n, 1)) < .4, rng.normal(size=(n, 1)); s = np.round(s, 0) if ties else s
    if not Y.any(): assert np.isinf(best_thresholds(Y, s)[0]); return
    f1 = lambda t: f1_score(Y[:, 0], s[:, 0] > t, zero_division=0)
    assert f1(best_thresholds(Y, s)[0]) == pytest.approx(max(f1(t) for t in [s.min() - 1, *np.unique(s)]))


def test_several_labels_equal_scikit_learn_and_know_corner_cases():
    rng = np.random.default_rng(0); Y, s = rng.random((200, 3)) < [.4, .2, .1], rng.normal(size=(200, 3)); s += Y
    cut = best_thresholds(Y[:100], s[:100]); got = score_multi(Y, s, cut, 60)
    assert got["AUC"][0] == pytest.approx(roc_auc_score(Y, s)) and got["AUPR"][0] == pytest.approx(average_precision_score(Y, s), abs=1e-6)
    assert got["macro F1"][0] == pytest.approx(f1_score(Y, s > cut, average="macro")) and got["AUC"][1] < got["AUC"][0] < got["AUC"][2]
    assert np.isnan(score_multi(Y[:1], s[:1], cut)["AUC"]).all()
    none = np.hstack([Y, np.zeros((200, 1), bool)]); more = multi_replicates(none, np.hstack([s, s[:, :1]]), [*cut, np.inf], np.ones((1, 200)))
    assert more["AUC"][0] == pytest.approx(got["AUC"][0]) and more["macro F1"][0] == pytest.approx(got["macro F1"][0])        # a finding that nobody has counts for nothing
    for Yb, sb, words in ((Y, s[:, :2], "one shape"), (Y[:0], s[:0], "no test rows"), (2 * Y.astype(int), s, "0 and 1"), (Y, s * np.nan, "200 rows hold NaN")):
        with pytest.raises(ValueError, match=words): score_multi(Yb, sb, cut)


def test_resampling_is_uniform_within_strata():
    w = resample(np.repeat([0, 1], [5, 45]), 4000, 1)
    assert np.abs(w.mean(0) - 1).max() < .08 and np.abs(w.var(0)[:5] - .8).max() < .1 and np.abs(w.var(0)[5:] - 44 / 45).max() < .15
