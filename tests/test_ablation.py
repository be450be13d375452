"The study: grid, bundle, cells that survive, intervals."
import json
from types import SimpleNamespace

import numpy as np, pytest

from keepfit_nb import ablation
from keepfit_nb.ablation import (Bundle, Study, contrasts, devices_for, gain, gains, grid, pack, run_cell, run_grid, scores, seeds_of, spelled, student,
                                 study_settings, unpack, unspelled)
from keepfit_nb.pretraining import variant_settings
from keepfit_nb.profiles import check_section
from test_pretraining import TOY, cache, place, settings                                  # noqa: F401  (fixtures)


def test_rows_differ_in_one_part():
    rows, parts = grid(), ablation.PARTS
    on = lambda r: {n for n, p in parts.items() if all(rows[r][k] for k in p)}
    assert on("elite") == on("public") == set() and on("keepfit") == set(parts)
    for n in parts: assert on(f"elite+{n}") == {n} and on(f"keepfit-{n}") == set(parts) - {n}
    for r, switches in rows.items(): variant_settings(settings(), switches, r)           # every row is possible
    assert ("keepfit", "keepfit-text") in contrasts(list(rows)) and ("elite+text", "elite") in contrasts(list(rows))


@pytest.mark.parametrize("text, out", [("0-2", [0, 1, 2]), ("4", [4]), ("0,7-8", [0, 7, 8])])
def test_seeds(text, out): assert seeds_of(text) == out


@pytest.mark.parametrize("text", ["", "a", "1-b", "-3"])
def test_wrong_seeds(text):
    with pytest.raises(ValueError, match="write 0-4"): seeds_of(text)


def test_more_rows_and_seeds_leave_the_cells_that_are_there():
    def marks(rows=("public", "elite"), seeds=(0,), steps=12, **sections):
        run = SimpleNamespace(seed=3, profile=SimpleNamespace(sections=sections), section=lambda name, cls: check_section(sections.get(name, {}), cls, name))
        return ablation._members(run, ablation.Settings(rows=list(rows), seeds=list(seeds), steps=steps))
    plain = marks()
    assert set(plain) == {"bundle", *(f"cells/{x}" for x in ("public.3.json", "elite.3.json", "models/public/3", "models/elite/3"))}
    assert plain.items() < marks(("public", "elite", "elite+semantic"), (0, 1)).items()
    more = marks(("public", "elite", "elite+text"))                            # a row that begins with stage 09: another bundle, the same cells
    assert more["bundle"] != plain["bundle"] and {k: v for k, v in plain.items() if k != "bundle"}.items() < more.items()
    assert marks(text_pretraining={"steps": 5}).keys() == plain.keys() and not marks(text_pretraining={"steps": 5}).items() & plain.items()
    longer = marks(steps=13); assert longer["bundle"] == plain["bundle"] and longer["cells/elite.3.json"] != plain["cells/elite.3.json"]


def test_the_plan_sees_what_the_stage_may_begin_with():
    "Chapter 20 may run beside others only if the plan knows every stage that its rows can ask for."
    from keepfit_nb import order, pretraining
    needs, open_ended = order.touched("20_ablation")
    assert set(pretraining.BEGIN_WITH) <= needs and not open_ended


def test_answers_are_spelled():
    a = np.arange(41)
    assert (unspelled(spelled(a)) == a).all() and spelled(np.array([], int)) == ""
    for wrong in ([-1], [41]):
        with pytest.raises(ValueError): spelled(np.array(wrong))


def test_student_against_scipy():
    from scipy.stats import t
    x = np.random.default_rng(0).normal(.1, .05, 7)
    assert np.allclose(student(x), t.interval(.95, 6, x.mean(), x.std(ddof=1) / 7 ** .5))
    assert np.isnan(student([.3])).all()


def world(rows: dict[str, float], seeds=4, n=60, noise=0.) -> Study:
    "A study whose rows answer rightly with the given probability."
    rng, cells = np.random.default_rng(1), []
    names = {f"{m} task {k}": m for m in ("CFP", "OCT") for k in range(2)}
    truth = {t: dict(rows=list(range(i * n, i * n + n)), labels=[k % 2 for k in range(n)]) for i, t in enumerate(names)}
    for s in range(seeds):
        for r, p in rows.items():
            said = {t: [y if rng.random() < p else 1 - y for y in v["labels"]] for t, v in truth.items()}
            hits = {t: np.mean([np.mean([a == y for a, y in zip(said[t], truth[t]["labels"]) if y == c]) for c in (0, 1)]) for t in names}
            cells.append(dict(row=r, seed=s, answers={t: spelled(np.array(a)) for t, a in said.items()}, aca=hits))
    eyes = {str(r): f"{names[t]}|d" for t, v in truth.items() for r in v["rows"]}
    return Study(dict(questions=[dict(kind="fine", task=t, modality=m) for t, m in names.items()], truth=truth, eyes=eyes, cells=cells))


def test_gain_is_the_difference_of_means():
    study = world(dict(elite=.6, keepfit=.8)); g = gain(study, "keepfit", "elite", n=50)
    table = scores(study).query("modality == 'all'").pivot_table(index="seed", columns="row", values="aca")
    assert np.allclose(g["each"], (table.keepfit - table.elite).round(4), atol=1e-4) and g["low"] < g["gain"] < g["high"] and g["eyes_low"] < g["gain"] < g["eyes_high"]
    same = world(dict(elite=1., keepfit=1.)); g = gain(same, "keepfit", "elite", n=20)
    assert g["gain"] == g["low"] == g["eyes_high"] == 0


def test_gains_have_a_paired_t_and_holm_over_the_contrasts_of_a_kind():
    from scipy.stats import ttest_rel
    study = world({"public": .5, "elite": .56, "elite-only": .55, "keepfit": .62}); coarse = [q | dict(kind="coarse") for q in study.questions[:2]]
    study = Study(study.plain | dict(questions=coarse + study.questions[2:])); table = gains(study, n=20)
    assert set(table.kind) == {"coarse", "fine"} and len(table) == 8
    for kind, part in table.groupby("kind"):
        score = scores(study).query("modality == 'all' and kind == @kind").pivot_table(index="seed", columns="row", values="aca")
        p = [ttest_rel(score[g.new], score[g.old]).pvalue for g in part.itertuples()]; assert np.allclose(part.p, p)
        left, most, want = len(p), 0., {}
        for k in np.argsort(p, kind="stable"): most = max(most, min(1., left * p[k])); want[k] = most; left -= 1          # Holm by hand
        assert np.allclose(part.p_holm, [want[k] for k in range(len(p))])
    assert np.isnan(gains(world({"public": .5, "elite": .6}, seeds=1), n=10).p_holm).all()


def test_tables_and_numbers_of_a_study(tmp_path):
    "What benchmarks/ablation.py reads again."
    import pandas as pd
    values = ablation.report(world({"public": .5, "elite": .7, "keepfit": .8}), tmp_path, 20); table = pd.read_csv(tmp_path / "gains.csv")
    assert {"p", "p_holm"} <= set(table) and "each" not in table and values["fine.gain.keepfit_over_public"] == round(table.set_index(["new", "old"]).gain["keepfit", "public"], 4)
    assert 0 <= values["fine.gain.keepfit_over_public.p_holm"] <= 1


def test_rows_without_common_seed():
    with pytest.raises(ValueError, match="no finished seed in common"): gain(world(dict(elite=.6)), "keepfit", "elite")


# ---- bundle and cells, on the toy of chapter 13

ASKED = [dict(kind="coarse", task=dict(name="CFP diseases", set="toy", modality="CFP", kind="coarse",
                                      classes=[dict(name=c, categories=[c], prompts=[f"A fundus photograph of {c}."]) for c in ("normal", "glaucoma")]))]


@pytest.fixture(scope="module")
def parcel(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "bundle"
    before = ablation.questions; ablation.questions = lambda *_: []                       # six eyes pose no question of their own
    try: about = pack(folder, place / "cache", place / "tokenizer", TOY)
    finally: ablation.questions = before
    assert about["public"] == 30 and about["elite"] == 12
    full = json.loads((folder / "bundle.json").read_text()) | dict(questions=ASKED); (folder / "bundle.json").write_text(json.dumps(full))
    return folder


def test_bundle_holds_the_same_pictures(parcel, cache):
    bundle = Bundle(parcel)
    assert [r["caption"] for r in bundle.cache.records("elite")] == [r["caption"] for r in cache.records("elite")]
    a, b = (c.batch([r["row"] for r in c.records("public")]).float() for c in (bundle.cache, cache))
    assert (a - b).abs().mean() < 12                                                      # noise is the hardest picture for JPEG
    assert len(bundle.truth["CFP diseases"][1]) == 2


def test_broken_bundles(parcel, tmp_path):
    import shutil
    with pytest.raises(ValueError, match="no whole bundle"): unpack(tmp_path, tmp_path / "out")
    shutil.copytree(parcel, tmp_path / "b", ignore=shutil.ignore_patterns("unpacked")); data = (tmp_path / "b" / "images.bin").read_bytes()
    (tmp_path / "b" / "images.bin").write_bytes(data[:-10])
    with pytest.raises(ValueError, match="is cut"): unpack(tmp_path / "b", tmp_path / "out")


def test_a_cell_is_repeatable_and_a_study_resumes(parcel, tmp_path, monkeypatch, capsys):
    bundle, s = Bundle(parcel), settings(steps=2)
    one, two = (run_cell(bundle, tmp_path / k, "elite", grid()["elite"], 3, s.model_copy(update=more)) for k, more in (("a", {}), ("b", dict(labels_first=300))))      # a profile's first weights are none of a bundle's business
    assert one["answers"] == two["answers"] and one["images"] == 24 and not (tmp_path / "a" / "models" / "elite" / "3").exists()
    monkeypatch.setattr(ablation, "ProcessPoolExecutor", lambda *_: pytest.fail("finished cells are not done again"))
    assert run_grid(parcel, tmp_path / "a", [("elite", grid()["elite"], 3)], s) == []
    with pytest.raises(ValueError, match="semantic: true needs"): run_grid(parcel, tmp_path / "a", [("x", dict(elite=False), 0)], s)
    study = Study(ablation.collect(bundle, tmp_path / "a"))
    assert study.rows == ["elite"] and json.dumps(study.plain)


def test_cells_of_another_study_are_set_aside(parcel, tmp_path, capsys):
    bundle, s = Bundle(parcel), settings(steps=2)
    run_cell(bundle, tmp_path, "elite", grid()["elite"], 0, s); run_cell(bundle, tmp_path, "public", grid()["public"], 0, s.model_copy(update=dict(lr=2e-3)))
    assert run_grid(parcel, tmp_path, [("elite", grid()["elite"], 0)], s) == []
    assert "public.0.json is of another study" in capsys.readouterr().out and (tmp_path / "other" / "public.0.json").exists() and (tmp_path / "elite.0.json").exists()


def test_first_weights_of_a_bundle(parcel, tmp_path):
    "All rows begin with them; another file is another study."
    import shutil, torch
    from safetensors.torch import save_file
    from keepfit_nb.encoders import build_image_encoder
    shutil.copytree(parcel, tmp_path / "b"); plain = Bundle(tmp_path / "b"); s = settings(steps=1)
    first = build_image_encoder(plain.encoders, plain.cache.size).model.state_dict()
    save_file({k: torch.full_like(v, .01) if v.is_floating_point() else v for k, v in first.items()}, tmp_path / "b" / ablation.FIRST_WEIGHTS)
    own = Bundle(tmp_path / "b"); begun = build_image_encoder(own.encoders, own.cache.size).model.state_dict()
    assert plain.encoders.image_pretrained == "false" and all((v == .01).all() for k, v in begun.items() if v.is_floating_point())
    assert ablation.study_mark(parcel, s) != ablation.study_mark(tmp_path / "b", s)


@pytest.mark.slow
def test_processes_share_the_work(parcel, tmp_path):
    cells = [(r, grid()[r], s) for s in (0, 1) for r in ("public", "elite")] + [("elite+text", grid()["elite+text"], 0)]
    left = run_grid(parcel, tmp_path, cells, settings(steps=2), processes=2)
    assert left == ["elite+text.0"]                                                       # the parcel carries no text weights: named, others done
    assert sorted(f.name for f in tmp_path.glob("*.json")) == ["elite.0.json", "elite.1.json", "public.0.json", "public.1.json"]


@pytest.mark.slow
def test_cut_first_weights_are_named(parcel, tmp_path, capfd):
    "The command says what is wrong and ends with 1, without a traceback."
    import shutil
    shutil.copytree(parcel, tmp_path / "b"); (tmp_path / "b" / ablation.FIRST_WEIGHTS).write_bytes(b"cut")
    assert ablation.main(["--bundle", str(tmp_path / "b"), "--out", str(tmp_path / "out"), "--rows", "public", "--seeds", "0", "--steps", "1", "--device", "cpu"]) == 1
    said = capfd.readouterr().out
    assert "cut short or damaged" in said and "no cell is done" in said


def test_thinned_bundle(parcel, monkeypatch):
    "The trials of benchmarks/injection.py with fewer elite pairs: same pictures, same questions."
    from keepfit_nb.profiles import project_root
    monkeypatch.syspath_prepend(str(project_root() / "benchmarks"))
    import injection
    whole, thin = Bundle(parcel), Bundle(injection.thinned(parcel, 4))
    assert len(thin.cache.records("elite")) == 3 and thin.cache.records("public") == whole.cache.records("public")
    assert (thin.cache.images == whole.cache.images).all() and [t for _, t in thin.questions] == [t for _, t in whole.questions]
    assert all(variant_settings(study_settings(5, injection.SETTINGS), switches, name) for name, switches in injection.FORMS.items())


def test_settings_of_the_study():
    s = study_settings(10, ["injection.pull=text", "sentences=0.5"])
    assert s.steps == 10 and s.injection.pull == "text" and s.sentences == .5
    with pytest.raises(ValueError, match="did you mean"): study_settings(10, ["sentencs=1"])
    assert devices_for("cpu") == ["cpu"]
