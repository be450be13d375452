"All chapters as one chain, through papermill: it ends well, and what its last stages left."
import json
from pathlib import Path

import numpy as np, pandas as pd, pytest

from keepfit_nb.evaluation import RESULT_COLUMNS
from keepfit_nb.profiles import MODALITIES, chapters, read_json

from test_running import ended_well

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4600)]


@pytest.fixture(scope="module")
def whole_run(cli, tmp_path_factory):
    "Folder of a smoke run of every chapter, two at once where they may."
    folder = tmp_path_factory.mktemp("chain") / "run"
    done = cli("run", "--profile", "smoke", "--run-dir", folder, "--jobs", "2", timeout=4500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_whole_chain_ends_well(whole_run):
    ended_well(whole_run, list(chapters()))
    page = (whole_run / "21_report" / "report.html").read_text()
    assert "18_retrieval" in page and "across cameras" in page and "19_explain" in page      # of the stages before it: results and cost


def test_one_job_leaves_the_same_artefacts(whole_run, cli, tmp_path):
    "The beginning of the chain, one chapter after the other: fingerprints, settings and files as with two jobs."
    names = ["03d_captions", "05_sources", "06_images"]; folder = tmp_path / "run"
    done = cli("run", "--profile", "smoke", "--run-dir", folder, "--only", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    times = {n: e["started"] for n, e in read_json(folder / "manifest.json")["chapters"].items()}
    assert times["03d_captions"] <= times["05_sources"] <= times["06_images"]
    def seen(run, name):                                                              # a table's paths name the folder of their run; its rows are compared
        table = lambda p: pd.read_parquet(p).to_json().replace(str(run).replace("/", "\\/"), "RUN").encode()
        kept = {".parquet": table, **dict.fromkeys((".npy", ".csv", ".png", ".jpg", ".bin"), Path.read_bytes)}
        return {str(p.relative_to(run)): kept[p.suffix](p) for p in sorted((run / name).rglob("*")) if p.suffix in kept}
    for name in names:
        one, two = (read_json(place / name / "manifest.json") for place in (whole_run, folder))
        assert one["fingerprint"] == two["fingerprint"] and one["settings"] == two["settings"]
        a, b = seen(whole_run, name), seen(folder, name)
        assert a and a.keys() == b.keys() and not [k for k in a if a[k] != b[k]]


def test_the_stage_of_retrieval(whole_run):
    folder = whole_run / "18_retrieval"; table = pd.read_parquet(folder / "results.parquet")
    assert set(table.protocol) == {"image to image", "image to text", "text to image", "across cameras", "captioning, nearest caption"}
    assert {"public", "keepfit", "start", "supervised", "chance"} <= set(table.model) and list(table.columns) == list(RESULT_COLUMNS)
    assert not set(table[table.model.isin(["start", "supervised"])].protocol) - {"image to image", "across cameras"}          # no words
    drawn = [json.loads(line) for line in (folder / "photos.jsonl").open()]
    with np.load(folder / "eyes.npz", allow_pickle=False) as z: assert all(z[k].shape[0] == len(drawn) for k in z.files)
    assert len(pd.read_parquet(folder / "captions.parquet"))


def test_the_stage_of_explanations(whole_run):
    folder = whole_run / "19_explain"; table = pd.read_parquet(folder / "results.parquet")
    assert {"keepfit", "public", "start", "chance", "centre"} <= set(table.model) and "injection" in set(table.protocol)
    assert not table.duplicated(["model", "seed", "set", "task", "kind", "modality", "protocol", "metric"]).any()
    assert set(pd.read_parquet(folder / "map.parquet").model) == {"keepfit", "public", "supervised", "start"} and len(pd.read_parquet(folder / "failures.parquet"))
    pairs = pd.read_parquet(folder / "retrieved.parquet"); assert set(pairs.modality) == set(MODALITIES) and pairs.share.between(0, 1).all()


def test_every_stage_says_what_it_took(whole_run):
    for name in ("13a_baselines", "14_evaluation", "17a_fine_tuning", "17b_segmentation", "18_retrieval", "19_explain"):
        manifest = read_json(whole_run / name / "manifest.json")
        assert manifest["status"] == "ok" and manifest["seconds"] > 0 and manifest["peak_memory_gb"] > 0, name
