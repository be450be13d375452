"""Learning from a support: all shots and draws side by side, against the per-sample loops of published code. One thread.

The baseline is written here from its description: CLIP-Adapter and Tip-Adapter-F take one support image a step, 40 epochs, AdamW (1e-3,
eps 1e-4), half a cosine, as modules and optimisers of torch; Tip-Adapter (nothing is trained) and all predictions take one test image at a
time. It was quoted at 12.3 s (CLIP-Adapter) and 4.8 s (Tip-Adapter-F) for 50 embeddings and 40 epochs on one 2-core machine;
`*_against_quoted` says how many times as fast it is here. A baseline that is faster than the quoted one makes the ratio smaller, never larger.
The embeddings are simulated: 5 classes around close directions in 512 dimensions, and words that point roughly there, so that there is much to learn. Both sides see the same
supports, 7 sizes × 5 draws, all of them. `*_inside`: is our mean ACA inside the 95 % interval of the loop's, over draws? Times are process
time. A run takes some minutes, nearly all of them in the loops.
"""
import os, platform, time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from keepfit_nb.adapters import clip_adapter, tip_adapter_f
from keepfit_nb.zero_shot import softmax, unit

QUOTED = dict(clip=12.3, tip=4.8)      # seconds for 2,000 steps
SHOTS, DRAWS, CLASSES, DIM, SCALE = (1, 2, 4, 5, 8, 10, 16), 5, 5, 512, 50.


def eyes(seed=0, n_train=40, n_test=40):
    "(train, y, test, y_test, words), embeddings of length 1."
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(1, DIM)) + .25 * rng.normal(size=(CLASSES, DIM)))
    draw = lambda n: (y := np.repeat(np.arange(CLASSES), n), unit(centres[y] + 1.2 * rng.normal(size=(len(y), DIM)) / DIM**.5))
    (y, x), (y_test, test) = draw(n_train), draw(n_test)
    return x, y, test, y_test, unit(centres + 1.2 * rng.normal(size=centres.shape) / DIM**.5)


def supports_of(y, seed=1):
    "Positions, by size then draw."
    rng = np.random.default_rng(seed)
    return [np.concatenate([rng.choice(np.flatnonzero(y == c), k, replace=False) for c in range(CLASSES)]) for k in SHOTS for _ in range(DRAWS)]


def loop(params, logits, x, y, epochs=40):
    "One support image a step."
    opt = torch.optim.AdamW(params, lr=1e-3, eps=1e-4)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs * len(x))
    for _ in range(epochs):
        total = 0.
        for i in np.random.permutation(len(x)):
            loss = F.cross_entropy(logits(x[i:i + 1]), y[i:i + 1])
            opt.zero_grad(); loss.backward(); opt.step(); decay.step(); total += loss.item() / len(x)
    return total


def clip_loop(test, words, x, y, seed):
    torch.manual_seed(seed); np.random.seed(seed)
    net = nn.Sequential(nn.Linear(DIM, DIM // 4, bias=False), nn.ReLU(inplace=True), nn.Linear(DIM // 4, DIM, bias=False), nn.ReLU(inplace=True))
    def logits(v):
        mixed = .2 * net(v) + .8 * v
        return SCALE * (mixed / mixed.norm(dim=-1, keepdim=True)) @ words.T
    loop(net.parameters(), logits, x, y)
    with torch.no_grad(): return np.concatenate([logits(v[None]).softmax(1).numpy() for v in test])


def tip_loop(test, words, x, y, seed, train=True):
    torch.manual_seed(seed); np.random.seed(seed)
    keys = nn.Linear(DIM, len(x), bias=False); keys.weight.data = x.clone(); values = F.one_hot(y, CLASSES).float()
    logits = lambda v: SCALE * v @ words.T + torch.exp(-5 * (1 - keys(v))) @ values
    if train: loop(keys.parameters(), logits, x, y)
    with torch.no_grad(): return np.concatenate([logits(v[None]).softmax(1).numpy() for v in test])


def timed(f):
    start = time.process_time(); out = f()
    return out, time.process_time() - start


def quoted_case(f, data):
    "Seconds of 40 epochs on 50 embeddings."
    x, y, test, _, words = data; s = np.concatenate([np.flatnonzero(y == c)[:10] for c in range(CLASSES)])
    return timed(lambda: f(test[:1], words, x[s], y[s], 0))[1]


def compare(slow, fast, supports, y_test) -> dict:
    "Seconds of both for all supports, mean ACA of both, and the interval of the slow one over draws."
    aca = lambda p: np.mean([(p.argmax(1) == y_test)[y_test == c].mean() for c in range(CLASSES)])
    answers, seconds = zip(*(timed(lambda: slow(g, s)) for g, s in enumerate(supports)))
    both, quick = timed(fast)
    by_draw = lambda all_: np.array([aca(p) for p in all_]).reshape(len(SHOTS), -1).mean(0)
    a, b = by_draw(answers), by_draw(both)
    half = 2.776 * a.std(ddof=1) / len(a)**.5 if len(a) > 1 else float("nan")               # Student's t, four degrees of freedom
    return dict(slow=sum(seconds), fast=quick, slow_aca=a.mean(), low=a.mean() - half, high=a.mean() + half, fast_aca=b.mean())


def measure() -> dict:
    "`few_shot_ratio` (all three methods together), the ratio, seconds and mean ACA of each, the machine."
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    try:
        plain = eyes(); x, y, test, y_test, words = plain
        data = tuple(torch.as_tensor(a, dtype=torch.long if a.dtype.kind == "i" else torch.float32) for a in plain)
        tx, ty, ttest, _, twords = data; supports = supports_of(y)
        clip_adapter(test[:2], words, x, y, supports[:1], SCALE, steps=2)                   # torch wakes up
        out = dict(clip=compare(lambda g, s: clip_loop(ttest, twords, tx[s], ty[s], g), lambda: clip_adapter(test, words, x, y, supports, SCALE), supports, y_test),
                   tip_f=compare(lambda g, s: tip_loop(ttest, twords, tx[s], ty[s], g), lambda: tip_adapter_f(test, words, x, y, supports, SCALE), supports, y_test),
                   tip=compare(lambda g, s: tip_loop(ttest, twords, tx[s], ty[s], g, False), lambda: tip_adapter_f(test, words, x, y, supports, SCALE, steps=0), supports, y_test))
        quoted = dict(clip=quoted_case(clip_loop, data), tip=quoted_case(tip_loop, data))
    finally: torch.set_num_threads(threads)
    values = dict(few_shot_ratio=sum(o["slow"] for o in out.values()) / sum(o["fast"] for o in out.values()), zero_shot_aca=float((softmax(SCALE * test @ words.T).argmax(1) == y_test).mean()))
    for name, o in out.items():
        values |= {f"{name}_ratio": o["slow"] / o["fast"], f"{name}_inside": float(o["low"] <= o["fast_aca"] <= o["high"])} | {f"{name}_{k}": v for k, v in o.items()}
    values |= {f"{k}_quoted_case": v for k, v in quoted.items()} | {f"{k}_against_quoted": QUOTED[k] / v for k, v in quoted.items()}
    return {k: round(float(v), 4) for k, v in values.items()} | dict(device=f"CPU, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")


if __name__ == "__main__":
    for name, value in measure().items(): print(f"{name:24s} {value}")
