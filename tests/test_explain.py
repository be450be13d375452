"Chapter 19: questions with a known place, rows with intervals, what was retrieved, map, failures, browsing, the stage."
import importlib.util
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st

from evaluation_bench import make_bench
from test_pretraining import TOY, make_cache, settings as pretraining_settings

from keepfit_nb import explain as ex
from keepfit_nb.encoders import make_tokenizer, text_config
from keepfit_nb.evaluation import RESULT_COLUMNS
from keepfit_nb.eye import LESIONS
from keepfit_nb.pretraining import start_model
from keepfit_nb.profiles import MODALITIES, check_section
from keepfit_nb.saliency import ColourModel, near


@pytest.fixture(scope="module")
def eyes(): return [e for m in MODALITIES for e in ex.eyes_for(m, 5, 3, diseases=["normal", "macular hole", "central serous chorioretinopathy", "branch retinal vein occlusion", "cataract"])]

@pytest.fixture(scope="module")
def asked(eyes): return ex.questions_for(eyes)[0]

@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy"); make_cache(folder / "cache")
    tokenizer, _ = make_tokenizer(TOY, ["the image shows a normal retina, glaucoma, a macular hole or central serous chorioretinopathy. a second sentence."] * 3)
    tokenizer.save_pretrained(folder / "tokenizer"); text_config(TOY, len(tokenizer)).save_pretrained(folder / "tokenizer")
    return folder

@pytest.fixture(scope="module")
def cache(place):
    from keepfit_nb.images import ImageCache
    return ImageCache(place / "cache")

def model_of(place, cache, **more): return start_model(TOY, cache, place / "tokenizer", pretraining_settings(**more), seed=3).eval()


# ---- eyes and words

def test_eyes_are_new_and_the_same_each_time(eyes):
    again = ex.eyes_for("CFP", 2, 3, diseases=["macular hole", "central serous chorioretinopathy"])
    assert np.array_equal(again[0]["image"], ex.eyes_for("CFP", 1, 3, diseases=["macular hole"])[0]["image"])
    assert not np.array_equal(again[0]["image"], ex.eyes_for("CFP", 1, 4, diseases=["macular hole"])[0]["image"])
    for e in eyes:
        assert e["image"].shape == (3, 64, 64) and e["image"].dtype == np.uint8 and "normal" not in e["diseases"]
        assert all(m.shape == (64, 64) and m.dtype == bool and e["modality"] in LESIONS[k].split() for k, m in e["masks"].items())


def test_masks_follow_the_picture():
    "Cropped by the picture's field of view: a bright lesion and its mask stay in one place."
    image = np.zeros((120, 160, 3), np.uint8); yy, xx = np.mgrid[:120, :160]
    image[np.hypot(yy - 60, xx - 90) < 45] = 80; lesion = np.hypot(yy - 50, xx - 110) < 8; image[lesion] = 255
    for crop in (True, False):
        small, masks = ex.prepared(image, {"x": lesion}, 64, crop)
        bright = small.min(0) > 170
        assert (bright & masks["x"]).sum() / (bright | masks["x"]).sum() > .8
    assert ex.prepared(image, {"x": lesion}, 64)[1]["x"].sum() > ex.prepared(image, {"x": lesion}, 64, False)[1]["x"].sum()


def test_every_lesion_has_a_sentence():
    said = [ex.lesion_sentence(k, m) for k in LESIONS for m in LESIONS[k].split()]
    assert len(set(said)) == len(said) and not [s for s in said if "  " in s or " with an scan" in s]
    assert set(ex.WORDS) <= set(LESIONS) and set(ex.MANY) <= set(LESIONS)


@pytest.mark.parametrize("call, words", [
    (lambda: ex.lesion_sentence("hard drusenn", "CFP"), "did you mean 'hard drusen'"), (lambda: ex.lesion_sentence("cyst", "CFP"), "does not show in CFP; it does in FFA, OCT"),
    (lambda: ex.eyes_for("XRAY", 1), "modality"), (lambda: ex.eyes_for("CFP", 1, diseases=["glaucomma"]), "did you mean 'glaucoma'")])
def test_unknown_names(call, words):
    with pytest.raises(ValueError, match=words): call()


# ---- questions and scores

def test_questions(eyes, asked):
    again, left = ex.questions_for(eyes); assert again.equals(asked) and left > 0
    for q in asked.itertuples():
        eye, mask = eyes[q.eye], ex.place(eyes[q.eye], q.kind, q.asked)
        assert mask.sum() >= 3 and q.chance_pointing == pytest.approx(near(mask).mean()) and q.chance_pointing <= .5
        assert q.other not in eye["masks"] and q.other not in eye["diseases"] and q.other_sentence != q.sentence
        if q.kind == "coarse": assert mask.sum() == np.any(list(eye["masks"].values()), 0).sum()
    assert not asked.diseases.str.contains("cataract").any()                                      # nothing to point at
    for stricter in (dict(largest=.05), dict(smallest=60), dict(tolerance=.3)): assert len(ex.questions_for(eyes, **stricter)[0]) < len(asked)


def test_asking_for_what_is_not_there(eyes):
    with pytest.raises(KeyError, match="has no drusen at all; it has"): ex.place(eyes[0], "fine", "drusen at all")
    nothing = dict(number=0, modality="CFP", diseases=("cataract",), image=np.zeros((3, 8, 8), np.uint8), masks={})
    assert not ex.place(nothing, "coarse", "cataract").any() and ex.questions_for([nothing]) [1] == 1


class Oracle(ColourModel):
    "Sees red; the pictures below carry red where the asked lesion lies."
    def embed_text(self, texts): return super().embed_text(["red" if "hole" in t else "blue" for t in texts])

def test_look_scores_the_asked_and_the_other(eyes):
    eye = next(e for e in eyes if "macular hole" in e["masks"] and e["masks"]["macular hole"].sum() > 8)
    image = np.full((3, 64, 64), 90, np.uint8); mask = eye["masks"]["macular hole"]
    image[:, mask] = np.array([255, 0, 0])[:, None]; image[:, :8, :8] = np.array([0, 0, 255])[:, None, None]
    q = ex.questions_for([eye | dict(image=image, masks={"macular hole": mask})])[0]
    got = ex.look(Oracle(), [eye | dict(image=image, masks={"macular hole": mask})], q, batch_size=1)
    assert len(got) == len(q) >= 1 and (got.pointing == 1).all() and (got.other_pointing == 0).all() and (got.iou > got.other_iou).all()
    assert ex.gain_rows(got, dict(run="r", model="m", seed=0, protocol="where"), ex.Settings(bootstrap=20))[0]["value"] == 1


def test_batches_do_not_matter(eyes, asked):
    a, b = (ex.look(ColourModel(), eyes, asked.head(7), batch_size=n) for n in (2, 64))
    assert np.allclose(a[list(ex.SCORES)], b[list(ex.SCORES)], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(2, 30))
def test_mean_interval(seed, n):
    rng = np.random.default_rng(seed); values, who, kinds = rng.random((n, 2)), rng.integers(0, 5, n), rng.choice(list("abc"), n)
    got = ex.mean_interval(values, who, kinds, 200, seed)
    by_hand = pd.DataFrame(values).groupby(kinds).mean().mean(); order = rng.permutation(n)
    assert np.allclose([g[0] for g in got], by_hand)
    if len(set(who)) > 1: assert all(g[1] <= g[2] for g in got)
    assert np.allclose([g[0] for g in ex.mean_interval(values[order], who[order], kinds[order], 50)], by_hand)
    assert np.allclose(ex.mean_interval(values * 0 + .3, who, kinds, 50)[0][0], .3)


def test_intervals_count_eyes_and_not_questions():
    rng = np.random.default_rng(0); per_eye = (rng.random(40) < .5) * 1.
    one = ex.mean_interval(per_eye[:, None], range(40))[0]; ten = ex.mean_interval(np.repeat(per_eye, 10)[:, None], np.repeat(range(40), 10))[0]
    assert ten[2] - ten[1] == pytest.approx(one[2] - one[1], abs=.03), "ten questions an eye are no ten eyes"
    single = ex.mean_interval([[1.], [0.]], ["a", "a"])[0]; assert single[0] == .5 and np.isnan(single[1:]).all()
    with pytest.raises(ValueError, match="no question"): ex.mean_interval(np.zeros((0, 3)), [])


def test_rows_fit_the_schema(asked):
    rows = pd.DataFrame(ex.where_rows(asked, "chance_", dict(run="r", model="chance", seed=0, protocol="where"), ex.Settings(bootstrap=20), True))
    assert list(rows.columns) == list(RESULT_COLUMNS) and set(rows.metric) == set(ex.METRIC_NAMES.values()) and set(rows.set) == {"phantoms"}
    assert not rows.duplicated(["task", "kind", "modality", "metric"]).any() and rows.value.between(0, 1).all()
    ends = rows.dropna(subset="low"); assert len(ends) and (ends.low <= ends.value + 1e-9).all() and (ends.value <= ends.high + 1e-9).all()


# ---- what was retrieved

def test_retrieved(place, cache):
    model = model_of(place, cache, semantic=True); rows = [r for r in cache.records("evaluation") if r["modality"] == "OCT"]
    table, same, chance = ex.retrieved(model, cache, rows, k=2)
    elite = [r for r in cache.records("elite") if r["modality"] == "OCT"]
    assert len(table) == 2 * len(rows) and set(table.elite) <= {r["row"] for r in elite} and table.share.between(0, 1).all()
    for _, own in table.groupby("row"): assert own.share.is_monotonic_decreasing
    assert same.shape == chance.shape == (len(rows),) and ((0 <= same) & (same <= 1 + 1e-6)).all() and (chance == .5).all()


def test_an_expert_image_retrieves_itself(place, cache):
    "The attention begins as the identity: who resembles an image most is the image."
    model = model_of(place, cache, semantic=True, injection=dict(scale=100.)); elite = [r for r in cache.records("elite") if r["modality"] == "CFP"]
    table, *_ = ex.retrieved(model, cache, elite, k=1); assert (table.elite == table.row).all()


def test_nothing_to_retrieve_from(place, cache):
    rows = cache.records("evaluation"); ocular = [r for r in rows if r["modality"] == "OCT"]
    with pytest.raises(ValueError, match="no reference"): ex.retrieved(model_of(place, cache, semantic=False), cache, ocular)
    with pytest.raises(ValueError, match="one modality"): ex.retrieved(model_of(place, cache), cache, rows)
    with pytest.raises(ValueError, match="no elite pair of OCT"): ex.retrieved(model_of(place, cache), SimpleNamespace(records=lambda r: [], batch=cache.batch), ocular)


# ---- map

def test_map():
    rng = np.random.default_rng(0); x = np.r_[rng.normal(size=(20, 8)), rng.normal(size=(20, 8)) + 8]
    xy = ex.flat_map(x); assert xy.shape == (40, 2) and np.array_equal(xy, ex.flat_map(x)) and (xy[:20, 0] > 0).all() != (xy[20:, 0] > 0).all()
    for bad, words in ((x[:2], "three pictures"), (x * np.nan, "diverged")):
        with pytest.raises(ValueError, match=words): ex.flat_map(bad)
    with pytest.raises(ValueError, match="did you mean 'umap'"): ex.flat_map(x, "umaps")


def test_map_without_umap(monkeypatch):
    x, find = np.random.default_rng(0).normal(size=(9, 4)), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "umap" else find(name, *a))
    assert np.array_equal(ex.flat_map(x, "auto"), ex.flat_map(x, "pca"))
    with pytest.raises(ImportError, match="pip install umap-learn, or set explain.map to pca"): ex.flat_map(x, "umap")


@pytest.mark.slow
def test_map_by_umap():
    pytest.importorskip("umap")
    rng = np.random.default_rng(0); x = rng.normal(size=(60, 8)) + 9 * np.eye(3, 8).repeat(20, 0)
    xy = ex.flat_map(x, "auto"); centres = xy.reshape(3, 20, 2).mean(1)
    assert np.array_equal(xy, ex.flat_map(x, "umap")) and (np.linalg.norm(xy[:, None] - centres, axis=2).argmin(1) == np.repeat(range(3), 20)).mean() > .95


def test_show_map():
    import matplotlib.pyplot as plt
    table = pd.DataFrame(dict(x=range(12), y=range(12), category=list("aaaabbbccdef")))
    assert len(ex.show_map(table, "category", most=2).lines) == 3; plt.close("all")                # a, b and the others
    with pytest.raises(KeyError, match="category"): ex.show_map(table, "categori")


# ---- failures and browsing

def predictions(bench):
    task = next(t for t in bench.tasks if t.kind == "coarse"); row = dict(model="keepfit", seed=0, protocol="zero-shot", set=task.set, task=task.name, kind="coarse", modality="CFP", label="normal")
    return pd.DataFrame([row | dict(row=i, predicted=p, probability=q) for i, (p, q) in enumerate([("normal", .99), ("glaucoma", .7), ("macular hole", .9), ("glaucoma", .8)])]
                        + [row | dict(row=2, predicted="glaucoma", probability=.85), row | dict(row=9, predicted="glaucoma", probability=1., model="public")])


def test_worst_failures(tmp_path):
    bench = make_bench(tmp_path); tasks = {t.name: t for t in bench.tasks}
    got = ex.worst_failures(predictions(bench), tasks, "keepfit")
    assert list(got.row) == [2, 3, 1] and list(got.probability) == [.9, .8, .7]                    # wrong ones only, once each, surest first
    assert "macular hole" in got.asked[0] and "normal" in got.right[0] and len(ex.worst_failures(predictions(bench), tasks, "keepfit", 1)) == 1
    none = ex.worst_failures(predictions(bench).head(1), tasks, "keepfit"); assert len(none) == 0 and list(none.columns) == list(got.columns)


def test_show_failure(place, cache):
    import matplotlib.pyplot as plt
    fig = ex.show_failure(ColourModel(32), cache, dict(row=1, asked="red", right="blue", modality="FFA", probability=.5, predicted="a", label="b"))
    assert len(fig.axes) == 3 and "50%" in fig.axes[1].get_title(); plt.close("all")


# ---- the stage

def test_pointing_game_of_models(tmp_path):
    run = SimpleNamespace(dir=tmp_path, seed=0)
    rows, questions, left = ex.point(run, [("keepfit", 0, ColourModel()), ("start", 0, ColourModel())], ex.Settings(eyes=3, bootstrap=20), 64, 64, True, ["macular hole", "choroidal nevus"])
    table = pd.DataFrame(rows); macro = table[table.task.str.startswith("macro")]
    assert set(macro.model) == {"keepfit", "start", "chance", "centre"} and set(macro.protocol) == {"where", "where, other sentence"} and set(macro.metric) == {*ex.METRIC_NAMES.values(), "pointing gain"}
    assert not table.duplicated(["model", "seed", "task", "kind", "modality", "protocol", "metric"]).any() and set(questions.model) == {"keepfit", "start"}
    value = table.set_index(["model", "protocol", "kind", "modality", "task", "metric"]).value.sort_index()
    at = lambda metric, protocol="where": value["keepfit", protocol, "fine", "CFP", "macro where phantoms CFP", metric]
    assert at("pointing gain") == pytest.approx(at("pointing game") - at("pointing game", "where, other sentence"))
    assert ex.point(run, [], ex.Settings(eyes=0), 64, 64, True)[0] == []


def test_settings():
    with pytest.raises(ValueError, match="did you mean 'eyes'"): check_section({"eye": 3}, ex.Settings, "section 'explain'")
    for bad in (dict(method="cam"), dict(largest=0), dict(tolerance=1.2), dict(map="tsne")):
        with pytest.raises(ValueError): check_section(bad, ex.Settings, "section 'explain'")
