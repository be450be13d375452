"Chapter 21: rows to tables, and pages for runs that are complete, partial or damaged."
import numpy as np, pandas as pd, pytest

from keepfit_nb import report
from keepfit_nb.profiles import DISCLAIMER, write_json


def rows(**changes):
    base = dict(run="r", model="keepfit", seed=0, set="phantoms", task="coarse CFP", kind="coarse", modality="CFP", protocol="zero-shot", shots=0,
                metric="ACA", value=.5, low=.4, high=.6, n=100)
    return {**base, **changes}


def test_overview_takes_macro_rows_and_lonely_tasks():
    table = pd.DataFrame([rows(), rows(task="a", kind="fine", value=.1), rows(task="b", kind="fine", value=.3), rows(task="macro fine", kind="fine", value=.2, low=.1, high=.3)])
    short = report.overview_rows(table).set_index("kind")
    assert short.loc["coarse", "value"] == .5 and short.loc["fine", "value"] == .2 and len(short) == 2


def test_overview_averages_seeds():
    short = report.overview_rows(pd.DataFrame([rows(value=.4), rows(seed=1, value=.6)]))
    assert len(short) == 1 and short.value[0] == pytest.approx(.5) and short.seeds[0] == 2 and short.sd[0] == pytest.approx(np.std([.4, .6], ddof=1))


def test_models_stand_in_the_order_of_the_story():
    wide = report.wide(pd.DataFrame([rows(model=m) for m in ("keepfit", "mine", "public", "elite")]), ["modality"])
    assert list(wide.model) == ["public", "elite", "keepfit", "mine"]


def test_text_is_escaped_everywhere(tmp_path):
    (tmp_path / "15_zero_shot").mkdir(); bad = "<script>alert(1)</script>"
    pd.DataFrame([rows(set=bad, task=bad, model=bad)]).to_parquet(tmp_path / "15_zero_shot" / "results.parquet")
    write_json(tmp_path / "manifest.json", {"run": bad, "profile": bad, "chapters": {bad: {"status": bad, "seconds": 1}}})
    page = report.render(tmp_path).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and DISCLAIMER in page


def test_empty_run_says_what_is_missing(tmp_path):
    page = report.render(tmp_path).read_text()
    assert page.count("No ") >= 3 and DISCLAIMER in page


def test_missing_columns_are_named(tmp_path):
    (tmp_path / "16_few_shot").mkdir(); pd.DataFrame({"value": [1.]}).to_parquet(tmp_path / "16_few_shot" / "results.parquet")
    with pytest.raises(ValueError, match="lacks the columns"): report.read_results(tmp_path)


def test_curves_of_all_variants(tmp_path):
    for variant in ("public", "keepfit"):
        folder = tmp_path / "13_pretraining" / variant / "0"; folder.mkdir(parents=True)
        (folder / "curves.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    assert set(report.read_curves(tmp_path).variant) == {"public", "keepfit"} and report.curves_figure(report.read_curves(tmp_path)).axes
