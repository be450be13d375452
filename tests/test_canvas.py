"Shapes: coverage, outlines, brushes, the same scene at every size; colours: film, paint, layers."
from dataclasses import replace

import cv2, numpy as np, pytest
from hypothesis import given, settings, strategies as st

from keepfit_nb.canvas import Canvas, cloud, edge, lesion_cover, outlines, placed, soften
from keepfit_nb.colours import DEEP, MEDIA, SURFACE, Scene, blend, box, cataract, paint, stain
from keepfit_nb.eye import LESIONS, Lesion, sample_eye

EYE = sample_eye(0, "normal")
one = lambda kind, size=.3, **k: replace(EYE, lesions=(Lesion(kind, k.get("x", 0.), k.get("y", 0.), size, k.get("strength", 1.), k.get("angle", .4)),))


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


@pytest.mark.parametrize("kind", sorted(LESIONS))
def test_outline_of_every_kind(kind):
    small, large = (lesion_cover(one(kind), kind, n) for n in (64, 256))
    assert small.dtype == np.float32 and 0 <= small.min() and small.max() <= 1 and small.max() > .9
    assert np.abs(cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA) - small).mean() < .02          # the same scene
    assert (lesion_cover(one(kind), kind, 64) == small).all()
    if kind == "photoreceptor loss": assert small[32, 32] == 0 and small[4, 4] == 1 and lesion_cover(one(kind), kind, 64, grow=1.5).sum() < small.sum()
    else:
        assert small[:8].sum() == 0 and lesion_cover(one(kind), kind, 64, grow=1.5).sum() > 1.25 * small.sum()
        pull = lesion_cover(one(kind, x=.4, y=-.3), kind, 64); rows, columns = np.indices(pull.shape)
        shift = [(pull * a).sum() / pull.sum() - (small * a).sum() / small.sum() for a in (columns, rows)]
        assert abs(shift[0] - .4 * .97 * 32) < 1 and abs(shift[1] + .3 * .97 * 32) < 1
        assert lesion_cover(one(kind, strength=.5), kind, 64, weighted=True).max() < .53


def test_neighbours_do_not_change_the_first_lesion():
    pair = replace(EYE, lesions=(Lesion("macular hole", 0., 0., .1, 1.), Lesion("cyst", .5, .5, .1, 1.)))
    assert (lesion_cover(pair, "macular hole", 64) == lesion_cover(one("macular hole", .1), "macular hole", 64)).all()


def test_overlapping_blobs_stay_filled():
    two = replace(EYE, lesions=tuple(Lesion("atrophy", x, 0., .3, 1.) for x in (-.05, .05)))
    assert lesion_cover(two, "atrophy", 64)[32, 32] == 1


@given(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(0, 2), st.floats(0, 1), st.floats(-10, 10), st.sampled_from(sorted(LESIONS)))
@settings(max_examples=60, deadline=None)
def test_no_lesion_breaks_the_sheet(x, y, size, strength, angle, kind):
    c = lesion_cover(replace(EYE, lesions=(Lesion(kind, x, y, size, strength, angle),)), kind, 48, soft=.01, weighted=True)
    assert c.shape == (48, 48) and np.isfinite(c).all() and -1e-6 <= c.min() and c.max() <= 1 + 1e-6


def test_placed_turns_and_moves():
    l = Lesion("", .1, .2, .5, 1., np.pi / 2)
    assert np.allclose(placed([l], np.array([[1., 0.]]), np.array([[0., 1.]])), [[[.1, .7], [-.4, .2]]])
    assert outlines(np.random.default_rng(0), [l, l], 0.).shape == (2, 40, 2)


def test_soften_keeps_the_sum_and_agrees_across_methods():
    spot = np.zeros((256, 256), np.float32); spot[100:150, 90:160] = 1
    for sigma in (.001, .02, .1): assert abs(soften(spot, sigma).sum() / spot.sum() - 1) < .02
    s = .1 * .97 * 128
    assert np.abs(soften(spot, .1) - cv2.GaussianBlur(spot, (0, 0), s)).max() < .04          # the shrunken blur of broad ones
    assert soften(np.stack([spot, spot]), .02).shape == (2, 256, 256)
    assert edge(np.array([0., 1.]), .5, 128).tolist() == [1, 0]


def test_film_and_paint():
    img, c = np.full((3, 32, 32), .5, np.float32), np.zeros((32, 32), np.float32); c[5:9, 6:20] = .5
    assert box(np.zeros((4, 4))) is None and box(c) == (slice(5, 9), slice(6, 20))
    stain(img, c, (0., 1., .5)); assert np.allclose(img[:, 6, 7], [.25, .5, .375]) and (img[:, 0, 0] == .5).all()
    blend(img, c, (1., 1., 1.)); assert np.allclose(img[:, 6, 7], [.625, .75, .6875])


@pytest.mark.parametrize("kind", sorted({**DEEP, **SURFACE, **MEDIA}.keys() - {"spared strip"}))      # a strip is spared from what lies around it
def test_every_painter_shows_its_lesion_and_only_there(kind):
    s = Scene(one(kind), 96); s.img += np.float32([.8, .42, .22])[:, None, None]; before = s.img.copy()
    for layer in (DEEP, SURFACE, MEDIA): paint(s, layer)
    change = np.abs(s.img - before).max(0); m = s.masks[kind]
    assert change[m].mean() > .05 and (kind == "photoreceptor loss" or change[:6].max() < .02) and np.isfinite(s.img).all()


def test_cataract_keeps_the_mean_and_takes_the_contrast():
    s = Scene(EYE, 96); s.img += np.random.default_rng(0).random((3, 96, 96), dtype=np.float32); red, sd = s.img[0].mean(), s.img[0].std()
    cataract(s, 0.); assert s.img[0].std() == sd
    cataract(s, .9); assert abs(s.img[0].mean() / red - 1) < .02 and s.img[0].std() < .2 * sd and s.img[2].mean() < s.img[1].mean() < s.img[0].mean()
