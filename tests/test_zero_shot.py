"Chapter 15: prototypes and words."
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

sys.path.insert(0, str(Path(__file__).parent))
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
