"Chapter 14: metrics against scikit-learn, the bootstrap against its naive form, tasks, leaks, the bench."
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import (accuracy_score, balanced_accuracy_score, cohen_kappa_score, f1_score, roc_auc_score)

from evaluation_bench import make_bench, record

from keepfit_nb import evaluation as ev
from keepfit_nb.embeddings import embed
from keepfit_nb.evaluation import (METRICS, Bench, Embeddings, GroupSpec, ResultRow, Settings, bootstrap, interval, leak_check,
                                   left_out, macro, metrics, replicates, resample, save_embeddings, score, select, tasks_for)
from keepfit_nb.profiles import real_folder


def answers(seed=0, n=60, c=4, ties=False):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, c, n); y[:c] = np.arange(c)
    p = rng.random((n, c)) + .5 * np.eye(c)[y]
    if ties: p = np.round(p, 1) + .01
    return y, p / p.sum(1, keepdims=True)


# ---- metrics

@pytest.mark.parametrize("c", [2, 3, 7])
@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_scikit_learn(c, ties):
    y, p = answers(c, c=c, ties=ties)
    got, said = metrics(y, p), p.argmax(1)
    assert got["ACA"] == pytest.approx(balanced_accuracy_score(y, said), abs=1e-12)
    assert got["accuracy"] == pytest.approx(accuracy_score(y, said), abs=1e-12)
    assert got["macro F1"] == pytest.approx(f1_score(y, said, average="macro"), abs=1e-12)
    assert got["kappa"] == pytest.approx(cohen_kappa_score(y, said), abs=1e-12)
    assert metrics(y, p, ordinal=True)["kappa"] == pytest.approx(cohen_kappa_score(y, said, weights="quadratic"), abs=1e-12)
    auc = roc_auc_score(y, p[:, 1]) if c == 2 else roc_auc_score(y, p, multi_class="ovr")
    assert got["AUC"] == pytest.approx(auc, abs=1e-12)


def test_metrics_equal_torchmetrics():
    tm = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    import torch
    y, p = answers(1, n=200, c=5); t, q = torch.tensor(y), torch.tensor(p)
    f = tm.functional.classification
    got = metrics(y, p, ordinal=True)
    assert got["ACA"] == pytest.approx(float(f.multiclass_accuracy(q, t, 5, average="macro")), abs=1e-6)
    assert got["AUC"] == pytest.approx(float(f.multiclass_auroc(q, t, 5)), abs=1e-6)
    assert got["kappa"] == pytest.approx(float(f.multiclass_cohen_kappa(q, t, 5, weights="quadratic")), abs=1e-6)
    assert got["macro F1"] == pytest.approx(float(f.multiclass_f1_score(q, t, 5, average="macro")), abs=1e-6)


@pytest.mark.parametrize("y, p", [([1], [[.3, .7]]), ([0, 0, 0], [[.9, .1]] * 3), ([0, 1, 1], [[.5, .5]] * 3), ([0, 2], [[.2, .3, .5], [.1, .1, .8]])],
                         ids=["one row", "one class", "all equal", "class absent"])
def test_degenerate_cases_are_defined(y, p):
    got = metrics(y, p); same = replicates(y, p, np.ones((1, len(y))))
    for m in METRICS: assert np.isclose(got[m], same[m][0], equal_nan=True), m
    assert np.isfinite(got["ACA"]) and 0 <= got["ACA"] <= 1
    if len(set(y)) < 2: assert np.isnan(got["AUC"])
    for value, low, high in score(y, p, 30).values(): assert np.isnan(low) or low <= high


def test_an_absent_grade_keeps_its_distance():
    y, said = np.array([0, 0, 3, 3]), np.array([0, 3, 3, 3])
    assert metrics(y, np.eye(5)[said], ordinal=True)["kappa"] == pytest.approx(cohen_kappa_score(y, said, labels=range(5), weights="quadratic"))
    near, far = np.array([0, 1, 3, 3]), np.array([1, 0, 3, 0])                  # grade 2 is absent: 1 and 3 stay two apart
    for said in (near, far):
        assert metrics(y, np.eye(4)[said], ordinal=True)["kappa"] == pytest.approx(cohen_kappa_score(y, said, labels=range(4), weights="quadratic"))


def test_all_predictions_equal_is_chance():
    y, _ = answers(); got = metrics(y, np.tile([.7, .1, .1, .1], (60, 1)))
    assert got["ACA"] == pytest.approx(.25) and got["AUC"] == pytest.approx(.5) and got["kappa"] == pytest.approx(0)


def test_a_test_set_of_one_has_no_interval():
    for value, low, high in score([1], [[.2, .8]]).values(): assert np.isnan(low) and np.isnan(high)
    assert score([1], [[.2, .8]])["accuracy"][0] == 1.


@pytest.mark.parametrize("y, p, words", [
    ([], np.zeros((0, 3)), "no test rows"), ([0, 1], np.eye(3), "got"), ([0, 5], np.eye(2), "from 0 to 1"), ([0., 1.], np.eye(2), "integers"),
    ([0, -1], np.eye(2), "integers"), ([0, 1], [[np.nan, 1], [0, 1]], "1 rows hold NaN"), ([0, 0], [[1.], [1.]], "two classes")])
def test_wrong_answers_are_refused(y, p, words):
    with pytest.raises(ValueError, match=words): metrics(np.array(y), p)


def test_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match="unknown metric 'ACC'"): bootstrap([0, 1], np.eye(2), "ACC")


# ---- replicates and resampling

@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(4, 25), st.integers(0, 9999), st.booleans(), st.booleans())
def test_replicates_equal_metrics_on_the_drawn_rows(c, n, seed, ordinal, ties):
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, c, n), rng.random((n, c)) + 1e-3
    if ties: p = np.round(p, 1) + .1
    p /= p.sum(1, keepdims=True)
    w = rng.integers(0, 3, (3, n)).astype(float); w[:, 0] += 1
    got = replicates(y, p, w, ordinal)
    for b in range(3):
        pick = np.repeat(np.arange(n), w[b].astype(int))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for m, v in metrics(y[pick], p[pick], ordinal).items(): assert np.isclose(got[m][b], v, atol=1e-9, equal_nan=True), m


@settings(max_examples=40, deadline=None)
@given(arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 3)), st.integers(0, 999))
def test_resample_keeps_every_class_size(y, seed):
    w = resample(y, 20, seed)
    assert w.shape == (20, len(y)) and (w >= 0).all() and (w == resample(y, 20, seed)).all()
    for c in np.unique(y): assert (w[:, y == c].sum(1) == (y == c).sum()).all()


def test_resample_draws_patients_whole():
    who = np.repeat([f"p{i}" for i in range(10)], 3)
    w = resample(np.repeat([0, 1], 15), 50, 1, who).reshape(50, 10, 3)
    assert (w == w[:, :, :1]).all() and w.max() > 1
    assert (w[:, :, 0].sum(1) == 10).all()


def test_patients_make_intervals_wider():
    y = np.repeat([0, 1], 60); rng = np.random.default_rng(0)
    right = np.repeat(rng.random(24) < .75, 5); p = np.eye(2)[np.where(right, y, 1 - y)]
    (a, b), (c, d) = bootstrap(y, p, patients=np.repeat(np.arange(24).astype(str), 5)), bootstrap(y, p)
    assert b - a > 1.5 * (d - c)


def test_bootstrap_equals_a_loop_in_distribution():
    y, p = answers(3, n=100); fast = bootstrap(y, p, n=4000)
    rng, slow = np.random.default_rng(0), []
    for _ in range(800):
        pick = np.concatenate([rng.choice(np.flatnonzero(y == c), (y == c).sum()) for c in range(4)])
        slow.append(balanced_accuracy_score(y[pick], p[pick].argmax(1)))
    assert np.abs(np.percentile(slow, [2.5, 97.5]) - fast).max() < .02


def test_interval_leaves_out_what_has_no_value():
    assert interval([np.nan, .5, .5]) == (.5, .5) and np.isnan(interval([np.nan])).all()


def test_macro_is_the_mean_and_knows_shared_rows():
    y, p = answers(); q = answers(9)[1]; rows = np.arange(60); where = {i: str(k) for i, k in enumerate(y)}
    value, low, high = macro([(rows, y, p), (rows, y, q)], where, {}, n=200)
    assert value == pytest.approx((metrics(y, p)["ACA"] + metrics(y, q)["ACA"]) / 2, abs=1e-12) and low < value < high
    assert macro([(rows, y, p)] * 3, where, {}, n=200) == pytest.approx(macro([(rows, y, p)], where, {}, n=200))


def test_a_thousand_replicates_are_fast(benchmark=None):
    import time
    y, p = answers(n=400, c=10); start = time.perf_counter(); score(y, p, 1000)
    assert time.perf_counter() - start < 5


# ---- tasks

def clinic(**extra):
    return [record(i, c, split=s, **extra) for i, (c, s) in enumerate((c, s) for c in ("glaucoma", "normal") for s in ("train", "test", "test"))]


def test_tasks_stay_within_source_and_modality():
    rows = clinic() + [{**r, "row": 100 + r["row"], "source": "other"} for r in clinic()] + [{**r, "row": 200 + r["row"], "modality": "OCT"} for r in clinic()]
    tasks = tasks_for(rows, Settings())
    assert [t.name for t in tasks] == ["clinic CFP diseases", "clinic OCT diseases", "other CFP diseases"]
    for t in tasks:
        picked, labels = select(t, rows)
        assert len(picked) == 4 and len({r // 100 for r in picked.tolist()}) == 1 and sorted(labels) == [0, 0, 1, 1]


def test_small_classes_are_left_out_and_counted():
    rows = clinic() + [record(50, "cataract"), record(51, "cataract", split="train"), record(52, ["glaucoma", "cataract"]), record(53, [])]
    assert tasks_for(rows, Settings())[0].names == ["normal", "glaucoma"]
    assert tasks_for(rows, Settings(min_test=1))[0].names == ["normal", "cataract", "glaucoma"]
    assert left_out(rows, tasks_for(rows, Settings())) == {"clinic CFP: class too small": 1, "clinic CFP: no category": 1, "clinic CFP: several categories": 1}
    assert tasks_for(rows[:3], Settings()) == []                    # one class is no question
    assert tasks_for(clinic()[:2] + clinic()[3:4], Settings()) == []


def test_grades_are_ordered():
    grades = ["severe diabetic retinopathy", "no DR", "mild NPDR"]
    rows = [record(i, g, split=s) for i, (g, s) in enumerate((g, s) for g in grades for s in ("train", "test", "test"))]
    task, = tasks_for(rows, Settings())
    assert task.ordinal and task.names == ["no diabetic retinopathy", "mild diabetic retinopathy", "severe diabetic retinopathy"]


def test_groups_join_categories():
    g = GroupSpec(name="referral", source="clinic", modality="CFP", classes={"refer": ["glaucoma", "cataract"], "wait": ["healthy"]})
    task = tasks_for(clinic(), Settings(groups=[g]))[-1]
    assert task.name == "clinic CFP referral" and task.kind == "grouped" and task.names == ["refer", "wait"]
    assert select(task, clinic())[1].tolist() == [0, 0, 1, 1]


def test_phantoms_pose_coarse_and_fine_tasks():
    from keepfit_nb.eye import DISEASES, FINE_TASKS
    rows, at = [], 0
    for d in DISEASES.values():
        for m in d.modalities:
            for s in ("train", "test"):
                for i in range(12):
                    facts = [f"{f}: {v[i % len(v)]}" for f, v in d.facts.items() if m in d.seen[f]]
                    rows.append(record(at, d.name, "phantoms", s, facts, m)); at += 1
    tasks = tasks_for(rows, Settings())
    coarse, fine = [t for t in tasks if t.kind == "coarse"], [t for t in tasks if t.kind == "fine"]
    assert [len(t.classes) for t in coarse] == [sum(m in d.modalities for d in DISEASES.values()) for m in ("CFP", "FFA", "OCT")]
    assert len(fine) == len(FINE_TASKS)
    assert len({t.name for t in tasks}) == len(tasks) and left_out(rows, tasks) == {}
    for t in fine:
        picked, y = select(t, rows); assert len(picked) == 12 and len(set(y)) == len(t.classes)
        assert all(c.prompts and len(set(c.prompts)) == len(c.prompts) for c in t.classes)
        assert not set(t.classes[0].prompts) & set(t.classes[1].prompts)


def test_select_refuses_an_unknown_split_and_ignores_order():
    task = tasks_for(clinic(), Settings())[0]
    with pytest.raises(ValueError, match="did you mean 'test'"): select(task, clinic(), "tset")
    assert (select(task, clinic())[0] == select(task, clinic()[::-1])[0]).all()
    rows, labels = select(task, [])
    assert rows.shape == labels.shape == (0,) and rows.dtype == np.int64


@pytest.mark.real
@pytest.mark.skipif(not (real_folder() / "records.csv").exists(), reason="no real images ($KEEPFIT_REAL)")
def test_the_real_set_poses_tasks_per_source():
    table = pd.read_csv(real_folder() / "records.csv")
    table = table[table.modality.isin(["CFP", "FFA", "OCT"])]
    rows = [record(i, json.loads(r.categories), r.source, r.split, (), r.modality, r.patient) for i, r in enumerate(table.itertuples())]
    tasks = {t.name: t for t in tasks_for(rows, Settings())}
    assert tasks["aptos CFP diseases"].ordinal and len(tasks["aptos CFP diseases"].classes) == 3
    assert len(tasks["eyepacs CFP diseases"].classes) == 5 and tasks["odir CFP diseases"].names == ["normal", "cataract", "glaucoma"]
    assert sum("several categories" in k for k in left_out(rows, list(tasks.values()))) == 1
    for t in tasks.values():
        train, test = select(t, rows, "train")[0], select(t, rows)[0]
        assert not {rows[i]["patient"] for i in train.tolist()} & {rows[i]["patient"] for i in test.tolist()}


# ---- leaks

def sources(folder, public, elite, evaluation):
    from datasets import Dataset
    from keepfit_nb.records import COLUMNS, FEATURES, LISTS, write_records
    for role, rows in dict(public=public, elite=elite, evaluation=evaluation).items():
        full = [{c: r.get(c, [] if c in LISTS else "") for c in COLUMNS} for r in rows]
        write_records(Dataset.from_list(full, features=FEATURES) if full else Dataset.from_dict({c: [] for c in COLUMNS}, features=FEATURES), folder / f"{role}.parquet")


def picture(folder, name, shade):
    from PIL import Image
    Image.new("RGB", (9, 9), (shade, 0, 0)).save(folder / name); return str(folder / name)


def test_leaks_are_found_dropped_or_refused(tmp_path):
    a, b, c = (picture(tmp_path, f"{n}.png", i) for i, n in enumerate("abc", 1)); copy = tmp_path / "copy.png"; copy.write_bytes(Path(a).read_bytes())
    test = [dict(image=a, patient="x", split="test", source="s"), dict(image=b, patient="y", split="test", source="s"), dict(image=c, patient="z", split="train", source="s")]
    sources(tmp_path, [dict(image=str(copy), patient="w", source="s")], [], test)
    found = leak_check(tmp_path)
    assert found.kind.tolist() == ["same image bytes"] and found.image.tolist() == [a]
    assert "left out" in ev._verdict(found, "drop") and "KEPT" in ev._verdict(found, "keep")
    with pytest.raises(ValueError, match="splits by patient"): ev._verdict(found, "fail")


def test_training_rows_of_the_protocols_count_as_training(tmp_path):
    a, b = picture(tmp_path, "a.png", 1), picture(tmp_path, "b.png", 2)
    sources(tmp_path, [], [], [dict(image=a, patient="x", split="test"), dict(image=b, patient="x", split="train")])
    assert leak_check(tmp_path).kind.tolist() == ["same patient"]


def test_no_leak_says_so(tmp_path):
    sources(tmp_path, [], [], [dict(image=picture(tmp_path, "a.png", 1), patient="x", split="test")])
    assert not len(leak_check(tmp_path)) and ev._verdict(leak_check(tmp_path), "fail").startswith("no test image")
    assert "were not looked for" in ev._verdict(leak_check(tmp_path), "fail") and "were not looked for" in ev._verdict(leak_check(tmp_path), "fail", dict(rule="off"))


def test_near_copies_of_chapter_05_are_in_verdict_and_policy(tmp_path):
    "From chapter 05's own stage to the sentence: a test picture that was trained on as a JPEG of another size."
    import shutil
    from types import SimpleNamespace
    from PIL import Image
    from keepfit_nb import sources as S
    folder = tmp_path / "pictures"; folder.mkdir(); rng = np.random.default_rng(0)
    for i in range(4): Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((160, 160), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    Image.open(folder / "0.png").resize((128, 128)).save(folder / "copy.jpg", quality=85)
    def stage(rule):
        lines = ["image,label,split,patient"] + [f"{n},glaucoma,{s},{p}" for n, s, p in (("copy.jpg", "train", "a"), ("0.png", "test", "b"), ("1.png", "test", "c"), ("2.png", "train", "d"), ("3.png", "val", "e"))]
        (tmp_path / "t.csv").write_text("\n".join(lines)); out = tmp_path / rule; shutil.rmtree(out, ignore_errors=True); out.mkdir()
        own = S.SetSpec(name="clinic", path=str(tmp_path / "t.csv"), images=str(folder), modality="CFP")
        S.build(SimpleNamespace(seed=0), out, S.Settings(sets=[own], near=rule), {}); return out
    said = lambda out, policy: ev._verdict(leak_check(out), policy, ev._near(out))
    found = leak_check(out := stage("report"))
    assert found.kind.tolist() == ["near copy"] and [Path(p).name for p in found.image] == ["0.png"]
    assert "1 near copy" in said(out, "drop") and said(out, "drop").endswith("left out") and "KEPT" in said(out, "keep")
    with pytest.raises(ValueError, match="1 near copy.*sources.near=drop"): said(out, "fail")
    assert "near copies were taken out of training" in said(stage("drop"), "fail") and "not looked for" in said(stage("off"), "fail")


# ---- embeddings and bench

def test_embeddings_come_back_by_row(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    e = Embeddings(save_embeddings(tmp_path / "m" / "0.parquet", {"rows": np.array([1, 4, 7, 9]), "unprojected": x}, "abc"))
    assert (e.of(np.array([9, 1, 9]), "unprojected") == x[[3, 0, 3]]).all() and e.of(np.array([], int), "unprojected").shape == (0, 3)
    for rows in ([2], [10], [0]):
        with pytest.raises(KeyError, match=f"row {rows[0]}"): e.of(np.array(rows), "unprojected")
    with pytest.raises(KeyError, match="unprojected"): e.of(np.array([1]))
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["0.parquet"]


def test_fingerprint_sees_weights_and_preprocessing():
    import torch
    net = torch.nn.Linear(2, 2); about = dict(size=64, crop=True)
    first = ev.weights_fingerprint(net, about)
    assert first == ev.weights_fingerprint(net, dict(about)) != ev.weights_fingerprint(net, dict(size=64, crop=False))
    with torch.no_grad(): net.weight[0, 0] += 1e-6
    assert ev.weights_fingerprint(net, about) != first


def test_embed_batches_do_not_matter():
    import torch
    class Cache:
        def batch(self, rows): return torch.arange(len(rows) * 12).reshape(-1, 3, 2, 2).to(torch.uint8) * 0 + torch.tensor(rows)[:, None, None, None].to(torch.uint8)
    encode = lambda x: (None, x.float().mean((2, 3)))
    a, b = (embed(encode, Cache(), np.array([3, 5, 8]), n) for n in (1, 64))
    assert "projected" not in a and (a["unprojected"] == b["unprojected"]).all() and a["unprojected"][:, 0].tolist() == [3, 5, 8]


def test_bench_and_result_rows(tmp_path):
    bench = make_bench(tmp_path)
    assert [t.kind for t in bench.tasks] == ["coarse", "fine"] and bench.models == [("keepfit", 0), ("start", 0)]
    with pytest.raises(KeyError, match="did you mean"): bench.task("phantoms CFP disease")
    with pytest.raises(KeyError, match="keepfit/0"): bench.embeddings("keepfit", 3)
    with pytest.raises(FileNotFoundError, match="14_evaluation"): Bench(tmp_path / "nowhere")
    task = bench.tasks[0]; rows, y = bench.rows(task)
    out = bench.judge("keepfit", 0, task, "trial", rows, y, np.eye(3)[y])
    assert [r["metric"] for r in out] == list(METRICS) and all(ResultRow(**r) and r["value"] == (r["metric"] != "ECE") for r in out)
    again = bench.judge("keepfit", 0, task, "trial", rows, y, np.eye(3)[y]); assert out == again
    rows_ = [r | dict(model=m) for m in ("keepfit", "start", "chance") for r in out]; table = ev.write_results(rows_, tmp_path, ["keepfit", "public"])
    assert dict(zip(table.model, table.variant)) == {"keepfit": "keepfit", "start": "", "chance": ""} and list(table) == list(ev.RESULT_COLUMNS)
    assert pd.read_parquet(tmp_path / "results.parquet").equals(table) and list(ev.write_results([], tmp_path, [])) == list(ev.RESULT_COLUMNS)
    fine = bench.tasks[1]; fr, fy = bench.rows(fine)
    m = bench.judge_macro("keepfit", 0, "trial", [(task, rows, y, np.eye(3)[y]), (fine, fr, fy, np.eye(2)[fy])])
    assert {r["task"] for r in m} == {"macro fine phantoms CFP"} and all(r["kind"] == "fine" and r["n"] == len(fr) for r in m)


def test_settings_refuse_unknown_keys():
    from keepfit_nb.profiles import check_section
    with pytest.raises(ValueError, match="did you mean 'bootstrap'"): check_section({"boostrap": 5}, Settings, "section 'evaluation'")
    with pytest.raises(ValueError, match="leaks"): check_section({"leaks": "ignore"}, Settings, "section 'evaluation'")


# ---- operating point, several labels, declarations

def test_sensitivity_uses_training_rows_only(tmp_path):
    bench = make_bench(tmp_path, per_class=40); task = bench.tasks[0]; (rows, y), (_, train_y) = bench.rows(task), bench.rows(task, "train")
    rng = np.random.default_rng(0); make = lambda y: (p := rng.random((len(y), 3)) + .4 * np.eye(3)[y]) / p.sum(1, keepdims=True)
    p, q = make(y), make(train_y); out = {r["metric"]: r for r in bench.judge_operating("keepfit", 0, task, "trial", rows, y, p, train_y, q)}
    line = np.sort(1 - q[train_y == 0, 0])[int(np.ceil(.9 * (train_y == 0).sum())) - 1]
    assert out["sensitivity"]["value"] == pytest.approx((1 - p[y > 0, 0] > line).mean()) and out["specificity"]["value"] == pytest.approx((1 - p[y == 0, 0] <= line).mean())
    assert out["sensitivity"]["low"] < out["sensitivity"]["value"] < out["sensitivity"]["high"]
    assert bench.judge_operating("keepfit", 0, bench.tasks[1], "trial", rows, y, p, train_y, q) == []          # no healthy class
    assert bench.judge_operating("keepfit", 0, task, "trial", rows, y, p, train_y[:0], q[:0]) == []            # nobody to choose a threshold on


def test_a_bench_keeps_tasks_of_both_kinds_apart(tmp_path):
    from keepfit_nb.profiles import read_json, write_json
    bench = make_bench(tmp_path); about = read_json(tmp_path / "tasks.json")
    about["tasks"].append(bench.tasks[0].model_copy(update=dict(name="findings", multi_label=True)).model_dump()); write_json(tmp_path / "tasks.json", about)
    again = Bench(tmp_path); assert len(again.tasks) == len(bench.tasks) and [t.name for t in again.multi] == ["findings"]
    rows, Y = again.rows(again.task("findings")); assert Y.shape == (len(rows), 3) and (Y.sum(1) == 1).all()
    out = again.judge_multi("keepfit", 0, again.multi[0], "trial", rows, Y, Y + .1, [.5] * 3); assert all(ResultRow(**r) and r["value"] == 1 for r in out)


def test_files_of_other_weights_or_rows_are_not_kept(tmp_path):
    path = save_embeddings(tmp_path / "0.parquet", {"rows": np.array([1, 2]), "unprojected": np.eye(2, dtype=np.float32)}, "abc")
    assert ev._kept(path, "abc", [1, 2]) and not ev._kept(path, "abd", [1, 2]) and not ev._kept(path, "abc", [1, 3]) and not ev._kept(tmp_path / "no", "abc", [])
    path.write_bytes(b"half"); assert not ev._kept(path, "abc", [1, 2])
