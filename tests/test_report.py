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


def test_what_was_unseen_copied_and_absent_stands_on_the_page(tmp_path):
    told = {"unseen": {"kind": "unseen", "names": ["macular hole"], "categories": ["macular hole"], "removed": {"elite": 3, "public": 5, "corpus": 11}},
            "near_copies": {"rule": "drop", "found": {"public": 2}, "dropped": 2}, "absent": {"LAG": "LAG: write to its owners <b>now</b>."}}
    (tmp_path / "05_sources").mkdir(); write_json(tmp_path / "05_sources" / "summary.json", told)
    page = report.render(tmp_path).read_text()
    for part in ("Kept unseen: macular hole", "3 elite, 5 public, 11 corpus", "(rule: drop): 2 public; dropped: 2", "1 set of the registry was absent", "<b>LAG</b>: write to its owners &lt;b&gt;now"):
        assert part in page, part
    write_json(tmp_path / "05_sources" / "summary.json", {"unseen": {**told["unseen"], "kind": "image-unseen"}, "near_copies": {"rule": "off", "found": {}, "dropped": 0}, "absent": {}})
    page = report.render(tmp_path).read_text()
    assert "Kept image-unseen" in page and "their words stayed" in page and "not looked for" in page and "absent" not in page.split("What was trained on what")[1]


def test_the_page_agrees_with_the_summary_of_a_real_stage(tmp_path):
    "Whatever chapter 05 really writes, not what this file believes it writes."
    from keepfit_nb import sources as M
    from keepfit_nb.replicas import make_replica
    make_replica("FIVES", tmp_path / "sets" / "fives", 6); make_replica("IDRiD", tmp_path / "sets" / "idrid", 6)
    roles, _, summary = M.gather(M.Settings(sets=[], root=str(tmp_path / "sets"), unseen=["glaucoma"]))
    summary["near_copies"].pop("rows"); (tmp_path / "run" / "05_sources").mkdir(parents=True); write_json(tmp_path / "run" / "05_sources" / "summary.json", summary)
    notes = " ".join(report.source_notes(tmp_path / "run"))
    assert "Kept unseen: glaucoma" in notes and "(rule: report)" in notes and f"{len(summary['absent'])} sets of the registry" in notes
    assert set(report.absent_sets(tmp_path / "run")) == set(summary["absent"]) and "LAG" in summary["absent"]
