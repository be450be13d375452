"""Labels, cleaning and parts, with what a hostile page may hold."""
import pytest
from hypothesis import given, settings, strategies as st
from keepfit_nb.legends import clean_text, expand_keys, find_label, join_lines, mend_hyphen, split_languages, split_parts, words_of


@pytest.mark.parametrize("text, number, away", [("Figure 3-12. Drusen", "3-12", ""), ("FIG. 7 Drusen", "7", ""), ("Fig.4.1 x", "4.1", ""), ("Plate XII: x", "XII", ""), ("图 3－12　出血", "3-12", ""),
    ("彩图2-3 出血", "2-3", ""), ("Legend to Plate 4, previous page.", "4", "previous"), ("图4（见前页）", "4", "previous"), ("Fig. 9 (next page)", "9", "next")])
def test_labels(text, number, away):
    label = find_label(text); assert (label.number, label.elsewhere) == (number, away)

@pytest.mark.parametrize("text", ["Figure 2 shows a hole", "Fig. 3 and Fig. 4", "figure skating", "图2所示为出血", "图像清晰", "Plate 8). Then", "Platelets 5", "Configured 3", "", "3-12", "A fig. 2"])
def test_prose_is_no_label(text): assert find_label(text) is None

@pytest.mark.parametrize("a, b, out", [("haemor", "rhages", "haemorrhages"), ("optic", "Disc", "optic-Disc"), ("flame", "shaped", "flame-shaped"), ("B", "scan", "B-scan")])
def test_hyphens(a, b, out): assert mend_hyphen(a, b) == out

def test_book_words_decide():
    assert mend_hyphen("xeno", "lith", {"xeno-lith"}) == "xeno-lith" and mend_hyphen("xeno", "lith", {"xenolith"}) == "xenolith"

@pytest.mark.parametrize("text, out", [("ﬁne ﬂecks [3, 4–6]", "fine flecks"), ("spots (see Fig. 3-4A and B).", "spots."), ("2 mm² wide¹²", "2 mm² wide"), ("ＯＣＴ　扫描，见：囊腔", "OCT扫描，见：囊腔"),
    ("出血（见图3-2）。", "出血。"), ("a cup of 0.7 , pale", "a cup of 0.7, pale"), ("an area (arrow)", "an area (arrow)"), ("noted [3 9].", "noted.")])
def test_cleaning(text, out): assert clean_text(text) == out

@settings(max_examples=150, deadline=None)
@given(st.text(max_size=120))
def test_nothing_breaks_and_cleaning_settles(text):
    once = clean_text(text); find_label(text); split_languages([(text, False), (text, True)]); join_lines(text.splitlines())
    shared, parts = split_parts(once)
    assert "  " not in once and all(keys for keys, _ in parts)

def test_parts_need_company():
    for text in ("A large hole", "Vitamin A, given early", "grade C, moderate", "The left eye shows drusen, right of the disc a scar"): assert split_parts(text) == (text, [])

@pytest.mark.parametrize("text", ["A: retinal blood B: the disc. C: OCT.", "a: blood. b; the disc. c: OCT.", "A, blood. B, the disc. C OCT.", "Ａ：出血。Ｂ；视盘。Ｃ：OCT。", "A，出血。B，视盘。C眼底。"])
def test_marks_survive_a_bad_scan(text):
    assert [k for k, _ in split_parts(clean_text(text))[1]] == [(k,) for k in "ABC"]

def test_ranges_and_places():
    assert expand_keys("a–c, e") == ("A", "B", "C", "E") and expand_keys("A and B") == ("A", "B") and expand_keys("A至C") == ("A", "B", "C")
    assert [k for k, _ in split_parts("上图：出血。下图：渗出。")[1]] == [("top",), ("bottom",)]
    assert [k for k, _ in split_parts("Upper left: early. Upper right: late. Lower left: OCT. Lower right: red-free.")[1]] == [("upper left",), ("upper right",), ("lower left",), ("lower right",)]

def test_long_nonsense_is_quick():
    import time; start = time.perf_counter()
    for text in ("A, " * 3000, "(" * 5000, "see Fig. " * 2000, "图" * 5000, "left " * 2000, "[1" * 3000): clean_text(text); split_parts(text[:4000]); find_label(text)
    print(f"nonsense took {time.perf_counter() - start:.1f} s")


@pytest.mark.parametrize("text, keys", [("（A）早期。（8）静脉期。（C）晚期", "ABC"), ("a：早期；〈：静脉期；c：晚期", "ABC"), ("(A) Early. (13 Venous. (C) Late.", "ABC"),
                                        ("（4）早期。（B）静脉期。（C）晚期", "ABC"), ("（A）早期。（B）静脉期。（〇）晚期", "ABC")])
def test_a_smeared_mark_is_put_back_where_the_count_has_a_gap(text, keys):
    assert "".join(k for ks, _ in split_parts(clean_text(text))[1] for k in ks) == keys

@pytest.mark.parametrize("text", ["早期。（8）静脉期。", "Drusen. (OD) The right eye.", "(A) Early, at 20:30. Late (5) leaks."])
def test_nothing_is_put_back_without_a_count(text): assert split_parts(clean_text(text))[1] == []

def test_full_width_words_break_anywhere():
    assert clean_text(join_lines(["可见Ｂｒ", "ｕｃｈ膜，左眼（Ｏ", "Ｓ）"])) == "可见Bruch膜，左眼（OS）"

def test_an_article_behind_a_small_mark_is_no_list():
    assert split_parts("a, a colour photograph; b, a late phase")[1] == [(("A",), "a colour photograph"), (("B",), "a late phase")]

def test_a_centre_is_no_place():
    shared, parts = split_parts("（左）左眼正常。（右）右眼内层连续。中心凹大致如常。上皮完整，下半部清楚。")
    assert [k for k, _ in parts] == [("left",), ("right",)] and parts[1][1].endswith("下半部清楚。")

def test_references_with_any_dash_and_prefix():
    assert clean_text("未见渗漏（见图3—2）。玻璃膜疣（见附图4.6）。") == "未见渗漏。玻璃膜疣。" and clean_text("Drusen (see Fig. 1–5).") == "Drusen."

def test_halves_of_broken_words_are_no_words():
    found = words_of(["layers that lost their bounda-", "ries again; left-sided sco-"], lines=True)
    assert not found & {"bounda", "ries", "sco"} and {"their", "left-sided", "again"} <= found

def test_lists_of_marks_keep_to_one_case_and_know_a_worn_wave():
    assert [k for k, _ in split_parts("Drusen. A, a left eye with drusen. B, a late phase.")[1]] == [("A",), ("B",)] and split_parts("A, a left eye. B, a late phase.")[1][0][1].startswith("a left")
    assert [k for k, _ in split_parts("星状玻璃体变性。A一C.视网膜照片。D.彩色照相。")[1]] == [("A", "B", "C"), ("D",)]

@pytest.mark.parametrize("left, right, whole", [("measu", "ring", "measuring"), ("bounda", "ries", "boundaries"), ("echo", "free", "echo-free"), ("vitreo", "macular", "vitreomacular"), ("macula", "off", "macula-off")])
def test_words_that_no_list_has(left, right, whole): assert mend_hyphen(left, right) == whole

def test_a_number_that_a_line_broke(): assert join_lines(["大小约1.", "2个视盘"]) == "大小约1.2个视盘"
