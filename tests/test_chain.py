"All chapters as one chain, through papermill: it ends well, and what its last stages left."
import json

import numpy as np, pandas as pd, pytest

from keepfit_nb.evaluation import RESULT_COLUMNS
from keepfit_nb.profiles import MODALITIES, chapters, read_json

from test_running import ended_well

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def whole_run(cli, tmp_path_factory):
    "Folder of a smoke run of every chapter."
    folder = tmp_path_factory.mktemp("chain") / "run"
    done = cli("run", "--profile", "smoke", "--run-dir", folder, timeout=2900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_whole_chain_ends_well(whole_run):
    ended_well(whole_run, list(chapters()))
    page = (whole_run / "21_report" / "report.html").read_text()
    assert "18_retrieval" in page and "across cameras" in page and "19_explain" in page      # of the stages before it: results and cost


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


def test_chapters_run_on_images_of_ones_own(cli, tmp_path):
    "Class folders of photographs, one camera, no fine question: the chapters that show the method on the run's images, and chapter 20, get through."
    from PIL import Image
    from keepfit_nb.captions import render
    from keepfit_nb.eye import sample_eye
    for disease in ("glaucoma", "diabetic retinopathy"):
        (tmp_path / "eyes" / disease).mkdir(parents=True)
        for k in range(14): Image.fromarray(render(sample_eye(1000 + k, disease), "CFP", 64)).save(tmp_path / "eyes" / disease / f"{k}.png")
    sets = [dict(name="mine", reader="folder", path=str(tmp_path / "eyes"), modality="CFP"), dict(name="phantoms", reader="phantoms", roles=dict(elite=["elite"]))]
    done = cli("run", "--profile", "smoke", "--run-dir", tmp_path / "run", "--set", f"sources.sets={json.dumps(sets)}", "--only", "03d", "05", "06", "07", "11.1", "11", "20", timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = pd.read_csv(tmp_path / "run" / "20_ablation" / "gains.csv")
    assert set(found.kind) == {"coarse"} and np.isfinite(found.gain).all()
