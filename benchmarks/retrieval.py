"""How much memory and time does an exact search among a million vectors take? And what does the study's run say of retrieval across cameras?

A gallery of 1,000,000 × 128 numbers in half precision lies on disk, memory-mapped; the baseline, written here, holds all scores and sorts them,
on a part of the gallery that it can hold. Memory is the growth of the process's own peak, without the file's pages. The figures across cameras
come from the results of a finished run: that of the study's part `spark`, or the folder given. Run alone (`python benchmarks/retrieval.py`)
or through `make study`.
"""
import os, sys, tempfile, time, tracemalloc
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from keepfit_nb.ranking import search
from keepfit_nb.profiles import project_root

ROWS, DIM, QUERIES, K, PART = 1_000_000, 128, 100, 10, 50_000


def full_sort(queries, gallery, k):
    "All scores at once, all sorted."
    scores = queries @ np.asarray(gallery, np.float32).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


def cost(find):
    "Seconds of the process, and MB that NumPy asked for at most."
    tracemalloc.start(); start = time.process_time(); found = find()
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return found, seconds, peak


def write_gallery(path, rows=ROWS, dim=DIM, step=100_000):
    "Unit vectors in half precision, written a part at a time."
    rng, file = np.random.default_rng(0), np.lib.format.open_memmap(path, "w+", np.float16, (rows, dim))
    for i in range(0, rows, step):
        x = rng.standard_normal((min(step, rows - i), dim), np.float32)
        file[i:i + step] = x / np.linalg.norm(x, axis=1, keepdims=True)
    file.flush()


def across_cameras(run_dir=None):
    "R@10 of the default variant and of chance, mean over seeds, CFP → OCT of the same eye; {} without such a run."
    import pandas as pd
    from keepfit_nb.profiles import read_json
    folder = Path(run_dir or project_root() / "runs" / "study_spark"); path = folder / "18_retrieval" / "results.parquet"
    if not path.exists(): return {}
    t = pd.read_parquet(path); t = t[(t.task == "phantoms CFP to OCT, same eye") & (t.metric == "R@10")]
    mean, variant = t.groupby("model").value.mean().round(4), read_json(folder / "13_pretraining" / "default.json", {}).get("variant", "keepfit")
    if variant not in mean: return {}
    return dict(cfp_to_oct_r10=float(mean[variant]), **{f"cfp_to_oct_r10_{m}": float(v) for m, v in mean.items()}, eyes=int(t.n.iloc[0]))


def measure(run_dir=None, rows=ROWS) -> dict:
    queries = np.random.default_rng(1).standard_normal((QUERIES, DIM), np.float32)
    with tempfile.TemporaryDirectory() as d:
        write_gallery(Path(d) / "gallery.npy", rows); gallery = np.load(Path(d) / "gallery.npy", mmap_mode="r")
        _, seconds, peak = cost(lambda: search(queries, gallery, K))
        part = gallery[:min(PART, rows)]
        (mine, _), own, _ = cost(lambda: search(queries, part, K))
        (theirs, _), base, base_peak = cost(lambda: full_sort(queries, part, K))
    assert (mine == theirs).mean() > .999, "the two searches disagree"
    return dict(million_search_seconds=round(seconds, 2), million_search_peak_mb=round(peak, 1), million_search_rows=rows, million_search_queries=QUERIES,
                search_ratio=round(base / own, 2), full_sort_peak_mb=round(base_peak, 1), full_sort_rows=len(part)) | across_cameras(run_dir)


if __name__ == "__main__":
    for k, v in measure(*sys.argv[1:2]).items(): print(f"retrieval.{k} = {v}")
