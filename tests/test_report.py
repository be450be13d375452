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


def test_seeds_have_an_interval_of_their_own(tmp_path):
    from scipy.stats import t
    three = [rows(seed=s, value=v) for s, v in enumerate((.4, .5, .75))]; short = report.overview_rows(pd.DataFrame(three + [rows(model="public")])).set_index("model")
    half = t.ppf(.975, 2) * np.std([.4, .5, .75], ddof=1) / 3 ** .5
    assert short.loc["keepfit", ["seed_low", "seed_high"]].tolist() == pytest.approx([.55 - half, .55 + half]) and np.isnan(short.loc["public", "seed_low"])
    (tmp_path / "15_zero_shot").mkdir(); pd.DataFrame(three + [rows(model="public")]).to_parquet(tmp_path / "15_zero_shot" / "results.parquet")
    page = report.render(tmp_path).read_text()
    assert f"0.550 <small>[0.400, 0.600] seeds [{.55 - half:.3f}, {.55 + half:.3f}]</small>" in page and "<td>0.500 <small>[0.400, 0.600]</small></td>" in page


def test_every_protocol_has_a_line_a_question(tmp_path):
    seg = dict(protocol="segmentation, frozen", kind="segmentation", metric="Dice")
    table = pd.DataFrame([rows(task="macro fine phantoms CFP", kind="fine", value=.2), rows(task="phantoms CFP a: b", kind="fine", value=.9), rows(), rows(metric="AUC", value=.99), rows(model="chance", value=.25, low=np.nan, high=np.nan, n=np.nan),
                          rows(protocol="prototype", shots=5, seed=0, value=.3), rows(protocol="prototype", shots=5, seed=1, value=.5), rows(protocol="prototype", shots=1),
                          rows(task="phantoms CFP vessels", value=.6, **seg), rows(task="phantoms CFP exudates", value=.1, **seg), rows(protocol="injection", metric="same category"), rows(set="mine", modality="OCT", task="mine OCT diseases")])
    found = report.protocol_rows(table).set_index(["set", "protocol", "question", "model"]).value
    assert found.to_dict() == pytest.approx({("phantoms", "zero-shot: ACA", "fine", "keepfit"): .2, ("phantoms", "zero-shot: ACA", "coarse", "keepfit"): .5, ("phantoms", "zero-shot: ACA", "coarse", "chance"): .25,
        ("phantoms", "prototype, 5 shots: ACA", "coarse", "keepfit"): .4, ("phantoms", "prototype, 1 shot: ACA", "coarse", "keepfit"): .5, ("phantoms", "segmentation, frozen: Dice", "vessels", "keepfit"): .6,
        ("phantoms", "segmentation, frozen: Dice", "exudates", "keepfit"): .1, ("phantoms", "injection: same category", "coarse", "keepfit"): .5, ("mine", "zero-shot: ACA", "coarse", "keepfit"): .5})
    tables = dict(report.protocol_tables(table)); assert list(tables) == ["CFP · phantoms", "OCT · mine"] and report.protocol_tables(table.iloc[:0]) == []
    first = tables["CFP · phantoms"]; assert first.index("<th>chance</th>") < first.index("<th>keepfit</th>") and first.count("zero-shot: ACA") == 2 and "<td>100</td><td>0.250</td><td>0.500 <small>[0.400, 0.600]</small></td>" in first
    (tmp_path / "15_zero_shot").mkdir(); table.to_parquet(tmp_path / "15_zero_shot" / "results.parquet"); page = report.render(tmp_path).read_text()
    assert page.count("<details open>") == 1 and first in page and "0.990 <small>" in page.split('id="all"')[1]


def test_a_guess_stands_beside_every_aca(tmp_path):
    table = pd.DataFrame([rows(), rows(task="macro fine phantoms CFP", kind="fine"), rows(task="a", kind="fine"), rows(protocol="prototype", shots=5), rows(metric="AUC"), rows(task="of another stage"), rows(seed=1, model="public")])
    assert report.with_chance(table, tmp_path) is table                                     # no predictions, nothing to say
    folder = tmp_path / "15_zero_shot"; folder.mkdir(); said = lambda task, kind, classes: dict(set="phantoms", modality="CFP", kind=kind, task=task, probs=np.full(classes, 1 / classes), row=0)
    pd.DataFrame([said("coarse CFP", "coarse", 8), said("coarse CFP", "coarse", 8), said("a", "fine", 2), said("b", "fine", 4)]).to_parquet(folder / "predictions.parquet"); table.to_parquet(folder / "results.parquet")
    more = report.with_chance(table, tmp_path); luck = more[more.model == "chance"]; assert len(more) == len(table) + 4 and luck[["low", "high"]].isna().to_numpy().all()
    assert luck.set_index(["protocol", "task"]).value.to_dict() == {("zero-shot", "coarse CFP"): 1 / 8, ("zero-shot", "a"): .5, ("zero-shot", "macro fine phantoms CFP"): .375, ("prototype", "coarse CFP"): 1 / 8}
    short = report.overview_rows(more[more.task != "of another stage"]).set_index(["model", "kind"]).value; assert short["chance", "coarse"] == 1 / 8 and short["chance", "fine"] == .375
    figure = report.overview_figure(report.overview_rows(more[more.task != "of another stage"])); assert [ax.collections[0].get_segments()[0][:, 1].tolist() for ax in figure.axes] == [[1 / 8] * 2, [.375] * 2] and "chance" not in [t.get_text() for t in figure.axes[-1].get_legend().get_texts()]
    assert "<td>chance</td>" in report.render(tmp_path).read_text() and "<th>chance</th>" in report.render(tmp_path).read_text()


def test_rows_of_an_older_run_are_read(tmp_path):
    for name, more in (("15_zero_shot", {}), ("17_linear_probe", dict(variant="keepfit"))):
        (tmp_path / name).mkdir(); pd.DataFrame([rows(protocol=name, **more)]).to_parquet(tmp_path / name / "results.parquet")
    table = report.read_results(tmp_path); assert table.variant.tolist() == ["", "keepfit"] and set(report.COLUMNS) <= set(table) and report.render(tmp_path).exists()


def test_the_verdict_of_the_leak_check_stands_on_the_page(tmp_path):
    (tmp_path / "14_evaluation").mkdir(); write_json(tmp_path / "14_evaluation" / "metrics.json", dict(leaks=1, leak_verdict="1 test images were in training (1 near copy); left out"))
    assert "(1 near copy); left out." in report.render(tmp_path).read_text()


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


# ---- published figures, comparisons, exports, cards

def test_published_figures_are_quoted_with_their_source():
    from keepfit_nb.published import published_figures
    t = published_figures(); at = lambda m, s, p, k=0: t[(t.method == m) & (t.set == s) & (t.protocol == p) & (t.shots == k)].value.tolist()
    assert at("KeepFIT V1", "REFUGE", "zero-shot") == [.941] and at("FLAIR", "ODIR200x3", "zero-shot") == [.403] and at("KeepFIT V1", "ODIR200x3", "CLIP-Adapter", 5) == [.878]
    assert at("MedKCO", "OCTID", "zero-shot") == [.778] and t[t.method == "KeepFIT V2"].value.isna().all() and t.caveat.ne("").all()
    from keepfit_nb.registry import load_registry
    assert set(t.set) <= set(load_registry())


def test_ours_never_fills_a_cell_that_was_not_run():
    from keepfit_nb.published import NOT_RUN, beside
    mine = rows(set="REFUGE", task="REFUGE glaucoma", metric="AUC", value=.7, low=.6, high=.8, n=80)
    key = lambda t: t.set_index(["set", "protocol", "shots", "metric"])["this run, keepfit"]
    got = key(beside(pd.DataFrame([mine]), "keepfit")); assert got["REFUGE", "zero-shot", 0, "AUC"] == "0.700 [0.600, 0.800]" and (got == NOT_RUN).sum() == len(got) - 1
    for other in (dict(metric="ACA"), dict(model="public"), dict(protocol="zero-shot, ensemble"), dict(shots=1), dict(kind="fine"), dict(modality="OCT"), dict(task="REFUGE (1 of 2 classes)")):
        changed = pd.DataFrame([{**mine, **other}])
        if other.get("metric") == "ACA": assert key(beside(changed, "keepfit"))["REFUGE", "zero-shot", 0, "AUC"] == NOT_RUN
        else: assert (key(beside(changed, "keepfit")) == NOT_RUN).all(), other


def test_the_page_holds_comparisons_published_figures_and_cards(tmp_path):
    from keepfit_nb.comparisons import corrected
    folder = tmp_path / "15_zero_shot"; folder.mkdir(); bad = "<script>1</script>"
    pd.DataFrame([rows(), rows(metric="AUC", value=.6), rows(model="public")]).to_parquet(folder / "results.parquet")
    corrected([dict(protocol="zero-shot", task=bad, a="keepfit", b="public", seed=0, metric="ACA", difference=.1, low=.05, high=.15, n=50, a_only=9, b_only=1, p_bootstrap=.0004,
                    p_mcnemar=.02, p_delong=np.nan)]).to_parquet(folder / "comparisons.parquet")
    page = report.render(tmp_path).read_text(); assert "<th>p_mcnemar_holm</th>" in page and page.count("<td>0.020</td>") == 2
    pd.read_parquet(folder / "comparisons.parquet").drop(columns=["p_mcnemar_holm", "p_delong_holm"]).to_parquet(folder / "comparisons.parquet")
    assert set(report.versus_rows(tmp_path).p_mcnemar_holm) == {"–"}                       # of an older run
    assert "0.100 <small>[0.050, 0.150]" in page and "&lt;.001" in page and "<script>" not in page and "0.941 (1)" in page and "not run" in page
    assert page.index("In short") < page.index("<h2>Every protocol") < page.index("What beats what") < page.index("Beside published figures") < page.index("What was trained") < page.index(">All results</h2>") < page.index("<h2>Cost")


def test_exports_agree(tmp_path):
    (tmp_path / "15_zero_shot").mkdir(); pd.DataFrame([rows(), rows(task="a & b_c", value=.25)]).to_parquet(tmp_path / "15_zero_shot" / "results.parquet")
    results = report.read_results(tmp_path); files = {p.name: p for p in report.export_results(tmp_path, results, "keepfit")}
    pd.testing.assert_frame_equal(pd.read_parquet(files["results.parquet"]), results); pd.testing.assert_frame_equal(pd.read_csv(files["results.csv"]).assign(variant=lambda t: t.variant.astype(object).fillna("")), results, check_dtype=False)
    tex = files["results.tex"].read_text(); assert r"a \& b\_c" in tex and "0.250 [0.400, 0.600]" in tex and tex.count(r"\begin{tabular}") == 1
    for card in ("model_card.md", "dataset_card.md"): assert DISCLAIMER in files[card].read_text() and "Intended use" in files[card].read_text()
    assert "0.250" in files["model_card.md"].read_text()
    empty = report.export_results(tmp_path / "empty", results.iloc[:0], "keepfit"); assert all(p.exists() for p in empty)


def test_cost_in_one_sentence(tmp_path):
    for name, s, gb in (("05_sources", 60., .5), ("13_pretraining", 120., 2.)):
        (tmp_path / name).mkdir(); write_json(tmp_path / name / "manifest.json", dict(status="ok", seconds=s, peak_memory_gb=gb))
    assert report.cost_sum(report.cost_rows(tmp_path, {})) == "2 chapters took 3.0 minutes together; the longest was 13_pretraining (120 s); at most 2.0 GB were in use."
    assert "No chapter" in report.cost_sum(report.cost_rows(tmp_path / "none", {}))
