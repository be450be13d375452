"The printed atlas: boxes lie on the pictures, words can be read back, groups share nothing, same arguments same bytes."
import hashlib, re, unicodedata
from dataclasses import replace

import cv2, numpy as np, pypdfium2, pytest
from PIL import Image

from keepfit_nb.captions import sample_eye
from keepfit_nb.figures import MARKS, Cast, make_panel
from keepfit_nb.houses import *
from keepfit_nb.pages import *
from keepfit_nb.profiles import open_run, read_json, resource
from keepfit_nb.typesetting import FACES, Scan, corners, show_page

SMALL = dict(size=96)
FOLD = str.maketrans({c: None for c in "-­￾�"})
squeezed = lambda text: re.sub(r"\s", "", unicodedata.normalize("NFKC", text)).translate(FOLD)
digest = lambda folder: {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    "One small atlas of each group."
    return {g: make_atlas(tmp_path_factory.mktemp(g), max(4, 2 * len(t)), 5, t, **SMALL) for g, t in GROUPS.items()}


def page_texts(pdf) -> list[str]:
    doc = pypdfium2.PdfDocument(str(pdf))
    try: return [squeezed(doc[i].get_textpage().get_text_range()) for i in range(len(doc))]
    finally: doc.close()


def cut(image, box, scale):
    x0, y0, x1, y1 = (round(scale * v) for v in box)
    return image[max(y0, 0):y1, max(x0, 0):x1]


def difference(a, b) -> float:
    "Mean grey-level difference of two pictures at 32 × 32, edges left out (letters may be printed there)."
    a, b = (cv2.resize(np.asarray(x), (32, 32), interpolation=cv2.INTER_AREA)[6:26, 6:26].astype(float) for x in (a, b))
    return float(np.abs(a - b).mean())


@pytest.mark.parametrize("group", GROUPS)
def test_boxes_lie_on_the_pictures(books, group):
    "Render the page: inside the box are the pixels of the panel as placed; in a box elsewhere they are not."
    atlas = books[group]; assert len(atlas.truth["pairs"]) > 8
    for page in {p["page"] for p in atlas.truth["pairs"]}:
        image = show_page(atlas.pdf, page, 2)
        for pair in (p for p in atlas.truth["pairs"] if p["page"] == page):
            want = np.asarray(Image.open(atlas.pdf.parent / "panels" / pair["image"]))
            x0, y0, x1, y1 = pair["bbox"]; off = (x1 - x0) / 3
            error, moved = (difference(cut(image, box, 2), want) for box in (pair["bbox"], (x0 - off, y0 - off / 2, x1 - off, y1 - off / 2)))
            assert error < 9 and error < .4 * moved, (group, pair["id"], error, moved)


@pytest.mark.parametrize("group", GROUPS)
def test_every_line_can_be_read_back(books, group):
    atlas = books[group]; texts = page_texts(atlas.pdf)
    for page in atlas.truth["pages"]:
        missing = [line for line in page["lines"] if squeezed(line) not in texts[page["page"]]]
        assert not missing and len(page["lines"]) > 2


@pytest.mark.parametrize("group", GROUPS)
def test_every_caption_part_is_on_its_caption_page(books, group):
    "But for citations and references, each part stands in the text of the page that the truth names."
    atlas = books[group]
    extra = re.compile(r"\[\d+\]|\(see[^)]{4,20}\)|（见[^）]{2,12}）|\(\d(?:-\d)?\)")
    pages = [extra.sub("", squeezed("".join(p["lines"]))) for p in atlas.truth["pages"]]
    for pair in atlas.truth["pairs"]:
        for key in ("caption", "caption_zh"):
            part = extra.sub("", squeezed(pair[key])).rstrip(".。;；"); assert part in pages[pair["caption_page"]], (pair["id"], part)
        assert pair["caption"] or pair["caption_zh"]
        assert pair["caption_page"] in (pair["page"], pair["page"] + 1)
        shared = squeezed(pair["shared"] + pair["shared_zh"]); assert not shared or squeezed(pair["shared"]) in pages[pair["caption_page"]]


@pytest.mark.parametrize("group", GROUPS)
def test_truth_is_well_formed(books, group):
    truth = books[group].truth; pages = truth["pages"]
    assert truth == read_json(books[group].pdf.parent / "truth.json")
    for pair in truth["pairs"]:
        x0, y0, x1, y1 = pair["bbox"]; page = pages[pair["page"]]
        assert 0 <= x0 < x1 <= page["width"] and 0 <= y0 < y1 <= page["height"] and min(x1 - x0, y1 - y0) > 20
        assert pair["modality"] in ("CFP", "FFA", "OCT") and pair["categories"] and pair["figure"]
        for other in truth["not_figures"]:
            a, b = pair["bbox"], other["bbox"]
            if other["page"] == pair["page"]: assert a[2] <= b[0] + .5 or b[2] <= a[0] + .5 or a[3] <= b[1] + .5 or b[3] <= a[1] + .5
    assert len({p["id"] for p in truth["pairs"]}) == len(truth["pairs"])


@pytest.mark.parametrize("group", GROUPS)
def test_panels_of_a_page_do_not_overlap(books, group):
    pairs = books[group].truth["pairs"]
    for i, p in enumerate(pairs):
        for q in pairs[:i]:
            if p["page"] == q["page"]:
                a, b = p["bbox"], q["bbox"]; w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                assert w < .6 or h < .6, (p["id"], q["id"])


def test_groups_share_no_template_and_no_font():
    fonts = {g: {f for t in ts for f in (t.latin, *([t.cjk] if t.language != "en" else []))} for g, ts in GROUPS.items()}
    files = {g: {file for face in faces for file in FACES[face]} for g, faces in fonts.items()}
    names = {g: {t.name for t in ts} for g, ts in GROUPS.items()}
    for a in GROUPS:
        for b in GROUPS:
            if a != b: assert fonts[a].isdisjoint(fonts[b]) and files[a].isdisjoint(files[b]) and names[a].isdisjoint(names[b])
    looks = {g: {(t.page, t.columns, t.label, t.margins, t.small) for t in ts} for g, ts in GROUPS.items()}
    assert looks["tuning"].isdisjoint(looks["heldout"]) and len(TUNING) >= 6 and len(HELDOUT) >= 6


def test_fonts_inside_the_pdf_are_the_groups_own(books):
    inside = {g: set(re.findall(rb"/BaseFont /(?:[A-Z]+\+)?([\w-]+)", a.pdf.read_bytes())) for g, a in books.items()}
    # reportlab names Helvetica in every file (the default of a page), so it is not counted
    inside = {g: fonts - {b"Helvetica"} for g, fonts in inside.items()}
    assert inside["tuning"] and inside["heldout"] and inside["foreign"]
    assert inside["tuning"].isdisjoint(inside["heldout"]) and inside["foreign"].isdisjoint(inside["tuning"] | inside["heldout"])


def test_every_habit_of_the_contract_occurs():
    "Tuning and held-out templates each hold every place, way to embed, mark and language."
    for group in ("tuning", "heldout"):
        ts = GROUPS[group]; looks = [l for t in ts for l in t.looks]
        assert {p for t in ts for p in t.places} >= {"under", "above", "beside", "next"}
        assert {t.language for t in ts} == {"en", "zh", "both"} and {t.columns for t in ts} == {1, 2}
        assert {l.letters for l in looks} >= {"burned", "boxed", "over", "below"}
        assert any(l.whole and l.gutter == 0 for l in looks) and any(l.black for l in looks) and any(l.png for l in looks) and any(l.downwards for l in looks)
        assert {m for t in ts for m in t.marks} >= set(MARKS) - {"numbers after"}
        assert any(t.full_width for t in ts) and any(t.ligatures for t in ts) and any(t.hyphenate for t in ts)


def test_same_arguments_same_bytes(tmp_path):
    for d in "ab": make_atlas(tmp_path / d, 4, 3, TUNING[3:5], scanned=[3], **SMALL)
    make_atlas(tmp_path / "c", 4, 4, TUNING[3:5], **SMALL)
    a, b, c = (digest(tmp_path / d) for d in "abc")
    assert a == b and len(a) > 5 and a["atlas.pdf"] != c["atlas.pdf"]


def test_scanned_page_has_no_text_and_the_stated_noise(tmp_path):
    atlas = make_atlas(tmp_path, 3, 1, TUNING[:1], scanned=True, **SMALL); doc = pypdfium2.PdfDocument(str(atlas.pdf))
    for page in atlas.truth["pages"]:
        assert page["scanned"] and abs(page["rotation"]) <= 2 and page["lines"]
        assert doc[page["page"]].get_textpage().get_text_range().strip() == ""
        (image,) = doc[page["page"]].get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE])
        w, h = image.get_px_size(); assert abs(w / page["width"] - 200 / 72) < .01 and abs(h / page["height"] - 200 / 72) < .01
    doc.close()


def test_corners_follow_the_rotation(tmp_path):
    "A panel's box, turned by the truth's angle, lies on the panel of the scan."
    atlas = make_atlas(tmp_path, 2, 8, TUNING[:1], scanned=True, scan=Scan(noise=0., shade=0.), **SMALL); plain = make_atlas(tmp_path / "t", 1, 8, TUNING[:1], **SMALL)
    for pair in (p for p in atlas.truth["pairs"] if p["page"] == 0):
        page = atlas.truth["pages"][0]; image, four = show_page(atlas.pdf, 0, 2), np.float32(2 * corners(pair["bbox"], page))
        want = np.asarray(Image.open(tmp_path / "panels" / pair["image"]))
        turn = cv2.getPerspectiveTransform(four, np.float32([(0, 0), (200, 0), (200, 200), (0, 200)]))
        assert difference(cv2.warpPerspective(image, turn, (200, 200)), want) < 8
    assert plain.truth["pages"][0]["rotation"] == 0 and abs(atlas.truth["pages"][0]["rotation"]) > .01


def test_a_character_without_glyph_is_named(tmp_path):
    panel = make_panel(sample_eye(0, "normal"), "CFP", 64)
    cast = Cast([replace(panel, caption="A word in Georgian: ჰ.")], [[0]])
    with pytest.raises(ValueError, match=r"'ჰ' \(U\+10F0\).*characters.txt"): make_atlas(tmp_path, 1, 0, TUNING[:1], figures=[cast, cast], **SMALL)


def test_own_figures_are_printed_in_order(tmp_path):
    panel = make_panel(sample_eye(0, "normal"), "CFP", 64)
    mine = [Cast([replace(panel, image=np.full((64, 64, 3), 40 * i, np.uint8), caption=f"My picture number {i}.")], [[0]]) for i in range(1, 4)]
    atlas = make_atlas(tmp_path, 3, 0, TUNING[:1], figures=mine, size=64)
    assert [p["caption"] for p in atlas.truth["pairs"]][:3] == [f"My picture number {i}." for i in range(1, 4)]


def test_nonsense_is_refused(tmp_path):
    for pages, templates in ((0, TUNING), (3, ())):
        with pytest.raises(ValueError, match="pages must be"): make_atlas(tmp_path, pages, 0, templates)


def test_many_words_and_small_pages(tmp_path):
    "Captions three times as long still find their place, with fewer panels; one that cannot is refused with a word."
    panel = make_panel(sample_eye(0, "normal"), "CFP", 48); long = replace(panel, caption=" ".join([panel.caption] * 4), caption_zh=panel.caption_zh * 4)
    mine = [Cast([long] * n, [[i] for i in range(n)]) for n in (1, 2, 3, 1, 2, 1)]
    atlas = make_atlas(tmp_path / "a", 2, 0, TUNING[4:5], figures=mine, **SMALL); assert len(atlas.truth["pairs"]) >= 2
    endless = Cast([replace(panel, caption="Drusen are seen. " * 400)], [[0]])
    with pytest.raises(TooTall, match="shorten the caption"): make_atlas(tmp_path / "b", 1, 0, TUNING[:1], figures=[endless], **SMALL)


def test_long_captions_of_phantoms_fit_every_house(tmp_path, monkeypatch):
    import keepfit_nb.figures as F
    monkeypatch.setattr(F, "caption", lambda *a, real=F.caption: " ".join([real(*a)] * 3) if "zh" not in a else real(*a) * 3)
    for g, t in GROUPS.items():
        atlas = make_atlas(tmp_path / g, len(t) + 1, 2, t, size=48, keep=False)
        assert len(atlas.truth["pages"]) == len(t) + 1 and len(atlas.truth["pairs"]) > len(t)
        for line in (l for p in atlas.truth["pages"] for l in p["lines"]): assert line.strip()


def test_the_sample_that_ships():
    folder = resource("data", "atlas"); truth = read_json(folder / "truth.json"); doc = pypdfium2.PdfDocument(str(folder / "atlas.pdf"))
    assert len(doc) == 12 == len(truth["pages"]) and sum(p["scanned"] for p in truth["pages"]) == 2 and (folder / "atlas.pdf").stat().st_size <= 1_500_000
    assert {p["template"] for p in truth["pages"]} <= {t.name for t in TUNING} and {p["modality"] for p in truth["pairs"]} == {"CFP", "FFA", "OCT"}
    assert {p["language"] for p in truth["pages"]} == {"en", "zh", "both"}
    for page in truth["pages"]:
        text = squeezed(doc[page["page"]].get_textpage().get_text_range())
        assert (text == "") == page["scanned"] and (page["scanned"] or all(squeezed(line) in text for line in page["lines"]))
    doc.close()


def test_stage(tmp_path):
    run = open_run("03f_pages", "smoke", tmp_path, overrides={"pages": {"pages": 3, "scanned": 1, "size": 64}})
    folder = run.need("03f_pages"); truth = read_json(folder / "truth.json"); metrics = read_json(folder / "metrics.json")
    assert [p["scanned"] for p in truth["pages"]] == [False, False, True] and metrics["panels"] == len(truth["pairs"]) == len(list((folder / "panels").iterdir()))


@pytest.mark.parametrize("seed", range(8))
def test_figures_fit_above_the_captions_at_the_foot(tmp_path, seed):
    assert make_atlas(tmp_path, 2, 900 + seed, FOREIGN, size=48, keep=False).truth["pairs"]
