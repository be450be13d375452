"Chapter 05 beyond its notebook: every way a user's disk can be wrong, and the real set."
import json, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from keepfit_nb import sources as M
from keepfit_nb.download import slug
from keepfit_nb.knowledge import names_term
from keepfit_nb.profiles import open_run, real_folder
from keepfit_nb.registry import load_registry
from keepfit_nb.replicas import make_replica
from keepfit_nb.tables import write_dicom, write_xlsx

LABELS = ("normal", "glaucoma", "diabetic retinopathy")


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def cloud_(path, seed):
    "A picture with structure, as a copy check needs it."
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 255, (14, 14, 3), dtype=np.uint8)
    Image.fromarray(x).resize((160, 160), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def disk(tmp_path):
    for i in range(30): picture(tmp_path / "d" / LABELS[i % 3] / f"{i}.png", i)
    return tmp_path / "d"


def spec(path, reader="folder", **more): return M.SetSpec(**{"name": "mine", "reader": reader, "path": str(path), "modality": "CFP", **more})


def table(folder, text, name="t.csv", encoding="utf-8", n=10):
    for i in range(n): picture(folder / f"{i}.png", 100 + i)
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def lines(n=10, head="image,label,split", line="{i}.png,glaucoma,train"): return head + "\n" + "".join(line.format(i=i) + "\n" for i in range(n))


# ---- folders ------------------------------------------------------------------------------------------------------

def test_folder_is_split_by_label(disk):
    roles, refused, s = M.read_set(spec(disk))
    assert len(refused) == 0 and s["split"].startswith("by image")
    ev = roles["evaluation"].to_pandas()
    assert (ev[ev.split == "test"].categories.map(lambda c: c[0]).value_counts() == 2).all() and len(ev) == 30
    assert len(roles["public"]) == 24 and len(roles["elite"]) == 0
    again = M.read_set(spec(disk))[0]["evaluation"]["split"]
    assert again == list(roles["evaluation"]["split"])


def test_missing_empty_and_imageless_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder at"): M.read_set(spec(tmp_path / "no"))
    (tmp_path / "e").mkdir()
    with pytest.raises(ValueError, match="no image"): M.read_set(spec(tmp_path / "e"))
    (tmp_path / "e" / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="no image"): M.read_set(spec(tmp_path / "e"))
    with pytest.raises(FileNotFoundError): M.read_set(spec(picture(tmp_path / "a.png")))


def test_split_and_modality_folders(tmp_path):
    for i, (m, s) in enumerate((m, s) for m in ("OCT", "ffa") for s in ("Training", "test") for _ in range(3)):
        picture(tmp_path / m / s / "macular_hole" / "left" / f"{i}.PNG", i)
    roles, _, s = M.read_set(spec(tmp_path, modality=""))
    ev = roles["evaluation"].to_pandas()
    assert s["split"] == "given" and set(ev.modality) == {"OCT", "FFA"} and set(ev.split) == {"train", "test"}
    assert {tuple(c) for c in ev.categories} == {("macular hole",)}


def test_class_with_one_image(disk):
    picture(disk / "macular hole" / "x.png", 99)
    roles, _, s = M.read_set(spec(disk))
    assert any("'macular hole' has one image" in h for h in s["hints"])
    assert sum("macular hole" in c for c in roles["evaluation"]["categories"]) == 1


def test_broken_images_are_refused(disk):
    good = (disk / "normal" / "0.png").read_bytes()
    for name, content in (("cut.jpg", None), ("zero.png", b""), ("text.png", b"not a picture"), ("half.png", good[:len(good) // 2])):
        if content is None:
            big = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
            big.save(disk / "normal" / name)
            content = (disk / "normal" / name).read_bytes()[:1500]
        (disk / "normal" / name).write_bytes(content)
    roles, refused, s = M.read_set(spec(disk, max_quarantined=.2))
    assert len(refused) == 4 and s["quarantined"] == 4 and len(roles["evaluation"]) == 30
    assert any("zero" in r for r in refused.reason) and any("not an image" in r for r in refused.reason) and set(refused.set) == {"mine"}
    with pytest.raises(ValueError, match="'mine'.*max_quarantined"): M.read_set(spec(disk))


def test_no_modality_and_unknown_modality(disk):
    with pytest.raises(ValueError, match="which modality"): M.read_set(spec(disk, modality=""))
    with pytest.raises(ValueError, match="OCT"): spec(disk, modality="OTC")


def test_file_names_with_people_are_not_shown(disk):
    picture(disk / "normal" / "Smirnova_Olga_12.03.1961.png", 5)
    roles, refused, s = M.read_set(spec(disk))
    assert len(refused) == 1 and s["personal"] == 1
    assert "Smirnova" not in refused.to_csv() + json.dumps(s, default=str)
    assert not any("Smirnova" in p for p in roles["evaluation"]["image"])


# ---- tables --------------------------------------------------------------------------------------------------------

def test_table_without_image_column(tmp_path):
    t = table(tmp_path, "label,split\nnormal,train\n")
    with pytest.raises(ValueError, match="no column with the image files.*label, split"): M.read_set(spec(t, "table"))
    with pytest.raises(ValueError, match="did you mean 'label'"): M.read_set(spec(t, "table", columns={"image": "lable"}))
    with pytest.raises(ValueError, match="did you mean 'categories'"): M.read_set(spec(t, "table", columns={"categorie": "label"}))


def test_missing_empty_and_headless_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="no table at"): M.read_set(spec(tmp_path / "no.csv", "table"))
    for text, word in (("", "empty"), ("  \n", "empty"), ("image,label\n", "no rows"), ("a,a\n1,2\n", "two columns")):
        with pytest.raises(ValueError, match=word): M.read_set(spec(table(tmp_path, text), "table"))
    (tmp_path / "t.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match="not a readable Parquet"): M.read_set(spec(tmp_path / "t.parquet", "table"))


def test_duplicate_rows(tmp_path):
    t = table(tmp_path, lines() + "3.png,glaucoma,train\n")
    roles, refused, _ = M.read_set(spec(t, "table", max_quarantined=.2))
    assert list(refused.reason) == ["duplicate of row 3"] and list(refused.row) == [10] and len(roles["public"]) == 10


def test_unknown_label_is_named_with_the_nearest(tmp_path):
    t = table(tmp_path, lines() + "3.png,glaucomma,train\n")
    roles, _, s = M.read_set(spec(t, "table"))
    assert any("'glaucomma'; did you mean 'glaucoma'" in h for h in s["hints"]) and len(roles["public"]) == 11
    roles, refused, _ = M.read_set(spec(t, "table", strict=True, max_quarantined=.2))
    assert list(refused.reason) == ["unknown label 'glaucomma'"] and list(refused.row) == [10] and len(roles["public"]) == 10


def test_strange_modality_is_set_aside_not_broken(tmp_path):
    t = table(tmp_path, lines(head="image,label,modality", line="{i}.png,glaucoma,CFP").replace("4.png,glaucoma,CFP", "4.png,glaucoma,RED-FREE"))
    roles, refused, s = M.read_set(spec(t, "table", modality=""))
    assert len(refused) == 0 and s["set_aside_by_modality"] == {"RED-FREE": 1} and len(roles["evaluation"]) == 9


@pytest.mark.parametrize("cell, want", [("['glaucoma', 'cataract']", 2), ('"[""glaucoma"", ""cataract""]"', 2), ("glaucoma|cataract", 2),
                                        ("glaucoma; cataract", 2), ("[]", 0), ("", 0)])
def test_lists_in_cells(tmp_path, cell, want):
    if "," in cell and not cell.startswith('"'): cell = f'"{cell}"'
    t = table(tmp_path, lines(line="{i}.png," + cell + ",train"))
    roles, _, _ = M.read_set(spec(t, "table"))
    assert [len(c) for c in roles["public"]["categories"]] == [want] * (10 if want else 0)


def test_code_in_a_cell_stays_text(tmp_path):
    t = table(tmp_path, lines(line="{i}.png,\"[__import__('os').system('touch hacked')]\",train"))
    with pytest.raises(ValueError, match="not a list"): M.read_set(spec(t, "table"))
    assert not Path("hacked").exists()


@pytest.mark.parametrize("encoding, words", [("utf-8", "青光眼"), ("utf-8-sig", "青光眼"), ("gb18030", "青光眼，左眼"), ("latin-1", "dégénérescence liée à l'âge")])
def test_encodings(tmp_path, encoding, words):
    t = table(tmp_path, lines(head="image,label,caption_zh,split", line="{i}.png,glaucoma," + words + ",train"), encoding=encoding)
    roles, _, s = M.read_set(spec(t, "table"))
    assert roles["public"]["caption_zh"][0] == words and s["encoding"] == encoding.replace("-sig", "")


def test_wrong_encoding_given(tmp_path):
    t = table(tmp_path, lines(line="{i}.png,é,train"), encoding="latin-1")
    for e in ("utf-8", "nonsense"):
        with pytest.raises(ValueError, match=e): M.read_set(spec(t, "table", encoding=e))


def test_ragged_rows_are_refused_with_that_reason(tmp_path):
    t = table(tmp_path, lines(30, "image,label,split,caption", "{i}.png,glaucoma,train,pale rim") + "5.png,glaucoma,train,large cup, pale rim\n6.png,glaucoma\n", n=30)
    roles, refused, _ = M.read_set(spec(t, "table", max_quarantined=.1))
    assert list(refused.row) == [30, 31] and refused.reason.str.contains("cells in place of 4").all() and len(roles["elite"]) == 30


def test_split_column_is_used_and_half_a_split_is_an_error(tmp_path):
    t = table(tmp_path, lines(8) + "8.png,glaucoma,test\n9.png,glaucoma,val\n")
    roles, _, s = M.read_set(spec(t, "table"))
    assert s["split"] == "given" and len(roles["public"]) == 8 and len(roles["evaluation"]) == 10
    t = table(tmp_path, lines(8) + "8.png,glaucoma,\n9.png,glaucoma,\n")
    with pytest.raises(ValueError, match="2 of 10 rows have no split"): M.read_set(spec(t, "table"))


def test_table_is_split_by_patient(tmp_path):
    text = "image,label,patient_id\n" + "".join(f"{i}.png,{LABELS[i // 2 % 3]},{i // 4}\n" for i in range(60))
    roles, _, s = M.read_set(spec(table(tmp_path, text, n=60), "table"))
    ev = roles["evaluation"].to_pandas()
    assert s["split"] == "by patient" and (ev.groupby("patient").split.nunique() == 1).all() and ev.patient.str.startswith("p-").all()


def test_captions_make_the_spark(tmp_path):
    text = "image,label,report,split\n" + "".join(f"{i}.png,glaucoma,{'large cup' if i % 2 else ''},{'test' if i > 7 else 'train'}\n" for i in range(10))
    roles, _, _ = M.read_set(spec(table(tmp_path, text), "table"))
    assert len(roles["elite"]) == 4 and set(roles["elite"]["split"]) == {"train"} and len(roles["public"]) == 8
    roles, _, _ = M.read_set(spec(table(tmp_path, text), "table", roles={"train": ["public"], "test": ["evaluation"]}))
    assert (len(roles["elite"]), len(roles["public"]), len(roles["evaluation"])) == (0, 8, 2)


def test_roles_are_checked(disk):
    with pytest.raises(ValueError, match="public"): spec(disk, roles={"train": ["pubic"]})
    with pytest.raises(ValueError, match="train"): M.read_set(spec(disk, roles={"trian": ["public"]}))
    with pytest.raises(ValueError, match="folder"): spec(disk, reader="fodler")
    with pytest.raises(ValueError): M.SetSpec(name="x", pth="y")


def test_parquet_table(tmp_path):
    table(tmp_path, "image\n0.png\n")
    pd.DataFrame({"file": [f"{i}.png" for i in range(10)], "labels": [["glaucoma", "cataract"]] * 10, "patient": range(10)}).to_parquet(tmp_path / "t.parquet")
    roles, _, s = M.read_set(spec(tmp_path / "t.parquet", "table"))
    assert roles["public"]["categories"][0] == ["glaucoma", "cataract"] and s["split"] == "by patient"


# ---- several sets ---------------------------------------------------------------------------------------------------

def test_leaks_stop_the_run_or_are_dropped(tmp_path, disk):
    (tmp_path / "copy" / "normal").mkdir(parents=True)
    roles, _, _ = M.read_set(spec(disk))
    test = [p for p, s in zip(roles["evaluation"]["image"], roles["evaluation"]["split"]) if s == "test"]
    for i, p in enumerate(test[:3] + [test[0]]): (tmp_path / "copy" / "normal" / f"c{i}.png").write_bytes(Path(p).read_bytes())
    other = M.SetSpec(name="copy", reader="folder", path=str(tmp_path / "copy"), modality="CFP", roles={"train": ["public"], "test": ["public"]})
    with pytest.raises(ValueError, match="4 × same image bytes|3 × same image bytes"): M.gather(M.Settings(sets=[spec(disk), other]))
    roles, _, s = M.gather(M.Settings(sets=[spec(disk), other], leaks="drop"))
    assert s["dropped_leaks"] == 4 and len(roles["public"]) == 24


@pytest.mark.parametrize("near, left", [("off", 24), ("report", 24), ("drop", 21)])
def test_near_copies_of_test_images(tmp_path, near, left):
    for i in range(30): cloud_(tmp_path / "d" / LABELS[i % 3] / f"{i}.png", i)
    roles, _, _ = M.read_set(spec(tmp_path / "d"))
    test = [p for p, s in zip(roles["evaluation"]["image"], roles["evaluation"]["split"]) if s == "test"]
    train = [p for p, s in zip(roles["evaluation"]["image"], roles["evaluation"]["split"]) if s == "train"]
    for a, b in zip(train[:3], test): Image.open(b).resize((150, 150)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(a)      # same file name, other picture
    out, pairs, dropped = M.check_near({r: M.read_set(spec(tmp_path / "d"))[0][r] for r in M.ROLES}, near)
    assert len(out["public"]) == left and dropped == (6 if near == "drop" else 0) and len(pairs) == (0 if near == "off" else 6)
    if len(pairs): assert set(pairs.role) == {"public", "evaluation"} and set(pairs.kind) <= set(M.NEAR)


def test_near_copies_may_stop_a_run(tmp_path):
    for i in range(30): cloud_(tmp_path / "d" / LABELS[i % 3] / f"{i}.png", i)
    assert M.gather(M.Settings(sets=[spec(tmp_path / "d")], near="refuse"))[2]["near_copies"]["found"] == {}
    with pytest.raises(ValueError, match="report"): M.Settings(near="repport")


def test_same_patient_on_both_sides(tmp_path):
    t = table(tmp_path, "image,label,patient,split\n" + "".join(f"{i}.png,glaucoma,A{i % 5},{'test' if i > 7 else 'train'}\n" for i in range(10)))
    with pytest.raises(ValueError, match="same patient"): M.gather(M.Settings(sets=[spec(t, "table")]))


def test_patient_seven_of_two_clinics(tmp_path):
    for clinic in "ab":
        for i in range(10): picture(tmp_path / clinic / f"{i}.png", ord(clinic) * 100 + i)
        (tmp_path / clinic / "t.csv").write_text("image,label,patient,split\n" + "".join(f"{i}.png,glaucoma,{i},{'test' if (i > 7) == (clinic == 'a') else 'train'}\n" for i in range(10)))
    sets = [spec(tmp_path / c / "t.csv", "table", name=c) for c in "ab"]
    with pytest.raises(ValueError, match="same patient.*give each set `patients"): M.gather(M.Settings(sets=sets))      # cautious: the numbers might be shared
    roles, _, _ = M.gather(M.Settings(sets=[s.model_copy(update={"patients": s.name}) for s in sets]))
    assert len(roles["public"]) == 10 and len(set(roles["evaluation"]["patient"])) == 20


def test_nothing_to_train_on(tmp_path):
    t = table(tmp_path, lines(line="{i}.png,,train"))
    with pytest.raises(ValueError, match="no row is left to train on"): M.gather(M.Settings(sets=[spec(t, "table")]))


def test_settings(disk):
    with pytest.raises(ValueError, match="one name"): M.Settings(sets=[spec(disk), spec(disk)])
    with pytest.raises(ValueError, match="no set"): M.Settings(sets=[])
    with pytest.raises(ValueError, match="drop"): M.Settings(leaks="drp")


def test_stage_with_a_folder_alone(tmp_path, disk):
    run = open_run("05_sources", "smoke", tmp_path / "run", 0, {"sources.sets": [spec(disk).model_dump()]})
    folder = run.need("05_sources")
    assert {p.name for p in folder.iterdir()} >= {"elite.parquet", "public.parquet", "evaluation.parquet", "quarantine.csv", "summary.json"}
    assert not (tmp_path / "run" / "03d_captions").exists()                        # phantoms only where a set asks for them
    stamp = (folder / "public.parquet").stat().st_mtime_ns
    assert run.need("05_sources").joinpath("public.parquet").stat().st_mtime_ns == stamp
    picture(disk / "normal" / "new.png", 77)                                         # the user's disk changed: read again
    again = open_run("05_sources", "smoke", tmp_path / "run", 0, {"sources.sets": [spec(disk).model_dump()]})
    assert (again.need("05_sources") / "public.parquet").stat().st_mtime_ns != stamp


# ---- public sets, atlas pairs, DICOM, dataset folders ------------------------------------------------------------------

def known(name, path, **more): return M.SetSpec(name=name, reader="known", path=str(path), **more)


def test_a_public_set_by_its_name(tmp_path):
    make_replica("IDRiD", tmp_path / "x", 2)
    roles, refused, s = M.read_set(known("IDRiD", tmp_path))
    assert len(refused) == 0 and s["split"] == "given" and len(roles["elite"]) == 0 and 0 < len(roles["public"]) < len(roles["evaluation"])
    assert set(roles["public"]["split"]) == {"train"} and set(roles["public"]["source"]) == {"IDRiD"}
    with pytest.raises(ValueError, match="did you mean 'IDRiD'"): M.read_set(known("IDRD", tmp_path))
    with pytest.raises(ValueError, match="is this APTOS 2019"): M.read_set(known("mine", tmp_path, entry="APTOS 2019"))


def test_evaluation_sets_are_never_trained_on(tmp_path):
    for name in ("FIVES", "MPOS", "OCTID", "DeepDRiD"):
        make_replica(name, tmp_path / name, 5)
        roles, _, _ = M.read_set(known(name, tmp_path / name, max_quarantined=1))
        assert len(roles["public"]) == len(roles["elite"]) == 0 and len(roles["evaluation"]) > 0


def test_pairs_are_all_spark(tmp_path):
    make_replica("MM-Retinal V1 FFA", tmp_path / "m", 6)
    roles, _, _ = M.read_set(known("MM-Retinal V1 FFA", tmp_path / "m"))
    assert len(roles["elite"]) == 6 and set(roles["elite"]["split"]) == {"train"} and set(roles["elite"]["modality"]) == {"FFA"} and all(roles["elite"]["caption_zh"])


def test_missing_images_and_bad_paths_of_a_known_set(tmp_path):
    make_replica("APTOS 2019", tmp_path / "a", 4)
    picture(tmp_path / "secret" / "x.png")
    with (tmp_path / "a" / "train.csv").open("a") as f: f.write("../../secret/x,1\nnowhere,2\n")
    roles, refused, _ = M.read_set(known("APTOS 2019", tmp_path / "a", max_quarantined=.2))
    assert [r.split(" (")[0] for r in refused.reason] == ["image: its path leads out of the folder", "image: no such file"]
    assert not any("secret" in p for p in roles["evaluation"]["image"])


def test_paths_in_a_table_of_yours_stay_inside(tmp_path):
    picture(tmp_path / "secret" / "s.png")
    t = table(tmp_path / "t", lines() + f"../secret/s.png,glaucoma,train\n{tmp_path}/secret/s.png,glaucoma,train\n")
    roles, refused, _ = M.read_set(spec(t, "table", max_quarantined=.5))
    assert list(refused.row) == [10, 11] and set(refused.reason) == {"image: its path leads out of the folder"}
    t = table(tmp_path / "t", "image,label,split\n" + f"{tmp_path}/secret/s.png,glaucoma,train\n", "u.csv")
    assert len(M.read_set(spec(t, "table", images="/"))[0]["public"]) == 1                       # said so, on purpose


def test_atlas_pairs(tmp_path):
    for i in range(4): picture(tmp_path / "atlas" / "panels" / f"{i}.png", i)
    pd.DataFrame({"image": [f"panels/{i}.png" for i in range(4)], "modality": ["CFP", "FFA", "OCT", "CFP"], "caption": [f"Figure words {i}" for i in range(3)] + [""],
                  "caption_zh": ["视盘正常"] * 4, "categories": [["glaucoma"], [], ["drusen"], []], "page": range(4)}).to_parquet(tmp_path / "atlas" / "pairs.parquet")
    roles, _, s = M.read_set(M.SetSpec(name="atlas", reader="atlas", path=str(tmp_path / "atlas")))
    assert len(roles["elite"]) == 3 and set(roles["elite"]["split"]) == {"train"} and roles["elite"]["caption_zh"][0] == "视盘正常" and s["columns_left_out"] == ["page"]
    assert len(roles["public"]) == len(roles["evaluation"]) == 0 and ["1 rows have Chinese words only" in h for h in s["hints"]][-1]      # a book is for training


def test_dicom_and_dataset_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("KEEPFIT_DATA", str(tmp_path / "cache"))
    import datasets
    for i in range(6): write_dicom(tmp_path / "d" / ("glaucoma", "normal")[i % 2] / f"{i}.dcm", np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8), PatientID=f"{i // 2}")
    roles, _, s = M.read_set(M.SetSpec(name="ward", reader="dicom", path=str(tmp_path / "d")))
    assert len(roles["evaluation"]) == 6 and s["split"] == "by patient" and all(p.startswith("p-") for p in roles["evaluation"]["patient"])
    files = [str(picture(tmp_path / "p" / f"{i}.png", i)) for i in range(6)]
    made = datasets.Dataset.from_dict({"image": files, "label": [0, 1] * 3, "caption": ["a pale disc"] * 6},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["normal", "glaucoma"]), "caption": datasets.Value("string")}))
    datasets.DatasetDict({"train": made.select(range(4)), "test": made.select([4, 5])}).save_to_disk(tmp_path / "hub")
    roles, _, _ = M.read_set(M.SetSpec(name="hub", reader="huggingface", path=str(tmp_path / "hub"), modality="CFP"))
    assert (len(roles["elite"]), len(roles["public"]), len(roles["evaluation"])) == (4, 4, 6)


def test_excel_and_json_lines(tmp_path):
    for i in range(10): picture(tmp_path / f"{i}.png", 100 + i)
    write_xlsx(tmp_path / "t.xlsx", [["image", "diagnosis"], *([f"{i}.png", "glaucoma"] for i in range(10))])
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"image": f"{i}.png", "labels": ["glaucoma", "cataract"]}) + "\n" for i in range(10)) + "broken\n")
    assert len(M.read_set(spec(tmp_path / "t.xlsx", "table"))[0]["evaluation"]) == 10
    roles, refused, _ = M.read_set(spec(tmp_path / "t.jsonl", "table", max_quarantined=.1))
    assert roles["evaluation"]["categories"][0] == ["glaucoma", "cataract"] and list(refused.reason) == ["not a JSON object"]


# ---- a root with whatever is there --------------------------------------------------------------------------------------

def test_root_reads_what_is_there_and_names_what_is_not(tmp_path):
    for name in ("IDRiD", "FIVES", "MM-Retinal V1 CFP", "DeepEyeNet"): make_replica(name, tmp_path / slug(name), 5)
    roles, _, s = M.gather(M.Settings(sets=[], root=str(tmp_path)))
    assert set(s["sets"]) == {"IDRiD", "FIVES", "MM-Retinal V1 CFP"} and len(roles["elite"]) and len(roles["public"])
    assert "LAG" in s["absent"] and "write to its owners" in s["absent"]["LAG"] and "IDRiD" not in s["absent"]
    assert "which modality" in s["absent"]["DeepEyeNet"]                              # not guessed
    with pytest.raises(FileNotFoundError, match="sources.root"): M.gather(M.Settings(sets=[], root=str(tmp_path / "no")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="none lies under"): M.gather(M.Settings(sets=[], root=str(tmp_path / "empty")))


# ---- phantoms -------------------------------------------------------------------------------------------------------------

@pytest.fixture
def phantoms(tmp_path):
    "Forty stand-ins for what chapter 03d leaves, each row with its role."
    rows = [dict(image=str(tmp_path / f"{i}.png"), modality="CFP", caption=f"drusen {i}", categories=["drusen"], patient=f"p-{i:032x}", source="phantoms", split="train") for i in range(40)]
    def write(folder, **broken):
        folder.mkdir(); role = [M.ROLES[i % 3] for i in range(40)]
        bad = [{**r, **broken} if i in (4, 9) else r for i, r in enumerate(rows)]
        ds = M.Dataset.from_list([{**{c: [] if c in ("categories", "attributes") else "" for c in M.COLUMNS}, **r, "role": k} for r, k in zip(bad, role)])
        M.write_records(ds, folder / "phantoms.parquet")
        return M.SetSpec(name="phantoms", reader="phantoms", path=str(folder), max_quarantined=.05)
    return write


def test_a_refused_phantom_leaves_alone_and_takes_its_role_along(phantoms, tmp_path):
    roles, refused, s = M.read_set(phantoms(tmp_path / "a", caption="dru\ufffden"))
    assert list(refused.row) == [4, 9] and s["quarantined"] == 2 and s["kept"] == 38
    said = {k: [int(c.split()[1]) for c in v["caption"]] for k, v in roles.items()}
    assert said == {k: [i for i in range(40) if M.ROLES[i % 3] == k and i not in (4, 9)] for k in M.ROLES}       # nobody slid into another role
    with pytest.raises(ValueError, match="set 'phantoms': 2 of 40 rows .* max_quarantined = 4%"):
        M.read_set(phantoms(tmp_path / "b", caption="dru\ufffden").model_copy(update={"max_quarantined": .04}))
    with pytest.raises(ValueError, match="strange modality"): M.read_set(phantoms(tmp_path / "c", modality="RED-FREE"))


# ---- unseen ---------------------------------------------------------------------------------------------------------------

@pytest.fixture
def study(tmp_path):
    labels = ["glaucoma", "cataract", "macular hole", "['drusen', 'macular hole']", "drusen"] * 6
    said = ["pale rim", "a cloudy lens", "a full-thickness hole in the macula", "MH with drusen", "Next to it lies a macular hole.", "soft drusen"] * 5
    text = "image,label,caption,split\n" + "".join(f'{i}.png,"{labels[i]}",{said[i]},{"test" if i > 23 else "train"}\n' for i in range(30))
    return table(tmp_path, text, n=30)


def test_unseen_leaves_images_labels_captions_and_text(study, tmp_path):
    (tmp_path / "words.txt").write_text("A macular hole closes after surgery.\n\n黄斑裂孔是全层缺损。\n\nDrusen lie under the epithelium.\n")
    settings = M.Settings(sets=[spec(study, "table")], unseen=["macular hole"], texts=[str(tmp_path / "words.txt")])
    roles, _, s = M.gather(settings)
    for role in ("elite", "public"):
        assert len(roles[role]) and not any("macular hole" in c for c in roles[role]["categories"])
        assert not any(names_term(t, ["macular hole"]) for t in roles[role]["caption"])
    assert any("macular hole" in c for c in roles["evaluation"]["categories"]) and s["unseen"]["kind"] == "unseen" and s["unseen"]["removed"]["elite"] > 0
    text, count = M.gather_text(settings, roles)
    assert count["unseen"] >= 2 and not any(names_term(t, ["macular hole"]) for t in text.text) and (text.text == "Drusen lie under the epithelium.").any()


def test_image_unseen_keeps_the_words(study, tmp_path):
    (tmp_path / "words.txt").write_text("A macular hole closes after surgery.")
    settings = M.Settings(sets=[spec(study, "table")], unseen=["macular hole"], unseen_images_only=True, texts=[str(tmp_path / "words.txt")])
    roles, _, s = M.gather(settings)
    assert s["unseen"]["kind"] == "image-unseen" and not any("macular hole" in c for c in roles["public"]["categories"])
    assert any(names_term(t, ["macular hole"]) for t in roles["elite"]["caption"])
    assert (M.gather_text(settings, roles)[0].text == "A macular hole closes after surgery.").any()


def test_a_group_may_be_unseen(study):
    roles, _, s = M.gather(M.Settings(sets=[spec(study, "table")], unseen=["vitreomacular interface disease"]))
    assert "macular hole" in s["unseen"]["categories"] and not any("macular hole" in c for c in roles["public"]["categories"])
    with pytest.raises(ValueError, match="cataract"): M.Settings(unseen=["cataracct"])


# ---- the corpus -----------------------------------------------------------------------------------------------------------

def test_corpus_of_a_run(study, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.md").write_text("# Title\n\nThe retina lines the eye.\n\nThe retina  lines\nthe eye.\n\nPatient name: Roe, born on 12.03.1961.")
    test_caption = "soft drusen"
    (tmp_path / "t" / "c.csv").write_text(f"image,caption\na.png,{test_caption}\nb.png,words of a book\n")
    run = open_run("05_sources", "smoke", tmp_path / "run", 0, {"sources": {"sets": [spec(study, "table").model_dump()], "texts": [str(tmp_path / "t")]}})
    folder = run.need("05_sources")
    table_ = pd.read_parquet(folder / "corpus.parquet")
    mine = list(table_.text[table_.source != "keepfit_nb"])
    assert mine == ["The retina lines the eye.", "words of a book"] and (table_.source == "keepfit_nb").sum() > 100
    plain = (folder / "corpus.txt").read_text(encoding="utf-8")
    assert plain.strip().split("\n\n") == list(table_.text) and "Roe" not in plain
    count = json.loads((folder / "summary.json").read_text())["corpus"]
    assert count["repeated"] == 1 and count["personal"] == 1 and count["test caption"] == 1
    (tmp_path / "t" / "a.md").write_text("Other words now.")
    again = open_run("05_sources", "smoke", tmp_path / "run", 0, {"sources": {"sets": [spec(study, "table").model_dump()], "texts": [str(tmp_path / "t")]}})
    assert "Other words now." in (again.need("05_sources") / "corpus.txt").read_text()


def test_corpus_without_the_shipped_text(study):
    text, count = M.gather_text(M.Settings(sets=[spec(study, "table")], shipped_text=False), M.gather(M.Settings(sets=[spec(study, "table")]))[0])
    assert len(text) == 0 and count["words"] == 0


# ---- the real set ----------------------------------------------------------------------------------------------------

@pytest.mark.real
def test_real_set():
    if not (real_folder() / "records.csv").exists(): pytest.skip("no real images: set KEEPFIT_REAL to their folder")
    roles, refused, s = M.gather(M.Settings(sets=[M.SetSpec(name="real", reader="real")], near="off"))
    t, s = pd.read_csv(real_folder() / "records.csv"), s["sets"]["real"]
    in_scope = t[t.modality.isin(["CFP", "FFA", "OCT"])]
    labelled = in_scope[in_scope.categories != "[]"]
    assert s["set_aside_by_modality"] == {"RED-FREE": int((t.modality == "RED-FREE").sum())} and len(refused) == s["quarantined"] == 0
    assert len(roles["public"]) == (labelled.split == "train").sum() and len(roles["evaluation"]) == len(labelled)
    assert set(roles["elite"]["source"]) == {"odir"} and set(roles["elite"]["split"]) == {"train"}
    assert M.check_leaks(roles)[1] == 0


@pytest.mark.real
def test_a_published_caption_table_through_the_gate(real, tmp_path):
    "The table with swallowed commas, with a picture under each name: 152 rows are refused for what they are, 248 become spark."
    rows, _ = M.read_table(real / "text" / "broken_caption_table.csv")
    for name in filter(None, rows.Image_ID): picture(tmp_path / name, abs(hash(name)) % 9999)
    (tmp_path / "t.csv").write_bytes((real / "text" / "broken_caption_table.csv").read_bytes())
    roles, refused, s = M.read_set(spec(tmp_path / "t.csv", "table", columns={"image": "Image_ID"}, roles={"train": ["elite"], "test": ["elite"]}, max_quarantined=.5))
    why = refused.reason.str.replace(r"^\d+ cells.*", "cells", regex=True).value_counts()
    assert why["cells"] + why["caption: broken encoding: Chinese read as GBK, bytes lost"] >= 150 and len(roles["elite"]) + len(refused) == 400
    assert s["captions"]["mended"] >= 40


# ---- everything at once ------------------------------------------------------------------------------------------------

def all_replicas(folder, per_class=2):
    for s in load_registry().values():
        if s.layout: make_replica(s.name, folder / slug(s.name), per_class)
    return folder


@pytest.mark.slow
def test_full_reads_the_replicas_of_all_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("KEEPFIT_DATA", str(tmp_path / "cache"))
    root = all_replicas(tmp_path / "sets")
    den = dict(name="DeepEyeNet", reader="known", path=str(root / "deepeyenet"), modality="CFP")
    run = open_run("05_sources", "full", tmp_path / "run", 0, {"sources": {"sets": [den], "root": str(root), "unseen": ["myopia", "cataract", "macular hole", "retinitis pigmentosa"]}})
    folder = run.need("05_sources")
    s = json.loads((folder / "summary.json").read_text())
    assert len(s["sets"]) == sum(x.layout is not None for x in load_registry().values()) and all(x["quarantined"] == 0 for x in s["sets"].values())
    roles = {r: M.read_records(folder / f"{r}.parquet") for r in M.ROLES}
    assert {m for r in roles.values() for m in r["modality"]} == {"CFP", "FFA", "OCT"} and min(map(len, roles.values())) > 10
    inside = set(s["unseen"]["categories"])
    assert not any(inside & set(c) for r in ("elite", "public") for c in roles[r]["categories"]) and any(inside & set(c) for c in roles["evaluation"]["categories"])
    assert M.check_leaks(roles)[1] == 0


TINY = {"images.size": 48, "encoders.image_model": "resnet10t", "encoders.image_pretrained": "false", "encoders.text_model": "tiny", "encoders.text_pretrained": "false",
        "encoders.text_states": "[-1]", "encoders.max_tokens": 32, "encoders.projection": 32, "pretraining.epochs": "null", "pretraining.steps": 3,
        "pretraining.batch_size": 16, "evaluation.bootstrap": 20, "few_shot.draws": 2, "few_shot.shots": "[1]", "few_shot.percents": "[]", "few_shot.trained_kinds": "[coarse]",
        "linear_probe.percents": "[]", "linear_probe.draws": 2, "baselines.models": "[{kind: random}, {kind: supervised}]", "seeds": "[0]",
        "variants": "{keepfit: {elite: true, semantic: true}}"}


@pytest.mark.slow
def test_full_runs_to_its_report_on_replicas(tmp_path, cli):
    root = all_replicas(tmp_path / "sets")          # two per class: chapter 14 wants two test rows
    shutil.rmtree(root / "deepeyenet")
    words = [w for k, v in {**TINY, "sources.sets": "[]", "sources.root": root}.items() for w in ("--set", f"{k}={v}")]
    done = cli("run", "--profile", "full", "--run-dir", tmp_path / "run", "--only", "05", "06", "13", "13a", "14", "15", "21", *words, timeout=2400,
               env={"KEEPFIT_DATA": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert all(c["status"] == "ok" for c in manifest["chapters"].values()) and len(manifest["chapters"]) == 7
