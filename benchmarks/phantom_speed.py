"""How many phantoms a second does one core draw? All three cameras, 128 and 512 px, mean over every disease each camera shows.

The time is process time of one thread and includes everything that a picture needs: the latents (`sample_eye`), the growth of the
vessels, the drawing. Run it alone (`python benchmarks/phantom_speed.py`) or through `make study`.
"""
import os, platform, time

import cv2

from keepfit_nb.angiography import render_angiogram
from keepfit_nb.eye import DISEASES, sample_eye, vessel_tree
from keepfit_nb.fundus import render_fundus
from keepfit_nb.oct import render_oct

CAMERAS = {"cfp": ("CFP", render_fundus), "ffa": ("FFA", render_angiogram), "oct": ("OCT", render_oct)}


def per_second(modality, render, size, rounds, first):
    "Pictures a second: `rounds` eyes of each disease, every eye another seed."
    names = [d.name for d in DISEASES.values() if modality in d.modalities] * rounds
    render(sample_eye(first - 1, names[0]), size)                                   # imports, tables, caches of the size
    start = time.process_time()
    for i, name in enumerate(names): render(sample_eye(first + i, name), size)
    return len(names) / (time.process_time() - start)


def latents_ms(n=120, first=700_000):
    "Milliseconds of `sample_eye` and of the vessels' growth."
    names, out = list(DISEASES), []
    for f in (lambda i: sample_eye(first + i, names[i % len(names)]), lambda i: vessel_tree(sample_eye(first + n + i, names[i % len(names)]))):
        start = time.process_time(); [f(i) for i in range(n)]
        out.append((time.process_time() - start) / n * 1e3)
    return dict(sample_ms=round(out[0], 2), vessels_ms=round(out[1] - out[0], 2))


def measure() -> dict:
    "`cfp128_per_second`, `cfp512_per_second`, … `oct512_per_second`, the cost of the latents, the machine."
    cv2.setNumThreads(1)
    values = {f"{camera}{size}_per_second": round(per_second(modality, render, size, rounds, 600_000 + 1000 * size), 1)
              for camera, (modality, render) in CAMERAS.items() for size, rounds in ((128, 8), (512, 2))}
    return values | latents_ms() | dict(machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")


if __name__ == "__main__":
    for name, value in measure().items(): print(f"{name:24s} {value}")
