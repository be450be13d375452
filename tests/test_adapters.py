"Chapter 16.2: trained together is trained apart; each method agrees with its formula."
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from keepfit_nb import adapters as ad
from keepfit_nb.zero_shot import softmax, unit


@pytest.fixture(scope="module")
def eyes():
    rng = np.random.default_rng(0); y = np.repeat([0, 1, 2], 20); centres = unit(np.eye(3, 16) + .2)
    train, images = (unit(centres[y] + .2 * rng.normal(size=(60, 16))) for _ in range(2))
    supports = [np.concatenate([rng.choice(np.flatnonzero(y == c), k, replace=False) for c in range(3)]) for k in (1, 2, 5, 1, 8)] + [np.array([0, 20, 21, 40])]
    return images, unit(centres + .2 * rng.normal(size=centres.shape)), train, y, supports


def test_stacks_hold_every_row_once(eyes):
    *_, train, y, supports = eyes; found = {}
    for s in ad.stacks(train, y, supports):
        sizes = s.mask.sum(1); assert sizes.max() == s.x.shape[1] and sizes.max() < 2 * sizes.min() and (s.x[s.mask == 0] == 0).all()
        found |= {int(g): (s.x[i][s.mask[i] > 0].numpy(), s.y[i][s.mask[i] > 0].numpy()) for i, g in enumerate(s.which)}
    for g, rows in enumerate(supports): assert np.allclose(found[g][0], train[rows], atol=1e-6) and (found[g][1] == y[rows]).all()


METHODS = {"clip": lambda v, p, t, y, s: ad.clip_adapter(v, p, t, y, s, 20., steps=15), "tip": lambda v, p, t, y, s: ad.tip_adapter_f(v, p, t, y, s, 20., steps=15),
           "probe": lambda v, p, t, y, s: ad.text_probe(v, p, t, y, s, 20.), "ridge": lambda v, p, t, y, s: ad.ridge(v, t, y, s, 3)}


@pytest.mark.parametrize("name", METHODS)
def test_together_is_apart(eyes, name):
    v, p, t, y, supports = eyes; f = METHODS[name]; many = f(v, p, t, y, supports)
    assert many.shape == (6, 60, 3) and np.allclose(many.sum(2), 1) and (many[2].argmax(1) == y).mean() > .7
    if name == "clip":                                                       # its first weights depend on the number of the support
        for g in (1, 2, 5): assert np.allclose(f(v, p, t, y, supports[:g + 1])[g], many[g], atol=1e-4)
    else:
        for g in range(6): assert np.allclose(f(v, p, t, y, [supports[g]])[0], many[g], atol=1e-4)


@pytest.mark.parametrize("g", [0, 2, 5])
def test_clip_adapter_is_torchs(eyes, g):
    v, p, t, y, supports = eyes; put = lambda a: torch.as_tensor(a, dtype=torch.float32)
    layers = [torch.nn.Linear(16, 4, bias=False), torch.nn.Linear(4, 16, bias=False)]
    for layer, w in zip(layers, ad._first([g], 16, 3, "cpu")): layer.weight.data = w[0].T.clone()
    net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU()); mixed = lambda x: F.normalize(.3 * net(x) + .7 * x, dim=-1)
    opt = torch.optim.AdamW(net.parameters(), 5e-3, eps=1e-4); decay = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 12)
    for _ in range(12):
        loss = F.cross_entropy(20 * mixed(put(t[supports[g]])) @ put(p).T, torch.tensor(y[supports[g]])); opt.zero_grad(); loss.backward(); opt.step(); decay.step()
    got = ad.clip_adapter(v, p, t, y, supports, 20., ratio=.3, lr=5e-3, steps=12, seed=3)[g]
    assert np.allclose(got, (20 * mixed(put(v)) @ put(p).T).softmax(1).detach(), atol=1e-4)


def test_tip_adapter_without_training_is_the_formula(eyes):
    v, p, t, y, supports = eyes; got = ad.tip_adapter_f(v, p, t, y, supports, 20., alpha=2., beta=3., steps=0)
    for g, rows in enumerate(supports):
        votes = np.stack([sum(np.exp(-3 * (1 - v @ t[r])) for r in rows if y[r] == c) for c in range(3)], 1)
        assert np.allclose(got[g], softmax(20 * v @ p.T + 2 * votes), atol=1e-4)


def test_text_probe_is_an_optimum_and_stays_at_good_words(eyes):
    v, p, t, y, supports = eyes; g = 2; x, label = np.float32(t[supports[g]]).astype(float), y[supports[g]]
    known = np.array([softmax(9 * x @ p.T)[label == c, c].mean() for c in range(3)])
    w = torch.tensor(p, requires_grad=True); opt = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe")
    def loss():
        opt.zero_grad(); out = F.cross_entropy(9 * torch.tensor(x) @ w.T, torch.tensor(label)) + (torch.tensor(known) * (w - torch.tensor(p)).square().sum(1)).sum(); out.backward(); return out
    opt.step(loss)
    assert np.allclose(ad.text_probe(v, p, t, y, supports, 9.)[g], softmax(9 * v @ w.detach().numpy().T), atol=1e-5)
    assert np.allclose(ad.text_probe(v, p, t, y, supports, 9., hold=1e9), softmax(9 * v @ p.T)[None], atol=1e-5)


def test_bad_input(eyes):
    v, p, t, y, supports = eyes
    for f in METHODS.values():
        with pytest.raises(ValueError, match="differ in length"): f(v[:, :9], p, t, y, supports)
        with pytest.raises(ValueError, match="diverge"): f(v, p, t * np.nan, y, supports)
        with pytest.raises(ValueError, match="support 1 holds no row"): f(v, p, t, y, [supports[0], np.array([], int)])
        assert np.isfinite(f(v, p, t, y, [np.array([0, 1])])).all()             # all labels equal, two classes absent: a defined answer
        assert np.isfinite(f(v, p, t, y, [np.array([25])])).all()               # one row
