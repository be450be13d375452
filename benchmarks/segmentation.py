"""Does pretraining help to say where? Dice of a U-Net on each encoder, as chapter 17b found it in the study's two runs.

Phantom vessels and lesions come from `runs/study_spark` (part `spark` of the study), real masks from `runs/study_real` (part `real`), or from
the folders given. `start` is the encoder before pretraining, `mean_mask.no_picture` answers every picture with the mean training mask.
`dice` is the mean over the phantom targets and seeds, default variant, fine-tuned; intervals are over test eyes, their ends mean over seeds.
Run alone (`python benchmarks/segmentation.py [RUN …]`) or through `make study`.
"""
import sys
from pathlib import Path

import pandas as pd

from keepfit_nb.profiles import project_root, read_json

RUNS = ("runs/study_spark", "runs/study_real")


def measure(*runs) -> dict:
    "`dice`; `<model>.<mode>.<target>.dice`, `.low`, `.high`, `.n`; `<model>.<mode>.dice`, phantoms; the same for real sources. {} where nothing was run."
    out = {}
    for folder in map(Path, runs or [project_root() / r for r in RUNS]):
        path = folder / "17b_segmentation" / "results.parquet"
        if not path.exists(): continue
        found = named(pd.read_parquet(path))
        if (default := read_json(folder / "13_pretraining" / "default.json", {}).get("variant")) and f"{default}.fine-tuned.dice" in found: found["dice"] = found[f"{default}.fine-tuned.dice"]
        out |= found
    return out


def named(table) -> dict:
    "Flat names for the Dice rows, means over the seeds."
    dice = table[(table.metric == "Dice") & (table.shots.fillna(0) == 0)]
    label = lambda model, protocol: f"{model}.{protocol.split(', ')[1]}".replace(" ", "_")
    out = {}
    for (model, protocol, source, modality, task), g in dice.groupby(["model", "protocol", "set", "modality", "task"], sort=False):
        target = task.removeprefix(f"{source} {modality} ").replace(" ", "_")
        name = f"{label(model, protocol)}.{target if source == 'phantoms' else f'{source}_{target}'}"
        out |= {f"{name}.dice": round(float(g.value.mean()), 4), f"{name}.low": round(float(g.low.mean()), 4), f"{name}.high": round(float(g.high.mean()), 4), f"{name}.n": int(g.n.iloc[0])}
    mean = dice[dice.set == "phantoms"].groupby(["model", "protocol"]).value.mean()
    return out | {f"{label(m, p)}.dice": round(float(v), 4) for (m, p), v in mean.items()}


if __name__ == "__main__":
    for name, value in measure(*sys.argv[1:]).items(): print(f"{name:48s} {value}")
