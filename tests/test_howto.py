"The library as a reader has it: the wheel built once, installed into an empty folder, used away from the checkout; every how-to page runs there as it stands."
import os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOWTO = sorted((ROOT / "docs" / "howto").glob("*.md"))
blocks = lambda page: re.findall(r"^```(python|bash|yaml)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    "The folder into which the wheel of this checkout was installed, and nothing else."
    base = tmp_path_factory.mktemp("wheel"); copy = base / "src"
    for f in subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n"):
        if f and (ROOT / f).is_file(): (copy / f).parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT / f, copy / f)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", base / "dist", copy], check=True, capture_output=True)
    wheel, = (base / "dist").glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", base / "site", wheel], check=True, capture_output=True)
    return base / "site"


@pytest.fixture(scope="session")
def env(site, tmp_path_factory) -> dict[str, str]:
    "The environment of a reader: package and `keepfit-nb` come from the wheel, `python` is this one, nothing lies in the data folder."
    path = os.pathsep.join([str(site / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    assert shutil.which("keepfit-nb", path=path) == str(site / "bin" / "keepfit-nb")
    return {**os.environ, "PYTHONPATH": str(site), "PATH": path, "KEEPFIT_DATA": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder like a reader's: one tiny model, a few eyes, a table with a broken row."
    import numpy as np, torch
    from PIL import Image
    from keepfit_nb.encoders import Settings as Encoders, make_tokenizer, text_config
    from keepfit_nb.pretraining import KeepFIT, Settings
    folder = tmp_path_factory.mktemp("reader"); toy = Encoders(image_model="test_resnet", text_width=32, text_layers=1, text_heads=2, vocab_size=200, projection=16)
    tokenizer, _ = make_tokenizer(toy, ["a fundus photograph of a normal retina, glaucoma or a macular hole"] * 3)
    tokenizer.save_pretrained(folder / "tokenizer"); text_config(toy, len(tokenizer)).save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    KeepFIT(toy, folder / "tokenizer", 32, settings=Settings(precision="fp32")).eval().save_pretrained(folder / "runs" / "latest" / "13_pretraining")
    rng = np.random.default_rng(0); rows = ["file,diagnosis,person,report"]
    for k in range(12):
        name = ("normal", "glaucoma")[k % 2]; file = folder / "eyes" / name / f"{k}.png"; file.parent.mkdir(parents=True, exist_ok=True)
        disc = np.hypot(*(np.mgrid[:96, :96] - 48)) < 44
        Image.fromarray((disc[..., None] * np.array([150, 80, 40]) + rng.integers(0, 40, (96, 96, 3))).clip(0, 255).astype(np.uint8)).save(file)
        rows.append(f"eyes/{name}/{k}.png,{name},p{k // 2},The image shows {name}.")
    shutil.copy(folder / "eyes" / "glaucoma" / "1.png", folder / "eye.png")
    (folder / "eyes.csv").write_text("\n".join([*rows, "eyes/normal/gone.png,normal,p9,Nothing."]) + "\n", encoding="utf-8")
    return folder


def script(page: Path, folder: Path) -> str:
    "A page as one program, its blocks in their order. A yaml block that begins with `# name.yaml` is saved under that name, a bash block is executed by bash."
    lines = []
    for kind, text in blocks(page):
        if kind == "python": lines.append(text)
        elif kind == "bash": lines.append(f"import subprocess; subprocess.run(['bash', '-euc', {text!r}], check=True)")
        elif name := re.match(r"# (\w+\.yaml)\n", text): (folder / name[1]).write_text(text, encoding="utf-8")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("page", HOWTO, ids=lambda p: p.stem)
def test_how_to_pages_run_as_they_stand(page, place, site, env):
    code = script(page, place); assert "keepfit" in code and not re.search(r"^\s*\.\.\.", code, re.M)
    first = f"import keepfit_nb; assert keepfit_nb.__file__.startswith({str(site)!r}), keepfit_nb.__file__\n"
    done = subprocess.run([sys.executable, "-c", first + code], cwd=place, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-2500:]


def test_there_is_a_page_for_each_task():
    assert [p.stem for p in HOWTO] == ["1_load", "2_classify", "3_evaluate", "4_add_a_set", "5_add_a_switch", "6_schedule_a_run"]


def test_profile_on_the_page_is_a_profile(tmp_path):
    "The yaml of the page about sets is read and checked like any profile; a slip in it would be told."
    from keepfit_nb.profiles import load_profile
    from keepfit_nb.running import check_profile
    from keepfit_nb.sources import Settings
    text, = [text for kind, text in blocks(ROOT / "docs" / "howto" / "4_add_a_set.md") if kind == "yaml"]
    path = tmp_path / "mine.yaml"; path.write_text(text, encoding="utf-8"); prof = load_profile(str(path)); check_profile(prof)
    mine, phantoms = Settings(**prof.sections["sources"]).sets
    assert (mine.name, mine.reader, mine.modality, mine.columns["caption"]) == ("mine", "table", "CFP", "report") and phantoms.roles == {"elite": ["elite"]}
    path.write_text(text.replace("columns:", "colums:"), encoding="utf-8")
    with pytest.raises(ValueError, match="colums"): check_profile(load_profile(str(path)))


def test_exit_codes_on_the_page_are_those_of_the_runner():
    from keepfit_nb.running import EXIT
    page = (ROOT / "docs" / "howto" / "6_schedule_a_run.md").read_text(encoding="utf-8")
    assert {int(n) for n in re.findall(r"^\| (\d+) \|", page, re.M)} == set(EXIT.values())


@pytest.mark.slow
def test_wheel_works_elsewhere(site, env, tmp_path):
    "Away from the checkout: data and chapters are found, the command answers, a chapter runs by papermill."
    code = "import keepfit_nb, keepfit_nb.profiles as p; print(keepfit_nb.__file__); assert not p.in_checkout(); print(len(p.chapters()), p.resource('data', 'categories.csv'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and str(site) in done.stdout, done.stdout + done.stderr
    done = subprocess.run(["keepfit-nb", "sources", "list"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "phantoms" in done.stdout, done.stderr
    shutil.copy(ROOT / "nbs" / "13_pretraining.ipynb", tmp_path)
    done = subprocess.run([sys.executable, "-m", "papermill", "13_pretraining.ipynb", "out.ipynb", "-p", "profile", "smoke", "-k", "python3"],
                          cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "smoke" / "13_pretraining" / "default.json").exists()
