"A healthy eye: streams, landmarks, rim, fibres, Murray, vessels, crossings."
import math, subprocess, sys

import numpy as np, pytest
from hypothesis import given, strategies as st

from keepfit_nb.anatomy import (MICRONS, Vessel, anatomy, arcade, crossings, cup_edge, fibre_angle, grow, murray, smooth, stream, vessel_tree)
from keepfit_nb.eye import sample_eye

angles = st.floats(-7, 7)


def test_streams_differ_by_name_and_seed():
    assert len({stream(s, n).random() for s in range(3) for n in ("a", "b")}) == 6


def test_same_tree_in_another_process():
    code = "from keepfit_nb.eye import *; print(float(sum(v.points.sum() for v in vessel_tree(sample_eye(7, 'normal')))), sample_eye(7, 'diabetic retinopathy'))"
    out = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": h, "PATH": ""}).stdout for h in "12"}
    assert len(out) == 1 and "Eye(seed=7" in out.pop()


def test_landmarks_stay_in_the_field():
    for i in range(300):
        b = anatomy(i)
        assert math.hypot(*b["disc"]) + b["disc_radius"] < .75 and b["fovea"][0] < b["disc"][0] - .4 and .2 <= b["cup_ratio"] <= .42
        assert 1300 < 2 * b["disc_radius"] * MICRONS < 1800                                  # a disc is about 1.5 mm across


@given(angles, st.floats(.05, .95), st.floats(-1, 1))
def test_the_cup_stays_in_the_disc(t, cup, notch): assert 0 <= cup_edge(t, cup, notch) < 1


@given(st.floats(.1, .5))
def test_isnt(cup):
    i, s, n, t = (1 - cup_edge(a, cup) for a in (math.pi / 2, -math.pi / 2, 0, math.pi))
    assert i > s > n > t


@given(angles, st.floats(.1, .9), st.floats(-1, 1))
def test_the_rim_of_a_left_eye_is_mirrored(t, cup, notch): assert math.isclose(cup_edge(t, cup, notch, "OS"), cup_edge(math.pi - t, cup, notch), abs_tol=1e-9)


@pytest.mark.parametrize("notch", [-.8, .8])
def test_a_notch_breaks_isnt_on_its_side(notch):
    at = lambda a: 1 - cup_edge(a, .64, notch)
    assert at(math.copysign(2.18, notch)) < .4 * at(-math.copysign(2.18, notch))


def test_fibres_lead_to_the_disc():
    disc, fovea = (.45, .02), (-.1, .06)
    for x in np.linspace(-.9, .3, 9):
        for y in np.linspace(-.8, .8, 9):
            px, py = float(x), float(y)
            for _ in range(200):
                a = fibre_angle(px, py, disc, fovea); px += .02 * math.cos(a); py += .02 * math.sin(a)
                if math.dist((px, py), disc) < .19: break
            assert math.dist((px, py), disc) < .19, (x, y)
    along = [arcade(u, -1, disc, fovea) for u in (.3, .31)]
    assert math.isclose(math.atan2(along[0][1] - along[1][1], .01), fibre_angle(*along[0], disc, fovea), abs_tol=.03)


def test_murray_keeps_the_flow():
    for parent, ratio in np.random.default_rng(0).uniform(.01, 1, (100, 2)):
        a, b, ta, tb = murray(parent, ratio)
        assert math.isclose(a**3 + b**3, parent**3) and a >= b and ta <= tb + 1e-12          # the thinner branch turns more


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


def test_no_tree_fails():
    for i in range(400):
        b = anatomy(i); assert len(grow(i, b["disc"], b["fovea"], b["disc_radius"])) > 50


def test_diseased_vessels():
    calibre = lambda d, k: np.mean([v.calibre.mean() for v in vessel_tree(sample_eye(2, d)) if v.kind == k])
    assert calibre("hypertensive retinopathy", "artery") < .6 * calibre("normal", "artery")
    bend = lambda d: np.mean([abs(np.diff(np.unwrap(np.arctan2(*np.diff(v.points, axis=0).T)))).mean() for v in vessel_tree(sample_eye(2, d)) if v.kind == "vein"])
    assert bend("central retinal vein occlusion") > 2 * bend("normal")


def test_calibre_does_not_move_vessels():
    b = anatomy(3); key = (3, b["disc"], b["fovea"], b["disc_radius"])
    for a, c in zip(grow(*key), grow(*key, .5, 1.3)):
        assert (a.points == c.points).all() and np.allclose(a.calibre * (.5 if a.kind == "artery" else 1.3), c.calibre)


def test_left_eyes_mirror_right_ones():
    for i in range(8):
        eye, base = sample_eye(i, "normal"), anatomy(i)
        sign = 1 if eye.side == "OD" else -1
        assert eye.disc == (sign * base["disc"][0], base["disc"][1])
        trunks = np.concatenate([v.points[:3] for v in vessel_tree(eye) if v.order == 0])
        assert np.hypot(*(trunks - eye.disc).T).max() < .2


def test_smooth_stays_within_branches():
    ids = np.array([0, 0, 0, 1, 1, 1]); track = np.array([[0, 0, 1], [1, 0, 1], [2, 0, 1], [0, 9, 2], [1, 9, 2], [2, 9, 2.]])
    i2, t2 = smooth(ids, track)
    assert len(i2) == 10 and set(t2[i2 == 0, 1]) == {0.} and set(t2[i2 == 1, 1]) == {9.}


def test_crossings_are_found_where_lines_meet():
    line = lambda kind, a, b: Vessel(kind, 0, np.linspace(a, b, 41), np.full(41, .02))
    tree = [line("artery", (-.5, 0), (.5, .01)), line("vein", (.1, -.5), (.12, .5)), line("vein", (-.5, .3), (.5, .3)), line("artery", (.8, -.1), (.9, .1))]
    found = crossings(tree)
    assert found.shape == (1, 5) and np.allclose(found[0, :2], [.11, .006], atol=.003) and np.allclose(found[0, 2:4], .02)
    by_hand = 0
    for a in (v for v in vessel_tree(sample_eye(0)) if v.kind == "artery" and v.order == 0):
        for b in (v for v in vessel_tree(sample_eye(0)) if v.kind == "vein" and v.order == 0):
            for p, p2 in zip(a.points, a.points[1:]):
                for q, q2 in zip(b.points, b.points[1:]):
                    m = np.array([p2 - p, q - q2]).T
                    if abs(np.linalg.det(m)) > 1e-12:
                        s, t = np.linalg.solve(m, q - p); by_hand += 0 <= s < 1 and 0 <= t < 1
    assert len(crossings(vessel_tree(sample_eye(0)), 0)) == by_hand
