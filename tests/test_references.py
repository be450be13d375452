"The parts of the injection against loops: attention, patches, gate, memory."
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from keepfit_nb.references import (AppearanceAttention, EliteMemory, Gate, SemanticAttention, Sharpness, attention_shares, certainty,
                                   masked_softmax, refill, standardise, toy_world)

P = 12


def unit(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def shares_by_loops(q, k, scale, heads, allowed):
    out, d = torch.zeros(len(q), len(k), dtype=q.dtype), P // heads
    for i in range(len(q)):
        open_ = [e for e in range(len(k)) if allowed[i, e]]
        for h in range(heads):
            s = slice(h * d, h * d + d)
            logits = [scale * float(F.cosine_similarity(q[i, s], k[e, s], dim=0)) for e in open_]
            if open_: out[i, open_] += torch.tensor(logits, dtype=q.dtype).softmax(0) / heads
    return out


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_attention_against_loops(heads):
    q, k = unit(7, P), unit(9, P, seed=1)
    allowed = torch.rand(7, 9, generator=torch.Generator().manual_seed(2)) < .5
    allowed[3] = False                                             # one sees nothing
    assert torch.allclose(attention_shares(q, k, 9., heads, allowed), shares_by_loops(q, k, 9., heads, allowed), atol=1e-12, rtol=0)


def test_masked_softmax_has_finite_gradients_when_nothing_is_allowed():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[True] * 4, [False] * 4, [True, False, False, True]])
    y = masked_softmax(x, allowed); (y * torch.arange(4)).sum().backward()
    assert torch.isfinite(x.grad).all() and y[1].abs().sum() == 0 and y[2, 1:3].abs().sum() == 0
    assert torch.autograd.gradcheck(lambda x: masked_softmax(x, allowed), (x,))


def test_standardise_ignores_forbidden_entries():
    x, allowed = torch.randn(5, 8, dtype=torch.float64), torch.rand(5, 8, generator=torch.Generator().manual_seed(0)) < .6
    z = standardise(x, allowed)
    changed = standardise(torch.where(allowed, x, 99.), allowed)
    assert torch.allclose(z, changed) and torch.allclose((z * allowed).sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-9)
    assert torch.isfinite(standardise(x, allowed & False)).all()


def test_appearance_learns_through_its_lens():
    att, a, b = AppearanceAttention(5).double(), unit(3, 4, 5), unit(6, 4, 5, seed=1)
    out = att(a, b, torch.ones(3, 6, dtype=torch.bool))
    out[:, 0].sum().backward()
    assert att.lens.weight.grad.abs().sum() > 0 and att.scale.log_scale.grad.abs() > 0
    open_ = torch.ones(3, 6, dtype=torch.bool)
    only = torch.zeros(3, 4, dtype=torch.float64); only[:, 2] = 1           # a weight on one patch: the others do not matter
    assert torch.allclose(att(a, b, open_, only), att(a[:, 2:3], b, open_), atol=1e-9)
    assert not torch.allclose(att(a, b, open_), AppearanceAttention(5, symmetric=True).double()(a, b, open_))


def test_appearance_against_loops():
    att, a, b = AppearanceAttention(5, scale=3.).double(), unit(3, 4, 5), unit(6, 4, 5, seed=1)
    allowed = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) < .7
    want = torch.zeros(3, 6, dtype=torch.float64)
    for i in range(3):
        open_ = [e for e in range(6) if allowed[i, e]]
        s = torch.tensor([sum(max(float(p @ q) for q in b[e]) for p in a[i]) / 4 for e in open_], dtype=torch.float64)
        want[i, open_] = (3 * (s - s.mean()) / s.std(correction=0)).softmax(0)
    assert torch.allclose(att(a, b, allowed), want, atol=1e-6)                # the scale is stored in float32 before .double()


def test_certainty_has_its_ends():
    open_ = torch.ones(2, 4, dtype=torch.bool)
    assert torch.allclose(certainty(torch.tensor([[1., 0, 0, 0], [.25] * 4]), open_), torch.tensor([1., 0.]), atol=1e-5)
    assert certainty(torch.zeros(2, 4), open_ & False).abs().sum() == 0


def test_gate_starts_at_one_half_and_does_not_touch_attention():
    gate, q, A = Gate(P), unit(5, P, dtype=torch.float32), torch.rand(5, 7, requires_grad=True)
    out = gate(q, A, A * .5, torch.ones(5, 7, dtype=torch.bool))
    assert torch.allclose(out, torch.full((5, 1), .5)); out.sum().backward()
    assert A.grad is None and gate.weigh.weight.grad.abs().sum() > 0


def test_memory_keeps_each_pair_once_and_forgets_the_oldest():
    memory, ids = EliteMemory(5, P), torch.arange(12)
    for first in range(0, 12, 2): memory.push(unit(12, P)[first:first + 2], unit(12, P, seed=1)[first:first + 2], ids[:2] * 0, ids[first:first + 2])
    assert sorted(memory.index.tolist()) == [7, 8, 9, 10, 11]
    memory.push(unit(3, P, seed=5), unit(3, P, seed=6), ids[:3] * 0, ids[9:])
    assert sorted(memory.index.tolist()) == [7, 8, 9, 10, 11]
    assert torch.allclose(memory.image[memory.index == 10].double(), unit(3, P, seed=5)[1:2], atol=1e-6)
    memory.push(unit(0, P), unit(0, P), ids[:0], ids[:0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=8), st.integers(1, 8))
def test_memory_against_a_dictionary(batches, size):
    memory, kept, step = EliteMemory(size, P), {}, 0
    for batch in batches:
        batch, step = batch[:size], step + 1
        memory.push(unit(len(batch), P, seed=step), unit(len(batch), P, seed=step), torch.zeros(len(batch), dtype=torch.long), torch.tensor(batch))
        new = [i for i in dict.fromkeys(batch) if i not in kept]
        while len(kept) + len(new) > size:                         # the oldest goes, but never one of this batch
            oldest = min(v for k, v in kept.items() if k not in batch)
            kept.pop(next(k for k, v in kept.items() if v == oldest and k not in batch)); 
        kept.update({i: step for i in batch})
        used = memory.index[memory.index >= 0].tolist()
        assert len(used) == len(set(used)) == len(kept) and set(batch) <= set(used)
        assert sorted(memory.written[memory.index >= 0].tolist()) == sorted(kept.values())


def test_momentum_and_refill():
    memory, a, b, i = EliteMemory(4, P, momentum=.5), unit(2, P, dtype=torch.float32), unit(2, P, seed=1, dtype=torch.float32), torch.arange(2)
    memory.push(a, a, i, i); assert torch.allclose(memory.image[:2], a, atol=1e-6)          # new: nothing to mix with
    memory.push(b, b, i, i); assert torch.allclose(memory.image[:2], F.normalize(a + b, dim=1), atol=1e-6)
    other = EliteMemory(6, P)
    refill(other, lambda k: dict(image=unit(6, P)[k], text=unit(6, P, seed=2)[k], modality=k * 0), torch.arange(6), batch_size=4)
    assert sorted(other.index.tolist()) == list(range(6)) and torch.allclose(other.image[other.index.argsort()].double(), unit(6, P), atol=1e-6)
    with pytest.raises(ValueError, match="momentum"): EliteMemory(4, P, momentum=1.)


def test_sharpness_returns_from_its_bound():
    s = Sharpness(10.)
    with torch.no_grad(): s.log_scale.fill_(50.)
    value = s(); value.backward()
    assert abs(value.item() - 100) < 1e-3 and s.log_scale.grad > 0
    with pytest.raises(ValueError, match="starts in"): Sharpness(.5)
    with pytest.raises(ValueError, match="do not divide"): SemanticAttention(P, heads=5)


def test_small_world_is_the_same_again():
    a, b = toy_world(9, seed=4), toy_world(9, seed=4)
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["image"], toy_world(9, seed=5)["image"])
