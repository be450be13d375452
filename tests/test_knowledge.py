"Chapter 01 beyond what the notebook shows: the shipped table, prompts under abuse, nothing shared is changed."
import copy, random, re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from keepfit_nb import knowledge as K
from keepfit_nb.profiles import MODALITIES, open_run, read_json

DISEASES = ["normal", "diabetic retinopathy", "age-related macular degeneration", "geographic atrophy", "neovascular age-related macular degeneration",
            "glaucoma", "macular hole", "branch retinal vein occlusion", "central retinal vein occlusion", "pathologic myopia", "hypertensive retinopathy",
            "central serous chorioretinopathy", "diabetic macular edema", "epiretinal membrane"]


def test_table_is_complete():
    known = K.load_knowledge()
    assert len(known) >= 50 and all(n in known for n in DISEASES)
    for c in known.values():
        assert 2 <= len(c.definitions) <= 6 and c.name_zh and c.lesions and c.synonyms, c.name
        assert all(s.endswith(".") and s[0].isupper() for s in c.definitions), c.name
        for m in c.modalities: assert c.seen_in(m), f"{c.name} has no sentence for {m}"
        assert {m for m, _ in c.looks} <= {"", *MODALITIES}
        assert re.search("[\u4e00-\u9fff]", c.name_zh), c.name


def test_parents_end_in_a_group_and_never_loop():
    for name in K.load_knowledge():
        above = K.ancestors(name)
        assert len(above) == len(set(above)) and name not in above
    assert set(K.family("diabetic retinopathy")) >= {"diabetic retinopathy", "mild diabetic retinopathy", "proliferative diabetic retinopathy"}
    assert "macular hole" in K.family("macular disease") and K.family("nonsense") == []


def test_every_spelling_is_found_and_canonical_is_idempotent():
    for c in K.load_knowledge().values():
        for word in (c.name, c.name.upper(), c.name.replace("-", " "), *c.synonyms):
            assert K.canonical(word, strict=True) == c.name, word
        assert K.load_knowledge()[K.canonical(c.name_zh)].name_zh          # Chinese names lead somewhere


@pytest.mark.real
def test_every_label_of_the_real_set_is_known(real):
    import json, pandas as pd
    labels = {c for x in pd.read_csv(real / "records.csv").categories for c in json.loads(x)}
    assert labels and [c for c in labels if K.canonical(c) not in K.load_knowledge()] == []


def test_prompts_are_fresh_and_knowledge_is_frozen():
    before = copy.deepcopy({n: c.model_dump() for n, c in K.load_knowledge().items()})
    for name in ("glaucoma", "my own"):
        for kind in K.KINDS:
            first = K.prompts(name, "CFP", kind); kept = list(first)
            first += ["spoiled"]; first[0] = "spoiled"
            assert K.prompts(name, "CFP", kind) == kept
    K.corpus().append("spoiled"); assert "spoiled" not in K.corpus()
    with pytest.raises(TypeError): K.load_knowledge()["x"] = None
    with pytest.raises(Exception): K.load_knowledge()["glaucoma"].name = "x"
    assert before == {n: c.model_dump() for n, c in K.load_knowledge().items()}


def test_definitions_stay_in_their_modality():
    for m in MODALITIES:
        other = {s for n in DISEASES for t, s in K.load_knowledge()[n].looks if t not in ("", m)}
        assert not other & {s for n in DISEASES for s in K.prompts(n, m, "definition")}


@pytest.mark.parametrize("call, part", [
    (lambda: K.prompts("glaucoma", "OTC"), "OCT"), (lambda: K.prompts("glaucoma", "CFP", "ensembel"), "did you mean 'ensemble'"),
    (lambda: K.prompts("  ", "CFP"), "empty name"), (lambda: K.canonical("diabetic retinopaty", strict=True), "did you mean 'diabetic retinopathy'"),
    (lambda: K.corpus("de"), "language"), (lambda: K.training_prompt(["normal"], "MRI", random.Random(0)), "unknown modality")])
def test_errors_name_the_nearest(call, part):
    with pytest.raises(ValueError, match=re.escape(part)): call()


@settings(max_examples=150, deadline=None)
@given(name=st.text(max_size=40), modality=st.sampled_from(MODALITIES), kind=st.sampled_from(K.KINDS))
def test_any_words_of_a_user_become_prompts(name, modality, kind):
    if not name.split():
        with pytest.raises(ValueError): K.prompts(name, modality, kind)
        return
    said = K.prompts(name, modality, kind)                 # braces, quotes and percent signs included
    assert said and all(isinstance(s, str) and s for s in said) and len(said) == len(set(said))
    assert K.canonical(K.canonical(name)) == K.canonical(name)


@settings(max_examples=100, deadline=None)
@given(cats=st.lists(st.one_of(st.sampled_from(DISEASES), st.text(min_size=1, max_size=20)), max_size=4), modality=st.sampled_from(MODALITIES),
       rate=st.sampled_from([0., .5, 1.]), seed=st.integers(0, 99))
def test_training_prompt_is_one_sentence_of_the_callers_generator(cats, modality, rate, seed):
    said = [K.training_prompt(cats, modality, rng, definitions=rate) for rng in (random.Random(seed), random.Random(seed))]
    assert said[0] == said[1] and said[0].endswith(".")
    K.training_prompt(cats, modality, np.random.default_rng(seed), ["phase: late phase"], rate)


def test_training_prompt_names_every_label_and_nothing_else():
    said = K.training_prompt(["glaucoma", "cataract"], "CFP", random.Random(0))
    assert said == "A fundus photograph of glaucoma and cataract."
    told = [K.training_prompt(["diabetic retinopathy"], "CFP", random.Random(s)) for s in range(20)]
    assert set(told) == {"A fundus photograph of diabetic retinopathy."}              # definitions=0: labels only


def test_corpus():
    text = K.corpus()
    assert sum(len(p.split()) for p in text) >= 6000 and len(text) > 60
    assert len(text) == len(set(text)) and not any(p.startswith("#") or "\n" in p for p in text)
    assert re.search("[\u4e00-\u9fff]", K.corpus("zh")[0]) and len(K.corpus("all")) == len(text) + len(K.corpus("zh"))


def test_stage_leaves_the_prompt_table_and_is_not_built_twice(tmp_path, capsys):
    import pandas as pd
    run = open_run("01_knowledge", "smoke", tmp_path)
    table = pd.read_csv(run.need("01_knowledge") / "prompts.csv", keep_default_na=False)
    assert list(table) == ["category", "modality", "kind", "text"] and set(table.modality) == set(MODALITIES)
    assert read_json(tmp_path / "01_knowledge" / "metrics.json")["prompts"] == len(table) == len(K.prompt_table())
    capsys.readouterr(); run.need("01_knowledge"); assert "building" not in capsys.readouterr().out
