"Chapter 04d beyond its notebook: every fact has a source, every set a reader, and strangers' files do no harm."
import ast, csv, json, re
from collections import Counter
from pathlib import Path

import numpy as np, pandas as pd, pytest, yaml
from hypothesis import given, settings, strategies as st
from PIL import Image

from keepfit_nb import registry as R
from keepfit_nb.knowledge import canonical, load_knowledge
from keepfit_nb.profiles import resource

SOURCES = list(R.load_registry().values())
READABLE = [s.name for s in SOURCES if s.layout]


def picture(root, *paths):
    for p in paths:
        (root / p).parent.mkdir(parents=True, exist_ok=True); R.cloud(str(p)).save(root / p)


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True); path.write_text(text, encoding="utf-8")


# ---- the file ---------------------------------------------------------------------------------------------------------

def test_the_registry_is_complete():
    assert len(SOURCES) >= 60 and len({s.name for s in SOURCES}) == len(SOURCES)
    assert sorted(s.part for s in SOURCES if s.part.startswith("FLAIR")) == [f"FLAIR {i:02}" for i in range(1, 38)]
    names = {s.name for s in SOURCES}
    assert names >= {"SynFundus-1M", "DeepEyeNet", "FFA-IR", "MPOS", "Angiographic", "OCTID", "OCTDL", "OCT2017", "MM-Retinal V1 CFP", "MM-Retinal V1 FFA",
                     "MM-Retinal V1 OCT", "MM-Retinal V2", "MM-Retinal-Text", "RetinalOCT-C8", "OCTA-500", "glaucoma_detection", "STAGE1", "STAGE2", "GAMMA",
                     "OIMHS", "Duke DME", "GOALS", "BIOMISA", "ODIR200x3", "AMD (iChallenge)", "TAOP", "MMAC 2023"}


def test_every_fact_has_a_source_and_a_date():
    found = R.registry_json()
    for s in found["sources"]:
        for f in ("size", "licence", "access", "address", "citation"):
            assert s[f] == "unknown" or (s[f]["value"] not in ("", "unknown") and s[f]["by"] in found["refs"]), (s["name"], f)
    for name, ref in found["refs"].items(): assert re.fullmatch(r"20\d\d-\d\d-\d\d", ref["date"]) and ref["title"], name
    used = {v["by"] for s in found["sources"] for v in s.values() if isinstance(v, dict) and "by" in v} | {f["by"] for s in found["sources"] for f in s["files"]}
    assert set(found["refs"]) == used | ({"ours"} & set(found["refs"])), set(found["refs"]) - used


def test_every_class_is_a_category():
    for s in SOURCES:
        for theirs, ours in s.labels.items(): assert ours is None or ours in load_knowledge(), (s.name, theirs, ours)


def test_a_label_without_a_name_has_none_indeed():
    "When chapter 01 learns a name that a set uses word for word, the registry must point to it."
    late = [(s.name, t, canonical(t)) for s in SOURCES for t, o in s.labels.items() if o is None and canonical(t) in load_knowledge() and len(t) > 5]
    assert not late, late


def test_schema_beside_the_file():
    import jsonschema
    schema = json.loads(resource("data", "sources.schema.json").read_text())
    assert schema == R.Registry.model_json_schema(), "run keepfit_nb.registry.write_schema()"
    plain = R.read_registry(resource("data", "sources.yaml")).model_dump(mode="json")
    jsonschema.validate(plain, schema)
    plain["sources"][3]["role"] = ["judge"]
    with pytest.raises(jsonschema.ValidationError): jsonschema.validate(plain, schema)


def test_addresses_are_plain_links():
    for s in SOURCES:
        if s.address != "unknown": assert re.fullmatch(r"https?://[\w./~:%?=&-]+", s.fact("address")), s.name
        for f in s.files: assert s.fact("access") == "open", f"{s.name}: only an open set may be fetched by a program"


@pytest.mark.parametrize("change, told", [
    (dict(role=["judge"]), "Mine · role"), (dict(modality=["XRAY"]), "Mine · modality"), (dict(access=["free", "a"]), "Mine · access"),
    (dict(size=["many", "a"]), "Mine · size"), (dict(licence=["MIT", "nobody"]), "did you mean|unknown reference"), (dict(colour="red"), "Mine · colour"),
    (dict(classes=[{"G": "glaucomma"}, "a"]), "did you mean 'glaucoma'"), (dict(layout={"by": "a", "reader": "magic"}), "Mine · layout · reader")])
def test_a_wrong_registry_says_where(tmp_path, change, told):
    entry = {"name": "Mine", "modality": ["CFP"], "role": ["public"], "part": "public", **change}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"refs": {"a": {"title": "t", "date": "2026-01-01"}}, "sources": [entry]}))
    with pytest.raises(ValueError, match=told): R.read_registry(tmp_path / "r.yaml")


def test_listing():
    t = R.list_sources()
    assert t.name.is_unique and set(t.access) <= set(R.ACCESS) and set(t.reader) - {""} == set(R.READS) and len(R.list_sources("evaluation")) >= 12
    with pytest.raises(ValueError, match="evaluation"): R.list_sources("evalution")
    for s in SOURCES: assert R.ACCESS[s.fact("access")] in R.how_to_get(s)


# ---- patterns ---------------------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(st.from_regex(r"[A-Za-z0-9 .()]{1,12}", fullmatch=True), st.integers(0, 9999), st.sampled_from(["", "a/", "my files/b (3)/"]))
def test_a_filled_pattern_matches_and_gives_back(label, n, base):
    path = base + R.fill("train/{label}/x_{n:04}.png", {"label": label, "n": n})
    if not label.strip(): return
    got = R.pattern("{split}/{label}/x_{n:[0-9]+}.png").match(path)
    assert got == (base, {"split": "train", "label": label.strip(), "n": f"{n:04}"})


# ---- replicas -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", READABLE)
def test_each_set_reads_its_replica_and_is_recognised(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KEEPFIT_DATA", str(tmp_path / "cache"))
    source, root = R.find_source(name), R.make_replica(name, tmp_path / "some downloads" / "archive(3)", 2)
    rows, notes = R.read_source(name, tmp_path / "some downloads")                       # folders above do not matter
    assert all((tmp_path / "some downloads" / p).is_file() for p in rows.image) and not notes["labels_not_listed"]
    labels = Counter(rows.categories.explode().dropna()) if "categories" in rows else Counter()
    assert set(labels) >= {o for o in source.labels.values() if o} and set(labels) <= set(load_knowledge())
    assert set(notes["labels_left_out"]) >= {t for t, o in source.labels.items() if o is None} - {"healthy", "disc", "fundus area"}
    if "elite" in source.role: assert (rows.caption != "").all()
    if len(source.modality) == 1: assert set(rows.modality) == set(source.modality)
    assert R.check_folder(root)["source"] == name


def test_replicas_share_no_picture(tmp_path):
    import hashlib
    seen = Counter()
    for name in READABLE[:20]:
        root = R.make_replica(name, tmp_path / R.find_source(name).name.replace("/", "-"), 1)
        seen.update({hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.png")})
    assert max(seen.values()) == 1


# ---- layouts as their owners document them, written out by hand ---------------------------------------------------------

def test_rfmid_by_hand(tmp_path):
    put(tmp_path / "Training_Set/RFMiD_Training_Labels.csv", "ID,Disease_Risk,DR,ARMD,MH,ODC,CSR\n1,1,1,0,0,0,0\n2,1,0,0,1,1,0\n3,0,0,0,0,0,0\n")
    picture(tmp_path, *(f"Training_Set/Training/{i}.png" for i in (1, 2, 3)))
    rows, notes = R.read_source("RFMiD", tmp_path)
    assert rows.categories.tolist() == [["diabetic retinopathy"], ["refractive media opacity"], ["normal"]] and notes["labels_left_out"] == {"ODC": 1}
    assert set(rows.split) == {"train"} and rows.licence[0] == "CC BY 4.0"
    put(tmp_path / "b/2. Groundtruths/a. RFMiD_Training_Labels.csv", "ID,Disease_Risk,DR\n1,1,1\n"); picture(tmp_path, "b/1. Original Images/a. Training Set/1.png")
    assert len(R.read_source("RFMiD", tmp_path / "b")[0]) == 1                              # the layout that FLAIR reads


def test_odir_by_hand(tmp_path):
    put(tmp_path / "full_df.csv", "ID,Left-Fundus,Right-Fundus,Left-Diagnostic Keywords,Right-Diagnostic Keywords\n"
        "0,0_left.jpg,0_right.jpg,cataract,normal fundus\n0,0_left.jpg,0_right.jpg,cataract,normal fundus\n1,1_left.jpg,1_right.jpg,"
        "drusen，epiretinal membrane,optic disk photographically strange\n")
    picture(tmp_path, *(f"preprocessed_images/{i}_{s}.jpg" for i in (0, 1) for s in ("left", "right")))
    rows, notes = R.read_source("ODIR-5K", tmp_path)
    assert rows.categories.tolist() == [["cataract"], ["normal"], ["drusen", "epiretinal membrane"], []]
    assert rows.patient.tolist() == ["0", "0", "1", "1"] and rows.eye.tolist() == ["left", "right"] * 2 and sum(notes["labels_left_out"].values()) == 1


def test_deepdrid_eyepacs_ddr_by_hand(tmp_path):
    put(tmp_path / "d/regular_fundus_images/regular-fundus-training/regular-fundus-training.csv", "patient_id,image_id,image_path,left_eye_DR_Level,right_eye_DR_Level\n"
        "1,1_l1,\\regular-fundus-training\\1\\1_l1.jpg,2.0,\n1,1_r1,\\regular-fundus-training\\1\\1_r1.jpg,,5\n")
    picture(tmp_path, *(f"d/regular_fundus_images/regular-fundus-training/Images/1/1_{s}1.jpg" for s in "lr"))
    rows, notes = R.read_source("DeepDRiD", tmp_path / "d")
    assert rows.categories.tolist() == [["moderate diabetic retinopathy"], []] and set(rows.patient) == {"1"} and notes["labels_left_out"] == {"5": 1}
    put(tmp_path / "e/trainLabels.csv", "image,level\n10_left,0\n10_right,4\n"); picture(tmp_path, "e/train/10_left.jpeg", "e/train/10_right.jpeg")
    rows, _ = R.read_source("EyePACS", tmp_path / "e")
    assert rows.patient.tolist() == ["10", "10"] and rows.eye.tolist() == ["left", "right"] and rows.categories[1] == ["proliferative diabetic retinopathy"]
    put(tmp_path / "f/DR_grading/train.txt", "007-0004-000.jpg 3\n007-0007-000.jpg 5\n"); picture(tmp_path, "f/DR_grading/train/007-0004-000.jpg", "f/DR_grading/train/007-0007-000.jpg")
    rows, _ = R.read_source("OIA-DDR", tmp_path / "f")
    assert rows.categories.tolist() == [["severe diabetic retinopathy"], []] and set(rows.split) == {"train"}


def test_reports_by_hand(tmp_path):
    put(tmp_path / "a/ffair_annotation.json", json.dumps({"train": {"case_7": {"Image_path": [f"case_7/{i}.jpeg" for i in range(12)], "En_Report": " Leakage. \n"}}, "test": {}}))
    picture(tmp_path, *(f"a/FFAIR/case_7/{i}.jpeg" for i in range(12)))
    rows, _ = R.read_source("FFA-IR", tmp_path / "a")
    assert [Path(p).name for p in rows.image] == [f"{i}.jpeg" for i in range(3, 9)] and set(rows.caption) == {"Leakage."} and set(rows.patient) == {"case_7"}
    put(tmp_path / "b/DeepEyeNet_valid.json", json.dumps([{"eyenet0420/valid_set/1.jpg": {"keywords": "drusen, odd word", "clinical-description": "60-year-old with drusen."}}]))
    picture(tmp_path, "b/eyenet0420/valid_set/1.jpg")
    rows, notes = R.read_source("DeepEyeNet", tmp_path / "b")
    assert rows.caption[0] == "60-year-old with drusen." and rows.categories[0] == ["drusen"] and rows.split[0] == "val" and notes["labels_left_out"] == {"odd word": 1}


def test_names_in_paths_by_hand(tmp_path):
    picture(tmp_path, "OCT2017/train/DRUSEN/DRUSEN-1001-1.jpeg", "OCT2017/test/CNV/CNV-77-9.jpeg")
    rows, _ = R.read_source("OCT2017", tmp_path)
    assert rows.sort_values("image").patient.tolist() == ["77", "1001"] and set(rows.split) == {"train", "test"}
    picture(tmp_path / "o", "OCTDL/AMD/amd_1.jpg"); put(tmp_path / "o/OCTDL_labels.csv", "file_name,disease,patient_id,eye\namd_1,AMD,5,OD\nno_9,NO,6,OS\n")
    rows, _ = R.read_source("OCTDL", tmp_path / "o")
    assert rows.image.tolist() == ["OCTDL/AMD/amd_1.jpg", "NO/no_9"] and rows.patient.tolist() == ["5", "6"]      # the second is missing: the gate will say so
    report = R.check_folder(tmp_path / "o")
    assert report["source"] == "OCTDL" and report["missing"] == 1 and "1 of 2 images are missing" in report["verdict"]


def test_angiography_with_several_labels(tmp_path):
    put(tmp_path / "Train.csv", 'Folder,Impression\n001_L,"uveitis,cystoid macular edema"\n002_R,choroidal mass\n')
    picture(tmp_path, *(f"Train/{f}/{i}.jpg" for f in ("001_L", "002_R") for i in range(10)))
    rows, notes = R.read_source("Angiographic", tmp_path)
    assert len(rows) == 16 and rows.categories[0] == ["uveitis", "cystoid macular edema"] and notes["labels_left_out"] == {"choroidal mass": 1}


@pytest.mark.real
def test_published_lists_agree_path_by_path(real):
    "The layouts of four sets against the lists of the open kits, which nobody here wrote."
    for file, name in (("MPOS.csv", "MPOS"), ("OCT05_OCTID.csv", "OCTID"), ("13_FIVES.csv", "FIVES"), ("25_REFUGE.csv", "REFUGE")):
        with open(real / "tables" / file, encoding="utf-8") as f: listed = {r["image"]: [canonical(c) for c in ast.literal_eval(r["categories"])] for r in csv.DictReader(f)}
        rows, notes = R.read_source(name, real / "tables", list(listed))
        assert dict(zip(rows.image, rows.categories)) == listed and not notes["labels_not_listed"], name
        size = R.find_source(name).fact("size"); assert size == "unknown" or name == "REFUGE" or len(listed) == size


# ---- strangers -----------------------------------------------------------------------------------------------------------

def test_a_folder_that_is_no_set(tmp_path):
    picture(tmp_path / "a", "cats/1.png", "dogs/2.png")
    with pytest.raises(ValueError, match="looks like no set|nothing that looks"): R.check_folder(tmp_path / "a", "FIVES")
    with pytest.raises(ValueError, match="layout of BIOMISA is not known"): R.read_source("BIOMISA", tmp_path)
    with pytest.raises(ValueError, match="no table"): R.read_source("APTOS 2019", tmp_path / "a")
    with pytest.raises(FileNotFoundError): R.check_folder(tmp_path / "none")


def test_a_table_without_its_columns(tmp_path):
    put(tmp_path / "train.csv", "id,diagnose\n1,2\n")
    with pytest.raises(ValueError, match="diagnose"): R.read_source("APTOS 2019", tmp_path)


def test_paths_in_a_table_that_lead_out(tmp_path):
    picture(tmp_path, "secret/x.png"); put(tmp_path / "s/train.csv", "id_code,diagnosis\n../../secret/x,1\n")
    rows, _ = R.read_source("APTOS 2019", tmp_path / "s")
    assert not (Path("s") / rows.image[0]).exists() and rows.image[0] == "train_images/../../secret/x.png"        # chapter 05 refuses it


def test_code_and_attacks_stay_data(tmp_path):
    put(tmp_path / "a/train.csv", "id_code,diagnosis\nx,\"[__import__('os').system('touch hacked')]\"\n")
    assert R.read_source("APTOS 2019", tmp_path / "a")[0].categories[0] == [] and not Path("hacked").exists()
    np.save(tmp_path / "POAG-1.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert R.read_source("glaucoma_detection", tmp_path)[0].image[0].endswith(".npy")                              # not unpickled: the gate refuses it
    put(tmp_path / "x/groundtruth/image001_01.xml", '<!DOCTYPE a [<!ENTITY b "bbbb">]><a><markingtype>&b;</markingtype></a>')
    with pytest.raises(ValueError, match="nothing that looks"): R.read_source("DiaRetDB1", tmp_path / "x")
    for text in ("[" * 100_000, "{broken", ""):
        put(tmp_path / "j/ffair_annotation.json", text)
        with pytest.raises(ValueError, match="not a readable JSON"): R.read_source("FFA-IR", tmp_path / "j")


def test_a_large_table_is_read_in_time(tmp_path):
    "No disk is asked a hundred thousand times."
    import time
    n = 100_000
    put(tmp_path / "train.csv", "id_code,diagnosis\n" + "".join(f"i{i},{i % 5}\n" for i in range(n)))
    start = time.perf_counter()
    rows, _ = R.read_source("APTOS 2019", tmp_path, ["train.csv", *(f"train_images/i{i}.png" for i in range(n))])
    print(f"{n / (time.perf_counter() - start):,.0f} rows a second")
    assert len(rows) == n and rows.categories.map(len).eq(1).all()
