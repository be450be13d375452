"The eye as a whole: determinism, independence of the nuisances, company, grading, mirror."
import subprocess, sys

import numpy as np, pytest

import keepfit_nb.eye as chapter
from keepfit_nb.eye import (DISEASES, GRADES, TOGETHER, anatomy, per_quadrant, sample_eye, severity, visible_diseases)

BODY = ("cup_ratio", "notch", "artery_calibre", "vein_calibre", "tortuosity", "beading", "tessellation", "disc_pallor", "pallor_side", "haze")
NUISANCES = ("side", "disc", "fovea", "disc_radius", "pigmentation", "exposure", "hue", "blur", "vignette", "noise")


def test_names_of_the_earlier_chapters_are_at_hand():
    for name in chapter.__all__: assert hasattr(chapter, name), name
    assert {"DISEASES", "FINE_TASKS", "LESIONS", "Lesion", "stream", "vessel_tree", "Vessel", "anatomy", "scatter", "spread"} <= set(chapter.__all__)


def test_facts_show_in_the_lesions():
    count = lambda kind, **f: np.mean([len(sample_eye(i, "diabetic retinopathy", {k.replace("_", " "): v for k, v in f.items()}).of(kind)) for i in range(12)])
    assert count("microaneurysm", microaneurysms="many") > 2.5 * count("microaneurysm", microaneurysms="few")
    assert count("hard exudate", hard_exudates="absent") == 0 < count("hard exudate", hard_exudates="present")
    up, down = (np.mean([l.y for l in sample_eye(3, "branch retinal vein occlusion", {"quadrant": q}).of("flame haemorrhage")]) for q in ("superior", "inferior"))
    assert up < -.2 < .2 < down
    assert all(sample_eye(i, "glaucoma").cup_ratio > sample_eye(i, "normal").cup_ratio + .15 for i in range(20))


@pytest.mark.parametrize("disease, fact", [(d.name, f) for d in DISEASES.values() for f in d.facts])
def test_each_fact_changes_the_eye(disease, fact):
    values = DISEASES[disease].facts[fact]
    if fact == "stage": return                          # stages 3 and 4 differ in the vitreous, which chapter 03c draws from the fact
    eyes = [sample_eye(6, disease, {fact: v}) for v in values]
    seen = {(tuple((l.kind, l.size, l.strength, l.x, l.y) for l in e.lesions), *(getattr(e, k) for k in BODY)) for e in eyes}
    assert len(seen) == len(values)


def test_same_seed_same_eye_in_another_process():
    code = "from keepfit_nb.eye import *; print(repr([sample_eye(i) for i in range(40)]))"
    out = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": h, "PATH": ""}).stdout for h in "12"}
    assert len(out) == 1 and out.pop().startswith("[Eye(seed=0")


def test_global_random_state_is_neither_used_nor_touched():
    np.random.seed(0); before = np.random.get_state()[1].copy()
    a = sample_eye(3); np.random.seed(5); b = sample_eye(3); np.random.seed(0)
    assert a == b and (np.random.get_state()[1] == before).all()


def test_nuisances_do_not_know_the_disease():
    for i in range(6):
        eyes = [sample_eye(i, d) for d in [*DISEASES, *TOGETHER[::7]]]
        for k in NUISANCES: assert len({getattr(e, k) for e in eyes}) == 1, k
    sides = [sample_eye(i).side for i in range(400)]
    assert .42 < sides.count("OD") / 400 < .58


def test_every_disease_is_drawn():
    assert {sample_eye(i).disease for i in range(400)} == set(DISEASES)


@pytest.mark.parametrize("pair", TOGETHER, ids="+".join)
def test_company(pair):
    eye, first = sample_eye(8, pair), sample_eye(8, pair[0])
    assert eye.diseases == pair and eye.disease == pair[0] and set(eye.facts) == {f for d in pair for f in DISEASES[d].facts}
    alone = [sample_eye(8, d, {f: eye.facts[f] for f in DISEASES[d].facts}) for d in pair]
    assert eye.lesions == alone[0].lesions + alone[1].lesions                     # each disease brings what it brings alone
    for k in NUISANCES: assert getattr(eye, k) == getattr(first, k)
    assert sample_eye(8, pair[::-1]).diseases == pair[::-1]


def test_three_diseases():
    eye = sample_eye(1, ["diabetic retinopathy", "diabetic macular edema", "laser spot"])
    assert len(eye.diseases) == 3 and severity(eye) >= 3 and eye.facts["hard exudates"] == "present"


def test_grading_reads_off_the_lesions_what_was_wished():
    for i in range(150):
        for others in ((), ("cataract",), ("diabetic macular edema",), ("laser spot",), ("vitreous hemorrhage",), ("epiretinal membrane",)):
            eye = sample_eye(i, ("diabetic retinopathy", *others))
            assert GRADES[severity(eye) - 1] == eye.facts["grade"], (i, others)
    for d in DISEASES:
        if d != "diabetic retinopathy": assert severity(sample_eye(2, d)) == 0


def test_four_two_one():
    for i in range(100):
        eye = sample_eye(i, "diabetic retinopathy", {"grade": "severe"})
        assert eye.beading > .5 if eye.facts["venous beading"] == "present" else min(per_quadrant(eye, "haemorrhage")) > 20
        mild = sample_eye(i, "diabetic retinopathy", {"grade": "mild"})
        assert {l.kind for l in mild.lesions} == {"microaneurysm"} and mild.beading == 0
        assert bool(sample_eye(i, "diabetic retinopathy", {"grade": "proliferative"}).of("new vessels"))


def test_visible_diseases():
    eye = sample_eye(0, ("age-related macular degeneration", "cataract"))
    assert visible_diseases(eye, "CFP") == eye.diseases and visible_diseases(eye, "OCT") == eye.diseases[:1] and visible_diseases(eye, "FFA") == ()
    with pytest.raises(ValueError, match="did you mean 'OCT'"): visible_diseases(eye, "OTC")


def test_mirror():
    for i in range(60):
        eye, base = sample_eye(i, "macular hole"), anatomy(i)
        sign = 1 if eye.side == "OD" else -1
        assert eye.fovea == (sign * base["fovea"][0], base["fovea"][1]) and (eye.disc[0] > 0) == (eye.side == "OD")
        (hole,) = eye.of("macular hole"); assert (hole.x, hole.y) == eye.fovea


@pytest.mark.parametrize("call, says", [
    (lambda: sample_eye(0, "glaucoms"), "did you mean 'glaucoma'"), (lambda: sample_eye(0, ("glaucoma", "normal")), "do not share"),
    (lambda: sample_eye(0, ()), "no disease given"), (lambda: sample_eye(0, "glaucoma", {"cup": "larg"}), "did you mean 'large'")])
def test_wrong_names(call, says):
    with pytest.raises(ValueError, match=says): call()


def test_an_eye_cannot_be_changed():
    with pytest.raises(AttributeError): sample_eye(0).side = "OS"
