"""Visual tokens at full size, for the study: does the alphabet serve, are pictures and lesions still there, do descriptions tell diseases apart?

Learns from phantoms of all three modalities drawn here, and is judged on others, with their lesion masks. About 20 minutes on one core,
a minute or two on a GPU. `python benchmarks/tokenizer.py FOLDER` goes on in FOLDER where it was stopped.
"""
import sys, tempfile, time
from pathlib import Path

import numpy as np, pandas as pd, torch

from keepfit_nb.captions import LABELS, Settings as Sets, jobs_of, phase_of, render
from keepfit_nb.eye import sample_eye
from keepfit_nb.profiles import pick_device
from keepfit_nb.tokenizer import Settings, judged_phantoms, lesion_recall, load_tokenizer, psnr, save_tokenizer, share_used, teach


class Phantoms:
    "An image cache in memory: `n` eyes a modality, drawn now."
    def __init__(self, n, size, seed=0):
        self.size, pictures = size, []
        for job in jobs_of(Sets(size=size, n_public=n, n_elite=0, n_eval_train=0, n_eval_test=0), seed):
            eye, m = sample_eye(job["seed"], tuple(job["diseases"])), job["modality"]
            pictures.append(render(eye, m, size, phase=phase_of(eye, True) if m == "FFA" else "").transpose(2, 0, 1))
        self.images = torch.from_numpy(np.stack(pictures))
    def records(self, role): return [dict(row=i) for i in range(len(self.images))] if role == "public" else []
    def batch(self, rows): return self.images[torch.from_numpy(np.asarray(rows))]
    def __len__(self): return len(self.images)


def blurred(x, width):
    from scipy.ndimage import gaussian_filter
    return torch.from_numpy(gaussian_filter(x.float().numpy() / 255, (0, 0, width, width)))


def judge(tokenizer, n=100, seed=0):
    "psnr, codebook_use, lesion_recall (and by modality and size of lesion), on n phantoms a modality; a blurred picture beside."
    held, labels, modalities = judged_phantoms(n, 64, seed)
    tokens = torch.cat([tokenizer.encode(part) for part in held.split(50)])
    painted = torch.cat([tokenizer.decode(part) for part in tokens.split(50)])
    decibels, rows = psnr(painted, held), pd.DataFrame(lesion_recall(painted, held, labels))
    rows["modality"] = [modalities[i] for i in rows.picture]
    rows["kind"] = [LABELS[i - 1] for i in rows.label]
    rows["size"] = pd.cut(rows.pixels, [0, 1, 4, 16, 1e9], labels=["1px", "2-4px", "5-16px", "larger"])
    blur = blurred(held, 1)
    out = dict(codes=tokenizer.codes, factor=tokenizer.factor, judged=len(held), lesions=len(rows), codebook_use=share_used(tokens, tokenizer.codes).item(),
               psnr=decibels.mean().item(), lesion_recall=rows.kept.mean(), **{"blurred.psnr": psnr(blur, held).mean().item(),
               "blurred.lesion_recall": pd.DataFrame(lesion_recall(blur, held, labels)).kept.mean()})
    for m in dict.fromkeys(modalities):
        out |= {f"psnr.{m}": decibels[[i for i, x in enumerate(modalities) if x == m]].mean().item(), f"lesion_recall.{m}": rows.kept[rows.modality == m].mean()}
    out |= {f"lesion_recall.{k}": g.kept.mean() for k, g in rows.groupby("size", observed=True)}
    return {k: round(float(v), 4) if isinstance(v, float) else v for k, v in out.items()}


def measure(
    folder: str | None = None,   # of the training, to go on in; None: a temporary one
    n: int = 700,           # phantoms a modality to learn from
    device: str = "auto",
    settings: Settings = Settings(codes=1024, factor=2, width=32, detail=5., batch_size=16, steps=1500, save_seconds=60),
) -> dict:                  # flat names → numbers
    "Learn and judge; the three that count are codebook_use, psnr and lesion_recall."
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        where, chosen = Path(folder or temporary), pick_device(device)
        tokenizer, curves = teach(Phantoms(n, 64), settings, where, 0, chosen, verbose=folder is not None)
        save_tokenizer(tokenizer, where)
        return dict(device=str(chosen), steps=settings.steps, **judge(load_tokenizer(where)), seconds=round(time.perf_counter() - start))


if __name__ == "__main__":
    for name, value in measure(*sys.argv[1:2]).items(): print(f"{name}: {value}")
