"Visual tokens: shapes, the library's codes against ours, lesions in the loss and in the measure, bad input, files."
import json, subprocess, sys

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from keepfit_nb.tokenizer import (ImageTokenizer, Learner, Settings, detail_weights, factor_for, judged_phantoms, lesion_pieces, lesion_recall,
                                  load_tokenizer, nearest_code, psnr, reconstruction_loss, save_tokenizer, share_used, teach, teaching_rows)

SMALL = dict(codes=32, width=8, batch_size=4)


class Cache:
    "What `teach` needs of an image cache: pictures with a frame, a disc and a dot."
    size = 32
    def __init__(self, n=24):
        g = torch.Generator().manual_seed(0)
        self.images = torch.rand(n, 3, 1, 1, generator=g).mul(120).expand(n, 3, 32, 32).clone()
        for i in range(n): self.images[i, :, 4 + i % 20:8 + i % 20, 10:14] = 230
        self.images = self.images.byte()
    def records(self, role): return {"elite": [dict(row=1), dict(row=3)], "public": [dict(row=i) for i in range(16)], "evaluation": [dict(row=20)]}[role]
    def batch(self, rows): return self.images[torch.as_tensor(np.asarray(rows))]
    def __len__(self): return len(self.images)


def tokenizer(**kw):
    torch.manual_seed(0)
    t = ImageTokenizer(**{**dict(codes=32, dim=4, factor=4, width=8), **kw})
    t.codebook.normal_()
    return t.eval()


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_shapes(factor):
    t, x = tokenizer(factor=factor), torch.rand(2, 3, 32, 64)
    tokens = t.encode(x)
    assert tokens.shape == (2, 32 // factor, 64 // factor) and tokens.dtype == torch.int64
    painted = t.decode(tokens)
    assert painted.shape == x.shape and 0 <= painted.min() and painted.max() <= 1
    assert t.decode(tokens.to(torch.int32)).equal(painted)


def test_bytes_and_floats_agree_and_input_stays():
    t, x = tokenizer(), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    before = x.clone()
    assert t.encode(x).equal(t.encode(x.float() / 255)) and x.equal(before)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 9))
def test_nearest_code_is_nearest(codes, dim, seed):
    g = torch.Generator().manual_seed(seed)
    z, book = torch.randn(2, dim, 3, 5, generator=g), torch.randn(codes, dim, generator=g)
    want = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, dim).double(), book.double())
    found = nearest_code(z, book).flatten()
    assert torch.allclose(want.gather(1, found[:, None])[:, 0], want.min(1).values, atol=1e-5)


def test_the_library_names_the_same_codes():
    torch.manual_seed(1)
    learner, x = Learner(Settings(**SMALL), 32), torch.rand(4, 3, 32, 32)
    for _ in range(3): learner({"pixels": x})
    learner.eval()
    theirs = learner.quantiser(learner.tokenizer.latents(x))[1]
    assert learner.finish().encode(x).equal(theirs)


def test_learner_gives_gradients_to_both_halves():
    learner = Learner(Settings(**SMALL), 32)
    learner({"pixels": torch.rand(4, 3, 32, 32)})["loss"].backward()
    for part in (learner.tokenizer.encoder, learner.tokenizer.decoder):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())
        assert any(p.grad.abs().sum() > 0 for p in part.parameters())


def test_one_colour_pictures_teach_without_nan():
    learner = Learner(Settings(**SMALL), 32)
    x = torch.full((4, 3, 32, 32), .3)
    for _ in range(3):
        out = learner({"pixels": x}); out["loss"].backward()
        assert all(v.isfinite() for v in out.values())
    t = learner.finish()
    assert t.encode(x)[0].equal(t.encode(x)[1]) and t.decode(t.encode(x)).isfinite().all()


def test_teaching_lowers_the_loss_and_repeats_to_the_last_digit(tmp_path):
    s = Settings(**SMALL, steps=40, log_every=5)
    a, curves = teach(Cache(), s, tmp_path / "a", 3, "cpu", verbose=False)
    b, _ = teach(Cache(), s, tmp_path / "b", 3, "cpu", verbose=False)
    assert curves.reconstruction.iloc[-1] < .8 * curves.reconstruction.iloc[0]
    assert all(v.equal(b.state_dict()[k]) for k, v in a.state_dict().items())
    assert not any(p.requires_grad for p in a.parameters())


def test_teaching_goes_on_after_a_kill(tmp_path):
    "Stopped after a checkpoint in the middle, and resumed: the same weights, the codebook's running means included."
    s = Settings(**SMALL, steps=12, save_every=4)
    whole, _ = teach(Cache(), s, tmp_path / "whole", 0, "cpu", verbose=False)
    class Stop(Cache):
        seen = 0
        def batch(self, rows):
            Stop.seen += 1
            if Stop.seen == 7: raise RuntimeError("power cut")
            return super().batch(rows)
    with pytest.raises(RuntimeError, match="power cut"): teach(Stop(), s, tmp_path / "cut", 0, "cpu", verbose=False)
    resumed, _ = teach(Cache(), s, tmp_path / "cut", 0, "cpu", verbose=False)
    assert all(v.equal(resumed.state_dict()[k]) for k, v in whole.state_dict().items())


def test_no_evaluation_picture_is_learned_from():
    assert teaching_rows(Cache()).tolist() == list(range(16))
    class Empty(Cache):
        def records(self, role): return []
    with pytest.raises(ValueError, match="neither elite nor public"): teaching_rows(Empty())


def test_bad_pictures():
    t, x = tokenizer(), torch.rand(2, 3, 32, 32)
    broken = x.clone(); broken[1, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"): t.encode(broken)
    with pytest.raises(ValueError, match="normalis"): t.encode(x * 255)
    with pytest.raises(ValueError, match="cannot be cut"): t.encode(x[..., :30])
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"): t.encode(x[0])
    with pytest.raises(ValueError, match="codes 0 to 31"): t.decode(torch.full((1, 2, 2), 32))
    with pytest.raises(ValueError, match="codes 0 to 31"): t.decode(torch.full((1, 2, 2), -1))
    with pytest.raises(ValueError, match="appearance.factor"): factor_for(Settings(factor=8), 60)
    assert t.encode(x[:0]).shape == (0, 8, 8)


def test_settings_refuse_nonsense():
    for bad in (dict(codes=1), dict(codes=70000), dict(factor=3), dict(width=12), dict(colour=1)):
        with pytest.raises(ValueError): Settings(**bad)


def test_files(tmp_path):
    t, x = tokenizer(), torch.rand(2, 3, 32, 32)
    again = load_tokenizer(save_tokenizer(t, tmp_path / "t"))
    assert again.encode(x).equal(t.encode(x)) and not again.training
    file, config = tmp_path / "t" / "tokenizer.safetensors", tmp_path / "t" / "config.json"
    tensors, whole, words = {k: v.clone() for k, v in load_file(file).items()}, file.read_bytes(), config.read_text()
    config.write_text(json.dumps({**json.loads(words), "codes": 16}))
    with pytest.raises(ValueError, match="codebook"): load_tokenizer(tmp_path / "t")
    config.write_text(words); file.unlink(); file.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match="no readable"): load_tokenizer(tmp_path / "t")
    file.unlink(); save_file({**tensors, "codebook": tensors["codebook"] * float("nan")}, file)
    with pytest.raises(ValueError, match="NaN"): load_tokenizer(tmp_path / "t")
    config.unlink()
    with pytest.raises(FileNotFoundError, match="11_appearance"): load_tokenizer(tmp_path / "t")


def test_using_a_tokenizer_needs_no_library(tmp_path):
    "Loading, encoding and decoding without vector-quantize-pytorch, opencv, pyarrow and datasets; teaching says what is missing."
    save_tokenizer(tokenizer(), tmp_path)
    code = """if True:
        import sys, torch
        for name in ("vector_quantize_pytorch", "cv2", "pyarrow", "datasets", "einops"): sys.modules[name] = None
        from keepfit_nb.appearance import TokenHead, token_loss
        from keepfit_nb.tokenizer import Learner, Settings, load_tokenizer
        t = load_tokenizer(sys.argv[1]); tokens = t.encode(torch.rand(2, 3, 32, 32)); t.decode(tokens)
        token_loss(TokenHead(6, t.codes, 2, 8), torch.rand(2, 6, 4, 4), tokens)["token"].backward()
        try: Learner(Settings(), 64)
        except ImportError as err: assert "vector-quantize-pytorch" in str(err); print("fine")"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr[-2000:]


def test_detail_weights_find_the_dot_and_bounds_hold():
    x = torch.full((2, 3, 32, 32), .4); x[0, :, 8, 8] = .9
    w = detail_weights(x)
    assert torch.allclose(w[1], torch.ones(1, 32, 32), atol=1e-3) and w[0, 0, 8, 8] == w.max() <= 17 and w[0, 0, 20, 20] < 1.001
    assert detail_weights(x, 0.).equal(torch.ones(2, 1, 32, 32))
    same, edges = reconstruction_loss(x, x)
    assert same == 0 and edges == 0


def dots():
    "A grey picture with 2-pixel dots, three of them labelled."
    x, labels = torch.full((1, 3, 40, 40), .3), np.zeros((1, 40, 40), np.uint8)
    for k, (r, c) in enumerate([(6, 6), (6, 30), (30, 6)]):
        x[0, 0, r:r + 2, c:c + 2] += .4; labels[0, r:r + 2, c:c + 2] = 1 + k % 2
    return x, labels


def test_recall_counts_what_stands_out():
    from scipy.ndimage import gaussian_filter
    x, labels = dots()
    recall = lambda y: np.mean([r["kept"] for r in lesion_recall(y, x, labels)])
    assert len(lesion_recall(x, x, labels)) == 3 and recall(x) == 1
    assert recall(torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, 2, 2)))) == 0          # blurred
    assert recall(torch.full_like(x, .3)) == 0                                              # background only
    wrong = x.clone(); wrong[:, [0, 2]] = wrong[:, [2, 0]]
    assert recall(wrong) == 0                                                               # there, but blue instead of red
    one = x.clone(); one[0, :, 5:9, 5:9] = .3
    assert recall(one) == pytest.approx(2 / 3)                                              # one painted over
    assert recall(.3 + .6 * (x - .3)) == 1 and recall(.3 + .4 * (x - .3)) == 0              # half of the contrast
    assert recall(x + .2) == 1                                                              # brighter all over: still there


def test_recall_asks_for_nothing_invisible():
    x, labels = dots()
    faint = .3 + .05 * (x - .3)
    assert lesion_recall(faint, faint, labels) == []
    noisy = faint + .1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert len(lesion_recall(noisy, noisy, labels)) <= 1
    labels[:] = 1
    assert list(lesion_pieces(labels[0])) == []                                             # all lesion: no surroundings


def test_psnr_and_use():
    x = torch.rand(3, 3, 8, 8)
    assert psnr(x, x).tolist() == pytest.approx([90] * 3)
    assert psnr(torch.zeros_like(x) + .1, torch.zeros_like(x)).tolist() == pytest.approx([20] * 3, abs=1e-3)
    assert share_used(torch.tensor([[0, 1], [1, 3]]), 8) == 3 / 8


def test_judged_phantoms_have_lesions():
    x, labels, modalities = judged_phantoms(4, 64)
    assert len(x) == 12 == len(labels) and x.dtype == torch.uint8 and set(modalities) == {"CFP", "FFA", "OCT"}
    assert (labels.reshape(12, -1) > 0).any(1).sum() >= 6
    again, _, _ = judged_phantoms(4, 64)
    assert again.equal(x)
