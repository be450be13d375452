"Token head, weights, descriptions and the similarity of two pictures; the stage, its files, its bad days."
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from keepfit_nb.appearance import (Settings, TokenHead, best_constant, build, cached_tokens, code_vectors, count_tokens, describe, load_counts,
                                   patch_similarity, rarity, token_loss, write_tokens)
from keepfit_nb.tokenizer import ImageTokenizer, load_tokenizer


def unit(*shape, seed=0): return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def by_loops(a, b, w=None):
    out = torch.zeros(len(a), len(b), dtype=a.dtype)
    for i in range(len(a)):
        weights = torch.ones(a.shape[1], dtype=a.dtype) if w is None else w[i]
        for e in range(len(b)):
            out[i, e] = sum(weights[n] * max(a[i, n] @ b[e, m] for m in range(b.shape[1])) for n in range(a.shape[1])) / weights.sum()
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.booleans(), st.integers(1, 200))
def test_similarity_agrees_with_loops(B, E, N, M, weighed, at_once):
    a, b = unit(B, N, 6), unit(E, M, 6, seed=1)
    w = torch.rand(B, N, dtype=torch.float64) + .01 if weighed else None
    found = patch_similarity(a, b, w, at_once=at_once)
    assert found.shape == (B, E) and torch.allclose(found, by_loops(a, b, w), atol=1e-12)
    both = patch_similarity(a, b, w, symmetric=True, at_once=at_once)
    assert torch.allclose(both, (by_loops(a, b, w) + by_loops(b, a).T) / 2, atol=1e-12)


def test_similarity_has_right_gradients():
    a, b, w = unit(2, 3, 4).requires_grad_(), unit(3, 2, 4, seed=1).requires_grad_(), torch.rand(2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: patch_similarity(*x), (a, b, w))
    assert torch.autograd.gradcheck(lambda *x: patch_similarity(*x, symmetric=True), (a, b, w))


def test_a_weight_of_zero_hides_a_square():
    a, b = unit(1, 4, 6), unit(5, 7, 6, seed=1)
    other = a.clone(); other[0, 0] = -a[0, 0]
    w = torch.tensor([[0., 1, 1, 1]], dtype=torch.float64)
    assert torch.allclose(patch_similarity(a, b, w), patch_similarity(other, b, w))
    assert patch_similarity(a, b, w * 0).isfinite().all()


def test_order_of_squares_does_not_matter_and_shapes_must_fit():
    a, b = unit(2, 5, 6), unit(3, 7, 6, seed=1)
    assert torch.allclose(patch_similarity(a, b), patch_similarity(a[:, [3, 1, 4, 0, 2]], b[:, torch.randperm(7)]))
    assert patch_similarity(a, b[:0]).shape == (2, 0) and patch_similarity(a[:0], b).shape == (0, 3)
    for bad in (b[0], b[..., :5]):
        with pytest.raises(ValueError, match=r"\(E, M, d\)"): patch_similarity(a, bad)


def test_unusual_squares_decide():
    "Two pictures share the background, two share a rare square: with weights the second pair is closer."
    counts = torch.tensor([9000., 10, 10, 980])
    t = torch.zeros(3, 8, 8, dtype=torch.int64); t[0, 2:4, 2:4] = 1; t[1, 5:7, 5:7] = 1; t[2, 2:4, 2:4] = 2
    book = F.normalize(torch.randn(4, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors = book[t].permute(0, 3, 1, 2)
    gap = lambda power: (lambda v, w: (lambda s: s[0, 1] - s[0, 2])(patch_similarity(v, v, w)))(*describe(vectors, rarity(t, counts, power), None))
    assert gap(2.) > 3 * gap(0.) > 0


@pytest.mark.parametrize("h,w,ratio,size", [(2, 2, 8, (16, 16)), (7, 7, 4, (28, 28)), (4, 5, 2, (8, 10)), (16, 16, 1, (14, 14)), (14, 14, 1, (16, 16))])
def test_head_shapes_and_loss(h, w, ratio, size):
    head, p = TokenHead(6, 9, ratio, 5), torch.randn(2, 6, h, w, requires_grad=True)
    t = torch.randint(0, 9, (2, *size))
    logits = head(p, size)
    assert logits.shape == (2, 9, *size)
    out = token_loss(head, p, t)
    assert torch.allclose(out["token"], F.cross_entropy(logits, t)) and out["token_accuracy"] == (logits.argmax(1) == t).float().mean()
    out["token"].backward()
    assert p.grad.abs().sum() > 0 and all(q.grad is not None for q in head.parameters())
    assert not out["token_accuracy"].requires_grad


def test_each_patch_answers_for_its_own_squares():
    head, p = TokenHead(6, 9, 3, 5), torch.randn(1, 6, 2, 2)
    moved = p.clone(); moved[0, 0, 0, 1] += 1
    changed = (head(p) != head(moved)).any(1)[0]
    want = torch.zeros(6, 6, dtype=bool); want[:3, 3:] = True
    assert changed.equal(want)


def test_weights_of_the_loss():
    head, p, t = TokenHead(6, 9, 2, 5), torch.randn(2, 6, 2, 2), torch.randint(0, 9, (2, 4, 4))
    w = torch.zeros(2, 4, 4); w[1, 2, 3] = 5
    assert torch.allclose(token_loss(head, p, t, w)["token"], F.cross_entropy(head(p)[1, :, 2, 3][None], t[1, 2, 3][None]))
    assert token_loss(head, p, t, w * 0)["token"] == 0


def test_head_learns_what_patches_hold():
    torch.manual_seed(0)
    t = torch.randint(0, 5, (16, 4, 4)); p = F.one_hot(t, 5).float().view(16, 2, 2, 2, 2, 5).permute(0, 2, 4, 5, 1, 3).reshape(16, 20, 2, 2)
    head = TokenHead(20, 5, 2, 8); opt = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(150):
        opt.zero_grad(); token_loss(head, p, t)["token"].backward(); opt.step()
    assert token_loss(head, p, t)["token_accuracy"] > .95 > .5 > best_constant(t[:8].numpy(), t[8:].numpy())


def test_head_refuses():
    head, p = TokenHead(6, 9, 2, 5), torch.randn(2, 6, 2, 2)
    with pytest.raises(ValueError, match="another tokenizer"): token_loss(head, p, torch.full((2, 4, 4), 9))
    with pytest.raises(ValueError, match=r"\(B, H, W\)"): token_loss(head, p, torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="permute"): head(p.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match="at least 1"): TokenHead(6, 9, 0, 5)
    assert [TokenHead.ratio_for(*x) for x in ((2, 16), (7, 28), (16, 16), (32, 16))] == [8, 4, 1, 1]


def test_mixed_precision_is_finite():
    head, p, t = TokenHead(6, 9, 2, 5), torch.randn(2, 6, 2, 2) * 1e3, torch.randint(0, 9, (2, 4, 4))
    with torch.autocast("cpu", torch.bfloat16): out = token_loss(head, p, t)
    assert out["token"].dtype == torch.float32 and out["token"].isfinite()


def test_rarity():
    counts = torch.tensor([90., 9., 1., 0.])
    t = torch.tensor([[[0, 1], [2, 3]]])
    w = rarity(t, counts)[0].flatten()
    assert w[0] < w[1] < w[2] < w[3] and torch.isclose(w.mean(), torch.tensor(1.)) and w.isfinite().all()
    assert rarity(torch.full((1, 2, 2), 3), counts).allclose(torch.ones(1, 2, 2)) and rarity(t, counts, 0.).allclose(torch.ones(1, 2, 2))


def test_describe():
    v = unit(2, 8, 8, 5).float().permute(0, 3, 1, 2)
    d, w = describe(v, None, None)
    assert d.shape == (2, 64, 5) and d.allclose(v.flatten(2).transpose(1, 2), atol=1e-6) and w.allclose(torch.full((2, 64), 1 / 64))
    one = torch.zeros(2, 8, 8); one[:, 0, 0] = 1
    d, w = describe(v, one, 4)
    assert d[:, 0].allclose(v[:, :, 0, 0], atol=1e-6) and w[:, 0].allclose(torch.ones(2)) and d.isfinite().all()
    with pytest.raises(ValueError, match="grid"): describe(v, one[:, :4])


class Cache:
    def __init__(self, n=10): self.size, self.images = 32, torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    def batch(self, rows): return self.images[torch.as_tensor(np.asarray(rows))]
    def __len__(self): return len(self.images)


def test_tokens_of_a_cache(tmp_path):
    t, c = ImageTokenizer(32, 4, 4, 8).eval(), Cache()
    t.codebook.normal_()
    tokens = write_tokens(t, c, tmp_path, batch_size=3)
    assert tokens.dtype == np.uint16 and tokens.shape == (10, 8, 8) and isinstance(tokens, np.memmap)
    assert torch.from_numpy(tokens.astype(np.int64)).equal(t.encode(c.images)) and not (tmp_path / "tokens.part.npy").exists()
    counts = count_tokens(tokens, 32)
    assert counts.sum() == tokens.size
    v = code_vectors(t, t.encode(c.images), counts)
    assert v.shape == (10, 4, 8, 8) and v.norm(dim=1).allclose(torch.ones(10, 8, 8), atol=1e-5)
    with pytest.raises(FileNotFoundError, match="11_appearance"): cached_tokens(tmp_path / "no")
    with pytest.raises(FileNotFoundError, match="11_appearance"): load_counts(tmp_path / "no")


def test_stage_leaves_what_it_promises(tmp_path):
    import json
    from types import SimpleNamespace
    from PIL import Image
    from keepfit_nb.images import Settings as ImageSettings, make_cache
    g, folder = np.random.default_rng(0), tmp_path / "pictures"; folder.mkdir()
    records = []
    for i in range(12):
        Image.fromarray(g.integers(60, 200, (4, 4, 3), np.uint8)).resize((32, 32)).save(folder / f"{i}.png"); records.append(dict(image=str(folder / f"{i}.png")))
    (tmp_path / "cache").mkdir()
    make_cache(dict(elite=records[:3], public=records[3:8], evaluation=records[8:]), tmp_path / "cache", ImageSettings(size=32, crop=False))
    out = tmp_path / "out"; out.mkdir()
    run = SimpleNamespace(seed=0, device=torch.device("cpu"))
    metrics = build(run, out, Settings(codes=32, width=8, batch_size=4, steps=6, factor=4), {"06_images": tmp_path / "cache"})
    load_tokenizer(out); tokens = cached_tokens(out)
    assert tokens.shape == (12, 8, 8) and metrics["judged"] == 4 and metrics["tokens_a_picture"] == 64 and 0 < metrics["codes_used"] <= 1
    assert load_counts(out).sum() == 8 * 64                                     # of the pictures learned from, no others
    assert json.loads((out / "config.json").read_text())["codes"] == 32 and np.isfinite(metrics["psnr"])
