"Chapter 16.1: many softmax regressions at once, against autograd and scikit-learn."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression

from keepfit_nb import logistic as lg


def data(n=40, d=6, c=3, seed=0):
    rng = np.random.default_rng(seed); y = rng.permutation(np.arange(n) % c)
    return rng.normal(size=(n, d)) + np.eye(c, d)[y], y


def test_shared_and_own_rows_agree():
    x, y = data(); w = torch.randn(4, 3, 6, dtype=torch.float64); own = torch.tensor(x).expand(4, -1, -1)
    assert torch.allclose(lg.scores_of(torch.tensor(x), w), lg.scores_of(own, w)) and torch.allclose(lg.scores_of(own, w)[2], torch.tensor(x) @ w[2].T)
    r = torch.randn(4, 40, 3, dtype=torch.float64)
    assert torch.allclose(lg.pull_back(torch.tensor(x), r), lg.pull_back(own, r)) and torch.allclose(lg.pull_back(own, r)[1], r[1].T @ torch.tensor(x))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 99), st.sampled_from([2, 3, 5]), st.sampled_from([.01, 1., 30.]))
def test_the_optimum_is_scikit_learns(seed, c, C):
    x, y = data(60, 4, c, seed)
    ours = lg.softmax_regressions(x, y, np.ones((1, 60)), [(2 if c == 2 else 1) / C], c)
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(x, y)
    w, b = ours.w[0].numpy(), ours.b[0].numpy()
    if c == 2: w, b = np.diff(w, axis=0), np.diff(b)
    assert np.abs(w - theirs.coef_).max() < 1e-3 and np.abs(b - theirs.intercept_).max() < 1e-3 and float(ours.rest) <= 1e-8


def test_problems_do_not_touch_each_other():
    x, y = data(); weight = np.stack([np.ones(40), np.r_[np.ones(30), np.zeros(10)], np.linspace(.1, 2, 40)])
    many = lg.softmax_regressions(x, y, weight, [.1, 1., 10.], 3)
    for g in range(3):
        alone = lg.softmax_regressions(x, y, weight[g:g + 1], [[.1, 1., 10.][g]], 3)
        assert torch.allclose(many.w[g], alone.w[0], atol=1e-6)
    short = lg.softmax_regressions(x[:30], y[:30], np.ones((1, 30)), [1.], 3)                      # weight 0 is absence
    assert torch.allclose(many.w[1], short.w[0], atol=1e-6)


def test_few_rows_of_many_features_and_offsets():
    rng = np.random.default_rng(0); x, y, said = rng.normal(size=(2, 9, 50)), np.tile(np.arange(9) % 3, (2, 1)), rng.normal(size=(2, 9, 3))
    fast = lg.softmax_regressions(x, y, np.ones((2, 9)), np.array([[1., 2, 3]] * 2), 3, said)
    plain = lg.softmax_regressions(x, y, np.ones((2, 9)), np.broadcast_to(np.array([1., 2, 3])[None, :, None], (2, 3, 50)), 3, said)
    assert torch.allclose(fast.w, plain.w, atol=1e-6) and torch.allclose(fast.b, plain.b, atol=1e-6)
    p = (torch.tensor(said) + torch.tensor(x) @ fast.w.mT + fast.b[:, None]).softmax(2) - torch.eye(3, dtype=torch.float64)[torch.tensor(y)]
    assert (p.mT @ torch.tensor(x) + torch.tensor([1., 2, 3])[:, None] * fast.w).abs().max() < 1e-6


def test_hard_problems_end():
    x, y = data(30, 4); x = x * np.array([1e3, 1, 1e-3, 0])                                          # scales apart, one constant feature
    assert float(lg.softmax_regressions(x, y, np.ones((1, 30)), [1e-6], 3).rest) < 1e-6
    sure = lg.softmax_regressions(np.eye(3).repeat(5, 0), np.repeat([0, 1, 2], 5), np.ones((1, 15)), [1e-8], 3)      # separable
    assert torch.isfinite(sure.w).all() and (torch.tensor(np.eye(3)) @ sure.w[0].T).argmax(1).tolist() == [0, 1, 2]
    same = lg.softmax_regressions(x, np.ones(30, int), np.ones((1, 30)), [1.], 3)                    # all labels equal
    assert torch.isfinite(same.w).all() and same.b[0].argmax() == 1


@pytest.mark.parametrize("change, words", [(dict(x=np.full((4, 2), np.nan)), "diverge"), (dict(y=[0, 1, 3, 0]), "0 to 2"), (dict(weight=np.ones((1, 3))), "expected rows"),
                                           (dict(weight=np.zeros((1, 4))), "without a row")])
def test_bad_input(change, words):
    given_ = dict(x=np.eye(4, 2), y=[0, 1, 2, 0], weight=np.ones((1, 4)), penalty=[1.], classes=3) | change
    with pytest.raises(ValueError, match=words): lg.softmax_regressions(**given_)
