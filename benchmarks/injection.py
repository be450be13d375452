"""Which form of the injection helps? Forms of it, and some other parts, each over `elite`, on eyes that the study of ablation.py never sees.

    python benchmarks/ablation.py draw DIR --eyes 0; python benchmarks/ablation.py learn DIR --device cuda
    python benchmarks/injection.py DIR OUT --device cuda --processes 14 --steps 1600 --rows elite sem nce_kin pull_both sure
    python benchmarks/injection.py DIR OUT4 --device cuda --processes 14 --elite-every 4        a quarter of the elite pairs

Cells are resumable as those of chapter 20; the table goes to OUT/forms.csv.
"""
import argparse, os
from pathlib import Path

import pandas as pd

from ablation import SETTINGS
from keepfit_nb.ablation import Bundle, Study, collect, gain, means, run_grid, scores, seeds_of, study_settings

OFF = dict(text_pretraining=False, semantic=False, token_prediction=False, appearance=False, decoder=False)
SEMANTIC, NCE = OFF | dict(elite=True, semantic=True), dict(loss="infonce", candidates="modality")


def form(**injection): return SEMANTIC | dict(injection=injection)


FORMS = {                                                          # name → switches over the study's settings
    "elite": OFF | dict(elite=True), "public": OFF | dict(elite=False),
    "sem": form(loss="lean"), "weight_3": form(loss="lean") | dict(reference_weight=3.), "early": form(loss="lean") | dict(reference_start=0.), "lean_sharp": form(loss="lean", sharpen=4.),
    "mse": form(loss="mse"), "nce": form(**NCE), "nce_kin": form(loss="infonce"), "nce_sharp": form(**NCE, sharpen=4.), "nce_weight_3": form(**NCE) | dict(reference_weight=3.),
    "any_category": form(**NCE) | dict(same_category=False), "scale_30": form(**NCE, scale=30.), "both_ways": form(**NCE, both_ways=True), "match": form(**NCE, leave_one_out="match"),
    "pull_both": form(**NCE, pull="both"), "sure": form(**NCE, confidence="max"), "keys_both": form(**NCE, keys="both"), "keys_text": form(**NCE, keys="text", sharpen=4.),
    "token": OFF | dict(elite=True, token_prediction=True), "decoder": OFF | dict(elite=True, decoder=True), "text": OFF | dict(elite=True, text_pretraining=True),
    "appearance": form(loss="lean") | dict(token_prediction=True, appearance=True),
}


def thinned(folder, every):
    "The same bundle with every so-manieth elite pair, beside it; the pictures are shared."
    folder = Path(folder).resolve(); out = folder.with_name(f"{folder.name}_elite_{every}")
    (out / "unpacked").mkdir(parents=True, exist_ok=True)
    for f in [*folder.iterdir(), *(folder / "unpacked").iterdir()]:
        place = out / f.relative_to(folder)
        if f.name not in ("unpacked", "elite.jsonl") and not place.exists(): os.symlink(f, place)
    lines = (folder / "unpacked" / "elite.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "unpacked" / "elite.jsonl").write_text("".join(lines[::every]), encoding="utf-8")
    return out


def table(study):
    "One line a form: mean ACA by kind, and the fine gain over `elite` with every seed's own."
    wide = means(scores(study)).query("modality == 'all'").pivot(index="row", columns="kind", values="aca").round(4)
    gains = {r: gain(study, r, "elite") for r in study.rows if study.seeds(r) & study.seeds("elite")}
    return wide.assign(gain=[round(gains[r]["gain"], 4) if r in gains else None for r in wide.index], gain_of_each_seed=[" ".join(map(str, gains[r]["each"])) if r in gains else "" for r in wide.index])


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("bundle", type=Path); ask.add_argument("out", type=Path); ask.add_argument("--rows", nargs="*", choices=FORMS, default=list(FORMS), metavar="FORM")
    ask.add_argument("--seeds", type=seeds_of, default="0-1"); ask.add_argument("--steps", type=int, default=400); ask.add_argument("--elite-every", type=int, default=1)
    ask.add_argument("--processes", type=int, default=1); ask.add_argument("--device", default="auto"); ask.add_argument("--minutes", type=float, default=0.)
    a = ask.parse_args()
    bundle = thinned(a.bundle, a.elite_every) if a.elite_every > 1 else a.bundle
    left = run_grid(bundle, a.out / "cells", [(r, FORMS[r], s) for s in a.seeds for r in a.rows], study_settings(a.steps, SETTINGS), a.processes, a.device, a.minutes)
    found = table(Study(collect(Bundle(bundle), a.out / "cells")))
    found.to_csv(a.out / "forms.csv"); print(found.to_string(), *(f"not done: {x}" for x in left), sep="\n")
    return int(bool(left))


if __name__ == "__main__": raise SystemExit(main())
