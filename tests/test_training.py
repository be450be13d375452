"The training loop: same bits after any kind of stop, clear ends for every accident, gradients shared between processes."
import json, os, random, signal, subprocess, sys, textwrap, threading
from pathlib import Path

import numpy as np, pytest, torch
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F

from keepfit_nb import checkpoints as saving, training
from keepfit_nb.profiles import seed_everything
from keepfit_nb.training import (Settings, checkpoints, fit, launch, launch_command, lr_factor, parameter_groups, random_state,
                                 rows_of_step, set_random_state, total_steps)

points = torch.randn(256, 2, generator=torch.Generator().manual_seed(0)); labels = (points.norm(dim=1) > 1.2).long()


class Toy(nn.Module):
    "Norm, dropout, temperature, and random numbers from Python and NumPy as well."
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.2), nn.Linear(16, 2))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        noise = 1 + 1e-3 * (random.random() + np.random.rand())
        loss = F.cross_entropy(self.log_scale.exp() * self.net(batch["x"]), batch["y"])
        return {"loss": loss * noise, "scale": self.log_scale.exp()}


def batches(step):
    rows = rows_of_step(step, len(points), 16)
    return {"x": points[rows], "y": labels[rows], "rows": torch.as_tensor(rows)}


def toy(seed=0): seed_everything(seed); return Toy()


def train(folder, model=None, source=batches, **settings):
    model = toy() if model is None else model
    keys = {k: settings.pop(k) for k in ("after_step", "extras", "seed", "on_log", "verbose", "steps_per_epoch") if k in settings}
    s = Settings(**{"steps": 24, "lr": 1e-2, "log_every": 5} | settings)
    curves = fit(model, source, s, folder, device="cpu", **{"verbose": False} | keys)
    return model, curves


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def timeless(curves): return curves.drop(columns=["seconds", "wait"])


def raising_at(n, error):
    def source(step):
        if step == n: raise error
        return batches(step)
    return source


@pytest.fixture(scope="module")
def whole(tmp_path_factory): return train(tmp_path_factory.mktemp("whole"))


def test_a_run_repeated_gives_the_same_bits(whole, tmp_path):
    model, curves = train(tmp_path)
    assert same(model, whole[0]) and timeless(curves).equals(timeless(whole[1]))
    other, _ = train(tmp_path / "b", seed=1)
    assert not same(other, whole[0])


@pytest.mark.parametrize("at, save_every", [(13, 6), (13, 0), (1, 1), (23, 23)])
def test_a_crash_in_the_middle_costs_nothing_but_time(whole, tmp_path, at, save_every):
    with pytest.raises(RuntimeError): train(tmp_path, source=raising_at(at, RuntimeError("crash")), save_every=save_every)
    model, curves = train(tmp_path, model=toy(7), save_every=save_every) if save_every else train(tmp_path)
    assert same(model, whole[0]) and timeless(curves).equals(timeless(whole[1]))


def test_accumulation_resumes_as_well(tmp_path):
    through, _ = train(tmp_path / "a", accumulate=3, steps=8)
    with pytest.raises(RuntimeError):
        train(tmp_path / "b", accumulate=3, steps=8, save_every=2, source=raising_at(16, RuntimeError("crash")))
    assert same(train(tmp_path / "b", model=toy(7), accumulate=3, steps=8, save_every=2)[0], through)


def test_ctrl_c_saves_and_is_raised(whole, tmp_path):
    def pressed(step):
        if step == 10: os.kill(os.getpid(), signal.SIGINT)
        return batches(step)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 11 of 24, saved"): train(tmp_path, source=pressed)
    assert signal.getsignal(signal.SIGINT) is before and checkpoints(tmp_path)[-1].name == "step_00000011"
    assert same(train(tmp_path, model=toy(7))[0], whole[0])


def test_an_interrupt_inside_a_step_saves_no_half_updated_weights(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt, match="not saved; the same call goes on from step 6"):
        train(tmp_path, source=raising_at(9, KeyboardInterrupt()), save_every=6)
    assert same(train(tmp_path, model=toy(7), save_every=6)[0], whole[0])


def test_works_outside_the_main_thread(whole, tmp_path):
    out = []
    thread = threading.Thread(target=lambda: out.append(train(tmp_path)[0])); thread.start(); thread.join()
    assert same(out[0], whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("at, more", [(5, {}), (17, {}), (31, {"ema": .9, "accumulate": 2})])
def test_sigkill_in_a_process_of_its_own(tmp_path, at, more):
    code = textwrap.dedent("""
        import os, signal, sys; sys.path.insert(0, os.environ["TESTS"])
        from test_training import *
        folder, at = sys.argv[1], int(sys.argv[2])
        def killed(step):
            if step == at: os.kill(os.getpid(), signal.SIGKILL)
            return batches(step)
        model, _ = train(folder, source=killed, save_every=4, **json.loads(sys.argv[3]))
        from safetensors.torch import save_file
        save_file(model.state_dict(), f"{folder}/end.safetensors")
    """)
    start = lambda folder, n: subprocess.run([sys.executable, "-c", code, str(folder), str(n), json.dumps(more)], timeout=200,
                                             env={**os.environ, "TESTS": str(Path(__file__).parent)}).returncode
    assert start(tmp_path / "through", 999) == 0
    assert start(tmp_path / "killed", at) == -signal.SIGKILL and not (tmp_path / "killed" / "end.safetensors").exists()
    assert start(tmp_path / "killed", 999) == 0
    assert (tmp_path / "killed" / "end.safetensors").read_bytes() == (tmp_path / "through" / "end.safetensors").read_bytes()


def test_nan_stops_with_the_rows_and_keeps_the_checkpoint(whole, tmp_path):
    def poisoned(step): return batches(step) | ({"x": batches(step)["x"] * torch.nan} if step == 9 else {})
    with pytest.raises(FloatingPointError, match="step 9"): train(tmp_path, source=poisoned, save_every=4)
    failed = json.loads((tmp_path / "failed_batch.json").read_text())
    assert failed["step"] == 9 and failed["batches"][0]["rows"] == batches(9)["rows"].tolist()
    assert failed["terms"]["loss"] == "nan"
    from safetensors.torch import load_file
    kept = load_file(tmp_path / "failed_batch.safetensors")                   # the batch itself
    assert kept["0.x"].isnan().all() and torch.equal(kept["0.y"], batches(9)["y"])
    assert checkpoints(tmp_path)[-1].name == "step_00000008"
    assert same(train(tmp_path, model=toy(7), save_every=4)[0], whole[0])


def test_infinite_gradient_stops_too(tmp_path):
    class Root(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1))
        def forward(self, batch): return {"loss": self.w.abs().sqrt().sum()}          # derivative at 0 is infinite
    with pytest.raises(FloatingPointError, match="gradient"): train(tmp_path, model=Root())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"),
                                   SafetensorError("I/O error: No space left on device (os error 28)")])
def test_a_full_disk_leaves_the_checkpoint_before_intact(whole, tmp_path, monkeypatch, error):
    real = saving.save_file
    def full(tensors, path):
        if "00000012" in str(path) and "optimizer" in str(path): Path(path).write_bytes(b"half"); raise error
        real(tensors, path)
    with monkeypatch.context() as m:
        m.setattr(saving, "save_file", full)
        with pytest.raises(OSError, match="free some space.*step 6, which is intact"): train(tmp_path, save_every=6)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name != ".lock"] == ["step_00000006"]
    assert same(train(tmp_path, model=toy(7), save_every=6)[0], whole[0])


@pytest.mark.parametrize("damage", [lambda p: (p / "model.safetensors").write_bytes(b"x"),
                                    lambda p: (p / "state.json").write_text("{"),
                                    lambda p: (p / "optimizer.safetensors").unlink()])
def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, damage):
    with pytest.raises(RuntimeError): train(tmp_path, source=raising_at(20, RuntimeError()), save_every=6)
    damage(checkpoints(tmp_path)[-1])
    with pytest.warns(UserWarning, match="trying the one before"): model, _ = train(tmp_path, model=toy(7), save_every=6)
    assert same(model, whole[0])


def test_a_half_written_checkpoint_is_not_one(whole, tmp_path):
    part = tmp_path / "checkpoints" / ".step_00000099.part"; part.mkdir(parents=True); (part / "state.json").write_text("{}")
    (tmp_path / "checkpoints" / "step_00000050").mkdir()
    assert checkpoints(tmp_path) == [] and same(train(tmp_path)[0], whole[0])


def test_no_pickle_and_only_so_many_checkpoints(tmp_path):
    train(tmp_path, save_every=3, keep=3)
    assert [p.name[-2:] for p in checkpoints(tmp_path)] == ["18", "21", "24"]
    assert {f.suffix for f in tmp_path.rglob("*") if f.is_file() and f.name != ".lock"} == {".safetensors", ".json", ".jsonl"}
    assert sorted(f.stem for f in checkpoints(tmp_path)[0].iterdir()) == ["model", "optimizer", "random_0", "state"]


def test_another_recipe_or_model_is_refused_other_logging_is_not(tmp_path):
    train(tmp_path, steps=6)
    with pytest.raises(ValueError, match="lr 0.01 → 0.02"): train(tmp_path, steps=6, lr=.02)
    with pytest.raises(ValueError, match="total 6 → 7"): train(tmp_path, steps=7)
    class Wider(Toy):
        def __init__(self): super().__init__(); self.more = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="another model"): train(tmp_path, model=Wider(), steps=6)
    train(tmp_path, steps=6, log_every=3, keep=5, save_every=2)


def test_a_finished_training_returns_at_once(whole, tmp_path):
    train(tmp_path)
    model, curves = train(tmp_path, model=toy(3), source=raising_at(0, AssertionError("no batch may be drawn")))
    assert same(model, whole[0]) and len(curves) == 5


def test_curves_hold_every_term_and_forget_what_is_done_again(tmp_path):
    with pytest.raises(RuntimeError): train(tmp_path, source=raising_at(20, RuntimeError()), save_every=8, log_every=2)
    with open(tmp_path / "curves.jsonl", "a") as f: f.write('{"step": 99, "lo')                      # a line cut by the crash
    seen = []
    _, curves = train(tmp_path, save_every=8, log_every=2, on_log=seen.append)
    assert curves.step.tolist() == list(range(2, 25, 2))
    assert {"loss", "scale", "lr", "gradient_norm", "wait", "seconds"} <= set(curves.columns)
    assert [r["step"] for r in seen] == [18, 20, 22, 24] and curves.loss.iloc[-1] < curves.loss.iloc[0]
    assert curves.notna().all().all()


def test_schedule_agrees_with_transformers():
    from transformers import get_cosine_schedule_with_warmup
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.)
    schedule = get_cosine_schedule_with_warmup(optimizer, 10, 100)
    theirs = []
    for _ in range(100): theirs.append(optimizer.param_groups[0]["lr"]); optimizer.step(); schedule.step()
    assert np.allclose([lr_factor(s, 100, 10) for s in range(10, 100)], theirs[10:])  # warm-up: theirs begins at 0, ours at 1/w
    assert np.allclose([lr_factor(s, 100, .1) for s in range(9)], theirs[1:10]) and lr_factor(99, 100, .1) < 1e-3
    for total in (1, 2, 3):
        for warmup in (0, .1, 5): assert all(0 < lr_factor(s, total, warmup) <= 1 for s in range(total))


def test_rows_come_once_an_epoch():
    for n, b in ((10, 3), (7, 7), (5, 12)):
        drawn = np.concatenate([rows_of_step(i, n, b) for i in range(3 * n)])
        for e in range(3 * b): assert sorted(drawn[e * n:(e + 1) * n]) == list(range(n))
    assert not np.array_equal(rows_of_step(0, 50, 50, 0), rows_of_step(0, 50, 50, 1))
    with pytest.raises(ValueError, match="no rows"): rows_of_step(0, 0, 4)


def test_steps_or_epochs():
    assert total_steps(Settings(epochs=2.5), 7) == 18 and total_steps(Settings(steps=9, epochs=3), 7) == 9
    assert total_steps(Settings(), None) == 60
    with pytest.raises(ValueError, match="steps_per_epoch"): total_steps(Settings(epochs=1), None)
    for bad in ({"lr": 0}, {"steps": 0}, {"precision": "fp8"}, {"accumulate": 0}, {"clip": -1}):
        with pytest.raises(ValueError): Settings(**bad)


def test_no_decay_on_norms_biases_temperature_and_what_timm_spares():
    import timm
    model = nn.ModuleDict({"image": timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1), "toy": Toy()})
    groups = {g["weight_decay"]: set(g["names"]) for g in parameter_groups(model, Settings(weight_decay=.1))}
    assert {"image.pos_embed", "image.cls_token", "toy.log_scale", "toy.net.1.weight", "image.norm.bias"} <= groups[0.]
    assert {"image.patch_embed.proj.weight", "toy.net.0.weight"} <= groups[.1]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_lr_scales_and_frozen_parts(tmp_path):
    model = toy(); model.net[0].requires_grad_(False); before = model.net[0].weight.clone()
    groups = parameter_groups(model, Settings(lr_scales={"net": .1, "net.4": .5}))
    scales = {n: g["lr_scale"] for g in groups for n in g["names"]}
    assert scales == {"net.1.weight": .1, "net.1.bias": .1, "net.4.weight": .5, "net.4.bias": .5, "log_scale": 1.}
    train(tmp_path, model=model, steps=4); assert torch.equal(model.net[0].weight, before)
    with pytest.raises(ValueError, match="no parameter to train"): train(tmp_path / "b", model=toy().requires_grad_(False))


def test_clipping_bounds_the_gradient(tmp_path):
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    class Steep(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(2))
        def forward(self, batch): return {"loss": 1e4 * self.w.sum()}
    norms = []
    hook = register_optimizer_step_pre_hook(lambda o, *_: norms.append(o.param_groups[0]["params"][0].grad.norm().item()))
    try:
        _, curves = train(tmp_path, model=Steep(), steps=2, clip=.5, log_every=1)
        train(tmp_path / "free", model=Steep(), steps=2, clip=0)
    finally: hook.remove()
    assert curves.gradient_norm.iloc[0] > 1e4 and max(norms[:2]) <= .5 and min(norms[2:]) > 1e4


def test_tied_weights_and_extras_are_saved_once_and_restored(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__(); self.a = nn.Linear(2, 2, bias=False); self.b = nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight
        def forward(self, batch): return {"loss": F.cross_entropy(self.b(self.a(batch["x"])), batch["y"])}
    def go(folder, source):
        seed_everything(0); model, mean = Tied(), nn.Linear(2, 2, bias=False)
        def update(step, m):
            with torch.no_grad(): mean.weight.lerp_(m.a.weight, .1)
        train(folder, model=model, source=source, save_every=5, after_step=update, extras={"mean": mean})
        return model, mean
    one = go(tmp_path / "a", batches)
    with pytest.raises(RuntimeError): go(tmp_path / "b", raising_at(13, RuntimeError()))
    two = go(tmp_path / "b", batches)
    assert same(one[0], two[0]) and same(one[1], two[1]) and two[0].a.weight is two[0].b.weight


def test_random_states_survive_json():
    draw = lambda: (random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist())
    random.gauss(0, 1); np.random.randn(); tensors, plain = random_state(); first = draw()
    set_random_state(tensors, json.loads(json.dumps(plain))); assert draw() == first


def test_model_without_a_loss_and_mode_restored(tmp_path):
    class Silent(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1))
        def forward(self, batch): return {"los": self.w.sum()}
    with pytest.raises(KeyError, match="'loss'"): train(tmp_path, model=Silent())
    model = toy().eval(); train(tmp_path / "b", model=model, steps=2); assert not model.training


def test_plain_lines_when_nobody_watches(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KEEPFIT_HEADLESS", "1")
    train(tmp_path, verbose=True, steps=50)
    out, err = capsys.readouterr()
    assert 9 <= out.count("\n") <= 11 and "50/50" in out and "\r" not in out + err


def test_bf16_on_a_cpu_trains(tmp_path):
    _, curves = train(tmp_path, precision="bf16"); assert np.isfinite(curves.loss).all()


def test_averaged_weights_resume_and_end_in_the_model(tmp_path):
    through, _ = train(tmp_path / "a", ema=.9, accumulate=2, steps=12)
    with pytest.raises(RuntimeError): train(tmp_path / "b", ema=.9, accumulate=2, steps=12, save_every=5, source=raising_at(15, RuntimeError()))
    assert same(train(tmp_path / "b", model=toy(7), ema=.9, accumulate=2, steps=12, save_every=5)[0], through)
    raw, _ = train(tmp_path / "c", ema=.9, ema_final=False, accumulate=2, steps=12)
    plain, _ = train(tmp_path / "d", accumulate=2, steps=12)
    assert same(raw, plain) and not same(raw, through)                                     # watching does not change the training
    again, _ = train(tmp_path / "a", model=toy(3), ema=.9, accumulate=2, steps=12); assert same(again, through)


def test_averaged_weights_are_the_formula(tmp_path):
    seen = []
    model, _ = train(tmp_path, ema=.5, steps=10, after_step=lambda step, m: seen.append(m.net[0].weight.detach().clone()))
    mean = seen[0].clone()
    for s, w in enumerate(seen[1:], 2): mean.lerp_(w, 1 - min(1 - s ** (-2 / 3), .5))
    assert torch.allclose(model.net[0].weight, mean, atol=1e-7)


def test_fp16_trains_and_its_scaler_is_resumed(tmp_path):
    through, curves = train(tmp_path / "a", precision="fp16", log_every=1)
    assert np.isfinite(curves.loss).all() and (curves.loss_scale > 1).all() and curves.loss[-8:].mean() < curves.loss[:8].mean()
    with pytest.raises(RuntimeError): train(tmp_path / "b", precision="fp16", log_every=1, save_every=6, source=raising_at(15, RuntimeError()))
    state = json.loads((checkpoints(tmp_path / "b")[-1] / "state.json").read_text())
    assert state["scaler"]["scale"] == curves.loss_scale.iloc[11]
    resumed, again = train(tmp_path / "b", model=toy(7), precision="fp16", log_every=1, save_every=6)
    assert same(resumed, through) and timeless(again).equals(timeless(curves))


def test_fp16_skips_an_overflow_and_stops_when_all_overflow(tmp_path):
    class Steep(nn.Module):
        def __init__(self, slope): super().__init__(); self.w, self.slope = nn.Parameter(torch.ones(1)), slope
        def forward(self, batch): return {"loss": (self.slope * self.w).sum()}
    model, curves = train(tmp_path / "a", model=Steep(1e34), precision="fp16", log_every=1, clip=0)          # 65536 · 1e34 overflows fp32 once or twice
    assert curves.loss_scale.iloc[0] < 65536 and curves.gradient_norm.isna().any() and np.isfinite(model.w.item())
    with pytest.raises(FloatingPointError, match="fp16; try bf16"):
        class Never(Steep):
            def forward(self, batch): return {"loss": (self.w - self.w.detach()).abs().sqrt().sum()}
        train(tmp_path / "b", model=Never(1.), precision="fp16", steps=60)


def test_nan_is_found_late_but_exactly_and_never_saved(tmp_path):
    def poisoned(step): return batches(step) | ({"x": batches(step)["x"] * torch.nan} if step >= 9 else {})
    with pytest.raises(FloatingPointError, match="step 9"): train(tmp_path, source=poisoned, save_every=4, log_every=1000)
    assert checkpoints(tmp_path)[-1].name == "step_00000008"
    assert all(torch.isfinite(v).all() for v in saving.load_file(checkpoints(tmp_path)[-1] / "model.safetensors").values() if v.is_floating_point())


def test_loss_terms_are_fetched_once_per_row(tmp_path, monkeypatch):
    "No term is read from the device within a step: the numbers of ten steps come in one transfer."
    calls, real = [], training.Training.fetch
    monkeypatch.setattr(training.Training, "fetch", lambda self: (calls.append(len(self.pending)), real(self))[1])
    train(tmp_path, steps=100, log_every=10)
    assert calls == [10] * 10


def test_compiled_model_trains_the_same(whole, tmp_path):
    class Quiet(nn.Module):
        def __init__(self): super().__init__(); self.net = nn.Linear(2, 2)
        def forward(self, batch): return {"loss": F.cross_entropy(self.net(batch["x"]), batch["y"])}
    seed_everything(0); a, b = Quiet(), Quiet(); b.load_state_dict(a.state_dict())
    train(tmp_path / "a", model=a, steps=6); train(tmp_path / "b", model=b, steps=6, compile="eager")
    assert same(a, b) and "net.weight" in saving.load_file(checkpoints(tmp_path / "b")[-1] / "model.safetensors")


def test_tensorboard_gets_the_rows_and_forgets_what_is_done_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    with pytest.raises(RuntimeError): train(tmp_path, log_to=["tensorboard"], log_every=2, save_every=8, source=raising_at(20, RuntimeError()))
    _, curves = train(tmp_path, log_to=["tensorboard"], log_every=2, save_every=8)
    events = EventAccumulator(str(tmp_path / "tensorboard")); events.Reload()
    assert [e.step for e in events.Scalars("loss")] == curves.step.tolist()
    assert np.allclose([e.value for e in events.Scalars("loss")], curves.loss)


def test_wandb_only_when_named(tmp_path, monkeypatch):
    import types
    rows, made = [], []
    run = types.SimpleNamespace(log=lambda r, step: rows.append(step), finish=lambda: made.append("finished"))
    fake = types.ModuleType("wandb"); fake.init = lambda **k: (made.append(k["project"]), run)[1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(tmp_path / "a", steps=10); assert not made
    monkeypatch.setenv("WANDB_PROJECT", "retina")
    train(tmp_path / "b", steps=10, log_to=["wandb"]); assert rows == [5, 10] and made == ["retina", "finished"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"): train(tmp_path / "c", steps=10, log_to=["wandb"])


def test_a_second_training_in_the_folder_is_refused_also_from_another_process(tmp_path):
    code = f"from keepfit_nb.checkpoints import locked\nwith locked({str(tmp_path)!r}): print('held', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="another training is running"): train(tmp_path, steps=2)
        other.kill(); other.wait()                                        # SIGKILL: the lock goes with the process
        train(tmp_path, steps=2)
    finally: other.kill()


def test_waiting_for_data_shows_in_the_curves(tmp_path):
    import time
    def slow(step): time.sleep(.05); return batches(step)
    _, curves = train(tmp_path / "a", source=slow, steps=10); assert (curves.wait > .5).all() and (curves.wait <= 1).all()


def test_launch_command_says_what_is_missing():
    words = launch_command("keepfit_nb.pretraining", "s.json", 8)
    assert words[:3] == [sys.executable, "-m", "accelerate.commands.launch"] and words[-3:] == ["-m", "keepfit_nb.pretraining", "s.json"]
    assert "--multi_gpu" in words and words[words.index("--num_processes") + 1] == "8"
    with pytest.raises(ValueError, match="at least one process"): launch_command("m", "s.json", 1, machines=2)
    with pytest.raises(ValueError, match="port"): launch_command("m", "s.json", 4, machines=2)
    many = launch_command("m", "s.json", 16, machines=2, rank=1, address="10.0.0.1", port=29500)
    assert many[many.index("--machine_rank") + 1] == "1" and many[many.index("--main_process_ip") + 1] == "10.0.0.1"


@pytest.mark.slow
def test_launch_starts_processes_and_reports_failures(tmp_path, monkeypatch, capsys):
    (tmp_path / "job_of_test.py").write_text(textwrap.dedent("""
        import json, sys
        from keepfit_nb.training import get_accelerator
        settings = json.load(open(sys.argv[1])); a = get_accelerator("cpu")
        from pathlib import Path
        Path(sys.argv[1]).with_name(f"rank_{a.process_index}").write_text(f"of {a.num_processes} lr {settings['lr']}")
        if a.is_main_process: print("hello from the job", flush=True)
        if settings["steps"] == 1: raise SystemExit("refused")
    """))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    launch("job_of_test", Settings(lr=.5), tmp_path / "run", processes=2, cpu=True)
    assert "hello from the job" in capsys.readouterr().out                # their output is passed on
    assert [(tmp_path / "run" / f"rank_{r}").read_text() for r in (0, 1)] == ["of 2 lr 0.5"] * 2
    with pytest.raises(RuntimeError, match="job_of_test ended with code"): launch("job_of_test", Settings(steps=1), tmp_path / "run", processes=2, cpu=True)


GRADIENTS = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from safetensors.torch import save_file

class Pair(nn.Module):
    "A small two-tower model with the contrastive loss over the embeddings of all processes."
    def __init__(self, norm):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16) if norm else nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 8))
        self.b, self.scale = nn.Linear(5, 8), nn.Parameter(torch.tensor(2.))
    def forward(self, x, y):
        def gather(v): return torch.cat(dist.nn.functional.all_gather(v)) if dist.is_initialized() else v
        u, v = (gather(F.normalize(e, dim=1)) for e in (self.a(x), self.b(y)))
        logits = self.scale.exp() * u @ v.T; target = torch.arange(len(u))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

import torch.distributed.nn
torch.manual_seed(0); torch.set_default_dtype(torch.float64)
model, x, y = Pair(sys.argv[2] == "batch"), torch.randn(12, 6), torch.randn(12, 5)
rank, n = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if n > 1: dist.init_process_group("gloo"); net = DDP(model)
else: net = model
half = slice(rank * 12 // n, (rank + 1) * 12 // n)
net(x[half], y[half]).backward()
if rank == 0: save_file({k: p.grad.contiguous() for k, p in model.named_parameters()}, sys.argv[1])
if n > 1: dist.barrier(); dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_gradients_of_two_processes_are_those_of_the_joined_batch(tmp_path, norm):
    "Contrastive loss, float64. With batch norm they differ: each process has the statistics of its own half."
    from safetensors.torch import load_file
    script = tmp_path / "grads.py"; script.write_text(GRADIENTS)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name, words in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])):
        done = subprocess.run([sys.executable, *words, str(script), str(tmp_path / name), norm], env=env, timeout=280, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    error = max(((one[k] - two[k]).norm() / one[k].norm()).item() for k in one if one[k].norm() > 1e-12)
    assert error <= 1e-9 if norm == "layer" else error > 1e-2, error


@pytest.mark.slow
def test_two_processes_share_gradients(tmp_path):
    "Half of each batch on each of two processes ends at the weights of one process with the whole batch."
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent("""
        import os, sys; sys.path.insert(0, os.environ["TESTS"])
        from test_training import *
        from safetensors.torch import save_file
        class Mean(nn.Module):
            def __init__(self): super().__init__(); self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
            def forward(self, batch): return {"loss": F.cross_entropy(self.net(batch["x"]), batch["y"])}
        rank, n = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        def share(step): return {k: v[rank::n] for k, v in batches(step).items()}
        def dying(step):
            if step == 9 and sys.argv[2] == "die": raise RuntimeError("crash")
            return share(step)
        seed_everything(rank)                  # each process begins with other weights; the wrapper hands out the first one's
        model, _ = train(sys.argv[1], model=Mean(), source=dying, steps=12, save_every=4)
        if rank == 0: save_file(model.state_dict(), f"{sys.argv[1]}/end.safetensors")
    """))
    env = {**os.environ, "TESTS": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
           "ACCELERATE_USE_CPU": "true"}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    call = lambda words: subprocess.run(words, env=env, timeout=280, capture_output=True, text=True)
    done = call([sys.executable, str(script), str(tmp_path / "one"), "go"]); assert done.returncode == 0, done.stderr[-2000:]
    done = call([*two, str(tmp_path / "two"), "go"]); assert done.returncode == 0, done.stderr[-3000:]
    assert call([*two, str(tmp_path / "dead"), "die"]).returncode != 0
    done = call([*two, str(tmp_path / "dead"), "go"]); assert done.returncode == 0, done.stderr[-3000:]
    from safetensors.torch import load_file
    one, both, dead = (load_file(tmp_path / k / "end.safetensors") for k in ("one", "two", "dead"))
    assert all(torch.allclose(one[k], both[k], atol=1e-5) for k in one) and all(torch.equal(dead[k], both[k]) for k in both)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_bf16_and_resume(tmp_path):
    model = toy()
    curves = fit(model, batches, Settings(steps=24, lr=1e-2, save_every=6), tmp_path / "a", device="cuda", verbose=False)
    assert next(model.parameters()).is_cuda and np.isfinite(curves.loss).all()
    with pytest.raises(RuntimeError):
        fit(toy(), raising_at(13, RuntimeError()), Settings(steps=24, lr=1e-2, save_every=6), tmp_path / "b", device="cuda")
    again = toy(7); fit(again, batches, Settings(steps=24, lr=1e-2, save_every=6), tmp_path / "b", device="cuda", verbose=False)
    for a, b in zip(model.state_dict().values(), again.state_dict().values()):
        assert torch.allclose(a.float(), b.float(), atol=1e-4)
    cpu = toy(); fit(cpu, batches, Settings(steps=2), tmp_path / "c", device="cpu", verbose=False)
    assert not next(cpu.parameters()).is_cuda
