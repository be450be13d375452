"""The tomogram of the phantom eye: what does not fit in chapter 03c."""
import hashlib, time
import cv2, numpy as np, pytest
from keepfit_nb.eye import DISEASES, FINE_TASKS, sample_eye, stream
from keepfit_nb.oct import (CHANGES, LAYERS, OCT_DISEASES, boundaries, cut, healthy, met, nuisances, paint_layers, render_oct, settle, stamp)

FACTS = [(d, f) for m, d, f in FINE_TASKS if m == "OCT"]

def test_classes_are_those_of_the_eye():
    assert set(OCT_DISEASES) == {n for n, d in DISEASES.items() if "OCT" in d.modalities} and len(OCT_DISEASES) >= 6
    assert set(CHANGES) == set(OCT_DISEASES) - {"normal"}

@pytest.mark.parametrize("disease", OCT_DISEASES)
@pytest.mark.parametrize("size", [64, 96, 200])
def test_shape_and_determinism(disease, size):
    eye = sample_eye(11, disease)
    image, masks = render_oct(eye, size, masks=True)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert (image[..., 0] == image[..., 1]).all() and image.std() > 5
    np.random.seed(0); np.random.rand(5)                       # a global stream must not matter
    assert (image == render_oct(eye, size)).all()
    assert all(m.shape == (size, size) and m.dtype == bool for m in masks.values()) and masks["retina"].any()
    assert set(masks) > {"retina"} or disease == "normal"

@pytest.mark.parametrize("disease", OCT_DISEASES)
def test_same_scene_at_every_size(disease):
    eye = sample_eye(5, disease)
    small = render_oct(eye, 128).astype(float)[..., 0]
    large = cv2.resize(render_oct(eye, 512)[..., 0], (128, 128), interpolation=cv2.INTER_AREA).astype(float)
    blur = lambda a: cv2.GaussianBlur(a, (0, 0), 2)
    assert np.corrcoef(blur(small).ravel(), blur(large).ravel())[0, 1] > .97

def test_nuisances_do_not_know_the_disease():
    plain = lambda eye: {k: v for k, v in vars(nuisances(eye)).items() if k not in ("rng", "layers")}
    for seed in range(20):
        assert len({str(plain(sample_eye(seed, d))) for d in OCT_DISEASES}) == 1

def test_disease_changes_the_lesion_and_not_the_rest():
    "Far from the lesion, on the same eye, sick and well are the same tissue."
    hole, well = (cut(sample_eye(4, d), 256) for d in ("macular hole", "normal"))
    assert np.allclose(boundaries(hole)[1], boundaries(well)[1])          # Bruch's membrane
    assert np.allclose(hole.thickness["nerve fibre layer"][[0, -1]], well.thickness["nerve fibre layer"][[0, -1]], rtol=.05)

@pytest.mark.parametrize("disease,fact", FACTS)
def test_fact_values_differ_in_the_picture(disease, fact):
    a, b = (render_oct(sample_eye(21, disease, {fact: v}), 96).astype(float) for v in DISEASES[disease].facts[fact])
    assert np.abs(a - b).mean() > 1

def share(disease, kind, facts, n=12):
    return np.mean([render_oct(sample_eye(s, disease, facts), 96, masks=True)[1][kind].mean() for s in range(n)])

@pytest.mark.parametrize("disease,kind,fact,less,more,ratio", [
    ("macular hole", "hole", "hole", "small", "large", 1.7), ("diabetic macular edema", "intraretinal fluid", "cysts", "few", "many", 2),
    ("age-related macular degeneration", "drusen", "drusen", "small", "large", 2), ("geographic atrophy", "atrophy", "atrophy", "small", "large", 1.7),
    ("central serous chorioretinopathy", "subretinal fluid", "elevation", "shallow", "tall", 2)])
def test_masks_follow_the_facts(disease, kind, fact, less, more, ratio):
    assert share(disease, kind, {fact: more}) > ratio * share(disease, kind, {fact: less}) > 0

def test_every_lesion_is_in_its_picture():
    "Whatever the seed, a disease leaves its mark: no sick eye is rendered as a healthy one."
    kind = {"age-related macular degeneration": "drusen", "geographic atrophy": "atrophy", "macular hole": "hole", "epiretinal membrane": "epiretinal membrane",
            "neovascular age-related macular degeneration": "membrane", "central serous chorioretinopathy": "subretinal fluid", "diabetic macular edema": "intraretinal fluid"}
    for s in range(60):
        d = OCT_DISEASES[1:][s % 7]
        assert render_oct(sample_eye(s, d), 64, masks=True)[1][kind[d]].sum() >= 3, (s, d)

def test_neovascular_fluid_is_of_its_kind():
    for value in ("subretinal", "intraretinal"):
        masks = render_oct(sample_eye(3, "neovascular age-related macular degeneration", {"fluid": value}), 128, masks=True)[1]
        assert masks[f"{value} fluid"].any() and masks["membrane"].any()
        assert ("subretinal fluid" in masks) != ("intraretinal fluid" in masks)

def test_other_eye_is_mirrored_in_its_nerve_fibres():
    sides = {}
    for s in range(40):
        eye = sample_eye(s, "normal"); sides.setdefault(eye.side, healthy(eye, 64).thickness["nerve fibre layer"])
    assert sides["OD"][-1] > sides["OD"][0] and sides["OS"][-1] < sides["OS"][0]

def test_met_keeps_to_the_line():
    for s in range(20):
        eye = sample_eye(s, "age-related macular degeneration"); scan = healthy(eye, 64)
        found = met(eye, scan, "hard drusen", "soft drusen")
        assert 3 <= len(found) <= len(eye.lesions) and all(0 < w < .3 for _, w, _ in found)

def test_stamp_outside_changes_nothing():
    image = np.zeros((32, 32), np.float32)
    for u, depth in ((-9, 500), (9, 500), (0, -5000), (0, 9000)): stamp(image, 1., u, depth, .1, 30)
    assert not image.any()
    stamp(image, 1., 0, 550, .1, 60); assert image.max() > .9

@pytest.mark.parametrize("size", [0, 16, 5000])
def test_impossible_size(size):
    with pytest.raises(ValueError, match="outside"): render_oct(sample_eye(0, "normal"), size)

def test_disease_without_a_tomogram():
    with pytest.raises(ValueError, match="no OCT appearance"): render_oct(sample_eye(0, "glaucoma"))

def test_brightness_tells_little():
    "Mean grey of the classes overlaps: nobody can tell a disease by how bright its pictures are."
    means = np.array([[render_oct(sample_eye(s, d), 64).mean() for s in range(16)] for d in OCT_DISEASES])
    assert means.mean(1).std() < .6 * means.std(1).mean()
