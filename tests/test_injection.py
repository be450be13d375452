"The semantic reference: against loops, gradients, modalities, memory, odd batches."
import pytest, torch
from torch.nn import functional as F

from keepfit_nb.contrastive import clip_loss
from keepfit_nb.injection import EliteMemory, SemanticReference, attention_shares

P = 12


def unit(n, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(n, P, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


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
    q, k = unit(7), unit(9, 1)
    allowed = torch.rand(7, 9, generator=torch.Generator().manual_seed(2)) < .5
    allowed[3] = False                                             # one sees nothing
    assert torch.allclose(attention_shares(q, k, 9., heads, allowed), shares_by_loops(q, k, 9., heads, allowed), atol=1e-12, rtol=0)


def batch(public=8, elite=6, dtype=torch.float64, modalities=2):
    ids = torch.arange(elite)
    return [unit(public, 1, dtype).requires_grad_(), unit(public, 2, dtype).requires_grad_(), torch.arange(public) % modalities,
            unit(elite, 3, dtype).requires_grad_(), unit(elite, 4, dtype).requires_grad_(), ids % modalities, ids]


@pytest.mark.parametrize("pull", ["text", "image", "both"])
@pytest.mark.parametrize("loss", ["mse", "infonce"])
def test_whom_it_pulls(pull, loss):
    ref, b = SemanticReference(P, pull=pull, loss=loss).double(), batch()
    out = ref(*b); (out["reference"] + out["leave_one_out"]).backward()
    assert b[3].grad is None and b[4].grad is None                  # elite embeddings stand still
    assert (b[1].grad is not None) == (pull in ("text", "both"))
    assert b[0].grad is not None or (pull == "text" and loss == "infonce")
    assert all(p.grad is not None for p in ref.parameters())


def test_mse_against_loops():
    ref, b = SemanticReference(P, pull="text", loss="mse").double(), batch()
    A = shares_by_loops(b[0].detach(), b[3].detach(), 10., 2, b[2][:, None] == b[5])
    want = sum((b[1][i] - F.normalize(A[i] @ b[4], dim=0)).square().sum() for i in range(8)) / 8
    assert torch.allclose(ref(*b)["reference"], want, atol=1e-6)    # the learned scale is stored in float32 before .double()


def test_leave_one_out_never_sees_itself():
    ref, b = SemanticReference(P).double(), batch(modalities=1)
    A = shares_by_loops(b[3].detach(), b[3].detach(), 10., 2, ~torch.eye(6, dtype=torch.bool))
    want = clip_loss(F.normalize(A @ b[4].detach(), dim=1), b[4].detach(), None, ref.scale)
    assert torch.allclose(ref(*b)["leave_one_out"], want, atol=1e-6)
    twice = [x if k < 3 else torch.cat([x, x]) for k, x in enumerate(b)]          # a pair drawn twice does not answer for its twin
    allowed = twice[6][:, None] != twice[6]
    A = shares_by_loops(twice[3].detach(), twice[3].detach(), 10., 2, allowed)
    want = clip_loss(F.normalize(A @ twice[4].detach(), dim=1), twice[4].detach(), None, ref.scale)
    assert torch.allclose(ref(*twice)["leave_one_out"], want, atol=1e-6)


def test_modality_without_elite_and_single_pairs():
    b = batch(); b[2] = torch.full((8,), 2)
    out = SemanticReference(P).double()(*b)
    assert out["reference"] == 0 and torch.isfinite(out["leave_one_out"])
    b = batch(elite=1, modalities=1)
    out = SemanticReference(P).double()(*b)
    assert torch.isfinite(out["reference"]) and out["leave_one_out"] == 0        # nobody else to ask
    (out["reference"] + out["leave_one_out"]).backward()


def test_public_image_is_not_moved_across_modalities():
    ref, b = SemanticReference(P).double(), batch()
    before = ref(*b)["reference"]
    b[3], b[4] = b[3].detach().clone(), b[4].detach().clone()
    b[3][1::2], b[4][1::2] = unit(3, 9), unit(3, 10)                             # other pairs of modality 1
    b[2] = b[2] * 0                                                              # all public images are modality 0
    again = ref(*b)["reference"]
    b[3][1::2], b[4][1::2] = unit(3, 11), unit(3, 12)
    assert torch.equal(ref(*b)["reference"], again) and torch.isfinite(before)


def test_memory_is_a_ring_without_twins():
    memory, ids = EliteMemory(5, P), torch.arange(12)
    for first in range(0, 12, 2): memory.push(unit(12)[first:first + 2], unit(12, 1)[first:first + 2], ids[:2] * 0, ids[first:first + 2])
    assert sorted(memory.index.tolist()) == [7, 8, 9, 10, 11]
    memory.push(unit(3, 5), unit(3, 6), ids[:3] * 0, ids[9:])
    assert memory.index[memory.modality >= 0].unique().numel() == (memory.modality >= 0).sum()
    memory.push(unit(0), unit(0), ids[:0], ids[:0])


def test_memory_is_saved_used_and_left_alone_in_evaluation():
    ref, b = SemanticReference(P, memory=16).double(), batch()
    ref(*b); assert (ref.memory.modality >= 0).sum() == 6
    other = SemanticReference(P, memory=16).double(); other.load_state_dict(ref.state_dict())
    assert torch.equal(other.memory.image, ref.memory.image)
    keys = ref._keys(b[3], b[4], b[5], b[6])
    assert (keys[2][6:] >= 0).sum() == 0                                         # older selves of this batch's pairs are out
    ref.eval()(*batch(elite=4)); assert (ref.memory.modality >= 0).sum() == 6


@pytest.mark.parametrize("bad, word", [(dict(heads=5), "do not divide"), (dict(pull="imge"), "did you mean 'image'"), (dict(loss="mce"), "did you mean 'mse'")])
def test_wrong_settings(bad, word):
    with pytest.raises(ValueError, match=word): SemanticReference(P, **bad)


def test_bf16_is_computed_wide():
    ref = SemanticReference(P)
    with torch.autocast("cpu", dtype=torch.bfloat16): out = ref(*batch(dtype=torch.float32))
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in out.values())
