"Photographs in class folders, one camera, no fine question: what many readers bring."
import json

import numpy as np, pandas as pd, pytest
from PIL import Image

from keepfit_nb.captions import render
from keepfit_nb.eye import sample_eye

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1900)]


CHAPTERS = "03d 05 06 07 11.1 11 13.1 13.2 13 13a.1 13a 14 15 16 17 17a 17b 18 19 20 21".split()


def test_chapters_run_on_images_of_ones_own(cli, tmp_path):
    "The chapters that show the method on the run's images, every protocol, chapter 20 and the report get through."
    for disease in ("glaucoma", "diabetic retinopathy"):
        (tmp_path / "eyes" / disease).mkdir(parents=True)
        for k in range(60): Image.fromarray(render(sample_eye(1000 + k, disease), "CFP", 64)).save(tmp_path / "eyes" / disease / f"{k}.png")
    sets = [dict(name="mine", reader="folder", path=str(tmp_path / "eyes"), modality="CFP"), dict(name="phantoms", reader="phantoms", roles=dict(elite=["elite"]))]
    done = cli("run", "--profile", "smoke", "--run-dir", tmp_path / "run", "--set", f"sources.sets={json.dumps(sets)}", "--set", "running.jobs=2", "--set", "images.size=80", "--only", *CHAPTERS, timeout=1700)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = pd.read_csv(tmp_path / "run" / "20_ablation" / "gains.csv")
    assert set(found.kind) == {"coarse"} and np.isfinite(found.gain).all()
    rows = pd.read_parquet(tmp_path / "run" / "21_report" / "results.parquet")
    assert set(rows[rows.set == "mine"].protocol) >= {"zero-shot", "prototype", "linear probe", "image to text"} and set(rows[rows.set != "mine"].protocol.str.split(",").str[0]) <= {"where", "segmentation"}
    page = (tmp_path / "run" / "21_report" / "report.html").read_text(); assert "CFP · mine" in page and "<th>chance</th>" in page
