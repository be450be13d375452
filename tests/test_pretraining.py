"KeepFIT: batches, losses, saving and loading, asking, the stage; killed and resumed."
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from keepfit_nb.encoders import Settings as EncoderSettings, make_tokenizer, text_config
from keepfit_nb.images import ImageCache
from keepfit_nb.batches import Batches, Rows, caption_faults, some_sentences, stream_rows
from keepfit_nb.labels import first_weights, train_supervised
from keepfit_nb.pretraining import KeepFIT, Settings, _members, as_pixels, find_pretrained, joint_targets, sentences_for, start_model, train_member, variant_settings
from keepfit_nb.profiles import check_section, write_json

TOY = EncoderSettings(image_model="test_resnet", text_width=32, text_layers=1, text_heads=2, vocab_size=200, projection=16)
CLASSES = {"CFP": ["normal", "glaucoma"], "FFA": ["normal", "central serous chorioretinopathy"], "OCT": ["normal", "macular hole"]}


def make_cache(folder: Path, n_public=30, n_elite=12, size=32, captions=True) -> ImageCache:
    "A cache as chapter 06 leaves it: noise whose brightness tells the class."
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for role, n in (("public", n_public), ("elite", n_elite), ("evaluation", 6)):
        lines = []
        for k in range(n):
            modality = ("CFP", "FFA", "OCT")[k % 3]; name = CLASSES[modality][k // 3 % 2]
            text = f"The image {k} shows {name}. A second sentence. And a third." if role == "elite" and captions else ""
            lines.append(dict(image=f"{role}{k}.png", modality=modality, caption=text, categories=[name], attributes=[], source="toy", patient=str(k),
                              split="test" if role == "evaluation" else "train", row=len(rows)))
            rows.append(rng.integers(0, 120, (3, size, size)) + 100 * (name != "normal"))
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    np.save(folder / "images.npy", np.stack(rows).astype(np.uint8))
    write_json(folder / "cache.json", dict(size=size, crop=True))
    return ImageCache(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy"); make_cache(folder / "cache")
    tokenizer, _ = make_tokenizer(TOY, ["the image shows a normal retina, glaucoma, a macular hole or central serous chorioretinopathy. a second sentence."] * 3)
    tokenizer.save_pretrained(folder / "tokenizer"); text_config(TOY, len(tokenizer)).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def cache(place): return ImageCache(place / "cache")


def settings(**more) -> Settings: return Settings(**{"batch_size": 12, "steps": 4, "precision": "fp32", "save_seconds": 0, **more})


@pytest.fixture(scope="module")
def model(place, cache): return start_model(TOY, cache, place / "tokenizer", settings(), seed=3).eval()


# ---- batches

@pytest.mark.parametrize("n, size", [(1, 5), (7, 3), (50, 8)])
def test_streams_are_endless_and_fair(n, size):
    drawn = sum((stream_rows(k * size, size, n, "x", 1) for k in range(20)), [])
    assert drawn == stream_rows(0, 20 * size, n, "x", 1)
    for epoch in range(len(drawn) // n): assert sorted(drawn[epoch * n:(epoch + 1) * n]) == list(range(n))


@pytest.mark.parametrize("balance", [0., .5, 1.])
def test_rows_fill_every_step_and_use_every_record(balance):
    records = [dict(modality=m) for m, n in (("CFP", 31), ("FFA", 4), ("OCT", 2)) for _ in range(n)]
    rows = Rows(records, 7, seed=2, balance=balance)
    drawn = [rows(s) for s in range(120)]
    assert {len(d) for d in drawn} == {7} and set(sum(drawn, [])) == set(range(37))
    assert Rows(records, 7, seed=2, balance=balance)(97) == drawn[97]
    share = np.mean([records[k]["modality"] == "OCT" for d in drawn for k in d])
    assert abs(share - (2 ** (1 - balance) / sum(n ** (1 - balance) for n in (31, 4, 2)))) < .01


def test_variants_see_equally_many_images(cache, model):
    for switches in (dict(elite=False, semantic=False), dict(semantic=False), {}):
        batches = Batches(cache, model.text_encoder.tokenize, variant_settings(settings(), switches), 0)
        assert len(batches(0)["pixels"]) == 12 and batches.steps_per_epoch() == 4
        assert batches(0)["elite"].sum() == (6 if switches.get("elite", True) else 0)


def test_public_words_are_names_and_elite_words_are_captions(cache, model):
    b = Batches(cache, model.text_encoder.tokenize, settings(), 0)(0)
    texts = [model.text_encoder.tokenizer.decode(t, skip_special_tokens=True) for t in b["tokens"]["input_ids"][b["text"]]]
    assert all("second sentence" in t for t, e in zip(texts, b["elite"]) if e) and not any("second" in t for t, e in zip(texts, b["elite"]) if not e)
    assert len(b["tokens"]["input_ids"]) < len(b["text"])            # equal texts are encoded once


def test_elite_larger_than_public_and_modalities_missing(tmp_path, place, model):
    cache = make_cache(tmp_path, n_public=3, n_elite=30)
    batches = Batches(cache, model.text_encoder.tokenize, settings(), 0)
    used = {int(k) for s in range(8) for k, e in zip(batches(s)["index"], batches(s)["elite"]) if e}
    assert used == set(range(30))                                    # neither set is cut to the other's length
    cache = make_cache(tmp_path / "two", n_public=2, n_elite=1)      # no OCT at all, elite in one modality only
    out = start_model(TOY, cache, place / "tokenizer", settings()).train()(Batches(cache, model.text_encoder.tokenize, settings(), 0)(0))
    assert torch.isfinite(out["loss"])


@pytest.mark.parametrize("make, word", [(dict(n_elite=0), "no elite pair"), (dict(captions=False), "captions are empty"), (dict(n_public=0), "no public image")])
def test_empty_sets(tmp_path, model, make, word):
    with pytest.raises(ValueError, match=word): Batches(make_cache(tmp_path, **make), model.text_encoder.tokenize, settings(), 0)


def test_empty_elite_does_not_matter_to_public(tmp_path, model):
    batches = Batches(make_cache(tmp_path, n_elite=0), model.text_encoder.tokenize, settings(elite=False, semantic=False), 0)
    assert len(batches(0)["pixels"]) == 12


def test_sentences():
    rng = np.random.default_rng(0); text = "One. Two! Three?"
    assert all(set(some_sentences(text, rng).replace(".", "").replace("!", "").replace("?", "").split()) <= {"One", "Two", "Three"} for _ in range(20))
    assert some_sentences(" Whole ", rng) == "Whole"


@pytest.mark.parametrize("switch, word", [(dict(sematic=True), "did you mean 'semantic'"), (dict(elite=False), "needs elite"), (dict(balance=2), "balance")])
def test_wrong_switches(switch, word):
    with pytest.raises(ValueError, match=word): variant_settings(settings(), switch, "mine")


# ---- KeepFIT V1

TWO = TOY.model_copy(update=dict(text_layers=2))      # V1 averages layers 1, 2 and the last


@pytest.fixture(scope="module")
def v1_place(place, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("v1") / "tokenizer"; shutil.copytree(place / "tokenizer", folder)
    text_config(TWO, AutoConfig.from_pretrained(folder).vocab_size).save_pretrained(folder)
    return folder


def test_v1_losses_are_those_of_chapter_12_3(v1_place, cache):
    from keepfit_nb.first_version import first_version_losses
    s = settings(compat="v1", augment=False); net = start_model(TWO, cache, v1_place, s, seed=3).eval()
    batch = Batches(cache, net.text_encoder.tokenize, s, 0)(1); n = batch["n_public"]
    with torch.no_grad():
        found = net.losses(batch); v = net.encode(batch["pixels"])[0]
        hidden = net.text_encoder.model(**batch["tokens"], output_hidden_states=True).hidden_states
        vectors = torch.stack([torch.stack([h[i].mean(0) for h in (hidden[1], hidden[2], hidden[-1])]).mean(0) for i in range(len(hidden[0]))])      # padding counts
        w = net.text_projection(vectors)[batch["text"]]
        want = first_version_losses(v[:n], w[:n], batch["drawn"], v[n:], w[n:], net.reference, net.scale, 100.)
    for k in ("public", "elite", "reference", "loss"): assert torch.allclose(found[k], want[k], atol=1e-5), k
    assert len(batch["drawn"]) == n and set(batch["drawn"]) <= {c for names in CLASSES.values() for c in names}


def test_v1_text_vectors_depend_on_their_neighbours_and_ours_do_not(v1_place, place, cache, model):
    net = start_model(TWO, cache, v1_place, settings(compat="v1"), seed=3)
    gap = lambda m: np.abs(m.embed_text(["normal"])[0] - m.embed_text(["normal", "the image shows a normal retina, glaucoma, a macular hole."])[0]).max()
    assert gap(net) > 1e-3 and gap(model) < 1e-5


@pytest.mark.parametrize("switches", [dict(semantic=False), dict(semantic=False, elite=False), {}])
def test_v1_trains_and_comes_back(switches, v1_place, cache, tmp_path):
    net = train_member(tmp_path / "m", TWO, cache, v1_place, settings(compat="v1", **switches), 0, "cpu", {}, verbose=False)
    again = KeepFIT.from_pretrained(tmp_path / "m"); assert again.settings.compat == "v1"
    assert np.allclose(again.embed_text(["normal", "glaucoma"]), net.embed_text(["normal", "glaucoma"]), atol=1e-6)


def test_v1_knows_no_newer_part():
    with pytest.raises(ValueError, match="compat: v1 knows no decoder, no memory"): settings(compat="v1", decoder=True, memory=5)


# ---- the model

def test_variants_start_from_the_same_weights(place, cache):
    one, two = (start_model(TOY, cache, place / "tokenizer", variant_settings(settings(), s), seed=5).state_dict()
                for s in (dict(elite=False, semantic=False), dict(memory=8)))
    assert all(torch.equal(one[k], two[k]) for k in one)
    other = start_model(TOY, cache, place / "tokenizer", settings(), seed=6).state_dict()
    assert not all(torch.equal(one[k], other[k]) for k in one)


REFERENCE = {"reference", "leave_one_out", "gate", "confidence", "skill", "age"}

@pytest.mark.parametrize("switches, terms", [(dict(elite=False, semantic=False), {"public"}), (dict(semantic=False), {"public", "elite"}),
                                             (dict(memory=8), {"public", "elite", *REFERENCE}), (dict(joint=True, semantic=False), {"joint"}), (dict(public=False, semantic=False), {"elite"})])
def test_loss_terms_and_gradients(place, cache, switches, terms):
    s = variant_settings(settings(), switches)
    m = start_model(TOY, cache, place / "tokenizer", s).train()
    out = m(Batches(cache, m.text_encoder.tokenize, s, 0)(0)); out["loss"].backward()
    assert set(out) == terms | {"loss", "scale"} and not [n for n, p in m.named_parameters() if p.grad is None]


def test_joint_targets_keep_captions_apart():
    T = joint_targets(torch.tensor([[1., 0.]] * 4), torch.tensor([False, True, True, False]))
    assert T[1, 2] == T[2, 1] == 0 and T[0, 1] > 0 and torch.allclose(T.sum(1), torch.ones(4))


# ---- asking

def test_every_form_of_image(model, cache, tmp_path):
    array = cache.batch([0])[0].permute(1, 2, 0).numpy(); before = array.copy()
    Image.fromarray(array).save(tmp_path / "eye.png")
    want, _ = model(array, ["normal", "glaucoma"])
    for form in (tmp_path / "eye.png", str(tmp_path / "eye.png"), Image.fromarray(array), [array], array[None], torch.from_numpy(array).permute(2, 0, 1)):
        assert np.allclose(model(form, ["normal", "glaucoma"])[0], want, atol=1e-6)
    probs, logits = model([array, array, array], ["normal", "glaucoma"], modality="CFP")
    assert probs.shape == logits.shape == (3, 2) and np.allclose(probs.sum(1), 1) and (array == before).all()


def test_answers_do_not_depend_on_neighbours(model, cache):
    rows = cache.batch(range(8))
    assert np.allclose(model.embed_images(rows)[:1], model.embed_images(rows[:1]), atol=1e-5)
    assert np.allclose(model.embed_text(["normal", "a far longer sentence about the retina"])[:1], model.embed_text(["normal"]), atol=1e-5)
    assert np.allclose(model.embed_images(rows, batch_size=3), model.embed_images(rows), atol=1e-5)


def test_folder_of_images(model, cache, tmp_path):
    for k in (2, 0, 1): Image.fromarray(cache.batch([k])[0].permute(1, 2, 0).numpy()).save(tmp_path / f"{k}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    files = [tmp_path / f"{k}.png" for k in range(3)]
    assert np.allclose(model.embed_images(tmp_path), model.embed_images(files), atol=1e-6)
    assert model.embed_images(tmp_path, projected=False).shape == (3, model.image_encoder.dim)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image file"): model.embed_images(tmp_path / "empty")


@pytest.mark.parametrize("call, word", [(lambda m: m(np.zeros((8, 8, 3), np.uint8), []), "list of texts"), (lambda m: m(np.zeros((8, 8, 3), np.uint8), "glaucoma"), "list of texts"),
                                        (lambda m: m([], ["a"]), "no image"), (lambda m: m.embed_text([]), "one or more"), (lambda m: m.embed_text([" "]), "empty"),
                                        (lambda m: m(np.zeros((8, 8, 3), np.uint8), ["normal"], "CPF"), "did you mean 'CFP'")])
def test_wrong_questions(model, call, word):
    with pytest.raises(ValueError, match=word): call(model)


def test_missing_image(model):
    with pytest.raises(FileNotFoundError): model("nowhere.png", ["normal"])


def test_names_and_sentences():
    assert len(sentences_for("glaucoma", "CFP")) == 1 and len(sentences_for("something unheard of")) == 3
    assert sentences_for("The macula is flat.") == ["The macula is flat."]
    assert as_pixels(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), 32).shape == (4, 3, 32, 32)


# ---- saving and loading

def test_round_trip(model, cache, tmp_path):
    torch.manual_seed(1); expected = torch.rand(3); torch.manual_seed(1)
    loaded = KeepFIT.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert torch.equal(torch.rand(3), expected)                      # loading leaves the random numbers alone
    assert loaded.config == model.config and not loaded.training
    assert np.array_equal(loaded.embed_images(cache.batch([1, 2])), model.embed_images(cache.batch([1, 2])))
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "tokenizer"]
    write_json(tmp_path / "default.json", dict(variant="m", seed="."))
    assert find_pretrained(tmp_path).resolve() == (tmp_path / "m").resolve()


def test_wrong_places(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="no finished KeepFIT model"): KeepFIT.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"): KeepFIT.from_pretrained("./nowhere/at/all")
    with pytest.raises(FileNotFoundError, match="neither a folder here nor"): KeepFIT.from_pretrained("nobody/no-such-model")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file"): KeepFIT.from_pretrained(tmp_path / "file")


def test_damaged_and_foreign_weights(tmp_path, model):
    folder = model.save_pretrained(tmp_path / "m"); state = load_file(folder / "model.safetensors")
    name = "image_projection.linear.weight"
    save_file({k: v for k, v in state.items() if k != name}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"missing {name}"): KeepFIT.from_pretrained(folder)
    save_file(state | {name: torch.zeros(2, 2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"is \(2, 2\)"): KeepFIT.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="damaged"): KeepFIT.from_pretrained(folder)
    write_json(folder / "config.json", dict(format="other"))
    with pytest.raises(ValueError, match="does not describe"): KeepFIT.from_pretrained(folder)


def test_no_space_left(tmp_path, model, monkeypatch):
    def full(*_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr("keepfit_nb.pretraining.save_file", full)
    with pytest.raises(OSError, match="Free some space"): model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m" / "config.json").exists() and not list((tmp_path / "m").glob("*.part"))


# ---- training

def test_training_is_repeatable_and_resumable(place, cache, tmp_path):
    s, args = settings(memory=8, save_every=2), (TOY, cache, place / "tokenizer")
    whole = train_member(tmp_path / "a", *args, s, 1, "cpu", verbose=False)
    assert not (tmp_path / "a" / "checkpoints").exists() and (tmp_path / "a" / "curves.jsonl").exists()

    class Stop(Exception): pass
    before = KeepFIT.losses
    def stop_at_three(self, batch):
        if batch["step"] == 3: raise Stop
        return before(self, batch)
    KeepFIT.losses = stop_at_three
    try:
        with pytest.raises(Stop): train_member(tmp_path / "b", *args, s, 1, "cpu", verbose=False)
    finally: KeepFIT.losses = before
    with pytest.raises(FileNotFoundError, match="training has not ended"): KeepFIT.from_pretrained(tmp_path / "b")
    resumed = train_member(tmp_path / "b", *args, s, 1, "cpu", verbose=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def test_it_learns(place, cache, tmp_path):
    m = train_member(tmp_path, TOY, cache, place / "tokenizer", settings(steps=40, lr=3e-3), 0, "cpu", verbose=False)
    rows = [json.loads(x) for x in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert rows[-1]["public"] < rows[0]["public"] - .3 and rows[-1]["elite"] < rows[0]["elite"]
    assert m.embed_images(cache.batch([0])).shape == (1, 16)


SMALL = {"captions": {"n_public": 20, "n_elite": 8, "n_eval_train": 4, "n_eval_test": 4, "size": 32}, "images": {"size": 32},
         "encoders": TOY.model_dump(), "pretraining": {"steps": 40, "batch_size": 12, "save_every": 4}}
STAGE = "import json, sys; from keepfit_nb.profiles import open_run; open_run('13_pretraining', 'smoke', sys.argv[1], 0, json.loads(sys.argv[2])).need('13_pretraining')"


def run_stage(folder, overrides=SMALL, **kwargs):
    return subprocess.Popen([sys.executable, "-c", STAGE, str(folder), json.dumps(overrides)], env={**os.environ, "OMP_NUM_THREADS": "1"}, **kwargs)


@pytest.mark.slow
def test_stage_killed_and_resumed(tmp_path):
    "SIGKILL in the second member: the first is kept, the second goes on; weights as if nothing had happened."
    assert run_stage(tmp_path / "whole").wait(600) == 0
    victim, folder = run_stage(tmp_path / "cut"), tmp_path / "cut" / "13_pretraining"
    deadline = time.time() + 600
    while time.time() < deadline and not list(folder.glob("keepfit/0/checkpoints/step_*/state.json")) and victim.poll() is None: time.sleep(.05)
    victim.send_signal(signal.SIGKILL); victim.wait()
    first = folder / "public" / "0" / "model.safetensors"; stamp = first.stat().st_mtime_ns
    assert not (folder / "default.json").exists()
    assert run_stage(tmp_path / "cut").wait(600) == 0
    assert first.stat().st_mtime_ns == stamp                          # what was finished is not trained again
    for variant in ("public", "keepfit"):
        a, b = (load_file(tmp_path / f / "13_pretraining" / variant / "0" / "model.safetensors") for f in ("whole", "cut"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert KeepFIT.from_pretrained(tmp_path / "cut").about["variant"] == "keepfit"
    assert run_stage(tmp_path / "cut", SMALL | {"seeds": [0, 1]}).wait(600) == 0            # one seed more: two trainings, not four
    assert first.stat().st_mtime_ns == stamp and (folder / "keepfit" / "1" / "config.json").exists()


def test_what_a_model_depends_on():
    "Another seed or variant leaves a member's mark as it is; its own switches, the section, the encoders and the first stages do not."
    def marks(sections={}, seeds=(0,), **variants):
        sections = {"encoders": TOY.model_dump()} | sections
        run = SimpleNamespace(seeds=list(seeds), variants=variants or {"public": {"elite": False}, "keepfit": {}}, device=torch.device("cpu"), profile=SimpleNamespace(sections=sections),
                              section=lambda name, cls: check_section(sections.get(name, {}), cls, name))
        return _members(run, run.section("pretraining", Settings))
    plain = marks()
    assert set(plain) == {"labels_first", "public/0", "keepfit/0"}
    assert plain.items() < marks(seeds=(0, 1)).items() and plain.items() < marks(public={"elite": False}, keepfit={}, v1={"compat": "v1"}).items()
    other = marks(public={"elite": False, "memory": 0}, keepfit={})
    assert other["public/0"] != plain["public/0"] and other["keepfit/0"] == plain["keepfit/0"]
    for changed in ({"pretraining": {"steps": 7}}, {"encoders": TOY.model_dump() | {"projection": 24}}, {"appearance": {"steps": 3}}):
        assert all(marks(changed)[k] != v for k, v in plain.items()), changed


# ---- bad input, hub, several processes

def test_captions_that_cannot_be_read(model):
    tokenizer = model.text_encoder.tokenizer
    with pytest.warns(UserWarning, match="will be cut"): assert caption_faults(["normal retina " * 60] * 3, tokenizer, 16)["cut"] == 1
    with pytest.warns(UserWarning, match="unknown to the tokenizer"): caption_faults(["黄斑区可见出血及渗出。"] * 3, tokenizer, 64)
    assert caption_faults(["the image shows a normal retina."], tokenizer, 64) == dict(cut=0, unknown=0)


def test_one_image_is_no_batch():
    with pytest.raises(ValueError, match="greater than or equal to 2"): settings(batch_size=1)


def test_all_labels_equal(tmp_path, place):
    cache = make_cache(tmp_path); files = [tmp_path / f"{r}.jsonl" for r in ("public", "elite")]
    for f in files: f.write_text("".join(json.dumps(json.loads(x) | dict(categories=["normal"])) + "\n" for x in f.read_text().splitlines()))
    m = start_model(TOY, cache, place / "tokenizer", settings()).train(); out = m(Batches(cache, m.text_encoder.tokenize, settings(), 0)(0))
    assert torch.isfinite(out["loss"]) and out["public"].item() >= np.log(6) - 1e-4        # nothing to tell apart: no loss below that of guessing


def test_nan_pixels_are_refused(model):
    with pytest.raises(ValueError, match="NaN|finite"): model(np.full((8, 8, 3), np.nan), ["normal", "glaucoma"])


def test_a_checkpoint_cut_in_half(model, tmp_path):
    folder = model.save_pretrained(tmp_path / "m"); file = folder / "model.safetensors"; file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"): KeepFIT.from_pretrained(folder)


def test_two_runs_in_one_folder(place, cache, tmp_path):
    from keepfit_nb.checkpoints import locked
    with locked(tmp_path), pytest.raises(RuntimeError, match="another training is running"):
        train_member(tmp_path, TOY, cache, place / "tokenizer", settings(), 0, "cpu", verbose=False)


def test_parts_say_what_they_begin_with(place, cache):
    for switch in ("text_pretraining", "token_prediction"):
        with pytest.raises(ValueError, match=f"{switch}: true begins with what stage"): start_model(TOY, cache, place / "tokenizer", settings(**{switch: True}))
    with pytest.raises(ValueError, match="appearance: true needs token_prediction"): settings(appearance=True)
    with pytest.raises(ValueError, match="no image to train on"): settings(public=False, elite=False, semantic=False)


def test_memory_is_not_published(place, cache, tmp_path):
    m = train_member(tmp_path, TOY, cache, place / "tokenizer", settings(memory="all"), 0, "cpu", verbose=False)
    assert m.reference.memory is not None and not [k for k in load_file(tmp_path / "model.safetensors") if "memory" in k]
    assert np.allclose(KeepFIT.from_pretrained(tmp_path).embed_images(cache.batch([1])), m.embed_images(cache.batch([1])), atol=1e-6)


def test_captions_are_written(place, cache, tmp_path):
    s = settings(decoder=True, caption=dict(width=16, layers=1, heads=2, max_tokens=24))
    train_member(tmp_path, TOY, cache, place / "tokenizer", s, 0, "cpu", verbose=False)
    loaded = KeepFIT.from_pretrained(tmp_path)
    said = loaded.caption(cache.batch([0, 1, 2]), "greedy")
    assert len(said) == 3 and all(isinstance(x, str) for x in said)
    with pytest.raises(RuntimeError, match="without a caption decoder"): start_model(TOY, cache, place / "tokenizer", settings()).caption(cache.batch([0]))


@pytest.fixture
def hub():
    "A small hub on this machine: it takes what is pushed, shows it, and hands it out. (address, what was asked, files by name)"
    import base64, hashlib, threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    seen, files, commit = [], {}, "1" * 40
    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def answer(self, body, **headers):
            body = body if isinstance(body, bytes) else json.dumps(body).encode(); self.send_response(200)
            for k, v in dict({"Content-Length": str(len(body)), "X-Repo-Commit": commit}, **headers).items(): self.send_header(k, v)
            self.end_headers()
            if self.command != "HEAD": self.wfile.write(body)
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)); seen.append((self.path, body)); here = f"http://{self.headers['Host']}/me/eye"
            if self.path.endswith("/repos/create"): return self.answer(dict(url=here))
            if "preupload" in self.path: return self.answer(dict(files=[dict(path=f["path"], uploadMode="regular", shouldIgnore=False) for f in json.loads(body)["files"]]))
            if "/commit/" not in self.path: return self.answer({})
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file": files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(dict(commitUrl=f"{here}/commit/1", commitOid=commit, pullRequestUrl=None))
        def do_GET(self):
            plain = self.path.split("?")[0]; name = plain.partition("/resolve/")[2].partition("/")[2]
            if name: return self.answer(files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"')
            if "/tree/" in plain: return self.answer([dict(type="file", path=n, size=len(b), oid=hashlib.sha1(b).hexdigest()) for n, b in files.items()])
            self.answer(dict(id="me/eye", modelId="me/eye", sha=commit, siblings=[dict(rfilename=n) for n in files]))
        do_HEAD = do_GET
        def log_message(self, *_): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub); threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen, files
    server.shutdown(); server.server_close()


FROM_HUB = """
import sys, numpy as np
from PIL import Image
from keepfit_nb import KeepFIT
model = KeepFIT.from_pretrained("me/eye")
np.save(sys.argv[2], model.embed_images([Image.open(sys.argv[1])]))
"""


def test_a_model_goes_to_the_hub_and_comes_back(model, hub, monkeypatch, tmp_path):
    "The hub's own client, both ways: a private repository is asked for, the files arrive; another process loads them by name and says the same of an eye."
    import huggingface_hub.constants as constants
    from keepfit_nb.profiles import DISCLAIMER
    address, seen, files = hub; monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    where = model.push_to_hub("me/eye", endpoint=address, token="hf_test")
    created = json.loads(next(b for p, b in seen if p.endswith("/repos/create")))
    assert (created.get("private") or created.get("visibility") == "private") and "me/eye" in where
    assert {"README.md", "config.json", "model.safetensors", "tokenizer/tokenizer.json"} <= set(files)
    card = files["README.md"].decode()
    assert DISCLAIMER in card and "| parts | public, elite, semantic |" in card and f"| image encoder | {TOY.image_model} |" in card and 'from_pretrained("' in card
    eye = tmp_path / "eye.png"; Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(eye)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))} | dict(HF_ENDPOINT=address, HF_HOME=str(tmp_path / "hub"), HF_HUB_DISABLE_TELEMETRY="1", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    done = subprocess.run([sys.executable, "-c", FROM_HUB, str(eye), str(tmp_path / "v.npy")], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.allclose(np.load(tmp_path / "v.npy"), model.embed_images([Image.open(eye)]), atol=1e-6)


def plan_file(folder: Path, place: Path, cache: ImageCache, s: Settings) -> Path:
    "The file that says what to train, as chapter 08 shows it."
    return write_json(folder.with_suffix(".json"), dict(folder=str(folder), encoders=TOY.model_dump(mode="json"), cache=str(cache.folder), tokenizer_folder=str(place / "tokenizer"),
                                                        settings=s.model_dump(mode="json"), seed=0, device="cpu", about={"variant": "x"}, label="x", stages={}))


@pytest.mark.slow
def test_accelerate_launch_trains_as_a_call_does(place, cache, tmp_path):
    "The command itself, with the module as people type it: the weights are those of `train_member`."
    s = settings(memory="all", steps=3); plan = plan_file(tmp_path / "launched", place, cache, s)
    done = subprocess.run([Path(sys.executable).with_name("accelerate"), "launch", "--num_processes", "1", "--cpu", "-m", "keepfit_nb.pretraining", "--settings", plan],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    called = train_member(tmp_path / "called", TOY, cache, place / "tokenizer", s, 0, "cpu", {"variant": "x"}, verbose=False).state_dict()
    launched = KeepFIT.from_pretrained(tmp_path / "launched"); assert launched.about["variant"] == "x"
    for k, v in launched.state_dict().items(): assert torch.allclose(v, called[k], atol=1e-6), k


@pytest.mark.slow
def test_two_processes_train_one_model_on_one_machine_or_two(place, cache, tmp_path):
    "Two CPU processes as the stage starts them, by torch's own launcher: one saved model, finite losses over the joined batch. Started by hand, the same call on each machine with its own number (here both are this one), they leave the same weights."
    import socket
    from keepfit_nb.pretraining import train_anywhere
    from keepfit_nb.training import launch_command
    s = settings(memory="all", steps=3)
    train_anywhere(tmp_path / "near", TOY, cache, place / "tokenizer", s, 0, "cpu", {}, "near", {}, processes=2)
    rows = [json.loads(x) for x in (tmp_path / "near" / "curves.jsonl").read_text().splitlines()]
    assert np.isfinite(rows[-1]["loss"]) and rows[0]["elite"] > np.log(8)                 # among 12 captions, not 6
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    plan = plan_file(tmp_path / "far", place, cache, s); env = os.environ | dict(ACCELERATE_USE_CPU="true", KEEPFIT_HEADLESS="1")
    machines = [subprocess.Popen(launch_command("keepfit_nb.pretraining", plan, 2, cpu=True, machines=2, rank=r, port=port), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for r in (0, 1)]
    try: said = [m.communicate(timeout=600)[0] for m in machines]
    finally: [m.kill() for m in machines]
    assert [m.returncode for m in machines] == [0, 0], said[0][-2000:] + said[1][-2000:]
    near, far = (KeepFIT.from_pretrained(tmp_path / n) for n in ("near", "far")); weights = far.state_dict()
    assert all(torch.allclose(v, weights[k], atol=1e-6) for k, v in near.state_dict().items()) and far.embed_images(cache.batch([0])).shape == (1, 16)


# ---- labels first

def test_all_variants_of_a_seed_begin_with_the_taught_encoder(place, cache, tmp_path):
    first, s = first_weights(tmp_path / "first", TOY, cache, settings(lr=.01), 5, 6, verbose=False), settings(labels_first=6)
    stages = dict(labels_first=first)
    one, two = (start_model(TOY, cache, place / "tokenizer", variant_settings(s, v), 5, stages=stages).state_dict() for v in ({}, dict(elite=False, semantic=False)))
    cold = start_model(TOY, cache, place / "tokenizer", settings(), 5).state_dict()
    encoder = [k for k in cold if k.startswith("image_encoder.")]
    assert all(torch.equal(one[k], two[k]) for k in two) and sum(not torch.equal(one[k], cold[k]) for k in encoder) > len(encoder) / 2
    assert all(torch.equal(one[k], cold[k]) for k in cold if k not in encoder)            # only the image encoder was taught
    marks = (first / "model.safetensors").stat().st_mtime_ns
    assert first_weights(first, TOY, cache, settings(), 5, 6) == first and (first / "model.safetensors").stat().st_mtime_ns == marks and not (first / "checkpoints").exists()
    trained = train_member(tmp_path / "m", TOY, cache, place / "tokenizer", s, 5, "cpu", verbose=False, stages=stages)
    assert KeepFIT.from_pretrained(tmp_path / "m").settings.labels_first == 6 and not torch.equal(trained.state_dict()[encoder[0]], one[encoder[0]])


def test_first_weights_that_do_not_fit(place, cache, tmp_path):
    s = settings(labels_first=2)
    with pytest.raises(ValueError, match="labels_first: 2 begins with what stage labels_first left"): start_model(TOY, cache, place / "tokenizer", s)
    with pytest.raises(FileNotFoundError, match="no finished labels-first training"): start_model(TOY, cache, place / "tokenizer", s, stages=dict(labels_first=tmp_path))
    first_weights(tmp_path, TOY.model_copy(update=dict(image_model="resnet10t")), cache, settings(), 0, 1, verbose=False)
    with pytest.raises(ValueError, match="are of another encoder"): start_model(TOY, cache, place / "tokenizer", s, stages=dict(labels_first=tmp_path))
    file = tmp_path / "model.safetensors"; file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match="is damaged"): start_model(TOY, cache, place / "tokenizer", s, stages=dict(labels_first=tmp_path))
    with pytest.raises(ValueError, match="greater than or equal to 0"): settings(labels_first=-1)


def test_first_weights_killed_in_the_middle(cache, tmp_path, monkeypatch):
    whole = load_file(first_weights(tmp_path / "a", TOY, cache, settings(), 1, 6, verbose=False) / "model.safetensors")
    import keepfit_nb.labels as labels
    class Killed(BaseException): pass
    original, seen = labels.Supervised.forward, []
    def stopping(self, batch):
        seen.append(batch["step"])
        if len(seen) == 4: raise Killed
        return original(self, batch)
    monkeypatch.setattr(labels.Supervised, "forward", stopping)
    with pytest.raises(Killed): first_weights(tmp_path / "b", TOY, cache, settings(), 1, 6, verbose=False)
    monkeypatch.setattr(labels.Supervised, "forward", original)
    assert not (tmp_path / "b" / "classes.json").exists()
    resumed = load_file(first_weights(tmp_path / "b", TOY, cache, settings(), 1, 6, verbose=False) / "model.safetensors")
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)


def test_a_baseline_of_labels_has_the_steps_of_both(cache, tmp_path):
    train_supervised(tmp_path, TOY, cache, settings(steps=3), 0, verbose=False, more=4)
    assert json.loads((tmp_path / "curves.jsonl").read_text().splitlines()[-1])["step"] == 7


# ---- when a part begins, the other contrast, a fresh memory

@pytest.mark.parametrize("accumulate, world", [(1, 1), (4, 1), (1, 2), (4, 2)])
def test_progress_is_counted_in_optimiser_steps(place, cache, model, monkeypatch, accumulate, world):
    from keepfit_nb.training import steps_of_epoch
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank)); monkeypatch.setenv("WORLD_SIZE", str(world))
        b = Batches(cache, model.text_encoder.tokenize, settings(steps=10, accumulate=accumulate), 0)
        assert [b(step * accumulate + k)["progress"] for step in (0, 4, 9) for k in (0, accumulate - 1)] == [0., 0., .4, .4, .9, .9]
    images = steps_of_epoch(42, 12, accumulate) * 12 * accumulate * world                       # of one epoch of 42 records
    assert 42 <= images < 42 + 12 * accumulate * world
    assert Batches(cache, model.text_encoder.tokenize, settings(steps=None, epochs=2, accumulate=accumulate), 0).total == 2 * steps_of_epoch(42, 12, accumulate)


@pytest.mark.parametrize("part, start, weight", [("reference", dict(reference_start=.5, injection=dict(loss="infonce", candidates="modality")), 3.), ("caption", dict(caption_start=.5, decoder=True), .7)])
def test_a_part_counts_from_its_moment(place, cache, part, start, weight):
    s = settings(augment=False, memory=0, **start, **{f"{part}_weight": weight}); net = start_model(TOY, cache, place / "tokenizer", s, 3).train()
    batch = Batches(cache, net.text_encoder.tokenize, s, 0, net.decoder.tokenize if net.decoder else None)(0)
    def loss(progress):
        torch.manual_seed(0); out = net.losses(batch | dict(progress=progress)); return out["loss"].item(), out[part].item()
    (before, _), (after, term) = loss(.499), loss(.5)
    assert abs(term) > 1e-4 and after - before == pytest.approx(weight * term, rel=1e-3)


@pytest.mark.parametrize("joint", [False, True])
def test_siglip_is_a_choice(place, cache, tmp_path, joint):
    from keepfit_nb.contrastive import share_targets, siglip_loss
    s = settings(contrast="siglip", joint=joint, augment=False)
    net = start_model(TOY, cache, place / "tokenizer", s, 3).train(); batch = Batches(cache, net.text_encoder.tokenize, s, 0)(0)
    v, w = torch.nn.functional.normalize(torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    terms, n, labels = net.contrast(v, w, batch), batch["n_public"], batch["categories"]
    if joint: assert terms["joint"].item() == pytest.approx(siglip_loss(v, w, joint_targets(labels, batch["elite"]), 10., -10.).item(), rel=1e-5)
    else:
        assert terms["public"].item() == pytest.approx(siglip_loss(v[:n], w[:n], share_targets(labels[:n]), 10., -10.).item(), rel=1e-5)
        assert terms["elite"].item() == pytest.approx(siglip_loss(v[n:], w[n:], None, 10., -10.).item(), rel=1e-5)
    trained = train_member(tmp_path / "m", TOY, cache, place / "tokenizer", s, 3, "cpu", verbose=False); again = KeepFIT.from_pretrained(tmp_path / "m")
    assert again.temperature.bias.item() == trained.temperature.bias.item() != -10.
    assert np.allclose(again.classify(cache.batch([0]), ["normal", "glaucoma"])[0], trained.classify(cache.batch([0]), ["normal", "glaucoma"])[0], atol=1e-6)
    with pytest.raises(ValueError, match="compat: v1 has CLIP's loss"): settings(contrast="siglip", compat="v1")


@pytest.mark.parametrize("every, fresh", [(2, True), (3, False), (0, False)])
def test_the_memory_is_renewed(place, cache, tmp_path, every, fresh):
    s = settings(memory="all", injection=dict(refresh=every), lr=.01, augment=False)      # four steps
    net = train_member(tmp_path / str(every), TOY, cache, place / "tokenizer", s, 3, "cpu", verbose=False); memory, pairs = net.reference.memory, cache.records("elite")
    kept = memory.index[memory.index >= 0]; rows = [k for k in range(memory.size) if memory.index[k] >= 0]
    assert len(kept) == 12 == len(set(kept.tolist()))
    now = net.embed_images(cache.batch([pairs[k]["row"] for k in kept.tolist()])), net.embed_text([pairs[k]["caption"] for k in kept.tolist()])
    same = [np.allclose(getattr(memory, side)[rows].numpy(), x, atol=1e-5) for side, x in zip(("image", "text"), now)]
    assert same == [fresh, fresh] and net.eval().training is False
