"Chapters 17b.1 and 17b: masks stay on their pictures, Dice is Dice, the encoder is the encoder, nothing is chosen on test eyes."
import json, math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from keepfit_nb import masks as mk, segmentation as sg
from keepfit_nb.decoding import preprocess
from keepfit_nb.encoders import ImageEncoder, timm_model
from keepfit_nb.profiles import check_section


def encoder(name="resnet10t", seed=0):
    torch.manual_seed(seed)
    return ImageEncoder(timm_model(name, image_size=32 if "vit" in name else None)).eval()


def squares(n=6, size=32, k=1, empty=(), seed=0, **about):
    "Grey pictures with a bright square, which is the mask: learnable in a few steps."
    rng = np.random.default_rng(seed); images = torch.full((n, 3, size, size), 60, dtype=torch.uint8); masks = torch.zeros(n, k, size, size, dtype=torch.bool)
    for i in range(n):
        for j in range(k):
            if i in empty: continue
            r, c = rng.integers(0, size - 12, 2); masks[i, j, r:r + 12, c:c + 12] = True; images[i, :, r:r + 12, c:c + 12] = 220 - 60 * j
    return mk.Eyes(images, masks, tuple(f"t{j}" for j in range(k)), patients=[f"p{i}" for i in range(n)], **about)


QUICK = dict(steps=6, check_every=3, batch_size=4, widths=[16, 8, 8, 8, 8])


# ---- masks ----
@settings(max_examples=25, deadline=None)
@given(st.integers(90, 200), st.integers(90, 200), st.integers(0, 30), st.integers(0, 99), st.sampled_from([32, 48, 64]))
def test_mask_stays_on_its_picture_under_crop_and_resize(h, w, border, seed, size):
    "What is bright is the mask: after any crop and resize it still is, but for the rim of half-covered pixels."
    rng = np.random.default_rng(seed); image, mask = np.zeros((h, w, 3), np.uint8), np.zeros((h, w), bool)
    image[border:h - border or None, border:w - border or None] = 90
    high, wide = (h - 2 * border) // 2, (w - 2 * border) // 2
    top, left = rng.integers(border, h - border - high), rng.integers(border, w - border - wide)
    mask[top:top + high, left:left + wide] = True; image[mask] = 220
    small, m = mk.prepare_pair(image, mask, size, cover=.5)
    assert torch.equal(small, preprocess(image, size))
    bright = small[0].float() >= 90 + .5 * 130
    rim = ((small[0] > 92) & (small[0] < 218)).float()
    assert ((bright != m[0]) & (rim == 0)).sum() == 0 and (bright != m[0]).sum() <= rim.sum()
    assert bright.sum() > 0


def test_drawn_eyes_go_through_the_cache_s_own_preprocessing():
    eyes = mk.draw_eyes("CFP", "test", 2, 48, seed=3, drawn=64)
    image, masks, disease, _ = mk.draw_eye("CFP", "test", 1, 3, 64)
    assert torch.equal(eyes.images[1], preprocess(image, 48)) and eyes.diseases[1] == disease
    assert abs(eyes.masks[1, 0].float().mean() - masks[0].mean()) < .03 and eyes.masks[:, 0].any()
    other = mk.draw_eyes("CFP", "train", 2, 48, seed=3, drawn=64)
    assert not set(eyes.patients) & set(other.patients)


@pytest.mark.parametrize("modality", ["CFP", "FFA", "OCT"])
def test_every_target_can_be_drawn(modality):
    "Some eye of each target's own diseases shows it, so its masks exist in the renderers under these names."
    names, found = mk.diseases_of(modality), set()
    for number in range(3 * len(names)):
        _, masks, disease, _ = mk.draw_eye(modality, "train", number, 0, 48 if modality != "OCT" else 64)
        found |= {t.name for t, m in zip(mk.targets_of(modality), masks) if m.any()}
        if found == {t.name for t in mk.targets_of(modality)}: break
    assert found == {t.name for t in mk.targets_of(modality)} and "normal" in names


@pytest.mark.parametrize("image, mask, words", [
    (np.zeros((40, 40, 3), np.uint8), np.zeros((40, 39), bool), "resized or cropped before"), (np.zeros((40, 40, 3), np.uint8), np.zeros((40,), bool), "same size"),
    (np.full((40, 40, 3), np.nan), np.zeros((40, 40), bool), "NaN"), (np.zeros((0, 4, 3), np.uint8), np.zeros((0, 4), bool), "no picture")])
def test_bad_pairs_are_refused(image, mask, words):
    with pytest.raises(ValueError, match=words): mk.prepare_pair(image, mask, 32)


def test_one_channel_counts_as_grey():
    grey = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    image, mask = mk.prepare_pair(grey, grey > 128, 40, crop=False)
    assert (image[0] == image[2]).all() and torch.equal(mask[0], image[0] > 128)
    model = sg.Segmenter(encoder(), ["a"], size=32)
    assert torch.allclose(model.probs(image[None, :1]), model.probs(image[None]))


def test_sets_refuse_what_does_not_fit():
    e = squares()
    with pytest.raises(ValueError, match="do not belong together"): mk.Eyes(e.images, e.masks[..., :-1], e.targets)
    with pytest.raises(ValueError, match="do not belong together"): mk.Eyes(e.images, e.masks, ("a", "b"))
    bad = e.images.float() / 255; bad[3] = math.nan
    with pytest.raises(ValueError, match="picture 3 holds NaN"): mk.Eyes(bad, e.masks, e.targets)
    with pytest.raises(ValueError, match="did you mean 't0'"): e.only(["t1"])
    with pytest.raises(ValueError, match="n_val"): mk.draw_eyes("CFP", "val", 0, 32)
    with pytest.raises(ValueError, match="did you mean 'OCT'"): mk.targets_of("OCTA")
    assert e.take([2, 0]).patients == ["p2", "p0"] and torch.equal(e.take([2]).masks[0], e.masks[2])


# ---- Dice ----
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_dice_by_its_properties(seed, p, q):
    g = torch.Generator().manual_seed(seed); a, b = (torch.rand(3, 2, 6, 5, generator=g) < s for s in (p, q))
    d, i = (mk.overlaps(a, b)[k] for k in ("Dice", "IoU"))
    assert torch.equal(d.isnan(), ~(a | b).flatten(2).any(2)) and torch.equal(d.isnan(), i.isnan())
    order = torch.randperm(30, generator=g); mixed = lambda m: m.flatten(2)[..., order].view_as(m)
    assert torch.equal(mk.overlaps(mixed(a), mixed(b))["Dice"].nan_to_num(-1), d.nan_to_num(-1))                 # pixels have no order
    assert torch.equal(mk.overlaps(b, a)["Dice"].nan_to_num(-1), d.nan_to_num(-1))                               # nor have the two masks
    assert torch.allclose(d.nan_to_num(), (2 * i / (1 + i)).nan_to_num()) and (mk.overlaps(a, a)["Dice"].nan_to_num(1.) == 1).all()
    assert torch.allclose(smp.metrics.f1_score(*smp.metrics.get_stats(a.long(), b.long(), mode="multilabel"), zero_division=0.).double(), d.nan_to_num(0.), atol=1e-6)


def test_dice_by_hand_and_empty_masks():
    a, b = torch.zeros(4, 1, 4, 4, dtype=torch.bool), torch.zeros(4, 1, 4, 4, dtype=torch.bool)
    a[0, 0, :2], b[0, 0, 1:3] = True, True; a[1, 0, 0] = True; b[2, 0, 0] = True
    d = mk.overlaps(a, b)["Dice"][:, 0].tolist()
    assert d[:3] == [.5, 0., 0.] and math.isnan(d[3]) and mk.overlaps(a, b)["IoU"][0, 0] == 1 / 3
    with pytest.raises(ValueError, match="same"): mk.overlaps(a, b[:3])


def test_interval_is_over_eyes_that_show_the_target():
    values, there = [.2, .4, .9, 0., np.nan], [True, True, True, False, False]
    value, low, high = mk.mean_overlap(values, there, [f"p{i}" for i in range(5)], 2000)
    assert value == pytest.approx(.5) and .2 <= low < .5 < high <= .9
    twins = mk.mean_overlap(np.repeat([.2, .4, .9], 2), [True] * 6, ["a", "a", "b", "b", "c", "c"], 2000)
    apart = mk.mean_overlap(np.repeat([.2, .4, .9], 2), [True] * 6, list("abcdef"), 2000)
    assert twins[2] - twins[1] > apart[2] - apart[1]                     # two pictures of one patient are not two patients
    assert math.isnan(mk.mean_overlap([.3], [False], ["p"])[0])
    one = mk.mean_overlap([.3], [True], ["p"]); assert one[0] == .3 and math.isnan(one[1])


# ---- the encoder ----
@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext", "test_efficientnet"])
def test_features_are_the_encoder_s_own(name):
    "The deepest map is what the encoder itself gives, and no weight is changed by being taken over."
    import timm
    e = ImageEncoder(timm.create_model(name, num_classes=0)).eval(); before = {k: v.clone() for k, v in e.state_dict().items()}
    side = 160 if "vit" in name else 64
    x = e.normalise(torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        maps, own = sg.pyramid(e, x, sg.stages_of(e)), e.forward_grid(x)[1]
        model = sg.Segmenter(e, ["a", "b"], size=side); out = model.logits(torch.rand(1, 3, side, side))
    assert torch.equal(maps[0], x) and torch.equal(maps[-1], own.permute(0, 3, 1, 2))
    sides = [m.shape[-1] for m in maps]; assert sides == sorted(set(sides), reverse=True) and out.shape == (1, 2, side, side)
    assert all(torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items())


def test_frozen_stays_and_fine_tuned_moves():
    e, train, val = encoder(), squares(8), squares(4, seed=1)
    before = {k: v.clone() for k, v in e.state_dict().items()}
    for mode in ("frozen", "fine-tuned"):
        import tempfile
        with tempfile.TemporaryDirectory() as tmp: model, thresholds, facts = sg.train_segmenter(e, train, val, mode, sg.Settings(**QUICK), tmp)
        moved = [k for k, v in model.encoder.state_dict().items() if not torch.equal(v, before[k])]
        assert bool(moved) == (mode == "fine-tuned") and facts["best_step"] in (3, 6) and len(thresholds) == 1
        assert all(torch.equal(v, before[k]) for k, v in e.state_dict().items())      # the caller's encoder is never touched


def test_training_learns_and_repeats(tmp_path):
    e, train, val, test = encoder(), squares(12), squares(4, seed=1), squares(6, seed=2)
    plan = sg.Settings(**QUICK | dict(steps=24, check_every=8))
    (a, ta, fa), (b, tb, fb) = (sg.train_segmenter(e, train, val, "frozen", plan, tmp_path / str(k), seed=1) for k in (0, 1))
    assert fa == fb and ta == tb and torch.equal(a.probs(test.images), b.probs(test.images))
    scores = sg.score_segmenter(a, ta, test)
    assert scores["Dice"].mean() > .5                                        # a bright square is found; painting everything gives .25


def test_best_moment_is_kept_and_patience_ends(tmp_path, monkeypatch):
    told = iter([.5, .1, .1, .1, .1, .1]); kept = []
    real = sg.choose_thresholds
    def fake(probs, eyes, grid=sg.GRID): kept.append(probs.clone()); return real(probs, eyes)[0], next(told, 0.)
    monkeypatch.setattr(sg, "choose_thresholds", fake)
    model, _, facts = sg.train_segmenter(encoder(), squares(8), squares(4, seed=1), "frozen", sg.Settings(**QUICK | dict(steps=12, patience=6)), tmp_path)
    assert facts["best_step"] == 3 and facts["steps"] == 9 and torch.equal(kept[0], kept[-1])


def test_mean_mask_has_not_looked():
    train = squares(6, k=2); answer = sg.mean_mask(train, 3)
    assert answer.shape == (3, 2, 32, 32) and torch.equal(answer[0], answer[2]) and torch.equal(answer, answer.flip(-1))
    assert torch.allclose(answer[0].mean((1, 2)), train.masks.float().mean((0, 2, 3)))


def test_thresholds_come_from_validation_eyes():
    eyes = squares(4, k=2); eyes.masks[:, 1] = False
    probs = torch.where(eyes.masks, .35, .15)
    thresholds, score = sg.choose_thresholds(probs, eyes)
    assert thresholds == [.2, .5] and score == 1.                            # nothing to choose for the second: the middle
    assert sg.choose_thresholds(probs, squares(4, k=2, empty=range(4)))[1] == 0.


# ---- flips, loss ----
def test_picture_and_mask_turn_together():
    e = squares(8, k=2); shown = e.masks[:, :1].repeat(1, 3, 1, 1)
    images, masks = sg.flip_together(shown, e.masks, np.random.default_rng(0).random((8, 2)))
    assert torch.equal(images[:, 0], masks[:, 0]) and not torch.equal(masks, e.masks)
    turned = sg.flipping_batches(mk.Eyes(shown.to(torch.uint8) * 255, e.masks, e.targets), 5, seed=2)
    for step in range(4):
        b = turned(step); assert torch.equal(b["images"][:, 0] > 0, b["masks"][:, 0]) and torch.equal(b["masks"], turned(step)["masks"])


def test_oct_keeps_its_up_and_down():
    e = squares(6, modality="OCT"); lit = sg.flipping_batches(e, 6, 0, upright=True)(0)["masks"].any(3).flatten(1)
    rows = {tuple(r) for r in e.masks.any(3).flatten(1).tolist()}
    assert {tuple(r) for r in lit.tolist()} == rows


def test_loss_of_smp_is_the_equation():
    e, model = squares(4, k=2, empty=(1,)), sg.Segmenter(encoder(), ["t0", "t1"], size=32)
    model.eval(); z, t = model.logits(e.images).detach().double(), e.masks.double(); p = z.sigmoid()
    dice = sum(1 - 2 * (p[:, k] * t[:, k]).sum() / (p[:, k] + t[:, k]).sum() for k in (0, 1)) / 2
    entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    assert (model.area(z, t) + model.pixels(z, t)).item() == pytest.approx((dice + entropy).item(), abs=1e-9)
    loss = model(dict(images=e.images, masks=e.masks)); assert loss["loss"].item() == pytest.approx((dice + entropy).item(), abs=1e-3)      # float32


def test_answers_begin_with_the_share_of_the_masks():
    model = sg.Segmenter(encoder(), ["a", "b"], size=32, shares=[.2, .01])
    assert model.probs(squares(2).images).mean((0, 2, 3)).tolist() == pytest.approx([.2, .01], abs=.08)


# ---- bad input ----
def test_bad_input_of_training(tmp_path):
    e, plan = encoder(), sg.Settings(**QUICK)
    with pytest.raises(ValueError, match="all training masks .* are empty"): sg.train_segmenter(e, squares(3, empty=range(3)), squares(2), settings=plan, folder=tmp_path)
    some = squares(3, k=2); some.masks[:, 1] = False
    with pytest.raises(ValueError, match="no training eye .* shows t1"): sg.train_segmenter(e, some, squares(2, k=2), settings=plan, folder=tmp_path)
    with pytest.raises(ValueError, match="validation"): sg.train_segmenter(e, squares(3), squares(2, k=2), settings=plan, folder=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'frozen'"): sg.Segmenter(e, ["a"], "froozen", size=32)
    with pytest.raises(ValueError, match="at least one target"): sg.Segmenter(e, [], size=32)
    with pytest.raises(ValueError, match="5 scales"): sg.Segmenter(e, ["a"], widths=(8, 8), size=32)
    with pytest.raises(ValueError, match="did you mean 'n_train'"): check_section(dict(n_trane=3), sg.Settings, "section 'segmentation'")


def test_one_training_image_and_empty_validation(tmp_path):
    model, thresholds, facts = sg.train_segmenter(encoder(), squares(1), squares(2, empty=(0, 1)), settings=sg.Settings(**QUICK), folder=tmp_path)
    assert thresholds == [.5] and facts["val_dice"] == 0 and torch.isfinite(model.probs(squares(2).images)).all()


def test_targets_nobody_shows_are_left_out():
    train, test = squares(4, k=3), squares(4, k=3, seed=1); train.masks[:, 1] = False; test.masks[:, 2] = False
    sets, left = sg.keep_learnable(dict(train=train, val=test, test=test))
    assert left == ["t1", "t2"] and all(s.targets == ("t0",) for s in sets.values())
    test.masks[:] = False
    with pytest.raises(ValueError, match="n_test"): sg.keep_learnable(dict(train=train, val=test, test=test))


# ---- real masks ----
def make_real(folder, n=8, size=40):
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        a = rng.integers(60, 120, (size, size, 3), dtype=np.uint8); m = np.zeros((size, size), np.uint8); m[8:20, 5 + i:20 + i] = 255; a[m > 0] = 230
        Image.fromarray(a).save(folder / f"{i}.png"); Image.fromarray(m if i % 2 else m // 255).save(folder / f"{i}_mask.png")      # 0/255 and 0/1
        rows.append(dict(path=f"{i}.png", modality="CFP", source="drive", patient=f"q{i // 2}", split="test" if i < 2 else "train", mask=f"{i}_mask.png"))
    rows.append(dict(path="0.png", modality="RED-FREE", source="drive", patient="z", split="train", mask="0_mask.png")); rows.append(rows[0] | dict(mask="", patient="y"))
    pd.DataFrame(rows).to_csv(folder / "records.csv", index=False)


def test_real_masks_are_read_by_patient(tmp_path):
    make_real(tmp_path); (sets,) = mk.real_sets(tmp_path, 40, crop=False)
    assert {k: len(v) for k, v in sets.items()} == dict(train=4, val=2, test=2) and sets["test"].targets == ("vessels",)
    assert not set(sets["train"].patients) & set(sets["val"].patients) and set(sets["test"].patients) == {"q0"}
    assert all(abs(float(s.masks[i].float().mean()) - 12 * 15 / 1600) < 1e-6 for s in sets.values() for i in range(len(s)))
    with pytest.raises(FileNotFoundError, match="set KEEPFIT_REAL"): mk.real_sets(tmp_path / "nowhere", 32)


@pytest.mark.slow
def test_real_folder_has_masks(real):
    found = {s["train"].source: s for s in mk.real_sets(real, 64)}
    assert set(found) == {"drive", "huapu4_ffa"} and all(s[k].present.all() for s in found.values() for k in s)
    assert .05 < found["drive"]["train"].masks.float().mean() < .12


# ---- the stage ----
def small_run(tmp_path, monkeypatch, **more):
    (tmp_path / "06_images").mkdir(exist_ok=True); (tmp_path / "17b").mkdir(exist_ok=True)
    monkeypatch.setattr(sg, "ImageCache", lambda folder: SimpleNamespace(size=32, about=dict(crop=True)))
    monkeypatch.setattr(sg, "encoders_of", lambda run, settings, inputs: iter([("start", 0, encoder()), ("keepfit", 0, encoder(seed=1))]))
    plan = sg.Settings(**QUICK | dict(n_train=5, n_val=5, n_test=5, modalities=["CFP"], modes=["frozen"], bootstrap=50) | more)
    run = SimpleNamespace(dir=tmp_path, seed=0, device="cpu", variants={"keepfit": {}}, section=lambda name, cls: cls(size=32))
    return lambda: sg.build(run, tmp_path / "17b", plan, {"06_images": tmp_path / "06_images", "13_pretraining": tmp_path})


def test_stage_leaves_rows_and_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    from keepfit_nb.evaluation import RESULT_COLUMNS
    build = small_run(tmp_path, monkeypatch); metrics = build()
    table = pd.read_parquet(tmp_path / "17b" / "results.parquet"); facts = pd.read_csv(tmp_path / "17b" / "facts.csv")
    assert tuple(table.columns) == RESULT_COLUMNS and set(table.metric) == {"Dice", "IoU"} and set(table.model) == {"start", "keepfit", "mean mask"}
    assert set(table.kind) == {"segmentation"} and table.value.between(0, 1).all() and (table.n >= 1).all()
    assert metrics["trainings"] == 2 and {"dice_start_frozen", "dice_keepfit_frozen", "dice_mean_mask_no_picture"} <= metrics.keys() and len(facts) == (table.model != "mean mask").sum() // 2 and metrics["dice_mean_mask_no_picture"] > 0
    assert not (tmp_path / "17b" / "work").exists() or not list((tmp_path / "17b" / "work").iterdir())
    cell = tmp_path / "17b" / "cells" / "start-0-phantoms-CFP-frozen-5.json"; kept = json.loads(cell.read_text()); kept["rows"][0]["value"] = .123
    cell.write_text(json.dumps(kept)); next((tmp_path / "17b" / "cells").glob("keepfit*.json")).unlink()
    build(); again = pd.read_parquet(tmp_path / "17b" / "results.parquet")
    assert again.value[again.model == "keepfit"].equals(table.value[table.model == "keepfit"]) and (again.value == .123).sum() == 1      # one read, one trained again


def test_unknown_model_fails_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(sg, "phantom_sets", lambda *a: pytest.fail("too late"))
    with pytest.raises(ValueError, match="segmentation.models: .*did you mean 'keepfit'"): small_run(tmp_path, monkeypatch, models=["start", "keepfitt"])()


def test_stage_without_the_real_folder_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KEEPFIT_REAL", str(tmp_path / "nowhere"))
    small_run(tmp_path, monkeypatch, real=True, n_train=3, n_val=2, n_test=3, steps=2, check_every=2)()
    assert "real masks are not here" in capsys.readouterr().out


@pytest.mark.slow
def test_stage_on_real_masks_keeps_no_picture(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir(); make_real(tmp_path / "real"); monkeypatch.setenv("KEEPFIT_REAL", str(tmp_path / "real"))
    small_run(tmp_path, monkeypatch, real=True, fractions=[.5, 1.])()
    table = pd.read_parquet(tmp_path / "17b" / "results.parquet"); real = table[table.set == "drive"]
    assert set(real.shots) == {0, 2} and "mean mask" in set(real.model) and set(real.task) == {"drive CFP vessels"} and set(table[table.shots > 0].shots) == {2}
    assert not list((tmp_path / "17b" / "cells").glob("*drive*.npz")) and list((tmp_path / "17b" / "cells").glob("*phantoms*.npz"))
