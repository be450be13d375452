"""The pictures of docs/lab.md, made in a real browser: python docs/screenshots.py [NAME …]

Names: index explorer playground monitor reviewer book. Needs the development packages and a Chromium of the system. Chapters run on copies in a temporary folder, at a
fraction of smoke size; the whole takes some minutes. Look at every picture before you commit it.
"""
import io, json, os, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import lab_browser as lab

NAMES = ("index", "explorer", "playground", "monitor", "reviewer", "book")
MOST = 90_000       # bytes of a picture


def squeezed(whole) -> tuple[bytes, tuple[int, int]]:
    "A picture as WebP of at most MOST bytes, and its size: without loss where that is small enough, as on a page of letters, else as good as it may be."
    for scale, how in ((1, dict(lossless=True)), *((1, dict(quality=q)) for q in (85, 75, 65, 55)), *((.8, dict(quality=q)) for q in (75, 60, 45))):
        image, out = whole.resize((round(whole.width * scale), round(whole.height * scale))), io.BytesIO()
        image.save(out, "WEBP", method=6, **how)
        if len(out.getvalue()) <= MOST: break
    return out.getvalue(), image.size


def keep(page, name: str, bottom: float = 0) -> None:
    "A screenshot down to `bottom` (0: the whole window): as it is into build/screenshots, with at most MOST bytes into docs/screenshots."
    from PIL import Image
    size = page.viewport_size; clip = dict(x=0, y=0, width=size["width"], height=min(size["height"], bottom or size["height"]))
    raw = ROOT / "build" / "screenshots" / f"{name}.png"; raw.parent.mkdir(parents=True, exist_ok=True); raw.write_bytes(page.screenshot(clip=clip))
    data, (width, height) = squeezed(Image.open(raw).convert("RGB"))
    path = ROOT / "docs" / "screenshots" / f"{name}.webp"; path.parent.mkdir(exist_ok=True); path.write_bytes(data)
    print(f"{path.name}: {width} × {height}, {len(data) // 1000} KB", flush=True)


def notebook(path: Path, *cells: str) -> Path:
    "A small notebook: texts that begin with # are markdown."
    made = [dict(cell_type="markdown", id=f"m{i}", metadata={}, source=c) if c.startswith("#") else dict(cell_type="code", id=f"c{i}", metadata={}, source=c, outputs=[], execution_count=None) for i, c in enumerate(cells)]
    path.write_text(json.dumps(dict(cells=made, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")), nbformat=4, nbformat_minor=5))); return path


def shot(desk, name: str, first: str, find=None, act=lambda page, box: None, run: bool = True) -> None:
    "Open a notebook, run it, act on the output that `find(page)` gives, keep the picture."
    page, where, _ = desk; lab.open_chapter(page, *where, first); box = None
    if run:
        failed = [c["errors"] for c in lab.restart_and_run_all(page, 1500) if c["errors"]]
        if failed: sys.exit(f"{first} failed: {failed}")
    if find: box = find(page); box.scroll_into_view_if_needed(); act(page, box); page.wait_for_timeout(500); box.evaluate("e => e.scrollIntoView({block: e.getBoundingClientRect().height > 600 ? 'start' : 'end'})")
    page.wait_for_timeout(1500); place = box.bounding_box() if box else None
    keep(page, name, place["y"] + place["height"] + 12 if place else 0)


def labelled(label): return lambda page: lab.widget(page, label)


def index(desk):
    shot(desk, "index", "index", run=False)
    desk[0].evaluate("() => { window.jupyterapp.commands.execute('application:toggle-left-area'); }")          # room for the widgets


def explorer(desk):
    place = desk[2]
    notebook(place / "nbs" / "explorer.ipynb", "# The phantom explorer", "from keepfit_nb.captions import explore_eye", 'explore_eye(7, "diabetic macular edema")')
    def act(page, box):
        before = lab.picture(box); lab.control(box, "second disease").locator("select").select_option(label="cataract")
        lab.until(page, lambda: lab.picture(box) != before, 120); lab.slide(page, box, "exudate ring", times=2); page.wait_for_timeout(3000)
    shot(desk, "explorer", "explorer", labelled("cup ratio"), act)


FEW = {"variants": {"keepfit": {"semantic": False}}, "pretraining.steps": 20, "captions.n_public": 30, "captions.n_elite": 30, "captions.n_eval_train": 8, "captions.n_eval_test": 8}


def model_folder(place: Path) -> str:
    "Code that names a trained model: that of runs/demo or runs/smoke where there is one, else one trained for a few steps."
    for run in ("demo", "smoke"):
        if (ROOT / "runs" / run / "13_pretraining" / "default.json").exists(): return f"folder = 'runs/{run}'"
    return f"from keepfit_nb.profiles import open_run\nfolder = open_run('15_zero_shot', 'smoke', {str(place / 'run')!r}, 0, {FEW!r}).need('13_pretraining')"


def playground(desk):
    place = desk[2]
    notebook(place / "nbs" / "playground.ipynb", "# The prompt playground", model_folder(place),
             "from keepfit_nb.captions import render\nfrom keepfit_nb.eye import sample_eye\nfrom keepfit_nb.saliency import heat\nfrom keepfit_nb.zero_shot import playground\n"
             "eyes = {f'{m} {d}': render(sample_eye(5, d), m, 192) for m, d in (('CFP', 'glaucoma'), ('CFP', 'diabetic retinopathy'), ('OCT', 'macular hole'))}",
             "playground(folder, eyes, ['normal', 'glaucoma', 'diabetic retinopathy'], heat)")
    def act(page, box):
        before = lab.picture(box); box.locator("textarea").fill("a healthy eye\nan eye with a large cup\na cat"); box.locator("textarea").blur()
        lab.until(page, lambda: lab.picture(box) != before, 120)
    shot(desk, "playground", "playground", labelled("labels, one a line"), act)


def monitor(desk):
    place = desk[2]
    notebook(place / "nbs" / "monitor.ipynb", "# A training, watched while it runs", "import torch, threading\nfrom pathlib import Path\nfrom keepfit_nb.training import Settings, fit, watch_training\nrun = Path('../watched')",
             "class Ring(torch.nn.Module):\n    def __init__(self):\n        super().__init__(); torch.manual_seed(0); self.net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))\n"
             "    def forward(self, x): return {'loss': torch.nn.functional.cross_entropy(self.net(x), (x.norm(dim=1) > 1.2).long())}\n\n"
             "def batch(i):\n    if wait: threading.Event().wait(wait)\n    return torch.randn(64, 2, generator=torch.Generator().manual_seed(i))",
             "wait = 0.; fit(Ring(), batch, Settings(steps=400, log_every=10, lr=3e-2), run/'keepfit'/'0', device='cpu', verbose=False)\nwait = .1; threading.Thread(target=lambda: fit(Ring(), batch, Settings(steps=400, log_every=10, lr=1e-2), run/'keepfit'/'1', device='cpu', verbose=False), daemon=True).start()",
             "watch_training(run)")
    shot(desk, "monitor", "monitor", labelled("curve"), lambda page, box: lab.until(page, lambda: box.get_by_text("running").count() and page.wait_for_timeout(9000) is None, 120))


def reviewer(desk):
    place = desk[2]
    notebook(place / "nbs" / "reviewer.ipynb", "# A human looks", "from pathlib import Path\nfrom keepfit_nb.atlas import Settings, read_atlas, review\nfrom keepfit_nb.profiles import resource\nout = Path('../pairs'); pairs, _, _ = read_atlas(resource('data', 'atlas', 'atlas.pdf'), out, Settings(ocr=False))",
             "review(pairs, out, out / 'decisions.csv')")
    def act(page, box): box.get_by_role("button", name="accept").first.click(); box.get_by_role("button", name="reject").nth(1).click(); lab.until(page, lambda: "2 of" in box.inner_text(), 60)
    shot(desk, "reviewer", "reviewer", lambda page: page.locator(f"{lab.PANEL} .jp-OutputArea-child").filter(has=page.get_by_role("button", name="show more")).last, act)


def book(place):
    "A page of the book of `make docs` where it is there, else of a book of one chapter."
    html = ROOT / "_docs"
    if not (html / "10_contrastive.html").exists():
        html = place / "html"; subprocess.run([sys.executable, ROOT / "nbs" / "make_docs.py", "--html", html, "--chapters", "10"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    with lab.chromium_page(1280, 860) as page:
        page.goto((html / "10_contrastive.html").as_uri()); page.wait_for_selector("mjx-container", state="attached"); page.get_by_role("heading", name="Several right answers").first.scroll_into_view_if_needed()
        page.wait_for_timeout(1000); keep(page, "book")


if __name__ == "__main__":
    wanted = sys.argv[1:] or NAMES
    if strange := set(wanted) - set(NAMES): sys.exit(f"unknown: {', '.join(strange)}; names are {', '.join(NAMES)}")
    if not lab.CHROMIUM: sys.exit("no Chromium here: install the system's package, e.g. apt install chromium")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder); (place / "nbs").mkdir(); pages = [n for n in wanted if n != "book"]
        fonts = place / "share" / "fonts"; fonts.mkdir(parents=True); shutil.copy(ROOT / "data" / "fonts" / "hei.ttf", fonts)          # for 中文, where the system has no such letters
        os.environ["XDG_DATA_HOME"] = str(place / "share")
        if pages:
            for path in (ROOT / "nbs").glob("*.ipynb"): shutil.copy(path, place / "nbs")          # for the list at the left; only the small ones below are run
            with lab.jupyterlab(place / "nbs", place / "home") as where, lab.chromium_page(1280, 860) as page:
                for name in pages: globals()[name]((page, where, place))
        if "book" in wanted: book(place)
