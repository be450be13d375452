"""Choosing C for a linear probe: all folds and candidates side by side, against scikit-learn's lbfgs loop at the same optimum. One thread.

2,000 eyes × 2,048 features (simulated: 64 hidden causes, rectified, as the features of a convolutional encoder), five classes, 5 folds × 8
values of C, balanced classes. scikit-learn is run to a tolerance of 1e-8, as we are, one fit after another, on one of the five folds (the
eight values of C), and counted five times: the folds are of one size and one distribution, and all of them would take minutes. One fit
was quoted at 2.5 s on one 2-core machine; `fit_against_quoted` says how many times as fast the mean fit is here. `loose_seconds` is the
same loop at scikit-learn's default tolerance (1e-4), which stops short of the optimum by `loose_gap`. Times are process time.
"""
import os, platform, time, warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from keepfit_nb.linear_probe import fit_probes

QUOTED, N, DIM, CLASSES, FOLDS, GRID = 2.5, 2000, 2048, 5, 5, np.logspace(-4, 1, 8)


def eyes(seed=0):
    "(x, y), features before projection."
    rng = np.random.default_rng(seed); y = rng.integers(0, CLASSES, N)
    causes = rng.normal(size=(N, 64)) + .5 * rng.normal(size=(CLASSES, 64))[y]
    return np.maximum(causes @ rng.normal(size=(64, DIM)) / 8 + .3 * rng.normal(size=(N, DIM)), 0), y


def timed(f):
    start = time.process_time(); out = f()
    return out, time.process_time() - start


def lbfgs(x, y, tol):
    "Weights of the eight candidates on one fold."
    return [LogisticRegression(C=c, class_weight="balanced", tol=tol, max_iter=10_000).fit(x, y).coef_ for c in GRID]


def measure() -> dict:
    "`linear_probe_ratio`, seconds of both, the largest difference of a weight, the machine."
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    try:
        x, y = eyes(); fold = np.arange(N) % FOLDS; take = np.repeat([fold != f for f in range(FOLDS)], len(GRID), 0)
        ours, fast = timed(lambda: fit_probes(x, y, take, np.tile(GRID, FOLDS)))
        exact, one = timed(lambda: lbfgs(x[fold != 0], y[fold != 0], 1e-8))
        loose, short = timed(lambda: lbfgs(x[fold != 0], y[fold != 0], 1e-4))
    finally: torch.set_num_threads(threads)
    gap = lambda found: max(np.abs(a - b).max() for a, b in zip(found, ours.coef))
    values = dict(linear_probe_ratio=FOLDS * one / fast, seconds=fast, lbfgs_seconds=FOLDS * one, lbfgs_fit_seconds=one / len(GRID), fit_against_quoted=QUOTED * len(GRID) / one,
                  loose_seconds=FOLDS * short, loose_ratio=FOLDS * short / fast)
    return {k: round(float(v), 3) for k, v in values.items()} | dict(largest_gap=float(f"{gap(exact):.2g}"), loose_gap=float(f"{gap(loose):.2g}"), steepest_left=float(f"{ours.rest.max():.2g}"),
        device=f"CPU, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name, value in measure().items(): print(f"{name:24s} {value}")
