"Text pretraining: whole words, nothing leaks, nothing is re-initialised, plain transformers can load it."
import numpy as np, pytest, torch
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from keepfit_nb import text_pretraining as tp
from keepfit_nb.encoders import Settings as EncoderSettings, build_text_encoder, train_tokenizer
from keepfit_nb.knowledge import corpus
from keepfit_nb.profiles import seed_everything
from keepfit_nb.text_pretraining import Settings, choose, corrupt, encode, load_text_weights, make_blocks, split_held_out, start_model, train_text

TEXTS = corpus()[:160]
TINY = EncoderSettings(text_width=32, text_layers=1, text_heads=2, vocab_size=600, max_tokens=64)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "What stage 07 leaves: tokenizer and the architecture."
    folder = tmp_path_factory.mktemp("tokenizer"); tokenizer = train_tokenizer(TEXTS, 600)
    tokenizer.save_pretrained(folder)
    BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
               max_position_embeddings=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(home): return tp.PreTrainedTokenizerFast.from_pretrained(home)


@pytest.fixture(scope="module")
def trained(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, train_text(TINY, TEXTS, home, Settings(steps=25, max_tokens=64, probes=40), folder, verbose=False, device="cpu")


def test_held_out_paragraphs_never_enter_a_training_block(tokenizer):
    train, held = split_held_out(TEXTS, .2)
    assert not set(train) & set(held) and len(train) + len(held) == len(TEXTS) and .1 < len(held) / len(TEXTS) < .3
    assert split_held_out([t.upper() for t in TEXTS], .2)[1] == [t.upper() for t in held]
    count = sum(len(encode(t, tokenizer).ids) for t in train)
    assert sum((b.words >= 0).sum() for b in make_blocks(train, tokenizer, 64)[0]) == count


def test_words_and_terms_are_hidden_whole_and_specials_never(tokenizer):
    blocks, _ = make_blocks(TEXTS, tokenizer, 64); rng = np.random.default_rng(0)
    shares = []
    for b in blocks[:60]:
        hidden = choose(b.words, b.terms, .15, 0., rng); shares.append(hidden.sum() / (b.words >= 0).sum())
        assert not hidden[b.words < 0].any() and all(hidden[b.words == w].all() for w in np.unique(b.words[hidden]))
        every = choose(b.words, b.terms, .15, 1., rng); assert every[b.terms >= 0].all()
    assert .15 <= np.mean(shares) < .2


def test_eighty_ten_ten_by_word():
    ids, words = np.full(40_000, 7), np.arange(40_000) // 2
    out = corrupt(ids, words, np.ones(40_000, bool), 4, np.arange(100, 200), np.random.default_rng(0))
    assert abs((out == 4).mean() - .8) < .01 and abs((out == 7).mean() - .1) < .01 and abs((out >= 100).mean() - .1) < .01
    assert ((out[::2] == 4) == (out[1::2] == 4)).all() and (ids == 7).all()


def test_batches_are_a_function_of_their_number(tokenizer):
    blocks, _ = make_blocks(TEXTS, tokenizer, 64); make = lambda seed: tp.MaskedBatches(blocks, tokenizer, Settings(), seed)
    a, b = make(0), make(0); late = b(7)
    for i in range(7): a(i)
    assert all(torch.equal(v, late[k]) for k, v in a(7).items()) and not torch.equal(make(1)(7)["labels"], late["labels"])
    kept = late["labels"] < 0
    assert ((late["input_ids"] == tokenizer.mask_token_id) & kept).sum() == 0


@pytest.mark.parametrize("pack", [True, False])
def test_blocks_fit_and_lose_nothing(tokenizer, pack):
    blocks, left = make_blocks([*TEXTS[:20], "\u89c6\u7f51\u819c\u8131\u79bb\u3002"], tokenizer, 32, pack)
    assert left == 1 and max(len(b.ids) for b in blocks) <= 32
    inside = np.concatenate([b.ids[b.words >= 0] for b in blocks])
    assert np.array_equal(inside, np.concatenate([encode(t, tokenizer).ids for t in TEXTS[:20]]))
    with pytest.raises(ValueError, match="another language"): make_blocks(["\u89c6\u7f51\u819c"], tokenizer, 32)


def test_pretrained_weights_are_the_checkpoints(home, tmp_path, tokenizer):
    seed_everything(5); model = BertForMaskedLM(BertConfig.from_pretrained(home)); model.save_pretrained(tmp_path); tokenizer.save_pretrained(tmp_path)
    started, _, origin = start_model(TINY.model_copy(update={"text_pretrained": str(tmp_path)}), tmp_path, seed=0)
    assert origin == "pretrained"
    for (k, a), b in zip(model.state_dict().items(), started.state_dict().values(), strict=True): assert torch.equal(a, b), k
    head = started.get_output_embeddings()
    assert head.weight is started.get_input_embeddings().weight and len(head.weight) == len(tokenizer) == len(head.bias)


def test_weights_without_a_head_and_weights_cut_in_half(home, tmp_path, tokenizer):
    seed_everything(5); bare = BertForMaskedLM(BertConfig.from_pretrained(home)).bert; bare.save_pretrained(tmp_path / "bare"); tokenizer.save_pretrained(tmp_path / "bare")
    started, _, origin = start_model(TINY.model_copy(update={"text_pretrained": str(tmp_path / "bare")}), home)
    assert origin == "pretrained, new head"
    assert all(torch.equal(a, started.base_model.state_dict()[k]) for k, a in bare.state_dict().items() if not k.startswith("pooler"))
    from safetensors.torch import load_file, save_file
    file = tmp_path / "bare" / "model.safetensors"; tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if "attention" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lack .* tensors of the encoder"): start_model(TINY.model_copy(update={"text_pretrained": str(tmp_path / "bare")}), home)


def test_new_words_begin_as_the_mean_of_their_pieces(home, tokenizer):
    import copy
    model, _, _ = start_model(TINY, home); wide, old = copy.deepcopy(tokenizer), len(tokenizer)
    table, words = model.get_input_embeddings().weight.detach().clone(), tp.new_words(TEXTS, tokenizer, 8)
    pieces = [tokenizer(w, add_special_tokens=False)["input_ids"] for w in words]
    tp.extend_vocabulary(model, wide, words); now = model.get_input_embeddings().weight
    assert len(words) == 8 and all(len(p) > 1 for p in pieces) and torch.equal(now[:old], table)
    for row, p in enumerate(pieces, old): assert torch.allclose(now[row], table[p].mean(0))
    assert model.get_output_embeddings().weight is now and len(model.get_output_embeddings().bias) == len(wide)
    t = encode(f"the {words[0]} here", wide); assert (t.words >= 0).all() and len(set(t.words)) == 3


def test_it_learns_and_plain_transformers_load_it(trained, home):
    folder, m = trained
    assert m["loss_after"] < m["loss_before"] and m["perplexity_after"] < m["perplexity_before"] and m["origin"] == "scratch" and m["terms"] == 40
    plain, bare = AutoModelForMaskedLM.from_pretrained(folder / "model"), AutoModel.from_pretrained(folder / "model")
    encoder = load_text_weights(build_text_encoder(TINY, home), folder)
    assert torch.equal(encoder.model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    for k, v in encoder.model.state_dict().items(): assert torch.equal(v, bare.state_dict()[k]), k


def test_loading_refuses_what_does_not_fit(trained, home, tmp_path):
    folder, _ = trained
    with pytest.raises(FileNotFoundError, match="enabled"): load_text_weights(build_text_encoder(TINY, home), tmp_path)
    cut = build_text_encoder(TINY, home); cut.model.encoder.layer = cut.model.encoder.layer[:0]
    with pytest.raises(ValueError, match="another text model"): load_text_weights(cut, folder)
    other = build_text_encoder(TINY, home); other.tokenizer = train_tokenizer(["quite another text about boats and boats"] * 3, 60)
    with pytest.raises(ValueError, match="another vocabulary"): load_text_weights(other, folder)


def test_extended_vocabulary_reaches_the_encoder(home, tmp_path):
    m = train_text(TINY, TEXTS, home, Settings(steps=2, max_tokens=64, probes=5, extend=4), tmp_path, verbose=False, device="cpu")
    encoder = load_text_weights(build_text_encoder(TINY, home), tmp_path)
    assert m["new_words"] == 4 and len(encoder.tokenizer) == len(tp.PreTrainedTokenizerFast.from_pretrained(home)) + 4
    assert encoder(["a retina"]).shape == (1, 32)


def test_no_text_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "corpus.txt").write_text("\n")
    with pytest.raises(ValueError, match="shipped_text"): tp.read_corpus(tmp_path / "corpus.txt")
    with pytest.raises(ValueError, match="too few"): split_held_out(["one"], .1)


def test_the_training_path_needs_neither_cv2_nor_pyarrow_nor_datasets():
    import subprocess, sys
    code = "import sys, keepfit_nb.text_pretraining; bad = {'cv2', 'pyarrow', 'datasets'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True); assert done.returncode == 0, done.stderr
