"Setting type: nothing is lost at a line's end, the scanner does what it says, fonts hold what ships, bad files are bad."
import re, unicodedata

import numpy as np, pypdfium2, pytest
from hypothesis import example, given, settings, strategies as st
from PIL import Image

from keepfit_nb.profiles import resource
from keepfit_nb.typesetting import *

FOLD = str.maketrans({c: None for c in "-­￾�"})
squeezed = lambda text: re.sub(r"\s", "", unicodedata.normalize("NFKC", text)).translate(FOLD)


def test_nonsense_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown kind"): bad_pdf("corupt", tmp_path / "x.pdf")
    with pytest.raises(ValueError, match="unknown face"): load_font("tims")


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=20))
def test_hyphens_keep_three_letters_on_either_side(word):
    for i in hyphen_points(word):
        assert i >= 3 or word[i - 1] == "-"
        assert len(word) - i >= 2 and word[:i] + word[i:] == word


def test_a_page_is_the_same_bytes_and_reads_back(tmp_path):
    kind = Type("dejavu serif", "song", hyphenate=True, justify=True, ligatures=True); text = "Small flat drusen fill the field of the office. 黄斑区可见玻璃膜疣，未见出血。"
    for name in ("a.pdf", "b.pdf"):
        canvas = new_canvas(tmp_path / name); canvas.setPageSize((200, 100)); sheet = Sheet(canvas, 0, (200, 100))
        text_block([("", text)], 150, kind).draw(sheet, 20, 10); canvas.showPage(); canvas.save()
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    doc = pypdfium2.PdfDocument(str(tmp_path / "a.pdf")); found = doc[0].get_textpage(); assert squeezed(found.get_text_range()) == squeezed(text)
    x = [found.get_charbox(i) for i in range(found.count_chars()) if found.get_text_range(i, 1).strip()]
    assert min(b[0] for b in x) >= 19.5 and max(b[2] for b in x) <= 171 and max(b[3] for b in x) <= 91 and len(sheet.lines) > 2
    found.close(); doc.close(); assert show_page(tmp_path / "a.pdf", 0, 2).shape == (200, 400, 3)


def test_corners_of_no_rotation_are_the_box():
    page = dict(width=300., height=400., rotation=0.)
    assert np.allclose(corners((10, 20, 30, 60), page), [(10, 20), (30, 20), (30, 60), (10, 60)])
    turned = corners((150, 100, 150, 100), page | dict(rotation=2.))            # counter-clockwise: what is above the middle goes left
    assert np.all(turned[:, 0] < 150) and np.allclose(np.hypot(*(turned - (150, 200)).T), 100)


def test_noise_blur_shade_and_angle_are_as_stated():
    blank = np.full((1400, 1000, 3), 255, np.uint8); scan = Scan(shade=0., rotation=0)
    out, angle = photograph(blank, np.random.default_rng(0), scan)
    assert angle == 0 and abs((out.astype(float) - scan.paper).std() - scan.noise) < .25 and np.allclose(out.mean((0, 1)), scan.paper, atol=.6)
    dark, _ = photograph(blank, np.random.default_rng(0), Scan(noise=0., rotation=0))
    assert .9 * 250 < dark[..., 0].min() < 250 and dark[..., 0].min() >= (1 - Scan().shade) * 250 - 1
    angles = [photograph(blank[:40, :40], np.random.default_rng(s), Scan())[1] for s in range(300)]
    assert max(map(abs, angles)) <= 2 and max(angles) > 1.8 and min(angles) < -1.8 and abs(np.mean(angles)) < .25
    line = blank.copy(); line[:, 500] = 0
    soft, _ = photograph(line, np.random.default_rng(0), Scan(noise=0, shade=0, rotation=0))
    profile = (250 - soft[700, 490:511, 0].astype(float)); profile /= profile.sum(); at = np.arange(-10, 11)
    assert abs(np.sqrt((profile * at**2).sum()) - Scan().blur) < .15


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("haemorrhage flame-shaped of no microaneurysms 视 网 膜 ， （见 ） 。 cotton-wool fluffy [12] office A".split()), min_size=1, max_size=60),
       st.integers(60, 300), st.booleans(), st.sampled_from(["times", "dejavu sans", "stix"]))
@example(words=["haemorrhage", "，"], room=60, hyphenate=False, face="dejavu sans")      # too long alone, and a comma that stays with it
def test_wrapping_loses_nothing(words, room, hyphenate, face):
    kind = Type(face, "song" if face == "stix" else "hei", hyphenate=hyphenate, ligatures=True)
    text = " ".join(words); lines = wrap([("", text)], room, kind); back = "".join(printed(l) for l in lines)
    assert squeezed(back) == squeezed(text)
    for line in lines:
        assert sum(not p.stuck for p in line) == 1 or sum(width(p.text, p.style, kind) + width(" ", "", kind) * (p.glue and i > 0) for i, p in enumerate(line)) <= room + 20
        assert printed(line)[0] not in "，。）" or len(lines) == 1 or line is lines[0]


def test_a_superscript_stays_with_its_word():
    for room in range(40, 200, 7):
        lines = wrap([("", "The foveal pit of this patient"), ("s", "57"), ("", " is regular and wide.")], room, Type("times"))
        assert not any(line[0].style == "s" for line in lines)


def test_subsets_hold_every_chinese_character_that_ships():
    "Captions, tables and corpus of this version can be printed in both Chinese faces, and the files are small and licensed."
    root = resource("data").parent
    used = set("".join(p.read_text(encoding="utf-8") for p in [*root.glob("data/**/*.csv"), *root.glob("data/**/*.txt"), *(root / "keepfit_nb" / f"{m}.py" for m in ("knowledge", "captions", "pages"))]))
    for face in ("hei", "song"):
        missing = [c for c in used if "\u3000" <= c <= "\u9fff" and not has_glyph(c, face)]
        assert not missing, f"{face}: run benchmarks/fonts.py for {''.join(sorted(missing))}"
    fonts = resource("data", "fonts")
    assert sum(p.stat().st_size for p in fonts.glob("*.ttf")) <= 1_000_000 and {p.name for p in fonts.glob("*.txt")} >= {"LICENSE-hei.txt", "LICENSE-song.txt"}


@pytest.mark.parametrize("face", ["hei", "song"])
def test_chinese_glyphs_have_ink(face):
    "The converted outlines are really there, and differ between characters."
    from PIL import ImageFont, ImageDraw
    font = ImageFont.truetype(str(font_file(FACES[face][0])), 40); seen = set()
    for c in "视网膜黄斑出血渗漏荧光造影图":
        image = Image.new("L", (48, 56)); ImageDraw.Draw(image).text((4, 4), c, font=font, fill=255); a = np.asarray(image)
        assert .05 < (a > 128).mean() < .6; seen.add(a.tobytes())
    assert len(seen) == 14


def test_bad_pdfs_are_what_they_say(tmp_path):
    files = {kind: bad_pdf(kind, tmp_path / f"{kind}.pdf") for kind in BAD}
    opened = {}
    for kind in ("encrypted", "not a pdf", "empty"):
        with pytest.raises(pypdfium2.PdfiumError): pypdfium2.PdfDocument(str(files[kind]))
    for kind in ("many pages", "no figure", "huge page", "tiny image", "huge image"): opened[kind] = pypdfium2.PdfDocument(str(files[kind]))
    assert len(opened["many pages"]) == 1000 and not list(opened["no figure"][0].get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE]))
    assert opened["huge page"][0].get_size() == (14400, 14400)
    size = lambda kind: next(iter(opened[kind][0].get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE]))).get_px_size()
    assert size("tiny image") == (1, 1) and size("huge image") == (20000, 20000) and files["huge image"].stat().st_size < 1e6
    for doc in opened.values(): doc.close()
    assert files["truncated"].stat().st_size < 1e5 and b"%%EOF" not in files["truncated"].read_bytes() and b"%%EOF" not in files["corrupt"].read_bytes()
