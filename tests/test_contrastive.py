"Contrastive loss and targets: naive against fast, odd batches, precision, the temperature's bounds."
import math

import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from keepfit_nb.contrastive import Temperature, clip_loss, identity_targets, multi_hot, share_targets, siglip_loss

labels = st.lists(st.lists(st.sampled_from("abcde"), max_size=4, unique=True), min_size=1, max_size=9)


def unit(n, dim=16, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def by_pairs(categories):
    "Jaccard, one pair after another."
    n, out = len(categories), torch.zeros(len(categories), len(categories), dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            a, b = set(categories[i]), set(categories[j])
            out[i, j] = 1. if i == j else len(a & b) / len(a | b) if a | b else 0.
    return out / out.sum(1, keepdim=True)


@settings(max_examples=60, deadline=None)
@given(labels)
def test_targets_agree_with_pairs(categories):
    found = share_targets(multi_hot(categories).double())
    assert torch.allclose(found, by_pairs(categories), atol=1e-12, rtol=0)
    assert torch.allclose(found.sum(1), torch.ones(len(categories), dtype=torch.float64), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(labels, st.floats(1, 100))
def test_loss_agrees_with_sums(categories, scale):
    n, T = len(categories), share_targets(multi_hot(categories).double())
    v, w = unit(n), unit(n, seed=1)
    logits = scale * v @ w.T
    want = -(T * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum() / (2 * n)
    assert abs(clip_loss(v, w, T, scale) - want) < 1e-12 * max(1, scale)


def test_no_labels_and_all_alike():
    assert torch.equal(share_targets(multi_hot([[], []])), torch.eye(2))
    assert torch.allclose(share_targets(multi_hot([["a"]] * 3)), torch.full((3, 3), 1 / 3))
    assert torch.equal(share_targets(torch.zeros(1, 0)), torch.eye(1))


def test_one_and_none():
    assert clip_loss(unit(1), unit(1, seed=3), None, 50.).abs() < 1e-12
    empty = unit(4)[:0].requires_grad_()
    clip_loss(empty, empty, None, 5.).backward()                    # an empty part of a batch still has a gradient path


def test_half_precision_is_computed_wide():
    v, w = unit(32, dtype=torch.float32), unit(32, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16): mixed = clip_loss(v, w, None, 100.)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, clip_loss(v, w, None, 100.))


@pytest.mark.parametrize("call, word", [
    (lambda: clip_loss(unit(3), unit(4), None, 1.), "one shape"), (lambda: clip_loss(unit(3), unit(3), torch.eye(2), 1.), "do not fit"),
    (lambda: share_targets(torch.ones(3)), "n_categories")])
def test_shapes(call, word):
    with pytest.raises(ValueError, match=word): call()


def test_labels_must_be_lists():
    for wrong in (["glaucoma"], "glaucoma"):
        with pytest.raises(TypeError, match="list of lists"): multi_hot(wrong)
    with pytest.raises(KeyError, match="drusen"): multi_hot([["drusen"]], ["normal"])
    assert torch.equal(multi_hot([["b", "b"], []], ["a", "b"]), torch.tensor([[0., 1.], [0., 0.]]))


def test_input_is_not_changed():
    table = multi_hot([["a"], ["a", "b"]]); before = table.clone()
    share_targets(table)
    assert torch.equal(table, before)


def test_temperature_returns_from_both_bounds():
    t = Temperature()
    for outside, bound in ((50., 100.), (-50., 1.)):
        with torch.no_grad(): t.log_scale.fill_(outside)
        t.zero_grad(); value = t(); value.backward()
        assert math.isclose(value.item(), bound, rel_tol=1e-5) and t.log_scale.grad.abs() > 0
    assert torch.equal(identity_targets(2), torch.eye(2))


@settings(max_examples=30, deadline=None)
@given(labels, st.floats(1, 100), st.floats(-20, 5))
def test_siglip_agrees_with_pairs(categories, scale, bias):
    n, T = len(categories), share_targets(multi_hot(categories).double())
    v, w = unit(n), unit(n, seed=1)
    want = sum(math.log1p(math.exp(-z)) for i in range(n) for j in range(n)
               for z in [(1. if T[i, j] > 0 else -1.) * (scale * float(v[i] @ w[j]) + bias)]) / n
    assert abs(siglip_loss(v, w, T, scale, bias) - want) < 1e-9 * max(1, want)


@pytest.mark.parametrize("targets", [None, "soft"])
def test_gradcheck(targets):
    v, w = unit(5).requires_grad_(), unit(5, seed=1).requires_grad_()
    T = share_targets(multi_hot([["a"], ["a", "b"], [], ["b"], ["a"]]).double()) if targets else None
    s, b = torch.tensor(7., dtype=torch.float64, requires_grad=True), torch.tensor(-3., dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w, s: clip_loss(v, w, T, s), (v, w, s))
    assert torch.autograd.gradcheck(lambda v, w, s, b: siglip_loss(v, w, T, s, b), (v, w, s, b))


def test_siglip_corners():
    one = unit(1)
    assert siglip_loss(one, one, None, 10., -10.) == pytest.approx(math.log(2))       # cosine 1 at the start: on the fence
    all_ = torch.full((3, 3), 1 / 3)
    assert torch.isfinite(siglip_loss(unit(3), unit(3, seed=1), all_.double(), 100., -10.))
    empty = unit(4)[:0].requires_grad_(); siglip_loss(empty, empty, None, 5., 0.).backward()
    v, w = unit(32, dtype=torch.float32), unit(32, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16): mixed = siglip_loss(v.bfloat16(), w.bfloat16(), None, 100., -10.)
    assert mixed.dtype == torch.float32 and torch.isfinite(mixed)
    with pytest.raises(ValueError, match="one shape"): siglip_loss(unit(3), unit(4), None, 1., 0.)
    with pytest.raises(ValueError, match="do not fit"): siglip_loss(unit(3), unit(3), torch.eye(2), 1., 0.)


def test_temperature_with_a_bias():
    t = Temperature(10., bias=-10.)
    assert t.bias.item() == -10 and {k for k, _ in t.named_parameters()} == {"log_scale", "bias"}
    assert Temperature().bias is None and len(list(Temperature().parameters())) == 1
