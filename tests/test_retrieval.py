"Chapters 18, 18.1 and 18.2: search, ranked lists, captions' scores, and the protocols on a bench that we know everything about."
import stat, sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from evaluation_bench import FakeModel, make_bench

from keepfit_nb import captioning as cap, ranking as rk, retrieval as rt
from keepfit_nb.evaluation import RESULT_COLUMNS, ResultRow, resample


def naive(q, g, k):
    s = q.astype(np.float32) @ g.astype(np.float32).T
    order = np.argsort(-s, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(s, order, 1)


# ---- search

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 60), st.integers(1, 12), st.integers(1, 70), st.integers(0, 999))
def test_search_is_a_full_sort_whatever_the_block(n, m, k, block, seed):
    rng = np.random.default_rng(seed)
    q, g = rng.integers(-1, 2, (n, 3)).astype(np.float32), rng.integers(-1, 2, (m, 3)).astype(np.float16)      # many ties
    for mine, theirs in zip(rk.search(q, g, k, block), naive(q, g, k)): assert (mine == theirs).all()


def test_search_of_a_file_in_bounded_memory(tmp_path):
    import tracemalloc
    rng, path = np.random.default_rng(0), tmp_path / "gallery.npy"
    file = np.lib.format.open_memmap(path, "w+", np.float16, (60_000, 64))
    for i in range(0, len(file), 10_000): file[i:i + 10_000] = rng.normal(size=(10_000, 64))
    file.flush(); q = rng.normal(size=(20, 64)).astype(np.float32)
    tracemalloc.start(); found = rk.search(q, np.load(path, mmap_mode="r"), 10, block=1000); peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 2e6 < file.size * 2                         # of 7.7 MB in the file, and 4.8 MB of scores
    s = q @ np.load(path).astype(np.float32).T
    assert np.allclose(found[1], -np.sort(-s, axis=1)[:, :10], atol=1e-3) and (found[0][:, 0] == s.argmax(1)).all()


def test_bad_input_of_search():
    g = np.eye(4); g[2, 1] = np.nan
    with pytest.raises(ValueError, match="gallery: row 2 holds NaN"): rk.search(np.eye(4), g, block=1)
    with pytest.raises(ValueError, match="queries: row 2"): rk.search(g, np.eye(4))
    with pytest.raises(ValueError, match="one model"): rk.search(np.eye(4), np.eye(5))
    with pytest.raises(ValueError, match="0 rows in the gallery"): rk.search(np.eye(4), np.zeros((0, 4)))
    with pytest.raises(ValueError, match="k = 0"): rk.search(np.eye(4), np.eye(4), k=0)
    with pytest.raises(ValueError, match="rows of vectors"): rk.search(np.ones(4), np.eye(4))
    assert rk.search(np.eye(4)[:1], np.eye(4)[:1], k=99)[0].tolist() == [[0]]           # one image


# ---- scores of a list

@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(0, 999))
def test_scores_agree_with_scikit_learn(m, seed):
    from sklearn.metrics import average_precision_score, ndcg_score
    rng = np.random.default_rng(seed); gains = rng.choice([0, .25, 1], m); right = gains == 1
    found = {k: v[0] for k, v in rk.rank_metrics(gains).items()}
    if right.any(): assert found["mAP"] == pytest.approx(average_precision_score(right, -np.arange(m)))
    else: assert np.isnan(found["mAP"]) and np.isnan(found["R@1"])
    if gains.any(): assert found["nDCG@10"] == pytest.approx(ndcg_score([gains], [-np.arange(m)], k=10))
    else: assert np.isnan(found["nDCG@10"])
    for k in rk.KS: assert np.isnan(found[f"R@{k}"]) if m <= k or not right.any() else found[f"R@{k}"] == right[:k].any()


def test_chance_is_the_mean_over_all_orders():
    from itertools import permutations
    for gains in ([1, 0, 0, .5], [1, 1, 0, 0, 0, .5]):
        orders = np.array(list(permutations(gains)))
        for m, v in rk.chance(gains).items():
            real = rk.rank_metrics(orders)[m]
            assert v[0] == pytest.approx(real.mean()) or (np.isnan(v[0]) and np.isnan(real).all()), m


def test_filling_behind_the_list_changes_nothing():
    g = np.array([[0, 1, .5, 1., 0, 0, 0]])
    wide = np.hstack([g, np.zeros((1, 9))])
    for f in (rk.rank_metrics, rk.chance):
        for m, v in f(wide, [7]).items(): np.testing.assert_allclose(v, f(g)[m], err_msg=m)


def test_what_is_skipped_is_no_answer():
    x = np.eye(6); label = np.array([0, 0, 0, 1, 1, 2])
    same, itself = (lambda s: label[s, None] == label), (lambda s: np.arange(6)[s, None] == np.arange(6))
    scores, luck = rk.judge_ranking(x, x, same, itself, block=4)
    assert np.isnan(scores["mAP"][5]) and np.isfinite(scores["mAP"][:5]).all()           # the sixth has nobody to find
    assert luck["R@1"][0] == pytest.approx(2 / 5) and luck["R@1"][3] == pytest.approx(1 / 5) and np.isnan(scores["R@5"]).all()


def test_a_collapsed_model_is_at_chance_however_rows_are_sorted():
    label = np.repeat([0, 1, 2, 3], [40, 5, 5, 5]); x = np.ones((55, 3))
    same = lambda s: label[s, None] == label
    runs = [rk.judge_ranking(x, x, same, seed=s) for s in range(60)]
    for m in ("R@1", "mAP"):
        assert np.mean([s[m].mean() for s, _ in runs]) == pytest.approx(runs[0][1][m].mean(), abs=.08), m


def test_the_order_of_the_gallery_does_not_matter():
    rng = np.random.default_rng(0); x, label = rng.normal(size=(30, 5)), rng.integers(0, 4, 30); deal = rng.permutation(30)
    a, _ = rk.judge_ranking(x, x, lambda s: label[s, None] == label)
    b, _ = rk.judge_ranking(3 * x, x[deal], lambda s: label[s, None] == label[deal], seed=8)          # nor the length of the queries
    for m in rk.RANK_METRICS: np.testing.assert_allclose(a[m], b[m])


def test_overlap():
    V = rk.multi_hot([{"a", "b"}, {"a"}, set(), {"unknown"}], ["a", "b"])
    np.testing.assert_allclose(rk.overlap(V, V), [[1, .5, 0, 0], [.5, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])


def test_replicates_of_the_gallery_are_lists_written_out():
    rng = np.random.default_rng(3); gains = rng.choice([0, 1.], (4, 20)); gains[:, 0] = 1
    order = np.stack([rng.permutation(20) for _ in range(4)]); weights = resample(np.zeros(20), 6, 0)
    found = rk.redraw(gains, order, weights)
    for b, w in enumerate(weights.astype(int)):
        rows = [rk.rank_metrics(np.repeat(g, w[o])) for g, o in zip(gains, order)]
        for m in rk.RANK_METRICS: assert found[m][b] == pytest.approx(np.nanmean([r[m][0] for r in rows])), m


def test_replicates_of_a_gallery_are_moved_back_to_its_value():
    drawn = np.array([.2, .3, .4, np.nan, 1.])
    assert rk.centred(drawn, .6).mean() == pytest.approx(.6, abs=.05) and rk.centred(drawn, .9).max() == 1 and len(rk.centred(drawn[3:4], .5)) == 0


# ---- captions

def test_cider_by_hand():
    refs = [["a b"], ["a c"]]
    np.testing.assert_allclose(cap.cider(["b", "a"], refs), [.25, 0])
    np.testing.assert_allclose(cap.cider(["a b c", "a c"], refs)[0], (2 ** -.5 + 2 ** -.5) / 4)       # of {b, c} and of {ab, bc} one each is his
    d = cap.cider(["b b", "a c"], refs, d=True)                                                      # clipped: repeating gains nothing
    np.testing.assert_allclose(d[0], 10 / 4 * .5); np.testing.assert_allclose(d[1], 10 / 2)
    assert np.isnan(cap.cider(["a"], [["a"]])).all()


def test_corpus_bleu_under_weights_is_bleu_of_the_drawn_captions():
    from sacrebleu.metrics import BLEU
    said = ["a small round hole", "the optic disc is pale", "many small drusen here and there", "a swollen disc"]
    refs = [["a large round hole"], ["pale optic disc"], ["many small drusen"], ["the disc is swollen", "a swollen disc here"]]
    counts = cap.bleu_counts(said, refs); W = np.array([[1, 1, 1, 1], [2, 0, 1, 1]])
    for w, value in zip(W, cap.bleu(counts, W)):
        at = np.repeat(np.arange(4), w); streams = [[refs[i][k % len(refs[i])] for i in at] for k in range(2)]
        assert value == pytest.approx(BLEU(lowercase=True).corpus_score([said[i] for i in at], streams).score)


def test_captions_scores_and_their_corner_cases():
    refs, true = [["many drusen"], ["a large cup"], ["a healthy eye"]], [{"drusen: many"}, {"cup: large"}, set()]
    perfect = cap.score_words([r[0] for r in refs], refs, weights=np.ones((3, 3)))
    assert perfect["ROUGE-L"] == (1, 1, 1) and "findings F1" not in perfect
    silent = cap.score_words(["", "", ""], refs, true)
    assert silent["BLEU"][0] == silent["ROUGE-L"][0] == silent["CIDEr-D"][0] == silent["findings F1"][0] == 0 and np.isnan(silent["BLEU"][1])
    assert np.isnan(cap.findings_f1(np.zeros((2, 3)))[0])
    for said, r, why in ((["a"], refs, "one each"), ([], [], "no caption"), (["a"], [[]], "no reference"), (["a"], ["a text"], "no reference")):
        with pytest.raises(ValueError, match=why): cap.score_words(said, r)


def test_facts_decide_where_words_do_not():
    from keepfit_nb.decoder import score_captions, shown
    record = dict(modality="CFP", categories=["diabetic retinopathy"], attributes=["microaneurysms: many", "hard exudates: present"])
    right = "Fundus photograph with many microaneurysms and hard exudates."; wrong = right.replace("many", "few")
    value = lambda said: cap.findings_f1(cap.finding_counts([said], [cap.facts_only(shown(record))]))[0]
    assert value(right) > value(wrong) and cap.rouge_l([wrong], [[right]])[0] > .8
    assert value(wrong) == pytest.approx(score_captions([wrong], [record])["present_f1"])


def test_meteor_says_what_is_missing_or_uses_its_tool(tmp_path, monkeypatch):
    monkeypatch.delenv("METEOR_JAR", raising=False)
    with pytest.raises(RuntimeError, match="METEOR_JAR"): cap.meteor(["a"], [["a"]])
    (tmp_path / "meteor-1.5.jar").touch(); java = tmp_path / "java"
    java.write_text(f"#!{sys.executable}\nimport sys\nn = len(open(sys.argv[5]).readlines()); assert n == 2 * len(open(sys.argv[4]).readlines()) and sys.argv[-1] == '2'\nprint('Final score:            0.375')\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("METEOR_JAR", str(tmp_path / "meteor-1.5.jar")); monkeypatch.setenv("PATH", str(tmp_path))
    assert cap.meteor(["a", "b\nc"], [["a"], ["b", "c"]]) == .375
    found = cap.score_words(["a", "b"], [["a"], ["b", "c"]], weights=np.ones((3, 2)))
    assert found["METEOR"][0] == .375 and np.isnan(found["METEOR"][1:]).all() and np.isfinite(found["BLEU"]).all()
    ask, pair = asker(tmp_path / "14"), [p | dict(words=["a large cup", "a cup"]) for p in photos(2)]
    rt.judge_captions(ask, rt.Group("phantoms", "CFP", pair, np.eye(2)), "captioning", ["a cup", "a disc"])
    for rows in (ask.rows, *ask.luck.values()): assert [(r["value"], r["n"]) for r in rows if r["metric"] == "METEOR"] == [(.375, 2)]      # in the results, ours and by chance
    java.write_text(f"#!{sys.executable}\nraise SystemExit('broken jar')\n")
    with pytest.raises(RuntimeError, match="broken jar"): cap.meteor(["a"], [["a"]])
    monkeypatch.delenv("METEOR_JAR"); assert "METEOR" not in cap.score_words(["a"], [["a"]])


# ---- the protocols

def test_eyes_are_the_same_in_all_cameras_and_in_no_other_set():
    from keepfit_nb.captions import Settings, jobs_of
    from keepfit_nb.eye import visible_diseases
    seeds = {rt.draw_eye(i, 0).seed for i in range(30)}
    assert len(seeds) == 30 and not seeds & {j["seed"] for j in jobs_of(Settings(), 0)}
    a, b = rt.draw_eye(4, 0), rt.draw_eye(5, 0)
    assert a.diseases == b.diseases and a.seed != b.seed and rt.draw_eye(4, 0) == a          # two eyes a disease
    assert all(sum(bool(visible_diseases(rt.draw_eye(i, 0), m)) for m in rt.MODALITIES) > 1 for i in range(0, 46, 2))
    cfp, oct = (rt.photo_of(4, a, m) for m in ("CFP", "OCT"))
    assert cfp["who"] == oct["who"] and len(cfp["words"]) == 3 and cfp["words"] != oct["words"]


def test_a_photograph_passes_the_one_way_of_preprocessing():
    import torch
    from keepfit_nb.captions import render
    from keepfit_nb.decoding import preprocess
    eye = rt.draw_eye(0, 0); x = rt.photograph(eye, "OCT", 48, pixels=64)
    assert x.dtype == torch.uint8 and x.shape == (3, 48, 48) and (x == preprocess(render(eye, "OCT", 64), 48)).all()
    j = rt.photograph(eye, "OCT", 48, "jpeg", 64)
    assert (j != x).any() and (j.int() - x.int()).abs().float().mean() < 12


def photos(n, modality="CFP", who=True, facts=("cup: large", "cup: small"), text=lambda i: f"caption {i % 3}"):
    return [dict(set="phantoms", modality=modality, who=f"eye {i}" if who else "", patient=f"p{i}", categories=["glaucoma" if i % 2 else "normal"], attributes=[],
                 findings=[facts[i % len(facts)]], words=[text(i)]) for i in range(n)]


def asker(tmp_path, vectors=None): return rt.Asker(make_bench(tmp_path), "keepfit", 0, vectors or {}, [], {})


def values(ask, metric="R@1"): return {(r["task"], r["protocol"]): r["value"] for r in ask.rows if r["metric"] == metric}


def test_the_same_eye_is_found_by_equal_vectors(tmp_path):
    x, ask = np.eye(14), asker(tmp_path)
    cfp, oct = rt.Group("phantoms", "CFP", photos(14), x), rt.Group("phantoms", "OCT", photos(14, "OCT"), x)
    assert rt.across(ask, cfp, oct) == 14
    assert values(ask)["phantoms CFP to OCT, same eye", "across cameras"] == 1
    luck = {(r["task"], r["metric"]): r["value"] for rows in ask.luck.values() for r in rows}
    assert luck["phantoms CFP to OCT, same eye", "R@10"] == pytest.approx(10 / 14)
    assert luck["phantoms CFP to OCT, same disease", "R@1"] == pytest.approx(6 / 13)        # its own eye is no answer there
    for row in ask.rows: ResultRow(**row)
    assert all(r["n"] == 14 and r["modality"] == "CFP" for r in ask.rows)


def test_no_pair_of_cameras_is_no_row(tmp_path):
    ask = asker(tmp_path)
    alone = rt.Group("phantoms", "OCT", photos(5, "OCT", who=False), np.eye(5))
    assert rt.across(ask, rt.Group("phantoms", "CFP", photos(5), np.eye(5)), alone) == 0 and not ask.rows
    one = rt.Group("phantoms", "OCT", photos(1, "OCT"), np.eye(5)[:1])
    assert rt.across(ask, rt.Group("phantoms", "CFP", photos(5), np.eye(5)), one) == 1 and not ask.rows


def test_one_image_is_no_row(tmp_path):
    ask = asker(tmp_path, {"caption 0": np.eye(4)[0]}); one = rt.Group("phantoms", "CFP", photos(1), np.eye(4)[:1])
    rt.by_category(ask, one); rt.by_caption(ask, one)
    assert not ask.rows and rt.caption_all(ask, None, one, None, [], 9) == []


def test_repeated_captions_stand_once_and_are_right_for_all_their_eyes(tmp_path):
    facts = ("a: 1", "b: 1", "c: 1"); at = np.arange(9) % 3
    ask = asker(tmp_path, {f"caption {i}": np.eye(4)[i] for i in range(3)})
    rt.by_caption(ask, rt.Group("phantoms", "CFP", photos(9, facts=facts), np.eye(4)[at]))
    assert values(ask)["phantoms CFP by caption", "image to text"] == values(ask)["phantoms CFP by caption", "text to image"] == 1
    assert values(ask, "mAP")["phantoms CFP by caption", "text to image"] == 1
    luck = {(r["protocol"], r["metric"]): r["value"] for rows in ask.luck.values() for r in rows}
    assert luck["image to text", "R@1"] == pytest.approx(1 / 3) and np.isnan(luck["image to text", "R@5"])     # a gallery of three texts


def test_another_text_with_the_same_facts_is_right(tmp_path):
    ask = asker(tmp_path, {f"caption {i}": np.eye(6)[(i + 2) % 6] for i in range(6)})      # each image finds the text of the next with its facts
    rt.by_caption(ask, rt.Group("phantoms", "CFP", photos(6, text=lambda i: f"caption {i}"), np.eye(6)))
    assert values(ask)["phantoms CFP by caption", "image to text"] == 1


def test_categories_never_find_their_own_patient(tmp_path):
    ask = asker(tmp_path); ps = photos(12)
    for p in ps: p["patient"] = f"p{int(p['who'].split()[1]) // 4}"                        # four pictures a patient, alike
    x = np.eye(3)[np.arange(12) // 4]
    rt.by_category(ask, rt.Group("phantoms", "CFP", ps, x))
    assert values(ask)["phantoms CFP by category", "image to image"] < 1 and {r["protocol"] for r in ask.rows} == {"image to image"}


def test_nan_vectors_are_named(tmp_path):
    x = np.eye(6); x[3] = np.nan
    with pytest.raises(ValueError, match="row 3 holds NaN"): rt.by_category(asker(tmp_path), rt.Group("phantoms", "CFP", photos(6), x))


def test_borrowed_captions(tmp_path):
    elite = [dict(modality="CFP", caption="caption 1"), dict(modality="OCT", caption="caption 0"), dict(modality="CFP", caption="caption 2")]
    ask = asker(tmp_path, {f"caption {i}": np.eye(4)[i] for i in range(3)}); group = rt.Group("phantoms", "CFP", photos(6), np.eye(4)[np.arange(6) % 3])
    assert rt.borrow(ask, group, elite)[1:3] == ["caption 1", "caption 2"] and "caption 0" not in rt.borrow(ask, group, elite)
    assert rt.borrow(ask, group, elite[1:2]) is None and rt.borrow(asker(tmp_path / "b"), group, elite) is None
    said = rt.caption_all(ask, SimpleNamespace(decoder=None), group, None, elite, 4)
    assert {r["protocol"] for r in said} == {"captioning, nearest caption"} and len(said) == 4
    told = rt.caption_all(ask, SimpleNamespace(decoder=1, caption=lambda x: [f"caption {i}" for i in x]), group, lambda ps: [int(p["who"][4:]) % 3 for p in ps], elite, 6)
    written = {r["metric"]: r["value"] for r in ask.rows if r["protocol"] == "captioning"}
    assert written["ROUGE-L"] == 1 and len(told) == 12 and set(cap.CAPTION_METRICS) == set(written)


def test_real_records_join_by_patient_and_eye(tmp_path):
    bench = make_bench(tmp_path)
    lines = [r | dict(caption=" A  cup. " if r["row"] % 2 else "", eye="OD" if r["row"] % 3 else "") for r in bench.records]
    found = rt.photos_of(bench, lines + lines)
    assert len(found) == sum(r["split"] == "test" for r in bench.records) and len({p["row"] for p in found}) == len(found)
    assert all((p["words"] == ["A cup."]) == bool(p["row"] % 2) and bool(p["who"]) == bool(p["row"] % 3) for p in found)


def test_all_protocols_of_a_bench(tmp_path):
    bench = make_bench(tmp_path); tested = rt.photos_of(bench, bench.records); drawn = photos(8, text=lambda i: "glaucoma" if i % 2 else "normal")
    words = rt.sentence_vectors(FakeModel(), rt.sentences_of(tested + drawn, []))
    groups = rt.grouped(tested, rt.stored(bench, "keepfit", 0, [p["row"] for p in tested])) + rt.grouped(drawn, np.eye(8)[np.arange(8) % 2])
    ask = rt.Asker(bench, "keepfit", 0, words, [], {}); rt.ask_model(ask, SimpleNamespace(), groups, None, [], rt.Settings())
    table = pd.DataFrame(ask.rows + [r for rows in ask.luck.values() for r in rows], columns=RESULT_COLUMNS)
    assert not table.duplicated(["model", "task", "protocol", "metric"]).any() and set(table.model) == {"keepfit", "chance"}
    lead = table[table.metric == "mAP"].set_index(["model", "task", "protocol"]).value
    for protocol in ("image to image", "image to text", "text to image"):
        assert lead["keepfit", "phantoms CFP by category", protocol] > lead["chance", "phantoms CFP by category", protocol] + .2
    there = table[(table.model == "keepfit") & table.value.notna()]
    assert (there.low <= there.value + 1e-9).all() and (there.value <= there.high + 1e-9).all()
    wordless = rt.Asker(bench, "start", 0, {}, [], {}); rt.ask_model(wordless, SimpleNamespace(), rt.grouped(tested, rt.stored(bench, "start", 0, [p["row"] for p in tested])), None, [], rt.Settings())
    assert {r["protocol"] for r in wordless.rows} == {"image to image"}
