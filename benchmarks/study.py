"""The measurements that need more time than a demo: `make study`.

Each part is resumable (runs go on where they stopped, a part with unchanged code is not measured again) and writes flat
`name: value` pairs into benchmarks/results/study.json as soon as it is done. `--only atlas records` picks parts. The parts
that measure one chapter live beside this file (`atlas.py`, `captions.py` …), each with a function `measure() -> dict`.
"""
import argparse, hashlib, importlib, os, platform, subprocess, sys, time
from pathlib import Path

from keepfit_nb.ablation import grid
from keepfit_nb.profiles import project_root, read_json, real_folder, source_fingerprint, write_json

NEEDED = ("03d", "05", "06", "07", "13", "13a", "14", "15", "16", "17", "17a", "17b", "18", "19", "21")      # the stages; the chapters between them add no result
RESULTS = Path(__file__).parent / "results" / "study.json"
VARIANTS = "variants={{public: {{elite: false, semantic: false}}, {}keepfit: {{elite: true, semantic: true}}, v1: {{compat: v1, elite: true, semantic: true, memory: 0}}}}"     # v1: KeepFIT V1, its defects included (chapter 12.3)
EYES = 2026      # seed of the demonstration's eyes; settings were chosen on others
SPARK = (VARIANTS.format("elite: {elite: true, semantic: false}, decoder: {elite: true, semantic: true, decoder: true}, "), "seeds=[0, 1]", "pretraining.labels_first=400", "pretraining.steps=400", "baselines.models=[{kind: supervised}]", "few_shot.shots=[1, 2, 4, 5, 8, 10, 16]", "few_shot.percents=[10, 50, 100]",
         "few_shot.draws=10",
         "captions={size: 64, n_public: 1500, n_elite: 400, n_eval_train: 150, n_eval_test: 300}", "evaluation.bootstrap=1000", "linear_probe.draws=5",
         "fine_tuning={enabled: true, percents: [10, 100], training: {steps: 150}}", "segmentation={models: [start, public, keepfit], n_train: 48, n_val: 16, n_test: 40, steps: 45, check_every: 15}", "retrieval.eyes=100")
REAL = (VARIANTS.format(''), "fine_tuning={enabled: true, tasks: 3, ways: [full], batch_size: 16, training: {steps: 80}}", "explain.eyes=0", "retrieval.eyes=0")      # a fine-tuning of 300 steps is for a GPU
ROWS = ("images.size=96",
        f"ablation={{rows: [{', '.join(grid())}], seeds: [0], steps: 100, processes: {os.cpu_count()}, draws: 1000}}")      # of chapter 20, on real images
TOLD = ("ACA", "AUC", "kappa", "Dice", "R@1", "R@10", "mAP", "nDCG@10", "BLEU", "ROUGE-L", "CIDEr", "findings F1", "pointing game", "pointing gain", "overlap", "heat inside", "same category")


def save(part, values):
    "Replace a part's values; the other parts stay. The ablation's names begin with the kind of question, all others with the part."
    named = values if part == "ablation" else {f"{part}.{k}": v for k, v in values.items()}
    gone = tuple({f"{k.split('.')[0]}." for k in named})
    old = {k: v for k, v in read_json(RESULTS, {}).items() if not k.startswith(gone)}
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, dict(sorted({**old, **named}.items())))


def chain(profile, folder, *words):
    "Run a chain in a process of its own, as a user would; its manifest."
    done = subprocess.run([sys.executable, "-m", "keepfit_nb.running", "run", "--profile", profile, "--run-dir", str(folder), *words], cwd=project_root())
    if done.returncode: sys.exit(f"the chain of profile {profile} ended with {done.returncode}; run the study again to go on")
    return read_json(project_root() / folder / "manifest.json")


def run_facts(manifest):
    verdict = manifest["chapters"].get("14_evaluation", {}).get("metrics", {}).get("leak_verdict")
    return ({"leaks": verdict} if verdict else {}) | dict(run=f"{manifest['run']} at {manifest['commit'][:10]}", begun=manifest.get("first_started", manifest["started"]),
                device=f"{manifest['device']}, {manifest['cores']} cores",
                seconds=round(sum(c["seconds"] for c in manifest["chapters"].values())))


def settings(*words):
    return [w for word in words for w in ("--set", word)]


def tell(rows, name):
    "benchmarks/results/<name>.csv: every protocol and model, mean over the seeds; of single fine questions only the means stay, of few-shot only ACA."
    keys = ["model", "set", "task", "kind", "modality", "protocol", "shots", "metric"]
    rows = rows[rows.metric.isin(TOLD) & (rows.task.str.startswith("macro") | ~rows.task.str.contains(": "))].fillna({"shots": 0})
    rows = rows[(rows.shots == 0) & ~rows.protocol.str.endswith(" %") | (rows.metric == "ACA")]
    means = rows.groupby(keys, sort=False).agg(value=("value", "mean"), low=("low", "mean"), high=("high", "mean"), n=("n", "mean"), seeds=("seed", "nunique")).reset_index()
    means.round({"shots": 0, "n": 0}).astype({"shots": int, "n": int}).to_csv(RESULTS.with_name(f"{name}.csv"), index=False, float_format="%.4f", lineterminator="\n")


def spark():
    "Demonstration 1: five variants, two seeds, every protocol; zero-shot ACA by modality, coarse and fine, and the gains paired by seed."
    from keepfit_nb.report import overview_rows, read_results
    folder = "runs/study_spark"
    manifest = chain("demo", folder, "--seed", str(EYES), *settings(*SPARK), "--only", *NEEDED)
    rows = read_results(project_root() / folder)
    tell(rows, "spark")
    values = run_facts(manifest)
    for r in overview_rows(rows).itertuples():
        name = f"{r.model}.{r.modality}.{r.kind}"
        values |= {f"{name}.aca": r.value, f"{name}.low": r.low, f"{name}.high": r.high, f"{name}.sd": r.sd, f"{name}.n": r.n, f"{name}.seeds": r.seeds}
    values |= gains(rows)
    return values


def gains(rows):
    "Mean gain in fine-grained ACA over the modalities, paired by seed, with every seed's own value."
    fine = rows[(rows.protocol == "zero-shot") & (rows.metric == "ACA") & (rows.kind == "fine") & rows.task.str.startswith("macro")]
    table = fine.pivot_table(index="seed", columns="model", values="value")
    out = {}
    for new, old in (("elite", "public"), ("keepfit", "public"), ("keepfit", "elite")):
        gap = table[new] - table[old]
        out |= {f"gain.{new}_over_{old}": float(gap.mean()), f"gain.{new}_over_{old}.sd": float(gap.std()),
                f"gain.{new}_over_{old}.seeds": ", ".join(f"{v:.3f}" for v in gap)}
    return out


def real():
    "Demonstration 2: the chain on real images, every protocol by source. Aggregates only; study.json has zero-shot and linear probe, real.csv all."
    from keepfit_nb.report import read_results
    if not (real_folder() / "records.csv").exists(): return print("real: no images at KEEPFIT_REAL; part left out")
    folder = "runs/study_real"
    manifest = chain("real", folder, *settings(*REAL), "--only", *NEEDED)
    rows = read_results(project_root() / folder)
    rows = rows[rows.set != "phantoms"]; tell(rows, "real")
    values = run_facts(manifest)
    for r in rows[(rows.metric == "ACA") & rows.protocol.isin(["zero-shot", "linear probe, tuned"])].itertuples():
        name = f"{r.set}.{r.modality}.{r.protocol}.{r.model}.{r.task}".replace(" ", "_")
        values |= {f"{name}.aca": r.value, f"{name}.low": r.low, f"{name}.high": r.high, f"{name}.n": r.n}
    return values


def real_rows():
    "The rows of chapter 20 on real images, as far as their labels go: every source asked by itself. real_rows_means.csv and real_rows_gains.csv."
    import pandas as pd
    if not (real_folder() / "records.csv").exists(): return print("real_rows: no images at KEEPFIT_REAL; part left out")
    folder = "runs/study_real_rows"
    manifest = chain("real", folder, *settings(*ROWS), "--only", "03d", "05", "06", "07", "09", "11", "20")
    for name in ("means", "gains"):
        table = pd.read_csv(project_root() / folder / "20_ablation" / f"{name}.csv")
        table.to_csv(RESULTS.with_name(f"real_rows_{name}.csv"), index=False, float_format="%.4f", lineterminator="\n")
    return run_facts(manifest) | {k: v for k, v in manifest["chapters"]["20_ablation"]["metrics"].items() if ".aca." in k or ".gain." in k}


def learnability():
    "Is a disease learnable from its lesions, and from nothing else? A supervised CNN against colour histograms, per modality."
    from keepfit_nb.angiography import render_angiogram
    from keepfit_nb.fundus import learnability as measure, render_fundus
    from keepfit_nb.oct import render_oct
    values = {}
    for modality, render in (("CFP", render_fundus), ("FFA", render_angiogram), ("OCT", render_oct)):
        start = time.time()
        found = measure(render, modality, n_train=4000, n_test=800, size=64, steps=1200, seed=0)
        values |= {f"{modality}.{k}": v for k, v in found.items()} | {f"{modality}.seconds": round(time.time() - start)}
        print("learnability", modality, found, flush=True)
    return values


def measured(*names):
    "A part that is measured by files beside this one: their `measure()` joined, with the machine and the time."
    def part():
        values = dict(machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        for name in names:
            start = time.time()
            found = importlib.import_module(name).measure()
            if found: values |= {NAMES.get((name, k), k): v for k, v in found.items()} | {f"{name}.took_seconds": round(time.time() - start)}
        return values if len(values) > 1 else {}
    return part


def ablation():
    "Every part of the method on and off (chapter 20): cell by cell in runs/study_ablation, and on with what is there when it was stopped."
    import ablation as study
    return study.measure()


NAMES = {("captions", "consistency"): "caption_consistency"}      # (file, its name) → the name in the study
FILES = dict(records=("records_million",), phantoms=("captions", "phantom_speed"), atlas=("atlas",), realism=("realism",), speed=("loading", "step_speed", "evaluation", "few_shot", "linear_probe"),
             mlm=("mlm",), tokenizer=("tokenizer",), caption=("captioning",), segmentation=("segmentation",), retrieval=("retrieval",), explain=("explain",))      # part → the files beside this one that measure it
PARTS = {part: measured(*files) for part, files in FILES.items()} | dict(learnability=learnability, ablation=ablation, spark=spark, real=real, real_rows=real_rows)
CAMERAS = ("fundus", "angiography", "oct")
MODULES = dict(records=("records", "leaks"), phantoms=("captions", "reading", *CAMERAS), atlas=("atlas", "pages", "houses"), realism=CAMERAS, learnability=CAMERAS, speed=("images", "decoding", "training", "pretraining",
               "measures", "embeddings", "zero_shot", "adapters", "logistic"), mlm=("text_pretraining",), tokenizer=("tokenizer",), caption=("decoder", "captions"),
               segmentation=("masks", "segmentation"), retrieval=("ranking", "retrieval", "captioning"), explain=("saliency", "explain"))    # the chains and the ablation check themselves


def code_of(part):
    "Fingerprint of what a part measures and how; empty for the chains, which check themselves."
    own = [hashlib.sha256((Path(__file__).parent / f"{n}.py").read_bytes()).hexdigest()[:6] for n in FILES.get(part, ())]
    return "-".join([source_fingerprint(m)[:6] for m in MODULES[part]] + own) if part in MODULES else ""


def main():
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    for part in ask.parse_args().only:
        code = code_of(part)
        if code and read_json(RESULTS, {}).get(f"{part}.code") == code: print(f"{part}: measured with this code already"); continue
        print(f"== {part}", flush=True)
        values = PARTS[part]()
        if values: save(part, values | ({"code": code} if code else {}))
    print(f"study: {len(read_json(RESULTS, {}))} values in {RESULTS.relative_to(project_root())}")


if __name__ == "__main__": main()
