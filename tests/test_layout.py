"""Pages of PDFs: lines, order, pictures, and every way a file can be bad."""
import os, zlib
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from keepfit_nb.layout import Char, Line, make_blocks, make_lines, open_pdf, page_chars, page_pictures, page_size, reading_order, render_page


def picture(w=80, h=60, seed=0): return ImageReader(Image.fromarray(np.random.default_rng(seed).integers(0, 255, (h, w, 3), dtype=np.uint8)))

def sheet(path, draw, size=(595, 842), **how):
    c = Canvas(str(path), pagesize=size, **how); draw(c); c.save(); return open_pdf(path)


def test_two_columns_do_not_mix(tmp_path):
    left, right = [f"left line number {i}" for i in range(8)], [f"right line number {i}" for i in range(8)]
    def draw(c):
        for i, (a, b) in enumerate(zip(left, right)): c.setFont("Helvetica", 9); c.drawString(50, 700 - 11 * i, a); c.drawString(300, 700 - 11 * i, b)
    lines = make_lines(page_chars(sheet(tmp_path / "a.pdf", draw).get_page(0))[0])
    assert {l.text for l in lines} == set(left + right)
    blocks = reading_order(make_blocks(lines))
    assert [l.text for b in blocks for l in b.lines] == left + right


def test_words_placed_one_by_one_and_raised_digits(tmp_path):
    def draw(c):
        x = 50
        for w in ("Drusen", "near", "the", "fovea"): c.setFont("Times-Roman", 10); c.drawString(x, 500, w); x += c.stringWidth(w) + 2.5
        c.setFont("Times-Roman", 6); c.drawString(x - 2.5, 504, "12"); c.setFont("Times-Roman", 10); c.drawString(x + 6, 500, "and a hole")
    assert [l.text for l in make_lines(page_chars(sheet(tmp_path / "a.pdf", draw).get_page(0))[0])] == ["Drusen near the fovea¹² and a hole"]


def test_letters_on_their_side_are_counted(tmp_path):
    def draw(c): c.drawString(50, 500, "upright"); c.rotate(90); c.drawString(300, -40, "turned")
    chars, turned = page_chars(sheet(tmp_path / "a.pdf", draw).get_page(0))
    assert "".join(ch.text for ch in chars).strip() == "upright" and turned == 6


def test_pictures_flips_forms_and_boxes(tmp_path):
    a = np.zeros((60, 80, 3), np.uint8); a[:20] = (255, 0, 0)                # red on top
    def draw(c):
        img = ImageReader(Image.fromarray(a)); c.drawImage(img, 100, 600, 80, 60)
        c.saveState(); c.translate(100, 500); c.scale(1, -1); c.drawImage(img, 0, 0, 80, 60); c.restoreState()
        c.saveState(); c.translate(300, 500); c.rotate(90); c.drawImage(img, 0, 0, 80, 60); c.restoreState()
        c.beginForm("f"); c.drawImage(img, 0, 0, 80, 60); c.endForm(); c.saveState(); c.translate(40, 300); c.scale(2, 2); c.doForm("f"); c.restoreState()
    plain, flipped, turned, nested = page_pictures(sheet(tmp_path / "a.pdf", draw).get_page(0))
    assert np.allclose(plain.box, (100, 842 - 660, 180, 842 - 600)) and np.allclose(nested.box, (40, 842 - 420, 200, 842 - 300))
    assert np.array_equal(plain.image, a) and np.array_equal(nested.image, a) and np.array_equal(flipped.image, a[::-1])
    assert turned.image.shape == (80, 60, 3) and np.array_equal(turned.image, np.rot90(a))


def bitmap_pdf(path, w, h):
    "A PDF with one black bitmap of w × h pixels, a few kilobytes long whatever its size."
    data = zlib.compress(bytes((w + 7) // 8 * h), 1); content = b"q 200 0 0 200 50 50 cm /I Do Q"
    parts = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
             b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</XObject<</I 5 0 R>>>>>>",
             b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
             b"<</Type/XObject/Subtype/Image/Width %d/Height %d/BitsPerComponent 1/ColorSpace/DeviceGray/Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (w, h, len(data), data)]
    path.write_bytes(b"%PDF-1.4\n" + b"".join(b"%d 0 obj%s endobj\n" % (i, p) for i, p in enumerate(parts, 1)) + b"trailer<</Root 1 0 R/Size 6>>\n%%EOF")
    return path


@pytest.mark.parametrize("size, reason", [((1, 1), "too small"), ((31, 400), "too small"), ((20_000, 20_000), "more than max_pixels")])
def test_extreme_pictures_are_refused_unseen(tmp_path, size, reason):
    (p,) = page_pictures(open_pdf(bitmap_pdf(tmp_path / "a.pdf", *size)).get_page(0))
    assert reason in p.refused and p.image.size == 0


def test_huge_page_is_not_painted(tmp_path):
    page = sheet(tmp_path / "a.pdf", lambda c: c.drawString(9, 9, "x"), size=(14_000, 14_000)).get_page(0)
    with pytest.raises(ValueError, match="too large to paint"): render_page(page)
    assert page_size(page) == (14_000, 14_000)


def test_bad_files(tmp_path):
    good = tmp_path / "good.pdf"; sheet(good, lambda c: c.drawString(50, 50, "x")).close()
    locked = tmp_path / "locked.pdf"; from reportlab.lib.pdfencrypt import StandardEncryption
    c = Canvas(str(locked), encrypt=StandardEncryption("secret", "owner")); c.drawString(50, 50, "x"); c.save()
    cases = {"is encrypted": locked}
    for name, content in {"does not begin": b"<html>" * 400, "is empty": b"", "damaged": good.read_bytes()[:200]}.items():
        cases[name] = tmp_path / f"{name}.pdf"; cases[name].write_bytes(content)
    for words, path in cases.items():
        with pytest.raises(ValueError, match=words): open_pdf(path)
    link = tmp_path / "link.pdf"; link.symlink_to(good)
    with pytest.raises(ValueError, match="symbolic link"): open_pdf(link)
    with pytest.raises(IsADirectoryError, match="folder"): open_pdf(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file"): open_pdf(tmp_path / "none.pdf")
    if os.geteuid():
        good.chmod(0)
        with pytest.raises(PermissionError, match="permissions"): open_pdf(good)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 700), st.floats(1, 200), st.floats(1, 60)), min_size=1, max_size=25))
def test_reading_order_is_a_permutation(boxes):
    lines = [Line(str(i), (x, y, x + w, y + h), 9.) for i, (x, y, w, h) in enumerate(boxes)]
    assert sorted(l.text for l in reading_order(lines)) == sorted(l.text for l in lines)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("ab 字，", min_size=1, max_size=1), st.floats(0, 500), st.floats(0, 700), st.floats(4, 20)), max_size=40))
def test_no_letter_is_lost(chars):
    made = make_lines([Char(t, (x, y - s, x + s / 2, y), y, s) for t, x, y, s in chars])
    assert sorted("".join(l.text for l in made).replace(" ", "")) == sorted("".join(t for t, *_ in chars).replace(" ", ""))
