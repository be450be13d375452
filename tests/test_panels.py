"""Compound figures of known make must come apart, single pictures must not."""
import cv2, numpy as np, pytest
from keepfit_nb.captions import render
from keepfit_nb.eye import sample_eye
from keepfit_nb.panels import cut_panels, read_mark, white_cuts

EYE = {"CFP": "diabetic retinopathy", "FFA": "diabetic retinopathy", "OCT": "diabetic macular edema"}
def panel(m, seed=1, size=240): return cv2.resize(render(sample_eye(seed, EYE[m]), m, 240), (round(size * 1.45), size) if m == "OCT" else (size, size))

def compound(rows, gutter, tone):
    "Panels in rows; the picture and the true boxes in shares."
    h, boxes, y = sum(r[0].shape[0] for r in rows) + gutter * (len(rows) - 1), [], 0
    w = max(sum(p.shape[1] for p in r) + gutter * (len(r) - 1) for r in rows); out = np.full((h, w, 3), tone, np.uint8)
    for r in rows:
        x = 0
        for p in r: out[y:y + p.shape[0], x:x + p.shape[1]] = p; boxes.append((x / w, y / h, (x + p.shape[1]) / w, (y + p.shape[0]) / h)); x += p.shape[1] + gutter
        y += r[0].shape[0] + gutter
    return out, boxes

def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1]); both = max(w, 0) * max(h, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("gutter, tone", [(6, 255), (2, 255), (6, 0), (0, 0)])
@pytest.mark.parametrize("kinds", ["CFP CFP", "CFP FFA", "CFP OCT", "FFA FFA FFA", "CFP CFP / CFP CFP", "CFP / FFA", "CFP FFA / OCT"])
def test_compounds_come_apart(kinds, gutter, tone):
    rows = [[panel(m, 10 * i + k) for k, m in enumerate(r.split())] for i, r in enumerate(kinds.split(" / "))]
    image, truth = compound(rows, gutter, tone); found = cut_panels(image, len(truth))
    assert len(found) == len(truth) and all(max(iou(t, f) for f in found) > .7 for t in truth)


@pytest.mark.parametrize("tone", [0, 250])
def test_five_panels_leave_a_place_empty(tone):
    image, truth = compound([[panel("CFP", 10 * i + k) for k in range(n)] for i, n in enumerate((3, 2))], 0, tone)
    image = (image + np.random.default_rng(0).normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8); found = cut_panels(image, 5)
    assert len(found) == 5 and all(max(iou(t, f) for f in found) > .9 for t in truth)

def test_single_pictures_stay_whole():
    cuts = {m: [len(cut_panels(panel(m, s))) for s in range(15)] for m in EYE}
    assert all(n == 1 for m in ("CFP", "FFA") for n in cuts[m]) and sum(n == 1 for n in cuts["OCT"]) >= 14


@pytest.mark.parametrize("image", [np.zeros((70, 70, 3), np.uint8), np.full((300, 80, 3), 255, np.uint8), np.zeros((1, 1, 3), np.uint8), np.zeros((65, 2000, 3), np.uint8)])
def test_odd_pictures_do_no_harm(image):
    assert all(0 <= a < c <= 1 and 0 <= b < d <= 1 for a, b, c, d in cut_panels(image) + cut_panels(image, 4))
    assert read_mark(image) == ""


def test_white_cuts_ignores_paper_around():
    paper = np.ones((100, 220), bool); paper[10:90, 10:100] = paper[10:90, 110:210] = False
    assert white_cuts(paper) == [(10, 10, 100, 90), (110, 10, 210, 90)]

def test_a_section_keeps_its_dark_and_a_blurred_letter_is_read():
    dark = panel("OCT"); dark[:110] = 2; dark[200:] = 2                                 # vitreous and sclera, black as a gutter
    found = cut_panels(np.hstack([panel("OCT", 2), dark]), 2)
    assert len(found) == 2 and max(f[3] - f[1] for f in found) > .95 and min(f[3] - f[1] for f in found) > .95
    from PIL import Image, ImageDraw, ImageFont
    from keepfit_nb.typesetting import font_file
    for letter in "ABC":
        picture = Image.fromarray(panel("FFA", 4, 300)); ImageDraw.Draw(picture).text((10, 6), letter, "white", ImageFont.truetype(str(font_file("DejaVuSerif-Bold.ttf")), 18))
        assert read_mark(cv2.GaussianBlur(np.array(picture), (0, 0), 1.1)) == letter

def test_black_that_fills_a_row_under_a_section_is_no_part_of_it():
    image, truth = compound([[panel("CFP"), panel("OCT")], [panel("FFA")]], 4, 0)
    found = cut_panels(image, 3)
    assert len(found) == 3 and all(max(iou(t, f) for f in found) > .9 for t in truth)
