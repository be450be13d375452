"KeepFIT V1's arithmetic against loops in float64, its defects measured."
import math

import pytest, torch
from torch.nn import functional as F

from keepfit_nb.first_version import HeadAttention, drawn_targets, first_version_losses, padded_mean


@pytest.fixture(autouse=True)
def wide():
    torch.set_default_dtype(torch.float64); torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def unit(*shape): return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_against_loops(heads):
    att, q, k, v = HeadAttention(8, heads).eval(), unit(5, 8), unit(7, 8), unit(7, 8)
    d, Q, K, V, out = 8 // heads, att.query(q), att.key(k), att.value(v), torch.zeros(5, 8)
    for i in range(5):
        for e in range(7):
            logits = torch.stack([Q[i, h * d:h * d + d] @ K[e, h * d:h * d + d] / math.sqrt(d) for h in range(heads)])
            for h, w in enumerate(logits.softmax(0)): out[i, h * d:h * d + d] += w * V[e, h * d:h * d + d]
    assert torch.allclose(att(q, k, v), att.out(out), atol=1e-12)
    assert torch.allclose(att.weights(q, k).sum(0), torch.ones(5, 7))


def test_targets_are_one_over_how_many_drew_the_same():
    names = ["a", "b", "a", "c", "a", "b"]
    want = torch.tensor([[(x == y) / names.count(y) for y in names] for x in names])
    assert torch.allclose(drawn_targets(names), want) and torch.allclose(drawn_targets(torch.tensor([0, 1, 0, 2, 0, 1])), want)
    assert drawn_targets([]).shape == (0, 0)


def test_the_step_against_loops():
    v, t, ve, te, att, s = unit(6, 8), unit(6, 8), unit(4, 8), unit(4, 8), HeadAttention(8).eval(), torch.tensor(12.)
    names = ["a", "b", "a", "c", "a", "b"]
    def clip(v, t, T):
        total = 0.
        for i in range(len(v)):
            rows, columns = (torch.stack([s * t[i] @ x for x in v]).log_softmax(0), torch.stack([s * x @ v[i] for x in t]).log_softmax(0))
            total -= (T[i] * rows).sum() + (T[i] * columns).sum()
        return total / (2 * len(v))
    out = first_version_losses(v, t, names, ve, te, att, s)
    squares = sum(((t[i, p] - att(v, ve, te)[i, p]) ** 2).item() for i in range(6) for p in range(8)) / 48
    assert torch.allclose(out["public"], clip(v, t, drawn_targets(names)), atol=1e-12) and torch.allclose(out["elite"], clip(ve, te, torch.eye(4)), atol=1e-12)
    assert abs(out["reference"].item() - squares) < 1e-12 and torch.allclose(out["loss"], out["public"] + out["elite"] + 100 * out["reference"])


def test_nothing_is_stopped():
    leaves = [unit(5, 8).requires_grad_() for _ in range(4)]
    att = HeadAttention(8)
    first_version_losses(leaves[0], leaves[1], list("abcab"), leaves[2], leaves[3], att, torch.tensor(5.))["reference"].backward()
    assert all(x.grad.abs().sum() > 0 for x in leaves) and all(w.grad is not None for w in att.parameters())


def test_padding_moves_the_vector():
    states = [torch.randn(2, 6, 3) for _ in range(5)]
    want = sum(states[k][:, t] for k in (1, 2, 4) for t in range(6)) / 18
    assert torch.allclose(padded_mean(states), want)
    longer = [torch.cat([s, torch.randn(2, 6, 3)], 1) for s in states]
    assert not torch.allclose(padded_mean(longer), want)
    with pytest.raises(ValueError, match="lacks them"): padded_mean(states[:2])
    with pytest.raises(ValueError, match="do not divide"): HeadAttention(8, heads=3)
