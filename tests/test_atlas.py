"""The atlas reader as a whole: printed books, bad books, decisions, translation, the stage."""
import shutil
import pandas as pd, pytest
from reportlab.pdfgen.canvas import Canvas
from keepfit_nb import atlas as A
from keepfit_nb.atlas import (Settings, apply_decisions, as_records, edit_distance, fill_language, read_all, read_atlas, read_decisions, review, same_form,
                              score, write_decision)
from keepfit_nb.pages import make_atlas
from keepfit_nb.profiles import open_run, read_json
from keepfit_nb.records import read_records
from keepfit_nb.scans import ocr_ready


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    "Fourteen pages in seven house styles, read once."
    folder = tmp_path_factory.mktemp("atlas"); printed = make_atlas(folder, pages=14, seed=77, keep=False)
    return folder, printed.truth, *read_atlas(printed.pdf, folder / "out")


def test_a_printed_book_comes_back(book):
    folder, truth, pairs, quarantine, counts = book; s = score(pairs, truth)
    assert s["pair_recall"] >= .95 and s["pair_precision"] >= .95 and s["panel_accuracy"] >= .95 and s["modality_accuracy"] >= .97
    assert s["cer_en"] == 0 and not s["cer_zh"] > 0
    assert pairs.id.is_unique and all((folder / "out" / i).stat().st_size > 500 for i in pairs.image)
    assert not list((folder / "out").glob("work_*")) and (quarantine.reason.str.len() > 10).all()

def test_reading_again_gives_the_same(book, tmp_path):
    folder, _, pairs, _, _ = book
    again = read_atlas(folder / "atlas.pdf", tmp_path)[0]
    pd.testing.assert_frame_equal(pairs, again)
    assert all((folder / "out" / i).read_bytes() == (tmp_path / i).read_bytes() for i in pairs.image[:5])

def test_score_falls_when_it_should(book):
    _, truth, pairs, _, _ = book; best = score(pairs, truth)["pair_recall"]
    assert score(pairs.iloc[:0], truth)["pair_recall"] == 0
    moved = pairs.assign(bbox=[[x + 300 for x in b] for b in pairs.bbox]); assert score(moved, truth)["panel_recall"] < .1
    wrong = pairs.assign(modality="OCT"); assert score(wrong, truth)["modality_accuracy"] < .8
    typo = pairs.assign(caption=pairs.caption.str.replace("e", "x")); assert score(typo, truth)["pair_recall"] < best - .2
    assert score(pd.concat([pairs, pairs]), truth)["pair_precision"] <= .51

@pytest.mark.parametrize("a, b, d", [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("玻璃膜疣", "玻璃疣", 1), ("flaw", "lawn", 2)])
def test_edit_distance(a, b, d): assert edit_distance(a, b) == edit_distance(b, a) == d

def test_same_form():
    assert same_form("Drusen [3] – left eye. ") == same_form("drusen - left eye".capitalize()) and same_form("右眼 OCT，扫描。") == same_form("右眼OCT,扫描")


def blank(path, pages=1, words="No figure here.", **how):
    c = Canvas(str(path), **how)
    for _ in range(pages): c.drawString(50, 500, words); c.showPage()
    c.save(); return path

def test_book_without_a_figure(tmp_path):
    pairs, quarantine, counts = read_atlas(blank(tmp_path / "a.pdf", 3), tmp_path / "out")
    assert len(pairs) == 0 and list(pairs.columns) == A.COLUMNS and counts["pages"] == 3 and len(quarantine) == 0

def test_legend_without_picture_is_named(tmp_path):
    _, quarantine, _ = read_atlas(blank(tmp_path / "a.pdf", 1, "Figure 3. Drusen of the left eye."), tmp_path / "out")
    assert list(quarantine.reason) == ["no picture belongs to the legend of figure 3"]

def test_bad_books_are_quarantined_and_the_others_read(book, tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7 torn"); (tmp_path / "b.pdf").write_text("<html>"); shutil.copy(book[0] / "atlas.pdf", tmp_path / "c.pdf")
    (tmp_path / "d.pdf").write_bytes((tmp_path / "c.pdf").read_bytes()[:60_000])
    (tmp_path / "e.pdf").symlink_to(tmp_path / "c.pdf"); (tmp_path / "f.pdf").mkdir(); (tmp_path / "notes.txt").write_text("x")
    pairs, quarantine, counts = read_all(Settings(pdfs=[str(tmp_path)]), tmp_path / "out")
    assert set(pairs.atlas) >= {"c.pdf"} and (pairs.atlas == "c.pdf").sum() == len(book[2])
    told = quarantine[quarantine.page == -1].set_index("atlas").reason
    assert "damaged" in told["a.pdf"] and "not a PDF" in told["b.pdf"] and "symbolic link" in told["e.pdf"] and "folder" in told["f.pdf"]
    assert counts["unreadable"] >= 4
    with pytest.raises(FileNotFoundError, match="no PDF in"): read_all(Settings(pdfs=[str(tmp_path / "out" / "images")]), tmp_path / "out2")


def test_decisions(book, tmp_path):
    _, _, pairs, _, _ = book; file = tmp_path / "d.csv"; ids = list(pairs.id[:4])
    write_decision(file, id=ids[0], decision="reject", note="blurred"); write_decision(file, id=ids[1], decision="edit", caption="A hole [3].", modality="OCT")
    write_decision(file, id=ids[2], decision="reject"); write_decision(file, id=ids[2], decision="accept")            # the later word counts
    kept, gone = apply_decisions(pairs, read_decisions(file))
    assert len(kept) == len(pairs) - 1 and list(gone.reason) == ["rejected by the reviewer: blurred"]
    row = kept[kept.id == ids[1]].iloc[0]; assert (row.caption, row.modality) == ("A hole.", "OCT") and ids[2] in set(kept.id)
    with pytest.raises(ValueError, match="is it the right file"): apply_decisions(pairs, {"unknown": dict(decision="accept")})
    for text, words in (("id,decision\nx,maybe\n", "row 2"), ("id\nx\n", "no column decision"), ("id,decision,modality\nx,edit,MRI\n", "modality")):
        file.write_text(text)
        with pytest.raises(ValueError, match=words): read_decisions(file)

def test_review_with_and_without_a_person(book, tmp_path, monkeypatch):
    folder, _, pairs, _, _ = book; file = tmp_path / "d.csv"
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False); monkeypatch.delenv("VSCODE_PID", raising=False)
    assert type(review(pairs.head(3), folder / "out", file)).__name__ == "Figure" and not file.exists()
    count, box, more = review(pairs.head(3), folder / "out", file, interactive=True, at_once=2).children; assert len(box.children) == 2
    more.click(); cards = box.children; assert len(cards) == 3 and more.disabled and count.value.startswith("0 of 3")
    first = cards[0].children; words, buttons = first[1].children, first[2].children
    words[0].value = "Changed."; buttons[2].click(); cards[1].children[2].children[3].click()
    rows = list(read_decisions(file).values())
    assert [r["decision"] for r in rows] == ["edit", "reject"] and rows[0]["caption"] == "Changed."
    assert count.value.startswith("2 of 3"); words[0].value = words[1].value = " "; buttons[2].click(); assert "needs words" in buttons[-1].value and len(file.read_text().splitlines()) == 3
    assert len(review(pairs.head(3), folder / "out", file, interactive=True).children[1].children) == 1      # two are done
    lost = review(pairs.head(1).assign(image="images/gone.png", id="new"), folder / "out", file, interactive=True).children[1].children[0]
    assert "images/gone.png is missing" in lost.children[0].value


@pytest.fixture(scope="module")
def tiny_marian(tmp_path_factory):
    "A Marian model with random weights and a word-level tokenizer, in a local folder."
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast
    import torch
    words = ["<pad>", "</s>", "<unk>"] + "drusen of the left eye right hole dome fluid 左 眼 右 裂 孔".split()
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")); tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(0); n = len(words); folder = tmp_path_factory.mktemp("marian")
    config = MarianConfig(vocab_size=n, decoder_vocab_size=n, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                          encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=1)
    MarianMTModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64).save_pretrained(folder)
    return folder

def test_translator(tiny_marian):
    t = A.Seq2SeqTranslator(str(tiny_marian), batch_size=2, max_tokens=6)
    out = t(["left eye", "hole", "dome of fluid"]); assert len(out) == 3 and all(isinstance(x, str) for x in out) and t([]) == []
    assert out == t(["left eye", "hole", "dome of fluid"]) and t(["hole"])[0] == out[1]                     # batch mates do not matter
    with pytest.raises(OSError, match="cannot be loaded"): A.Seq2SeqTranslator(str(tiny_marian / "none"))

def test_printed_words_are_never_replaced(book):
    pairs = book[2]; filled = fill_language(pairs, lambda texts: ["made up"] * len(texts), "zh")
    had = pairs.caption_zh != ""
    assert (filled.caption_zh[had] == pairs.caption_zh[had]).all() and (filled.caption_zh[~had & (pairs.caption != "")] == "made up").all()
    assert set(filled.translated[~had & (pairs.caption != "")]) == {"zh"} and (filled.translated[had & (pairs.shared_zh != "")] == "").all()
    with pytest.raises(ValueError, match="language"): fill_language(pairs, lambda t: t, "fr")


def test_stage(book, tmp_path):
    folder, _, pairs, _, _ = book; file = tmp_path / "d.csv"; write_decision(file, id=pairs.id[0], decision="reject")
    over = {"atlas.pdfs": [str(folder / "atlas.pdf")], "atlas.decisions": str(file), "atlas.licence": "ours", "atlas.quality": 0}
    out = open_run("04_atlas", "smoke", tmp_path / "run", 0, over).need("04_atlas")
    metrics, rows = read_json(out / "metrics.json"), read_records(out / "pairs.parquet")
    assert metrics["pairs"] == len(pairs) - 1 >= metrics["records"] == len(rows) > .9 * len(pairs) and metrics["pair_recall"] >= .95
    assert set(rows["licence"]) == {"ours"} and all((out / i).suffix == ".png" and (out / i).exists() for i in rows["image"])
    told = pd.read_csv(out / "quarantine.csv"); assert told.reason.str.contains("rejected by the reviewer").sum() == 1
    assert all(len(a) == 1 and a[0].startswith("figure: ") for a in rows["attributes"])

def test_settings_refuse():
    for bad in (dict(dpi=5), dict(quality=101), dict(pdf="x")):
        with pytest.raises(ValueError): Settings(**bad)

def test_records_put_the_shared_words_first():
    row = dict(image="i", modality="CFP", figure="1", panel="A", shared="glaucoma.", caption="the left eye.", shared_zh="青光眼。", caption_zh="左眼。")
    (r,) = as_records(pd.DataFrame([row]), Settings()); assert (r["caption"], r["caption_zh"]) == ("Glaucoma. The left eye.", "青光眼。左眼。")

@pytest.mark.slow
@pytest.mark.skipif(bool(ocr_ready()), reason=ocr_ready() or "tesseract")
def test_scanned_book(tmp_path):
    printed = make_atlas(tmp_path, pages=7, seed=78, scanned=True, keep=False)
    s = score(read_atlas(printed.pdf, tmp_path / "out")[0], printed.truth, scanned=True)
    assert s["pair_recall"] > .8 and s["pair_precision"] > .8 and s["modality_accuracy"] > .95
