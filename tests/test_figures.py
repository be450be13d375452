"Figures: marks and parts agree, boxes are pixels, shapes have their places."
import io, re

import cv2, numpy as np, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from keepfit_nb.captions import sample_eye
from keepfit_nb.figures import *
from keepfit_nb.typesetting import Type

KIND = Type("helvetica")
flat = lambda n, modality="CFP", colour=90: Panel(np.full((40, 58 if modality == "OCT" else 40, 3), colour, np.uint8), modality, f"Picture number {n}.", f"图片{n}。", ["normal"])
text = lambda c: "".join(t for _, t in c.spans)


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("groups", [[[0], [1]], [[0, 1], [2]], [[0, 1, 2], [3]], [[0], [1], [2], [3]]])
def test_every_panel_gets_the_part_of_its_group(name, language, groups):
    marks, n = MARKS[name], sum(map(len, groups)); shape = {2: "row", 3: "row", 4: "square"}[n]
    cast = Cast([flat(i) for i in range(n)], groups, "A title.", "标题。"); names = names_of(n, shape, marks)[language == "zh"]
    out = compose(cast, "Fig. 1", marks, names, language, np.random.default_rng(0)); printed = text(out)
    assert printed.startswith("Fig. 1 ") and out.shared in printed and len(out.parts) == n and len(set(names)) == n
    at = 0
    if marks.after: printed = re.sub(r"( \(|（)\d(?:( and |, |[–～、])\d)?[)）]", "", printed); names = []        # marks stand before the full stop
    for group in groups:
        assert {out.parts[i] for i in group} == {out.parts[group[0]]} and str(group[0]) in out.parts[group[0]]
        at = printed.index(out.parts[group[0]], at) + 1
    for letter in names: assert letter.lower() in printed.lower() or len(max(groups, key=len)) > 2         # the middle of a range is not printed


def test_extras_are_printed_but_not_true():
    cast = Cast([flat(0), flat(1)], [[0], [1]])
    out = compose(cast, "Fig. 1", MARKS["comma"], ["A", "B"], "en", np.random.default_rng(0), lambda part, r: part[:-1] + " [12].")
    assert text(out).count("[12]") == 2 and not any("[" in p for p in out.parts)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(60, 400), st.floats(0, 12), st.booleans(), st.booleans(), st.sampled_from(["burned", "boxed", "over", "below", "none"]), st.integers(0, 9999))
def test_layouts_fill_the_room_and_do_not_overlap(n, room, gutter, whole, downwards, letters, seed):
    r = np.random.default_rng(seed); panels = [flat(i, r.choice(["CFP", "OCT"]), int(r.integers(40, 200))) for i in range(n)]
    shape, rows = arrange(n, r); assert sorted(i for row in rows for i in row) == list(range(n))
    layout = lay_out(panels, [chr(65 + i) for i in range(n)], rows, room, Look(gutter=gutter, whole=whole, letters=letters, downwards=downwards), KIND)
    boxes = np.array(layout.boxes); assert len(boxes) == n and boxes.min() >= -1e-6 and boxes[:, 2].max() <= room + 2 and boxes[:, 3].max() <= layout.height + 1e-6
    assert len(layout.tiles) == n and all(t.dtype == np.uint8 for t in layout.tiles)
    for i in range(n):
        for j in range(i):
            a, b = boxes[i], boxes[j]; assert min(a[2], b[2]) - max(a[0], b[0]) < .01 or min(a[3], b[3]) - max(a[1], b[1]) < .01
    if letters in ("over", "below") and n > 1: assert [l[0] for l in layout.letters] == [chr(65 + i) for i in range(n)]


def test_one_bitmap_holds_the_tiles_where_the_truth_says():
    panels = [make_panel(sample_eye(s, "normal"), m, 96) for s, m in enumerate(("CFP", "OCT", "FFA"))]
    layout = lay_out(panels, "ABC", [[0, 1], [2]], 200, Look(whole=True, gutter=3, png=True), KIND)
    (data, box), = layout.pictures; bitmap = np.array(Image.open(io.BytesIO(data))); scale = bitmap.shape[1] / box[2]
    for (x0, y0, x1, y1), tile in zip(layout.boxes, layout.tiles):
        assert np.array_equal(bitmap[round(y0 * scale):round(y1 * scale), round(x0 * scale):round(x1 * scale)], tile)


def test_downwards_counts_down_the_column_first():
    layout = lay_out([flat(i) for i in range(4)], "ABCD", [[0, 1], [2, 3]], 200, Look(downwards=True), KIND); a, b, c, d = layout.boxes
    assert a[0] == b[0] and a[1] < b[1] and c[1] == a[1] and c[0] > a[0] and d[0] == c[0] and d[1] == b[1]


def test_letters_are_burned_where_they_should():
    black = np.zeros((100, 100, 3), np.uint8)
    for corner in ("top left", "top right", "bottom left", "bottom right"):
        y, x = np.nonzero(burn(black, "A", corner, False)[..., 0] > 128)
        assert (x.mean() < 50) == ("left" in corner) and (y.mean() < 50) == ("top" in corner) and 20 < len(x) < 200
    assert (burn(black, "A", "top left", True)[..., 0] > 200).sum() > 150


def test_casts_are_varied_and_true():
    casts = [make_cast(np.random.default_rng([3, s]), 32) for s in range(50)]
    assert {len(c.panels) for c in casts} >= {1, 2, 3, 4} and {p.modality for c in casts for p in c.panels} == {"CFP", "FFA", "OCT"}
    for c in casts:
        assert sorted(i for g in c.groups for i in g) == list(range(len(c.panels)))
        for g in c.groups: assert len({c.panels[i].caption for i in g}) == 1
        if c.title: assert all(c.title[:-1].lower() in [x.lower() for x in p.categories] for p in c.panels)         # true of every panel
        assert all(p.caption.endswith(".") and p.caption_zh.endswith("。") and p.categories for p in c.panels)
    assert any(len(g) > 1 for c in casts for g in c.groups) and any(c.title for c in casts)
    again = make_cast(np.random.default_rng([3, 5]), 32); assert all(np.array_equal(a.image, b.image) and a.caption == b.caption for a, b in zip(again.panels, casts[5].panels))


def test_a_variant_is_the_same_picture_not_the_same_pixels():
    panel = make_panel(sample_eye(0, "normal"), "CFP", 96); other = variant(panel, np.random.default_rng(1))
    assert other.caption == panel.caption and other.image.shape == panel.image.shape and not np.array_equal(other.image, panel.image)
    small = lambda p: cv2.resize(p.image, (12, 12), interpolation=cv2.INTER_AREA).astype(float).ravel()
    assert np.corrcoef(small(panel), small(other))[0, 1] > .9
