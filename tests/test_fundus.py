"The fundus camera: sizes, masks, determinism, what each fact changes in the picture, speed, learnability."
import time

import cv2, numpy as np, pytest

from keepfit_nb.eye import DISEASES, FINE_TASKS, LESIONS, sample_eye
from keepfit_nb.fundus import (STUDY, Canvas, Settings, check_size, cloud, colour_histogram, eye_set, learnability, learnability_table,
                               lesion_cover, render_fundus, train_cnn)

CFP = [d.name for d in DISEASES.values() if "CFP" in d.modalities]


@pytest.mark.parametrize("disease", CFP)
@pytest.mark.parametrize("size", [64, 97, 256])
def test_image(disease, size):
    img, masks = render_fundus(sample_eye(3, disease), size, masks=True)
    assert img.shape == (size, size, 3) and img.dtype == np.uint8 and img.max() > 90
    assert img[:3, :3].max() == 0 and (img[size // 2 - 5:size // 2 + 5].mean() > 15)           # black surround, lit centre
    assert {"optic disc", "optic cup", "artery", "vein"} <= set(masks)
    for m in masks.values(): assert m.shape == (size, size) and m.dtype == bool


@pytest.mark.parametrize("disease", CFP)
def test_same_scene_at_every_size(disease):
    eye = sample_eye(11, disease); large = render_fundus(eye, 512)
    for size in (64, 128, 256):
        shrunk = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(render_fundus(eye, size).ravel(), shrunk.ravel())[0, 1] > .98


def test_deterministic_and_fresh():
    eye = sample_eye(4, "diabetic retinopathy"); a = render_fundus(eye, 96); keep = a.copy(); a[:] = 0
    np.random.seed(3); cv2.setRNGSeed(9)
    assert (render_fundus(eye, 96) == keep).all()


@pytest.mark.parametrize("disease", CFP)
def test_every_lesion_of_the_camera_has_a_mask(disease):
    eye = sample_eye(5, disease); _, masks = render_fundus(eye, 256, masks=True)
    special = {"crescent", "disc swelling"}                                                      # drawn with the disc
    for kind in {l.kind for l in eye.lesions if "CFP" in LESIONS[l.kind]} - special: assert masks[kind].any(), kind
    for kind in {l.kind for l in eye.lesions if "CFP" not in LESIONS[l.kind]}: assert kind not in masks


@pytest.mark.parametrize("disease, fact", [(d, f) for m, d, f in FINE_TASKS if m == "CFP"])
def test_each_fact_changes_the_picture(disease, fact):
    a, b = (render_fundus(sample_eye(6, disease, {fact: v}), 96).astype(int) for v in DISEASES[disease].facts[fact][::len(DISEASES[disease].facts[fact]) - 1])
    assert (abs(a - b).max(-1) > 25).sum() > 15


@pytest.mark.parametrize("disease", [d for d in CFP if d != "normal"])
def test_disease_changes_pixels_only_at_lesions(disease):
    for seed in range(3):
        sick, well = (render_fundus(sample_eye(seed, d), 96).astype(int) for d in (disease, "normal"))
        assert (abs(sick - well).max(-1) > 20).sum() > 30 and np.median(abs(sick - well)) <= (12 if "myopia" in disease or "central" in disease else 3)


@pytest.mark.parametrize("size", [0, 31, 5000, 96.5, "96", None, True, -64])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match="whole number of pixels"): check_size(size)
    with pytest.raises(ValueError, match="whole number of pixels"): render_fundus(sample_eye(0), size)


def test_cover_is_a_share():
    eye = sample_eye(0, "diabetic retinopathy", {"microaneurysms": "many"})
    area = sum(np.pi * l.size**2 for l in eye.of("microaneurysm"))
    for size in (64, 128, 512):
        c = lesion_cover(eye, "microaneurysm", size)
        assert 0 <= c.min() and c.max() <= 1 and abs(c.sum() * (2 / size / .97)**2 / area - 1) < .15
    assert lesion_cover(eye, "atrophy", 64).max() == 0
    assert Canvas(64).n == Canvas(256).n == 512 and Canvas(512).n == 1024


def test_cloud_is_the_same_scene():
    a, b = (cloud(np.random.default_rng(0), n, 6, 3) for n in (64, 256))
    assert np.corrcoef(a.ravel(), cv2.resize(b, (64, 64), interpolation=cv2.INTER_AREA).ravel())[0, 1] > .97


def test_eye_set_and_histogram():
    x, y = eye_set(render_fundus, "CFP", 22, 64, 100)
    assert x.shape == (22, 3, 64, 64) and x.dtype == np.uint8 and (np.bincount(y) == 2).all()
    h = colour_histogram(x)
    assert h.shape == (22, 512) and np.allclose((h**2).sum(1), 1)
    x, y = eye_set(render_fundus, "CFP", 4, 64, 100, ("glaucoma", "cup"))
    assert list(y) == [0, 1, 0, 1]


def test_training_is_repeatable_and_leaves_the_global_seed():
    import torch
    x, y = eye_set(render_fundus, "CFP", 22, 64, 0); torch.manual_seed(1); before = torch.get_rng_state()
    a, b = train_cnn(x, y, x, 2), train_cnn(x, y, x, 2)
    assert (a == b).all() and torch.equal(before, torch.get_rng_state())


def test_learnability_tells_shape_from_colour():
    def dot(eye, size):                     # colour decides one disease, nothing decides the others
        img = np.random.default_rng(eye.seed).integers(60, 90, (size, size, 3)).astype(np.uint8)
        if eye.disease == "normal": img[..., 0] = 200
        return img
    out = learnability(dot, "CFP", 110, 44, 32, 8)
    assert set(out) == {"aca_cnn", "aca_histogram", "chance"} and .1 < out["aca_histogram"] < .4 and out["chance"] == 1 / 11


def test_settings():
    assert Settings(**STUDY).n_train > Settings().n_train
    with pytest.raises(ValueError): Settings(sise=3)
    rows = learnability_table(render_fundus, "CFP", Settings(size=32, n_train=22, n_test=11, steps=4, n_fine=1))
    assert [r["task"] for r in rows][0] == "disease" and len(rows) == 2


@pytest.mark.slow
def test_speed_is_recorded_not_asserted(record_property):
    cv2.setNumThreads(1); eyes = [sample_eye(90_000 + i) for i in range(60)]; render_fundus(eyes[0], 128)
    start = time.process_time(); [render_fundus(e, 128) for e in eyes]
    record_property("images_per_second_128", 60 / (time.process_time() - start))


@pytest.mark.slow
def test_diseases_are_learnable_from_shapes_only():
    out = learnability(render_fundus, "CFP", 1200, 220, 64, 300)
    assert out["aca_cnn"] > .85 and out["aca_histogram"] < .5 and out["aca_cnn"] > out["aca_histogram"] + .35
