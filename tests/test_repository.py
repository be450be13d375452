"The repository itself: notebooks and package agree, facts stand in one place, chapters keep the house form."
import ast, configparser, json, re, shutil, subprocess, sys, tomllib
from pathlib import Path

import pytest, yaml

ROOT = Path(__file__).resolve().parent.parent
INI = configparser.ConfigParser(delimiters=["="], interpolation=None)
INI.read(ROOT / "settings.ini", encoding="utf-8")
FACTS = INI["DEFAULT"]
CHAPTERS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
NOTEBOOKS = CHAPTERS + sorted((ROOT / "nbs" / "exercises").glob("*.ipynb")) + [ROOT / "nbs" / "index.ipynb"]
tracked = lambda: subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
name = lambda path: path.stem
EXERCISE = re.compile(r"^\*\*Exercise (\d+) \((easy|medium|research)\)\.\*\*", re.M)
WITH_RESEARCH = {"11", "12", "13", "13a", "14.2", "15", "16", "17", "18", "19", "20"}       # chapters where something is not known yet


def markdown(path: Path) -> str:
    "The words of a notebook."
    return "\n\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "markdown")


def test_settings_agree_with_nbdev():
    nbdev = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]
    assert {k: nbdev[k] for k in ("lib_name", "lib_path", "nbs_path", "doc_path", "branch")} == \
           {k: FACTS[k] for k in ("lib_name", "lib_path", "nbs_path", "doc_path", "branch")}
    import keepfit_nb
    assert keepfit_nb.__version__ == FACTS["version"]


def test_environment_names_the_same_packages():
    bare = lambda text: re.split(r"[<>=]", text.strip())[0]
    pip = next(d["pip"] for d in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"] if isinstance(d, dict))
    assert {bare(d) for d in pip} == {bare(d) for d in (FACTS["requirements"] + FACTS["dev_requirements"]).split()}
    pinned = {d.split("==")[0]: d for d in pip}
    for exact in FACTS["dev_requirements"].split():
        if "==" in exact: assert pinned[bare(exact)] == exact


def test_export_and_clean_leave_no_difference(tmp_path):
    for f in tracked():
        if f and (ROOT / f).is_file():
            (tmp_path / f).parent.mkdir(parents=True, exist_ok=True); shutil.copy(ROOT / f, tmp_path / f)
    read = lambda: {str(p.relative_to(tmp_path)): p.read_bytes() for d in ("nbs", "keepfit_nb") for p in (tmp_path / d).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    before = read()
    for tool in ("nbdev-export", "nbdev-clean"):
        done = subprocess.run([Path(sys.executable).with_name(tool)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    after = read()
    changed = [f for f in before.keys() | after.keys() if before.get(f) != after.get(f)]
    assert not changed, f"run `make export` and commit: {changed}"


def test_parameters_tag_survives_cleaning(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path); (tmp_path / "nbs").mkdir(); (tmp_path / "keepfit_nb").mkdir()
    shutil.copy(CHAPTERS[0], tmp_path / "nbs" / "00_a.ipynb")
    subprocess.run([Path(sys.executable).with_name("nbdev-clean"), "--fname", "nbs"], cwd=tmp_path, check=True, capture_output=True)
    tags = [c["metadata"].get("tags") for c in json.loads((tmp_path / "nbs" / "00_a.ipynb").read_text())["cells"]]
    assert tags.count(["parameters"]) == 1


def test_every_chapter_has_a_number_of_its_own():
    numbers = [p.stem.split("_")[0] for p in CHAPTERS]
    assert len(set(numbers)) == len(numbers), sorted(n for n in numbers if numbers.count(n) > 1)


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_chapter_form(path):
    cells = json.loads(path.read_text())["cells"]
    first = "".join(cells[0]["source"])
    assert first.startswith("# ") and "\n> " in first and f"nbs/{path.name}" in first and "**You will build**" in first and "**Cost**" in first
    from keepfit_nb.running import PARAMETERS, parameter_names
    assert tuple(parameter_names(path)) == PARAMETERS
    values = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))
    ast.literal_eval("[" + ",".join(ast.unparse(n.value) for n in ast.parse("".join(values["source"])).body) + "]")     # literals only
    headings = re.findall(r"^## (.+)$", "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"), re.M)
    assert "Exercises" in headings and "Summary" in headings
    code = [c for c in cells if c["cell_type"] == "code"]
    longest = max(sum(1 for line in "".join(c["source"]).splitlines() if line.strip() and not line.startswith("#|")) for c in code)
    assert longest <= 30, f"a cell of {longest} lines"
    assert any(c["outputs"] for c in code), "execute the chapter and commit its outputs"
    assert not any(o["output_type"] == "error" for c in code for o in c["outputs"])
    assert path.stat().st_size < 1_000_000
    number, text = path.stem.split("_")[0], markdown(path)
    section = re.search(r"^## Exercises$(.*?)^## Summary$", text, re.M | re.S)[1]
    asked = EXERCISE.findall(section)
    assert len(asked) >= 2 and [int(n) for n, _ in asked] == list(range(1, len(asked) + 1)), f"two exercises or more, numbered from 1: {asked}"
    assert not re.search(r"^\*\*(\d|Exercise \(|(Easy|Medium|Hard|Research)\b)", section, re.M), "an exercise begins **Exercise 1 (easy).**"
    assert f"](exercises/{path.name})" in section, "the exercises say where their solutions lie"
    assert number not in WITH_RESEARCH or "research" in {grade for _, grade in asked}, "an open question is missing"
    solution = ROOT / "nbs" / "exercises" / path.name
    assert solution.exists(), "the solution is missing"
    assert markdown(solution).startswith(f"# Solutions for chapter {number}, ") and EXERCISE.findall(markdown(solution)) == asked, "one heading a solution, as in the chapter"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_boxes_are_ones_that_the_book_knows(path):
    "A box is a paragraph of its own that begins with its name and a full stop (docs/book.py)."
    for part in re.split(r"\n{2,}", markdown(path)):
        if re.search(r"\*\*(Where earlier code went wrong|Why it is so)", part):
            assert re.match(r"(?:> )?\*\*(Where earlier code went wrong|Why it is so)\.\*\*\s", part), part[:120]


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_chapter_imports_only_earlier_ones(path):
    from keepfit_nb.profiles import module_of
    module = ROOT / "keepfit_nb" / f"{module_of(path.stem)}.py"
    if not module.exists(): pytest.skip("no module")
    earlier = {module_of(p.stem) for p in CHAPTERS if p.stem < path.stem}
    used = {n.module.split(".")[0] for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module}
    assert used <= earlier, f"imports later chapters: {sorted(used - earlier)}"


def test_nothing_unsafe_or_private():
    home, banned = str(Path.home()), re.compile(r"\beval\(|\bexec\(|pickle\.load|torch\.load\((?!.*weights_only=True)|shell=True|os\.system")
    for f in filter(None, tracked()):
        path = ROOT / f
        if not path.is_file() or path.suffix not in (".py", ".ipynb", ".md", ".yaml", ".yml", ".toml", ".ini", ".txt", ".csv", ".html", ".json", ""): continue
        text = path.read_text(encoding="utf-8", errors="replace")
        assert str(ROOT) + "/" not in text and f"{home}/" not in text, f"{f} names a path of a machine"
        if path.parent.name == "keepfit_nb":
            code = "\n".join(line for line in text.splitlines() if ".eval(" not in line)
            assert not banned.search(code), f"{f}: {banned.search(code).group()}"


def test_every_file_that_ships_has_its_row():
    "data/README.md says of each file what it is and under which licence; a row may name several by pattern."
    from fnmatch import fnmatch
    page = (ROOT / "data" / "README.md").read_text()
    rows = [[c.strip() for c in line.strip("| ").split("|")] for line in page.splitlines() if line.startswith("| `")]
    for row in rows: assert len(row) == 4 and row[1] and row[2], row
    named = [n for row in rows for n in re.findall(r"`([^`]+)`", row[0])]
    spread = [n.replace(m[0], one) for n in named for m in [re.search(r"\{([^}]*)\}", n) or ["", ""]] for one in (m[1].split(",") if m[0] else [""])] 
    shipped = [f.removeprefix("data/") for f in tracked() if f.startswith("data/") and (ROOT / f).is_file() and f != "data/README.md"]
    licences = re.findall(r"`([^`]*LICENSE[^`]*)`", page)
    assert not [f for f in shipped if not any(fnmatch(f, n) for n in spread + licences)]
    assert not [n for n in spread if not n.endswith("/") and not any(fnmatch(f, n) for f in shipped)], "a row without its file"


def test_repository_is_small():
    sizes = {f: (ROOT / f).stat().st_size for f in tracked() if f and (ROOT / f).is_file()}
    assert sum(sizes.values()) < 20e6 and not [f for f in sizes if f.endswith((".safetensors", ".npy", ".pth", ".bin"))]


def test_light_import():
    code = "import sys, keepfit_nb; assert not {'torch', 'transformers', 'timm'} & set(sys.modules), 'heavy import'; print(keepfit_nb.__version__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == FACTS["version"]
    code = "import sys; from keepfit_nb.running import app; assert not {'torch', 'pandas', 'papermill'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True); assert done.returncode == 0, done.stderr


def test_readme_is_generated():
    done = subprocess.run([sys.executable, ROOT / "nbs" / "make_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "nbs" / "exercises").glob("*.ipynb")), ids=name)
def test_exercise_solutions_run(path):
    "Solutions are plain code: executed in one namespace, without a kernel."
    done = subprocess.run([sys.executable, "-c", "import json, sys\nspace = {}\n"
        "for c in json.load(open(sys.argv[1], encoding='utf-8'))['cells']:\n"
        "    if c['cell_type'] == 'code': exec(compile(''.join(c['source']), sys.argv[1], 'exec'), space)", str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def test_benchmarks_fit_the_package(root, monkeypatch):
    "Each can be imported, and each part of the study that is measured by a file finds its `measure`."
    import importlib
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    modules = {f.stem: importlib.import_module(f.stem) for f in sorted((root / "benchmarks").glob("*.py"))}
    study = modules["study"]
    for name in [n for files in study.FILES.values() for n in files] + ["ablation"]: assert callable(modules[name].measure), name
    assert all(study.code_of(part) for part in study.MODULES) and set(study.MODULES) <= set(study.PARTS)
