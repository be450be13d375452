"The yardstick of realism: its statistics, its normalisation, its intervals; what it does without the real images."
import importlib.util

import numpy as np, pytest


@pytest.fixture(scope="module")
def realism(root):
    spec = importlib.util.spec_from_file_location("realism", root / "benchmarks" / "realism.py")
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    return module


def test_without_real_images_it_says_so_and_measures_nothing(realism, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KEEPFIT_REAL", str(tmp_path))
    assert realism.measure() == {} and "no real images" in capsys.readouterr().out


def test_statistics_of_pictures_that_we_know(realism):
    flat = np.zeros((128, 128, 3), np.uint8); flat[..., 0], flat[..., 1] = 200, 100
    s = realism.statistics(flat)
    assert abs(s["mean red"] - 200 / 255) < 1e-3 and s["sd red"] < 1e-3 and abs(s["hue"] - 90) < 1 and abs(s["saturation"] - 1) < 1e-6 and abs(s["vignette"] - 1) < 1e-3
    r = np.random.default_rng(0); rough = (flat * r.uniform(.7, 1., (128, 128, 1))).astype(np.uint8)
    assert realism.statistics(rough)["sharpness"] > s["sharpness"] + 3 and abs(realism.statistics(rough)["slope"]) < .4        # white noise: a flat spectrum
    assert realism.effect([1., 2., 3.], [1., 2., 3.]) == 0 and realism.effect([4., 5., 6.], [1., 2., 3.]) > 3


def test_normalisation_removes_tint_and_keeps_contrast(realism):
    from keepfit_nb.eye import sample_eye
    a = realism.draw("CFP", sample_eye(3, "diabetic retinopathy")); b = (a * np.array([.6, .8, .9])).astype(np.uint8)
    x, y = realism.as_input([a]), realism.as_input([b])
    assert x.shape == (1, 3, 128, 128) and (x - y).abs().mean() < .03 and x.std() > .05


def test_average_class_accuracy_and_its_interval(realism):
    y = np.repeat([0, 1], [90, 10]); assert realism.aca(y, np.zeros(100)) == .5 and realism.aca(y, y) == 1
    r = np.random.default_rng(0); guess = np.where(r.random(100) < .8, y, 1 - y); low, high = realism.interval(y, [guess], np.arange(100))
    assert low < realism.aca(y, guess) < high and high - low > realism.interval(np.tile(y, 9), [np.tile(guess, 9)], np.arange(900))[1] - realism.interval(np.tile(y, 9), [np.tile(guess, 9)], np.arange(900))[0]
    few = realism.interval(np.tile(y, 9), [np.tile(guess, 9)], np.tile(np.arange(100), 9))            # nine pictures of each patient are no new patients
    assert abs((few[1] - few[0]) - (high - low)) < .05


def test_every_question_names_diseases_and_categories_that_exist(realism):
    from keepfit_nb.eye import DISEASES, sample_eye
    for name, (modality, _, yes, no, positives, negatives, split) in realism.TASKS.items():
        for disease, facts in positives + negatives: assert modality in DISEASES[disease].modalities and sample_eye(0, disease, facts), name
        assert split in ("test", "")


def test_every_question_finds_both_sides_among_the_real_images(realism, real):
    for name, (modality, source, yes, no, *_, split) in realism.TASKS.items():
        rows = [r for r in realism.real_rows(modality=modality, source=source) if split in ("", r["split"])]
        assert sum(map(yes, rows)) >= 5 and sum(map(no, rows)) >= 5 and not any(yes(r) and no(r) for r in rows), name


def test_a_stopped_study_keeps_its_answers(realism, monkeypatch, tmp_path):
    asked = []
    def transfer(name, **size):
        asked.append(name)
        if name == "c" and asked.count("c") == 1: raise KeyboardInterrupt
        return {f"{name}.aca": len(asked) / 10}
    monkeypatch.setattr(realism, "transfer", transfer)
    with pytest.raises(KeyboardInterrupt): realism.transfers("abc", tmp_path, n=4)
    assert realism.transfers("abc", tmp_path, n=4) == {"a.aca": .1, "b.aca": .2, "c.aca": .4} and asked == list("abcc")
    realism.transfers("a", tmp_path, n=5); assert asked[-1] == "a"                                     # another size is another question


@pytest.mark.slow
def test_a_small_transfer_runs_end_to_end(realism, real):
    out = realism.transfer("odir cataract vs normal", n=60, steps=8, seeds=(0,))
    assert {k.split(".", 1)[1] for k in out} >= {"n", "aca", "low", "high", "auc", "adapted.aca"} and all(0 <= v <= 1 for k, v in out.items() if k.endswith(("aca", "auc", "low", "high")))
