"Chapter 19.1: heat maps land where a known mind looks, agree with hand-written gradients, and scores cannot be cheated."
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from timm import create_model
from torch import nn
from torch.nn import functional as F

from keepfit_nb import saliency as sal
from keepfit_nb.encoders import ImageEncoder
from keepfit_nb.pretraining import as_pixels


def spots(size=64):
    y, x = np.mgrid[:size, :size] / size
    image, masks = np.full((size, size, 3), 90, np.uint8), {}
    for i, (word, (cx, cy)) in enumerate(dict(red=(.3, .35), green=(.7, .3), blue=(.6, .75)).items()):
        masks[word] = np.hypot(x - cx, y - cy) < .1
        image[masks[word]] = np.eye(3)[i] * 150 + 60
    return image, masks


class Bare(nn.Module):
    "A timm model with a random projection, beside random words."
    def __init__(self, model, size=64, dim=16):
        super().__init__(); torch.manual_seed(0)
        self.size, self.crop, self.device, self.image_encoder = size, False, torch.device("cpu"), ImageEncoder(model)
        self.image_projection = nn.Sequential(nn.Linear(self.image_encoder.dim, dim, bias=False), sal.Unit())
        for p in self.parameters(): p.requires_grad_(False)                # frozen weights must not matter
        self.eval()
    def embed_text(self, texts): return np.stack([np.random.default_rng(len(t)).normal(size=16) for t in texts]).astype(np.float32)
    @torch.inference_mode()
    def embed_images(self, images): return self.image_projection(self.image_encoder(self.image_encoder.normalise(as_pixels(images, self.size, False)))[0]).numpy()


def vit(**more): return create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, patch_size=8, depth=3, embed_dim=48, num_heads=3, **more)


@pytest.fixture(scope="module")
def resnet(): return Bare(create_model("test_resnet", num_classes=0))


PICTURE, MASKS = spots()
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("method", ["gradcam", "similarity", "occlusion", "auto"])
@pytest.mark.parametrize("word", sal.ColourModel.WORDS)
def test_heat_lies_where_a_known_mind_looks(method, word):
    L = sal.heat(sal.ColourModel(), PICTURE, f"something {word}", method)
    assert L.shape == (64, 64) and L.dtype == np.float32 and L.min() == 0 and L.max() == 1
    assert sal.pointing(L, MASKS[word], 0) == 1 and sal.overlap(L, MASKS[word])[0] > .4
    assert all(sal.pointing(L, m) == 0 for w, m in MASKS.items() if w != word)


def test_gradcam_is_the_formula(resnet):
    x, w = resnet.image_encoder.normalise(as_pixels([NOISE, PICTURE], 64, False)), torch.from_numpy(resnet.embed_text(["one", "three"]))
    name, kept = sal.stage_for(resnet.image_encoder, 64), {}
    hook = resnet.image_encoder.model.get_submodule(name).register_forward_hook(lambda m, i, o: kept.update(A=o))
    s = sal.similarities(resnet, x.clone().requires_grad_(), w); hook.remove()
    alpha = torch.autograd.grad(s.sum(), kept["A"])[0].mean((2, 3), keepdim=True)
    want = (alpha * kept["A"]).sum(1).relu()
    got = sal.gradcam(resnet, x, w)
    assert min(got.shape[1:]) >= 7 and got.max() > 0 and torch.allclose(got, want, atol=1e-6)
    assert not resnet.image_encoder.model.get_submodule(name)._forward_hooks                   # nothing stays behind


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_attention_is_the_formula(pool):
    model = Bare(vit(global_pool=pool)); attn = model.image_encoder.model.blocks[-1].attn; before, kept = attn.fused_attn, {}
    x, w = model.image_encoder.normalise(as_pixels([NOISE], 64, False)), torch.from_numpy(model.embed_text(["one"]))
    got = sal.attention(model, x, w)
    assert attn.fused_attn == before and got.shape == (1, 8, 8)
    attn.fused_attn = False; hook = attn.attn_drop.register_forward_hook(lambda m, i, o: kept.update(P=o))
    s = sal.similarities(model, x.clone().requires_grad_(), w); hook.remove()
    table = (torch.autograd.grad(s.sum(), kept["P"])[0] * kept["P"]).relu().mean(1)
    row = table[:, 0] if pool == "token" else table.mean(1)
    assert got.max() > 0 and torch.allclose(got, row[:, model.image_encoder.model.num_prefix_tokens:].reshape(1, 8, 8), atol=1e-7)


def test_patches_of_a_mean_pooled_encoder_add_up(resnet):
    "With a linear head the pooled vector is the mean of the patches': the direction of their sum is the picture's."
    x, w = resnet.image_encoder.normalise(as_pixels([NOISE], 64, False)), torch.from_numpy(resnet.embed_text(["one"]))
    got, (pooled, grid) = sal.patch_scores(resnet, x, w), resnet.image_encoder.forward_grid(x)
    assert torch.allclose(grid.mean((1, 2)), pooled, atol=1e-5) and abs(float(got.mean())) < 1e-6
    v = F.normalize(resnet.image_projection[0](grid), dim=-1) @ w[0]
    assert torch.allclose(got, v - v.mean(), atol=1e-5)


NAMES = [("test_convnext", {}, 64, "gradcam"), ("test_efficientnet", {}, 64, "gradcam"), ("test_vit", dict(img_size=64), 64, "attention"), ("test_mambaout", {}, 64, "gradcam")]

@pytest.mark.parametrize("name, how, size, auto", NAMES, ids=lambda v: v if isinstance(v, str) else "")
def test_every_kind_of_encoder_has_a_map(name, how, size, auto):
    model = Bare(create_model(name, num_classes=0, **how), size)
    assert sal.method_for(model) == auto
    for method in ("auto", "gradcam", "similarity"):
        L = sal.heats(model, [NOISE, PICTURE], ["one", "three"], method)
        assert L.shape == (2, size, size) and np.isfinite(L).all() and 0 <= L.min() <= L.max() <= 1
        assert np.allclose(L[1], sal.heat(model, PICTURE, "three", method), atol=1e-4)                # what else is in the batch does not matter


@pytest.mark.slow
@pytest.mark.parametrize("name, size, how", [("swin_tiny_patch4_window7_224", 224, dict(depths=(1, 1, 1, 1))), ("mobilenetv3_small_050", 64, {}), ("vit_base_patch16_siglip_224", 224, dict(depth=2)),
                                             ("coatnet_nano_rw_224", 224, {}), ("eva02_tiny_patch14_224", 224, dict(depth=2)), ("deit_tiny_distilled_patch16_224", 224, dict(depth=2))], ids=lambda v: v if isinstance(v, str) else "")
def test_large_encoders_have_a_map(name, size, how):
    model = Bare(create_model(name, num_classes=0, **how), size)
    for method in ("auto", "gradcam", "similarity"): assert sal.heat(model, NOISE, "one", method).shape == (size, size)


def test_a_stranger_is_explained_by_covering():
    class Stranger:                                                            # all it can is embed
        size, toy = 64, sal.ColourModel()
        def embed_images(self, images): return self.toy.embed_images(images)
        def embed_text(self, texts): return self.toy.embed_text(texts)
    model = Stranger()
    assert sal.method_for(model) == "occlusion" and sal.pointing(sal.heat(model, PICTURE, "blue"), MASKS["blue"]) == 1
    with pytest.raises(ValueError, match="take 'occlusion'"): sal.heat(model, PICTURE, "blue", "gradcam")


def test_an_encoder_without_a_grid():
    toy = sal.ColourModel(); toy.image_encoder.model.feature_info = []
    assert sal.method_for(toy) == "occlusion" and sal.pointing(sal.heat(toy, PICTURE, "green"), MASKS["green"]) == 1
    with pytest.raises(ValueError, match="does not say which of its layers"): sal.heat(toy, PICTURE, "green", "gradcam")
    with pytest.raises(ValueError, match="no attention that can be watched"): sal.heat(toy, PICTURE, "green", "attention")


def test_mode_and_checkpointing_are_left_as_they_were(resnet):
    model = Bare(vit()); model.image_encoder.model.set_grad_checkpointing(True); model.train()
    model.image_encoder.model.blocks[0].drop_path1 = nn.Dropout(.5)
    assert np.allclose(sal.heat(model, NOISE, "one"), sal.heat(model, NOISE, "one")), "dropout was on"
    assert model.training and model.image_encoder.model.grad_checkpointing


@pytest.mark.parametrize("call, words", [
    (dict(sentences=["red"] * 3), "2 pictures and 3 sentences"), (dict(sentences=["red", " "]), "empty sentence"), (dict(method="gradcom"), "did you mean 'gradcam'"),
    (dict(images=[np.full((64, 64, 3), np.nan)]), "NaN"), (dict(images=[]), "no image")])
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words): sal.heats(sal.ColourModel(), **{"images": [PICTURE, NOISE], "sentences": ["red", "blue"], **call})


def test_diverged_model():
    toy = sal.ColourModel(); toy.image_projection = nn.Sequential(nn.Linear(3, 3)); nn.init.constant_(toy.image_projection[0].weight, np.nan)
    with pytest.raises(ValueError, match="diverged"): sal.heat(toy, PICTURE, "red")


def test_a_map_without_evidence_is_empty():
    L = sal.heat(sal.ColourModel(), np.zeros((64, 64, 3), np.uint8), "red", "similarity")
    assert not L.any() and sal.pointing(L, MASKS["red"]) == pytest.approx(sal.near(MASKS["red"]).mean())


# ---- scores

masks = st.integers(0, 10_000).map(lambda s: np.random.default_rng(s).random((16, 16)) < np.random.default_rng(s + 1).uniform(.01, .9)).filter(lambda m: m.any())

@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, 99), st.floats(0, .3))
def test_scores_behave(mask, seed, tolerance):
    heat = np.random.default_rng(seed).random((16, 16))
    p, (iou, inside) = sal.pointing(heat, mask, tolerance), sal.overlap(heat, mask)
    assert p in (0, 1) and 0 <= iou <= 1 and 0 <= inside <= 1
    assert sal.pointing(heat, mask, tolerance + .1) >= p                                          # a wider target is no harder
    assert sal.pointing(heat ** 2, mask, tolerance) == p and sal.overlap(heat ** 2, mask)[0] == pytest.approx(iou)     # only the order counts
    turn = lambda a: np.rot90(a).copy()
    assert sal.pointing(turn(heat), turn(mask), tolerance) == p and sal.overlap(turn(heat), turn(mask)) == pytest.approx((iou, inside))
    best = sal.overlap(mask.astype(float), mask); assert best == (1, 1)
    k = mask.mean(); assert sal.chance(mask, tolerance) == pytest.approx((sal.near(mask, tolerance).mean(), k / (2 - k), k))


def test_chance_is_what_random_maps_get():
    mask, rng = MASKS["blue"], np.random.default_rng(0)
    got = np.mean([(sal.pointing(h := rng.random((64, 64)), mask), *sal.overlap(h, mask)) for _ in range(800)], 0)
    assert np.allclose(got, sal.chance(mask), atol=(.035, .003, .003))


def test_tolerance_is_a_distance():
    mask = np.zeros((100, 100), bool); mask[50, 50] = True
    grown = sal.near(mask, .05); ys, xs = np.nonzero(grown)
    assert np.hypot(ys - 50, xs - 50).max() == 5 and grown.sum() == 81 and (sal.near(mask, 0) == mask).all()


@pytest.mark.parametrize("heat, mask, words", [
    (np.ones((4, 4)), np.zeros((4, 4), bool), "mask is empty"), (np.ones((4, 5)), np.ones((4, 4), bool), "one shape"),
    (np.full((4, 4), np.nan), np.ones((4, 4), bool), "NaN"), (np.ones((4, 4)), np.ones((4, 4)), "True and False")])
def test_bad_scores(heat, mask, words):
    for f in (sal.pointing, sal.overlap):
        with pytest.raises(ValueError, match=words): f(heat, mask)
    with pytest.raises(ValueError, match="at least 0"): sal.overlap(-np.ones((4, 4)), np.ones((4, 4), bool))
