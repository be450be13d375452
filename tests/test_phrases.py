"The phrase files and their language: what does not fit in chapter 03d.1_phrases."
import re, shutil

import numpy as np, pytest, yaml
from hypothesis import given, strategies as st

from keepfit_nb.eye import DISEASES, sample_eye
from keepfit_nb.knowledge import canonical, load_knowledge
from keepfit_nb.phrases import LANGUAGES, measured, parse_template, phrases, place, read_phrases, slots_of, write
from keepfit_nb.profiles import resource

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="[](){}|"), min_size=1, max_size=6)
TEMPLATE = st.recursive(TEXT | st.sampled_from(["{a}", "{b}"]), lambda t: st.one_of(st.lists(t, min_size=1, max_size=3).map("".join), t.map("[{}]".format),
                        st.lists(t, min_size=1, max_size=3).map(lambda x: f"({'|'.join(x)})")), max_leaves=8)

@given(TEMPLATE, st.integers(0, 2**32 - 1))
def test_any_template_is_written_without_its_signs(template, seed):
    tree = parse_template(template)
    out = write(tree, {"a": "A", "b": "B"}, np.random.default_rng(seed).random)
    assert not set(out) & set("[](){}|") and slots_of(tree) <= {"a", "b"}

@given(st.text("ab[](){}|", max_size=12))
def test_broken_templates_are_refused_with_a_word(text):
    try: tree = parse_template(text)
    except ValueError as e: assert repr(text) in str(e); return
    except IndexError: pytest.fail(f"{text!r} ends in an IndexError")
    assert isinstance(tree, tuple)

@pytest.fixture
def copy(tmp_path):
    shutil.copytree(resource("data", "phrases"), tmp_path / "p")
    return tmp_path / "p"

def change(folder, name, f):
    path = folder / f"{name}.yaml"; table = yaml.safe_load(path.read_text(encoding="utf-8")); f(table)
    path.write_text(yaml.safe_dump(table, allow_unicode=True, sort_keys=False), encoding="utf-8")

@pytest.mark.parametrize("name,fault,message", [
    ("facts", lambda t: t[0].update(fact="microaneurism"), "did you mean 'microaneurysms'"),
    ("facts", lambda t: t[0].update({"in": "MRI"}), "modality"),
    ("facts", lambda t: t[0].update(lesions=["microaneurism"]), "did you mean 'microaneurysm'"),
    ("facts", lambda t: t[0]["say"].pop("many"), "the values are few, many"),
    ("facts", lambda t: t[0]["say"]["few"]["en"].append("some"), "5 English and 4 Chinese"),
    ("facts", lambda t: t[0]["say"]["few"]["en"].__setitem__(0, "{fw} dots"), "did you mean 'few'"),
    ("facts", lambda t: t[0]["say"]["few"]["en"].__setitem__(0, "dots [{place}"), "']' is missing"),
    ("facts", lambda t: t[0].update(colour="red"), "colour"),
    ("signs", lambda t: t["seen"][0].update(change="wide vein"), "did you mean 'wide veins'"),
    ("signs", lambda t: t["denied"][0].update(lesions="haemorrhage"), "lesions"),
    ("diseases", lambda t: t.update(glaucom={}), "did you mean 'glaucoma'"),
    ("sentences", lambda t: t["title"]["zh"].pop(), "title: 10 English and 9 Chinese"),
    ("sentences", lambda t: t["scene"]["en"].__setitem__(0, "{lst}"), "did you mean 'list'"),
])
def test_mistakes_in_the_files_are_named(copy, name, fault, message):
    change(copy, name, fault)
    with pytest.raises(ValueError, match=re.escape(message)) as e: read_phrases(copy)
    assert f"{name}.yaml" in str(e.value)

def test_not_yaml(copy):
    (copy / "words.yaml").write_text("many: {en: [a, ", encoding="utf-8")
    with pytest.raises(ValueError, match="words.yaml"): read_phrases(copy)

def test_yaml_is_data_only(copy):
    (copy / "words.yaml").write_text("many: !!python/object/apply:os.getcwd []", encoding="utf-8")
    with pytest.raises(ValueError, match="words.yaml"): read_phrases(copy)

def test_every_fact_can_be_said_everywhere_it_shows():
    for d in DISEASES.values():
        for f in d.facts:
            for m in d.seen[f]:
                assert f == "grade" or any((m, f, x) in phrases().facts for x in (d.name, "")), (m, f)
    for (m, f, disease), w in phrases().facts.items():
        assert any(m in d.seen.get(f, ()) for d in DISEASES.values() if disease in ("", d.name)), f"{f} in {m} is never asked for"

def test_both_languages_are_equally_rich():
    say = phrases(); n = {lang: 0 for lang in LANGUAGES}
    for w in [w for f in say.facts.values() for w in f.say.values()] + list(say.seen + say.denied + say.normal):
        for lang in LANGUAGES: n[lang] += len(getattr(w, lang))
    assert n["en"] == n["zh"] > 500

def test_other_names_are_those_of_chapter_01():
    for d, w in phrases().diseases.items():
        if d != "normal": assert all(canonical(n) == d for n in (*w.names.en, *w.names.zh)), d
    assert set(DISEASES) <= set(load_knowledge()) and set(DISEASES) == set(phrases().diseases)

def test_chinese_holds_no_english_and_english_no_chinese():
    say = phrases(); allowed = {"OCT", "FFA", "CFP", "Gass", "Bruch", "PD", "ICDR", "Amsler", "Henle", "OD", "OS", "V"}
    for w in [w for f in say.facts.values() for w in f.say.values()] + list(say.seen + say.denied + say.normal) + [r for d in say.diseases.values() for r in d.remarks.values()]:
        for t in w.en: assert not re.search(r"[\u4e00-\u9fff]", t), t
        for t in w.zh: assert set(re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", t))) <= allowed, t

def test_remarks_exist_wherever_a_disease_shows():
    for d, w in phrases().diseases.items(): assert set(w.remarks) == set(DISEASES[d].modalities), d

def test_laterality():
    from dataclasses import replace
    eye = sample_eye(0, "diabetic retinopathy", {"hard exudates": "present", "grade": "moderate"})
    shift = lambda dx: replace(eye, lesions=tuple(replace(l, x=eye.fovea[0] + dx, y=eye.fovea[1]) for l in eye.of("hard exudate")))
    towards_disc = .3 if eye.disc[0] > eye.fovea[0] else -.3
    assert place(shift(towards_disc), "hard exudate") == "fovea nasal" and place(shift(-towards_disc), "hard exudate") == "fovea temporal"

def test_quadrant_clock_and_size():
    from dataclasses import replace
    eye = sample_eye(3, "choroidal nevus"); spot = eye.of("nevus")[0]; out = -1 if eye.disc[0] > eye.fovea[0] else 1
    at = lambda x, y: replace(eye, lesions=(replace(spot, x=x, y=y),))
    assert place(at(eye.fovea[0] + .3 * out, eye.fovea[1] - .3), "nevus") == "quadrant superotemporal"
    assert place(at(eye.fovea[0] - .3 * out, eye.fovea[1] + .3), "nevus") == "quadrant inferonasal"
    assert measured(at(eye.disc[0], eye.disc[1] - .4), "CFP", ("nevus",))["clock"] == 12
    assert measured(at(eye.disc[0] + .4, eye.disc[1]), "CFP", ("nevus",))["clock"] == 3
    assert measured(at(eye.disc[0], eye.disc[1] + .4), "CFP", ("nevus",))["clock"] == 6
    assert abs(measured(eye, "CFP", ("nevus",))["size"] - spot.size / eye.disc_radius) <= .05
    assert abs(measured(eye, "OCT", ("nevus",))["size"] - 8400 * spot.size) <= 50

def test_nothing_is_measured_where_nothing_is():
    eye = sample_eye(0, "normal")
    assert set(measured(eye, "CFP", ("nevus",))) == {"ratio"} and place(eye, "nevus") == ""
