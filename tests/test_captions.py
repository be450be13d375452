"Captions and the phantom sets: what does not fit in chapter 03d."
import collections, hashlib, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import cv2, numpy as np, pytest

from keepfit_nb import captions as C
from keepfit_nb.angiography import PHASES
from keepfit_nb.captions import (LABELS, Settings, caption, fact_prompts, jobs_of, label_map, make_row, make_sets, phase_of, render, shown_facts,
                                 study_of_eye, visible_facts)
from keepfit_nb.eye import DISEASES, FINE_TASKS, LESIONS, sample_eye, stream, visible_diseases
from keepfit_nb.phrases import LANGUAGES
from keepfit_nb.profiles import MODALITIES, open_run
from keepfit_nb.speech import EARLY, plan

PAIRS = [(e, m) for e in map(sample_eye, range(300)) for m in MODALITIES if visible_diseases(e, m)]
FEW = dict(size=64, n_public=4, n_elite=3, n_eval_train=2, n_eval_test=2)
NONE = dict(n_public=0, n_elite=0, n_eval_train=0, n_eval_test=0)

def digest(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*/*"))}

def test_captions_are_like_an_experts():
    texts = [caption(e, m) for e, m in PAIRS]; words = [len(t.split()) for t in texts]
    assert len(set(texts)) > .98 * len(texts) and 24 <= np.mean(words) <= 38 and 20 <= np.median(words) <= 38 and max(words) <= 100
    for t in texts:
        assert t[0].isupper() and t.endswith(".") and "  " not in t and not set("{}[]|（）") & set(t) and not any(p in t for p in ("..", " .", ",,", " ,", "a a ")), t
        assert "\u3000" not in t and t.isprintable()
    for e, m in PAIRS[:200]:
        zh = caption(e, m, language="zh")
        assert zh.endswith("。") and not set("{}[]|") & set(zh) and "。。" not in zh and "，，" not in zh and "、、" not in zh, zh
        assert sum("\u4e00" <= c <= "\u9fff" for c in zh) > .5 * len(zh), zh
    assert len({caption(PAIRS[3][0], PAIRS[3][1], s) for s in range(10)}) >= 9                # same truth, other words

def test_articles():
    import re
    for e, m in PAIRS:
        for s in range(3):
            t = caption(e, m, s)
            assert not re.search(r"\b[Aa] (?:[aeio]|FFA|OCT)", t) and not re.search(r"\b[Aa]n (?![aeiouFO])", t), t

def test_caption_is_repeatable_and_eyes_not_touched():
    eye = sample_eye(3, "diabetic retinopathy"); before = repr(eye)
    assert caption(eye, "CFP") == caption(sample_eye(3, "diabetic retinopathy"), "CFP") and repr(eye) == before

def test_same_words_in_a_fresh_process():
    eye = sample_eye(8, ("diabetic retinopathy", "glaucoma")); want = [caption(eye, "CFP", 2, lang) for lang in LANGUAGES]
    code = ("from keepfit_nb.captions import caption; from keepfit_nb.eye import sample_eye; e = sample_eye(8, ('diabetic retinopathy', 'glaucoma'));"
            "import json; print(json.dumps([caption(e, 'CFP', 2, lang) for lang in ('en', 'zh')]))")
    for hash_seed in ("0", "7"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
        assert json.loads(done.stdout) == want, done.stderr

def test_both_diseases_are_told():
    "Of eyes with two visible diseases nine captions in ten name both; all state the facts of both."
    both = [(e, m) for s in range(60) for e in [sample_eye(s, ("diabetic retinopathy", "glaucoma"))] for m in ("CFP",)]
    named = [t for e, m in both for t in [caption(e, m)] if "diabetic retinopathy" in t.lower()]
    assert len(named) > 40 and all("glaucom" in t.lower() for t in named)
    assert all("cup" in caption(e, m).lower() and "microaneurysm" in caption(e, m).lower() for e, m in both)

def test_nothing_is_vouched_for_behind_a_veil():
    for disease, facts in (("cataract", {"haze": "dense"}), ("vitreous hemorrhage", {"blood": "dense"})):
        for s in range(40):
            p = plan(sample_eye(s, disease, facts), "CFP", "", stream(s, "x").random)
            assert not p.healthy and not p.missing

def test_early_frames_state_less():
    eye = sample_eye(0, "diabetic retinopathy")
    assert shown_facts(eye, "FFA", "late") == visible_facts(eye, "FFA") == shown_facts(eye, "FFA")
    artery = sample_eye(1, "branch retinal artery occlusion")                                    # filled again by the time of a late frame
    assert [bool(shown_facts(artery, "FFA", p)) for p in PHASES] == [False, True, True, False]
    for phase in tuple(PHASES)[:-2]:
        assert shown_facts(eye, "FFA", phase) == {}
        texts = [caption(eye, "FFA", s, phase=phase).lower() for s in range(20)]
        assert all(f"{p}-phase" not in t and f"{p} phase" not in t for t in texts for p in PHASES if p != phase)
    n = collections.Counter(phase_of(e, early=True) in tuple(PHASES)[:-2] for e in map(sample_eye, range(2000), ["normal"] * 2000))
    assert abs(n[True] / 2000 - EARLY) < .03 and {phase_of(e) for e, _ in PAIRS} == set(tuple(PHASES)[-2:])

def test_phase_does_not_depend_on_the_disease():
    assert [phase_of(sample_eye(s, "glaucoma"), True) for s in range(50)] == [phase_of(sample_eye(s, "geographic atrophy"), True) for s in range(50)]

@pytest.mark.parametrize("task", FINE_TASKS, ids=lambda t: "-".join(t))
def test_prompts_for_every_fine_task(task):
    modality, disease, fact = task
    prompts = fact_prompts(*task)
    assert set(prompts) == set(DISEASES[disease].facts[fact]) and all(len(set(p)) >= 3 for p in prompts.values())
    assert len(set(sum(prompts.values(), []))) == sum(map(len, prompts.values()))               # no prompt for two values
    assert not any(set("{}[]|") & set(p) or "  " in p for ps in prompts.values() for p in ps)
    said = [caption(sample_eye(s, disease), modality, s) for s in range(40)]
    sentences = {t.strip().lower() for c in said for t in c.split(".")}
    assert not any(p.lower().rstrip(".") in sentences for ps in prompts.values() for p in ps)
    vocabulary = set(" ".join(caption(sample_eye(s, disease), modality, s) for s in range(150)).lower().replace(",", "").replace(".", "").replace("(", "").replace(")", "").replace(":", "").split())
    for p in (prompts[v][0] for v in prompts if fact != "grade"): assert len(set(p.lower().split()) - vocabulary) <= 3, (p, set(p.lower().split()) - vocabulary)

def test_unknown_names():
    eye = sample_eye(0, "normal")
    with pytest.raises(ValueError, match="did you mean 'en'|language"): caption(eye, "CFP", language="eng")
    with pytest.raises(ValueError, match="modality"): caption(eye, "MRI")
    with pytest.raises(ValueError, match="phase"): caption(eye, "FFA", phase="latest")
    with pytest.raises(ValueError, match="does not show in OCT"): caption(sample_eye(0, "glaucoma"), "OCT")
    with pytest.raises(ValueError, match="did you mean 'glaucoma'"): fact_prompts("CFP", "glaucom", "cup")
    with pytest.raises(ValueError, match="fact"): fact_prompts("CFP", "macular hole", "drusen")
    with pytest.raises(ValueError, match="did you mean 'glaucoma'"): jobs_of(Settings(diseases=["glaucom"]), 0)
    with pytest.raises(ValueError, match="no image at all"): jobs_of(Settings(**NONE), 0)

@pytest.mark.parametrize("bad", [dict(size=8), dict(n_public=-1), dict(pictures=3), dict(prevalence="common"), dict(comorbid=1.5), dict(quality=101)])
def test_settings_refuse(bad):
    with pytest.raises(ValueError): Settings(**bad)

def test_jobs_are_disjoint_and_even():
    jobs = jobs_of(Settings(n_public=200, n_elite=80, n_eval_train=40, n_eval_test=60), 0)
    assert len({j["seed"] for j in jobs}) == len(jobs) == 3 * 380
    assert {j["seed"] for j in jobs}.isdisjoint(j["seed"] for j in jobs_of(Settings(n_public=200), 1))
    for m in MODALITIES:
        counts = collections.Counter(j["diseases"][0] for j in jobs if j["modality"] == m and j["role"] == "public")
        assert set(counts) == {n for n, d in DISEASES.items() if m in d.modalities} and max(counts.values()) - min(counts.values()) <= 1

@pytest.mark.parametrize("share", [0, .3, 1])
def test_share_of_eyes_with_two_diseases(share):
    jobs = [j for j in jobs_of(Settings(**NONE | dict(n_public=400, n_eval_test=100), comorbid=share), 0)]
    may = lambda j: any(j["modality"] in DISEASES[d].modalities for d in C.partners(j["diseases"][0]))
    two = [len(j["diseases"]) == 2 for j in jobs if j["role"] == "public" and may(j)]
    assert all(len(j["diseases"]) == 1 for j in jobs if j["role"] == "evaluation")
    assert abs(np.mean(two) - share) < .1
    for j in jobs: assert all(j["modality"] in DISEASES[d].modalities for d in j["diseases"]) and sample_eye(j["seed"], tuple(j["diseases"]))

def test_prevalence_is_followed():
    first = lambda kind: collections.Counter(j["diseases"][0] for j in jobs_of(Settings(**NONE | dict(n_public=1500), prevalence=kind), 0) if j["modality"] == "CFP")
    for kind in ("long-tailed", "rare"):
        n = first(kind)
        for disease, weight in C.prevalence(kind, "CFP").items(): assert abs(n[disease] / 1500 - weight) < .05, (kind, disease)
    evaluation = collections.Counter(j["diseases"][0] for j in jobs_of(Settings(**NONE | dict(n_eval_test=290), prevalence="rare"), 0) if j["modality"] == "CFP")
    assert set(evaluation.values()) == {10}                                                      # the examination stays balanced

def test_facts_are_drawn_evenly():
    jobs = [j for j in jobs_of(Settings(n_public=1600, comorbid=0), 0) if j["role"] == "public" and j["diseases"] == ["glaucoma"]]
    assert .3 < np.mean([sample_eye(j["seed"], "glaucoma").facts["cup"] == "large" for j in jobs]) < .7

def test_subset_of_diseases():
    jobs = jobs_of(Settings(diseases=["glaucoma", "macular hole"], comorbid=1, **FEW), 0)
    assert {(j["modality"], d) for j in jobs for d in j["diseases"]} == {("CFP", "glaucoma"), ("CFP", "macular hole"), ("OCT", "macular hole")}

def test_rows_by_role(tmp_path):
    rows = make_sets(tmp_path, Settings(processes=1, **FEW, comorbid=.5), 0).to_list()
    assert len(rows) == 3 * 11 and all((tmp_path / r["image"]).exists() for r in rows)
    for r in rows:
        assert 1 <= len(r["categories"]) <= 2 and bool(r["caption"]) == bool(r["caption_zh"]) == (r["role"] == "elite")
        assert not r["attributes"] or r["role"] == "evaluation"
        assert (r["split"] == "test") <= (r["role"] == "evaluation") and r["patient"].startswith("p-")
        assert cv2.imread(str(tmp_path / r["image"])).shape == (64, 64, 3)
    told = [r for r in rows if r["role"] == "evaluation" and r["categories"] == ["diabetic retinopathy"]]
    assert told and all("microaneurysms: few" in r["attributes"] or "microaneurysms: many" in r["attributes"] for r in told)

def test_same_bytes_for_any_number_of_processes(tmp_path, monkeypatch):
    def fork(): raise AssertionError("forked: a child of a process with threads may hang")
    monkeypatch.setattr(os, "fork", fork)
    settings, rows = Settings(**FEW | dict(n_public=9), masks=True), {}
    for n in (1, 2, 3): rows[n] = make_sets(tmp_path / str(n), settings.model_copy(update=dict(processes=n)), 5).to_list()
    assert rows[1] == rows[2] == rows[3] and digest(tmp_path / "1") == digest(tmp_path / "2") == digest(tmp_path / "3")
    assert len(digest(tmp_path / "1")) == 2 * len(rows[1]) + 1                                    # pictures, label files, labels.json

def test_another_seed_is_another_set():
    a, b = ([make_row(j, Settings(), None)["patient"] for j in jobs_of(Settings(**FEW), s)] for s in (0, 1))
    assert set(a).isdisjoint(b)

def test_restart_keeps_what_is_whole(tmp_path, monkeypatch):
    settings = Settings(processes=1, **FEW); rows = make_sets(tmp_path, settings, 0).to_list(); want = digest(tmp_path)
    files = sorted((tmp_path / "images").iterdir()); files[0].unlink(); files[3].unlink()
    (tmp_path / "images" / "CFP_x.png.1.part").write_bytes(b"half a picture")
    painted = []
    monkeypatch.setattr(C, "render", lambda *a, real=render: painted.append(a) or real(*a))
    assert make_sets(tmp_path, settings, 0).to_list() == rows and digest(tmp_path) == want and len(painted) == 2

def test_masks_may_come_later(tmp_path, monkeypatch):
    "Pictures made without masks are kept when masks are asked for; only the labels are added."
    make_sets(tmp_path, Settings(processes=1, **FEW), 0); before = digest(tmp_path)
    rows = make_sets(tmp_path, Settings(processes=1, masks=True, **FEW), 0).to_list(); after = digest(tmp_path)
    assert before.items() <= after.items() and all((tmp_path / r["mask"]).exists() for r in rows)

def test_label_files_say_what_the_masks_say(tmp_path):
    rows = make_sets(tmp_path, Settings(processes=1, masks=True, **FEW | dict(size=128)), 0).to_list()
    names = json.loads((tmp_path / "masks" / "labels.json").read_text()); assert list(names.values()) == list(LABELS) and set(LESIONS) <= set(LABELS)
    for job, row in zip(jobs_of(Settings(**FEW), 0), rows):
        eye, label = sample_eye(job["seed"], tuple(job["diseases"])), cv2.imread(str(tmp_path / row["mask"]), cv2.IMREAD_UNCHANGED)
        phase = phase_of(eye, job["role"] != "evaluation") if job["modality"] == "FFA" else ""
        masks = render(eye, job["modality"], 128, True, phase)[1]
        assert label.shape == (128, 128) and set(np.unique(label)) - {0} <= {LABELS.index(k) + 1 for k, m in masks.items() if m.any()}
        assert ((label > 0) == np.any([m for m in masks.values()], 0)).all()                      # every pixel of a mask has a label, no other has

def test_small_lesions_lie_on_top():
    big, small = np.ones((8, 8), bool), np.zeros((8, 8), bool); small[3, 3] = True
    label = label_map({"microaneurysm": small, "haemorrhage": big, "optic disc": big})
    assert label[3, 3] == LABELS.index("microaneurysm") + 1 and label[0, 0] == LABELS.index("haemorrhage") + 1
    with pytest.raises(ValueError, match="label"): label_map({"microaneurism": small})

def test_every_mask_has_a_label():
    for name, d in DISEASES.items():
        for m in d.modalities: label_map(render(sample_eye(4, name), m, 64, masks=True)[1])

def test_killed_and_resumed(tmp_path):
    "SIGKILL in the middle of painting; the next attempt ends with the same files as an undisturbed one."
    code = (f"from pathlib import Path; from keepfit_nb.captions import *; make_sets(Path(r'{tmp_path / 'a'}'), "
            "Settings(size=64, n_public=14, n_elite=0, n_eval_train=0, n_eval_test=0, processes=1), 0)")
    process = subprocess.Popen([sys.executable, "-c", code])
    for _ in range(2400):
        if len(list(tmp_path.glob("a/images/*.png"))) >= 5 or process.poll() is not None: break
        time.sleep(.02)
    process.send_signal(signal.SIGKILL); process.wait()
    done = len(list(tmp_path.glob("a/images/*.png"))); assert 5 <= done < 42
    settings = Settings(size=64, n_public=14, n_elite=0, n_eval_train=0, n_eval_test=0, processes=1)
    assert make_sets(tmp_path / "a", settings, 0).to_list() == make_sets(tmp_path / "b", settings, 0).to_list()
    assert digest(tmp_path / "a") == digest(tmp_path / "b")

def test_disk_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match="free some space"): make_sets(tmp_path, Settings(**FEW), 0)
    assert not list((tmp_path / "images").iterdir())

def test_jpeg(tmp_path):
    rows = make_sets(tmp_path, Settings(processes=1, quality=95, **FEW), 0)
    assert all(r["image"].endswith(".jpg") and cv2.imread(str(tmp_path / r["image"])) is not None for r in rows)

def test_study_of_one_eye():
    study = study_of_eye(11, "geographic atrophy", 64)
    assert list(study) == list(MODALITIES) and all(s["masks"]["atrophy"].any() and s["caption"] and s["caption_zh"] for s in study.values())
    size = sample_eye(11, "geographic atrophy").facts["atrophy"]
    assert list(study_of_eye(2, "glaucoma", 64)) == ["CFP"] and size in ("small", "large")

@pytest.mark.parametrize("masks", [False, True])
def test_stage_leaves_valid_records(tmp_path, masks):
    from keepfit_nb.records import COLUMNS, read_records, validate
    run = open_run("03d_captions", "smoke", tmp_path, overrides={"captions": {**FEW, "processes": 1, "masks": masks}})
    folder = run.need("03d_captions"); ds = read_records(folder / "phantoms.parquet")
    assert set(ds.column_names) == {*COLUMNS, "role"} | ({"mask"} if masks else set()) and len(ds) == 33
    good, bad, _ = validate([{k: v for k, v in r.items() if k not in ("role", "mask")} for r in ds], base=folder)[:3]
    assert len(good) == 33 and len(bad) == 0
    stamp = (folder / "phantoms.parquet").stat().st_mtime_ns
    run.need("03d_captions"); assert (folder / "phantoms.parquet").stat().st_mtime_ns == stamp      # not built twice

def test_sources_read_sets_with_masks(tmp_path):
    run = open_run("05_sources", "smoke", tmp_path, overrides={"captions": {**FEW, "processes": 1, "masks": True}})
    assert (run.need("05_sources") / "records.parquet").exists() or any(run.need("05_sources").iterdir())

def test_fingerprint_follows_the_phrases(tmp_path, monkeypatch):
    run = open_run("03d_captions", "smoke", tmp_path); before = run.fingerprint("03d_captions")
    copy = tmp_path / "phrases"; shutil.copytree(C.resource("data", "phrases"), copy)
    monkeypatch.setattr(C, "resource", lambda *parts: copy)
    assert run.fingerprint("03d_captions") == before
    (copy / "words.yaml").write_text((copy / "words.yaml").read_text(encoding="utf-8").replace("numerous", "plentiful"), encoding="utf-8")
    assert open_run("03d_captions", "smoke", tmp_path).fingerprint("03d_captions") != before
