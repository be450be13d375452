"""Evaluation: a folder of photographs classified by words, the bootstrap, and a million embeddings.

`zero_shot_ratio`: a folder of JPEG files through `keepfit_nb.zero_shot.classify` against a loop as open kits run it, with the same encoder:
each picture decoded with Pillow into 64-bit floats, resized by torch and padded, four pictures a batch, the words embedded anew with every
batch. Wall time, all cores that the process may use; both sides alternate and the best round of each counts. The files are photographs of
`$KEEPFIT_REAL/images` where that is, else phantoms; the encoder is the demo's, at its 64 px, so that reading is most of the work, as it is
with a large encoder on a GPU. `zero_shot_camera_ratio`: the same pictures at 2,000 px, as a camera leaves them. `zero_shot_224_ratio`: the
small files with 224 px, where a CPU spends its time in the encoder, which is the same on both sides.
`bootstrap_seconds`: 2,000 resamples of 10,000 predictions, 5 classes, 5 metrics (`bootstrap_all_seconds`: all seven), process time.
`million_embeddings_*`: 1,000,000 simulated embeddings of 128 dimensions written, searched (16 questions, 10 nearest) and fetched (1,000 rows)
in a process of its own; `million_embeddings_mb` is what that process held beyond an identical one with 100,000 rows.
Run alone (`python benchmarks/evaluation.py`) or through `make study`.
"""
import json, os, platform, subprocess, sys, tempfile, time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Resize

from keepfit_nb.encoders import Settings as EncoderSettings, build_image_encoder
from keepfit_nb.images import preprocess
from keepfit_nb.measures import METRICS, replicates, resample
from keepfit_nb.profiles import real_folder
from keepfit_nb.zero_shot import classify, image_files, prototypes, sentence_vectors, zero_shot

LABELS = ("normal", "glaucoma", "diabetic retinopathy", "macular hole")
DIM, CAMERA = 128, 2000      # length of a vector; pixels of a camera's photograph


class Encoder:
    "An image encoder from scratch with a random projection, and words hashed to vectors: the cost of a model, without its knowledge."
    scale = 20.
    def __init__(self, size: int, name="resnet10t"):
        torch.manual_seed(0); self.size, self.out = size, None
        self.net = build_image_encoder(EncoderSettings(image_model=name), size).eval().to(memory_format=torch.channels_last)      # as KeepFIT
    def preprocess(self, file): return preprocess(file, self.size)
    def embed_images(self, pixels):
        with torch.inference_mode():
            x = self.net(self.net.normalise(pixels).contiguous(memory_format=torch.channels_last))[0]
            if self.out is None: self.out = torch.randn(x.shape[1], DIM, generator=torch.Generator().manual_seed(0))
            return torch.nn.functional.normalize(x @ self.out, dim=1).numpy()
    def embed_text(self, texts): return np.stack([np.random.default_rng(abs(hash(t)) % 2**32).normal(size=DIM) for t in texts]).astype(np.float32)


def float_batch(path, size):
    "One picture as open kits load it: (3, size, size), 64-bit floats in 0–1; dark border kept."
    a = np.array(Image.open(path).convert("RGB"), dtype=float)
    if a.max() > 1: a /= 255
    x = torch.tensor(np.transpose(a, (2, 0, 1))); scale = max(x.shape[-2:]) / size
    x = Resize((int(x.shape[-2] / scale), int(x.shape[-1] / scale)), antialias=True)(x)
    return torch.nn.functional.pad(x, (0, size - x.shape[-1], 0, size - x.shape[-2]))


def loop(model, folder):
    "The baseline: four pictures a batch, words embedded with every batch."
    from keepfit_nb.knowledge import prompts
    files, said = image_files(folder), [prompts(x, "CFP", "ensemble") for x in LABELS]
    out = []
    for i in range(0, len(files), 4):
        pixels = torch.stack([(float_batch(f, model.size) * 255).round().to(torch.uint8) for f in files[i:i + 4]])
        place = prototypes(sentence_vectors(model, [s for x in said for s in x]), said)
        out += list(zero_shot(model.embed_images(pixels), place, model.scale))
    return np.array(out)


def pictures(n=48):
    "(n pictures, where they came from): real photographs where they are, else phantoms."
    folder = real_folder() / "images"; files = image_files(folder)[:n] if folder.is_dir() else []
    if len(files) == n: return [Image.open(f).convert("RGB") for f in files], "real photographs"
    from keepfit_nb.eye import sample_eye
    from keepfit_nb.fundus import render_fundus
    eyes = [Image.fromarray(render_fundus(sample_eye(600_000 + i), 256)) for i in range(6)]
    return [eyes[i % 6] for i in range(n)], "phantoms"


def zero_shot_speed(size, side=0, rounds=3):
    "(fast, slow) pictures a second and where they came from; side: enlarged to so many pixels."
    shown, source = pictures(); model = Encoder(size); model.embed_images(torch.zeros(4, 3, size, size, dtype=torch.uint8))
    with tempfile.TemporaryDirectory() as folder:
        for i, p in enumerate(shown): (p.resize((side, side), Image.Resampling.BICUBIC) if side else p).save(Path(folder) / f"{i:03d}.jpg", quality=92)
        best = {"fast": 0., "slow": 0.}
        for _ in range(rounds):
            for name, work in (("slow", lambda: loop(model, folder)), ("fast", lambda: classify(model, folder, LABELS))):
                start = time.perf_counter(); work(); best[name] = max(best[name], len(shown) / (time.perf_counter() - start))
    return best["fast"], best["slow"], source


def bootstrap_speed(n=10_000, classes=5, draws=2000, rounds=2):
    "Process seconds of 2,000 resamples of 10,000 predictions: the five metrics that every table has, and all of them."
    rng = np.random.default_rng(0); y = rng.integers(0, classes, n)
    p = rng.random((n, classes)) + .5 * np.eye(classes)[y]; p /= p.sum(1, keepdims=True)
    out = {}
    for name, only in (("bootstrap_seconds", ("ACA", "AUC", "kappa", "macro F1", "accuracy")), ("bootstrap_all_seconds", METRICS)):
        out[name] = np.inf
        for _ in range(rounds):
            start = time.process_time(); replicates(y, p, resample(y, draws, 0), only=only); out[name] = min(out[name], time.process_time() - start)
    return out


WORK = """
import json, resource, sys, tempfile, time
from pathlib import Path
import numpy as np
from keepfit_nb.embeddings import EmbeddingWriter, Embeddings
n, d, block = int(sys.argv[1]), 128, 8192
rng = np.random.default_rng(0)
with tempfile.TemporaryDirectory() as tmp:
    path, start = Path(tmp) / "0.parquet", time.perf_counter()
    with EmbeddingWriter(path, "benchmark") as f:
        for i in range(0, n, block):
            x = rng.standard_normal((min(block, n - i), d), dtype=np.float32); x /= np.linalg.norm(x, axis=1, keepdims=True)
            f.add({"rows": np.arange(i, i + len(x)), "projected": x})
    write = time.perf_counter() - start
    start = time.perf_counter(); e = Embeddings(path, keep=0); rows, near = e.search(x[:16], 10); search = time.perf_counter() - start
    assert (rows[:, 0] == np.arange(i, i + 16)).all() and np.allclose(near[:, 0], 1, atol=1e-5)
    start = time.perf_counter(); e.of(rng.integers(0, n, 1000)); fetch = time.perf_counter() - start
    anon = int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) / 1024 if sys.platform == "linux" else float("nan")
    print(json.dumps(dict(write=write, search=search, fetch=fetch, file=path.stat().st_size / 2**20, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, anon=anon)))
"""


def million(n=1_000_000):
    "Seconds and megabytes of writing, searching and fetching, each size in a process of its own."
    told = {k: json.loads(subprocess.run([sys.executable, "-c", WORK, str(k)], capture_output=True, text=True, check=True).stdout) for k in (n // 10, n)}
    big, small = told[n], told[n // 10]
    return {"million_embeddings_write_seconds": big["write"], "million_embeddings_search_seconds": big["search"], "million_embeddings_fetch_seconds": big["fetch"],
            "million_embeddings_file_mb": big["file"], "million_embeddings_peak_mb": big["peak"], "million_embeddings_own_mb": big["anon"],
            "million_embeddings_mb": big["anon"] - small["anon"]}


def measure() -> dict:
    "`zero_shot_ratio`, `bootstrap_seconds`, `million_embeddings_*`, the rates behind them, the machine."
    threads, values = torch.get_num_threads(), {}; torch.set_num_threads(1)
    try:
        for name, how in dict(zero_shot=dict(size=64), zero_shot_camera=dict(size=64, side=CAMERA, rounds=2), zero_shot_224=dict(size=224)).items():
            fast, slow, source = zero_shot_speed(**how)
            values |= {f"{name}_ratio": fast / slow, f"{name}_per_second": fast, f"{name}_baseline_per_second": slow}
    finally: torch.set_num_threads(threads)
    values |= bootstrap_speed() | million()
    return {k: round(float(v), 3) for k, v in values.items()} | dict(zero_shot_pictures=source,
           device=f"CPU, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}")


if __name__ == "__main__":
    for name, value in measure().items(): print(f"{name:36s} {value}")
