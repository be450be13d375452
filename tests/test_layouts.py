"Chapter 05.3 beyond its notebook: layouts written out by hand, published lists path by path, and strangers' files."
import ast, csv, json
from pathlib import Path

import numpy as np, pytest
from hypothesis import given, settings, strategies as st

from keepfit_nb import layouts as L
from keepfit_nb.knowledge import canonical
from keepfit_nb.registry import find_source
from keepfit_nb.replicas import check_folder, cloud


def picture(root, *paths):
    for p in paths:
        (root / p).parent.mkdir(parents=True, exist_ok=True); cloud(str(p)).save(root / p)


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True); path.write_text(text, encoding="utf-8")


# ---- patterns ---------------------------------------------------------------------------------------------------------

@settings(max_examples=200, deadline=None)
@given(st.from_regex(r"[A-Za-z0-9 .()]{1,12}", fullmatch=True), st.integers(0, 9999), st.sampled_from(["", "a/", "my files/b (3)/"]))
def test_a_filled_pattern_matches_and_gives_back(label, n, base):
    path = base + L.fill("train/{label}/x_{n:04}.png", {"label": label, "n": n})
    if not label.strip(): return
    got = L.pattern("{split}/{label}/x_{n:[0-9]+}.png").match(path)
    assert got == (base, {"split": "train", "label": label.strip(), "n": f"{n:04}"})


# ---- layouts as their owners document them, written out by hand ---------------------------------------------------------

def test_rfmid_by_hand(tmp_path):
    put(tmp_path / "Training_Set/RFMiD_Training_Labels.csv", "ID,Disease_Risk,DR,ARMD,MH,ODC,CSR\n1,1,1,0,0,0,0\n2,1,0,0,1,1,0\n3,0,0,0,0,0,0\n")
    picture(tmp_path, *(f"Training_Set/Training/{i}.png" for i in (1, 2, 3)))
    rows, notes = L.read_source("RFMiD", tmp_path)
    assert rows.categories.tolist() == [["diabetic retinopathy"], ["refractive media opacity"], ["normal"]] and notes["labels_left_out"] == {"ODC": 1}
    assert set(rows.split) == {"train"} and rows.licence[0] == "CC BY 4.0"
    put(tmp_path / "b/2. Groundtruths/a. RFMiD_Training_Labels.csv", "ID,Disease_Risk,DR\n1,1,1\n"); picture(tmp_path, "b/1. Original Images/a. Training Set/1.png")
    assert len(L.read_source("RFMiD", tmp_path / "b")[0]) == 1                              # the layout that FLAIR reads


def test_odir_by_hand(tmp_path):
    put(tmp_path / "full_df.csv", "ID,Left-Fundus,Right-Fundus,Left-Diagnostic Keywords,Right-Diagnostic Keywords\n"
        "0,0_left.jpg,0_right.jpg,cataract,normal fundus\n0,0_left.jpg,0_right.jpg,cataract,normal fundus\n1,1_left.jpg,1_right.jpg,"
        "drusen，epiretinal membrane,optic disk photographically strange\n")
    picture(tmp_path, *(f"preprocessed_images/{i}_{s}.jpg" for i in (0, 1) for s in ("left", "right")))
    rows, notes = L.read_source("ODIR-5K", tmp_path)
    assert rows.categories.tolist() == [["cataract"], ["normal"], ["drusen", "epiretinal membrane"], []]
    assert rows.patient.tolist() == ["0", "0", "1", "1"] and rows.eye.tolist() == ["left", "right"] * 2 and sum(notes["labels_left_out"].values()) == 1


def test_deepdrid_eyepacs_ddr_by_hand(tmp_path):
    put(tmp_path / "d/regular_fundus_images/regular-fundus-training/regular-fundus-training.csv", "patient_id,image_id,image_path,left_eye_DR_Level,right_eye_DR_Level\n"
        "1,1_l1,\\regular-fundus-training\\1\\1_l1.jpg,2.0,\n1,1_r1,\\regular-fundus-training\\1\\1_r1.jpg,,5\n")
    picture(tmp_path, *(f"d/regular_fundus_images/regular-fundus-training/Images/1/1_{s}1.jpg" for s in "lr"))
    rows, notes = L.read_source("DeepDRiD", tmp_path / "d")
    assert rows.categories.tolist() == [["moderate diabetic retinopathy"], []] and set(rows.patient) == {"1"} and notes["labels_left_out"] == {"5": 1}
    put(tmp_path / "e/trainLabels.csv", "image,level\n10_left,0\n10_right,4\n"); picture(tmp_path, "e/train/10_left.jpeg", "e/train/10_right.jpeg")
    rows, _ = L.read_source("EyePACS", tmp_path / "e")
    assert rows.patient.tolist() == ["10", "10"] and rows.eye.tolist() == ["left", "right"] and rows.categories[1] == ["proliferative diabetic retinopathy"]
    put(tmp_path / "f/DR_grading/train.txt", "007-0004-000.jpg 3\n007-0007-000.jpg 5\n"); picture(tmp_path, "f/DR_grading/train/007-0004-000.jpg", "f/DR_grading/train/007-0007-000.jpg")
    rows, _ = L.read_source("OIA-DDR", tmp_path / "f")
    assert rows.categories.tolist() == [["severe diabetic retinopathy"], []] and set(rows.split) == {"train"}


def test_reports_by_hand(tmp_path):
    put(tmp_path / "a/ffair_annotation.json", json.dumps({"train": {"case_7": {"Image_path": [f"case_7/{i}.jpeg" for i in range(12)], "En_Report": " Leakage. \n"}}, "test": {}}))
    picture(tmp_path, *(f"a/FFAIR/case_7/{i}.jpeg" for i in range(12)))
    rows, _ = L.read_source("FFA-IR", tmp_path / "a")
    assert [Path(p).name for p in rows.image] == [f"{i}.jpeg" for i in range(3, 9)] and set(rows.caption) == {"Leakage."} and set(rows.patient) == {"case_7"}
    put(tmp_path / "b/DeepEyeNet_valid.json", json.dumps([{"eyenet0420/valid_set/1.jpg": {"keywords": "drusen, odd word", "clinical-description": "60-year-old with drusen."}}]))
    picture(tmp_path, "b/eyenet0420/valid_set/1.jpg")
    rows, notes = L.read_source("DeepEyeNet", tmp_path / "b")
    assert rows.caption[0] == "60-year-old with drusen." and rows.categories[0] == ["drusen"] and rows.split[0] == "val" and notes["labels_left_out"] == {"odd word": 1}


def test_names_in_paths_by_hand(tmp_path):
    picture(tmp_path, "OCT2017/train/DRUSEN/DRUSEN-1001-1.jpeg", "OCT2017/test/CNV/CNV-77-9.jpeg")
    rows, _ = L.read_source("OCT2017", tmp_path)
    assert rows.sort_values("image").patient.tolist() == ["77", "1001"] and set(rows.split) == {"train", "test"}
    picture(tmp_path / "o", "OCTDL/AMD/amd_1.jpg"); put(tmp_path / "o/OCTDL_labels.csv", "file_name,disease,patient_id,eye\namd_1,AMD,5,OD\nno_9,NO,6,OS\n")
    rows, _ = L.read_source("OCTDL", tmp_path / "o")
    assert rows.image.tolist() == ["OCTDL/AMD/amd_1.jpg", "NO/no_9"] and rows.patient.tolist() == ["5", "6"]      # the second is missing: the gate will say so
    report = check_folder(tmp_path / "o")
    assert report["source"] == "OCTDL" and report["missing"] == 1 and "1 of 2 images are missing" in report["verdict"]


def test_angiography_with_several_labels(tmp_path):
    put(tmp_path / "Train.csv", 'Folder,Impression\n001_L,"uveitis,cystoid macular edema"\n002_R,choroidal mass\n')
    picture(tmp_path, *(f"Train/{f}/{i}.jpg" for f in ("001_L", "002_R") for i in range(10)))
    rows, notes = L.read_source("Angiographic", tmp_path)
    assert len(rows) == 16 and rows.categories[0] == ["uveitis", "cystoid macular edema"] and notes["labels_left_out"] == {"choroidal mass": 1}


@pytest.mark.real
def test_published_lists_agree_path_by_path(real):
    "The layouts of four sets against the lists of the open kits, which nobody here wrote."
    for file, name in (("MPOS.csv", "MPOS"), ("OCT05_OCTID.csv", "OCTID"), ("13_FIVES.csv", "FIVES"), ("25_REFUGE.csv", "REFUGE")):
        with open(real / "tables" / file, encoding="utf-8") as f: listed = {r["image"]: [canonical(c) for c in ast.literal_eval(r["categories"])] for r in csv.DictReader(f)}
        rows, notes = L.read_source(name, real / "tables", list(listed))
        assert dict(zip(rows.image, rows.categories)) == listed and not notes["labels_not_listed"], name
        size = find_source(name).fact("size"); assert size == "unknown" or name == "REFUGE" or len(listed) == size


# ---- strangers -----------------------------------------------------------------------------------------------------------

def test_a_table_without_its_columns(tmp_path):
    put(tmp_path / "train.csv", "id,diagnose\n1,2\n")
    with pytest.raises(ValueError, match="diagnose"): L.read_source("APTOS 2019", tmp_path)


def test_paths_in_a_table_that_lead_out(tmp_path):
    picture(tmp_path, "secret/x.png"); put(tmp_path / "s/train.csv", "id_code,diagnosis\n../../secret/x,1\n")
    rows, _ = L.read_source("APTOS 2019", tmp_path / "s")
    assert not (Path("s") / rows.image[0]).exists() and rows.image[0] == "train_images/../../secret/x.png"        # chapter 05 refuses it


def test_code_and_attacks_stay_data(tmp_path):
    put(tmp_path / "a/train.csv", "id_code,diagnosis\nx,\"[__import__('os').system('touch hacked')]\"\n")
    assert L.read_source("APTOS 2019", tmp_path / "a")[0].categories[0] == [] and not Path("hacked").exists()
    np.save(tmp_path / "POAG-1.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert L.read_source("glaucoma_detection", tmp_path)[0].image[0].endswith(".npy")                              # not unpickled: the gate refuses it
    put(tmp_path / "x/groundtruth/image001_01.xml", '<!DOCTYPE a [<!ENTITY b "bbbb">]><a><markingtype>&b;</markingtype></a>')
    with pytest.raises(ValueError, match="nothing that looks"): L.read_source("DiaRetDB1", tmp_path / "x")
    for text in ("[" * 100_000, "{broken", ""):
        put(tmp_path / "j/ffair_annotation.json", text)
        with pytest.raises(ValueError, match="not a readable JSON"): L.read_source("FFA-IR", tmp_path / "j")


def test_a_large_table_is_read_in_time(tmp_path):
    "No disk is asked a hundred thousand times."
    import time
    n = 100_000
    put(tmp_path / "train.csv", "id_code,diagnosis\n" + "".join(f"i{i},{i % 5}\n" for i in range(n)))
    start = time.perf_counter()
    rows, _ = L.read_source("APTOS 2019", tmp_path, ["train.csv", *(f"train_images/i{i}.png" for i in range(n))])
    print(f"{n / (time.perf_counter() - start):,.0f} rows a second")
    assert len(rows) == n and rows.categories.map(len).eq(1).all()
