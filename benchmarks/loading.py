"""How fast is a picture ready for the training step? One thread, to 512 px, against loading as open fundus kits do it.

The baseline is written here from its description: Pillow, an array of 64-bit floats, torch's resize (with antialias), padding, and the
collation of such pictures into a batch; with crop, the largest connected region found by scikit-image. It was quoted at 84 pictures a second
without and 25 with crop (256 px JPEGs, one 2-core machine); `baseline_per_second` says what it reaches here. A baseline that is faster than
the quoted figure makes the ratios smaller, never larger. Times are process time of one thread, best of several rounds, so that other
programs disturb little. Run alone (`python benchmarks/loading.py`) or through `make study`.
"""
import os, platform, tempfile, time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Resize

from keepfit_nb.decoding import batch_of, preprocess
from keepfit_nb.eye import sample_eye
from keepfit_nb.fundus import render_fundus
from keepfit_nb.images import ImageCache, JpegStore, RawStore, Settings, prefetch
from keepfit_nb.profiles import write_json

QUOTED = dict(plain=84, crop=25)
BATCH = 8


def float_crop(a):
    "The largest connected region brighter than a threshold, as open kits cut it; a (3,H,W) in 0–1."
    from skimage import measure, morphology
    mask = morphology.closing(a.mean(0) > .05, morphology.disk(3))
    regions = measure.regionprops(measure.label(mask))
    if not regions: return a
    top, left, bottom, right = max(regions, key=lambda r: r.area).bbox
    return a[:, top:bottom, left:right]


def float_load(path, size=512, crop=False):
    "One picture as open kits load it: (3,size,size), 64-bit floats in 0–1."
    a = np.array(Image.open(path), dtype=float)
    if a.max() > 1: a /= 255
    a = np.transpose(a, (2, 0, 1))
    if crop: a = float_crop(a)
    x = torch.tensor(a)
    scale = max(x.shape[-2:]) / size
    x = Resize((int(x.shape[-2] / scale), int(x.shape[-1] / scale)), antialias=True)(x)
    return torch.nn.functional.pad(x, (0, size - x.shape[-1], 0, size - x.shape[-2]))


def per_second(load, paths, rounds=3, collate=torch.stack):
    "Pictures a second, collated in batches; process time, best round."
    load(paths[0]); best = 0.
    for _ in range(rounds):
        start = time.process_time(); collate([load(p) for p in paths])
        best = max(best, len(paths) / (time.process_time() - start))
    return best


def write_pictures(folder, side, n=BATCH):
    "n phantom photographs with a dark border, as JPEG files."
    paths = []
    for i in range(n):
        eye = Image.fromarray(render_fundus(sample_eye(500_000 + i), 512)).resize((side * 7 // 8, side * 7 // 8), Image.Resampling.BICUBIC)
        page = Image.new("RGB", (side, side)); page.paste(eye, (side // 16, side // 16))
        paths.append(folder / f"{side}_{i}.jpg"); page.save(paths[-1], quality=92)
    return paths


def cache_of(folder, store, paths, size=512, copies=3):
    "A finished cache of these pictures, each several times."
    folder.mkdir()
    settings = Settings(size=size, store=store); n = len(paths) * copies
    unfinished = (JpegStore if store == "jpeg" else RawStore)(folder, n, settings)
    for row in range(n): unfinished.put(row, preprocess(paths[row % len(paths)], size).numpy())
    unfinished.mark(); unfinished.finish(); write_json(folder / "cache.json", dict(size=size, crop=True, store=store, images=n))
    return ImageCache(folder)


def reading(cache, rounds=5):
    "Cached pictures a second in one thread, in batches of random rows."
    rng, best = np.random.default_rng(0), 0.
    for _ in range(rounds):
        rows = rng.integers(0, len(cache), 24)
        start = time.process_time()
        if cache.about["store"] == "raw": cache.batch(rows)
        else: torch.stack([cache.images.picture(int(r)) for r in rows])
        best = max(best, 24 / (time.process_time() - start))
    return best


def data_wait(cache, steps=6):
    "Part of the time a ResNet-10 on this CPU stands still for its batches, with prefetching; 24 pictures of the cache's size a step."
    import timm
    model, rng = timm.create_model("resnet10t", num_classes=2), np.random.default_rng(0)
    opt = torch.optim.SGD(model.parameters(), 1e-3)
    rows = [rng.integers(0, len(cache), 24) for _ in range(steps + 1)]
    with prefetch(lambda step: cache.batch(rows[step])) as feed:
        feed(0); feed.waited, feed.begun = 0., time.perf_counter()
        for step in range(1, steps + 1):
            model(torch.nn.functional.avg_pool2d(feed(step).float() / 255, 2)).square().mean().backward(); opt.step(); opt.zero_grad()
        return feed.wait_share


def measure() -> dict:
    "`load_ratio`, `load_crop_ratio`, `load_2000_ratio`, `raw_cache_ratio`, `jpeg_cache_ratio`, `data_wait_share`, the rates behind them, the machine."
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as tmp:
            tmp = Path(tmp); small, large = write_pictures(tmp, 256), write_pictures(tmp, 2000, 2)
            rate = {"baseline": per_second(float_load, small), "baseline_crop": per_second(lambda p: float_load(p, crop=True), small),
                    "baseline_2000": per_second(float_load, large), "load": per_second(lambda p: preprocess(p, 512, crop=False), small, collate=batch_of),
                    "load_crop": per_second(lambda p: preprocess(p, 512), small, collate=batch_of), "load_2000": per_second(lambda p: preprocess(p, 512, crop=False), large, collate=batch_of)}
            caches = {store: cache_of(tmp / store, store, small) for store in ("raw", "jpeg")}
            rate |= {f"{store}_cache": reading(c) for store, c in caches.items()}
            wait = data_wait(caches["jpeg"])
    finally: torch.set_num_threads(threads)
    values = dict(load_ratio=rate["load"] / rate["baseline"], load_crop_ratio=rate["load_crop"] / rate["baseline_crop"],
                  load_2000_ratio=rate["load_2000"] / rate["baseline_2000"], raw_cache_ratio=rate["raw_cache"] / rate["baseline"],
                  jpeg_cache_ratio=rate["jpeg_cache"] / rate["baseline"], data_wait_share=wait,
                  baseline_against_quoted=rate["baseline"] / QUOTED["plain"], baseline_crop_against_quoted=rate["baseline_crop"] / QUOTED["crop"])
    values |= {f"{k}_per_second": v for k, v in rate.items()}
    return {k: round(float(v), 3) for k, v in values.items()} | dict(device=f"CPU, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}")


if __name__ == "__main__":
    for name, value in measure().items(): print(f"{name:28s} {value}")
