"""One million records: build, check, filter, split and leak-check by hash, in a process of its own.

    python benchmarks/records_million.py [rows]      prints seconds per step and the peak memory as JSON

`measure()` starts such a process and returns its answer; the study calls it.
"""
import json, os, re, resource, subprocess, sys, tempfile, time
from pathlib import Path

MODALITIES, LABELS = ("CFP", "CFP", "CFP", "FFA", "OCT"), 60


def rows(n: int, seed: int = 0):
    "Rows of an invented set: two images a patient, one to three labels, twelve sources, a few bad rows."
    import numpy as np
    rng, names = np.random.default_rng(seed), [f"finding {i}" for i in range(LABELS)]
    weight = 1 / np.arange(1, LABELS + 1); weight /= weight.sum()
    many = rng.integers(1, 4, n); drawn = rng.choice(LABELS, (n, 3), p=weight)
    for i in range(n):
        bad = i % 1000 == 999
        yield dict(image=f"set{i % 12}/images/{i:07}.jpg", modality=MODALITIES[i % 5], patient=f"{i // 2}", source=f"set{i % 12}", eye=("OD", "OS")[i % 2],
                   categories=[names[j] for j in drawn[i, :many[i]]], caption="dru\ufffden" if bad else f"Finding number {i % 5000} of the atlas.",
                   licence="CC-BY-4.0")


def peak_mb() -> int:
    "Largest resident memory so far. `ru_maxrss` would count what the starting process held before this program replaced it."
    try: return round(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
    except OSError: return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)       # no /proc


def run(n: int) -> dict:
    "The five steps, timed."
    import numpy as np, pyarrow.compute as pc
    from keepfit_nb.leaks import near_pairs
    from keepfit_nb.records import as_dataset, leak_report, read_records, split_by_patient, validate, write_records
    seconds, peaks, folder = {}, {}, Path(tempfile.mkdtemp())
    def timed(name, f):
        start = time.perf_counter(); out = f(); seconds[name] = round(time.perf_counter() - start, 2)
        peaks[name] = peak_mb()
        return out
    ds, refused, counts = timed("build", lambda: validate(rows(n), check_images=False))
    assert counts["kept"] == n - n // 1000 and len(refused) == n // 1000
    path = timed("write", lambda: write_records(ds, folder / "records.parquet")); del ds
    ds = timed("open", lambda: read_records(path))
    table = ds.data.table
    kept = timed("filter", lambda: as_dataset(table.filter(pc.and_(pc.equal(table["modality"], "CFP"), pc.greater(pc.list_value_length(table["categories"]), 1)))))
    n_selected = len(kept); del kept, table
    ds = timed("split", lambda: split_by_patient(ds, {"train": .7, "val": .1, "test": .2}))
    table = ds.data.table; del ds
    side = {s: timed(f"select {s}", lambda: as_dataset(table.filter(pc.equal(table["split"], s)))) for s in ("train", "test")}
    del table
    assert not len(timed("leaks: patient, file, bytes, name", lambda: leak_report(side["train"], side["test"], names=True)))
    rng = np.random.default_rng(0); hashes = rng.integers(0, 2**63, (len(side["train"]), 4), dtype=np.uint64)
    copies = rng.choice(len(hashes), 1000, replace=False)
    tested = rng.integers(0, 2**63, (len(side["test"]), 4), dtype=np.uint64)
    tested[:1000] = hashes[copies]
    for h in tested[:1000]:
        for bit in rng.choice(256, 12, replace=False): h[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)      # twelve bits differ
    pairs = timed("leaks: perceptual hash", lambda: near_pairs(hashes, tested, 12))
    assert len(pairs) == 1000 and (pairs[np.argsort(pairs[:, 0]), 1] == copies).all()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return dict(rows=n, kept=counts["kept"], selected=n_selected, seconds=seconds, peak_mb_after=peaks, total_seconds=round(sum(seconds.values()), 1), cpu_seconds=round(used.ru_utime + used.ru_stime, 1),
                open_seconds=seconds["open"], peak_mb=peak_mb())


def measure(n: int = 1_000_000) -> dict:
    "Run the benchmark in a fresh process, so that its peak memory is its own. Flat names: million_seconds, million_peak_mb …"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))))}
    done = subprocess.run([sys.executable, __file__, str(n)], capture_output=True, text=True, env=env)
    if done.returncode: raise RuntimeError(done.stderr[-2000:])
    told = json.loads(done.stdout.strip().splitlines()[-1]); step = told["seconds"]
    leaks = sum(v for k, v in step.items() if k.startswith("leaks"))
    return dict(million_rows=told["rows"], million_seconds=told["total_seconds"], million_cpu_seconds=told["cpu_seconds"], million_open_seconds=told["open_seconds"],
                million_peak_mb=told["peak_mb"], million_build_seconds=step["build"], million_split_seconds=step["split"], million_leak_seconds=round(leaks, 1))


if __name__ == "__main__": print(json.dumps(run(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)))
