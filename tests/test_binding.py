"""Figures and legends on hand-made pages where the answer is plain."""
import pytest
from keepfit_nb.binding import Legend, Plate, bind_book, bind_page, find_legends, groups_of, in_columns, in_rows, letters_of, words_for_panels
import numpy as np
from keepfit_nb.layout import Line, Picture
from keepfit_nb.legends import split_parts
from keepfit_nb.scans import Page

def plate(x0, y0, x1, y1, page=0, n=1): return Plate(page, (x0, y0, x1, y1), "", [(x0, y0, x1, y1)] * n, [""] * n)
def legend(number, x0, y0, x1, y1, text="Drusen.", page=0, **more): return Legend(page, (x0, y0, x1, y1), "figure", number, text, **more)
def answer(bound): return {l.number: sorted(p.box[:2] for p in g) for g, l, *_ in bound}


def test_the_nearest_legend_is_not_the_right_one():
    "Two figures of two rows, legends under them: the upper row of the second stands nearer to the first legend."
    plates = [plate(50, 50, 150, 150), plate(50, 200, 150, 300), plate(50, 304, 150, 404)]
    legends = [legend("1", 50, 156, 300, 190), legend("2", 50, 420, 300, 450, "A, one. B, two.")]
    assert answer(bind_page(plates, legends)) == {"1": [(50, 50)], "2": [(50, 200), (50, 304)]}

@pytest.mark.parametrize("place", ["under", "above", "beside"])
def test_places(place):
    plates = [plate(50, 100, 250, 300), plate(50, 450, 250, 650)]
    at = {"under": (50, 306, 250, 330), "above": (50, 70, 250, 94), "beside": (262, 100, 500, 160)}[place]
    legends = [legend("1", *at), legend("2", at[0], at[1] + 350, at[2], at[3] + 350)]
    assert answer(bind_page(plates, legends)) == {"1": [(50, 100)], "2": [(50, 450)]}

def test_two_columns_with_equal_pictures_are_two_figures():
    plates = [plate(50, 100, 280, 300), plate(296, 100, 526, 300)]
    legends = [legend("1", 50, 306, 280, 340), legend("2", 296, 306, 526, 330)]
    assert answer(bind_page(plates, legends)) == {"1": [(50, 100)], "2": [(296, 100)]}

def test_a_stray_picture_stays_alone():
    plates = [plate(50, 50, 500, 300, n=2), plate(200, 600, 260, 660)]
    assert answer(bind_page(plates, [legend("1", 50, 306, 500, 330, "A, one. B, two.")])) == {"1": [(50, 50)]}

def test_next_page_by_note_and_by_number():
    plates = {0: [plate(50, 50, 500, 600)], 2: [plate(50, 50, 500, 600, 2)]}
    legends = {1: [legend("4", 50, 70, 500, 90, page=1, elsewhere="previous")], 2: [legend("5", 250, 700, 300, 710, "", 2)], 3: [legend("5", 50, 70, 500, 90, "A hole.", 3, elsewhere="previous")]}
    bound = bind_book(plates, legends)
    assert {(g[0].page, l.number, l.text) for g, l in bound} == {(0, "4", "Drusen."), (2, "5", "A hole.")}

def test_a_bare_number_finds_its_legend_among_others():
    plates = {0: [plate(50, 50, 500, 300)], 1: []}
    legends = {0: [legend("5", 250, 760, 300, 770, "")], 1: [legend("6", 50, 600, 500, 620, "A sketch.", 1), legend("5", 50, 70, 500, 90, "A hole.", 1)]}
    assert [(g[0].page, l.text) for g, l in bind_book(plates, legends)] == [(0, "A hole.")]

def test_a_legend_of_one_panel_takes_one_picture():
    "A picture without caption stands thirteen points under a figure whose legend speaks of no parts."
    plates = [plate(210, 120, 402, 286), plate(207, 300, 405, 498)]
    assert answer(bind_page(plates, [legend("2", 48, 95, 520, 114)])) == {"2": [(210, 120)]}

def test_groups_and_orders():
    four = [plate(0, 0, 90, 90), plate(96, 0, 186, 90), plate(0, 96, 90, 186), plate(96, 96, 186, 186)]
    assert [len(groups_of(four, r)) for r in (0, 6)] == [4, 1]
    boxes = [p.box for p in four]
    assert in_rows(boxes) == [0, 1, 2, 3] and in_columns(boxes) == [0, 2, 1, 3]
    assert letters_of(boxes, ["A", "C", "", ""], list("ABCD")) == ["A", "C", "B", "D"]          # the marks say: column by column
    assert letters_of(boxes, ["X", "X", "X", "X"], list("ABCD")) == list("ABCD")
    assert words_for_panels(boxes, [""] * 4, *split_parts("A and B, disc. C and D, macula."))[1] == ["disc.", "disc.", "macula.", "macula."]
    assert words_for_panels(boxes, [""] * 4, *split_parts("Upper left: one. Upper right: two. Lower left: three. Lower right: four."))[1] == ["one.", "two.", "three.", "four."]
    assert words_for_panels(boxes[:3], [""] * 3, *split_parts("A, disc. B, macula."))[2] is False

def test_legend_in_two_languages_and_its_end():
    rows = [("Figure 3-1. A, drusen of the left", 400), ("eye. B, OCT scan.", 411), ("图3-1 A 左眼玻璃膜疣。", 424), ("B OCT扫描。", 435), ("The text of the chapter goes on here in a larger type.", 455)]
    lines = [Line(t, (50, y - 8, 50 + 5 * len(t), y), 8. if y < 450 else 10., y) for t, y in rows]
    (l,), rest = find_legends(Page(0, (595, 842), lines, []))
    assert [p for _, p in l.parts[1]] == ["drusen of the left eye.", "OCT scan."] and [p for _, p in l.parts_zh[1]] == ["左眼玻璃膜疣。", "OCT扫描。"]
    assert len(rest) == 1 and l.panels == 2

def test_nothing_to_bind():
    assert bind_page([], []) == [] and bind_page([plate(0, 0, 9, 9)], []) == [] and bind_book({}, {}) == []


@pytest.mark.parametrize("text, number, zh", [("3-12 右眼黄斑裂孔。", "3-12", True), ("国3.4 左眼玻璃膜疣。", "3.4", True), ("Fi gure 2-7. Drusen of the left eye.", "2-7", False), ("4-1. A late phase.", "4-1", False)])
def test_a_label_that_a_scan_lost_comes_back_beside_a_picture(text, number, zh):
    image = Picture((100, 100, 300, 300), np.zeros((64, 64, 3), np.uint8)); line = lambda y: Line(text, (100, y, 280, y + 9), 8., y + 9, .9)
    page = lambda y, scanned: Page(0, (595, 842), [line(y)], [image], scanned)
    (l,), _ = find_legends(page(306, True))
    assert l.number == number and bool(l.text_zh) == zh and bool(l.text) != zh
    assert find_legends(page(600, True))[0] == [] and find_legends(page(306, False))[0] == []         # far from it; in a text layer, which loses nothing

def test_a_measure_beside_a_picture_is_no_label():
    image = Picture((100, 100, 300, 300), np.zeros((64, 64, 3), np.uint8))
    for text in ("2.5% of the eyes", "12 months later", "3.5.1 Drusen"):
        assert find_legends(Page(0, (595, 842), [Line(text, (100, 306, 280, 315), 8., 315, .9)], [image], True))[0] == []

@pytest.mark.parametrize("text, number", [("图 $.1 白内障。", "5.1"), ("Fig. l.3 Drusen.", "1.3"), ("图S.12 黄斑裂孔。", "5.12"), ("Fig. 1-2. A, b", "1-2")])
def test_worn_digits_of_a_label(text, number):
    page = Page(0, (500, 700), [Line(text, (50, 306, 300, 316), 8., 316, .9)], [Picture((50, 100, 300, 300), np.zeros((9, 9, 3), np.uint8))], True)
    assert [l.number for l in find_legends(page)[0]] == [number]

def test_languages_of_one_figure_may_differ_by_a_worn_digit():
    rows = [("图5.7 白内障。", 316), ("Fig. 5.1 Cataract of the left eye.", 328)]
    page = Page(0, (500, 700), [Line(t, (50, y - 9, 300, y), 8., y, .9) for t, y in rows], [Picture((50, 100, 300, 300), np.zeros((9, 9, 3), np.uint8))], True)
    ((l,), _) = find_legends(page)
    assert (l.text, l.text_zh) == ("Cataract of the left eye.", "白内障。")

def test_the_usual_distance_tells_a_stray_picture_from_the_figure():
    "A picture without caption stands above a legend that belongs to the one below it; elsewhere legends stand under."
    plates, legends = {}, {}
    for n in range(4): plates[n] = [plate(50, 100, 250, 300, n)]; legends[n] = [legend(str(n + 1), 50, 308, 250, 330, page=n)]
    plates[4] = [plate(100, 54, 200, 154, 4), plate(50, 204, 250, 404, 4)]; legends[4] = [legend("5", 50, 172, 250, 196, page=4)]
    plates[5] = [plate(50, 204, 250, 404, 5)]; legends[5] = [legend("6", 50, 172, 250, 196, page=5)]
    assert {l.number: g[0].box[1] for g, l in bind_book(plates, legends)}["5"] == 204

def test_who_says_where_its_picture_is_comes_before_who_does_not():
    plates = {1: [plate(50, 50, 500, 400, 1)]}
    legends = {0: [legend("1", 50, 70, 500, 90, "A sketch.")], 1: [legend("3", 250, 660, 300, 670, "", 1)],
               2: [legend("3", 50, 70, 500, 90, "A hole.", 2, elsewhere="previous"), legend("4", 50, 500, 500, 520, "Another sketch.", 2)]}
    assert [l.text for _, l in bind_book(plates, legends)] == ["A hole."]
