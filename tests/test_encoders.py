"Image and text encoders: layouts, weights, the mask, and every way weights can be out of reach."
import json, subprocess, sys, time

import pytest, timm, torch
from safetensors.torch import load_file, save_file

from keepfit_nb import encoders, weights
from keepfit_nb.encoders import (ImageEncoder, Projection, Settings, build_image_encoder, build_stage, build_text_encoder,
                                 make_tokenizer, masked_mean, text_config, timm_model, train_tokenizer, vocabulary_texts)
from keepfit_nb.profiles import check_section, open_run, real_folder, seed_everything

TEXTS = ["A fundus photograph of glaucoma with a large cup.", "Hard exudates and microaneurysms, few haemorrhages.",
         "Macular hole with subretinal fluid.", "Normal retina."] * 4
needs_real = pytest.mark.skipif(not (real_folder() / "weights").is_dir(), reason="no real weights: set $KEEPFIT_REAL")


@pytest.fixture(scope="module")
def run(tmp_path_factory): return open_run("07_encoders", "smoke", tmp_path_factory.mktemp("run"))


@pytest.fixture
def offline(monkeypatch): monkeypatch.setattr(weights.hub, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder, s = tmp_path_factory.mktemp("words"), Settings(vocab_size=300)
    tokenizer = train_tokenizer(TEXTS, s.vocab_size, s.max_tokens)
    tokenizer.save_pretrained(folder); text_config(s, len(tokenizer)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name, size", [
    ("resnet10t", (64, 64)), ("resnet10t", (51, 97)), ("mobilenetv3_small_100", (90, 110)), ("tf_efficientnet_lite0", (65, 64)),
    ("convnext_atto", (96, 64)), ("vit_tiny_patch16_224", (64, 64)), ("vit_tiny_patch16_224", (90, 110)),
    ("deit_tiny_distilled_patch16_224", (64, 96)), ("swin_tiny_patch4_window7_224", (64, 96)),
    ("eva02_tiny_patch14_224", (60, 112)), ("pit_xs_224", (224, 224)), ("resnext26ts", (97, 97)), ("regnetx_002", (97, 64)), ("convnext_atto", (97, 97)),
    ("efficientnet_lite0", (97, 130)), ("densenet121", (97, 97)), ("swinv2_cr_tiny_224", (97, 97)), ("edgenext_xx_small", (97, 97)), ("mobilevit_xxs", (64, 97)),
    ("pvt_v2_b0", (97, 97)), ("ghostnet_100", (97, 97)), ("xcit_nano_12_p16_224", (97, 97)), ("fastvit_t8", (97, 97)),
    pytest.param("vit_base_patch32_siglip_256", (64, 64), marks=pytest.mark.slow)])
def test_every_layout_gives_pooled_and_a_grid(name, size):
    encoder = ImageEncoder(timm_model(name)).eval()
    with torch.no_grad():
        x = torch.randn(2, 3, *size); pooled, grid = encoder.forward_grid(x); again, patches = encoder(x)
    assert pooled.shape == (2, encoder.dim) and grid.shape[-1] == encoder.patch_dim
    assert grid.shape[1] * grid.shape[2] == patches.shape[1]
    assert torch.equal(patches, grid.flatten(1, 2)) and torch.equal(pooled, again)
    if size[0] != size[1] and grid.shape[1] * grid.shape[2] > 8: assert (grid.shape[1] < grid.shape[2]) == (size[0] < size[1])


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_the_grid_points_where_the_image_does(name):
    "A change in the top right corner of the image changes the top right of the grid most."
    seed_everything(0); encoder = ImageEncoder(timm_model(name)).eval()
    x = torch.zeros(1, 3, 128, 192); y = x.clone(); y[..., :24, -24:] = 2.
    with torch.no_grad(): change = (encoder.forward_grid(y)[1] - encoder.forward_grid(x)[1]).norm(dim=-1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert row == 0 and column == change.shape[1] - 1


def test_resnet_pooled_is_the_mean_of_its_patches():
    encoder = ImageEncoder(timm_model("resnet10t")).eval()
    with torch.no_grad(): pooled, patches = encoder(torch.randn(2, 3, 64, 64))
    assert torch.allclose(pooled, patches.mean(1), atol=1e-5)


def test_normalise_bytes_and_floats_alike_and_leaves_the_input():
    encoder = ImageEncoder(timm_model("resnet10t")); images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    before = images.clone()
    assert torch.allclose(encoder.normalise(images), encoder.normalise(images.float() / 255)) and torch.equal(images, before)
    nearly_black = torch.ones(1, 3, 8, 8, dtype=torch.uint8)                              # decided by type, not by content
    assert torch.allclose(encoder.normalise(nearly_black), encoder.normalise(nearly_black.float() / 255))


def test_local_weights_load_whole_and_in_single_precision(tmp_path):
    full = timm.create_model("resnet10t", num_classes=7)
    save_file({k: v.half() if v.is_floating_point() else v for k, v in full.state_dict().items()}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        state = build_image_encoder(Settings(image_pretrained=str(path))).model.state_dict()
        assert all(v.dtype in (torch.float32, torch.int64) for v in state.values())
        assert all(torch.equal(v, full.state_dict()[k].half().to(v.dtype)) for k, v in state.items())


def test_home_and_variables_in_paths(tmp_path, monkeypatch):
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setenv("WEIGHTS_HERE", str(tmp_path)); monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("$WEIGHTS_HERE/w.safetensors", "~/w.safetensors"): build_image_encoder(Settings(image_pretrained=path))


@pytest.mark.parametrize("change, says", [(lambda s: s.pop("conv1.0.weight"), "missing conv1.0.weight"),
                                          (lambda s: s.update({"strange.weight": torch.ones(1)}), "unknown strange.weight"),
                                          (lambda s: s.update({"conv1.0.weight": torch.ones(2)}), "has shape")])
def test_weights_that_almost_fit_are_an_error(tmp_path, change, says):
    state = timm.create_model("resnet10t", num_classes=3).state_dict(); change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=says): build_image_encoder(Settings(image_pretrained=str(tmp_path / "w.safetensors")))


def test_broken_or_missing_weight_files(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not a tensor file"); (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read"):
        build_image_encoder(Settings(image_pretrained=str(tmp_path / "w.safetensors")))
    with pytest.raises(ValueError, match="cannot be read"): build_image_encoder(Settings(image_pretrained=str(tmp_path / "w.pth")))
    for path in ("nowhere.safetensors", tmp_path / "w.txt", tmp_path / "sub", "ture"):
        with pytest.raises(FileNotFoundError, match="safetensors"): build_image_encoder(Settings(image_pretrained=str(path)))


def test_unknown_names_give_the_nearest():
    with pytest.raises(ValueError, match="did you mean"): build_image_encoder(Settings(image_model="resnet_50"))
    with pytest.raises(ValueError, match="image_model"):
        check_section({"image_modle": "resnet10t"}, Settings, "section 'encoders'")


def test_auto_keeps_the_architecture_and_warns_true_raises(offline):
    start = time.perf_counter()
    with pytest.warns(UserWarning, match="RANDOM"):
        encoder = build_image_encoder(Settings(image_model="resnet10t", image_pretrained="auto"))
    shapes = lambda model: {k: v.shape for k, v in model.state_dict().items()}
    assert shapes(encoder.model) == shapes(timm_model("resnet10t"))
    with pytest.raises(FileNotFoundError, match="image_pretrained"):
        build_image_encoder(Settings(image_model="resnet10t", image_pretrained=True))
    assert time.perf_counter() - start < 20


def test_a_silent_network_does_not_hang(monkeypatch):
    "An address that never answers: the question is given up in time, and asked once."
    monkeypatch.setattr(weights.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights.hub, "ENDPOINT", "http://hub.invalid")
    def silent(*args, **kwargs): time.sleep(3); raise OSError("no answer")
    monkeypatch.setattr(weights.urllib.request, "urlopen", silent); monkeypatch.setattr(weights, "_answers", {})
    start = time.perf_counter()
    assert not encoders.hub_reachable(.2) and not encoders.hub_reachable(.2)
    assert time.perf_counter() - start < 2
    with encoders.hub_or_cache(): assert encoders.hub.HF_HUB_OFFLINE
    assert not encoders.hub.HF_HUB_OFFLINE


def test_masked_mean_is_the_loop_and_survives_an_empty_row():
    h, m = torch.randn(3, 5, 4, dtype=torch.float64), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    out = masked_mean(h, m)
    assert torch.allclose(out[0], h[0, :2].mean(0)) and torch.allclose(out[1], h[1].mean(0)) and (out[2] == 0).all()


@pytest.mark.parametrize("states", [[-1], [1, 2, -1]])
def test_batch_mates_do_not_matter(tokenizer_folder, states):
    encoder = build_text_encoder(Settings(vocab_size=300, text_states=states), tokenizer_folder).eval()
    long = " ".join(TEXTS)
    with torch.no_grad():
        alone, together = encoder(["glaucoma"])[0], encoder(["glaucoma", long, "normal retina"])[0]
        naive = lambda texts: encoder.token_states(texts)[0].mean(1)[0]
        assert torch.allclose(alone, together, atol=1e-5)
        assert not torch.allclose(naive(["glaucoma"]), naive(["glaucoma", long]), atol=1e-3)          # V1's defect


def test_text_encoder_inputs(tokenizer_folder):
    encoder = build_text_encoder(Settings(max_tokens=16), tokenizer_folder).eval()
    assert encoder.tokenize(["word " * 100])["input_ids"].shape == (1, 16)
    with torch.no_grad(): assert torch.equal(encoder(["a", "b c"]), encoder(encoder.tokenize(["a", "b c"])))
    assert torch.isfinite(encoder(["", "正常", "🙂"])).all()       # nothing known in it: still a vector
    for bad in ([], "glaucoma"):
        with pytest.raises(ValueError, match="list of texts"): encoder.tokenize(bad)
    with pytest.raises(ValueError, match="text_states"): build_text_encoder(Settings(text_states=[9]), tokenizer_folder)
    with pytest.raises(FileNotFoundError, match="07_encoders"): build_text_encoder(Settings(), tokenizer_folder / "none")


def test_every_parameter_of_both_encoders_is_used(tokenizer_folder):
    "Unused parameters would stop training on several GPUs."
    text, image = build_text_encoder(Settings(), tokenizer_folder), build_image_encoder(Settings())
    pooled, patches = image(torch.randn(2, 3, 64, 64)); (text(TEXTS[:2]).sum() + pooled.sum()).backward()
    assert not [n for m in (text, image) for n, p in m.named_parameters() if p.grad is None]


def test_tokenizer_covers_its_texts_and_says_what_it_lacks():
    tokenizer = train_tokenizer(TEXTS, 300)
    assert not any(tokenizer.unk_token_id in tokenizer(t)["input_ids"] for t in TEXTS)
    assert len(tokenizer) <= 300 and tokenizer.pad_token_id == 0
    assert tokenizer.decode(tokenizer("Macular hole")["input_ids"], skip_special_tokens=True) == "macular hole"
    with pytest.raises(ValueError, match="no text"): train_tokenizer(["", " "])


def test_another_process_without_opencv_pyarrow_and_datasets_learns_the_same_vocabulary(tmp_path):
    "The library's trainer numbers letters in the order of a randomly seeded hash table; ours must not show it."
    texts = vocabulary_texts(); first = train_tokenizer(texts, 1500).get_vocab()
    assert all(train_tokenizer(texts, 1500).get_vocab() == first for _ in range(3))
    code = ("import sys, json\nfor m in ('cv2', 'pyarrow', 'datasets'): sys.modules[m] = None\n"
            "import keepfit_nb.training\nfrom keepfit_nb.encoders import train_tokenizer, vocabulary_texts\n"
            "json.dump(train_tokenizer(vocabulary_texts(), 1500).get_vocab(), open(sys.argv[1], 'w'))")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "v.json")], check=True, timeout=120)
    assert json.loads((tmp_path / "v.json").read_text()) == first


def test_vocabulary_comes_from_elite_captions_only(tmp_path):
    (tmp_path / "elite.jsonl").write_text('{"caption": "zwiebelmuster one"}\n{"caption": null}\n', encoding="utf-8")
    (tmp_path / "evaluation.jsonl").write_text('{"caption": "geheimwort two"}\n', encoding="utf-8")
    texts = vocabulary_texts(tmp_path)
    assert any("zwiebelmuster" in t for t in texts) and not any("geheimwort" in t for t in texts)


def test_stage_leaves_all_that_is_needed_to_rebuild(run, tmp_path):
    metrics = build_stage(run, tmp_path, Settings(vocab_size=500), {})
    assert metrics["vocabulary"] <= 500 and metrics["tokenizer"] == "trained" and metrics["unknown_tokens"] < .01
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} <= {p.name for p in (tmp_path / "tokenizer").iterdir()}
    seed_everything(1); one = build_text_encoder(Settings(vocab_size=500), tmp_path / "tokenizer")
    seed_everything(1); two = build_text_encoder(Settings(vocab_size=500), tmp_path / "tokenizer")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    json.dumps(metrics)


def test_known_text_model_out_of_reach_keeps_its_architecture(run, tmp_path, offline):
    s = Settings(text_model="sentence-transformers/all-MiniLM-L6-v2", text_pretrained="auto")
    with pytest.warns(UserWarning, match="vocabulary is learned"): metrics = build_stage(run, tmp_path, s, {})
    with pytest.warns(UserWarning, match="RANDOM"): encoder = build_text_encoder(s, tmp_path / "tokenizer")
    assert encoder.dim == 384 and len(encoder.model.encoder.layer) == 6 and metrics["tokenizer"] == "trained"
    with pytest.raises(FileNotFoundError): make_tokenizer(s.model_copy(update={"text_pretrained": "true"}), TEXTS)
    with pytest.raises(FileNotFoundError, match="architecture is unknown"): text_config(Settings(text_model="some/model"), 10)
    with pytest.raises(FileNotFoundError, match="config.json"): text_config(Settings(text_pretrained="no/such/folder"), 10)


def test_text_weights_from_a_local_folder(tmp_path, tokenizer_folder):
    source = build_text_encoder(Settings(), tokenizer_folder); folder = tmp_path / "model"
    source.model.save_pretrained(folder); source.tokenizer.save_pretrained(folder)
    s = Settings(text_pretrained=str(folder))
    tokenizer, origin = make_tokenizer(s, TEXTS)
    loaded = build_text_encoder(s, tokenizer_folder)
    assert origin == "local" and tokenizer.get_vocab() == source.tokenizer.get_vocab()
    # no stray re-initialisation
    assert all(torch.equal(v, source.model.state_dict()[k]) for k, v in loaded.model.state_dict().items())
    with pytest.raises(ValueError, match="another architecture"):
        text_config(Settings(text_pretrained=str(folder), text_layers=3), len(tokenizer))
    state = load_file(folder / "model.safetensors"); state.pop(next(k for k in state if "query.weight" in k))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 tensors"): build_text_encoder(s, tokenizer_folder)
    with pytest.raises(ValueError, match="no published weights"):
        build_text_encoder(Settings(text_pretrained="true"), tokenizer_folder)


def test_projection_gives_unit_vectors():
    seed_everything(0); p, x = Projection(8, 5), torch.randn(4, 8)
    assert torch.allclose(p(x).norm(dim=1), torch.ones(4)) and torch.allclose(p(x), p(100 * x), atol=1e-6)
    assert p.linear.bias is None


# ---- sizes, channels, training less -----------------------------------------------------------------------------------

@pytest.mark.parametrize("name, size", [("maxvit_pico_rw_256", 64), ("coatnet_nano_rw_224", 64), ("swin_tiny_patch4_window7_224", 96)])
def test_models_that_must_know_their_size(name, size):
    encoder = build_image_encoder(Settings(image_model=name), size).eval()
    with torch.no_grad(): pooled, grid = encoder.forward_grid(torch.randn(1, 3, size, size))
    assert pooled.shape == (1, encoder.dim) and grid.shape[1] == grid.shape[2] and grid.shape[3] == encoder.patch_dim


@pytest.mark.parametrize("name, size", [("swin_tiny_patch4_window7_224", 97), ("maxvit_pico_rw_256", 97), ("coatnet_nano_rw_224", 97), ("mixer_s32_224", 97)])
def test_a_size_that_an_architecture_cannot_take_is_said(name, size):
    with pytest.raises(ValueError, match="images.size"), torch.no_grad(): build_image_encoder(Settings(image_model=name))(torch.randn(1, 3, size, size))


def test_other_errors_pass_through(monkeypatch):
    encoder = build_image_encoder(Settings())
    def broken(x): raise RuntimeError("CUDA out of memory")
    monkeypatch.setattr(encoder.model, "forward_features", broken)
    with pytest.raises(RuntimeError, match="out of memory"): encoder(torch.randn(1, 3, 64, 64))


def test_grey_counts_as_three_channels_and_others_are_refused():
    encoder = build_image_encoder(Settings()); grey = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    assert torch.equal(encoder.normalise(grey), encoder.normalise(grey.repeat(1, 3, 1, 1)))
    for bad in (torch.zeros(2, 4, 8, 8), torch.zeros(3, 8, 8)):
        with pytest.raises(ValueError, match="expected"): encoder.normalise(bad)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_frozen_layers_keep_weights_and_statistics(name):
    seed_everything(0); encoder = build_image_encoder(Settings(image_model=name, image_freeze=2)).train()
    frozen = [n for n, p in encoder.named_parameters() if not p.requires_grad]
    assert frozen and len(frozen) < sum(1 for _ in encoder.parameters())
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    opt = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], .1)
    encoder(torch.randn(2, 3, 64, 64))[0].square().mean().backward(); opt.step()
    after = encoder.state_dict(); owner = {n.rpartition(".")[0] for n in frozen}
    for k, v in before.items():
        if k.rpartition(".")[0] in owner: assert torch.equal(v, after[k]), k
    assert any(not torch.equal(before[k], after[k]) for k in before)
    whole = build_image_encoder(Settings(image_model=name, image_freeze=-1)); assert not any(p.requires_grad for p in whole.parameters())
    with pytest.raises(ValueError, match="freeze"): build_image_encoder(Settings(image_model=name, image_freeze=99))


def test_text_freezing(tokenizer_folder):
    one = build_text_encoder(Settings(text_freeze=1), tokenizer_folder)
    fixed = {n for n, p in one.named_parameters() if not p.requires_grad}
    assert any("word_embeddings" in n for n in fixed) and any("layer.0." in n for n in fixed) and not any("layer.1." in n for n in fixed)
    with pytest.raises(ValueError, match="freeze"): build_text_encoder(Settings(text_freeze=3), tokenizer_folder)
    assert not any(p.requires_grad for p in build_text_encoder(Settings(text_freeze=-1), tokenizer_folder).parameters())


def test_lora_starts_at_the_model_and_trains_little(tokenizer_folder):
    make = lambda **more: (seed_everything(0), build_text_encoder(Settings(**more), tokenizer_folder).eval())[1]
    plain, lora = make(), make(text_lora=4)
    with torch.no_grad(): assert torch.allclose(plain(TEXTS[:3]), lora(TEXTS[:3]), atol=1e-6)
    learned = {n: p for n, p in lora.named_parameters() if p.requires_grad}
    assert learned and all("lora_" in n for n in learned) and sum(p.numel() for p in learned.values()) < .1 * sum(p.numel() for p in plain.parameters())
    lora(TEXTS[:2]).sum().backward(); assert all(p.grad is not None for p in learned.values())
    again = make(text_lora=4); again.load_state_dict(lora.state_dict())                              # a saved model can be rebuilt
    with pytest.raises(ValueError, match="no attention"): build_image_encoder(Settings(image_lora=4))
    with pytest.raises(ValueError, match="image_freeze"): build_image_encoder(Settings(image_model="vit_tiny_patch16_224", image_lora=4, image_freeze=1))


@pytest.mark.parametrize("image", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
def test_checkpointing_gives_the_same_gradients(tokenizer_folder, image):
    def gradients(on):
        seed_everything(0); s = Settings(checkpointing=on, image_model=image, text_dropout=0)
        i, t = build_image_encoder(s), build_text_encoder(s, tokenizer_folder)
        i.eval() if image != "vit_tiny_patch16_224" else i.train()
        torch.manual_seed(1); loss = i(torch.randn(2, 3, 64, 64))[0].square().mean() + t(TEXTS[:2]).square().mean(); loss.backward()
        return {n: p.grad for m in (i, t) for n, p in m.named_parameters()}
    a, b = gradients(False), gradients(True)
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def family(name, vocabulary):
    import transformers as T
    small = dict(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, pad_token_id=0)
    return dict(bert=lambda: T.BertConfig(**small, max_position_embeddings=40), roberta=lambda: T.RobertaConfig(**small, max_position_embeddings=40),
                distilbert=lambda: T.DistilBertConfig(vocab_size=vocabulary, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=40, pad_token_id=0),
                modernbert=lambda: T.ModernBertConfig(**small, max_position_embeddings=40, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, global_attn_every_n_layers=1),
                electra=lambda: T.ElectraConfig(**small, embedding_size=16, max_position_embeddings=40), deberta=lambda: T.DebertaV2Config(**small, max_position_embeddings=40))[name]()


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "electra", "deberta"])
def test_text_families(name, tokenizer_folder, tmp_path):
    "A small random model of each family: as a folder, as its masked language model, and as a bare file of either."
    import transformers as T
    tokenizer = T.PreTrainedTokenizerFast.from_pretrained(tokenizer_folder); config = family(name, len(tokenizer))
    lm = T.AutoModelForMaskedLM.from_config(config); folder = tmp_path / "mlm"
    lm.save_pretrained(folder); tokenizer.save_pretrained(folder)
    place = tmp_path / "stage"; tokenizer.save_pretrained(place); text_config(Settings(text_model=str(folder), text_pretrained=str(folder)), 0).save_pretrained(place)
    encoder = build_text_encoder(Settings(text_model=str(folder), text_pretrained=str(folder)), place).eval()
    with torch.no_grad():
        alone, together = encoder(["glaucoma"])[0], encoder(["glaucoma", " ".join(TEXTS)])[0]      # cut to what the family's positions allow
        assert encoder.dim == 32 and torch.allclose(alone, together, atol=1e-4)
        torch.save(lm.state_dict(), tmp_path / "mlm.bin")
        bare = build_text_encoder(Settings(text_model=str(folder), text_pretrained=str(tmp_path / "mlm.bin")), place).eval()
        assert torch.equal(bare(["glaucoma"])[0], alone)
    assert [n for n, p in build_text_encoder(Settings(text_model=str(folder), text_pretrained=str(folder), text_freeze=1), place).named_parameters() if p.requires_grad]


def test_an_older_folder_with_a_torch_file(tokenizer_folder, tmp_path):
    source = build_text_encoder(Settings(), tokenizer_folder); folder = tmp_path / "old"
    source.model.config.save_pretrained(folder); source.tokenizer.save_pretrained(folder)
    torch.save({"bert." + k: v for k, v in source.model.state_dict().items()} | {"cls.predictions.bias": torch.zeros(3)}, folder / "pytorch_model.bin")
    loaded = build_text_encoder(Settings(text_pretrained=str(folder)), tokenizer_folder)
    assert all(torch.equal(v, source.model.state_dict()[k]) for k, v in loaded.model.state_dict().items())


def test_a_weight_file_needs_an_architecture_that_fits(tokenizer_folder, tmp_path):
    state = build_text_encoder(Settings(), tokenizer_folder).model.state_dict()
    torch.save({k: v for k, v in state.items() if ".layer.1." not in k}, tmp_path / "t.pth")
    with pytest.raises(ValueError, match="does not fit BertModel.*missing encoder.layer.1"): build_text_encoder(Settings(text_pretrained=str(tmp_path / "t.pth")), tokenizer_folder)
    with pytest.raises(FileNotFoundError): build_text_encoder(Settings(text_pretrained=str(tmp_path / "none.pth")), tokenizer_folder)


def test_training_path_needs_no_data_libraries(tmp_path):
    "Cache, loader, encoders, two steps of KeepFIT, in a process where those libraries cannot be imported."
    import numpy as np
    from keepfit_nb.images import JpegStore, Settings as Images
    from keepfit_nb.profiles import write_json
    cache, words = tmp_path / "cache", tmp_path / "words"; cache.mkdir()
    store = JpegStore(cache, 12, Images(size=32)); rng = np.random.default_rng(0)
    for i in range(12): store.put(i, rng.integers(0, 256, (3, 32, 32), dtype=np.uint8))
    store.mark(); store.finish(); write_json(cache / "cache.json", dict(size=32, crop=True, store="jpeg", images=12))
    rows = [dict(row=i, image=f"{i}", modality="CFP", categories=[["glaucoma"], ["normal"]][i % 2], caption=TEXTS[i % 4], source="t") for i in range(12)]
    for role, part in (("public", rows[:6]), ("elite", rows[6:]), ("evaluation", [])): (cache / f"{role}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    s = Settings(vocab_size=300); t = train_tokenizer(TEXTS, 300, s.max_tokens); t.save_pretrained(words); text_config(s, len(t)).save_pretrained(words)
    code = f"""import sys
class Forbid:
    names = {{"cv2", "pyarrow", "datasets", "imagehash", "pydicom", "pypdfium2", "peft"}}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names: raise ImportError(f"{{name}} is forbidden here")
sys.meta_path.insert(0, Forbid())
import keepfit_nb.images, keepfit_nb.encoders, keepfit_nb.training, keepfit_nb.contrastive, keepfit_nb.injection, keepfit_nb.pretraining as P, torch
cache = keepfit_nb.images.ImageCache({str(cache)!r}); settings = P.Settings(batch_size=6)
model = P.KeepFIT(keepfit_nb.encoders.Settings(vocab_size=300), {str(words)!r}, 32, settings=settings).train()
batches = P.Batches(cache, model.text_encoder.tokenize, settings, 0); opt = torch.optim.AdamW(model.parameters(), 1e-3)
with keepfit_nb.images.prefetch(batches) as feed:
    for step in range(2):
        losses = model(feed(step)); loss = losses["loss"] if "loss" in losses else sum(losses.values()); opt.zero_grad(); loss.backward(); opt.step(); assert torch.isfinite(loss)
assert not Forbid.names & set(sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300); assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.real
@needs_real
def test_real_image_weights():
    lite = Settings(image_model="tf_efficientnet_lite0",
                    image_pretrained="$KEEPFIT_REAL/weights/tf_efficientnet_lite0_in1k.safetensors")
    encoder = build_image_encoder(lite).eval()
    with torch.no_grad(): pooled, patches = encoder(torch.zeros(1, 3, 224, 224))
    assert pooled.shape == (1, 1280) and patches.shape == (1, 49, 1280)
    assert encoder.mean.unique().tolist() == [.5] and pooled.dtype == torch.float32
    fifty = Settings(image_model="resnet50", image_pretrained="$KEEPFIT_REAL/weights/resnet50_in1k.safetensors",
                     image_tweaks=["stride_in_1x1", "norm_eps_1e-3"])
    resnet = build_image_encoder(fifty)
    assert resnet.model.layer2[0].conv1.stride == (2, 2) and resnet.model.bn1.eps == 1e-3
    with pytest.raises(ValueError, match="does not fit"):
        build_image_encoder(Settings(image_model="resnet18", image_pretrained="$KEEPFIT_REAL/weights/resnet50_in1k.safetensors"))


@pytest.mark.real
@needs_real
def test_real_text_weights_know_what_is_similar(run, tmp_path):
    s = Settings(text_model="sentence-transformers/all-MiniLM-L6-v2", text_pretrained="$KEEPFIT_REAL/weights/all-MiniLM-L6-v2")
    assert build_stage(run, tmp_path, s, {})["tokenizer"] == "local"
    encoder = build_text_encoder(s, tmp_path / "tokenizer").eval()
    with torch.no_grad():
        texts = ["The cat sits on the mat.", "A cat is sitting on a rug.", "Interest rates rose in March."]
        e = torch.nn.functional.normalize(encoder(texts))
    assert e[0] @ e[1] > .6 and e[0] @ e[2] < .2
