"Chapter 17: the probe against scikit-learn, C chosen without the test set."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from evaluation_bench import fake_run, make_bench

from keepfit_nb import linear_probe as lp
from keepfit_nb.profiles import check_section


def blobs(n=40, dim=6, seed=0, c=3):
    rng = np.random.default_rng(seed); y = np.repeat(np.arange(c), n)
    return 1.2 * np.eye(c, dim)[y] + rng.normal(size=(c * n, dim)), y


@pytest.mark.parametrize("standardise", [False, True])
def test_probe_is_scikit_learns(standardise):
    x, y = blobs(); z = StandardScaler().fit_transform(x) if standardise else x
    ours = lp.fit_probe(x, y, .316, standardise)
    theirs = LogisticRegression(C=.316, class_weight="balanced", tol=1e-8, max_iter=1000).fit(z, y)
    assert np.allclose(lp.probe_probs(ours, x, 3), theirs.predict_proba(z), atol=1e-6)
    assert np.abs(ours.coef[0] * ours.spread - theirs.coef_).max() < 1e-3


@pytest.mark.parametrize("c, standardise", [(2, False), (2, True), (4, False), (4, True)])
def test_folds_and_candidates_side_by_side_are_scikit_learns(c, standardise):
    x, y = blobs(20, 30, 3, c); x = x * np.linspace(.1, 5, 30); fold = np.arange(len(y)) % 3; grid = [.01, 1., 50.]
    fit = lp.fit_probes(x, y, np.repeat([fold != f for f in range(3)], 3, 0), grid * 3, standardise)
    for f in range(3):
        for k, C in enumerate(grid):
            t = fold != f; z = StandardScaler().fit(x[t]) if standardise else StandardScaler(with_mean=False, with_std=False)
            theirs = LogisticRegression(C=C, class_weight="balanced", tol=1e-8, max_iter=10_000).fit(z.fit_transform(x[t]), y[t])
            w = fit.coef[3 * f + k] * fit.spread[3 * f + k]
            assert np.abs((np.diff(w, axis=0) if c == 2 else w) - theirs.coef_).max() < 1e-3
            assert np.allclose(lp.probe_probs(fit, x, c)[3 * f + k], theirs.predict_proba(z.transform(x)), atol=1e-4)          # lbfgs stops a little before


def test_rare_classes_keep_their_say():
    x, y = blobs(60); keep = np.r_[0:60, 60:64, 120:180]
    model = lp.fit_probe(x[keep], y[keep]); said = lp.probe_probs(model, blobs(60, seed=1)[0], 3).argmax(1)
    assert (said[60:120] == 1).mean() > .3


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.integers(2, 4))
def test_probabilities(seed, c):
    x, y = blobs(12, 5, seed, c); p = lp.probe_probs(lp.fit_probe(x, y), x, c + 1)
    assert p.shape == (len(x), c + 1) and np.allclose(p.sum(1), 1) and (p[:, c] == 0).all()


@pytest.mark.parametrize("x, y, words", [(np.ones((3, 2)), [0, 0, 0], "two classes"), (np.full((2, 2), np.nan), [0, 1], "diverge"), (np.ones((3, 2)), [0, 1], "expected features")])
def test_bad_features_are_refused(x, y, words):
    with pytest.raises(ValueError, match=words): lp.fit_probe(x, np.array(y))


def test_a_class_absent_in_a_fold_or_features_of_another_model():
    x, y = blobs(5)
    with pytest.raises(ValueError, match="probe 1 has no training row of class 2"): lp.fit_probes(x, y, [y >= 0, y != 2], [1., 1.])
    with pytest.raises(ValueError, match="another model"): lp.probe_probs(lp.fit_probe(x, y), x[:, :4], 3)
    with pytest.raises(ValueError, match="diverge"): lp.choose_c(x * np.nan, y)
    lone = lp.fit_probe(x[[0, 5, 10]], y[[0, 5, 10]])                                    # one sample a class
    assert np.isfinite(lone.coef).all() and (lp.probe_probs(lone, x[[0, 5, 10]], 3).argmax(1) == [0, 1, 2]).all()


def test_choice_of_c_prefers_what_generalises():
    rng = np.random.default_rng(0); x, y = blobs(30); wide = np.c_[x, rng.normal(size=(90, 80))]
    C, curve = lp.choose_c(wide, y, grid=(.001, .01, 100.))
    assert C < 100 and len(curve) == 3 and max(curve) == curve[[.001, .01, 100.].index(C)]
    assert lp.choose_c(wide, y, seed=3) == lp.choose_c(wide, y, seed=3)


def test_choice_of_c_keeps_patients_together():
    x, y = blobs(30, 90, 1); twins = np.repeat(x[::2], 2, 0); labels = np.repeat(y[::2], 2); who = [f"p{i // 2}" for i in range(len(labels))]
    assert max(lp.choose_c(twins, labels, who)[1]) < max(lp.choose_c(twins, labels)[1]) - .05


def test_too_few_patients_fall_back():
    x, y = blobs(5); who = ["a"] * 5 + ["b"] * 5 + ["c"] * 5
    assert lp.choose_c(x, y, who, fallback=.5) == (.5, [])
    assert lp.choose_c(x[:6], y[:6]) == (.316, [])
    assert lp.choose_c(x, y, grid=(.1,))[0] == .1


def test_stage_on_a_bench(tmp_path):
    make_bench(tmp_path / "14"); out = tmp_path / "17"; out.mkdir()
    got = lp.build(fake_run(tmp_path), out, lp.Settings(), {"14_evaluation": tmp_path / "14"})
    table = pd.read_parquet(out / "results.parquet"); aca = table[table.metric == "ACA"].set_index(["model", "protocol", "task"]).value
    assert aca["keepfit", "linear probe", "phantoms CFP diseases"] > .85 and aca["start", "linear probe, tuned", "phantoms CFP diseases"] > .85
    assert ("keepfit", "linear probe, tuned", "phantoms CFP glaucoma: cup") not in aca.index            # coarse only
    assert aca["keepfit", "linear probe", "macro fine phantoms CFP"] == pytest.approx(aca["keepfit", "linear probe", "phantoms CFP glaucoma: cup"])
    assert aca["keepfit", "linear probe, 10 %", "phantoms CFP diseases"] > .5 and got["not_converged"] == 0
    chosen = pd.read_csv(out / "chosen.csv"); assert len(chosen) == 6 and set(chosen[chosen.protocol == "linear probe"].C) == {.316}
    assert got["not_converged"] == 0 and got["aca_coarse_keepfit"] == pytest.approx(aca["keepfit", "linear probe", "phantoms CFP diseases"])


def test_held_out_answers_are_of_probes_that_had_not_seen_them():
    x, y = blobs(20, 30, 3); who = [f"p{i // 2}" for i in range(60)]
    held, there = lp.held_out_probs(x, y, 3, .316, who, 3, 5); assert there.all() and np.allclose(held.sum(1), 1)
    for train, val in lp._folds(y, who, 3, 5):
        assert not {who[i] for i in train} & {who[i] for i in val}
        assert np.allclose(held[val], lp.probe_probs(lp.fit_probe(x[train], y[train]), x[val], 3), atol=1e-6)
    assert not lp.held_out_probs(x[:21], y[:21], 3)[1].any()


def test_several_findings_take_their_thresholds_from_training_folds():
    from keepfit_nb.measures import best_thresholds
    rng = np.random.default_rng(0); x, z = rng.normal(size=(2, 90, 6)); rule = lambda x: np.c_[x[:, 0] > 0, x[:, 1] + x[:, 2] > 1, np.zeros(len(x)), np.ones(len(x)), np.arange(len(x)) == 4].astype(int)
    Y, truth = rule(x), rule(z); scores, cut = lp.probe_multi(x, Y, z)
    for k in (0, 1):
        theirs = LogisticRegression(C=.316, class_weight="balanced", tol=1e-8, max_iter=1000).fit(x, Y[:, k]); assert np.allclose(scores[:, k], theirs.predict_proba(z)[:, 1], atol=1e-6)
        assert cut[k] == best_thresholds(Y[:, [k]], lp.held_out_probs(x, Y[:, k], 2)[0][:, [1]])[0]
    said = scores > cut; assert (said == truth)[:, :2].mean() > .85 and not said[:, 2].any() and said[:, 3].all() and cut[4] == .5      # a finding of one eye: no folds


def test_stage_asks_several_findings_and_operating_points(tmp_path):
    from keepfit_nb.evaluation import Bench
    from keepfit_nb.profiles import read_json, write_json
    make_bench(tmp_path / "14"); about = read_json(tmp_path / "14" / "tasks.json")
    about["tasks"].append(about["tasks"][0] | dict(name="phantoms CFP findings", multi_label=True)); write_json(tmp_path / "14" / "tasks.json", about); out = tmp_path / "17"; out.mkdir()
    lp.build(fake_run(tmp_path), out, lp.Settings(), {"14_evaluation": tmp_path / "14"})
    table = pd.read_parquet(out / "results.parquet"); many = table[table.task == "phantoms CFP findings"]; bench = Bench(tmp_path / "14")
    assert set(many.model) == {"keepfit", "start"} and set(many.metric) == {"AUC", "AUPR", "macro F1", "subset accuracy"} and many[many.metric == "AUC"].value.min() > .9
    point = table[table.metric == "sensitivity"]; assert set(point.protocol) == {"linear probe", "linear probe, tuned"} and set(point.task) == {"phantoms CFP diseases"} and (point.value > .6).all()
    task = bench.tasks[0]; (train, y), (test, truth) = bench.rows(task, "train"), bench.rows(task); e = bench.embeddings("keepfit", 0)
    held, _ = lp.held_out_probs(e.of(train, "unprojected"), y, 3, .316, bench.patients(train), 3, bench.draw_seed(task.name)); probs = lp.probe_probs(lp.fit_probe(e.of(train, "unprojected"), y), e.of(test, "unprojected"), 3)
    line = np.sort(1 - held[y == 0, 0])[int(np.ceil(.9 * (y == 0).sum())) - 1]
    assert point[(point.model == "keepfit") & (point.protocol == "linear probe")].value.item() == pytest.approx((1 - probs[truth > 0, 0] > line).mean())
    assert dict(zip(table.model, table.variant)) == {"keepfit": "keepfit", "start": ""}


def test_the_default_variant_is_compared_with_wordless_models(tmp_path):
    make_bench(tmp_path / "14", models=(("keepfit", 0), ("public", 0), ("start", 0))); out = tmp_path / "17"; out.mkdir()
    from keepfit_nb.embeddings import Embeddings, save_embeddings
    rows = Embeddings(tmp_path / "14" / "start" / "0.parquet").rows; blind = np.random.default_rng(9).normal(size=(len(rows), 8)).astype(np.float32)
    save_embeddings(tmp_path / "14" / "start" / "0.parquet", {"rows": rows, "unprojected": blind}, "f00d")          # an encoder that sees nothing
    got = lp.build(fake_run(tmp_path), out, lp.Settings(), {"14_evaluation": tmp_path / "14"}); table = pd.read_parquet(out / "comparisons.parquet")
    assert set(zip(table.a, table.b)) == {("keepfit", "public"), ("keepfit", "start")} and set(table.protocol) == {"linear probe", "linear probe, tuned"} and got["comparisons"] == len(table)
    row = table[(table.b == "start") & (table.task == "phantoms CFP diseases")]; assert (row.difference > .3).all() and (row.p_mcnemar < .01).all() and (row.p_holm >= row.p_bootstrap).all()
    same = table[table.b == "public"]; assert (same.difference == 0).all() and "macro fine phantoms CFP" in set(table.task)
    from keepfit_nb.report import versus_rows
    (tmp_path / "run").mkdir(); out.rename(tmp_path / "run" / "17_linear_probe"); assert len(versus_rows(tmp_path / "run")) == len(table)


def test_settings():
    with pytest.raises(ValueError, match="did you mean 'folds'"): check_section({"fold": 3}, lp.Settings, "section 'linear_probe'")
    with pytest.raises(ValueError, match="folds"): check_section({"folds": 1}, lp.Settings, "section 'linear_probe'")
