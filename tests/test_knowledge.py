"Chapter 01 beyond what the notebook shows: the shipped table, prompts under abuse, nothing shared is changed."
import copy, random, re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from keepfit_nb import knowledge as K
from keepfit_nb.categories import ancestors
from keepfit_nb.profiles import MODALITIES, open_run, read_json

DISEASES = ["normal", "diabetic retinopathy", "age-related macular degeneration", "geographic atrophy", "neovascular age-related macular degeneration",
            "glaucoma", "macular hole", "branch retinal vein occlusion", "central retinal vein occlusion", "pathologic myopia", "hypertensive retinopathy",
            "central serous chorioretinopathy", "diabetic macular edema", "epiretinal membrane"]


def test_table_is_complete():
    known = K.load_knowledge()
    assert len(known) >= 120 and all(n in known for n in DISEASES)
    for c in known.values():
        assert 2 <= len(c.definitions) <= 6 and c.name_zh and c.lesions and c.synonyms, c.name
        assert all(s.endswith(".") and s[0].isupper() for s in c.definitions), c.name
        for m in c.modalities: assert c.seen_in(m), f"{c.name} has no sentence for {m}"
        assert {m for m, _ in c.looks} <= {"", *MODALITIES}
        assert re.search("[\u4e00-\u9fff]", c.name_zh), c.name


def test_parents_end_in_a_group_and_never_loop():
    for name in K.load_knowledge():
        above = ancestors(name)
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
    assert sum(len(p.split()) for p in text) >= 25_000 and K.repeated_sequences(text) < .01
    said = "\n".join(text)
    assert [n for n in K.load_knowledge() if not K.names_term(said, [n])] == []                     # each disease and sign is written about
    assert len(text) == len(set(text)) and not any(p.startswith("#") or "\n" in p for p in text)
    assert re.search("[\u4e00-\u9fff]", K.corpus("zh")[0]) and len(K.corpus("all")) == len(text) + len(K.corpus("zh"))


def test_stage_leaves_the_prompt_table_and_is_not_built_twice(tmp_path, capsys):
    import pandas as pd
    run = open_run("01_knowledge", "smoke", tmp_path)
    table = pd.read_csv(run.need("01_knowledge") / "prompts.csv", keep_default_na=False)
    assert list(table) == ["category", "modality", "kind", "text"] and set(table.modality) == set(MODALITIES)
    assert read_json(tmp_path / "01_knowledge" / "metrics.json")["prompts"] == len(table) == len(K.prompt_table())
    capsys.readouterr(); run.need("01_knowledge"); assert "building" not in capsys.readouterr().out


def test_icd10_codes_have_the_form_and_no_titles():
    coded = {c.name: c.icd10 for c in K.load_knowledge().values() if c.icd10}
    assert len(coded) >= 90 and all(re.fullmatch(r"[A-Z]\d[0-9A-Z](\.[0-9A-Z]{1,4})?", code) for code in coded.values())
    assert coded["geographic atrophy"] == "H35.31" and coded["macular hole"] == "H35.34"


@pytest.mark.real
def test_icd10_codes_stand_in_the_published_list(real):
    import pandas as pd
    listed = set(pd.read_csv(real / "text" / "icd10cm_ch7_eye.csv").code)
    ours = {c.icd10 for c in K.load_knowledge().values() if c.icd10.startswith("H")}
    assert ours and not ours - listed


def test_a_term_is_found_in_every_spelling_of_every_category():
    for c in K.load_knowledge().values():
        for word in (c.name, *c.synonyms):
            for text in (f"The left eye shows {word}.", f"{word}, seen late"): assert K.names_term(text, [c.name]), (c.name, word)
        assert K.names_term(f"右眼{c.name_zh}。", [c.name])
        for above in (a for a in ancestors(c.name) if a in K.load_knowledge()): assert K.names_term(f"Signs of {c.name}", [above])


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(K.load_knowledge())), before=st.text("abcdefgh", min_size=1, max_size=3), after=st.text("abcdefgh", min_size=2, max_size=3))
def test_a_term_inside_a_longer_word_is_not_found(name, before, after):
    assert not K.names_term(f"{before}{name}{after}x", [name]) or name in before + after
    assert K.names_term(f"({name.upper()})", [name])


def test_removed_texts_name_nothing_and_the_rest_is_untouched():
    kept, gone = K.without_terms(K.corpus("all"), ["glaucoma", "retinal vein occlusion"])
    assert gone and gone + len(kept) == len(K.corpus("all")) and kept == [p for p in K.corpus("all") if p in set(kept)]
    assert not [p for p in kept if re.search("glaucoma|vein occlusion|CRVO|BRVO|青光眼", p, re.I)]
    assert K.without_terms(["a", "b"], []) == (["a", "b"], 0)
    assert K.names_term("A drusenoid mound", ["drusen"]) is False and K.names_term("my private sign", ["private sign"])


def _pdf(path, *pages):
    from reportlab.pdfgen.canvas import Canvas
    sheet = Canvas(str(path))
    for lines in pages:
        for i, line in enumerate(lines): sheet.drawString(60, 760 - 16 * i, line)
        sheet.showPage()
    sheet.save()


def test_texts_of_the_users_own(tmp_path):
    (tmp_path / "a.txt").write_bytes("# Heading\r\n\r\nThe neo-\r\nvascular net leaks.\r\n\r\nA dome.".encode("utf-16"))
    (tmp_path / "b.txt").write_bytes("Une lésion ovale.".encode("latin-1"))
    (tmp_path / "c.csv").write_bytes("id;report\n1;视盘水肿\n2;\n3;A dome\n".encode("gb18030"))
    (tmp_path / "d.jsonl").write_text('{"caption": "A hole.", "n": 1}\n{"caption": "A fold.", "n": 2}\n')
    _pdf(tmp_path / "e.pdf", ["Soft drusen are large and have a blur-", "red border."], ["The second page."])
    assert K.read_texts(tmp_path / "a.txt") == ["The neovascular net leaks.", "A dome."]
    assert K.read_texts(tmp_path / "b.txt") == ["Une lésion ovale."]
    assert K.read_texts(tmp_path / "c.csv") == ["视盘水肿", "A dome"]
    assert " ".join(K.read_texts(tmp_path / "e.pdf")) == "Soft drusen are large and have a blurred border. The second page."
    assert len(K.read_texts(tmp_path)) == 2 + 1 + 2 + 2 + 2


@pytest.mark.parametrize("name, data, part", [
    ("x.pdf", b"%PDF-1.4 nothing", "not a readable PDF"), ("x.pdf", b"plain words", "not a readable PDF"), ("x.txt", b" \n ", "empty"),
    ("x.csv", b"image,label\n1,2\n", "no column of captions"), ("x.parquet", b"PAR1broken", "not a readable table"), ("x.docx", b"PK", "is no text"),
    ("x.jsonl", b"{broken", "not a readable table")])
def test_unreadable_texts_say_which_file_and_why(tmp_path, name, data, part):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=part) as err: K.read_texts(tmp_path / name)
    assert name in str(err.value)


def test_pdf_without_text_or_with_a_password(tmp_path):
    from reportlab.lib import pdfencrypt
    from reportlab.pdfgen.canvas import Canvas
    _pdf(tmp_path / "blank.pdf", [])
    with pytest.raises(ValueError, match="holds no text"): K.read_texts(tmp_path / "blank.pdf")
    sheet = Canvas(str(tmp_path / "locked.pdf"), encrypt=pdfencrypt.StandardEncryption("secret", ownerPassword="owner")); sheet.drawString(9, 9, "x"); sheet.save()
    with pytest.raises(ValueError, match="encrypted"): K.read_texts(tmp_path / "locked.pdf")
    with pytest.raises(ValueError, match="holds no text"): K.read_texts(tmp_path / "empty") if (tmp_path / "empty").mkdir() is None else None
    with pytest.raises(FileNotFoundError, match="no text at"): K.read_texts(tmp_path / "none.txt")


@pytest.mark.real
def test_real_caption_tables_are_read(real):
    texts = K.read_texts(real / "text" / "mm_retinal_cfp_en.csv")
    assert len(texts) > 1500 and K.without_terms(texts, ["macular hole"])[1] > 10
