"Chapter 17a: who is asked when to stop, what moves, and the stage on a bench."

import numpy as np
import pandas as pd
import pytest
import torch

from keepfit_nb import fine_tuning as ft
from keepfit_nb.encoders import Settings as EncoderSettings, build_image_encoder
from keepfit_nb.profiles import check_section, seed_everything
from keepfit_nb.training import Settings as TrainingSettings


class Squares:
    "Dark and bright pictures in place of an image cache."
    size = 32
    def __init__(self, n): self.y = np.arange(n) % 2; self.images = torch.from_numpy((40 + 150 * self.y)[:, None, None, None] + np.random.default_rng(0).integers(-30, 30, (n, 3, 32, 32))).clamp(0, 255).to(torch.uint8)
    def batch(self, rows): return self.images[torch.as_tensor(np.asarray(rows))]


def tuner(way="full"): seed_everything(0); return ft.Tuner(ft.adapt(build_image_encoder(EncoderSettings(), 32), way), 2)
def trial(steps=6, **kw): return ft.Settings(**dict(check_every=2, patience=9, batch_size=8, training=TrainingSettings(lr=2e-3, steps=steps, save_seconds=0)) | kw)


def test_hold_out_keeps_patients_together_and_every_class_on_both_sides():
    y, who = np.tile([0, 0, 1, 1, 2, 2], 10), np.repeat([f"p{i}" for i in range(30)], 2)
    a, b = ft.hold_out(y, who, .2, 1)
    assert not set(who[a]) & set(who[b]) and set(y[a]) == set(y[b]) == {0, 1, 2} and len(a) + len(b) == 60 and 6 <= len(b) <= 18
    for labels, patients in (([0, 0, 1], None), ([], None), ([0, 0, 1, 1], ["a", "b", "c", "c"])):
        with pytest.raises(ValueError, match="no validation data"): ft.hold_out(labels, patients)


def test_lora_moves_little_and_starts_at_the_model():
    plain, low = tuner().eval(), tuner("LoRA").eval(); x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(plain.encoder(x)[0], low.encoder(x)[0], atol=1e-4)
    count = lambda m: sum(p.numel() for p in m.parameters() if p.requires_grad); assert 0 < count(low) < count(plain) / 10
    low.train()({"images": Squares(4).images, "y": torch.tensor([0, 1, 0, 1])})["loss"].backward()
    assert all((p.grad is None) == (not p.requires_grad) for p in low.parameters())
    with pytest.raises(ValueError, match="way of fine-tuning"): ft.adapt(None, "lora2")


def test_the_best_look_is_kept_and_patience_ends_the_training(tmp_path, monkeypatch):
    cache, told, kept = Squares(16), iter([3., 1., 2., 2., 2., 2.]), []
    def asked(p, y): return next(told)
    monkeypatch.setattr(ft, "surprise", asked); look = ft.Best.look
    def spy(self, value, step, model):
        kept.append({k: v.clone() for k, v in model.state_dict().items()}); return look(self, value, step, model)
    monkeypatch.setattr(ft.Best, "look", spy); model = tuner()
    looks = ft.fine_tune(model, cache, np.arange(12), cache.y[:12], np.arange(12, 16), cache.y[12:], trial(20, patience=2), tmp_path / "a")
    assert looks.step.tolist() == [2, 4, 6, 8] and not (tmp_path / "a" / "checkpoints").exists()
    assert all(torch.equal(v, kept[1][k]) for k, v in model.state_dict().items() if "num_batches" not in k) and not all(torch.equal(v, kept[3][k]) for k, v in model.state_dict().items())


def test_without_validation_all_steps_are_taken(tmp_path):
    cache, model = Squares(12), tuner("LoRA"); before = {k: v.clone() for k, v in model.state_dict().items()}
    looks = ft.fine_tune(model, cache, np.arange(12), cache.y, [], [], trial(3), tmp_path / "a")
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert len(looks) == 0 and "head.weight" in moved and all("lora" in k or "head" in k for k in moved)          # batch statistics stay, too


@pytest.mark.slow
def test_it_learns(tmp_path):
    cache, model = Squares(48), tuner()
    ft.fine_tune(model, cache, np.arange(32), cache.y[:32], np.arange(32, 40), cache.y[32:40], trial(30), tmp_path / "a")
    assert (ft.probs(model, cache, np.arange(40, 48)).argmax(1) == cache.y[40:]).all()


def test_off_leaves_an_empty_table(tmp_path):
    from evaluation_bench import fake_run, make_bench
    make_bench(tmp_path / "14"); out = tmp_path / "17a"; out.mkdir()
    assert ft.build(fake_run(tmp_path), out, ft.Settings(), {"14_evaluation": tmp_path / "14"}) == dict(rows=0, trainings=0, left_out=0)
    assert len(pd.read_parquet(out / "results.parquet")) == 0


def test_stage_on_a_bench(tmp_path, monkeypatch):
    from evaluation_bench import fake_run, make_bench
    bench = make_bench(tmp_path / "14"); out = tmp_path / "17a"; out.mkdir(); run = fake_run(tmp_path); run.device = torch.device("cpu")
    class Cache(Squares):
        def __init__(self, folder): super().__init__(len(bench.records))
    monkeypatch.setattr(ft, "ImageCache", Cache); monkeypatch.setattr(ft, "_encoder", lambda *a: (seed_everything(0), build_image_encoder(EncoderSettings(), 32))[1])
    wanted = trial(2, enabled=True, models=["keepfit"], ways=["full"], percents=[5, 100])
    got = ft.build(run, out, wanted, {"14_evaluation": tmp_path / "14", "06_images": tmp_path})
    table = pd.read_parquet(out / "results.parquet")
    assert got["trainings"] == 1 and got["left_out"] == 1 and set(table.protocol) == {"fine-tuning, full"}                # 5 %: one eye a class, nobody to ask
    assert set(table.n) == {len(bench.rows(bench.tasks[0])[0])} and list(out.rglob("looks.csv"))
    both = tmp_path / "both"; both.mkdir()
    got = ft.build(run, both, trial(2, enabled=True, models=["keepfit"], ways=["full", "LoRA"], percents=[50, 100]), {"14_evaluation": tmp_path / "14", "06_images": tmp_path})
    table = pd.read_parquet(both / "results.parquet"); aca = table[table.metric == "ACA"].set_index("protocol").value
    assert got["trainings"] == 4 and got["left_out"] == 0 and set(aca.index) == {f"fine-tuning, {w}{p}" for w in ("full", "LoRA") for p in ("", ", 50 %")}
    assert aca.between(0, 1).all() and set(table.variant) == {"keepfit"} and len({p.parent.name for p in both.rglob("looks.csv")}) == 4


def test_settings():
    with pytest.raises(ValueError, match="did you mean 'enabled'"): check_section({"enable": True}, ft.Settings, "section 'fine_tuning'")
    with pytest.raises(ValueError, match="val"): check_section({"val": 1.}, ft.Settings, "section 'fine_tuning'")
