"Chapter 15: prototypes and words."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from evaluation_bench import FakeModel, make_bench

from keepfit_nb import zero_shot as zs
from keepfit_nb.evaluation import METRICS, OPERATING, ClassSpec, Task
from keepfit_nb.profiles import check_section


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(2, 5), st.floats(.1, 500), st.integers(0, 999))
def test_probabilities_sum_to_one_and_rank_as_similarity(n, c, scale, seed):
    rng = np.random.default_rng(seed); v, p = zs.unit(rng.normal(size=(n, 6))), zs.unit(rng.normal(size=(c, 6)))
    probs = zs.zero_shot(v, p, scale)
    assert np.allclose(probs.sum(1), 1) and (probs.argmax(1) == (v @ p.T).argmax(1)).all()


def test_prototypes_have_length_one_whatever_the_number_of_sentences():
    rng = np.random.default_rng(0); vectors = {str(i): rng.normal(size=5) for i in range(20)}
    p = zs.prototypes(vectors, [["0"], [str(i) for i in range(20)]])
    assert np.allclose(np.linalg.norm(p, axis=1), 1)
    assert np.allclose(p, zs.prototypes({k: 7 * v for k, v in vectors.items()}, [["0"], [str(i) for i in range(20)]]))
    with pytest.raises(ValueError, match="class 0 has no sentence"): zs.prototypes(vectors, [[]])


def test_dimensions_must_agree():
    with pytest.raises(ValueError, match="one model"): zs.zero_shot(np.ones((2, 4)), np.ones((2, 5)))


def test_sentences_of_a_task():
    named = Task(name="t", set="s", modality="CFP", kind="coarse", classes=[ClassSpec(name=n, categories=[n]) for n in ("glaucoma", "something new")])
    plain, many = zs.task_sentences(named, "plain"), zs.task_sentences(named, "ensemble")
    assert [len(s) for s in plain] == [1, 1] and len(many[0]) > len(many[1]) > 1 and "something new" in plain[1][0]
    assert len(zs.task_sentences(named, "definition")[0]) > 1
    own = Task(name="t", set="s", modality="CFP", kind="fine", classes=[ClassSpec(name=n, categories=["glaucoma"], prompts=[n, n + "!"]) for n in "ab"])
    assert zs.task_sentences(own, "plain") == [["a"], ["b"]] and zs.task_sentences(own, "ensemble")[1] == ["b", "b!"]
    assert zs.task_sentences(own, "definition") is None
    with pytest.raises(ValueError, match="did you mean 'ensemble'"): zs.task_sentences(own, "ensembel")


def test_the_first_kind_leads():
    own = Task(name="t", set="s", modality="CFP", kind="fine", classes=[ClassSpec(name=n, categories=["glaucoma"], prompts=[n, n + "!"]) for n in "ab"])
    assert [p for p, _ in zs.plan_of(own, zs.Settings())] == ["zero-shot", "zero-shot, plain"]
    assert zs.plan_of(own, zs.Settings(fine_prompts=["plain"]))[0] == ("zero-shot", [["a"], ["b"]])
    for bad in (dict(prompts=["plane"]), dict(prompts=[]), dict(prompt=["plain"])):
        with pytest.raises(ValueError, match="plain|name at least one|prompts"): check_section(bad, zs.Settings, "section 'zero_shot'")


def test_sentences_are_embedded_once():
    seen = []
    class Counting(FakeModel):
        def embed_text(self, texts): seen.extend(texts); return super().embed_text(texts)
    out = zs.sentence_vectors(Counting(), ["a", "b", "a"] * 9, batch_size=1)
    assert sorted(seen) == ["a", "b"] and set(out) == {"a", "b"} and zs.sentence_vectors(FakeModel(), []) == {}


def test_asking_a_bench(tmp_path, monkeypatch):
    bench = make_bench(tmp_path); monkeypatch.setattr(zs, "logit_scale", lambda model: 20.)
    results, predictions, places = zs.ask(bench, "keepfit", 0, FakeModel(), zs.Settings())
    table, said = pd.DataFrame(results), pd.concat(predictions)
    lead = table[(table.protocol == "zero-shot") & (table.metric == "ACA")].set_index("task").value
    assert lead["phantoms CFP diseases"] > .8 and lead["phantoms CFP glaucoma: cup"] > .6
    assert lead["macro fine phantoms CFP"] == pytest.approx(lead["phantoms CFP glaucoma: cup"])
    assert set(table.protocol) == {"zero-shot", "zero-shot, ensemble", "zero-shot, definition", "zero-shot, plain"}
    assert set(table.metric) == {*METRICS, *OPERATING} and not table.duplicated(["task", "protocol", "metric"]).any()
    assert list(said.columns) == list(zs.PREDICTION_COLUMNS) and (said.probability == said.probs.map(max)).all()
    p = said[(said.task == "phantoms CFP diseases") & (said.protocol == "zero-shot")]
    assert (p.label == p.predicted).mean() == pytest.approx(lead["phantoms CFP diseases"], abs=1e-9)      # equal class sizes
    assert set(places) == {"scale", *(t.name for t in bench.tasks)} and places["phantoms CFP diseases"].shape == (3, 8)


# ---- several findings, any labels, comparisons

def test_bad_embeddings_and_twins_are_refused():
    with pytest.raises(ValueError, match="1 of 2 embeddings"): zs.zero_shot(np.array([[1., 0], [np.nan, 0]]), np.eye(2))
    with pytest.raises(ValueError, match="1 of 2 embeddings"): zs.zero_shot_multi(np.array([[1., 0], [np.nan, 0]]), np.eye(2))
    with pytest.raises(ValueError, match="one model"): zs.zero_shot_multi(np.ones((2, 3)), np.eye(2))
    twins = Task(name="t", set="s", modality="CFP", kind="coarse", classes=[ClassSpec(name=n, categories=["glaucoma"]) for n in "ab"])
    with pytest.raises(ValueError, match="'a' and 'b' have the same sentences"): zs.task_sentences(twins, "plain")
    assert (zs.zero_shot(np.zeros((3, 2)), np.eye(2)) == .5).all()                  # all predictions equal: chance, not an error


class Colours:
    scale = 20.
    def preprocess(self, file):
        import torch
        from PIL import Image
        return torch.from_numpy(np.array(Image.open(file).convert("RGB").resize((4, 4)))).permute(2, 0, 1)
    def embed_images(self, pixels): return zs.unit(pixels.float().mean((2, 3)).numpy())
    def embed_text(self, texts): return np.stack([zs.unit(np.array([w in t.lower() for w in ("red", "green", "blue")]) + 1e-3) for t in texts])


def test_any_labels_for_any_folder(tmp_path):
    from PIL import Image
    for i in range(11): Image.new("RGB", (20, 12), ("red", "green", "blue")[i % 3]).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "05.png").write_bytes(b"broken"); (tmp_path / "notes.txt").write_text("not a picture")
    labels = ["a red one", "a green one", "a blue one"]
    table = zs.classify(Colours(), tmp_path, labels, batch_size=2)
    assert table.answer.tolist() == ["" if i == 5 else labels[i % 3] for i in range(11)] and "cannot identify" in table.error[5] and table.error.ne("").sum() == 1
    for size in (1, 64): pd.testing.assert_frame_equal(zs.classify(Colours(), tmp_path, labels, batch_size=size), table)
    assert np.allclose(table[labels].dropna().sum(axis=1), 1) and zs.classify(Colours(), tmp_path / "03.png", labels).answer.tolist() == ["a red one"]
    with pytest.raises(ValueError, match="same sentences"): zs.classify(Colours(), tmp_path, ["DR", "diabetic retinopathy"])
    with pytest.raises(ValueError, match="at least two"): zs.classify(Colours(), tmp_path, ["glaucoma"])
    with pytest.raises(ValueError, match="no image was given"): zs.classify(Colours(), [], labels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"): zs.classify(Colours(), tmp_path / "empty", labels)


def test_variants_are_compared_on_the_same_rows(tmp_path, monkeypatch):
    bench = make_bench(tmp_path, models=(("keepfit", 0), ("public", 0), ("start", 0)), per_class=20); monkeypatch.setattr(zs, "logit_scale", lambda model: 20.)
    class Confused(FakeModel): words = {"normal": 1, "glaucoma": 2, "macular hole": 0}
    said = pd.concat([x for name, m in (("keepfit", FakeModel()), ("public", Confused())) for x in zs.ask(bench, name, 0, m, zs.Settings())[1]])
    table = zs.compare_variants(bench, said, "keepfit").set_index("task")
    assert list(table.index) == ["phantoms CFP diseases", "macro fine phantoms CFP"] and set(table.b) == {"public"}
    row = table.loc["phantoms CFP diseases"]; assert row.difference > .5 and row.low > 0 and row.p_mcnemar < .001 and row.p_holm >= row.p_bootstrap and row.n == 60
    assert not len(zs.compare_variants(bench, said[said.model == "keepfit"], "keepfit"))
    each = zs.class_rows(bench, said); assert set(each["class"]) == {"normal", "glaucoma", "macular hole"} and len(each) == 6 and not each.unseen.any()
    bench.about["unseen"] = ["macular hole"]; assert zs.class_rows(bench, said).query("unseen")["class"].unique().tolist() == ["macular hole"]
    assert len(zs.template_rows(bench, "keepfit", 0, FakeModel())) == 6


def test_several_findings_on_a_bench(tmp_path, monkeypatch):
    bench = make_bench(tmp_path, per_class=20); monkeypatch.setattr(zs, "logit_scale", lambda model: 20.)
    task = bench.tasks[0].model_copy(update=dict(name="findings", multi_label=True)); bench.multi = [task]
    table = pd.DataFrame(zs.ask_multi(bench, "keepfit", 0, FakeModel(), zs.Settings(prompts=["plain"]))).set_index("metric").value
    assert table["AUC"] > .9 and table["macro F1"] > .7 and set(table.index) == {"AUC", "AUPR", "macro F1", "subset accuracy"}
