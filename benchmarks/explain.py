"""Does a trained model look where the lesion is? Chapter 19's pointing game on new simulated eyes, beside chance, the centre and another sentence.

Asked is the default variant of the study's part `spark` (`runs/study_spark`), or of the run given by `--run`. Without either, `--train` or a
first `make study` trains a small model on expert pairs alone (a few minutes on one core: enough to beat the dart, not to find every lesion). Means over the three cameras,
every kind of lesion counting the same; 95 % intervals over eyes.
"""
import argparse, json, os, tempfile, time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from keepfit_nb import explain
from keepfit_nb.captions import Settings as Phantoms, jobs_of, make_row
from keepfit_nb.encoders import Settings as Encoders, make_tokenizer, text_config
from keepfit_nb.images import ImageCache, preprocess
from keepfit_nb.pretraining import Settings as Pretraining, start_model, train_member
from keepfit_nb.profiles import project_root, write_json

DISEASES = ["branch retinal vein occlusion", "central serous chorioretinopathy", "macular scar", "papilledema", "choroidal nevus", "macular hole", "retinal detachment", "laser spot"]


def pairs(folder: Path, n: int, seed: int, size: int) -> ImageCache:
    "Expert pairs, n a camera, as chapter 06 leaves them; no public images."
    settings = Phantoms(size=size, n_public=0, n_elite=n, n_eval_train=0, n_eval_test=0, diseases=DISEASES)
    (folder / "images").mkdir(parents=True)
    rows = [make_row(j, settings, folder) | dict(row=i) for i, j in enumerate(jobs_of(settings, seed))]
    np.save(folder / "images.npy", np.stack([preprocess(folder / r["image"], size).numpy() for r in rows]))
    for role in ("elite", "public", "evaluation"):
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if r["role"] == role), encoding="utf-8")
    write_json(folder / "cache.json", dict(size=size, crop=True))
    return ImageCache(folder)


def trained(folder: Path, n: int, steps: int, seed: int, size: int):
    "(name, seed, model) of a trained model and of the same network before training."
    cache, encoders = pairs(folder / "cache", n, seed, size), Encoders(max_tokens=96)
    tokenizer, _ = make_tokenizer(encoders, [r["caption"] for r in cache.records("elite")])
    tokenizer.save_pretrained(folder / "tokenizer"); text_config(encoders, len(tokenizer)).save_pretrained(folder / "tokenizer")
    settings = Pretraining(public=False, semantic=False, sentences=.5, steps=steps, batch_size=32, lr=1e-3, precision="fp32")
    start = start_model(encoders, cache, folder / "tokenizer", settings, seed).eval()
    return [("elite", seed, train_member(folder / "model", encoders, cache, folder / "tokenizer", settings, seed, "cpu", label="explain", verbose=False)), ("start", seed, start)]


def figures(models, settings, size: int, crop: bool, seed: int, main: str, diseases=None, painted: int = 0) -> dict:
    "Flat names → numbers. Eyes of another seed than any chapter's."
    run = SimpleNamespace(dir=Path("explain"), seed=seed + 7919)
    _, scored, left = explain.point(run, models, settings, painted or size, size, crop, diseases)
    out = dict(questions=len(scored) // len(models), left_out=left)
    for kind, prefix in (("fine", ""), ("coarse", "disease_")):
        part = scored[scored.kind == kind]; mine = part[part.model == main]
        mean = lambda rows, columns: explain.mean_interval(rows[columns], rows.eye, rows.modality + rows.asked, settings.bootstrap, 0)
        (value, low, high), iou, inside, other, gain = mean(mine.assign(gain=mine.pointing - mine.other_pointing), ["pointing", "iou", "inside", "other_pointing", "gain"])
        chance, *_ = mean(mine, ["chance_pointing"])
        out |= {f"{prefix}{k}": v for k, v in dict(pointing_game=value, low=low, high=high, chance=chance[0], other_sentence=other[0], gain=gain[0], gain_low=gain[1], gain_high=gain[2],
                overlap=iou[0], overlap_chance=mean(mine, ["chance_iou"])[0][0], heat_inside=inside[0], inside_chance=mean(mine, ["chance_inside"])[0][0]).items()}
        if (start := part[part.model == "start"]).size: out[f"{prefix}start"] = mean(start, ["pointing"])[0][0]
    return out


def centre(settings, size: int, seed: int, diseases=None) -> float:
    "The pointing game of a bump in the middle, fine questions."
    eyes = [e for m in explain.MODALITIES for e in explain.eyes_for(m, settings.eyes, seed + 7919, size, size, True, diseases)]
    q, _ = explain.questions_for(eyes, settings.tolerance, settings.smallest, settings.largest, seed + 7919); q = q[q.kind == "fine"]
    hits = [[explain.pointing(explain.centre_heat(size), explain.place(eyes[x.eye], "fine", x.asked), settings.tolerance)] for x in q.itertuples()]
    return explain.mean_interval(hits, q.eye, q.modality + q.asked, 2)[0][0]


def measure() -> dict:
    "pointing_game of the study's default variant; of a model trained here where the study's run is missing."
    folder = project_root() / "runs" / "study_spark"
    return of_run(folder) if (folder / "13_pretraining" / "default.json").exists() else of_training()


def of_training(n: int = 150, steps: int = 240, eyes: int = 48, seed: int = 0, size: int = 64) -> dict:
    "pointing_game of a small model trained here, and what stands beside it."
    began, settings = time.perf_counter(), explain.Settings(eyes=eyes, bootstrap=1000)
    with tempfile.TemporaryDirectory() as folder: models = trained(Path(folder), n, steps, seed, size)
    return figures(models, settings, size, True, seed, "elite", DISEASES) | dict(centre=centre(settings, size, seed, DISEASES), train=3 * n, steps=steps, seconds=time.perf_counter() - began)


def of_run(run_dir: str | Path, eyes: int = 200, variant: str = "") -> dict:
    "The same figures for the finished models of a run."
    from keepfit_nb.pretraining import KeepFIT, find_pretrained
    from keepfit_nb.profiles import read_json
    folder = Path(run_dir) / "13_pretraining"; default = read_json(folder / "default.json"); variant = variant or default["variant"]
    model = KeepFIT.from_pretrained(find_pretrained(folder / variant / str(default["seed"])))
    settings = explain.Settings(eyes=eyes)
    return figures([(variant, default["seed"], model)], settings, model.size, model.crop, default["seed"], variant) | dict(centre=centre(settings, model.size, default["seed"]))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--run", help="folder of a finished run"); p.add_argument("--train", action="store_true", help="train a small model and ask that"); p.add_argument("--variant", default=""); p.add_argument("--json")
    for name, default in (("n", 150), ("steps", 240), ("eyes", 48), ("seed", 0)): p.add_argument(f"--{name}", type=int, default=default)
    a = p.parse_args()
    values = of_run(a.run, a.eyes, a.variant) if a.run else of_training(a.n, a.steps, a.eyes, a.seed) if a.train else measure()
    for k, v in values.items(): print(f"{k}: {round(v, 4) if isinstance(v, float) else v}")
    if a.json: Path(a.json).write_text(json.dumps(values, indent=1))
