"""Does pretraining help to say where? Dice of a U-Net on each encoder: phantom vessels and lesions, and real masks where they are.

The models are those of a finished run: `runs/study_spark` (part `spark` of the study) or `runs/latest`; without either, a small
pretraining of profile smoke is made in runs/study_segmentation, whose encoders have seen little (`pretraining` says which it was).
`start` is the encoder before pretraining, `mean_mask.no_picture` answers every picture with the mean training mask. Each right arm is trained on the same drawn eyes, stopped and thresholded on validation
eyes; intervals are over test eyes. `dice` is the mean over the seven phantom targets, default variant, fine-tuned. A training leaves
a file in runs/study_segmentation/17b_segmentation/cells, so that a stopped measurement goes on.
Run alone (`python benchmarks/segmentation.py [RUN]`) or through `make study`.
"""
import hashlib, os, platform, sys, time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch

from keepfit_nb.masks import real_sets
from keepfit_nb.profiles import open_run, project_root, read_json, real_folder, source_fingerprint
from keepfit_nb.segmentation import Settings, _blind, _cell, encoders_of, keep_learnable, phantom_sets
from keepfit_nb.images import ImageCache

MODELS = ("start", "public", "keepfit")
PLAN = Settings(n_train=48, n_val=16, n_test=40, steps=45, check_every=15, patience=45, real_size=128)
RUNS = ("runs/study_spark", "runs/latest")


def find_run(given=None) -> Path:
    "The folder of a run with pretrained models; a small one is made where there is none."
    for place in [given] if given else RUNS:
        folder = project_root() / place
        if (folder / "13_pretraining" / "default.json").exists() and (folder / "06_images" / "cache.json").exists(): return folder
    if given: sys.exit(f"{given} holds no finished 13_pretraining; give the folder of a run")
    return open_run("13_pretraining", "smoke", "runs/study_segmentation").need("13_pretraining").parent


def sets_of(run, plan, cache):
    "Drawn eyes of every camera; real masks where they are, as (sets, modes)."
    found = [(s, plan.modes) for s in phantom_sets(run, plan, cache)]
    if (real_folder() / "records.csv").exists(): found += [(s, ["frozen"]) for s in real_sets(real_folder(), plan.real_size, True, plan.cover)]
    return [(keep_learnable(s)[0], modes) for s, modes in found]


def measure(run_dir=None, plan=PLAN) -> dict:
    "`dice`; `<model>.<mode>.<target>.dice`, `.low`, `.high`, `.n`; `<model>.<mode>.dice`; the same for real sources; what was used, how long it took."
    threads, start = torch.get_num_threads(), time.time(); torch.set_num_threads(1)
    folder = find_run(run_dir); about = read_json(folder / "13_pretraining" / "manifest.json", {})
    run = open_run("17b_segmentation", about.get("profile", "smoke"), folder)
    run.profile.seeds = run.profile.seeds[:1]                        # one pretraining seed: the intervals are over eyes
    plan = plan.model_copy(update=dict(models=plan.models or [m for m in MODELS if m in (*run.variants, "start")]))
    inputs = {n: folder / n for n in ("06_images", "13_pretraining")}
    mark = hashlib.sha256(f"{about.get('fingerprint')} {source_fingerprint('segmentation')} {plan}".encode()).hexdigest()[:8]      # other weights, code or plan: other files
    work = project_root() / "runs" / "study_segmentation" / f"cells_{mark}"; (work / "cells").mkdir(parents=True, exist_ok=True)
    sets = sets_of(run, plan, ImageCache(inputs["06_images"]))
    rows = [r for some, _ in sets for r in _blind(run, plan, some)]
    try:
        for name, seed, encoder in encoders_of(run, plan, inputs):
            for some, modes in sets:
                for mode in modes: rows += _cell(run, work, plan, encoder, dict(run=folder.name, model=name, seed=seed), some, mode, 1.)[0]
    finally: torch.set_num_threads(threads)
    return named(pd.DataFrame(rows), run.default_variant) | dict(
        pretraining=f"{about.get('profile', 'unknown')}, {about.get('settings', {}).get('steps')} steps", phantom_test_eyes=plan.n_test, seconds=round(time.time() - start),
        device=f"CPU, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}")


def named(table, variant) -> dict:
    "Flat names for the Dice rows."
    out, dice = {}, table[table.metric == "Dice"]
    for r in dice.itertuples():
        target = r.task.removeprefix(f"{r.set} {r.modality} ").replace(" ", "_")
        name = f"{r.model}.{r.protocol.split(', ')[1]}.".replace(" ", "_") + f"{target if r.set == 'phantoms' else f'{r.set}_{target}'}"
        out |= {f"{name}.dice": round(r.value, 4), f"{name}.low": round(r.low, 4), f"{name}.high": round(r.high, 4), f"{name}.n": int(r.n)}
    mean = dice[dice.set == "phantoms"].groupby(["model", "protocol"]).value.mean()
    out |= {f"{m}.{p.split(', ')[1]}.dice".replace(" ", "_"): round(float(v), 4) for (m, p), v in mean.items()}
    return {"dice": out.get(f"{variant}.fine-tuned.dice")} | out


if __name__ == "__main__":
    for name, value in measure(*sys.argv[1:2]).items(): print(f"{name:48s} {value}")
