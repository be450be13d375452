"Chapters 13a.1 and 13a: models of others at the door, their lenses and words; supervised training; the stage; the table."
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm, torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, CLIPConfig, CLIPImageProcessor, CLIPModel, SiglipConfig, SiglipImageProcessor, SiglipModel

from evaluation_bench import make_bench

from keepfit_nb import baselines as bl, evaluation as ev, other_models as om
from keepfit_nb.encoders import Settings as EncoderSettings, build_image_encoder, timm_model
from keepfit_nb.images import ImageCache, Settings as ImageSettings, make_cache
from keepfit_nb.other_models import Baseline, Lens, Place, Spec, check_baseline
from keepfit_nb.pretraining import KeepFIT, Settings as PretrainingSettings
from keepfit_nb.profiles import check_section, seed_everything
from keepfit_nb.words import train_tokenizer

ENCODERS = EncoderSettings(image_model="resnet10t")
SENTENCES = ["a fundus photograph of glaucoma.", "an oct scan of a macular hole.", "red blue green eyes and a disc with a large cup"] * 3


def pixels(n=3, size=32, seed=0): return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class Colours:
    def embed_images(self, x): return x.float().mean((2, 3)) / 255
    def embed_text(self, texts): return torch.tensor([[1., 0, 0] if "red" in t else [0., 1, 0] for t in texts])


class Eyes:
    def embed_images(self, x): return x.float().flatten(1)[:, :7]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    tokenizer = train_tokenizer(SENTENCES, 120, 77); tokenizer.save_pretrained(folder)
    BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, max_position_embeddings=300).save_pretrained(folder)
    return folder, tokenizer


def bert_of(folder, seed=0):
    from transformers import AutoConfig
    seed_everything(seed); model = AutoModel.from_config(AutoConfig.from_pretrained(folder)).eval(); model.pooler = None
    return model


# ---- the agreement

def test_five_lines_join():
    b = Baseline(Colours(), "colours"); v, u = b.encode(pixels()); w = b.embed_text(["red", "green"])
    assert b.speaks and b.scale == 100 and v.shape == u.shape == (3, 3) and w.shape == (2, 3) and w.dtype == np.float32
    assert np.allclose(v.norm(dim=1), 1) and np.allclose(np.linalg.norm(w, axis=1), 1)
    assert check_baseline(b, 32) == dict(features=3, words=3, parameters=0)


def test_an_image_encoder_alone_has_no_projected_vectors():
    b = Baseline(Eyes(), "eyes"); v, u = b.encode(pixels())
    assert v is None and u.shape == (3, 7) and not b.speaks and check_baseline(b, 32)["words"] == 0
    with pytest.raises(TypeError, match="understands no words"): b.embed_text(["x"])


def test_numpy_answers_and_unprojected():
    class Own:
        logit_scale = 20.
        def embed_images(self, x): return x.numpy()[:, :, 0, 0].astype(float) + 1
        def embed_text(self, texts): return np.ones((len(texts), 3))
        def unprojected(self, x): return np.ones((len(x), 5))
    b = Baseline(Own(), "own"); v, u = b.encode(pixels())
    assert v.shape == (3, 3) and u.shape == (3, 5) and b.scale == 20


def wrong(**methods): return type("Wrong", (Colours,), methods)()

@pytest.mark.parametrize("model, words", [
    (wrong(embed_text=lambda self, t: torch.ones(len(t), 5)), "length 3, texts of length 5"),
    (wrong(embed_images=lambda self, x: torch.ones(len(x), 3)), "same vector for two different pictures"),
    (wrong(embed_images=lambda self, x: torch.full((len(x), 3), float("nan"))), "NaN or infinite numbers for 2 of 2"),
    (wrong(embed_images=lambda self, x: torch.ones(3)), r"shape \(3,\) for 2 inputs"),
    (wrong(embed_images=lambda self, x: x[:1].float().mean((2, 3))), r"expected \(2, d\)"),
    (wrong(embed_text=lambda self, t: torch.ones(1, 3)), "embed_text gave shape"),
    (wrong(embed_text=lambda self, t: torch.full((len(t), 3), float("inf"))), "embed_text gave NaN"),
    (wrong(unprojected=lambda self, x: torch.ones(len(x), 2, 2)), "unprojected gave shape"),
    (wrong(logit_scale=0.), "give 1 / temperature")])
def test_wrong_models_are_refused(model, words):
    with pytest.raises(ValueError, match=words): check_baseline(Baseline(model, "wrong"), 32)


def test_broken_weights_and_strange_objects():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.layer = nn.Linear(3, 4)
        def embed_images(self, x): return self.layer(x.float().mean((2, 3)))
    net = Net(); net.layer.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of its weights hold NaN.*layer.weight"): check_baseline(Baseline(net, "net"), 32)
    with pytest.raises(TypeError, match="str has no method embed_images"): Baseline("resnet50", "word")
    with pytest.warns(UserWarning, match="looks like a logarithm"): check_baseline(Baseline(wrong(logit_scale=torch.tensor(2.66)), "log"), 32)
    for texts in ([], [""], ["red", " "]):
        with pytest.raises(ValueError, match="none of them empty"): Baseline(Colours(), "c").embed_text(texts)


# ---- preprocessing

def test_a_lens_is_the_published_arithmetic():
    x = pixels(size=48); mean, std = (.4, .5, .6), (.2, .3, .4)
    same = Lens(48, mean, std)(x)
    assert torch.allclose(same, (x.float() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1))
    small = Lens(16)(x); by_hand = F.interpolate(x.float() / 255, (16, 16), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    assert small.shape == (3, 3, 16, 16) and torch.allclose(small, by_hand) and 0 <= small.min() and small.max() <= 1
    assert torch.allclose(Lens(48)(x), Lens(48)(x.float() / 255))                    # floats count as scaled already: no second division
    with pytest.raises(ValueError, match="as ImageCache.batch gives them"): Lens(16)(x[0])


def test_stored_embeddings_notice_another_lens():
    model = build_image_encoder(ENCODERS, 32).eval()
    mark = lambda *a, **k: ev.weights_fingerprint(Baseline(om.Tower(model, Lens(*a, **k)), "x"), {})
    assert len({mark(32), mark(64), mark(32, (.5, .5, .5)), mark(32, std=(.5, .5, .5)), mark(32, mode="bilinear")}) == 5 and mark(32) == mark(32)


# ---- naming

@pytest.mark.parametrize("values, words", [
    (dict(kind="retfoud"), "did you mean 'retfound'"), (dict(kind="retfound"), "needs path"), (dict(kind="flair", path="x.pth"), "needs text"), (dict(kind="timm"), "needs model"),
    (dict(kind="random", text="x", path="y"), "takes no path and no text"), (dict(kind="supervised", path="strat"), "not with 'strat'"), (dict(kind="random", name="../out"), "also a folder's"), (dict(kind="random", name="a/b"), "also a folder's"), (dict(kind="random", name="ends."), "also a folder's"),
    (dict(kind="random", size=4), "greater than or equal to 16"), (dict(kind="random", pool="mean"), "pool"), (dict(kind="random", weight="x"), "weight")])
def test_specs_that_cannot_be(values, words):
    with pytest.raises(ValueError, match=words): check_section(dict(models=[values]), bl.Settings, "section 'baselines'")


@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("start",), ("Start",), ("", "")])
def test_names_are_taken_once(names):
    with pytest.raises(ValueError, match="taken twice"): check_section(dict(models=[dict(kind="random", name=n) for n in names]), bl.Settings, "section 'baselines'")


def test_a_kind_of_your_own(monkeypatch):
    monkeypatch.setattr(om, "KINDS", dict(om.KINDS))
    @om.kind("eyes")
    def make(spec, place): return Eyes()
    assert Spec(kind="eyes").name == "eyes" and Baseline(om.KINDS["eyes"].make(Spec(kind="eyes"), None), "e").encode(pixels())[1].shape == (3, 7)


# ---- image encoders

def test_random_is_the_run_s_own_first_encoder():
    make = lambda seed, **more: Baseline(om.KINDS["random"].make(Spec(kind="random", **more), Place(ENCODERS, 32, seed)), "random").encode(pixels())[1]
    seed_everything(5); own = build_image_encoder(ENCODERS, 32).eval()
    with torch.inference_mode(): start = own(own.normalise(pixels()))[0]
    assert torch.allclose(make(5), start, atol=1e-5) and torch.equal(make(5), make(5)) and not torch.allclose(make(5), make(6))
    assert make(0, model="test_vit").shape[1] == 64


def test_timm_from_a_file(tmp_path):
    seed_everything(1); model = timm.create_model("resnet10t", num_classes=0).eval(); save_file(model.state_dict(), tmp_path / "w.safetensors")
    spec = Spec(kind="timm", model="resnet10t", path=str(tmp_path / "w.safetensors"))
    b = Baseline(om.KINDS["timm"].make(spec, Place(ENCODERS, 32)), "timm"); lens = b.model.lens
    assert lens.size == model.pretrained_cfg["input_size"][-1] and torch.allclose(lens.mean.flatten(), torch.tensor(model.pretrained_cfg["mean"]))
    with torch.inference_mode(): assert torch.allclose(b.encode(pixels())[1], model(lens(pixels())), atol=1e-4)
    assert Baseline(om.KINDS["timm"].make(spec.model_copy(update=dict(size=64)), Place(ENCODERS, 32)), "t").model.lens.size == 64
    with pytest.raises(ValueError, match="keys differ"): om.KINDS["timm"].make(spec.model_copy(update=dict(model="test_vit")), Place(ENCODERS, 32))
    with pytest.raises(FileNotFoundError, match="is no .safetensors file"): om.KINDS["timm"].make(spec.model_copy(update=dict(path="nowhere.pth")), Place(ENCODERS, 32))
    with pytest.raises(ValueError, match="image model"): om.KINDS["timm"].make(spec.model_copy(update=dict(model="resnet10tt")), Place(ENCODERS, 32))


def test_missing_weights_are_never_replaced_by_random_ones(monkeypatch):
    def no_hub(name, pretrained=False, size=None):
        if pretrained: raise OSError("offline")
        return timm_model(name, False, size)
    monkeypatch.setattr(om, "timm_model", no_hub)
    with pytest.raises(FileNotFoundError, match="out of reach.*optional: true"): om.KINDS["timm"].make(Spec(kind="timm", model="resnet10t"), Place(ENCODERS, 32))


def test_retfound_is_the_mean_of_its_patches(tmp_path):
    seed_everything(2); vit = timm_model("test_vit", image_size=64).eval()
    torch.save({"model": vit.state_dict() | {"mask_token": torch.zeros(1, 1, 16), "decoder_pred.weight": torch.zeros(4, 4)}}, tmp_path / "r.pth")
    make = lambda **more: Baseline(om.KINDS["retfound"].make(Spec(kind="retfound", path=str(tmp_path / "r.pth"), model="test_vit", size=64, **more), Place(ENCODERS, 32)), "RETFound")
    b = make()
    with torch.inference_mode():
        tokens = vit.forward_features(b.model.lens(pixels()))
        assert torch.allclose(b.encode(pixels())[1], tokens[:, vit.num_prefix_tokens:].mean(1), atol=1e-5)
        assert torch.allclose(make(pool="token").encode(pixels())[1], vit(b.model.lens(pixels())), atol=1e-5)
    assert not b.speaks


# ---- pictures and words

def flair_file(folder, path, seed=3):
    seed_everything(seed); cnn, bert = timm_model("resnet10t").eval(), bert_of(folder, seed)
    heads = {"vision_model.projection_head_vision.projection.weight": torch.randn(16, 512), "text_model.projection_head_text.projection.weight": torch.randn(16, 32)}
    torch.save({f"vision_model.model.{k}": v for k, v in cnn.state_dict().items()} | {f"text_model.model.{k}": v for k, v in bert.state_dict().items()} | heads | {"logit_scale": torch.tensor(4.)}, path)
    return cnn, bert, *heads.values()


def test_flair_by_hand(words, tmp_path):
    folder, tokenizer = words; cnn, bert, P, Q = flair_file(folder, tmp_path / "f.pth")
    spec = Spec(kind="flair", path=str(tmp_path / "f.pth"), text=str(folder), model="resnet10t", size=64)
    b = Baseline(om.KINDS["flair"].make(spec, Place(ENCODERS, 32)), "FLAIR"); unit = lambda x: F.normalize(x, dim=-1)
    with torch.inference_mode():
        x = F.interpolate(pixels().float() / 255, (64, 64), mode="bilinear", antialias=True, align_corners=False)           # no mean, no deviation
        v, u = b.encode(pixels()); features = cnn(x)
        assert torch.allclose(u, features, atol=1e-4) and torch.allclose(v, unit(unit(features) @ P.T), atol=1e-5)
        for text in SENTENCES[:3]:
            t = tokenizer(text, return_tensors="pt"); states = bert(input_ids=t["input_ids"], output_hidden_states=True).hidden_states
            assert np.allclose(b.embed_text(SENTENCES[:3])[SENTENCES.index(text)], unit(unit(torch.stack([states[i] for i in (1, 2, -1)]).mean((0, 2))) @ Q.T)[0], atol=1e-5)
    assert b.scale == pytest.approx(np.exp(4.)) and check_baseline(b, 32)["words"] == 16
    assert b.model.text.max_tokens == 77 and om.KINDS["keepfit_v1"].make(spec.model_copy(update=dict(kind="keepfit_v1")), None).text.max_tokens == 256


def test_flair_files_that_are_none(words, tmp_path):
    folder, _ = words; flair_file(folder, tmp_path / "f.pth"); state = torch.load(tmp_path / "f.pth", weights_only=True)
    spec = Spec(kind="flair", path=str(tmp_path / "f.pth"), text=str(tmp_path / "nowhere"), model="resnet10t")
    with pytest.raises(FileNotFoundError, match="no tokenizer and config.json"): om.KINDS["flair"].make(spec, None)
    spec = spec.model_copy(update=dict(text=str(folder)))
    torch.save({k: v for k, v in state.items() if not k.startswith("text_model.model.encoder.layer.1.")}, tmp_path / "f.pth")
    with pytest.raises(ValueError, match="keys differ: missing encoder.layer.1"): om.KINDS["flair"].make(spec, None)
    torch.save({k: v for k, v in state.items() if "projection" not in k}, tmp_path / "f.pth")
    with pytest.raises(ValueError, match="no projections of FLAIR"): om.KINDS["flair"].make(spec, None)


def openai_names(vit):
    "A timm ViT's weights under OpenAI's names."
    s, out = vit.state_dict(), {}
    for k, v in s.items():
        for a, b in (("patch_embed.proj.", "conv1."), ("norm_pre.", "ln_pre."), ("blocks.", "transformer.resblocks."), (".norm1.", ".ln_1."), (".norm2.", ".ln_2."), (".attn.qkv.", ".attn.in_proj_"),
                     (".attn.proj.", ".attn.out_proj."), (".mlp.fc1.", ".mlp.c_fc."), (".mlp.fc2.", ".mlp.c_proj.")): k = k.replace(a, b)
        k = "ln_post." + k.removeprefix("norm.") if k.startswith("norm.") else {"cls_token": "class_embedding", "pos_embed": "positional_embedding"}.get(k, k)
        out["visual." + k] = v.reshape(-1) if k == "class_embedding" else v[0] if k == "positional_embedding" else v
    return out


def test_unimed_by_hand(words, tmp_path, monkeypatch):
    folder, tokenizer = words; bert = bert_of(folder, 4)
    small = lambda name, pretrained=False, size=None: timm.models.vision_transformer.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, pre_norm=True)
    def model(name, pretrained=False, image_size=None):
        m = small(name); m.pretrained_cfg = dict(mean=(.48, .46, .41), std=(.27, .26, .28), input_size=(3, 32, 32), interpolation="bicubic"); return m
    monkeypatch.setattr(om, "timm_model", model); seed_everything(0); vit = model("x").eval()
    heads = {"visual.proj": torch.randn(32, 16), "text_encoder.proj.0.weight": torch.randn(24, 32), "text_encoder.proj.2.weight": torch.randn(16, 24), "logit_scale": torch.tensor(3.)}
    state = openai_names(vit) | {f"text_encoder.transformer.{k}": v for k, v in bert.state_dict().items()} | heads
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "u.pt")
    spec = Spec(kind="unimed", path=str(tmp_path / "u.pt"), text=str(folder))
    b = Baseline(om.KINDS["unimed"].make(spec, Place(ENCODERS, 32)), "UniMed")
    with torch.inference_mode():
        v, u = b.encode(pixels()); features = vit(b.model.tower.lens(pixels()))
        assert torch.allclose(u, features, atol=1e-5) and torch.allclose(v, F.normalize(features @ heads["visual.proj"], dim=-1), atol=1e-5)
        t = tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")
        first = bert(input_ids=t["input_ids"], attention_mask=t["attention_mask"]).last_hidden_state[:, 0]
        w = F.normalize(F.gelu(first @ heads["text_encoder.proj.0.weight"].T) @ heads["text_encoder.proj.2.weight"].T, dim=-1)
        assert np.allclose(b.embed_text(SENTENCES[:2]), w, atol=1e-5)
    torch.save({k: x for k, x in state.items() if k != "visual.proj"}, tmp_path / "u.pt")
    with pytest.raises(ValueError, match="visual.proj missing"): om.KINDS["unimed"].make(spec, Place(ENCODERS, 32))
    torch.save({k: x for k, x in state.items()}, tmp_path / "r.pth")
    retclip = Baseline(om.KINDS["retclip"].make(Spec(kind="retclip", path=str(tmp_path / "r.pth")), Place(ENCODERS, 32)), "RET-CLIP")
    assert not retclip.speaks and torch.allclose(retclip.encode(pixels())[1], features, atol=1e-5)


SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)

def hub_folder(path, words, siglip=False):
    tokenizer = words[1]
    text = dict(SMALL, vocab_size=len(tokenizer), max_position_embeddings=16, bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id, pad_token_id=tokenizer.pad_token_id)
    vision = dict(SMALL, image_size=32, patch_size=8)
    seed_everything(0)
    model = (SiglipModel(SiglipConfig(text_config=text, vision_config=vision)) if siglip else CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))).eval()
    processor = SiglipImageProcessor(size=dict(height=32, width=32)) if siglip else CLIPImageProcessor(size=dict(shortest_edge=32))
    for part in (model, tokenizer, processor): part.save_pretrained(path)
    return model, tokenizer


@pytest.mark.parametrize("siglip", [False, True])
def test_clip_and_siglip_equal_transformers(words, tmp_path, siglip):
    model, tokenizer = hub_folder(tmp_path, words, siglip)
    b = Baseline(om.KINDS["clip"].make(Spec(kind="siglip" if siglip else "clip", path=str(tmp_path)), None), "hub")
    mean = (.5, .5, .5) if siglip else (.48145466, .4578275, .40821073)
    assert torch.allclose(b.model.lens.mean.flatten(), torch.tensor(mean)) and b.model.lens.size == 32
    t = tokenizer(SENTENCES[:2], padding="max_length" if siglip else True, truncation=True, max_length=16, return_tensors="pt")
    with torch.inference_mode(): out = model(pixel_values=b.model.lens(pixels(2)), input_ids=t["input_ids"], **({} if siglip else dict(attention_mask=t["attention_mask"])))
    v, u = b.encode(pixels(2))
    assert torch.allclose(v, out.image_embeds, atol=1e-5) and np.allclose(b.embed_text(SENTENCES[:2]), out.text_embeds, atol=1e-5) and u.shape[1] == 32
    assert b.scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)
    with pytest.warns(UserWarning, match="more than 16 tokens are cut"): long = b.embed_text([SENTENCES[2] * 9])
    assert np.isfinite(long).all()
    with pytest.raises(ValueError, match="takes no size"): Spec(kind="clip", path=str(tmp_path), size=64)            # its positions are made for 32 px


def test_an_older_folder_with_a_bin_file(words, tmp_path):
    model, _ = hub_folder(tmp_path, words); want = Baseline(om.KINDS["clip"].make(Spec(kind="clip", path=str(tmp_path)), None), "a").encode(pixels())[0]
    (tmp_path / "model.safetensors").unlink(); torch.save(model.state_dict() | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}, tmp_path / "pytorch_model.bin")
    assert torch.allclose(Baseline(om.KINDS["clip"].make(Spec(kind="clip", path=str(tmp_path)), None), "b").encode(pixels())[0], want, atol=1e-6)


def test_folders_that_are_no_clip(words, tmp_path):
    make = lambda path: om.KINDS["clip"].make(Spec(kind="clip", path=str(path)), None)
    with pytest.raises(FileNotFoundError, match="no folder with config.json"): make(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nobody/nothing|reach|cannot be loaded|local"): make("nobody/nothing")
    bert = tmp_path / "bert"; bert_of(words[0]).save_pretrained(bert); words[1].save_pretrained(bert)
    with pytest.raises(TypeError, match="not a model of pictures and words"): make(bert)
    whole = tmp_path / "clip"; hub_folder(whole, words)
    state = load_file(whole / "model.safetensors"); cut = {k: v for k, v in state.items() if k != "visual_projection.weight"}; save_file(cut, whole / "model.safetensors", metadata=dict(format="pt"))
    with pytest.raises(ValueError, match="lack 1 tensors: visual_projection.weight"): make(whole)
    save_file(state, whole / "model.safetensors", metadata=dict(format="pt")); (whole / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no image_mean"): make(whole)
    (whole / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="preprocessing is a part of the model"): make(whole)


def test_open_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    spec = Spec(kind="open_clip", model="ViT-B-32", path="laion2b")
    with pytest.raises(ModuleNotFoundError, match="open_clip_torch"): om.KINDS["open_clip"].make(spec, None)
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.logit_scale, self.layer = nn.Parameter(torch.tensor(4.6)), nn.Linear(3, 5)
        def encode_image(self, x): assert x.shape[-1] == 40; return self.layer(x.mean((2, 3)))
        def encode_text(self, ids): return self.layer(ids.float())
    fake, asked = ModuleType("open_clip"), {}
    fake.create_model = lambda name, pretrained: asked.update(name=name, pretrained=pretrained) or Net()
    fake.get_model_preprocess_cfg = lambda model: dict(size=(40, 40), mean=(.1, .2, .3), std=(1., 1., 1.), interpolation="bicubic")
    fake.get_tokenizer = lambda name: lambda texts: torch.tensor([[len(t), 1, 2] for t in texts])
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    b = Baseline(om.KINDS["open_clip"].make(spec, None), "open"); about = check_baseline(b, 32)
    assert about["words"] == 5 and b.scale == pytest.approx(np.exp(4.6)) and asked == dict(name="ViT-B-32", pretrained="laion2b")
    with pytest.raises(ValueError, match="would make random weights"): om.KINDS["open_clip"].make(Spec(kind="open_clip", model="ViT-B-32"), None)


def test_a_saved_keepfit(words, tmp_path):
    model = KeepFIT(EncoderSettings(image_model="resnet10t", text_width=32, text_layers=1, text_heads=2, vocab_size=100, projection=16), words[0], 48, settings=PretrainingSettings(elite=False, semantic=False)).eval()
    model.save_pretrained(tmp_path / "m")
    b = Baseline(om.KINDS["keepfit"].make(Spec(kind="keepfit", path=str(tmp_path / "m")), None), "last month")
    x = pixels(size=48); v, u = b.encode(x)
    with torch.inference_mode(): w, h = model.encode(x)
    assert torch.allclose(v, w, atol=1e-5) and torch.allclose(u, h, atol=1e-4) and np.allclose(b.embed_text(SENTENCES[:2]), model.embed_text(SENTENCES[:2]), atol=1e-5)
    assert b.encode(pixels(size=32))[0].shape == (3, 16) and b.scale == pytest.approx(float(model.scale))          # its own size


def test_python_of_your_own(tmp_path):
    (tmp_path / "mine.py").write_text("import torch\nclass Eyes:\n    def embed_images(self, x): return x.float().mean((2, 3))\ndef make(): return Eyes()\nready = Eyes()\n")
    for name in ("Eyes", "make", "ready"):
        assert Baseline(om.KINDS["python"].make(Spec(kind="python", path=f"{tmp_path}/mine.py:{name}"), None), "x").encode(pixels())[1].shape == (3, 3)
    for path, error, said in ((f"{tmp_path}/mine.py:Eye", AttributeError, "did you mean 'Eyes'"), (f"{tmp_path}/yours.py:Eyes", FileNotFoundError, "no file"),
                              ("mine.Eyes", ValueError, "module:name"), ("no_such_module_anywhere:Eyes", ModuleNotFoundError, "no_such_module")):
        with pytest.raises(error, match=said): om.KINDS["python"].make(Spec(kind="python", path=path), None)


# ---- labels instead of words

COLOURS = {"glaucoma": (200, 40, 40), "cataract": (40, 180, 60), "normal": (50, 60, 190)}

@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    "Three diseases that are colours: 36 public pictures and 18 of evaluation."
    folder, rng, roles = tmp_path_factory.mktemp("cache"), np.random.default_rng(0), dict(elite=[], public=[], evaluation=[])
    for i in range(54):
        name = list(COLOURS)[i % 3]; role = "public" if i < 36 else "evaluation"
        Image.fromarray((np.array(COLOURS[name]) + rng.integers(-30, 30, (32, 32, 3))).clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        roles[role].append(dict(image=str(folder / f"{i}.png"), modality="CFP", caption="", categories=[name], attributes=[], source="clinic", split="train" if role == "public" or i < 45 else "test", patient=f"p{i}", eye=""))
    (folder / "06").mkdir(); make_cache(roles, folder / "06", ImageSettings(size=32, crop=False, workers=1))
    return folder / "06"


RECIPE = PretrainingSettings(steps=25, batch_size=12, lr=3e-3)

@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("13a") / "supervised" / "0"
    return folder, bl.train_supervised(folder, ENCODERS, ImageCache(cache), RECIPE, 0, verbose=False)


def test_supervised_learns_its_categories(cache, trained):
    folder, model = trained; images = ImageCache(cache); records = images.records("evaluation")
    place = Place(ENCODERS, 32, 0, folder); b = Baseline(om.KINDS["supervised"].make(Spec(kind="supervised"), place), "supervised")
    with torch.inference_mode(): want = model.image_encoder(model.image_encoder.normalise(images.batch([r["row"] for r in records])))[0]
    _, h = b.encode(images.batch([r["row"] for r in records]))
    assert torch.allclose(h, want, atol=1e-4) and not b.speaks
    state = load_file(folder / "model.safetensors"); names = ["cataract", "glaucoma", "normal"]; assert model.names == names
    p = bl.class_probs(h, state["head.weight"], state["head.bias"], names, [[n] for n in names])
    assert (p.argmax(1) == [names.index(r["categories"][0]) for r in records]).mean() > .9
    curves = pd.read_json(folder / "curves.jsonl", lines=True); assert curves.loss.iloc[-1] < .5 * curves.loss.iloc[0] and curves.step.iloc[-1] == 25


def test_supervised_sees_what_the_variant_public_sees(cache, tmp_path, monkeypatch):
    from keepfit_nb.batches import Batches
    from keepfit_nb.pretraining import variant_settings
    seen = []
    class Watch(bl.Supervised):
        def forward(self, batch): seen.append((batch["rows"].tolist(), batch["categories"][:, self.columns].sum(1).tolist())); return super().forward(batch)
    monkeypatch.setattr("keepfit_nb.labels.Supervised", Watch)
    bl.train_supervised(tmp_path, ENCODERS, ImageCache(cache), RECIPE.model_copy(update=dict(steps=3)), 7, verbose=False)
    public = variant_settings(RECIPE, dict(elite=False, semantic=False, steps=3))
    same = Batches(ImageCache(cache), lambda t: dict(input_ids=torch.zeros(len(t), 1, dtype=torch.long)), public, 7)
    assert [rows for rows, _ in seen] == [same(k)["rows"].tolist() for k in range(3)] and all(set(n) == {1.} for _, n in seen)


def test_labels_are_shared_and_pictures_without_any_teach_nothing():
    encoder = build_image_encoder(ENCODERS, 32); model = bl.Supervised(encoder, ["a", "b", "c"], [0, 2, 3], augment=False).eval()
    batch = lambda table: dict(pixels=pixels(len(table)), categories=torch.tensor(table, dtype=torch.float32), seed=0, step=0)
    with torch.no_grad():
        z = F.log_softmax(model.head(encoder(encoder.normalise(pixels(2)))[0]), 1)
        assert model(batch([[1, 1, 1, 0], [0, 0, 0, 1]]))["loss"] == pytest.approx(float(-(z[0, 0] / 2 + z[0, 1] / 2 + z[1, 2]) / 2), rel=1e-4)      # column 1 is no category of public pictures
        assert model(batch([[1, 0, 0, 0], [0, 0, 0, 0]]))["loss"] == pytest.approx(float(-z[0, 0]), rel=1e-4)
        assert float(model(batch([[0, 1, 0, 0]]))["loss"]) == 0


def test_class_probs_by_hand():
    rng = np.random.default_rng(0); h, W, b = rng.normal(size=(6, 4)), rng.normal(size=(5, 4)), rng.normal(size=5)
    e = np.exp(h @ W.T + b); p = bl.class_probs(h, W, b, list("abcde"), [["a", "x"], ["c", "d"]])
    assert np.allclose(p, np.stack([e[:, 0], e[:, 2] + e[:, 3]], 1) / (e[:, 0] + e[:, 2] + e[:, 3])[:, None]) and np.allclose(p.sum(1), 1)
    assert bl.class_probs(h, W, b, list("abcde"), [["a"], ["x"]]) is None
    far = bl.class_probs(h, 1e4 * W, b, list("abcde"), [["a"], ["b"]]); assert np.isfinite(far).all() and np.allclose(far.sum(1), 1)


def test_one_category_is_no_classifier(cache, tmp_path):
    images = ImageCache(cache); own = images.records
    images.records = lambda role: [r for r in own(role) if r["categories"] == ["normal"]]
    with pytest.raises(ValueError, match="have 1 categories"): bl.train_supervised(tmp_path, ENCODERS, images, RECIPE, verbose=False)


# ---- the stage

def run_of(models, variants=("keepfit",), seeds=(0,), root=Path(".")):
    sections = dict(baselines=dict(models=models), encoders=dict(image_model="resnet10t"), pretraining=dict(steps=2, batch_size=12))
    return SimpleNamespace(variants={v: {} for v in variants}, seeds=list(seeds), device=torch.device("cpu"), dir=root, profile=SimpleNamespace(sections=sections),
                           section=lambda name, cls: check_section(sections.get(name, {}), cls, f"section {name!r}"))


def test_the_stage_admits_trains_and_leaves_out(cache, tmp_path):
    (tmp_path / "mine.py").write_text("import torch\nclass Colours:\n    def embed_images(self, x): return x.float().mean((2, 3))\n    def embed_text(self, t): return torch.ones(len(t), 3)\n")
    run = run_of([dict(kind="random"), dict(kind="supervised"), dict(kind="python", name="mean colour", path=f"{tmp_path}/mine.py:Colours"),
                  dict(kind="retfound", path="nowhere.pth", optional=True)], seeds=(0, 1))
    folder = tmp_path / "13a"; folder.mkdir(); got = bl.build(run, folder, run.section("baselines", bl.Settings), {"06_images": cache})
    assert got["models"] == 5 and got["absent"] == 1                     # two seeds of those that depend on one
    names = [(b.name, b.seed) for b in bl.load_baselines(run, folder, 32)]
    assert names == [("random", 0), ("random", 1), ("supervised", 0), ("supervised", 1), ("mean colour", 0)]
    inputs = {"06_images": cache, "13_pretraining": tmp_path, "13a_baselines": folder}
    assert bl.speaker(run, inputs, "random", 0) is None and bl.speaker(run, inputs, "start", 0) is None
    assert bl.speaker(run, inputs, "mean colour", 0).embed_text(["x"]).shape == (1, 3)
    found = [(name, seed, encode(pixels())[0] is None) for name, seed, _, encode in ev._models(run_of(run.profile.sections["baselines"]["models"], (), (0, 1)), ev.Settings(), inputs)]
    assert found == [(n, s, n != "mean colour") for n, s in names] + [("start", 0, True)]
    before = (folder / "supervised" / "0" / "model.safetensors").stat().st_mtime_ns
    bl.build(run, folder, run.section("baselines", bl.Settings), {"06_images": cache})
    assert (folder / "supervised" / "0" / "model.safetensors").stat().st_mtime_ns == before          # trained once


def test_the_stage_refuses(cache, tmp_path):
    build = lambda run: bl.build(run, tmp_path, run.section("baselines", bl.Settings), {"06_images": cache})
    with pytest.raises(ValueError, match="name of a variant"): build(run_of([dict(kind="random", name="keepfit")]))
    with pytest.raises(FileNotFoundError, match="is no .safetensors file"): build(run_of([dict(kind="retfound", path="nowhere.pth")]))
    assert build(run_of([])) == dict(models=0, absent=0) and list(bl.load_baselines(run_of([]), tmp_path, 32)) == []
    with pytest.raises(FileNotFoundError, match="has not been trained"): om.KINDS["supervised"].make(Spec(kind="supervised"), Place(ENCODERS, 32, 0, tmp_path / "none"))


def test_the_fingerprint_knows_files_variants_and_recipe(tmp_path):
    file = tmp_path / "mine.py"; file.write_text("x = 1\n")
    state = lambda run: bl._state(run, run.section("baselines", bl.Settings))
    models = [dict(kind="python", path=f"{file}:x")]
    first = state(run_of(models)); file.write_text("x = 22\n"); second = state(run_of(models))
    assert first != second and state(run_of(models)) == second and state(run_of(models, ("other",))) != second and state(run_of(models, seeds=(1,))) != second
    plain, changed = run_of([dict(kind="supervised")]), run_of([dict(kind="supervised")]); changed.profile.sections["pretraining"]["steps"] = 3
    assert state(plain) != state(changed)
    no_training = run_of(models); no_training.profile.sections["pretraining"]["steps"] = 3
    assert state(no_training) == second


def test_another_baseline_leaves_the_trained_one():
    marks = lambda run: bl._trained(run, run.section("baselines", bl.Settings))
    plain = marks(run_of([dict(kind="supervised")])); assert list(plain) == ["supervised/0"]
    assert plain.items() < marks(run_of([dict(kind="random"), dict(kind="supervised")], ("keepfit", "v1"), (0, 1))).items()
    assert marks(run_of([dict(kind="supervised", path="start")]))["supervised/0"] != plain["supervised/0"]
    changed = run_of([dict(kind="supervised")]); changed.profile.sections["pretraining"]["steps"] = 3
    assert marks(changed)["supervised/0"] != plain["supervised/0"]


def test_own_classes_on_a_bench(tmp_path):
    bench = make_bench(tmp_path / "14", models=(("keepfit", 0), ("supervised", 0))); folder = tmp_path / "13a" / "supervised" / "0"; folder.mkdir(parents=True)
    weight = torch.zeros(3, 8); weight[[0, 1, 2], [0, 1, 2]] = 5.
    save_file({"head.weight": weight, "head.bias": torch.zeros(3)}, folder / "model.safetensors")
    bl.write_json(folder / "classes.json", dict(names=["normal", "glaucoma", "macular hole"])); bl.write_json(folder.parent.parent / "models.json", dict(models=[dict(name="supervised", seed=0, kind="supervised", speaks=False)]))
    table = pd.DataFrame(bl.own_answers(bench, tmp_path / "13a"))
    assert set(table.protocol) == {"own classes"} and set(table.kind) == {"coarse"} and set(table.model) == {"supervised"}           # fine questions it cannot hear
    assert float(table[table.metric == "ACA"].value.iloc[0]) > .85
    assert bl.own_answers(bench, tmp_path / "nothing") == []


# ---- the table

def result(model, protocol="zero-shot", modality="CFP", value=.5, seed=0, shots=0, source="phantoms", kind="coarse", task="t", metric="ACA", width=.1):
    return dict(run="r", model=model, seed=seed, set=source, task=task, kind=kind, modality=modality, protocol=protocol, shots=shots, metric=metric, value=value, low=value - width, high=value + width, n=9)


def test_table_means_over_seeds_and_dashes():
    rows = pd.DataFrame([result("keepfit", value=.6), result("keepfit", value=.8, seed=1), result("random", "linear probe", value=.3, width=np.nan), result("keepfit", "prototype", shots=5), result("keepfit", metric="AUC", value=.9)])
    t = bl.baseline_table(rows)
    assert list(t.index) == ["keepfit", "random"] and t.loc["keepfit", ("zero-shot", "CFP")] == "0.70 [0.60, 0.80]"
    assert t.loc["random", ("zero-shot", "CFP")] == "–" and t.loc["random", ("linear probe", "CFP")] == "0.30" and t.loc["keepfit", ("prototype, 5 shots", "CFP")] == "0.50 [0.40, 0.60]"
    assert bl.baseline_table(rows, metric="AUC").shape == (1, 1) and list(bl.baseline_table(rows, protocols=["linear probe"]).index) == ["random"]


def test_table_of_fine_tasks_takes_their_means_only():
    rows = pd.DataFrame([result("a", kind="fine", task="cup"), result("a", kind="fine", task="macro fine phantoms CFP", value=.7)])
    assert bl.baseline_table(rows, kind="fine").loc["a", ("zero-shot", "CFP")] == "0.70 [0.60, 0.80]"


def test_table_never_averages_over_sets():
    rows = pd.DataFrame([result("a"), result("a", source="clinic", value=.9)])
    with pytest.raises(ValueError, match="choose one as `source`"): bl.baseline_table(rows)
    assert bl.baseline_table(rows, "clinic").loc["a", ("zero-shot", "CFP")] == "0.90 [0.80, 1.00]"
    for more, said in ((dict(source="clinc"), "did you mean 'clinic'"), (dict(source="clinic", metric="ACC"), "unknown metric"), (dict(source="clinic", protocols=["zero shot"]), "did you mean 'zero-shot'")):
        with pytest.raises(ValueError, match=said): bl.baseline_table(rows, **more)
    two = pd.DataFrame([result("a"), result("a", task="u", value=.9)])
    with pytest.raises(ValueError, match="two tasks"): bl.baseline_table(two)
