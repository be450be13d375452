"The angiograph: phases, signs, masks shared with the photograph, sizes."
import cv2, numpy as np, pytest

from keepfit_nb.angiography import DYE, PHASES, leak, render_angiogram
from keepfit_nb.eye import DISEASES, FINE_TASKS, LESIONS, sample_eye
from keepfit_nb.fundus import learnability, render_fundus

FFA = [d.name for d in DISEASES.values() if "FFA" in d.modalities]


def inside(eye, kind, phase, size=128):
    img, masks = render_angiogram(eye, size, phase, masks=True)
    return img[..., 0][masks[kind]].mean()


@pytest.mark.parametrize("disease", FFA)
@pytest.mark.parametrize("phase", PHASES)
def test_image(disease, phase):
    img, masks = render_angiogram(sample_eye(3, disease), 96, phase, masks=True)
    assert img.shape == (96, 96, 3) and img.dtype == np.uint8 and (img[..., 0] == img[..., 2]).all() and img[:2, :2].max() == 0
    for m in masks.values(): assert m.shape == (96, 96) and m.dtype == bool


@pytest.mark.parametrize("disease", FFA)
def test_same_scene_at_every_size(disease):
    eye = sample_eye(8, disease); large = render_angiogram(eye, 512)
    for size in (64, 128, 256):
        shrunk = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(render_angiogram(eye, size).ravel(), shrunk.ravel())[0, 1] > .97


def test_arteries_fill_before_veins():
    eye = sample_eye(2, "normal")
    assert inside(eye, "artery", "arterial") > 1.5 * inside(eye, "vein", "arterial")
    assert inside(eye, "vein", "venous") > 1.3 * inside(eye, "vein", "late")
    assert set(DYE) == set(PHASES) and all(len(v) == 6 for v in DYE.values())


def test_leaks_grow_and_windows_do_not():
    wet = sample_eye(1, "neovascular age-related macular degeneration", {"membrane": "large"})
    sizes = [leak(wet, "membrane", 128, p).sum() for p in PHASES]
    assert sizes[0] < sizes[1] < sizes[2]
    dry = sample_eye(1, "geographic atrophy")
    masks = [render_angiogram(dry, 128, p, masks=True)[1]["atrophy"] for p in PHASES]
    assert (masks[0] == masks[2]).all()


def test_blood_blocks_aneurysms_shine_closed_areas_are_dark():
    eye = sample_eye(4, "diabetic retinopathy", {"microaneurysms": "many", "non-perfusion": "present"})
    img, masks = render_angiogram(eye, 192, "venous", masks=True); g, rest = img[..., 0], ~np.any(list(masks.values()), axis=0)
    x = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, 192)] * 2)) < .9
    around = g[rest & x].mean()
    assert g[masks["microaneurysm"]].mean() > 1.3 * around and g[masks["haemorrhage"]].mean() < .7 * around
    assert g[masks["non-perfusion"] & ~masks["vein"] & ~masks["artery"] & ~masks["microaneurysm"]].mean() < .6 * around


@pytest.mark.parametrize("kind, disease", [("atrophy", "geographic atrophy"), ("haemorrhage", "diabetic retinopathy"), ("flame haemorrhage", "central retinal vein occlusion")])
def test_both_cameras_agree_on_outlines(kind, disease):
    eye = sample_eye(9, disease)
    assert (render_fundus(eye, 128, masks=True)[1][kind] == render_angiogram(eye, 128, masks=True)[1][kind]).mean() > .995


@pytest.mark.parametrize("disease", FFA)
def test_masks_of_this_camera_only(disease):
    eye = sample_eye(5, disease); _, masks = render_angiogram(eye, 192, masks=True)
    seen = {l.kind for l in eye.lesions if "FFA" in LESIONS[l.kind]} - {"disc swelling"}
    assert seen <= set(masks) and all(masks[k].any() for k in seen)
    assert not {l.kind for l in eye.lesions if "FFA" not in LESIONS[l.kind]} & set(masks)


@pytest.mark.parametrize("disease, fact", [(d, f) for m, d, f in FINE_TASKS if m == "FFA"])
def test_each_fact_changes_the_picture(disease, fact):
    a, b = (render_angiogram(sample_eye(6, disease, {fact: v}), 96).astype(int) for v in DISEASES[disease].facts[fact])
    assert (abs(a - b).max(-1) > 25).sum() > 15


def test_deterministic():
    eye = sample_eye(7, "central serous chorioretinopathy"); a = render_angiogram(eye, 80, "late"); np.random.seed(1)
    assert (a == render_angiogram(eye, 80, "late")).all()


@pytest.mark.parametrize("phase, says", [("venus", "did you mean 'venous'"), ("", "unknown phase"), (None, "unknown phase")])
def test_wrong_phase(phase, says):
    with pytest.raises(ValueError, match=says): render_angiogram(sample_eye(0), 64, phase)


@pytest.mark.parametrize("size", [0, 10_000, 64.5, "big"])
def test_wrong_size(size):
    with pytest.raises(ValueError, match="whole number of pixels"): render_angiogram(sample_eye(0), size)


@pytest.mark.slow
def test_diseases_are_learnable_from_shapes_only():
    out = learnability(render_angiogram, "FFA", 1050, 210, 64, 300)
    assert out["aca_cnn"] > .85 and out["aca_cnn"] > out["aca_histogram"] + .3
