"The caption decoder: agrees with slow references on every strategy, refuses what it cannot describe, comes back from disk whole."
import subprocess, sys, warnings

import numpy as np, pytest, torch
from safetensors.torch import load_file, load_model, save_file, save_model
from transformers import PreTrainedTokenizerFast

from keepfit_nb.decoder import (STRATEGIES, CaptionDecoder, Settings, detokenise, f1, place_codes, score_captions, shown, stage_dims, stage_grids, stated)
from keepfit_nb.encoders import Settings as EncoderSettings, build_image_encoder, train_tokenizer
from keepfit_nb.profiles import project_root

TEXTS = ["Hard exudates above the fovea, cotton-wool spots.", "Drusen below the fovea.", "A healthy eye, cup-to-disc ratio 0.3.", "Non-perfusion (OD)."]
DIMS = (8, 12)


@pytest.fixture(scope="module")
def tokenizer(): return train_tokenizer(TEXTS * 3, 200, 48)


@pytest.fixture
def decoder(tokenizer):
    torch.manual_seed(0)
    return CaptionDecoder(tokenizer, DIMS, Settings(width=32, heads=4, layers=2, max_tokens=24, stages=[-2, -1])).eval()


@pytest.fixture
def grids():
    g = torch.Generator().manual_seed(1)
    return [torch.randn(5, 4, 4, DIMS[0], generator=g), torch.randn(5, 2, 2, DIMS[1], generator=g)]


def one(grids, i): return [g[i:i + 1] for g in grids]


def test_loss_is_the_mean_over_words_whatever_the_padding(decoder, grids):
    decoder.double(); grids = [g.double() for g in grids]
    together = decoder.loss([g[:4] for g in grids], decoder.tokenize(TEXTS))
    sums, words = 0., 0
    for i, t in enumerate(TEXTS):
        tokens = decoder.tokenize([t]); n = tokens["input_ids"].shape[1] - 1
        sums, words = sums + n * decoder.loss(one(grids, i), tokens), words + n
    assert abs(together - sums / words) < 1e-10
    tokens = decoder.tokenize(TEXTS); targets = tokens["input_ids"][:, 1:].masked_fill(tokens["attention_mask"][:, 1:] == 0, -100)
    plain = torch.nn.functional.cross_entropy(decoder.logits([g[:4] for g in grids], tokens["input_ids"])[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert abs(together - plain) < 1e-10           # scores of the words alone are enough


def test_no_word_sees_the_future(decoder, grids):
    ids = decoder.tokenize(TEXTS[:1])["input_ids"]
    changed = ids.clone(); changed[0, 6:] = 7
    a, b = (decoder.logits(one(grids, 0), i) for i in (ids, changed))
    assert torch.allclose(a[:, :6], b[:, :6], atol=1e-5) and not torch.allclose(a[:, 6:], b[:, 6:], atol=1e-3)


def test_every_patch_matters_and_its_place_too(decoder, grids):
    ids, first = decoder.tokenize(TEXTS[:1])["input_ids"], [g[:1].clone().requires_grad_() for g in grids]
    decoder.logits(first, ids)[0, -1].square().sum().backward()
    for g in first: assert (g.grad.abs().sum(-1) > 0).all()
    moved = [one(grids, 0)[0].flip(2), one(grids, 0)[1]]                  # a bag of patches would not notice
    assert not torch.allclose(decoder.logits(one(grids, 0), ids), decoder.logits(moved, ids), atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("batch", [1, 5])
def test_the_cache_changes_nothing(decoder, grids, strategy, batch):
    some = [g[:batch] for g in grids]
    kept, afresh = (decoder.generate_ids(some, strategy, cache=c, seed=3) for c in (True, False))
    assert torch.equal(kept, afresh) and len(kept) == batch


@torch.no_grad()
def slow_greedy(decoder, grids):
    t, ids = decoder.tokenizer, torch.tensor([[decoder.tokenizer.cls_token_id]])
    while ids.shape[1] < decoder.settings.max_tokens and ids[0, -1] != t.sep_token_id:
        scores = decoder.logits(grids, ids)[0, -1]
        scores[[t.pad_token_id, t.unk_token_id, t.cls_token_id, t.mask_token_id]] = -torch.inf
        ids = torch.cat([ids, scores.argmax()[None, None]], 1)
    return ids[0].tolist()


def teach(decoder, grids, steps=25):
    optimiser, tokens = torch.optim.AdamW(decoder.parameters(), lr=5e-3), decoder.tokenize(TEXTS)
    decoder.train()
    for _ in range(steps):
        loss = decoder.loss([g[:4] for g in grids], tokens); optimiser.zero_grad(); loss.backward(); optimiser.step()
    decoder.eval()


def test_greedy_is_the_loop_also_after_training(decoder, grids):
    for _ in range(2):
        ids = decoder.generate_ids(grids, "greedy").tolist()
        for i, row in enumerate(ids):
            expected = slow_greedy(decoder, one(grids, i))
            assert row[:len(expected)] == expected and set(row[len(expected):]) <= {decoder.tokenizer.pad_token_id}
        teach(decoder, grids)


def test_more_beams_find_likelier_captions(tokenizer, grids):
    torch.manual_seed(0)
    decoder = CaptionDecoder(tokenizer, DIMS, Settings(width=32, heads=4, max_tokens=24, stages=[-2, -1], length_penalty=0.))
    teach(decoder, grids)
    found = [decoder.likelihood(grids, decoder.generate_ids(grids, "beam", beams=n)).mean() for n in (1, 4)]
    assert found[1] >= found[0] - 1e-5
    assert torch.equal(decoder.generate_ids(grids, "beam", beams=1), decoder.generate_ids(grids, "greedy"))


def test_likelihood_equals_the_sum_of_its_steps(decoder, grids):
    ids = decoder.generate_ids(grids, "nucleus", seed=5); fast = decoder.likelihood(grids, ids)
    end = decoder.config.eos_token_id
    for i, row in enumerate(ids.tolist()):
        row = row[:row.index(end) + 1] if end in row else row
        slow = sum(decoder.logits(one(grids, i), torch.tensor([row[:t]]))[0, -1].log_softmax(-1)[row[t]].item() for t in range(1, len(row)))
        assert abs(slow - fast[i].item()) < 1e-3


def test_writing_leaves_mode_and_dice_alone(decoder, grids):
    decoder.train(); torch.manual_seed(7); expected = torch.rand(3); torch.manual_seed(7)
    a = decoder.generate(grids, "nucleus", seed=1); b = decoder.generate(grids, "nucleus", seed=1)
    assert a == b and decoder.training and torch.equal(torch.rand(3), expected)
    assert any(decoder.generate(grids, "nucleus", seed=s) != a for s in (2, 3, 4))


def test_it_learns_to_tell_eyes_apart(decoder, grids):
    teach(decoder, grids, 150)
    assert decoder.generate([g[:4] for g in grids], "greedy") == TEXTS


def test_looks_are_shares(decoder, grids):
    ids = decoder.generate_ids(grids, "greedy"); maps = decoder.look(grids, ids)
    assert [tuple(m.shape[2:]) for m in maps] == [(4, 4), (2, 2)] and maps[0].shape[:2] == ids.shape
    total = sum(m.flatten(2).sum(-1) for m in maps)
    assert torch.allclose(total[:, 1:], torch.ones_like(total[:, 1:]), atol=1e-5) and (total[:, 0] == 0).all()


def test_bad_input(decoder, grids, tokenizer):
    with pytest.raises(ValueError, match="positions \\[0, 2\\]"): decoder.tokenize(["", "Drusen.", None])
    with pytest.raises(ValueError, match="non-empty list"): decoder.tokenize("Drusen.")
    with pytest.raises(ValueError, match="non-empty list"): decoder.tokenize([])
    with pytest.raises(ValueError, match="did you mean 'greedy'"): decoder.generate(grids, "gredy")
    with pytest.raises(ValueError, match="2.*\\(B, rows, columns, 8\\)|expected"): decoder.generate([grids[1], grids[0]])
    with pytest.raises(ValueError, match="1 grids were given"): decoder.generate(grids[0])
    broken = [g.clone() for g in grids]; broken[1][3, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="images \\[3\\]"): decoder.generate(broken)
    assert torch.isnan(decoder.loss([torch.full_like(g[:4], torch.nan) for g in grids], decoder.tokenize(TEXTS)))      # the training loop stops at it
    for wrong in (dict(width=30), dict(width=36, heads=8), dict(strategy="beams"), dict(beems=2), dict(top_p=0)):
        with pytest.raises(ValueError): Settings(**wrong)
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="padding token"): CaptionDecoder(bare, 8)


def test_a_long_caption_is_cut_without_an_end_sign(decoder):
    tokens = decoder.tokenize([" ".join(TEXTS * 3), TEXTS[1]])
    assert tokens["input_ids"].shape[1] == decoder.settings.max_tokens
    ends = (tokens["input_ids"] == decoder.config.eos_token_id).sum(1).tolist()
    assert ends == [0, 1]


def test_foreign_words_are_noted_once(decoder):
    with pytest.warns(UserWarning, match="unknown to this tokenizer"): decoder.tokenize(["视网膜出血，黄斑水肿。"])
    with warnings.catch_warnings():
        warnings.simplefilter("error"); decoder.tokenize(["视网膜出血。"])


def test_saved_and_loaded(decoder, grids, tokenizer, tmp_path):
    save_model(decoder, tmp_path / "a.safetensors")
    other = CaptionDecoder(tokenizer, DIMS, decoder.settings); load_model(other, tmp_path / "a.safetensors")
    save_file({k: v.clone() for k, v in decoder.state_dict().items()}, tmp_path / "b.safetensors")       # as chapter 13 writes it
    third = CaptionDecoder(tokenizer, DIMS, decoder.settings); third.load_state_dict(load_file(tmp_path / "b.safetensors"))
    for d in (other, third): assert d.generate(grids, "beam") == decoder.generate(grids, "beam") and d.lm.lm_head.weight is d.lm.transformer.wte.weight


@pytest.mark.parametrize("name,stages", [("resnet10t", (-3, -1)), ("vit_tiny_patch16_224", (-2, -1)), ("convnext_atto", (-2, -1)), ("swin_tiny_patch4_window7_224", (-1, -2))])
def test_stages_of_many_encoders(name, stages):
    encoder, x = build_image_encoder(EncoderSettings(image_model=name), 64).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled, grids = stage_grids(encoder, x, stages); alone, patches = encoder(x)
    assert torch.allclose(pooled, alone, atol=1e-5) and [g.shape[-1] for g in grids] == stage_dims(encoder, stages)
    assert torch.allclose(grids[stages.index(-1)].flatten(1, 2), patches, atol=1e-5)
    assert stage_grids(encoder, x, [-1])[1][0].shape == grids[stages.index(-1)].shape
    with pytest.raises(ValueError, match="this encoder has stages"): stage_grids(encoder, x, [-1, 99])


def test_places():
    for width in (4, 32, 132): assert place_codes(3, 5, width).shape == (3, 5, width)
    codes = place_codes(16, 16, 64).flatten(0, 1)
    assert torch.pdist(codes).min() > .05                                 # no two places look alike


@pytest.mark.parametrize("text,expected", [
    ("a ratio of 0. 6 . drusen .", "A ratio of 0.6. Drusen."), ("cotton - wool spots , none", "Cotton-wool spots, none"),
    ("the oct of the right eye ( od ) : normal", "The OCT of the right eye (OD): normal"), ("黄 斑 水 肿 ， 3 处", "黄斑水肿，3处"), ("", ""), (". . .", "...")])
def test_detokenise(text, expected): assert detokenise(text) == expected


def test_nothing_is_lost_between_caption_and_tokens():
    from keepfit_nb.reading import many_eyes, pictures, read
    from keepfit_nb.speech import caption
    texts = [caption(e, m, i % 5, "en", p) for i, e in enumerate(many_eyes(300, 11)) for m, p in pictures(e)]
    words = train_tokenizer(texts, 2000, 128)
    for text in texts:
        back = detokenise(words.decode(words(text)["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False))
        assert read(back) == read(text), (text, back)


def test_findings_by_hand():
    rows = [dict(modality="CFP", categories=["normal"], attributes=[]), dict(modality="OCT", categories=["drusen"], attributes=["drusen size: large", "fluid: absent"])]
    assert shown(rows[0]) == set() and shown(rows[1]) == {"disease: drusen", "drusen size: large"}
    assert stated("No haemorrhages. A healthy eye.") == set()
    assert "cysts: few" in stated("OCT image showing diabetic macular edema, with scant intraretinal cysts.")
    assert f1([{"a", "b"}, set()], [{"a"}, {"c"}]) == dict(precision=.5, recall=.5, f1=.5)
    assert f1([set()], [set()])["f1"] == 0
    assert set(score_captions(["", ""], rows)) >= {"present_f1", "named_f1", "disease_f1", "present_f1_CFP", "present_f1_OCT"}


def test_true_captions_score_full_marks():
    from keepfit_nb.captions import Settings as Phantoms, jobs_of, make_row
    from keepfit_nb.eye import sample_eye
    from keepfit_nb.speech import caption, phase_of
    jobs = jobs_of(Phantoms(n_public=0, n_elite=0, n_eval_train=0, n_eval_test=60), 5)
    rows, texts = [make_row(j, Phantoms(), None) for j in jobs], []
    for j in jobs:
        eye = sample_eye(j["seed"], tuple(j["diseases"])); phase = phase_of(eye, False) if j["modality"] == "FFA" else ""
        texts.append(caption(eye, j["modality"], 0, "en", phase))
    assert score_captions(texts, rows)["present_f1"] > .99


@pytest.mark.slow
def test_needs_no_heavy_imports():
    "Nor does chapter 13, which imports all of the training path."
    code = ("import sys\nclass No:\n  def find_spec(self, name, path=None, target=None):\n    if name.split('.')[0] in ('cv2', 'pyarrow', 'datasets'): raise ImportError(name)\n"
            "sys.meta_path.insert(0, No())\nimport torch, keepfit_nb.pretraining\nfrom keepfit_nb.decoder import *\nfrom keepfit_nb.encoders import train_tokenizer\n"
            "d = CaptionDecoder(train_tokenizer(['drusen above the fovea'] * 3, 90, 16), 4, Settings(width=16, layers=1, heads=2, max_tokens=16, stages=[-1]))\n"
            "d.loss(torch.randn(1, 2, 2, 4), d.tokenize(['drusen'])).backward(); print(len(d.generate(torch.randn(2, 2, 2, 4))))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("2"), done.stderr[-1500:]


@pytest.mark.slow
def test_benchmark_runs_and_has_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(project_root() / "benchmarks"))
    from captioning import measure
    values = measure(train=20, test=10, steps=4, batch_size=8, labels=3, least=3, views=2, folder=tmp_path)
    assert 0 <= values["present_f1"] <= 1 and {"majority_f1", "constant_f1", "greedy.present_f1", "present_f1_OCT"} <= values.keys()
    assert values["findings"] > 1 and 0 <= values["encoder_f1"] <= 1
    assert 0 <= values["alone.present_f1"] <= 1 and "alone.encoder_f1" not in values and values["alone.loss"] != values["loss"]


def test_a_captioner_keeps_its_encoder_unless_captions_teach_it(monkeypatch):
    monkeypatch.syspath_prepend(str(project_root() / "benchmarks"))
    from captioning import Captioner, Findings
    settings = Settings(width=16, layers=1, heads=2, max_tokens=16, stages=[-2, -1])
    for joint in (False, True):
        model = Captioner(train_tokenizer(["drusen above the fovea"] * 3, 90, 16), settings).train()
        before, pixels = {k: v.clone() for k, v in model.encoder.state_dict().items()}, torch.rand(4, 3, 64, 64)
        looked_at = dict(pixels=pixels) if joint else dict(grids=[g[0] for g in model.views(pixels, 1, seed=0)])
        model(dict(step=0, **looked_at, tokens=model.decoder.tokenize(["drusen"] * 4)))["loss"].backward()
        assert any(p.grad is not None for p in model.encoder.parameters()) == joint and any(p.grad is not None for p in model.decoder.parameters())
        assert all(torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items()) != joint      # batch statistics too
    grids = model.views(torch.rand(5, 3, 64, 64), 3, seed=0)
    assert [tuple(g.shape) for g in grids] == [(3, 5, 4, 4, 256), (3, 5, 2, 2, 512)] and all(not torch.equal(g[0], g[1]) for g in grids) and model.training
    model.zero_grad(); model(dict(grids=[g[[0, 2], [1, 4]] for g in grids], tokens=model.decoder.tokenize(["drusen"] * 2)))["loss"].backward()
    assert all(p.grad is None for p in model.encoder.parameters()) and any(p.grad is not None for p in model.decoder.parameters())
    first = Findings(model, ["disease: drusen", "drusen: few"])
    first.head.bias.data = torch.tensor([50., -50.]); assert first.found(torch.rand(3, 3, 64, 64)) == [{"disease: drusen"}] * 3 and first.training


def test_batches_of_about_one_length_hold_each_image_as_often_as_others(monkeypatch):
    monkeypatch.syspath_prepend(str(project_root() / "benchmarks"))
    from captioning import alike
    lengths = np.random.default_rng(0).integers(5, 90, 40)
    batches = [alike(step, lengths, 5, seed=3) for step in range(16)]          # two passes over 40 images
    assert all(sorted(np.concatenate(part)) == list(range(40)) for part in (batches[:8], batches[8:]))
    assert max(np.ptp(lengths[b]) for b in batches) < 30 and not np.array_equal(batches[0], batches[8])
    starts = [lengths[b].min() for b in batches[:8]]; assert starts != sorted(starts)       # not from short to long
