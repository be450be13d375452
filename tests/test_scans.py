"""Scans: light, angle, pictures, print; and books of a thousand pages."""
import cv2, numpy as np, pytest
from reportlab.pdfgen.canvas import Canvas
from keepfit_nb.pages import make_atlas
from keepfit_nb.profiles import peak_memory_gb
from keepfit_nb.layout import Line, open_pdf, render_page
from keepfit_nb.scans import _again, _first_lost, _mend, _rejoined, find_pictures, ocr_lines, ocr_ready, paper_surface, read_page, read_pages, read_scan, skew_angle, straighten, text_lines, whiten

needs_ocr = pytest.mark.skipif(bool(ocr_ready()), reason=ocr_ready() or "tesseract")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    "Two pages of text, painted at 150 dpi, and their truth."
    book = make_atlas(tmp_path_factory.mktemp("scan"), pages=2, seed=3, keep=False); pdf = open_pdf(book.pdf)
    return [render_page(pdf.get_page(i), 150) for i in range(2)], book.truth


@pytest.mark.parametrize("angle", [-2., -.6, 0., 1.3, 2.])
def test_angle_comes_back(clean, angle):
    image = straighten(clean[0][0], -angle)
    assert abs(skew_angle(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)) - angle) < .2

def test_light_is_taken_out(clean):
    page = clean[0][0]; h, w = page.shape[:2]
    lamp = 1 - .3 * np.linspace(0, 1, w)[None, :, None] * np.linspace(.5, 1, h)[:, None, None]
    white = whiten((page * lamp * [1, .97, .9]).clip(0, 255).astype(np.uint8))
    blank = (page.min(2) == 255)
    assert white[blank].mean() > 244 and np.percentile(white[blank], 2) > 235 and paper_surface(page[..., 0]).min() > 200

def test_pictures_are_found_where_they_are(clean):
    for n, page in enumerate(clean[0]):
        found = find_pictures(page, 150.)
        for t in (t for t in clean[1]["pairs"] if t["page"] == n):
            x0, y0, x1, y1 = (v * 150 / 72 for v in t["bbox"])
            assert any(a < x0 + 4 and b < y0 + 4 and c > x1 - 4 and d > y1 - 4 for a, b, c, d in found), t["bbox"]

def test_without_tesseract_pictures_remain_and_the_reason_is_told(clean, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    page = read_scan(clean[0][0], (595, 842))
    assert page.lines == [] and "apt install tesseract-ocr" in page.notes[0]

def drawn(rows, size=(1200, 700)):
    "Words at places, painted at 200 dpi."
    from PIL import Image, ImageDraw, ImageFont
    from keepfit_nb.typesetting import font_file
    page = Image.new("L", size, 255)
    pen, faces = ImageDraw.Draw(page), {True: "hei.ttf", False: "DejaVuSans.ttf"}
    for x, y, words, points in rows: pen.text((x, y), words, 0, ImageFont.truetype(str(font_file(faces[not words.isascii()])), round(points * 200 / 72)))
    return np.array(page)

COLUMNS = [(60, 60, "Drusen lie under the pigment", 9), (640, 64, "黄斑裂孔见于左眼。", 10), (60, 100, "epithelium, mostly yellow.", 10), (640, 104, "视盘边界清楚。", 10), (300, 300, "A", 9)]

def test_lines_keep_to_their_column():
    boxes = text_lines(drawn(COLUMNS), 200.)
    assert len(boxes) == 5 and sum(b[2] < 620 for b in boxes) == 3 and boxes == sorted(boxes, key=lambda b: b[1])

def test_lines_that_touch_are_cut_and_headings_are_not():
    page = drawn([(60, 60, "typography of long glyphs, happily jumping", 9), (60, 83, "Tall letters below Hold their Heads high indeed", 9), (60, 200, "Heading of a page", 26)])
    page[70:100, 300:303] = 0                                        # a tail that runs into the line below
    assert [round((b[3] - b[1]) / 25) for b in text_lines(page, 200.)[:2]] == [1, 1] and len(text_lines(page, 200.)) == 3

def test_torn_words_are_mended():
    assert _mend("（O D）F F A 和 O CT （CC）") == "（OD）FFA 和 OCT （C）" and _mend("水肿; <: 右眼") == "水肿; c: 右眼" and _mend("retina.” A OCT") == "retina. A OCT"

def test_white_paper_has_no_lines(): assert text_lines(np.full((300, 300), 250, np.uint8), 200.) == []

@needs_ocr
def test_columns_and_scripts_do_not_mix():
    read = [l.text.replace(" ", "") for l in ocr_lines(drawn(COLUMNS), 200.)]
    assert "Drusenlieunderthepigment" in read and "黄斑裂孔见于左眼。" in read and "A" in read

@needs_ocr
def test_print_is_read(clean):
    page = read_scan(clean[0][0], (clean[1]["pages"][0]["width"], clean[1]["pages"][0]["height"]), languages="eng")
    words = " ".join(l.text for l in page.lines).split(); true = " ".join(clean[1]["pages"][0]["lines"]).split()
    assert len(set(words) & set(true)) > .8 * len(set(true)) and all(0 <= l.sure < 1 for l in page.lines)

def test_a_thousand_pages_in_little_memory(tmp_path):
    c = Canvas(str(tmp_path / "long.pdf"))
    for i in range(1000): c.drawString(50, 500, f"Page {i} has no figure"); c.showPage()
    c.save(); before, n = None, 0
    for p in read_pages(tmp_path / "long.pdf"):
        n += 1; before = peak_memory_gb() if n == 50 else before
        assert p.lines[0].text == f"Page {p.number} has no figure"
    assert n == 1000 and peak_memory_gb() - before < .1

def test_page_too_large_or_empty_goes_to_its_error(tmp_path):
    c = Canvas(str(tmp_path / "a.pdf"))
    for size in ((20_000, 20_000), (595, 842)): c.setPageSize(size); c.drawString(5, 5, "x"); c.showPage()
    c.save(); kinds = list(read_pages(tmp_path / "a.pdf"))
    assert isinstance(kinds[0], ValueError) and "page 1" in str(kinds[0]) and kinds[1].lines

def test_blank_page(tmp_path):
    c = Canvas(str(tmp_path / "a.pdf")); c.showPage(); c.save()
    page = read_page(open_pdf(tmp_path / "a.pdf"), 0, ocr=False)
    assert page.pictures == [] and page.lines == []

def test_a_first_sign_that_was_passed_over_is_seen_and_read_again(monkeypatch):
    grey = np.full((60, 600), 255, np.uint8); grey[20:40, 30:50] = grey[20:40, 80:400] = 0; box = (30, 20, 400, 40)
    word = lambda text, left, width: dict(text=text, left=left, top=20, width=width, height=20, conf=90)
    asked = []
    def reader(image, lang, psm): asked.append(psm); return [word("3-12", 1.3 * (24 + 53), 300)] if psm == 7 else [word("图3-12", 1.3 * 27, 400)]
    monkeypatch.setattr("keepfit_nb.scans._words", reader)
    ink = grey[17:43, 27:403] < 170
    assert _first_lost(ink, [word("3-12", 24 + 53, 300)], 1., 20.) and not _first_lost(ink, [word("图3-12", 27, 300)], 1., 20.)
    (again,) = _again(grey, box, "chi_sim", 1., 20.)
    assert asked == [7, 13] and again["text"] == "图3-12" and abs(again["left"] - 27) < 1e-6            # in the strip's own measure

def test_chinese_print_is_mended():
    assert _mend("附 图 4 . 1 2 玻 璃 体 〈 见 图 3 - 7 )") == "附图 4.12 玻璃体 （ 见图 3-7 )"
    assert _mend("CA~C) 左眼 CD) 右眼") == "(A~C) 左眼 (D) 右眼"
    assert _mend("drusen 1 2 lines 〈x〉") == "drusen 1 2 lines 〈x〉" and _mend("书〈眼底〉") == "书〈眼底〉"

def test_a_line_torn_at_a_stop_and_a_bracket_is_joined_and_columns_are_not():
    line = lambda text, x0, x1, y: Line(text, (x0, y - 9, x1, y), 7.2, y, .9)
    read = _rejoined([line("(B) 左眼。", 74, 200, 100), line("图 3-1 水肿。", 10, 60, 100), line("（见图2）", 230, 300, 100), line("右栏", 80, 200, 130), line("左栏。", 10, 60, 130)])
    assert [l.text for l in read] == ["图 3-1 水肿。 (B) 左眼。", "（见图2）", "左栏。", "右栏"]

def test_words_spread_over_a_narrow_column_are_one_line():
    line = lambda text, x0, x1, y: Line(text, (x0, y - 8, x1, y), 6.4, y, .9)
    wide = [line("of", 10, 18, 110), line("the", 38, 50, 110), line("eye", 66, 80, 110)]
    around = [line("a line above that fills it", 10, 82, 100), line("and one below that does", 10, 82, 120)]
    assert [l.text for l in _rejoined(around + wide)][1] == "of the eye" and len(_rejoined(around[:1] + wide)) == 4      # nothing below: they may be columns

def test_a_doubtful_line_is_read_alone_and_the_surer_reading_stays(monkeypatch):
    page = np.full((400, 900), 255, np.uint8)
    for x in range(60, 700, 24): page[100:122, x:x + 16] = 0
    def reader(image, lang, psm): return [dict(text="左眼" if psm == 7 else "在了", left=40, top=40, width=900, height=30, conf=90 if psm == 7 else 30)]
    monkeypatch.setattr("keepfit_nb.scans._words", reader)
    assert [l.text for l in ocr_lines(page, 200., "chi_sim")] == ["左眼"]
