"Recipes: kinds, bounds, sizes in micrometres, natural places."
import math

import numpy as np, pytest

from keepfit_nb.anatomy import MICRONS, anatomy
from keepfit_nb.catalogue import DISEASES, draw_facts
from keepfit_nb.disease import LESION_MAKERS, LESIONS, body, compose, scatter
from keepfit_nb.eye import sample_eye


def lesions(name, kind, n=25, **facts):
    "(eye as a right one, lesion) for every lesion of a kind in n eyes"
    out = []
    for i in range(n):
        base, rng = anatomy(i), np.random.default_rng(i)
        facts_i = draw_facts(rng, name, {k.replace("_", " "): v for k, v in facts.items()})
        out += [(base, l) for l in LESION_MAKERS[name](rng, base, facts_i) if l.kind == kind]
    return out


@pytest.mark.parametrize("name", DISEASES)
def test_lesions_are_known_small_and_inside(name):
    for i in range(15):
        eye = sample_eye(i, name)
        for l in eye.lesions:
            assert l.kind in LESIONS and 0 < l.size <= 1 and 0 <= l.strength <= 1
            assert math.hypot(l.x, l.y) < 1 and all(isinstance(v, float) for v in (l.x, l.y, l.size, l.strength, l.angle))


@pytest.mark.parametrize("name", [n for n in DISEASES if n != "normal"])
def test_each_camera_sees_something_of_its_diseases(name):
    eye, well = sample_eye(4, name), sample_eye(4, "normal")
    changed = any(getattr(eye, k) != getattr(well, k) for k in ("cup_ratio", "haze", "disc_pallor", "tessellation", "artery_calibre", "vein_calibre"))
    for m in DISEASES[name].modalities: assert any(m in LESIONS[l.kind] for l in eye.lesions) or (m == "CFP" and changed)


@pytest.mark.parametrize("kind, low, high, wish", [
    ("hard drusen", 0, 63, ("age-related macular degeneration", {"drusen": "small"})), ("soft drusen", 63, 125, ("age-related macular degeneration", {"drusen": "intermediate"})),
    ("soft drusen", 125, 400, ("age-related macular degeneration", {"drusen": "large"})), ("macular hole", 200, 400, ("macular hole", {"hole": "small"})),
    ("macular hole", 400, 900, ("macular hole", {"hole": "large"})), ("vitreous traction", 300, 1500, ("vitreomacular traction", {"attachment": "focal"})),
    ("vitreous traction", 1500, 3000, ("vitreomacular traction", {"attachment": "broad"})), ("microaneurysm", 60, 126, ("diabetic retinopathy", {}))])
def test_sizes_in_micrometres(kind, low, high, wish):
    found = [2 * l.size * MICRONS for _, l in lesions(wish[0], kind, **{k.replace(" ", "_"): v for k, v in wish[1].items()})]
    assert found and low < min(found) and max(found) < high


def test_places():
    far = lambda b, l: math.dist((l.x, l.y), b["fovea"])
    assert min(far(b, l) for b, l in lesions("diabetic retinopathy", "microaneurysm")) > .08
    assert min(far(b, l) for b, l in lesions("laser spot", "laser scar")) > .45
    assert min(far(b, l) for b, l in lesions("retinitis pigmentosa", "bone spicule")) > .5
    assert np.mean([l.y for _, l in lesions("vitreous hemorrhage", "vitreous blood", blood="partial")]) > .3
    for b, l in lesions("hypertensive retinopathy", "star exudate", macular_star="present"):
        assert abs(math.sin(l.angle - math.atan2(l.y - b["fovea"][1], l.x - b["fovea"][0]))) < 1e-6 and far(b, l) < .32
    for b, l in lesions("branch retinal vein occlusion", "flame haemorrhage", quadrant="superior"): assert l.y < b["fovea"][1] and l.x < b["disc"][0]
    for b, l in lesions("choroidal nevus", "nevus"): assert far(b, l) > l.size and math.dist((l.x, l.y), b["disc"]) > l.size + b["disc_radius"]
    for b, l in lesions("myelinated nerve fibers", "myelinated fibres"): assert math.dist((l.x, l.y), b["disc"]) - l.size < b["disc_radius"] < math.dist((l.x, l.y), b["disc"])


def test_detachments_reach_the_fovea_only_when_the_macula_is_off():
    inside = lambda b, l: math.dist((l.x, l.y), b["fovea"]) < l.size
    assert all(inside(b, l) for b, l in lesions("retinal detachment", "detached retina", macula="detached"))
    for b, l in lesions("retinal detachment", "detached retina", macula="attached"):
        assert not inside(b, l) and abs(l.y - b["fovea"][1]) < l.size                # but it crosses the line of the scan
        assert l.x + math.sqrt(l.size**2 - (l.y - b["fovea"][1])**2) > b["fovea"][0] - .5


def test_an_exudate_ring_is_hollow():
    for i in range(12):
        eye = sample_eye(i, "diabetic macular edema", {"exudate ring": "present"})
        at = np.array([(l.x, l.y) for l in eye.of("hard exudate")]); centre = at.mean(0)
        d = np.hypot(*(at - centre).T)
        assert d.min() > .6 * d.mean() and len(at) > 20


@pytest.mark.parametrize("name", ["age-related macular degeneration", "diabetic macular edema", "geographic atrophy", "macular hole", "pigment epithelial detachment",
                                  "central serous chorioretinopathy", "epiretinal membrane", "neovascular age-related macular degeneration", "macular scar",
                                  "vitreomacular traction", "retinoschisis", "retinitis pigmentosa", "central retinal artery occlusion", "retinal detachment"])
def test_the_horizontal_scan_cuts_lesions(name):
    for i in range(15):
        eye = sample_eye(i, name)
        assert any("OCT" in LESIONS[l.kind] and abs(l.y - eye.fovea[1]) < l.size and abs(l.x - eye.fovea[0]) < l.size + .7 for l in eye.lesions)


def test_scatter_respects_its_region():
    base = anatomy(0)
    pts = np.array(scatter(np.random.default_rng(0), 30, base, (.1, .1), .4, .1, .05))
    d = np.hypot(*(pts - .1).T)
    assert (d > .1).all() and (d < .4).all() and len(scatter(np.random.default_rng(0), 5000, base, gap=.2)) < 200
    many = np.array(scatter(np.random.default_rng(1), 300, base, gap=.05))
    apart = np.hypot(*(many[:, None] - many[None]).transpose(2, 0, 1)) + np.eye(len(many))
    assert apart.min() > .05 and scatter(np.random.default_rng(1), 0, base) == []


def test_body_and_company():
    rng = np.random.default_rng(0)
    assert body(rng, "glaucoma", {"cup": "large"})["cup_ratio"] > .8 > .7 > body(rng, "glaucoma", {"cup": "moderate"})["cup_ratio"]
    assert body(rng, "normal", {}) == {} and body(rng, "optic atrophy", {"pallor": "temporal"})["pallor_side"] == "temporal"
    assert compose([]) == {} and compose([dict(vein_calibre=1.2), dict(vein_calibre=1.3, tortuosity=.4), dict(tortuosity=.2)]) == dict(vein_calibre=1.2 * 1.3, tortuosity=.4)
