"""Captions and the phantom sets: what does not fit in chapter 03d."""
import collections, hashlib, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import cv2, numpy as np, pytest
from keepfit_nb import captions as C
from keepfit_nb.captions import (FACT_WORDS, GRADES, LANGUAGES, Settings, caption, eye_seed, fact_prompts, facts_of, jobs_of, make_row, make_sets,
                                 phase_of, place, render, visible_facts)
from keepfit_nb.eye import DISEASES, FINE_TASKS, sample_eye
from keepfit_nb.profiles import MODALITIES, open_run

PAIRS = [(sample_eye(s), m) for s in range(300) for m in MODALITIES]
PAIRS = [(e, m) for e, m in PAIRS if m in DISEASES[e.disease].modalities]
FEW = dict(size=64, n_public=4, n_elite=3, n_eval_train=2, n_eval_test=2)

def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((folder / "images").iterdir())}

@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("rng_seed", [0, 7])
def test_facts_come_back(language, rng_seed):
    "300 eyes: every visible fact is stated, none is invented, and what is named is right."
    for eye, m in PAIRS:
        text = caption(eye, m, rng_seed, language); read = facts_of(text)
        assert {k: v for k, v in read.items() if k not in ("disease", "side", "phase")} == visible_facts(eye, m), text
        assert read.get("disease", eye.disease) == eye.disease and read.get("side", eye.side) == eye.side, text
        if m == "FFA": assert read.get("phase", phase_of(eye)) == phase_of(eye), text
        assert not any(c in text for c in "{}") and "  " not in text and text.endswith("。" if language == "zh" else "."), text

def test_captions_are_like_an_experts():
    texts = [caption(e, m) for e, m in PAIRS]; words = [len(t.split()) for t in texts]
    assert len(set(texts)) > .95 * len(texts) and 15 <= np.median(words) <= 40 and max(words) <= 60
    assert .75 < np.mean(["disease" in facts_of(t) for t in texts]) < .98                     # most name the disease, not all
    assert all(t[0].isupper() for t in texts) and all(any("\u4e00" <= c <= "\u9fff" for c in caption(e, m, language="zh")) for e, m in PAIRS[:50])
    assert len({caption(PAIRS[3][0], PAIRS[3][1], s) for s in range(10)}) >= 8                # same truth, other words

def test_caption_is_repeatable_and_eyes_not_touched():
    eye = sample_eye(3, "diabetic retinopathy"); before = repr(eye)
    assert caption(eye, "CFP") == caption(sample_eye(3, "diabetic retinopathy"), "CFP") and repr(eye) == before

def test_both_languages_say_the_same():
    for eye, m in PAIRS[:120]:
        a, b = (facts_of(caption(eye, m, 2, lang)) for lang in LANGUAGES)
        strip = lambda d: {k: v for k, v in d.items() if k not in ("side", "phase", "disease")}
        assert strip(a) == strip(b) == visible_facts(eye, m)

def test_laterality():
    from dataclasses import replace
    eye = sample_eye(0, "diabetic retinopathy", {"hard exudates": "present"})
    shift = lambda dx: replace(eye, lesions=tuple(replace(l, x=eye.fovea[0] + dx, y=eye.fovea[1]) for l in eye.of("hard exudate")))
    towards_disc = .3 if eye.disc[0] > eye.fovea[0] else -.3
    assert place(shift(towards_disc), "hard exudate") == "nasal" and place(shift(-towards_disc), "hard exudate") == "temporal"

@pytest.mark.parametrize("task", FINE_TASKS, ids=lambda t: "-".join(t))
def test_prompts_for_every_fine_task(task):
    modality, disease, fact = task
    prompts = fact_prompts(*task)
    assert set(prompts) == set(DISEASES[disease].facts[fact]) and all(len(set(p)) >= 3 for p in prompts.values())
    assert len(set(sum(prompts.values(), []))) == sum(map(len, prompts.values()))               # no prompt for two values
    said = {caption(e, m, s) for e, m in PAIRS for s in range(2) if m == modality and e.disease == disease}
    assert not any(p.lower().rstrip(".") == s.lower().rstrip(".") for ps in prompts.values() for p in ps for s in said)
    vocabulary = set(" ".join(said).lower().replace(",", "").replace(".", "").split())
    for p in (prompts[v][0] for v in prompts if fact != "grade"): assert len(set(p.lower().split()) - vocabulary) <= 3, p

def test_unknown_names():
    eye = sample_eye(0, "normal")
    with pytest.raises(ValueError, match="did you mean 'en'|language"): caption(eye, "CFP", language="eng")
    with pytest.raises(ValueError, match="modality"): caption(eye, "MRI")
    with pytest.raises(ValueError, match="does not show in OCT"): caption(sample_eye(0, "glaucoma"), "OCT")
    with pytest.raises(ValueError, match="did you mean 'glaucoma'"): fact_prompts("CFP", "glaucom", "cup")
    with pytest.raises(ValueError, match="fact"): fact_prompts("CFP", "macular hole", "drusen")
    with pytest.raises(ValueError, match="did you mean 'glaucoma'"): jobs_of(Settings(diseases=["glaucom"]), 0)
    with pytest.raises(ValueError, match="no image at all"): jobs_of(Settings(n_public=0, n_elite=0, n_eval_train=0, n_eval_test=0), 0)

@pytest.mark.parametrize("bad", [dict(size=8), dict(n_public=-1), dict(pictures=3)])
def test_settings_refuse(bad):
    with pytest.raises(ValueError): Settings(**bad)

def test_jobs_are_disjoint_and_even():
    jobs = jobs_of(Settings(n_public=200, n_elite=80, n_eval_train=40, n_eval_test=60), 0)
    assert len({j[4] for j in jobs}) == len(jobs) == 3 * 380
    assert {j[4] for j in jobs}.isdisjoint(j[4] for j in jobs_of(Settings(n_public=200), 1))
    for m in MODALITIES:
        counts = collections.Counter(j[5] for j in jobs if j[2] == m and j[0] == "public")
        assert set(counts) == {n for n, d in DISEASES.items() if m in d.modalities} and max(counts.values()) - min(counts.values()) <= 1

def test_facts_are_drawn_evenly():
    jobs = [j for j in jobs_of(Settings(n_public=800), 0) if j[0] == "public" and j[5] == "glaucoma"]
    large = np.mean([sample_eye(j[4], j[5]).facts["cup"] == "large" for j in jobs])
    assert .3 < large < .7

def test_subset_of_diseases():
    jobs = jobs_of(Settings(diseases=["glaucoma", "macular hole"], **{k: v for k, v in FEW.items()}), 0)
    assert {(j[2], j[5]) for j in jobs} == {("CFP", "glaucoma"), ("CFP", "macular hole"), ("OCT", "macular hole")}

def test_rows_by_role(tmp_path):
    rows = make_sets(tmp_path, Settings(processes=1, **FEW), 0)
    assert len(rows) == 3 * 11 and all((tmp_path / r["image"]).exists() for r in rows)
    for r in rows:
        assert len(r["categories"]) == 1 and bool(r["caption"]) == bool(r["caption_zh"]) == (r["role"] == "elite")
        assert not r["attributes"] or r["role"] == "evaluation"
        assert (r["split"] == "test") <= (r["role"] == "evaluation") and r["patient"].startswith("p-")
        image = cv2.imread(str(tmp_path / r["image"]))
        assert image.shape == (64, 64, 3)
    told = [r for r in rows if r["role"] == "evaluation" and r["categories"] == ["diabetic retinopathy"]]
    assert told and all("microaneurysms: few" in r["attributes"] or "microaneurysms: many" in r["attributes"] for r in told)

def test_same_bytes_for_any_number_of_processes(tmp_path):
    settings = Settings(**FEW | dict(n_public=12)); rows = {}
    for n in (1, 2): rows[n] = make_sets(tmp_path / str(n), settings.model_copy(update=dict(processes=n)), 5)
    assert rows[1] == rows[2] and digest(tmp_path / "1") == digest(tmp_path / "2")
    assert digest(tmp_path / "1") != {}

def test_another_seed_is_another_set():
    a, b = ([make_row(j, 64, 0, None)["patient"] for j in jobs_of(Settings(**FEW), s)] for s in (0, 1))
    assert set(a).isdisjoint(b)

def test_restart_keeps_what_is_whole(tmp_path, monkeypatch):
    settings = Settings(processes=1, **FEW); rows = make_sets(tmp_path, settings, 0); want = digest(tmp_path)
    files = sorted((tmp_path / "images").iterdir()); files[0].unlink(); files[3].unlink()
    (tmp_path / "images" / "CFP_x.png.1.part").write_bytes(b"half a picture")
    painted = []
    monkeypatch.setattr(C, "render", lambda *a, real=render: painted.append(a) or real(*a))
    assert make_sets(tmp_path, settings, 0) == rows and digest(tmp_path) == want and len(painted) == 2

def test_killed_and_resumed(tmp_path):
    "SIGKILL in the middle of painting; the next attempt ends with the same files as an undisturbed one."
    code = (f"from pathlib import Path; from keepfit_nb.captions import *; make_sets(Path(r'{tmp_path / 'a'}'), "
            "Settings(size=64, n_public=14, n_elite=0, n_eval_train=0, n_eval_test=0, processes=1), 0)")
    process = subprocess.Popen([sys.executable, "-c", code])
    for _ in range(600):
        if len(list(tmp_path.glob("a/images/*.png"))) >= 5 or process.poll() is not None: break
        time.sleep(.05)
    process.send_signal(signal.SIGKILL); process.wait()
    done = len(list(tmp_path.glob("a/images/*.png"))); assert 5 <= done < 42
    settings = Settings(size=64, n_public=14, n_elite=0, n_eval_train=0, n_eval_test=0, processes=1)
    assert make_sets(tmp_path / "a", settings, 0) == make_sets(tmp_path / "b", settings, 0)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")

def test_disk_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda p: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match="free some space"): make_sets(tmp_path, Settings(**FEW), 0)
    assert not list((tmp_path / "images").iterdir())

def test_jpeg(tmp_path):
    rows = make_sets(tmp_path, Settings(processes=1, quality=95, **FEW), 0)
    assert all(r["image"].endswith(".jpg") and cv2.imread(str(tmp_path / r["image"])) is not None for r in rows)

def test_stage_leaves_valid_records(tmp_path):
    from keepfit_nb.records import COLUMNS, read_records, validate
    run = open_run("03d_captions", "smoke", tmp_path, overrides={"captions": {**FEW, "processes": 1}})
    folder = run.need("03d_captions"); ds = read_records(folder / "phantoms.parquet")
    assert set(ds.column_names) == {*COLUMNS, "role"} and len(ds) == 33
    good, bad, _ = validate([{k: v for k, v in r.items() if k != "role"} for r in ds], base=folder)[:3]
    assert len(good) == 33 and len(bad) == 0
    stamp = (folder / "phantoms.parquet").stat().st_mtime_ns
    run.need("03d_captions"); assert (folder / "phantoms.parquet").stat().st_mtime_ns == stamp      # not built twice
