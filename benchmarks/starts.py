"""Where should the encoders begin? Trials on eyes that no study sees; they fixed `labels_first` of profile demo and looked into chapter 09's harm.

    python benchmarks/ablation.py draw DIR --eyes 0 --n-public 1500 --n-elite 400 --n-eval-test 1000
    python benchmarks/starts.py labels DIR OUT --device cuda --processes 14      image encoder: steps of labels, then steps of words
    python benchmarks/ablation.py draw DIR2 --eyes 0; python benchmarks/ablation.py learn DIR2 --device cuda
    python benchmarks/starts.py text DIR2 OUT --device cuda --processes 14       text encoder: how long, on which texts, how fast it may move

Mean ACA by kind of question, one line a start, row and seed, in OUT/starts.csv (committed: results/starts.csv).
"""
import argparse, multiprocessing, shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pandas as pd, torch

from ablation import SETTINGS, UNSEEN
from keepfit_nb.ablation import KINDS, Bundle, aca, answers_of, grid, seeds_of, study_settings, unpack
from keepfit_nb.knowledge import corpus, without_terms
from keepfit_nb.labels import first_weights
from keepfit_nb.pretraining import train_member, variant_settings
from keepfit_nb.text_pretraining import Settings as TextSettings, train_text

LABELS = [(0, 1e-3, 400, 1e-3), (0, 1e-3, 800, 1e-3), (200, 2e-3, 400, 1e-3), (400, 1e-3, 400, 1e-3), (400, 2e-3, 400, 5e-4), (400, 2e-3, 400, 1e-3),
          (400, 2e-3, 400, 2e-3), (600, 2e-3, 300, 1e-3), (800, 2e-3, 400, 1e-3)]      # steps of labels, their learning rate, steps of words, theirs
TEXTS = {"600": (600, False), "4000": (4000, False), "1500, captions": (1500, True), "4000, captions": (4000, True)}      # steps; are the elite captions read too?
FORMS = {"none": ("", 1.), **{name: (name, 1.) for name in TEXTS}, "600, slowly": ("600", .3), "4000, captions, slowly": ("4000, captions", .3)}      # texts; factor of the learning rate


def asked(model, bundle):
    "Mean ACA over modalities and tasks, by kind of question."
    said, found = answers_of(model, bundle), {}
    for kind, task in bundle.questions: found.setdefault(kind, {}).setdefault(task.modality, []).append(aca(bundle.truth[task.name][1], said[task.name]))
    return {k: round(sum(sum(v) / len(v) for v in m.values()) / len(m), 4) for k, m in found.items()}


def with_labels(folder, out, form, row, seed, device):
    labels, speed, steps, lr = form
    torch.set_num_threads(1)
    bundle, s = Bundle(folder), study_settings(steps, [*SETTINGS, f"lr={lr}"])
    begin = dict(labels_first=first_weights(out / f"{labels}.{speed}.{row}.{seed}", bundle.encoders, bundle.cache, s.model_copy(update=dict(lr=speed)), seed, labels, device, False)) if labels else {}
    v = variant_settings(s, grid()[row] | dict(labels_first=labels), row)
    model = train_member(out / "models" / f"{labels}.{speed}.{steps}.{lr}" / row / str(seed), bundle.encoders, bundle.cache, bundle.tokenizer, v, seed, device, {}, verbose=False, stages=bundle.stages | begin)
    return dict(trial="labels first", start=f"{labels} at {speed:g}, then {steps} at {lr:g}", row=row, seed=seed) | asked(model, bundle)


def learn_text(folder, out, name, device):
    "Stage 09 with these texts, in a folder of its own."
    steps, captions = TEXTS[name]; torch.set_num_threads(1)
    bundle, place = Bundle(folder), out / "texts" / name; place.mkdir(parents=True, exist_ok=True)
    texts = [*corpus(), *([r["caption"] for r in bundle.cache.records("elite")] if captions else [])]
    if not (place / "model" / "config.json").exists():
        train_text(bundle.encoders, without_terms(texts, UNSEEN)[0], bundle.tokenizer, TextSettings(steps=steps, precision="fp32", batch_size=32, max_tokens=96, term_share=.1, save_seconds=0),
                   place, 0, torch.device(device), verbose=False)


def with_text(folder, out, form, row, seed, device):
    text, slower = FORMS[form]; torch.set_num_threads(1)
    bundle = Bundle(folder)
    s = study_settings(600, SETTINGS).model_copy(update=dict(lr_scales={} if slower == 1 else {"text_encoder": slower}))
    v = variant_settings(s, grid()["elite"] | dict(labels_first=0, text_pretraining=bool(text)), form)
    stages = bundle.stages | ({"09_text_pretraining": out / "texts" / text} if text else {})
    model = train_member(out / "models" / form / str(seed), bundle.encoders, bundle.cache, bundle.tokenizer, v, seed, device, {}, verbose=False, stages=stages)
    return dict(trial="text pretraining", start=form, row=row, seed=seed) | asked(model, bundle)


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("trial", choices=["labels", "text"]); ask.add_argument("bundle", type=Path); ask.add_argument("out", type=Path)
    ask.add_argument("--seeds", type=seeds_of, default="0-1"); ask.add_argument("--processes", type=int, default=1); ask.add_argument("--device", default="cpu")
    a = ask.parse_args(); unpack(a.bundle, a.bundle / "unpacked")
    work, jobs = (with_labels, [(f, row) for f in LABELS for row in ("public", "elite", "elite+semantic")]) if a.trial == "labels" else (with_text, [(f, "elite") for f in FORMS])
    spawn, rows = multiprocessing.get_context("spawn"), []
    with ProcessPoolExecutor(a.processes, mp_context=spawn) as pool:
        if a.trial == "text": list(pool.map(learn_text, *zip(*[(a.bundle, a.out, name, a.device) for name in TEXTS])))
        for done in as_completed([pool.submit(work, a.bundle, a.out, f, row, s, a.device) for s in a.seeds for f, row in jobs]): rows.append(done.result()); print(rows[-1], flush=True)
    pd.DataFrame(rows).sort_values(["trial", "start", "row", "seed"]).reindex(columns=["trial", "start", "row", "seed", *KINDS]).to_csv(a.out / "starts.csv", index=False)
    shutil.rmtree(a.out / "models", ignore_errors=True)


if __name__ == "__main__": main()
