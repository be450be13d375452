"""The tomogram of the phantom eye: what does not fit in chapter 03c_oct."""
import dataclasses, hashlib, subprocess, sys
import cv2, numpy as np, pytest
from hypothesis import given, settings, strategies as st
from keepfit_nb.eye import DISEASES, FINE_TASKS, LESIONS, Lesion, TOGETHER, sample_eye
from keepfit_nb.fundus import FIELD, lesion_cover
from keepfit_nb.oct import (CHANGES, INNER, LAYERS, MM, OCT_DISEASES, OUTER, cut, druse_height, met, nuisances, peak, render_oct, scan_line,
                            visible)

cv2.setNumThreads(1)
VALUES = [(d, f, v) for m, d, f in FINE_TASKS if m == "OCT" for v in DISEASES[d].facts[f]]
FACTS = sorted({(d, f) for d, f, _ in VALUES})

def framed(disease, facts=None, n=1, first=0, **more):
    "Eyes whose file is nothing but the scan (and whose nuisances fulfil `more`)."
    out = []
    for s in range(first, first + 3000):
        nu = nuisances(sample_eye(s, "normal"))
        if nu.frame == "full" and all(test(nu) for test in more.values()): out.append(sample_eye(s, disease, facts))
        if len(out) == n: return out[0] if n == 1 else out

def columns(eye, kind, n=256): return render_oct(eye, n, masks=True)[1][kind].any(0)

def test_classes_are_those_of_the_eye():
    assert set(OCT_DISEASES) == {n for n, d in DISEASES.items() if "OCT" in d.modalities} and len(OCT_DISEASES) >= 15
    assert {k for k, cameras in LESIONS.items() if "OCT" in cameras.split()} <= set(CHANGES)

@pytest.mark.parametrize("disease", OCT_DISEASES)
@pytest.mark.parametrize("size", [64, 200])
def test_shape_and_determinism(disease, size):
    eye = sample_eye(11, disease)
    image, masks = render_oct(eye, size, masks=True)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert (image[..., 0] == image[..., 1]).all() and image.std() > 5
    np.random.seed(0); np.random.rand(5)                       # a global stream must not matter
    assert (image == render_oct(eye, size)).all()
    assert all(m.shape == (size, size) and m.dtype == bool for m in masks.values()) and masks["retina"].any()

def test_same_bytes_in_another_process():
    code = ("import hashlib; from keepfit_nb.eye import sample_eye; from keepfit_nb.oct import OCT_DISEASES, render_oct; "
            "print(hashlib.sha256(b''.join(render_oct(sample_eye(i, d), 96).tobytes() for i, d in enumerate(OCT_DISEASES))).hexdigest())")
    here = hashlib.sha256(b"".join(render_oct(sample_eye(i, d), 96).tobytes() for i, d in enumerate(OCT_DISEASES))).hexdigest()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == here

@pytest.mark.parametrize("disease", OCT_DISEASES)
def test_same_scene_at_every_size(disease):
    eye = sample_eye(5, disease)
    small = render_oct(eye, 128).astype(float)[..., 0]
    large = cv2.resize(render_oct(eye, 512)[..., 0], (128, 128), interpolation=cv2.INTER_AREA).astype(float)
    blur = lambda a: cv2.GaussianBlur(a, (0, 0), 2)
    assert np.corrcoef(blur(small).ravel(), blur(large).ravel())[0, 1] > .96

def test_nuisances_do_not_know_the_disease():
    for seed in range(20):
        assert len({str({k: v for k, v in vars(nuisances(sample_eye(seed, d))).items() if np.ndim(v) == 0}) for d in OCT_DISEASES}) == 1

def test_disease_changes_the_lesion_and_not_the_rest():
    "Far from the lesion, on the same eye, sick and well are the same tissue."
    hole, well = (cut(framed(d, curve=lambda nu: nu.level > .6), 256) for d in ("macular hole", "normal"))
    assert np.allclose(hole.bruch, well.bruch)
    far = np.abs(hole.x) > 2
    for k in ("inner nuclear layer", "outer nuclear layer"): assert np.allclose(hole.thickness[k][far], well.thickness[k][far], rtol=.08, atol=1)

@pytest.mark.parametrize("disease,fact,value", VALUES)
def test_every_fact_renders_with_its_lesions(disease, fact, value):
    "Each lesion that the scan meets within the file leaves a mask, for every value of every fact."
    eye = framed(disease, {fact: value}); scan = cut(eye, 256); image, masks = render_oct(eye, 256, masks=True)
    assert image.std() > 5
    for kind in {l.kind for l in eye.lesions if l.kind in CHANGES}:
        if any(scan.x[0] + .05 < x < scan.x[-1] - .05 and w > 1.5 * scan.mm and x * (1 if eye.side == "OD" else -1) < 1.2 for x, w, _ in met(scan, kind)):
            assert masks[kind].sum() >= 3, kind

@pytest.mark.parametrize("disease,fact", FACTS)
def test_fact_values_differ_in_the_picture(disease, fact):
    pictures = [render_oct(framed(disease, {fact: v}), 96).astype(float) for v in DISEASES[disease].facts[fact]]
    assert all(np.abs(a - b).mean() > .8 for i, a in enumerate(pictures) for b in pictures[:i])

@pytest.mark.parametrize("value,low,high", [("small", 24, 38), ("intermediate", 36, 58), ("large", 56, 105)])
def test_heights_of_drusen(value, low, high):
    "Height in the mask, in micrometres, of each druse that is cut near its middle and stands alone."
    heights = []
    for eye in framed("age-related macular degeneration", {"drusen": value}, n=4):
        scan = cut(eye, 1024); kind = next(l.kind for l in eye.lesions); T = scan.thickness["sub-epithelial space"]
        heights += [T[scan.column(x)] / peak(w, l) for x, w, l in met(scan, kind) if peak(w, l) > .8 and abs(scan.x[scan.column(x)] - x) < w and scan.x[0] < x < scan.x[-1]]
        assert (np.diff([druse_height(l) for l in sorted(eye.of(kind), key=lambda l: l.size)]) >= 0).all()
    assert len(heights) > 8 and low < np.median(heights) < high

@pytest.mark.parametrize("value", ["small", "large"])
def test_dome_is_as_tall_as_its_latent(value):
    for eye in framed("pigment epithelial detachment", {"dome": value}, n=3):
        scan = cut(eye, 512); (x, w, l), = met(scan, "pigment epithelial detachment")
        mask = render_oct(eye, 512, masks=True)[1]["pigment epithelial detachment"]
        assert abs(mask.sum(0).max() * scan.um - 400 * MM * l.size * peak(w, l)) < 3 * scan.um
        assert abs(mask.any(0).sum() * scan.mm - 2 * w) < .08 + 3 * scan.mm

@pytest.mark.parametrize("stage", ["2", "3", "4"])
def test_hole_is_as_wide_as_its_stage_says(stage):
    for eye in framed("macular hole", {"stage": stage}, n=3):
        scan = cut(eye, 512); rows = render_oct(eye, 512, masks=True)[1]["macular hole"].sum(1); rows = rows[rows > 0]
        waist = rows[len(rows) // 3:-len(rows) // 4].min() * scan.mm * 1000
        assert (waist < 400) == (stage == "2") and abs(waist - 2000 * MM * eye.of("macular hole")[0].size) < 2500 * scan.mm
        lid, at_hole = "operculum" in render_oct(eye, 128, masks=True)[1], scan.hyaloid[scan.column(0)]
        assert lid == (stage != "3") and (at_hole > 90) == (stage != "2")
        ends = np.abs(scan.x) > 2
        if stage == "3": assert scan.hyaloid[ends].max() < 1            # attached again further out
        if stage == "4": assert scan.hyaloid.min() > 120                # off everywhere

def test_elevation_and_where_the_macula_is_off():
    for value, low, high in (("shallow", 60, 140), ("tall", 210, 300)):
        scan = cut(framed("central serous chorioretinopathy", {"elevation": value}), 256)
        assert low < scan.thickness["subretinal space"].max() < high
    for value in ("attached", "detached"):
        for eye in framed("retinal detachment", {"macula": value}, n=4):
            scan = cut(eye, 256); under = scan.thickness["subretinal space"]
            assert (under[scan.column(0)] > 60) == (value == "detached") and under.max() > 60

def test_islands_feet_and_splits_have_their_latent_width():
    "Preserved centre, attachment of the vitreous, extent of a split: widths along the scan in millimetres."
    for disease, kind, inside in (("retinitis pigmentosa", "photoreceptor loss", False), ("vitreomacular traction", "vitreous traction", True), ("retinoschisis", "schisis", True)):
        for fact in (f for f in DISEASES[disease].facts if "OCT" in DISEASES[disease].seen[f]):
            for value in DISEASES[disease].facts[fact]:
                eye = framed(disease, {fact: value}); scan = cut(eye, 256); (x, w, _), = met(scan, kind)
                found, want = columns(eye, kind), np.abs(scan.x - x) < w
                clear = np.asarray(scan.opening) + 0 * scan.x < .2
                assert ((found == (want if inside else ~want)) | ~clear).mean() > .94

def test_inner_layers_of_an_artery_occlusion():
    sick, well = (cut(framed(d), 256) for d in ("central retinal artery occlusion", "normal"))
    thick = lambda s: sum(s.thickness[k] for k in INNER)[s.column(-1 if s.eye.side == "OD" else 1)]
    assert thick(sick) > 1.3 * thick(well) and sick.shadow

def test_atrophy_lets_light_through():
    eye = framed("geographic atrophy", {"atrophy": "large"}); a, b = (render_oct(e, 256).astype(float)[..., 0] for e in (eye, framed("normal")))
    scan = cut(eye, 256); below = (scan.depth > scan.bruch + 60) & (scan.depth < scan.bruch + 160); patch = np.abs(scan.x - met(scan, "atrophy")[0][0]) < .5
    assert a[below & patch].mean() > 1.25 * b[below & patch].mean()
    assert sum(scan.thickness[k] for k in OUTER)[scan.column(met(scan, "atrophy")[0][0])] < 8

@pytest.mark.parametrize("disease,kind,fact,less,more,ratio", [
    ("macular hole", "macular hole", "hole", "small", "large", 1.5), ("diabetic macular edema", "cyst", "cysts", "few", "many", 2),
    ("age-related macular degeneration", None, "drusen", "small", "large", 2), ("geographic atrophy", "atrophy", "atrophy", "small", "large", 1.6),
    ("central serous chorioretinopathy", "serous detachment", "elevation", "shallow", "tall", 1.8), ("macular scar", "macular scar", "scar", "small", "large", 2),
    ("retinoschisis", "schisis", "extent of schisis", "foveal", "wide", 1.7)])
def test_masks_follow_the_facts(disease, kind, fact, less, more, ratio):
    def share(value):
        masks = [render_oct(e, 128, masks=True)[1] for e in framed(disease, {fact: value}, n=6)]
        return np.mean([sum(m[k].mean() for k in m if k == kind or kind is None and k.endswith("drusen")) for m in masks])
    assert share(more) > ratio * share(less) > 0

def test_neovascular_fluid_is_of_its_kind():
    for value, kind in (("subretinal", "subretinal fluid"), ("intraretinal", "cyst")):
        masks = render_oct(framed("neovascular age-related macular degeneration", {"fluid": value}), 128, masks=True)[1]
        assert masks["membrane"].any() and [k for k in ("subretinal fluid", "cyst") if k in masks and masks[k].any()] == [kind]

@pytest.mark.parametrize("kind,disease,facts", [("atrophy", "geographic atrophy", None), ("pigment epithelial detachment", "pigment epithelial detachment", None),
    ("macular scar", "macular scar", None), ("membrane", "neovascular age-related macular degeneration", None),
    ("soft drusen", "age-related macular degeneration", {"drusen": "large"}), ("macular hole", "macular hole", {"hole": "large"}),
    ("detached retina", "retinal detachment", None)])
def test_photograph_and_tomogram_agree(kind, disease, facts):
    "Same lesion, same place, same width: columns of the scan's mask against the photograph's mask under the scan line."
    n, both, either = 256, 0, 0
    for eye in framed(disease, facts, n=8):
        found = columns(eye, kind, n) if kind != "macular hole" else render_oct(eye, n, masks=True)[1][kind][-int(.9 * n):].any(0)
        px = np.clip(np.rint((scan_line(eye, n) * FIELD + 1) * n / 2 - .5).astype(int), 0, n - 1)
        above = lesion_cover(eye, kind, n)[px[:, 1], px[:, 0]] > .3
        both += (found & above).sum(); either += (found | above).sum()
    assert both / either > (.45 if kind == "macular hole" else .6)        # a hole is wider at its rim than at its waist

def test_layers_do_not_overlap_and_fill_the_retina():
    for disease in OCT_DISEASES:
        masks = render_oct(framed(disease), 128, masks=True)[1]; layers = np.sum([masks[k] for k in LAYERS if k in masks], 0)
        assert layers.max() == 1
        rest = masks["retina"] & ~masks.get("cyst", np.zeros_like(masks["retina"]))
        assert (layers[rest] == 1).mean() > .97

def test_masks_stay_within_the_file():
    for s in range(80):
        eye = sample_eye(s, OCT_DISEASES[s % 15])
        if nuisances(eye).frame == "full": continue
        seen = visible(cut(eye, 128))[0] > .5
        assert all((m <= seen).all() for m in render_oct(eye, 128, masks=True)[1].values())

PAIRS = [p for p in TOGETHER if all("OCT" in DISEASES[d].modalities for d in p)]

@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_two_diseases_compose(pair):
    eye = framed(pair); image, masks = render_oct(eye, 128, masks=True)
    assert image.std() > 5 and (image == render_oct(eye, 128)).all()
    for disease in pair:
        alone = sample_eye(eye.seed, disease, {f: eye.facts[f] for f in DISEASES[disease].facts})
        kinds = {l.kind for l in alone.lesions} & set(CHANGES)
        assert not kinds or any(masks[k].any() for k in kinds if k in masks), disease

def test_pairs_with_an_unseen_disease_are_drawn():
    for pair in (p for p in TOGETHER if sum("OCT" in DISEASES[d].modalities for d in p) == 1):
        assert render_oct(sample_eye(3, pair), 64).std() > 5

def test_disease_without_a_tomogram():
    with pytest.raises(ValueError, match="no OCT appearance"): render_oct(sample_eye(0, "glaucoma"))
    for d in DISEASES:
        if "OCT" not in DISEASES[d].modalities: assert render_oct(sample_eye(0, d), 64, allow_unseen=True).std() > 5

@pytest.mark.parametrize("size", [0, 16, 31, 1025, 5000, -64, 64.5, "64", None])
def test_impossible_size(size):
    with pytest.raises(ValueError, match="outside"): render_oct(sample_eye(0, "normal"), size)

@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.floats(-1.2, 1.2), st.floats(-.5, .5), st.floats(0, 3), st.floats(0, 1)), max_size=6), st.integers(0, 2**40))
def test_any_lesions_give_a_picture(lesions, seed):
    "Lesions of any size and place, also ones no disease would bring."
    eye = sample_eye(seed, "normal"); eye = dataclasses.replace(eye, lesions=tuple(Lesion(k, eye.fovea[0] + x, eye.fovea[1] + y, s, t) for k, x, y, s, t in lesions))
    image, masks = render_oct(eye, 64, masks=True)
    scan = cut(eye, 64)
    assert image.shape == (64, 64, 3) and np.isfinite(scan.tops).all() and all(m.dtype == bool for m in masks.values())

def test_brightness_tells_little():
    "Mean grey of the classes overlaps: nobody can tell a disease by how bright its pictures are."
    means = np.array([[render_oct(sample_eye(s, d), 64).mean() for s in range(10)] for d in OCT_DISEASES])
    assert means.mean(1).std() < .6 * means.std(1).mean()
