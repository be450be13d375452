"""The healthy slice: what does not fit in chapter 03c.1_layers."""
import numpy as np
from keepfit_nb.eye import sample_eye
from keepfit_nb.layers import (BLOOD, FRAMES, MM, crossings, healthy, nuisances, paint_layers, photograph, scan_line, settle, speckle,
                               stamp, visible, wave)

NORMAL = [sample_eye(s, "normal") for s in range(60)]

def test_same_curve_at_every_resolution():
    for every in (.08, .5, 2.5):
        coarse, fine = (wave(np.random.default_rng(3), np.linspace(-9, 9, n), every) for n in (37, 721))
        assert np.allclose(coarse, fine[::20]) and np.isfinite(fine).all() and fine.std() < 1.6

def test_scan_line_and_columns_are_the_same_places():
    for eye in NORMAL[:20]:
        scan, line = healthy(eye, 200), scan_line(eye, 200)
        assert np.allclose((line[:, 0] - eye.fovea[0]) * MM, scan.x) and (line[:, 1] == eye.fovea[1]).all()
        assert abs(scan.x[scan.column(0.)]) <= scan.mm

def test_scan_protocols_are_plausible():
    widths = np.array([nuisances(e).width for e in NORMAL])
    assert (widths > 4).all() and (widths <= 9).all() and np.ptp(widths) > 2
    assert {nuisances(sample_eye(s, "normal")).frame for s in range(200)} == set(FRAMES)

def test_thickness_of_the_macula():
    "Fovea 170–270 µm, its rim 270–430 µm: the range of healthy adults."
    scans = [settle(healthy(e, 128)) for e in NORMAL]
    at = lambda s, x: (s.bruch - s.tops[0])[s.column(x)]
    fovea, rim = (np.array([at(s, x * (-1 if s.eye.side == "OD" else 1)) for s in scans]) for x in (0, 1.1))
    assert ((170 < fovea) & (fovea < 270)).all() and ((260 < rim) & (rim < 440)).all() and (rim > fovea + 40).all()

def test_layers_are_in_order():
    for eye in NORMAL[:30]:
        s = settle(healthy(eye, 128)); off_disc = np.asarray(s.opening) + 0 * s.x < .01
        assert (np.diff(np.vstack([s.tops, s.bruch]), axis=0)[:, off_disc] >= -1e-9).all()

def test_nerve_fibres_tell_the_side():
    for eye in NORMAL:
        t, x = healthy(eye, 64).thickness["nerve fibre layer"], healthy(eye, 64).x
        right, left = t[np.abs(x - 1).argmin()], t[np.abs(x + 1).argmin()]
        assert (right > left) == (eye.side == "OD")

def test_the_disc_is_on_the_nasal_side_and_within_the_scan_only_when_it_reaches_it():
    seen = 0
    for eye in NORMAL:
        s = settle(healthy(eye, 128)); at = (eye.disc[0] - eye.fovea[0]) * MM
        assert (at > 0) == (eye.side == "OD")
        if np.any(np.asarray(s.opening) > .5):
            seen += 1; inside = np.abs(s.x - at) < MM * eye.disc_radius
            assert inside.any() and not (s.opening[~inside] > .6).any() and s.thickness["ganglion cell layer"][s.opening > .99].max(initial=0) < 1
        else: assert np.abs(s.x - at).min() > .8 * MM * (eye.disc_radius ** 2 - (eye.disc[1] - eye.fovea[1]) ** 2) ** .5 - s.mm
    assert 10 < seen < 60

def test_speckle_contrast_follows_the_number_of_frames():
    scan = settle(healthy(NORMAL[0], 256)); scan.nuisance.floor = 0.
    for looks in (1, 4, 9):
        scan.nuisance.looks = looks; intensity = speckle(scan, np.full((256, 256), .6, np.float32)).astype(float) ** 4
        assert abs(intensity.std() / intensity.mean() * looks ** .5 - 1) < .05 and abs(intensity.mean() / .6 ** 4 - 1) < .03

def test_small_pixels_average_the_grain():
    scan = settle(healthy(NORMAL[0], 128)); scan.nuisance.floor, scan.nuisance.looks = 0., 1
    intensity = speckle(scan, np.full((128, 128), .6, np.float32)).astype(float) ** 4
    assert abs(intensity.std() / intensity.mean() - .5) < .05        # four grains in a pixel: half the contrast

def test_vessels_cross_where_they_throw_shadows():
    from keepfit_nb.layers import add_shadows
    for eye in NORMAL[:10]:
        scan = settle(healthy(eye, 256)); flat = np.ones((256, 256), np.float32); add_shadows(scan, flat)
        below = flat[np.abs(scan.depth[:, 0] - scan.bruch.max() - 60).argmin()]
        for u, w in crossings(scan)[:3]:
            assert below[scan.column(u)] < np.exp(-min(BLOOD * 1.2 * w, 4) / 4) + .05
        assert below.max() > .97

def test_frames_never_cover_the_retina():
    for s in range(150):
        eye = sample_eye(s, "normal"); kind = nuisances(eye).frame
        if not kind.endswith("wedge"): continue
        scan = settle(healthy(eye, 128)); seen, fill = visible(scan)
        row = np.clip(((scan.tops[0] + scan.bruch) / 2 - scan.depth[0, 0]) / scan.um, 0, 127).astype(int)
        assert seen[row, np.arange(128)].min() > .5 and (fill == 1) == kind.startswith("white")

def test_stamp_outside_changes_nothing():
    scan, image = settle(healthy(NORMAL[0], 128)), np.zeros((128, 128), np.float32)
    for x, depth in ((-90, 500), (90, 500), (0, -5000), (0, 90000)): stamp(scan, image, 1., x, depth, .1, 30)
    assert not image.any()
    stamp(scan, image, 1., 0, 550, .2, 60); assert image.max() > .9

def test_picture_is_within_bounds():
    for eye in NORMAL[:12]:
        scan = settle(healthy(eye, 128)); image = photograph(scan, paint_layers(scan))
        assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1 and np.isfinite(image).all()

def test_statistics_are_near_those_of_real_scans(real):
    "Median grey and sharpness of healthy and sick phantoms lie within the middle nine tenths of the real training images."
    import cv2, pandas as pd
    from keepfit_nb.images import preprocess
    from keepfit_nb.oct import OCT_DISEASES, render_oct
    rows = pd.read_csv(real / "records.csv"); rows = rows[(rows.modality == "OCT") & (rows.split == "train")]
    measure = lambda g: (np.median(g), g.std(), cv2.Laplacian(g.astype(np.float32), cv2.CV_32F).std())
    truth = np.array([measure(preprocess(real / p, 128).numpy()[0]) for p in rows.path])
    ours = np.array([measure(preprocess(render_oct(sample_eye(s, OCT_DISEASES[s % 15]), 128), 128).numpy()[0]) for s in range(60)])
    low, high = np.quantile(truth, [.05, .95], axis=0)
    assert ((low <= np.median(ours, 0)) & (np.median(ours, 0) <= high)).all(), (np.median(ours, 0), low, high)
