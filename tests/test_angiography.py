"The angiograph: curves, phases, signs, delays, masks shared with the photograph, sizes, hostile input."
import math, subprocess, sys

import cv2, numpy as np, pytest
from dataclasses import replace
from hypothesis import given, settings, strategies as st

from keepfit_nb.angiography import CLOCK, PHASES, Plate, curves, flow, glow, leak, render_angiogram
from keepfit_nb.eye import DISEASES, FINE_TASKS, LESIONS, TOGETHER, Lesion, sample_eye
from keepfit_nb.fundus import learnability, render_fundus

FFA = [d.name for d in DISEASES.values() if "FFA" in d.modalities]
TASKS = [(d, f) for m, d, f in FINE_TASKS if m == "FFA"]
BEST = {"leakage": "late", "scar": "late", "cysts": "late", "dome": "late"}          # all others show in the venous phase


def inside(eye, kind, phase, size=128):
    img, masks = render_angiogram(eye, size, phase, masks=True)
    return img[..., 0][masks[kind]].mean()


@pytest.mark.parametrize("disease", FFA)
@pytest.mark.parametrize("phase", PHASES)
def test_image(disease, phase):
    img, masks = render_angiogram(sample_eye(3, disease), 96, phase, masks=True)
    assert img.shape == (96, 96, 3) and img.dtype == np.uint8 and (img[..., 0] == img[..., 2]).all() and img[:2, :2].max() == 0
    field = np.hypot(*np.meshgrid(*[((np.arange(96) + .5) * 2 / 96 - 1) / .97] * 2)) < 1
    for m in masks.values(): assert m.shape == (96, 96) and m.dtype == bool and not (m & ~field).any()


@pytest.mark.parametrize("disease", FFA)
def test_same_scene_at_every_size(disease):
    eye = sample_eye(8, disease); large = render_angiogram(eye, 512)
    for size in (64, 128, 256):
        shrunk = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(render_angiogram(eye, size).ravel(), shrunk.ravel())[0, 1] > .96


def test_curves_of_the_dye():
    first = {k: CLOCK[np.argmax(c > .05 * c.max())] for k, c in curves().items()}
    assert 9 < first["choroid"] < first["artery"] < first["capillary"] < first["vein"] < 20
    for k, c in curves().items(): assert (c >= 0).all() and (c[CLOCK <= 10] == 0).all(), k
    for k in ("choroid", "artery", "capillary", "vein"): assert 10 < CLOCK[np.argmax(curves()[k])] < 35 and curves()[k][-1] < .2 * curves()[k].max()
    for k in ("pool", "blister", "stain"): assert np.argmax(curves()[k]) * .25 > 300                       # these only rise


@given(st.sampled_from(sorted(curves())), st.floats(-100, 2000))
def test_glow_is_a_brightness(name, t): assert 0 <= glow(name, t) <= 1 and (t > 10 or glow(name, t) == 0)


def test_phases_in_order():
    eye = sample_eye(2, "normal")
    a, v = ({p: inside(eye, k, p) for p in PHASES} for k in ("artery", "vein"))
    assert a["choroidal"] < a["arterial"] and a["arterial"] > 1.4 * v["arterial"] and v["venous"] > 1.3 * v["late"] and v["venous"] > v["arterial"]
    assert list(PHASES) == ["choroidal", "arterial", "venous", "late"] and (render_angiogram(eye, 64, "late") == render_angiogram(eye, 64, 600)).all()


def test_before_the_dye_it_is_dark():
    for d in FFA: assert render_angiogram(sample_eye(3, d), 64, 5).mean() < 20


def test_leaks_grow_and_windows_do_not():
    wet = sample_eye(1, "neovascular age-related macular degeneration", {"membrane": "large"})
    sizes = [leak(Plate(wet, 128, t), "membrane").sum() for t in PHASES.values()]
    assert sizes == sorted(sizes) and sizes[3] > 1.2 * sizes[1]
    dry = sample_eye(1, "geographic atrophy")
    masks = [render_angiogram(dry, 128, p, masks=True)[1]["atrophy"] for p in PHASES]
    assert all((masks[0] == m).all() for m in masks)
    ratio = lambda p: inside(dry, "atrophy", p) / np.median(render_angiogram(dry, 128, p)[30:98, 30:98])
    assert ratio("arterial") > 1.2 and ratio("venous") > 1.2


@pytest.mark.parametrize("disease, kind", [("pigment epithelial detachment", "pigment epithelial detachment"), ("macular scar", "macular scar"), ("diabetic macular edema", "cyst"),
                                           ("neovascular age-related macular degeneration", "membrane"), ("central serous chorioretinopathy", "serous detachment")])
def test_what_pools_leaks_or_stains_is_brighter_late(disease, kind):
    for i in range(4):
        eye = sample_eye(i, disease); well = sample_eye(i, "normal"); mask = render_angiogram(eye, 128, "late", masks=True)[1][kind]
        extra = lambda p: float(render_angiogram(eye, 128, p)[..., 0][mask].mean()) - float(render_angiogram(well, 128, p)[..., 0][mask].mean())
        assert extra("late") > extra("arterial") + 15 and extra("late") > 30


def test_blood_blocks_aneurysms_shine_closed_areas_are_dark():
    eye = sample_eye(4, "diabetic retinopathy", {"microaneurysms": "many", "non-perfusion": "present", "grade": "moderate"})
    img, masks = render_angiogram(eye, 192, "venous", masks=True); g, rest = img[..., 0], ~np.any(list(masks.values()), axis=0)
    x = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, 192)] * 2)) < .9
    around = g[rest & x].mean()
    vessels = masks["vein"] | masks["artery"]
    open_ma, blots = (masks["microaneurysm"] & ~masks["non-perfusion"] & ~masks["haemorrhage"]), masks["haemorrhage"] & ~masks["microaneurysm"]
    assert g[open_ma].mean() > 1.3 * around and g[blots].mean() < .7 * around
    assert g[masks["non-perfusion"] & ~vessels & ~masks["microaneurysm"]].mean() < .6 * around


def test_blocked_arteries_let_the_retina_wait():
    well = sample_eye(5, "normal")
    for name, phase in (("branch retinal artery occlusion", "venous"), ("central retinal artery occlusion", "venous")):
        eye = sample_eye(5, name)
        region = render_angiogram(eye, 128, phase, masks=True)[1]["ischaemic retina"]
        mean = lambda e, p: render_angiogram(e, 128, p)[..., 0][region].mean()
        assert mean(eye, phase) < .75 * mean(well, phase) and mean(eye, "late") > .6 * mean(well, "late")
    spared = sample_eye(5, "central retinal artery occlusion", {"cilioretinal sparing": "present"})
    assert inside(spared, "spared strip", "venous") > 1.3 * render_angiogram(replace(spared, lesions=tuple(l for l in spared.lesions if l.kind != "spared strip")), 128)[..., 0][
        render_angiogram(spared, 128, masks=True)[1]["spared strip"]].mean()


def test_a_blocked_vein_drains_late():
    arrive = lambda d: float(flow(Plate(sample_eye(2, d), 64, 18.), "vein").mean())
    assert arrive("central retinal vein occlusion") < .6 * arrive("normal")


@pytest.mark.parametrize("kind, disease", [("atrophy", "geographic atrophy"), ("haemorrhage", "diabetic retinopathy"), ("flame haemorrhage", "central retinal vein occlusion"),
    ("laser scar", "laser spot"), ("nevus", "choroidal nevus"), ("macular scar", "macular scar"), ("pigment epithelial detachment", "pigment epithelial detachment"),
    ("ischaemic retina", "branch retinal artery occlusion"), ("vessel sheathing", "retinal vasculitis"), ("bone spicule", "retinitis pigmentosa"),
    ("membrane", "neovascular age-related macular degeneration"), ("serous detachment", "central serous chorioretinopathy"), ("photoreceptor loss", "retinitis pigmentosa"),
    ("new vessels", "diabetic retinopathy"), ("disc swelling", "papilledema")])
def test_both_cameras_agree_on_places(kind, disease):
    facts = {"grade": "proliferative"} if kind == "new vessels" else {"grade": "moderate"} if disease == "diabetic retinopathy" else None
    eye = sample_eye(9, disease, facts)
    a, b = (f(eye, 128, masks=True)[1][kind] for f in (render_fundus, render_angiogram))
    assert (a & b).sum() / (a | b).sum() > .8                              # soft edges and the cameras' windows differ a little


@pytest.mark.parametrize("disease", FFA)
def test_masks_of_this_camera_only(disease):
    eye = sample_eye(5, disease); _, masks = render_angiogram(eye, 192, masks=True)
    seen = {l.kind for l in eye.lesions if "FFA" in LESIONS[l.kind]}
    assert seen <= set(masks) and all(masks[k].any() for k in seen) and {"artery", "vein", "optic disc"} <= set(masks)
    assert not {l.kind for l in eye.lesions if "FFA" not in LESIONS[l.kind]} & set(masks)


def test_every_kind_of_this_camera_has_a_painter():
    from keepfit_nb.angiography import ABOVE, UNDER, WITHIN
    elsewhere = {"non-perfusion", "disc swelling", "spared strip"}
    assert set(UNDER) | set(WITHIN) | set(ABOVE) | elsewhere == {k for k, cameras in LESIONS.items() if "FFA" in cameras}


@pytest.mark.parametrize("disease, fact", TASKS)
def test_each_fact_changes_the_picture(disease, fact):
    values = DISEASES[disease].facts[fact]
    a, b = (render_angiogram(sample_eye(6, disease, {fact: v}), 96, BEST.get(fact, "venous")).astype(int) for v in (values[0], values[-1]))
    assert (abs(a - b).max(-1) > 25).sum() > 15


@pytest.mark.parametrize("disease", [d for d in FFA if d != "normal"])
def test_each_disease_changes_the_picture(disease):
    a, b = (render_angiogram(sample_eye(6, d), 96, "late").astype(int) for d in (disease, "normal"))
    assert (abs(a - b).max(-1) > 15).sum() > 15


def test_the_camera_does_not_know_the_disease():
    "The corner of the retina that no lesion reaches is the same in health and disease."
    for d in ("macular scar", "pigment epithelial detachment", "geographic atrophy", "choroidal nevus"):
        eye = sample_eye(11, d); far = np.ones((96, 96), bool)
        x, y = np.meshgrid(*[((np.arange(96) + .5) * 2 / 96 - 1) / .97] * 2)
        for l in eye.lesions: far &= np.hypot(x - l.x, y - l.y) > 1.8 * l.size + .1
        a, b = (render_angiogram(e, 96, "venous") for e in (eye, sample_eye(11, "normal")))
        assert far.sum() > 3000 and (a[far] == b[far]).all()


@pytest.mark.parametrize("pair", [p for p in TOGETHER if any("FFA" in DISEASES[d].modalities for d in p)][::6], ids="+".join)
def test_company(pair):
    eye = sample_eye(2, pair); img, masks = render_angiogram(eye, 96, "late", masks=True)
    assert img.any() and {l.kind for l in eye.lesions if "FFA" in LESIONS[l.kind]} <= set(masks)


def test_same_bytes_in_another_process():
    code = ("import hashlib, numpy as np; from keepfit_nb.eye import *; from keepfit_nb.angiography import *\n"
            "print(hashlib.sha256(b''.join(render_angiogram(sample_eye(i, d), 64, p).tobytes() for i, d in enumerate(DISEASES) for p in PHASES)).hexdigest())")
    out = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": h, "PATH": ""}).stdout for h in "12"}
    assert len(out) == 1 and len(out.pop()) == 65


def test_deterministic_and_leaves_the_global_state_alone():
    eye = sample_eye(7, "central serous chorioretinopathy"); a = render_angiogram(eye, 80, "late"); np.random.seed(1); before = np.random.get_state()[1].copy()
    assert (a == render_angiogram(eye, 80, "late")).all() and (np.random.get_state()[1] == before).all()


def test_every_lesion_alone_has_its_mask():
    for kind, where in LESIONS.items():
        eye = replace(sample_eye(1, "normal"), lesions=(Lesion(kind, .1, .1, .3, .8, 0.),))
        for render, modality in ((render_angiogram, "FFA"), (render_fundus, "CFP")):
            assert (kind in render(eye, 48, masks=True)[1]) == (modality in where.split()), (kind, modality)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(LESIONS)), st.floats(-1, 1), st.floats(-1, 1), st.floats(.004, 1), st.floats(0, 1), st.floats(-7, 7), st.floats(0, 959))
def test_any_lesion_anywhere(kind, x, y, size, strength, angle, t):
    eye = replace(sample_eye(1, "normal"), lesions=(Lesion(kind, x, y, size, strength, angle),))
    img, masks = render_angiogram(eye, 48, t, masks=True)
    assert img.dtype == np.uint8 and img.shape == (48, 48, 3) and (kind in masks) == ("FFA" in LESIONS[kind])


@pytest.mark.parametrize("phase, says", [("venus", "did you mean 'venous'"), ("", "unknown phase"), (None, "unknown phase"), (-1, "seconds after"), (1e9, "seconds after"),
                                         (math.nan, "seconds after"), (True, "unknown phase"), (["late"], "unknown phase")])
def test_wrong_phase(phase, says):
    with pytest.raises(ValueError, match=says): render_angiogram(sample_eye(0), 64, phase)


@pytest.mark.parametrize("size", [0, 10_000, 64.5, "big"])
def test_wrong_size(size):
    with pytest.raises(ValueError, match="whole number of pixels"): render_angiogram(sample_eye(0), size)


@pytest.mark.slow
def test_diseases_are_learnable_from_shapes_only():
    out = learnability(render_angiogram, "FFA", 1700, 340, 64, 400)
    assert out["aca_cnn"] > .75 and out["aca_cnn"] > out["aca_histogram"] + .25
