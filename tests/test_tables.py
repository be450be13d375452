"Chapter 05.1 beyond its notebook: tables and folders as strangers leave them."
import csv, io, json, os, zipfile
from pathlib import Path

import datasets, numpy as np, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from keepfit_nb import tables as T

datasets.disable_progress_bars()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


# ---- text tables ---------------------------------------------------------------------------------------------------

def test_two_encodings_in_one_table(tmp_path):
    body = b"image,caption_zh\n" + b"".join(f"{i}.png,青光眼，左眼\n".encode(("utf-8", "gb18030")[i % 2]) for i in range(40))
    table, notes = T.read_csv(write(tmp_path / "t.csv", body))
    assert set(table.caption_zh) == {"青光眼，左眼"} and set(notes["encoding"].split(" + ")) == {"utf-8", "gb18030"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_marks_at_the_beginning(tmp_path, encoding):
    table, _ = T.read_csv(write(tmp_path / "t.csv", "image,caption\na.png,œdème\n".encode(encoding)))
    assert list(table.columns) == ["image", "caption"] and table.caption[0] == "œdème"


def test_nul_bytes_become_marks_and_rows_stay_in_place(tmp_path):
    table, notes = T.read_csv(write(tmp_path / "t.csv", b"image,caption\na.png,large\0cup\nb.png,fine\n"))
    assert "\ufffd" in table.caption[0] and table.caption[1] == "fine" and not notes["ragged"]


def test_endless_nonsense_is_left_early(tmp_path):
    path = tmp_path / "noise.csv"
    with path.open("w") as f:
        f.write("image,label,split\n")
        for i in range(200_000): f.write("word " * 9 + "\n")
    with pytest.raises(ValueError, match="do not fit its header"): T.read_csv(path)
    with pytest.raises(ValueError, match="more than 100 rows"): T.read_csv(write(tmp_path / "many.csv", "a,b\n" + "1,2\n" * 500), max_rows=100)


def test_a_quote_that_never_closes(tmp_path):
    with pytest.raises(ValueError, match="not a readable table near row"): T.read_csv(write(tmp_path / "q.csv", 'a,b\n1,"' + "x,y\n" * 100_000))


def test_a_line_without_end(tmp_path):
    with pytest.raises(ValueError, match="line 2 is longer"): T.read_table(write(tmp_path / "l.csv", b"a,b\n" + b"z" * (T.LONGEST + 10)))


def test_words_in_nameless_columns_are_refused(tmp_path):
    table, notes = T.read_csv(write(tmp_path / "t.csv", "image,caption,,,\na.png,fine,,,\nb.png,large cup, pale rim,,\nc.png\n"))
    assert list(table.columns) == ["image", "caption"] and list(notes["ragged"]) == [1, 2] and table.image[1] == ""


def test_things_that_are_no_table(tmp_path):
    for name, data, told in (("a.csv", b"%PDF-1.7", "a PDF"), ("b.csv", b"\x89PNG\r\n\x1a\n", "a picture"), ("c.csv", b"\x1f\x8b\x08", "packed"),
                             ("d.csv", b"  <!DOCTYPE HTML><html>", "web page"), ("e.csv", b"\x00" * 50, "empty|no header|rows")):
        with pytest.raises(ValueError, match=told): T.read_table(write(tmp_path / name, data))
    with zipfile.ZipFile(tmp_path / "z.csv", "w") as z: z.writestr("labels.csv", "a,b\n")
    with pytest.raises(ValueError, match="unpack it first"): T.read_table(tmp_path / "z.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(FileNotFoundError): T.read_table(tmp_path / "pipe.csv")          # would wait for ever
    with pytest.raises(FileNotFoundError): T.read_table(tmp_path)


def test_a_table_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "t.csv", "a,b\n1,2\n")
    def closed(*a, **k): raise PermissionError("no")
    monkeypatch.setattr("builtins.open", closed)
    with pytest.raises(ValueError, match="may not be read"): T.read_table(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=30), min_size=3, max_size=3), min_size=1, max_size=20))
def test_what_csv_writes_is_read_back(tmp_path, rows):
    out = io.StringIO(newline=""); csv.writer(out).writerows([["image", "caption", "label"], *rows])
    table, notes = T.read_csv(write(tmp_path / "h.csv", out.getvalue()))
    assert table.values.tolist() == rows and not notes["ragged"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_table_or_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("b") / "x.csv"; path.write_bytes(data)
    try: table, _ = T.read_table(path)
    except ValueError as e: assert str(e)
    else: assert len(table)


# ---- broken Chinese -------------------------------------------------------------------------------------------------

EVERYDAY = [bytes((a, b)).decode("gb2312") for a in range(0xB0, 0xD7) for b in range(0xA1, 0xFF)]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(EVERYDAY + list("，。、0123456789OD")), max_size=40))
def test_everyday_chinese_is_left_alone_and_spoiled_chinese_never_becomes_a_third_text(text):
    assert T.mend(text) == (text, "")
    try: spoiled = text.encode().decode("gb18030")
    except UnicodeDecodeError: return
    assert T.mend(spoiled)[0] in (text, spoiled)


@pytest.mark.parametrize("text", ["", "large cup", "视盘颜色苍白，C/D约0.8。", "右眼 OD", "dégénérescence", "青"])
def test_good_text_is_left_alone(text): assert T.mend(text) == (text, "")


@pytest.mark.real
def test_the_published_broken_table(real):
    rows, notes = T.read_table(real / "text" / "broken_caption_table.csv")
    assert len(rows) == 400 and len(notes["ragged"]) == 30                              # words slid into nameless columns
    mapped, _ = T.map_columns(rows, {"image": "Image_ID"})
    mended, refused = T.mend_captions(mapped)
    assert len(refused) == 122                                                          # the Chinese cell swallowed the English one
    whole = [i for i in range(400) if i not in refused and i not in notes["ragged"]]
    assert len(whole) == 248 and all(mended.caption[i].strip() for i in whole) and mended.attrs["mended"]["mended"] == 50


@pytest.mark.real
def test_every_published_table_reads(real):
    files = [*(real / "tables").glob("*.csv"), *(real / "text").glob("*.csv")]
    assert len(files) >= 14
    for f in files:
        table, notes = T.read_table(f)
        assert len(table) > 300 and len(notes["ragged"]) <= 30, f.name
    for f in (real / "tables").glob("*.csv"): assert {"image", "categories", "attributes"} <= set(T.map_columns(T.read_table(f)[0], {})[0])


# ---- Excel, JSON, Parquet -------------------------------------------------------------------------------------------

def test_excel_rows_headers_and_attacks(tmp_path):
    path = T.write_xlsx(tmp_path / "t.xlsx", [["title"], ["ID", "Grade"], ["…", "…"], ["1", "3.0"], ["2", "a & b"]])
    assert T.read_xlsx(path, header_row=1, skip_rows=1)[0].values.tolist() == [["1", "3"], ["2", "a & b"]]
    with pytest.raises(ValueError, match="no row 9"): T.read_xlsx(path, header_row=9)
    with zipfile.ZipFile(tmp_path / "bad.xlsx", "w") as z:
        z.writestr("xl/worksheets/sheet1.xml", '<!DOCTYPE x [<!ENTITY a "aaaa">]><worksheet/>')
    with pytest.raises(ValueError, match="document type"): T.read_xlsx(tmp_path / "bad.xlsx")
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("xl/worksheets/sheet1.xml", b" " * 210_000_000)
    with pytest.raises(ValueError, match="unpacks to"): T.read_xlsx(tmp_path / "bomb.xlsx")


def test_excel_with_shared_words(tmp_path):
    ns = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    with zipfile.ZipFile(tmp_path / "s.xlsx", "w") as z:
        z.writestr("xl/sharedStrings.xml", f"<sst {ns}><si><t>image</t></si><si><r><t>gla</t></r><r><t>ucoma</t></r></si></sst>")
        z.writestr("xl/worksheets/sheet1.xml", f'<worksheet {ns}><sheetData><row r="1"><c r="A1" t="s"><v>0</v></c><c r="C1" t="inlineStr"><is><t>label</t></is></c></row>'
                   '<row r="2"><c r="A2"><v>7</v></c><c r="C2" t="s"><v>1</v></c></row></sheetData></worksheet>')
    table, _ = T.read_table(tmp_path / "s.xlsx")
    assert table.image[0] == "7" and table.label[0] == "glaucoma"


def test_json_lines(tmp_path):
    table, notes = T.read_table(write(tmp_path / "t.jsonl", '{"image": "a.png", "label": ["x"]}\n[1]\n{broken\n' + "[" * 3000 + '\n{"image": "b.png"}\n'))
    assert list(notes["ragged"]) == [1, 2, 3] and list(table.image) == ["a.png", None, None, None, "b.png"]


# ---- folders --------------------------------------------------------------------------------------------------------

def test_links_out_of_the_folder_stay_outside(tmp_path):
    picture(tmp_path / "d" / "normal" / "a.png"); picture(tmp_path / "secret" / "s.png")
    (tmp_path / "d" / "normal" / "in.png").symlink_to(tmp_path / "d" / "normal" / "a.png")
    (tmp_path / "d" / "normal" / "out.png").symlink_to(tmp_path / "secret" / "s.png")
    (tmp_path / "d" / "glaucoma").symlink_to(tmp_path / "secret")
    rows, notes = T.read_folder(tmp_path / "d")
    assert sorted(rows.image) == ["normal/a.png", "normal/in.png"] and notes["other_files"] == {"link out of the folder": 1}


def test_a_link_in_a_circle(tmp_path):
    picture(tmp_path / "d" / "normal" / "a.png"); (tmp_path / "d" / "normal" / "again").symlink_to(tmp_path / "d")
    assert len(T.read_folder(tmp_path / "d")[0]) == 1


# ---- DICOM ----------------------------------------------------------------------------------------------------------

def test_dicom_brightness_and_depth(tmp_path):
    ramp = np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))
    T.write_dicom(tmp_path / "d" / "normal" / "inverted.dcm", ramp, "OPT", PhotometricInterpretation="MONOCHROME1")
    deep = T.write_dicom(tmp_path / "d" / "normal" / "deep.dcm", ramp, "OPT")
    import pydicom
    ds = pydicom.dcmread(deep); ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelData = (ramp.astype(np.uint16) * 16).tobytes(); ds.save_as(deep)
    rows, _ = T.read_dicom_folder(tmp_path / "d", tmp_path / "png")
    found = {Path(p).name: np.asarray(Image.open(p)) for p in rows.image}
    assert len(found) == 2 and set(rows.modality) == {"OCT"}
    up = [bool(x[0, -1] > x[0, 0]) for x in found.values()]
    assert sorted(up) == [False, True] and all(x.min() <= 8 and x.max() >= 247 for x in found.values())


def test_dicom_leaves_people_behind(tmp_path):
    T.write_dicom(tmp_path / "d" / "glaucoma" / "x.dcm", np.zeros((8, 8), np.uint8), PatientID="4711", PatientName="Roe^Richard", PatientBirthDate="19501231")
    rows, notes = T.read_dicom_folder(tmp_path / "d", tmp_path / "png")
    assert "Roe" not in rows.to_csv() + json.dumps(notes) and b"Roe" not in Path(rows.image[0]).read_bytes() and Image.open(rows.image[0]).info == {}


def test_broken_dicom(tmp_path):
    good = T.write_dicom(tmp_path / "d" / "normal" / "a.dcm", np.zeros((8, 8), np.uint8))
    write(tmp_path / "d" / "normal" / "cut.dcm", good.read_bytes()[:-40]); write(tmp_path / "d" / "normal" / "text.dcm", b"not DICOM")
    rows, notes = T.read_dicom_folder(tmp_path / "d", tmp_path / "png")
    assert notes["other_files"] == {"not DICOM": 1} and len(notes["ragged"]) == 1 and (rows.image == "").sum() == 1
    with pytest.raises(ValueError, match="no DICOM file"): T.read_dicom_folder(picture(tmp_path / "e" / "a.png").parent)


# ---- the datasets library -------------------------------------------------------------------------------------------

def test_parquet_folder_with_embedded_pictures(tmp_path):
    some = [str(picture(tmp_path / "p" / f"{i}.png", i)) for i in range(6)]
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.List(datasets.ClassLabel(names=["normal", "drusen"]))})
    made = datasets.Dataset.from_dict({"image": some, "labels": [[0], [1], [0, 1]] * 2}, features=features)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    made.select(range(4)).to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    made.select([4, 5]).to_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    rows, notes = T.read_hf(tmp_path / "hub", tmp_path / "out")
    assert notes["parts"] == {"train": 4, "test": 2} and list(rows.split) == ["train"] * 4 + ["test"] * 2
    assert [list(x) for x in rows.labels[:3]] == [["normal"], ["drusen"], ["normal", "drusen"]]
    assert (np.asarray(Image.open(rows.image[5])) == np.asarray(Image.open(some[5]))).all()


def test_no_dataset_folder(tmp_path):
    with pytest.raises(FileNotFoundError): T.read_hf(tmp_path / "no")
    (tmp_path / "e").mkdir()
    with pytest.raises(ValueError, match="not a readable dataset folder"): T.read_hf(tmp_path / "e")
    write(tmp_path / "e" / "train.parquet", b"PAR1 nonsense")
    with pytest.raises(ValueError, match="not a readable dataset folder"): T.read_hf(tmp_path / "e")
