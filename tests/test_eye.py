"The latents of an eye: names, determinism, independence of the nuisances, geometry, vessels."
import math, subprocess, sys

import numpy as np, pytest

from keepfit_nb.eye import (DISEASES, FINE_TASKS, LESIONS, anatomy, draw_facts, grade_of, murray, sample_eye, scatter, smooth, stream, vessel_tree)

ALL = [(d.name, f, v) for d in DISEASES.values() for f, values in d.facts.items() for v in values]


def test_counts_of_the_simulator():
    seen = {m: sum(m in d.modalities for d in DISEASES.values()) for m in ("CFP", "FFA", "OCT")}
    assert seen["CFP"] >= 9 and seen["FFA"] >= 6 and seen["OCT"] >= 7          # with normal
    assert len(FINE_TASKS) == len(set(FINE_TASKS))
    for m, d, f in FINE_TASKS: assert m in DISEASES[d].modalities and len(DISEASES[d].facts[f]) >= 2


@pytest.mark.parametrize("disease, fact, value", ALL)
def test_a_fixed_fact_is_kept(disease, fact, value):
    for i in range(5):
        eye = sample_eye(i, disease, {fact: value})
        assert eye.facts[fact] == value and set(eye.facts) == set(DISEASES[disease].facts)


@pytest.mark.parametrize("disease", DISEASES)
def test_lesions_are_known_small_and_inside(disease):
    for i in range(15):
        eye = sample_eye(i, disease)
        for l in eye.lesions:
            assert l.kind in LESIONS and 0 < l.size < .6 and 0 <= l.strength <= 1
            assert math.hypot(l.x, l.y) < 1.1 and all(isinstance(v, float) for v in (l.x, l.y, l.size, l.strength, l.angle))
        assert (eye.disc[0] > 0) == (eye.side == "OD") and math.hypot(*eye.disc) + eye.disc_radius < 1


def test_facts_show_in_the_lesions():
    count = lambda kind, **f: np.mean([len(sample_eye(i, "diabetic retinopathy", {k.replace("_", " "): v for k, v in f.items()}).of(kind)) for i in range(12)])
    assert count("microaneurysm", microaneurysms="many") > 2.5 * count("microaneurysm", microaneurysms="few")
    assert count("hard exudate", hard_exudates="absent") == 0 < count("hard exudate", hard_exudates="present")
    up, down = (np.mean([l.y for l in sample_eye(3, "branch retinal vein occlusion", {"quadrant": q}).of("flame haemorrhage")]) for q in ("superior", "inferior"))
    assert up < -.2 < .2 < down
    assert all(sample_eye(i, "glaucoma").cup_ratio > sample_eye(i, "normal").cup_ratio + .15 for i in range(20))


@pytest.mark.parametrize("name", ["age-related macular degeneration", "diabetic macular edema", "geographic atrophy", "macular hole",
                                  "central serous chorioretinopathy", "epiretinal membrane", "neovascular age-related macular degeneration"])
def test_the_horizontal_scan_cuts_lesions(name):
    for i in range(15):
        eye = sample_eye(i, name)
        assert any(abs(l.y - eye.fovea[1]) < l.size and abs(l.x - eye.fovea[0]) < .45 for l in eye.lesions)


def test_same_seed_same_eye_in_another_process():
    code = "from keepfit_nb.eye import *; e = sample_eye(7); print(repr(e), float(sum(v.points.sum() for v in vessel_tree(e))))"
    out = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": h, "PATH": ""}).stdout for h in "12"}
    assert len(out) == 1 and out.pop().startswith("Eye(seed=7")


def test_global_random_state_is_neither_used_nor_touched():
    np.random.seed(0); before = np.random.get_state()[1].copy()
    a = sample_eye(3); np.random.seed(5); b = sample_eye(3); np.random.seed(0)
    assert a == b and (np.random.get_state()[1] == before).all()


def test_nuisances_do_not_know_the_disease():
    for i in range(10):
        eyes = [sample_eye(i, d) for d in DISEASES]
        for k in ("side", "disc", "fovea", "disc_radius", "pigmentation", "exposure", "hue", "blur", "vignette", "noise"):
            assert len({getattr(e, k) for e in eyes}) == 1, k
    sides = [sample_eye(i).side for i in range(400)]
    assert .42 < sides.count("OD") / 400 < .58


def test_every_disease_is_drawn():
    assert {sample_eye(i).disease for i in range(300)} == set(DISEASES)


def test_grades():
    facts = {"microaneurysms": "few", "hard exudates": "absent", "cotton-wool spots": "absent", "non-perfusion": "absent"}
    assert grade_of(facts) == "mild"
    assert grade_of(facts | {"hard exudates": "present"}) == "moderate" == grade_of(facts | {"microaneurysms": "many"})
    assert grade_of(facts | {"microaneurysms": "many", "cotton-wool spots": "present"}) == "severe"
    for g in DISEASES["diabetic retinopathy"].facts["grade"]:
        eye = sample_eye(1, "diabetic retinopathy", {"grade": g})
        assert bool(eye.of("new vessels")) == (g == "proliferative")


@pytest.mark.parametrize("call, says", [
    (lambda: sample_eye(0, "glaucoms"), "did you mean 'glaucoma'"),
    (lambda: sample_eye(0, "glaucoma", {"cupp": "large"}), "did you mean 'cup'"),
    (lambda: sample_eye(0, "glaucoma", {"cup": "larg"}), "did you mean 'large'"),
    (lambda: sample_eye(0, "normal", {"cup": "large"}), "unknown fact"),
    (lambda: sample_eye(0, "diabetic retinopathy", {"grade": "mild", "hard exudates": "present"}), "no eye can have")])
def test_wrong_names(call, says):
    with pytest.raises(ValueError, match=says): call()


def test_an_eye_cannot_be_changed():
    with pytest.raises(AttributeError): sample_eye(0).side = "OS"


def test_murray_keeps_the_flow():
    parent, ratio = np.random.default_rng(0).uniform(.01, 1, (2, 100))
    a, b, ta, tb = murray(parent, ratio)
    np.testing.assert_allclose(a**3 + b**3, parent**3)
    assert (a >= b).all() and (ta <= tb + 1e-12).all()                       # the thinner branch turns more


@pytest.mark.parametrize("seed", range(6))
def test_vessels(seed):
    eye = sample_eye(seed, "normal"); tree = vessel_tree(eye)
    assert 50 < len(tree) < 400 and {v.kind for v in tree} == {"artery", "vein"}
    points = np.concatenate([v.points for v in tree])
    assert np.isfinite(points).all() and np.hypot(*points.T).max() < 1.15
    assert np.hypot(*(points - eye.fovea).T).min() > .07                      # the fovea is free
    for sx in (-1, 1):
        for sy in (-1, 1): assert ((points * [sx, sy] > .2).all(1)).sum() > 20  # every quadrant is fed
    wide = {k: np.mean([v.calibre[:5].mean() for v in tree if v.kind == k and v.order == 0]) for k in ("artery", "vein")}
    assert wide["artery"] < .9 * wide["vein"]


def test_diseased_vessels():
    calibre = lambda d, k: np.mean([v.calibre.mean() for v in vessel_tree(sample_eye(2, d)) if v.kind == k])
    assert calibre("hypertensive retinopathy", "artery") < .6 * calibre("normal", "artery")
    bend = lambda d: np.mean([abs(np.diff(np.unwrap(np.arctan2(*np.diff(v.points, axis=0).T)))).mean() for v in vessel_tree(sample_eye(2, d)) if v.kind == "vein"])
    assert bend("central retinal vein occlusion") > 2 * bend("normal")


def test_left_eyes_mirror_right_ones():
    for i in range(8):
        eye, base = sample_eye(i, "normal"), anatomy(i)
        sign = 1 if eye.side == "OD" else -1
        assert eye.disc == (sign * base["disc"][0], base["disc"][1])
        trunks = np.concatenate([v.points[:3] for v in vessel_tree(eye) if v.order == 0])
        assert np.hypot(*(trunks - eye.disc).T).max() < .2


def test_scatter_respects_its_region():
    base = anatomy(0)
    pts = np.array(scatter(np.random.default_rng(0), 30, base, (.1, .1), .4, .1, .05))
    d = np.hypot(*(pts - .1).T)
    assert (d > .1).all() and (d < .4).all() and len(scatter(np.random.default_rng(0), 5000, base, gap=.2)) < 200


def test_smooth_stays_within_branches():
    ids = np.array([0, 0, 0, 1, 1, 1]); track = np.array([[0, 0, 1], [1, 0, 1], [2, 0, 1], [0, 9, 2], [1, 9, 2], [2, 9, 2.]])
    i2, t2 = smooth(ids, track)
    assert len(i2) == 10 and set(t2[i2 == 0, 1]) == {0.} and set(t2[i2 == 1, 1]) == {9.}


def test_streams_differ_by_name_and_seed():
    draws = {stream(s, n).random() for s in range(3) for n in ("a", "b")}
    assert len(draws) == 6
