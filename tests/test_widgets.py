"The widgets without a browser: what their handles do, what they say to bad input, what is left when nobody looks. tests/test_lab.py clicks them."
import io, json, threading, time

import ipywidgets as w
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from keepfit_nb import profiles as p

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "KEEPFIT_HEADLESS", "IN_TEST"): monkeypatch.delenv(name, raising=False)
    yield
    plt.close("all")


# ---- chapter 00: who is there, and browse

def test_who_is_there(monkeypatch):
    assert not p.someone_is_here()
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb"); assert p.someone_is_here()
    monkeypatch.setenv("IN_TEST", "1"); assert not p.someone_is_here()              # a chain started from a notebook inherits the session's name
    monkeypatch.delenv("IN_TEST"); monkeypatch.setenv("KEEPFIT_HEADLESS", "1"); assert not p.someone_is_here()


def noting(seen): return lambda **chosen: seen.append(tuple(chosen.values())) or plt.figure()


def test_browse_without_anybody():
    seen = []; figures = p.browse(noting(seen), few=2, a={"one": 1, "two": 2, "three": 3}, b="words", c=(0, 9, 4), d=w.Text("x"))
    assert seen == [(1, "words", 4, "x"), (2, "words", 4, "x")] and len(figures) == 2 and not plt.get_fignums()
    for bad in (dict(a=[]), dict(a={}), {}):
        with pytest.raises(ValueError, match="nothing to choose from"): p.browse(noting(seen), False, **bad)


def test_browse_with_handles():
    seen = []; box = p.browse(noting(seen), True, a={"one": 1, "two": 2}, b="words", c=(0, 9, 4), d=(0., 1., .5), e=("CFP", "FFA", "OCT"))
    menu, text, whole, real, three = box.children[0].children
    assert [type(x) for x in (menu, text, whole, real, three)] == [w.Dropdown, w.Text, w.IntSlider, w.FloatSlider, w.Dropdown]
    menu.value, text.value, whole.value = 2, "drusen", 7
    assert seen[-1] == (2, "drusen", 7, .5, "CFP") and len(seen) == 4 and box.children[2].value[:4] == PNG and not plt.get_fignums()


def test_browse_says_what_is_wrong_and_keeps_the_picture():
    def draw(n):
        if n == 2: raise ValueError("two <eyes> are too many")
        if n == 3: raise KeyError("no such eye")
        if n == 4: raise FileNotFoundError(2, "No such file or directory", "/a/long/way/eye.png")
        return plt.figure()
    box = p.browse(draw, True, n=[1, 2, 3, 4, 5]); menu, words, picture = box.children[0].children[0], box.children[1], box.children[2]; before = picture.value
    for n, said in ((2, "two &lt;eyes&gt; are too many"), (3, ">no such eye<"), (4, "No such file or directory: eye.png")):
        menu.value = n; assert said in words.value and picture.value == before
    menu.value = 5; assert words.value == ""
    with pytest.raises(ZeroDivisionError): p.browse(lambda n: 1 / 0, True, n=[1])          # a fault of ours is no bad input


# ---- chapter 03d: the phantom explorer

def hands(box): return {h.description: h for h in box.children[0].children if getattr(h, "description", "")} | {"facts": box.children[0].children[3], "words": box.children[0].children[-1]}
def shown(box): return [(c.children[1].value, c.children[2].value, c.children[1].layout.visibility) for c in box.children[1].children]


def test_explorer_without_anybody():
    from keepfit_nb.captions import explore_eye
    assert type(explore_eye(1, "glaucoma", 64)).__name__ == "Figure"
    with pytest.raises(ValueError, match="did you mean 'glaucoma'"): explore_eye(1, "glaukoma")


def test_explorer_draws_other_eyes_and_alters_this_one():
    from keepfit_nb.captions import explore_eye
    from keepfit_nb.eye import sample_eye
    box = explore_eye(1, "diabetic retinopathy", 64, interactive=True); h = hands(box); first = shown(box)
    assert first[0][0][:4] == PNG and first[0][2] == "visible" and "retinopathy" in first[0][1].lower() and first[2][2] == "hidden" and "Nothing of diabetic retinopathy shows in OCT" in first[2][1]
    assert h["cup ratio"].value == pytest.approx(sample_eye(1, "diabetic retinopathy").cup_ratio)
    h["blur"].value = .98; altered = shown(box); assert altered[0][0] != first[0][0] and altered[0][1] == first[0][1]       # the picture, not its words
    h["eye"].value = 2; assert shown(box)[0][1] != first[0][1] and h["blur"].value == pytest.approx(sample_eye(2, "diabetic retinopathy").blur)
    h["eye"].value = 1; assert shown(box) == first                                                                         # the same seed is the same eye
    h["captions"].value = "zh"; assert "眼" in shown(box)[0][1]


def test_explorer_facts_follow_the_disease_and_may_contradict():
    from keepfit_nb.captions import explore_eye
    box = explore_eye(1, "diabetic retinopathy", 64, interactive=True); h = hands(box)
    fact = lambda name: next(f for f in h["facts"].children if f.description == name)
    fact("grade").value = "mild"; before = shown(box); assert not h["words"].value
    fact("cotton-wool spots").value = "present"; assert "no eye can have all of" in h["words"].value and shown(box) == before
    h["disease"].value = "glaucoma"; assert [f.description for f in h["facts"].children] == ["cup"] and not h["words"].value
    h["second disease"].value = "cataract"; assert [f.description for f in h["facts"].children] == ["cup", "haze"] and "glaucoma" in shown(box)[1][1]
    assert set(h["second disease"].options) == {"none", *__import__("keepfit_nb.eye", fromlist=["partners"]).partners("glaucoma")}


# ---- chapters 15 and 19: the playground

class ByColour:
    "Knows three colours."
    scale = 20.
    def preprocess(self, file):
        from keepfit_nb.decoding import preprocess
        return preprocess(file, 8, False)
    def embed_images(self, pixels): x = pixels.float().mean((2, 3)).numpy(); return x / np.linalg.norm(x, axis=1, keepdims=True)
    def embed_text(self, texts): x = np.array([[c in t.lower() for c in ("red", "green", "blue")] for t in texts], float) + 1e-3; return x / np.linalg.norm(x, axis=1, keepdims=True)


PICTURES = {"CFP red": Image.new("RGB", (30, 20), "red"), "OCT blue": np.full((9, 9, 3), (0, 0, 255), np.uint8)}
def upload(own, name, content): own.value = ({"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": __import__("datetime").datetime(2026, 1, 1)},)


def test_playground_without_anybody():
    from keepfit_nb.zero_shot import playground
    bars = playground(ByColour(), PICTURES, ["a red eye", "a blue eye"]).axes[-1]
    assert [t.get_text() for t in bars.get_yticklabels()] == ["a red eye", "a blue eye"] and bars.patches[0].get_width() > .99
    with pytest.raises(ValueError, match="no picture to begin with"): playground(ByColour(), {})
    with pytest.raises(FileNotFoundError): playground("runs/not-there", PICTURES)
    assert "no folder" in (said := playground("runs/not-there", PICTURES, interactive=True).value) and "chapter 13" in said


def test_playground_answers_and_refuses():
    from keepfit_nb.zero_shot import playground
    asked = []; heat = lambda model, image, sentence: asked.append(sentence) or np.zeros((8, 8))
    own, handles, words, picture = playground(ByColour(), PICTURES, ["a red eye", "a blue eye"], heat, interactive=True).children
    menu, labels, camera, wording, look = handles.children; first = picture.value
    menu.value = 1; assert camera.value == "OCT" and picture.value != first and "blue" in asked[-1]
    look.value = "a green lesion"; assert asked[-1] == "a green lesion"
    for text, said in (("", "at least two labels"), ("red\n\n", "at least two labels"), ("red\nred", "named twice"), ("DR, diabetic retinopathy", "same sentences")):
        before = picture.value; labels.value = text; assert said in words.value and picture.value == before
    before = picture.value; labels.value = "red; green; blue"; assert words.value.startswith("red 0.0%") and "blue 100.0%" in words.value and picture.value != before


def test_playground_takes_files_of_ones_own():
    from keepfit_nb.zero_shot import playground
    own, handles, words, picture = playground(ByColour(), PICTURES, ["a red eye", "a green eye"], interactive=True).children; menu = handles.children[0]
    upload(own, "../eye.jpg", b"not a picture"); assert "eye.jpg" in words.value and "no picture in a format" in words.value and "/tmp" not in words.value
    upload(own, "empty.png", b""); assert "empty" in words.value
    out = io.BytesIO(); Image.new("RGB", (50, 40), "green").save(out, "PNG"); before = picture.value
    upload(own, "green.png", out.getvalue()); assert menu.label == "green.png" and "a green eye 100.0%" in words.value and picture.value != before
    menu.value = 0; assert "a red eye 100.0%" in words.value and len(menu.options) == 5


def test_labels_as_people_type_them():
    from keepfit_nb.zero_shot import labels_of
    assert labels_of("normal, glaucoma") == labels_of("normal; glaucoma;") == labels_of(" normal\n\n glaucoma ") == ["normal", "glaucoma"]
    assert labels_of("few, small drusen\nmany, large drusen") == ["few, small drusen", "many, large drusen"] and labels_of(" \n") == []


# ---- chapter 08: the monitor

def begin(folder, rows, **plan):
    folder.mkdir(parents=True, exist_ok=True); (folder / "curves.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if plan: p.write_json(folder / "plan.json", plan)


def test_monitor_before_anything_has_begun(tmp_path, capsys):
    from keepfit_nb.training import standings, trainings, watch_training
    assert trainings(tmp_path / "none") == {} and len(standings(tmp_path)) == 0
    assert watch_training(tmp_path / "none") is None and "no training has begun in none" in capsys.readouterr().out
    box = watch_training(tmp_path / "none", every=60, interactive=True); assert "no training has begun" in box.children[1].value
    begin(tmp_path / "none" / "a" / "0", [], total=9, log_every=1); box.children[0].children[0].click(); assert "no row yet" in box.children[1].value


def test_monitor_knows_where_a_training_stands(tmp_path):
    import os
    from keepfit_nb.training import standing, standings
    row = lambda step: dict(step=step, loss=1 / step, seconds=.5 * step)
    begin(tmp_path / "13" / "a" / "0", [row(10), row(20)], total=100, log_every=10)
    begin(tmp_path / "13" / "a" / "1", [row(100)], total=100, log_every=10)
    begin(tmp_path / "13" / "b" / "0", [row(5)]); p.write_json(tmp_path / "13" / "b" / "0" / "failed_batch.json", dict(step=7, what="the loss"))
    begin(tmp_path / "13" / "c" / "0", [row(5)]); os.utime(tmp_path / "13" / "c" / "0" / "curves.jsonl", (time.time() - 600,) * 2)
    with open(tmp_path / "13" / "a" / "0" / "curves.jsonl", "ab") as f: f.write(b'{"step": 30, "loss": \xff')              # half a row, and a byte that is no text
    assert standing(tmp_path / "13" / "a" / "0") == dict(state="running", step=20, total=100, loss=.05, left=40.)
    table = standings(tmp_path).set_index("training")
    assert dict(table.state) == {"13/a/0": "running", "13/a/1": "done", "13/b/0": "stopped at step 7: the loss is not finite", "13/c/0": "quiet for 10 min"}
    assert table.step["13/a/0"] == "20 of 100" and table.left["13/a/0"] == "40 s" and table.step["13/b/0"] == "5"


def test_monitor_follows_while_it_grows(tmp_path):
    from keepfit_nb.training import watch_training
    begin(tmp_path / "m", [dict(step=1, loss=2., seconds=1.)], total=3, log_every=1)
    box = watch_training(tmp_path, every=.05, interactive=True); (again, timer, menu), words, picture = box.children[0].children, *box.children[1:]
    names = lambda: [t for t in threading.enumerate() if t.name == f"watch {tmp_path.name}"]
    assert "1 of 3" in words.value and len(names()) == 1; first = picture.value
    begin(tmp_path / "m", [dict(step=s, loss=2. / s, seconds=1., scale=3.) for s in (1, 2)])
    until = time.time() + 20
    while "2 of 3" not in words.value and time.time() < until: time.sleep(.05)
    assert "2 of 3" in words.value and "scale" in menu.options; menu.value = "scale"; assert picture.value != first
    timer.value = False; names()[0].join(20) if names() else None; assert not names()
    begin(tmp_path / "m", [dict(step=3, loss=1., seconds=1.)]); again.click(); assert "done" in words.value and menu.value == "loss"       # the column is gone
    timer.value = True; other = watch_training(tmp_path, every=.05, interactive=True)
    until = time.time() + 20
    while len(names()) > 1 and time.time() < until: time.sleep(.05)
    assert len(names()) == 1; other.children[0].children[1].value = False


def test_training_leaves_its_plan(tmp_path):
    from keepfit_nb.training import Settings, fit, standing
    class One(torch.nn.Module):
        def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.ones(1))
        def forward(self, batch): return {"loss": (self.w * batch).sum() ** 2}
    fit(One(), lambda i: torch.ones(1), Settings(steps=4, log_every=2), tmp_path, device="cpu", verbose=False, label="one")
    assert p.read_json(tmp_path / "plan.json") == dict(label="one", total=4, log_every=2) and standing(tmp_path)["state"] == "done"


# ---- chapter 18: retrieval

class Words:
    "Sentences by their first letter."
    def embed_text(self, texts): return np.stack([np.eye(3)["abc".index(t[0])] for t in texts])


PHOTOS = [dict(modality=m, categories=[c], words=[f"{t} said"], who=who) for m, c, t, who in
          (("CFP", "drusen", "a", "eye 0"), ("CFP", "glaucoma", "b", "eye 1"), ("CFP", "drusen", "c", "eye 2"), ("OCT", "drusen", "a", "eye 0"))]
X = np.array([[1, 0, 0], [0, 1, 0], [.9, 0, .43], [.8, .6, 0]], np.float32)


def test_retrieval_finds():
    from keepfit_nb.retrieval import QUESTIONS, found_by
    words, eyes, texts = QUESTIONS; rows = lambda found: [r for r, _ in found]
    assert rows(found_by(Words(), PHOTOS, X, words, "CFP", "b …", k=2))[0] == 1
    assert rows(found_by(Words(), PHOTOS, X, eyes, "CFP", eye=0)) == [2, 1]                # never the eye itself
    assert rows(found_by(Words(), PHOTOS, X, eyes, "OCT", eye=0)) == [3] and rows(found_by(Words(), PHOTOS, X, texts, "CFP", eye=1))[0] == "b said"
    with pytest.raises(ValueError, match="say what to look for"): found_by(Words(), PHOTOS, X, words, "CFP", " ")
    with pytest.raises(ValueError, match="nothing of FFA"): found_by(Words(), PHOTOS, X, words, "FFA", "a")


def test_retrieval_browser():
    from keepfit_nb.retrieval import QUESTIONS, browse_retrieval
    picture = lambda i: np.full((4, 4, 3), 60 * i, np.uint8)
    one, two, three = browse_retrieval(Words(), PHOTOS, X, picture, "a lesion", eye=0)
    title = lambda fig: [ax.get_title() for ax in fig.axes]
    assert "drusen" in title(one)[0] and title(two)[0].startswith("this eye") and "same disease" in title(two)[1] and "another" in title(two)[2]
    assert "a said   ← its own" in three.axes[1].texts[0].get_text()
    box = browse_retrieval(Words(), PHOTOS, X, picture, "a lesion", interactive=True); question, camera, text, eye = box.children[0].children
    text.value = ""; assert "say what to look for" in box.children[1].value
    camera.value = "FFA"; assert "nothing of FFA" in box.children[1].value
    camera.value = "CFP"; question.value = QUESTIONS[1]; assert not box.children[1].value


# ---- chapter 20: the study

@pytest.fixture
def study():
    from keepfit_nb.ablation import Study
    rng, eyes, truth = np.random.default_rng(0), {str(i): "CFP|glaucoma" for i in range(20)}, dict(rows=list(range(20)), labels=[0, 1] * 10)
    cell = lambda row, seed: dict(row=row, seed=seed, answers={"t": "".join(map(str, rng.integers(0, 2, 20)))}, aca={"t": .5})
    return Study(dict(questions=[dict(kind="fine", task="t", modality="CFP", classes=["a", "b"])], truth={"t": truth}, eyes=eyes, cells=[cell(r, s) for r in ("public", "elite", "keepfit") for s in (0, 1)]))


def test_study_compares_what_is_chosen(study):
    from keepfit_nb.ablation import chosen_gains
    pairs = lambda t: list(zip(t.new, t.old))
    assert pairs(chosen_gains(study, ["public", "elite"], n=10)) == [("elite", "public")]
    assert pairs(chosen_gains(study, ["public", "elite", "keepfit"], "keepfit", n=10)) == [("public", "keepfit"), ("elite", "keepfit")]
    for bad, said in ((dict(rows=["elite"]), "choose two rows"), (dict(rows=["elite"], against="elite"), "besides 'elite'"), (dict(rows=["elite", "public"], modality="OCT"), "no fine question of OCT"),
                      (dict(rows=["elite", "public"], kind="coarse"), "no coarse question")):
        with pytest.raises(ValueError, match=said): chosen_gains(study, n=10, **bad)


def test_study_explorer(study, tmp_path):
    from keepfit_nb.ablation import explore_study
    figure, = explore_study(study, n=10); assert "fine questions" in figure.axes[0].get_title() and len(figure.axes[0].get_yticklabels()) == 3
    box = explore_study(study, True, n=10); kind, modality, against, rows = box.children[0].children; before = box.children[2].value
    rows.value = ("elite",); assert "choose two rows" in box.children[1].value and box.children[2].value == before
    against.value = "public"; assert not box.children[1].value and box.children[2].value != before
    assert "No study in study.json" in (said := explore_study(tmp_path / "study.json", True).value) and "chapter 20" in said
    with pytest.raises(FileNotFoundError): explore_study(tmp_path / "study.json", False)
