"Chapter 14.2: paired tests against naive forms, and their errors under the null."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from keepfit_nb.comparisons import (COMPARISON_COLUMNS, _placements, benjamini_hochberg, compare, corrected, delong, draws_for_test, holm, mcnemar, paired_bootstrap,
                                    sign_p, student, student_p)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9999), st.booleans())
def test_placements_equal_all_pairs(m, n, seed, ties):
    rng = np.random.default_rng(seed); ill = np.repeat([True, False], [m, n]); s = rng.normal(size=m + n); s = np.round(s) if ties else s
    psi = (s[ill][:, None] > s[~ill]) + .5 * (s[ill][:, None] == s[~ill])
    V, U = _placements(s, ill); assert np.allclose(V, psi.mean(1)) and np.allclose(U, psi.mean(0)) and V.mean() == pytest.approx(roc_auc_score(ill, s))


def test_delong_equals_the_naive_variance_and_the_bootstrap():
    rng = np.random.default_rng(4); ill = rng.random(300) < .4; shared = rng.normal(size=300)
    a, b = (s * ill + shared + .7 * rng.normal(size=300) for s in (1.6, 1.1))
    def cov(score):                                                       # O(mn), as DeLong wrote it
        return np.array([[float(x > z) + .5 * float(x == z) for z in score[~ill]] for x in score[ill]])
    A, B = cov(a), cov(b); V, U = np.stack([A.mean(1), B.mean(1)]), np.stack([A.mean(0), B.mean(0)])
    S = np.cov(V) / V.shape[1] + np.cov(U) / U.shape[1]; sd = np.sqrt(S[0, 0] + S[1, 1] - 2 * S[0, 1])
    gap, low, high, p = delong(ill, a, b)
    assert gap == pytest.approx(roc_auc_score(ill, a) - roc_auc_score(ill, b)) and high - low == pytest.approx(2 * 1.959964 * sd, rel=1e-5)
    two = lambda s: np.stack([-s, s], 1)
    _, lo, hi, q = paired_bootstrap(ill.astype(int), two(a), two(b), "AUC", 1500)
    assert abs(lo - low) < .02 and abs(hi - high) < .02 and abs(p - q) < .05


def test_delong_in_corner_cases():
    ill = np.array([1, 1, 0, 0], bool); x = np.array([3., 2, 1, 0])
    assert delong(ill, x, x)[::3] == (0, 1) and np.isnan(delong(ill[1:], x[1:], x[1:])).all()
    assert delong(ill, np.zeros(4), np.zeros(4))[3] == 1                      # all predictions equal
    with pytest.raises(ValueError, match="same rows"): delong(ill, x, x[:3])
    with pytest.raises(ValueError, match="NaN"): delong(ill, x, x * np.nan)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 15), st.integers(0, 15))
def test_mcnemar_is_the_binomial(only_a, only_b):
    a = np.r_[np.ones(only_a), np.zeros(only_b), np.ones(5)]; b = np.r_[np.zeros(only_a), np.ones(only_b), np.ones(5)]
    n, k = only_a + only_b, min(only_a, only_b)
    assert mcnemar(a, b) == (only_a, only_b, pytest.approx(min(1., 2 * binom.cdf(k, n, .5)) if n else 1.))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_corrections(p):
    h, b, p = holm(p), benjamini_hochberg(p), np.array(p)
    assert (h >= p - 1e-12).all() and (b >= p - 1e-12).all() and (h >= b - 1e-9).all() and h.max() <= 1
    order = np.argsort(p, kind="stable"); run = 0.
    for i, k in enumerate(order): run = max(run, min(1., (len(p) - i) * p[k])); assert h[k] == pytest.approx(run)
    assert np.array_equal(np.argsort(h[order], kind="stable"), np.arange(len(p)))


def test_missing_p_values_do_not_count():
    assert np.allclose(holm([.01, np.nan, .04]), [.02, np.nan, .04], equal_nan=True) and np.isnan(benjamini_hochberg([np.nan])).all() and not len(benjamini_hochberg([]))


def test_a_model_against_itself_and_a_clear_winner():
    rng = np.random.default_rng(0); y = rng.integers(0, 3, 90); good = np.eye(3)[np.where(rng.random(90) < .9, y, (y + 1) % 3)]; bad = np.eye(3)[np.where(rng.random(90) < .5, y, (y + 1) % 3)]
    same, won = compare(y, good, good, 200), compare(y, good, bad, 200)
    assert same["difference"] == 0 and same["p_bootstrap"] == same["p_mcnemar"] == 1 and np.isnan(same["p_delong"])
    assert won["low"] > 0 and won["p_bootstrap"] < .02 and won["p_mcnemar"] < .001
    assert won["difference"] == -compare(y, bad, good, 200)["difference"]
    table = corrected([won, same]); assert table.p_holm[0] == pytest.approx(2 * table.p_bootstrap[0]) and set(table) <= set(COMPARISON_COLUMNS)
    assert table.p_mcnemar_holm[0] == pytest.approx(2 * table.p_mcnemar[0]) and table.p_mcnemar_bh[0] == pytest.approx(2 * table.p_mcnemar[0]) and table.p_delong_holm.isna().all()
    two = corrected([dict(p_bootstrap=.5, p_mcnemar=.5, p_delong=p) for p in (.01, .04, np.nan)]); assert np.allclose(two.p_delong_holm, [.02, .04, np.nan], equal_nan=True)
    assert list(corrected([])) == list(COMPARISON_COLUMNS)
    assert np.isnan(compare([1], [[.2, .8]], [[.7, .3]])["p_bootstrap"])       # a test set of one
    with pytest.raises(ValueError, match="same rows"): paired_bootstrap(y, good, bad[:, :2])
    with pytest.raises(ValueError, match="unknown metric 'ACC'"): paired_bootstrap(y, good, bad, "ACC")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1).map(lambda v: round(v, 3)), min_size=2, max_size=9))
def test_student_is_scipys(gains):
    from scipy.stats import t, ttest_rel
    x = np.array(gains)
    if x.std() < 1e-9: assert student_p(x) == (1 if not x.any() else pytest.approx(0, abs=1e-6)); return
    assert np.allclose(student(x), t.interval(.95, len(x) - 1, x.mean(), x.std(ddof=1) / len(x) ** .5)) and student_p(x) == pytest.approx(ttest_rel(x, 0 * x).pvalue)
    assert (student_p(x) < .05) == (not student(x)[0] <= 0 <= student(x)[1])


def test_under_the_null_few_are_claimed():
    rng, hits = np.random.default_rng(1), 0
    for t in range(60):
        y = np.repeat([0, 1], 40); a, b = (np.eye(2)[np.where(rng.random(80) < .75, y, 1 - y)] for _ in range(2))
        hits += paired_bootstrap(y, a, b, n=100, seed=t)[3] < .05
    assert hits <= 9 and sign_p(np.full(99, .5)) == pytest.approx(.02) and np.isnan(sign_p([np.nan]))


def test_a_clear_difference_survives_many_questions():
    "With as few draws as an interval needs, Holm's p of a table of forty could not fall below .05."
    rng = np.random.default_rng(0); y = np.repeat([0, 1, 2], 60); answer = lambda share: np.eye(3)[np.where(rng.random(180) < share, y, (y + 1) % 3)]
    good, poor = answer(.95), answer(.5); rows = lambda n: [dict(a="good", b="poor", **compare(y, good, poor, n))] + [dict(a="x", b="y", p_bootstrap=.9, p_mcnemar=.9, p_delong=np.nan)] * 39
    assert corrected(rows(500)).p_holm[0] > .05 > corrected(rows(draws_for_test(180, 500))).p_holm[0]
    assert draws_for_test(0) == draws_for_test(2000) == 10_000 and draws_for_test(10_000) == 2000 and draws_for_test(10**6, 300) == 300
