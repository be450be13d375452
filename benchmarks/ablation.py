"""The ablation study of chapter 20: its bundle, and its figures for `study.json`.

    python benchmarks/ablation.py bundle DIR          simulate eyes, withhold diseases, pack (about 10 minutes on 2 cores)
    python -m keepfit_nb.ablation --bundle DIR …      train and examine, on any machine

The bundle needs about 35 MB. `--public 900 --elite 120 --test 60` makes a small one for a trial.
"""
import argparse
from pathlib import Path

from keepfit_nb.ablation import _bundle
from keepfit_nb.profiles import open_run, project_root, read_json

UNSEEN = ["cataract", "macular hole", "pathologic myopia", "retinitis pigmentosa"]
RESULTS = Path(__file__).parent / "results" / "ablation.json"


def bundle(folder, n_public=3000, n_elite=400, n_test=2030, size=64, run_dir="runs/study_ablation"):
    "Simulate, withhold, cache, learn a vocabulary, pack."
    run = open_run("20_ablation", "demo", run_dir, 0, {
        "captions.n_public": n_public, "captions.n_elite": n_elite, "captions.n_eval_train": 40, "captions.n_eval_test": n_test,
        "captions.size": size, "images.size": size, "sources.unseen": UNSEEN})
    inputs = {s: run.need(s) for s in ("06_images", "07_encoders")}
    return read_json(_bundle(run, Path(folder), inputs) / "bundle.json")


def measure():
    "Flat values of the study that was run last (benchmarks/results/ablation.json); nothing when there is none."
    return read_json(RESULTS, {})


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("what", choices=["bundle"]); ask.add_argument("folder")
    ask.add_argument("--public", type=int, default=3000, help="images a modality"); ask.add_argument("--elite", type=int, default=400, help="pairs a modality")
    ask.add_argument("--test", type=int, default=2030, help="held-out eyes a modality"); ask.add_argument("--size", type=int, default=64)
    ask.add_argument("--run-dir", default="runs/study_ablation")
    a = ask.parse_args()
    about = bundle(a.folder, a.public, a.elite, a.test, a.size, a.run_dir)
    print({k: about[k] for k in ("images", "public", "elite", "evaluation", "unseen")}, f"{len(about['questions'])} questions")


if __name__ == "__main__": main()
