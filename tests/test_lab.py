"The lab as a person meets it: JupyterLab in a real browser, chapters run by the button, widgets moved by mouse and keyboard. tests/test_widgets.py checks the same widgets without one."
import sys

import pytest

import lab_browser as lab

pytest.importorskip("playwright", reason="playwright (dev_requirements of settings.ini) is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900),
              pytest.mark.skipif(not lab.CHROMIUM, reason="no Chromium here: install the system's package, e.g. apt install chromium")]
FEW = {"captions.n_public": 8, "captions.n_elite": 8, "captions.n_eval_train": 12, "captions.n_eval_test": 12, "captions.processes": 1}
TINY = FEW | {"captions.diseases": ["normal", "glaucoma", "diabetic retinopathy", "macular hole"], "variants": {"keepfit": {"semantic": False}}, "pretraining.steps": 4, "pretraining.batch_size": 8, "baselines.models": [], "evaluation.bootstrap": 20}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with the two chapters, their runs beside it. Afterwards the chapters of the checkout are as they were."
    folder = tmp_path_factory.mktemp("lab"); (folder / "nbs").mkdir()
    state = lambda: (sorted(f.name for f in (lab.ROOT / "nbs").iterdir() if f.name[0] != "."), [(lab.ROOT / "nbs" / f"{n}.ipynb").read_bytes() for n in ("index", "03d_captions", "15_zero_shot")])
    lab.copy_chapter("03d_captions", folder / "nbs", folder / "run", FEW); lab.copy_chapter("15_zero_shot", folder / "nbs", folder / "run15", TINY)
    before = state(); yield folder
    assert state() == before, "the lab wrote into the checkout"


@pytest.fixture(scope="module")
def server(place):
    with lab.jupyterlab(place / "nbs", place / "home") as where: yield where


@pytest.fixture(scope="module")
def page(server):
    "One browser for both chapters: loading JupyterLab is the slow part."
    with lab.chromium_page() as page: yield page


def run(page, server, name):
    "Open, restart and run all; no cell may fail."
    lab.open_chapter(page, *server, name)
    failed = [(c["source"][:60], c["errors"]) for c in lab.restart_and_run_all(page, 600) if c["errors"]]
    assert not failed, failed


def test_phantom_explorer(page, server):
    run(page, server, "03d_captions")
    box = lab.widget(page, "cup ratio"); box.scroll_into_view_if_needed()
    words = lambda: box.locator(".widget-html-content").all_inner_texts(); first, said = lab.picture(box), words()
    lab.slide(page, box, "blur", times=3); lab.until(page, lambda: lab.picture(box) != first)
    assert words() == said                                                             # blur is nobody's disease: the caption stays
    lab.slide(page, box, "eye"); lab.until(page, lambda: words() != said)              # another eye, other words
    lab.control(box, "disease").locator("select").select_option(label="diabetic retinopathy")
    lab.until(page, lambda: any("Nothing of diabetic retinopathy shows in OCT" in t for t in words()))
    box.get_by_role("button", name="中文").click(); lab.until(page, lambda: any("眼" in t for t in words()))
    lab.slide(page, box, "grade"); lab.slide(page, box, "hard exudates", times=2)       # mild, yet with exudates
    lab.until(page, lambda: any("no eye can have all of" in t for t in words()))


def test_prompt_playground(page, server, place):
    run(page, server, "15_zero_shot")
    box = lab.widget(page, "labels, one a line"); box.scroll_into_view_if_needed()
    words, first = lambda: " ".join(box.locator(".widget-html-content").all_inner_texts()), lab.picture(box)
    assert words().startswith("normal ") and "glaucoma" in words() and "%" in words()
    labels = lambda text: (box.locator("textarea").fill(text), box.locator("textarea").blur())
    labels("normal\nan eye of a cat"); lab.until(page, lambda: "an eye of a cat" in words() and "%" in words()); second = lab.picture(box); assert second != first
    before = words(); lab.control(box, "wording").locator("select").select_option(label="plain"); lab.until(page, lambda: "%" in words() and words() != before)      # bad labels and files of one's own: test_widgets


def test_make_lab_opens_the_first_page(page, root, tmp_path):
    "The command of `make lab`, as make prints it: JupyterLab on this machine only, its address that of the index; the page comes up with its kernel."
    import os, shlex, subprocess
    line = subprocess.run(["make", "--no-print-directory", "-n", "lab"], cwd=root, capture_output=True, text=True, env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")}).stdout.strip().splitlines()[-1]
    first, *words = shlex.split(line); assert first.endswith("/jupyter") and words[0] == "lab" and words[-1] == "nbs/index.ipynb" and "--ip=127.0.0.1" in words
    with lab.jupyterlab(root, tmp_path / "home", [sys.executable, "-m", "jupyter", *words]) as (address, token):
        lab.open_chapter(page, address, token, "nbs/index"); assert page.locator(".jp-RenderedMarkdown h1").first.inner_text().strip().startswith("keepfit_nb")
