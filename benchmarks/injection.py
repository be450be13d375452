"""Which form of the injection helps? Forms of it, and some other parts, each over `elite`, on eyes that the study of ablation.py never sees.

    python benchmarks/ablation.py draw DIR --eyes 0; python benchmarks/ablation.py learn DIR --device cuda
    python benchmarks/injection.py DIR OUT --device cuda --processes 14 --steps 1600 --rows elite sem nce_kin pull_both sure
    python benchmarks/injection.py DIR OUT4 --device cuda --processes 14 --elite-every 4        a quarter of the elite pairs

Cells are resumable as those of chapter 20; the table goes to OUT/forms.csv.
"""
import argparse, os
from pathlib import Path

from ablation import SETTINGS
from keepfit_nb.ablation import KINDS, Bundle, Study, collect, gain, grid, means, run_grid, scores, seeds_of, study_settings, unpack

ELITE, SEMANTIC = grid()["elite"], grid()["elite+semantic"]
NCE, LEAN = dict(loss="infonce", candidates="modality"), dict(loss="lean")


def form(**injection): return SEMANTIC | dict(injection=injection)


FORMS = {                                                          # name → switches over the study's settings
    "elite": ELITE, "public": grid()["public"],
    "sem": form(**LEAN), "weight_3": form(**LEAN) | dict(reference_weight=3.), "early": form(**LEAN) | dict(reference_start=0.), "lean_sharp": form(**LEAN, sharpen=4.),
    "mse": form(loss="mse"), "nce": form(**NCE), "nce_kin": form(loss="infonce"), "nce_sharp": form(**NCE, sharpen=4.), "nce_weight_3": form(**NCE) | dict(reference_weight=3.),
    "any_category": form(**NCE) | dict(same_category=False), "scale_30": form(**NCE, scale=30.), "both_ways": form(**NCE, both_ways=True), "match": form(**NCE, leave_one_out="match"),
    "pull_both": form(**NCE, pull="both"), "sure": form(**NCE, confidence="max"), "keys_both": form(**NCE, keys="both"), "keys_text": form(**NCE, keys="text", sharpen=4.),
    "token": ELITE | dict(token_prediction=True), "decoder": grid()["elite+decoder"], "text": grid()["elite+text"],
    "appearance": form(**LEAN) | dict(token_prediction=True, appearance=True),
}


def thinned(folder, every):
    "The same bundle with only each `every`-th elite pair, beside it; the pictures are shared."
    folder = Path(folder).resolve(); unpack(folder, folder / "unpacked"); out = folder.with_name(f"{folder.name}_elite_{every}")
    (out / "unpacked").mkdir(parents=True, exist_ok=True)
    for f in [*folder.iterdir(), *(folder / "unpacked").iterdir()]:
        place = out / f.relative_to(folder)
        if f.name not in ("unpacked", "elite.jsonl") and not place.exists(): os.symlink(f, place)
    lines = (folder / "unpacked" / "elite.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (out / "unpacked" / "elite.jsonl").write_text("".join(lines[::every]), encoding="utf-8")
    return out


def table(study, steps, elite_pairs):
    "One line a form: mean ACA by kind, and the fine gain over `elite` with every seed's own; columns as in results/injection_forms.csv."
    wide = means(scores(study)).query("modality == 'all'").pivot(index="row", columns="kind", values="aca").reindex(columns=list(KINDS))
    found = [gain(study, r, "elite") if study.seeds(r) & study.seeds("elite") else dict(gain=None, each=[]) for r in wide.index]
    wide = wide.assign(gain=[g["gain"] for g in found], gain_of_each_seed=[" ".join(map(str, g["each"])) for g in found]).rename_axis("form").reset_index()
    return wide.round(4).assign(steps=steps, elite_pairs=elite_pairs)[["steps", "elite_pairs", *wide.columns]]


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("bundle", type=Path); ask.add_argument("out", type=Path); ask.add_argument("--rows", nargs="*", choices=FORMS, default=list(FORMS), metavar="FORM")
    ask.add_argument("--seeds", type=seeds_of, default="0-1"); ask.add_argument("--steps", type=int, default=400); ask.add_argument("--elite-every", type=int, default=1)
    ask.add_argument("--processes", type=int, default=1); ask.add_argument("--device", default="auto"); ask.add_argument("--minutes", type=float, default=0.)
    a = ask.parse_args()
    bundle = thinned(a.bundle, a.elite_every) if a.elite_every > 1 else a.bundle
    left = run_grid(bundle, a.out / "cells", [(r, FORMS[r], s) for s in a.seeds for r in a.rows], study_settings(a.steps, SETTINGS), a.processes, a.device, a.minutes)
    asked = Bundle(bundle)
    found = table(Study(collect(asked, a.out / "cells")), a.steps, len(asked.cache.records("elite")))
    found.to_csv(a.out / "forms.csv", index=False); print(found.to_string(index=False), *(f"not done: {x}" for x in left), sep="\n")
    return int(bool(left))


if __name__ == "__main__": raise SystemExit(main())
