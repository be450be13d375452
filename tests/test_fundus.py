"The fundus camera: sizes, masks, determinism, what each fact changes in the picture, speed, learnability."
import time

import cv2, numpy as np, pytest

from dataclasses import replace

from keepfit_nb.eye import DISEASES, FINE_TASKS, LESIONS, Lesion, sample_eye, vessel_tree
from keepfit_nb.colours import Scene
from keepfit_nb.fundus import (FIELDS, STUDY, TINTS, Settings, check_size, colour_histogram, draw_vessels, eye_set, grid, learnability,
                               learnability_table, pinched, render_fundus, train_cnn)

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
    for kind in {l.kind for l in eye.lesions if "CFP" in LESIONS[l.kind].split()}: assert masks[kind].any(), kind
    for kind in {l.kind for l in eye.lesions if "CFP" not in LESIONS[l.kind].split()}: assert kind not in masks
    for kind, m in masks.items(): assert not m[grid(256)[2] >= 1].any(), kind                     # nothing outside the window


def test_masks_lie_where_the_latents_say():
    for disease in CFP:
        eye = sample_eye(8, disease); _, masks = render_fundus(eye, 256, masks=True); x, y, _ = grid(256)
        for kind in {l.kind for l in eye.lesions} & set(masks) - {"photoreceptor loss"}:
            reach = {"spared strip": 2.6, "crescent": 2.2, "myelinated fibres": 1.7, "flame haemorrhage": 2.3, "star exudate": 2.8}.get(kind, 1.9)
            near = np.zeros_like(x, bool)
            for l in eye.of(kind): near |= np.hypot(x - l.x, y - l.y) < reach * l.size + .02 + .2 * (kind in ("crescent", "vitreous blood"))
            assert not (masks[kind] & ~near).any(), (disease, kind)


def camera_of(disease):                     # what the camera alone does: the scene without its lesions
    return render_fundus(replace(sample_eye(2, disease), lesions=()), 64)


def test_camera_and_nuisances_know_nothing_of_the_disease():
    bare = lambda d: replace(sample_eye(2, d), lesions=(), facts={}, diseases=("normal",))
    still = [d for d in CFP if bare(d) == bare("normal")]       # diseases that change no part of the eye itself
    assert len(still) >= 15
    plain = camera_of("normal")
    for d in still: assert (camera_of(d) == plain).all(), d


@pytest.mark.parametrize("disease, fact", [(d, f) for m, d, f in FINE_TASKS if m == "CFP"])
def test_each_fact_changes_the_picture(disease, fact):
    values = DISEASES[disease].facts[fact]
    for seed in (6, 7):
        a, b = (render_fundus(sample_eye(seed, disease, {fact: v}), 128).astype(int) for v in (values[0], values[-1]))
        assert (abs(a - b).max(-1) > 12).sum() > 12, seed


@pytest.mark.parametrize("disease", [d for d in CFP if d != "normal"])
def test_disease_changes_pixels_only_at_lesions(disease):
    spread = {"cataract", "vitreous hemorrhage", "retinal detachment", "retinitis pigmentosa", "pathologic myopia", "central retinal vein occlusion", "central retinal artery occlusion"}
    for seed in range(3):
        sick, well = (render_fundus(sample_eye(seed, d), 128).astype(int) for d in (disease, "normal"))
        assert (abs(sick - well).max(-1) > 10).sum() > 10
        if disease not in spread: assert np.median(abs(sick - well)) <= 3


def test_two_diseases_in_one_eye():
    eye = sample_eye(3, ("diabetic retinopathy", "cataract")); one = sample_eye(3, "diabetic retinopathy", {k: v for k, v in eye.facts.items() if k != "haze"})
    both, clear = (render_fundus(replace(e, noise=0.), 128)[30:98, 30:98].astype(float) for e in (eye, one))
    assert cv2.Laplacian(both, cv2.CV_64F).std() < .8 * cv2.Laplacian(clear, cv2.CV_64F).std()
    assert set(render_fundus(eye, 128, masks=True)[1]) == set(render_fundus(one, 128, masks=True)[1])


def test_left_and_right():
    for seed in range(8):
        eye = sample_eye(seed); m = render_fundus(eye, 96, masks=True)[1]["optic disc"]
        assert (np.nonzero(m)[1].mean() > 48) == (eye.side == "OD")


def rim(eye, way):                          # share of the disc's radius that is rim, looking from the centre
    masks = render_fundus(eye, 512, masks=True)[1]; x, y, _ = grid(512); x, y = x - eye.disc[0], y - eye.disc[1]
    ray = (np.abs(np.arctan2(y, x) - way) < .15)
    return 1 - np.hypot(x, y)[ray & masks["optic cup"]].max() / np.hypot(x, y)[ray & masks["optic disc"]].max()


def test_rim_obeys_isnt_and_glaucoma_breaks_it():
    for seed in range(6):
        eye = sample_eye(seed, "normal"); temple = np.pi * .999 if eye.side == "OD" else 0.; nose = 0. if eye.side == "OD" else np.pi * .999
        inferior, superior, nasal, temporal = (rim(eye, w) for w in (np.pi / 2, -np.pi / 2, nose, temple))
        assert inferior > superior - .02 > nasal - .08 and min(inferior, superior, nasal) > temporal
    sick = sample_eye(1, "glaucoma", {"cup": "large"}); below = sick.notch > 0
    around = np.linspace(-np.pi, np.pi, 24, endpoint=False)[1:]
    thinnest = around[int(np.argmin([rim(sick, w) for w in around]))]
    assert (np.sin(thinnest) > 0) == below


def test_nuisance_free_mechanisms():
    base = sample_eye(4, "normal"); vein = [v for v in vessel_tree(base) if v.kind == "vein"]
    even, beaded = draw_vessels(vein, 256), draw_vessels(vein, 256, beading=1.)
    assert abs(beaded.sum() / even.sum() - 1) < .25 and np.abs(beaded - even).max() > .5
    hot = replace(base, diseases=("hypertensive retinopathy",)); s, cold = Scene(hot, 256), Scene(base, 256)
    artery = draw_vessels([v for v in vessel_tree(base) if v.kind == "artery"], 256)
    assert pinched(s, even, artery).sum() < pinched(cold, even, artery).sum() < even.sum()
    pale = replace(base, disc_pallor=1., pallor_side="temporal"); img, masks = render_fundus(pale, 256, masks=True)
    before, disc = render_fundus(base, 256), masks["optic disc"] & ~masks["artery"] & ~masks["vein"] & ~masks["optic cup"]
    gain = (img.astype(int) - before).sum(-1); side = np.sign(grid(256)[0] - base.disc[0]) == np.sign(base.fovea[0] - base.disc[0])
    assert gain[disc & side].mean() > 3 * abs(gain[disc & ~side].mean())


def test_haze_blurs_veils_and_yellows():
    eye = replace(sample_eye(9, "normal"), noise=0.); clear, dense = (render_fundus(replace(eye, haze=h), 128).astype(float) for h in (0., .95)); inside = grid(128)[2] < .6
    detail = lambda img: (img - cv2.GaussianBlur(img, (0, 0), 6))[inside].std(0).mean()
    assert detail(dense) < .4 * detail(clear)
    assert dense[inside, 2].mean() / dense[inside, 0].mean() < clear[inside, 2].mean() / clear[inside, 0].mean()
    assert (render_fundus(replace(eye, haze=0.), 128) == clear).all()


@pytest.mark.parametrize("field", FIELDS)
def test_field_of_view_scales_the_scene(field):
    eye = sample_eye(2, "geographic atrophy"); img, masks = render_fundus(eye, 256, masks=True, field=field); k = 45 / field
    disc = np.argwhere(render_fundus(replace(eye, disc=(.3, 0.)), 256, masks=True, field=field)[1]["optic disc"])
    assert abs((disc[:, 1].mean() + .5) * 2 / 256 - 1 - .97 * .3 * k) < .02
    ratio = masks["atrophy"].sum() / render_fundus(eye, 256, masks=True)[1]["atrophy"].sum()
    assert abs(ratio / k**2 - 1) < .06


@pytest.mark.parametrize("field", [0, 60, "45", None, float("nan")])
def test_impossible_fields(field):
    with pytest.raises(ValueError, match="30, 45, 50 degrees"): render_fundus(sample_eye(0), 64, field=field)


def test_lesions_beyond_the_rim_and_beyond_reason_do_no_harm():
    eye = sample_eye(0, "normal")
    wild = [Lesion(k, x, y, size, 1., 1.) for k in LESIONS for x, y, size in ((3., 0., .1), (-1.1, .9, .3), (0., 0., 1e-6), (.2, .2, 2.5))]
    img, masks = render_fundus(replace(eye, lesions=tuple(wild), disc=(.95, -.3)), 64, masks=True)
    assert img.shape == (64, 64, 3) and all(m.dtype == bool for m in masks.values())


def test_colours_spread_as_in_the_table():
    means = np.stack([render_fundus(sample_eye(20_000 + i, "normal"), 64)[grid(64)[2] < .9].mean(0) / 255 for i in range(150)])
    assert abs(np.median(np.log(means[:, 0])) - TINTS[0][3]) < .12 and abs(np.median(np.log(means[:, 1] / means[:, 0])) - TINTS[1][3]) < .1
    assert abs(np.median(np.log(means[:, 2] / means[:, 1])) - TINTS[2][3]) < .15 and (means[:, 0] > means[:, 1]).mean() > .95


@pytest.mark.parametrize("size", [0, 31, 5000, 96.5, "96", None, True, -64])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match="whole number of pixels"): check_size(size)
    with pytest.raises(ValueError, match="whole number of pixels"): render_fundus(sample_eye(0), size)


def test_eye_set_and_histogram():
    x, y = eye_set(render_fundus, "CFP", 58, 64, 100)
    assert x.shape == (58, 3, 64, 64) and x.dtype == np.uint8 and (np.bincount(y) == 2).all() and len(set(y)) == 29
    h = colour_histogram(x)
    assert h.shape == (58, 512) and np.allclose((h**2).sum(1), 1)
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
    out = learnability(dot, "CFP", 145, 87, 32, 8)
    assert set(out) == {"aca_cnn", "aca_histogram", "chance"} and .03 < out["aca_histogram"] < .2 and out["chance"] == 1 / 29


def test_settings():
    assert Settings(**STUDY).n_train > Settings().n_train
    with pytest.raises(ValueError): Settings(sise=3)
    rows = learnability_table(render_fundus, "CFP", Settings(size=32, n_train=116, n_test=29, steps=4, n_fine=1))
    assert [r["task"] for r in rows][0] == "disease" and len(rows) == 2


@pytest.mark.slow
def test_speed_is_recorded_not_asserted(record_property):
    cv2.setNumThreads(1); render_fundus(sample_eye(0), 128)
    start = time.process_time(); [render_fundus(sample_eye(90_000 + i, d), 128) for i, d in enumerate(CFP)]
    record_property("images_per_second_128", len(CFP) / (time.process_time() - start))


@pytest.mark.slow
def test_diseases_are_learnable_from_shapes_and_not_from_colours():
    out = learnability(render_fundus, "CFP", 2030, 290, 64, 500)
    assert out["aca_cnn"] > .75 and out["aca_histogram"] < .5 and out["aca_cnn"] > out["aca_histogram"] + .35, out
