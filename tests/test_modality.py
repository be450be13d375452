"""Modality of phantoms as printed, and of real images where they are."""
import numpy as np, pandas as pd, pytest
from PIL import Image
from keepfit_nb.captions import render
from keepfit_nb.eye import DISEASES, sample_eye
from keepfit_nb.modality import classify_modality, disturb, modality_features, modality_probabilities, modality_rule
from keepfit_nb.profiles import MODALITIES


def test_phantoms_as_printed():
    r, images, true = np.random.default_rng(5), [], []
    for m in MODALITIES:
        names = [d for d in DISEASES if m in DISEASES[d].modalities]
        for s in range(40): images.append(disturb(render(sample_eye(900 + s, names[s % len(names)]), m, 96), r)); true.append(m)
    told, sure = classify_modality(images)
    assert np.mean([a == b for a, b in zip(told, true)]) >= .98 and ((sure > 1 / 3) & (sure <= 1)).all()

@pytest.mark.parametrize("image", [np.zeros((5, 5, 3), np.uint8), np.full((300, 20, 3), 255, np.uint8), np.zeros((1, 1, 3), np.uint8)])
def test_flat_images_give_numbers(image):
    assert np.isfinite(modality_features(image)).all() and classify_modality([image])[0][0] in MODALITIES

def test_no_image(): assert classify_modality([])[0] == []

def test_real_images(real):
    "Fitted on phantoms, asked about real eyes: a figure for the record; far above chance."
    rows = pd.read_csv(real / "records.csv"); rows = rows[rows.modality.isin(MODALITIES)]
    few = pd.concat([g.sample(min(len(g), 60), random_state=0) for _, g in rows.groupby("modality")])
    told = classify_modality([np.array(Image.open(real / p).convert("RGB")) for p in few.path])[0]
    right = pd.Series([a == b for a, b in zip(told, few.modality)]).groupby(list(few.modality)).mean().round(3).to_dict()
    print("modality, real images:", right); assert np.mean(list(right.values())) > .6

def test_tilted_layers_are_still_layers():
    "A tall dome: the layers run up and down as much as sideways, yet from column to column they go on."
    x = np.arange(300); image = np.random.default_rng(0).normal(30, 6, (200, 300))
    for depth in (0, 14, 40): image[(150 - 110 * np.exp(-((x - 150) / 45) ** 2) + depth).astype(int).clip(0, 199), x] = 230
    image = np.repeat(np.maximum(image, np.roll(image, 1, 0)).clip(0, 255).astype(np.uint8)[..., None], 3, 2)
    assert classify_modality([image])[0] == ["OCT"]

def test_the_rule_that_ships_is_a_rule_of_these_features():
    rule = modality_rule(); x = np.array([modality_features(np.full((96, 96, 3), v, np.uint8)) for v in (0, 128)]); p = modality_probabilities(x, rule)
    assert rule["classes"] == sorted(MODALITIES) and rule["weights"].shape == (3, len(x[0])) == (3, len(rule["mean"])) and np.allclose(p.sum(1), 1)
