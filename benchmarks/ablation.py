"""The ablation study of chapter 20.

    python benchmarks/ablation.py bundle DIR                    the chain to the image cache, then one parcel of 35 MB
    python benchmarks/ablation.py draw DIR                      the same where `datasets` is missing: eyes are drawn by all cores (16 cores: half a minute)
    python benchmarks/ablation.py learn DIR --device cuda       after `draw`: text encoder (chapter 09), visual tokens (chapter 11), first weights of the image encoder
    python -m keepfit_nb.ablation --bundle DIR --out OUT …      train and examine, on any machine; leaves OUT/study.json
    python benchmarks/ablation.py report OUT/study.json         scores, gains, forest plot → benchmarks/results/ablation.*
    python benchmarks/ablation.py study DIR                     all of it on this machine: draw, learn, train, report; goes on where it was stopped
"""
import argparse, json, multiprocessing, os, shutil, sys, tempfile
from pathlib import Path

import numpy as np, pandas as pd

from keepfit_nb.ablation import FIRST_WEIGHTS, Study, _bundle, describe_bundle, forest, gains, main as train, report
from keepfit_nb.encoders import Settings as EncoderSettings
from keepfit_nb.pretraining import Settings as PretrainingSettings
from keepfit_nb.profiles import load_profile, open_run, read_json, write_json

sys.path.append(str(Path(__file__).parents[1] / "nbs"))
from shrink_outputs import smaller

UNSEEN = ["macular hole", "retinitis pigmentosa"]
DISEASES = ["normal", "diabetic retinopathy", "diabetic macular edema", "branch retinal vein occlusion", "age-related macular degeneration", "geographic atrophy",
            "neovascular age-related macular degeneration", "pigment epithelial detachment", "central serous chorioretinopathy", "papilledema", "macular scar",
            "retinal vasculitis", "epiretinal membrane", "vitreomacular traction", "retinal detachment", *UNSEEN]
SIZES = dict(n_public=3000, n_elite=600, n_eval_train=0, n_eval_test=2040, size=64)
EYES = 2026      # seed of the simulated eyes; settings were chosen on other eyes (seed 0, by injection.py)
BEGINNING = dict(text_steps=600, token_steps=800, image_steps=800)      # of the text encoder and the image tokenizer that some rows begin with; of the image encoder that all begin with
STEPS, SETTINGS = 600, ["batch_size=48", "sentences=.5", "reference_start=.4", "lr=.001", "injection.loss=infonce"]      # the last by injection.py
RESULTS = Path(__file__).parent / "results"


def bundle(folder, sizes, run_dir="runs/study_ablation"):
    "By the chain: simulate, withhold, cache, learn a vocabulary, pretrain the text encoder, learn visual tokens, pack."
    run = open_run("20_ablation", "demo", run_dir, EYES, {"captions": sizes | dict(n_eval_train=40, diseases=DISEASES), "images.size": sizes["size"], "sources.unseen": UNSEEN})
    return _bundle(run, Path(folder), {s: run.need(s) for s in ("06_images", "07_encoders", "09_text_pretraining", "11_appearance")})


def _one(work):
    import cv2
    from keepfit_nb.captions import Settings, make_row
    job, settings, folder = work
    row = make_row(job, Settings(**settings), Path(folder))
    return row, np.ascontiguousarray(cv2.imread(str(Path(folder) / row["image"]))[..., ::-1].transpose(2, 0, 1))


def draw(folder, sizes, processes, eyes=EYES):
    "Without tables and chain: draw all eyes in parallel, leave out what names a withheld disease, write the unpacked bundle."
    from keepfit_nb.captions import Settings, jobs_of
    from keepfit_nb.encoders import make_tokenizer, text_config
    from keepfit_nb.knowledge import corpus, load_knowledge, names_term, without_terms
    settings, folder = dict(sizes, diseases=DISEASES), Path(folder)
    place = folder / "unpacked"; place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as pictures, multiprocessing.get_context("spawn").Pool(processes) as pool:
        (Path(pictures) / "images").mkdir()
        drawn = pool.map(_one, [(j, settings, pictures) for j in jobs_of(Settings(**settings), eyes)], chunksize=32)
    known = lambda r: not any(names_term(t, UNSEEN) for t in [r["caption"], *r["categories"]])
    drawn = [(r, x) for r, x in drawn if r["role"] == "evaluation" or known(r)]
    roles = {role: [dict(r, row=i) for i, (r, _) in enumerate(drawn) if r["role"] == role] for role in ("public", "elite", "evaluation")}
    for role, rows in roles.items(): (place / f"{role}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    write_json(place / "cache.json", dict(size=sizes["size"], crop=True, images=len(drawn)))
    encoders = EncoderSettings(**load_profile("demo").sections["encoders"])
    texts = without_terms(corpus(), UNSEEN)[0]
    tokenizer, _ = make_tokenizer(encoders, texts + [t for c in load_knowledge().values() for t in (c.name, *c.synonyms, *c.definitions)] + [r["caption"] for r in roles["elite"]])
    tokenizer.save_pretrained(folder / "tokenizer"); text_config(encoders, len(tokenizer)).save_pretrained(folder / "tokenizer")
    np.save(place / "images.npy", np.stack([x for _, x in drawn]))
    return describe_bundle(folder, sizes["size"], True, len(drawn), roles, UNSEEN, encoders)


def learn(folder, device, text_steps, token_steps, image_steps):
    """What the rows begin with, each unless it is there: the text encoder, pretrained on the filtered corpus; the image tokenizer; and an image
    encoder that was taught the public categories, in place of ImageNet's weights, which all rows begin with."""
    import torch
    from safetensors.torch import save_file
    from keepfit_nb.appearance import Settings as TokenSettings, count_tokens
    from keepfit_nb.labels import train_supervised
    from keepfit_nb.images import ImageCache
    from keepfit_nb.knowledge import corpus, without_terms
    from keepfit_nb.text_pretraining import Settings as TextSettings, train_text
    from keepfit_nb.tokenizer import save_tokenizer, share_used, teach, teaching_rows
    folder, device, about, cache = Path(folder), torch.device(device), {}, ImageCache(Path(folder) / "unpacked")
    encoders = EncoderSettings(**read_json(folder / "bundle.json")["encoders"])
    if not (folder / "09_text_pretraining" / "model").exists():
        (folder / "09_text_pretraining").mkdir(exist_ok=True)
        text = TextSettings(steps=text_steps, precision="fp32", batch_size=32, max_tokens=96, term_share=.1, save_seconds=0)
        about |= train_text(encoders, without_terms(corpus(), UNSEEN)[0], folder / "tokenizer", text, folder / "09_text_pretraining", 0, device)
    if not (place := folder / "11_appearance" / "counts.npy").exists():
        place.parent.mkdir(exist_ok=True); rows = teaching_rows(cache)
        teacher, _ = teach(cache, TokenSettings(steps=token_steps, precision="fp32"), folder / "work", 0, device)
        teacher = teacher.to(device); rows = rows[:: max(1, len(rows) // 2000)]
        tokens = torch.cat([teacher.encode(cache.batch(part).to(device)).cpu() for part in np.array_split(rows, -(-len(rows) // 100))])
        save_tokenizer(teacher.cpu(), place.parent); np.save(place, count_tokens(tokens.numpy(), teacher.codes).numpy())
        about |= dict(codebook_use=round(float(share_used(tokens, teacher.codes)), 4))
    if not (first := folder / FIRST_WEIGHTS).exists():
        model = train_supervised(folder / "work_images", encoders, cache, PretrainingSettings(steps=image_steps, batch_size=48, lr=2e-3, precision="fp32"), 99, True, device, label="first weights")
        save_file({k: v.cpu().contiguous() for k, v in model.image_encoder.model.state_dict().items()}, part := first.with_suffix(".part")); os.replace(part, first)
    for name in ("work", "work_images", "09_text_pretraining/checkpoints"): shutil.rmtree(folder / name, ignore_errors=True)
    return about


def captions_of(study):
    "Mean F1 over present findings of the rows that write captions, by the parser of chapter 03e."
    from keepfit_nb.decoder import score_captions
    found = {}
    for (row, _), c in study.cells.items():
        if c.get("captions"): found.setdefault(row, []).append(score_captions(c["captions"], study.plain["described"])["present_f1"])
    return {f"ablation.present_f1.{row}": round(float(np.mean(v)), 4) for row, v in found.items()}


def write_report(file):
    "benchmarks/results/ablation.json, the tables and the forest plot."
    import matplotlib; matplotlib.use("Agg")
    study = Study(file); values = report(study, RESULTS) | captions_of(study)
    values |= {f"fine.gain_over_{old}{end}": values[key] for old in ("elite", "public") for end in ("", ".low", ".high")
               if (key := f"fine.gain.keepfit_over_{old}{end}") in values}
    for name in ("scores", "means", "gains"):
        pd.read_csv(RESULTS / f"{name}.csv").round(4).to_csv(RESULTS / f"ablation_{name}.csv", index=False, lineterminator="\n"); (RESULTS / f"{name}.csv").unlink()
    write_json(RESULTS / "ablation.json", values)
    ax = forest(gains(study, ["fine"]), title="fine-grained questions")
    ax.figure.savefig(RESULTS / "ablation.png", dpi=110, bbox_inches="tight")
    plot = RESULTS / "ablation.png"; plot.write_bytes(smaller(plot.read_bytes()))
    return values


def measure(folder="runs/study_ablation", processes=os.cpu_count(), device="cpu"):
    "The whole study in `folder`, cell by cell, and on with what is there: five seeds of every row, ten of the main ones; flat values."
    folder = Path(folder); bundle = folder / "bundle"
    if not (bundle / "bundle.json").exists(): draw(bundle, SIZES, processes)
    learn(bundle, device, **BEGINNING)
    train([str(w) for w in ("--bundle", bundle, "--out", folder, "--seeds", "0-4", "--more-seeds", "5-9", "--steps", STEPS, "--processes", processes, "--device", device, "--set", *SETTINGS)])
    return write_report(folder / "study.json")


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("what", choices=["bundle", "draw", "learn", "report", "study"]); ask.add_argument("place")
    for name, value in SIZES.items(): ask.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    ask.add_argument("--device", default="cpu"); ask.add_argument("--text-steps", type=int, default=BEGINNING["text_steps"]); ask.add_argument("--token-steps", type=int, default=BEGINNING["token_steps"]); ask.add_argument("--image-steps", type=int, default=BEGINNING["image_steps"])
    ask.add_argument("--processes", type=int, default=os.cpu_count()); ask.add_argument("--eyes", type=int, default=EYES, help="seed of the simulated eyes"); ask.add_argument("--run-dir", default="runs/study_ablation")
    a = ask.parse_args(); sizes = {k: getattr(a, k) for k in SIZES}
    if a.what == "study": print(json.dumps(measure(a.place, a.processes, a.device), indent=1))
    elif a.what == "report": print(json.dumps(write_report(a.place), indent=1))
    elif a.what == "draw": print(draw(a.place, sizes, a.processes, a.eyes))
    elif a.what == "learn": print(learn(a.place, a.device, a.text_steps, a.token_steps, a.image_steps))
    else: print(bundle(a.place, sizes, a.run_dir))


if __name__ == "__main__": main()
