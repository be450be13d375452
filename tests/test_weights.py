"Checkpoints of other projects: their real names and shapes (tensors without memory), and files that are not what they say."
import argparse, os

import pytest, timm, torch, torchvision
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig

from keepfit_nb import weights as W

T = lambda *shape: torch.empty(shape, device="meta")


def bert(prefix, vocab, hidden=768, layers=12, positions=512, pooler=True, gamma=False):
    "The names of a BERT, written out by hand."
    w, b = ("gamma", "beta") if gamma else ("weight", "bias")
    out = {"embeddings.word_embeddings.weight": T(vocab, hidden), "embeddings.position_embeddings.weight": T(positions, hidden), "embeddings.position_ids": T(1, positions),
           "embeddings.token_type_embeddings.weight": T(2, hidden), f"embeddings.LayerNorm.{w}": T(hidden), f"embeddings.LayerNorm.{b}": T(hidden)}
    for i in range(layers):
        for name, (rows, columns) in {"attention.self.query": (hidden, hidden), "attention.self.key": (hidden, hidden), "attention.self.value": (hidden, hidden),
                                      "attention.output.dense": (hidden, hidden), "intermediate.dense": (4 * hidden, hidden), "output.dense": (hidden, 4 * hidden)}.items():
            out |= {f"encoder.layer.{i}.{name}.weight": T(rows, columns), f"encoder.layer.{i}.{name}.bias": T(rows)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"): out |= {f"encoder.layer.{i}.{name}.{w}": T(hidden), f"encoder.layer.{i}.{name}.{b}": T(hidden)}
    if pooler: out |= {"pooler.dense.weight": T(hidden, hidden), "pooler.dense.bias": T(hidden)}
    return {prefix + k: v for k, v in out.items()}


def openai_vit(width, layers, patch, grid, out, prefix="visual."):
    "The names of OpenAI's ViT."
    names = {"class_embedding": T(width), "positional_embedding": T(grid * grid + 1, width), "conv1.weight": T(width, 3, patch, patch), "proj": T(width, out)}
    for n in ("ln_pre", "ln_post"): names |= {f"{n}.weight": T(width), f"{n}.bias": T(width)}
    for i in range(layers):
        b = f"transformer.resblocks.{i}."
        names |= {b + "attn.in_proj_weight": T(3 * width, width), b + "attn.in_proj_bias": T(3 * width), b + "attn.out_proj.weight": T(width, width), b + "attn.out_proj.bias": T(width),
                  b + "mlp.c_fc.weight": T(4 * width, width), b + "mlp.c_fc.bias": T(4 * width), b + "mlp.c_proj.weight": T(width, 4 * width), b + "mlp.c_proj.bias": T(width)}
        for n in ("ln_1", "ln_2"): names |= {f"{b}{n}.weight": T(width), f"{b}{n}.bias": T(width)}
    return {prefix + k: v for k, v in names.items()}


def mae(width=1024, layers=24, patch=16, grid=14):
    "The names of a pretrained masked autoencoder with a ViT-L (RETFound)."
    out = {"cls_token": T(1, 1, width), "pos_embed": T(1, grid * grid + 1, width), "mask_token": T(1, 1, 512), "patch_embed.proj.weight": T(width, 3, patch, patch),
           "patch_embed.proj.bias": T(width), "norm.weight": T(width), "norm.bias": T(width), "decoder_pos_embed": T(1, grid * grid + 1, 512), "decoder_embed.weight": T(512, width),
           "decoder_blocks.0.attn.qkv.weight": T(1536, 512), "decoder_pred.weight": T(768, 512)}
    for i in range(layers):
        for n, rows, columns in (("attn.qkv", 3 * width, width), ("attn.proj", width, width), ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width)):
            out |= {f"blocks.{i}.{n}.weight": T(rows, columns), f"blocks.{i}.{n}.bias": T(rows)}
        for n in ("norm1", "norm2"): out |= {f"blocks.{i}.{n}.weight": T(width), f"blocks.{i}.{n}.bias": T(width)}
    return out


def flair():
    "FLAIR and KeepFIT V1: torchvision's ResNet-50 without classifier, Bio_ClinicalBERT, two projections; V1 adds its attention."
    image = {k: T(*v.shape) for k, v in torchvision.models.resnet50().state_dict().items() if not k.startswith("fc.")}
    return ({f"vision_model.model.{k}": v for k, v in image.items()} | bert("text_model.model.", 28996)
            | {"vision_model.projection_head_vision.projection.weight": T(512, 2048), "text_model.projection_head_text.projection.weight": T(512, 768), "logit_scale": T()}
            | {f"attention.W_{n}.weight": T(512, 512) for n in "qkvo"})


def unimed():
    return openai_vit(768, 12, 16, 14, 512) | bert("text_encoder.transformer.", 30522, pooler=False) | {"text_encoder.proj.0.weight": T(640, 768), "text_encoder.proj.2.weight": T(512, 640), "logit_scale": T()}


def retclip():
    heads = {f"text_projection{s}.{i}.{k}": T(768) for s in ("", "_left", "_right") for i in (0, 2) for k in ("weight", "bias")} | {f"{n}_feature_mapping.weight": T(512, 512) for n in ("global", "left", "right")}
    return openai_vit(768, 12, 16, 14, 512) | bert("bert.", 21128) | heads | {f"logit_scale{s}": T() for s in ("", "_left", "_right")}


def image_model(name):
    with torch.device("meta"): return timm.create_model(name, num_classes=0)


@pytest.mark.parametrize("make, name", [(flair, "resnet50"), (mae, "vit_large_patch16_224"), (unimed, "vit_base_patch16_clip_quickgelu_224"), (retclip, "vit_base_patch16_clip_quickgelu_224"),
                                        (lambda: openai_vit(1024, 24, 14, 24, 768), "vit_large_patch14_clip_quickgelu_336")])
def test_image_names_and_shapes_of_published_models(make, name):
    model = image_model(name); _, state = W.image_state(make())
    assert W.misfits(model.state_dict(), state) == []


@pytest.mark.parametrize("make, vocab", [(flair, 28996), (unimed, 30522), (retclip, 21128), (lambda: bert("bert.", 28996, gamma=True) | {"cls.predictions.bias": T(28996), "cls.seq_relationship.weight": T(2, 768)}, 28996),
                                         (lambda: bert("", 28996), 28996)])
def test_text_names_and_shapes_of_published_models(make, vocab):
    with torch.device("meta"): model = AutoModel.from_config(BertConfig(vocab_size=vocab))
    model.pooler = None
    _, state = W.text_state(make())
    assert W.misfits(model.state_dict(), state) == []


def test_projections_of_flair_only():
    found = W.projection_state(flair())
    assert found["image"].shape == (512, 2048) and found["text"].shape == (512, 768) and found["log_scale"].shape == ()
    assert W.projection_state(unimed()) == {} == W.projection_state(mae())


def test_another_architecture_is_listed_key_by_key():
    wrong = W.misfits(image_model("vit_base_patch16_224").state_dict(), W.image_state(mae())[1])
    assert any(w.startswith("unknown blocks.12.") for w in wrong) and any("pos_embed has shape" in w for w in wrong)
    assert W.misfits(image_model("resnet50").state_dict(), W.image_state(unimed())[1])


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s, "args": argparse.Namespace(lr=1.), "optimizer": {"state": {}}},
                                  lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}, lambda s: {f"module.module.{k}": v for k, v in s.items()}])
def test_unwrapping(tmp_path, wrap):
    state = {"a.weight": torch.ones(2).half(), "b": torch.tensor(3)}
    torch.save(wrap(state), tmp_path / "x.pth"); found = W.read_state(tmp_path / "x.pth")
    assert found.keys() == state.keys() and found["a.weight"].dtype == torch.float32 and found["b"] == 3


def test_files_without_weights(tmp_path):
    for content in ({"epoch": 3}, [torch.ones(2)], {}):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(ValueError, match="no table of weights"): W.read_state(tmp_path / "x.pth")


class Touch:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_nothing_in_a_file_runs(tmp_path, suffix):
    torch.save({"model": {"w": torch.ones(1)}, "x": Touch(tmp_path / "ran")}, tmp_path / f"x{suffix}")
    with pytest.raises(ValueError, match="could run code"): W.read_state(tmp_path / f"x{suffix}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("share", [0, .01, .5, .99])
def test_cut_files(tmp_path, name, share):
    state = {f"layer{i}.weight": torch.randn(50, 50) for i in range(20)}
    torch.save(state, tmp_path / name) if name.endswith("pth") else save_file(state, tmp_path / name)
    data = (tmp_path / name).read_bytes(); (tmp_path / name).write_bytes(data[:int(share * len(data))])
    with pytest.raises(ValueError, match="cut short or damaged"): W.read_state(tmp_path / name)


def test_the_permission_for_options_is_not_left_open(tmp_path):
    torch.save({"args": argparse.Namespace(a=1), "w": torch.ones(1)}, tmp_path / "x.pth"); W.read_state(tmp_path / "x.pth")
    with pytest.raises(Exception, match="argparse.Namespace"): torch.load(tmp_path / "x.pth", weights_only=True)
