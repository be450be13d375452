"Type hints: the package is clean, the checker sees through classes written in pieces, and the wheel's users get the types."
import ast, importlib, inspect, os, re, runpy, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "keepfit_nb"
PIECES = '''
from fastcore.basics import patch
class Book:
    def __init__(self): self.n = 1
@patch
def turn(self: Book, pages: int) -> int: return self.n + pages
@patch(as_prop=True)
def title(self: Book) -> str: return "eyes"
def close(self, slowly: bool = False) -> None: ...
def opened(cls, name: str) -> Book: return cls()
Book.close, Book.open = close, classmethod(opened)      # type: ignore[assignment]
'''
HEAVY = "torch torchvision transformers timm numpy pandas pyarrow cv2 PIL pydantic sklearn scipy matplotlib huggingface_hub datasets".split()


def mypy(*words, cwd, **env):
    done = subprocess.run([sys.executable, "-m", "mypy", "--no-error-summary", *words], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stub_of():
    import setuptools
    kept, setuptools.setup = setuptools.setup, lambda **facts: None
    try: return runpy.run_path(str(ROOT / "setup.py"))["stub_of"]
    finally: setuptools.setup = kept


@pytest.mark.slow
def test_the_package_is_clean():
    assert mypy("keepfit_nb", cwd=ROOT) == ""


def test_the_checker_knows_methods_added_later(tmp_path):
    place = tmp_path / "keepfit_nb"; place.mkdir(); (place / "__init__.py").touch()
    right = 'b = Book.open("a")\nn: int = b.turn(3)\nt: str = b.title\nb.close(slowly=True)\n'
    wrong = 'b = Book()\nb.turn("three")\nm: int = b.title\nb.shut()\n'
    (place / "right.py").write_text(PIECES + right); (place / "wrong.py").write_text(PIECES + wrong)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nplugins = {ROOT / 'tests' / 'typing_plugin.py'}\nignore_missing_imports = True\nfollow_imports = skip\n")
    out = mypy("keepfit_nb", cwd=tmp_path)
    assert "right.py" not in out, out
    assert [re.search(r"\[[a-z-]+\]$", l)[0] for l in out.splitlines()] == ["[arg-type]", "[assignment]", "[attr-defined]"], out


def test_a_stub_has_the_methods_inside(stub_of):
    book = next(n for n in ast.parse(stub_of(PIECES)).body if isinstance(n, ast.ClassDef))
    found = {n.name: [ast.unparse(d) for d in n.decorator_list] for n in book.body}
    assert found == {"__init__": [], "turn": [], "title": ["property"], "close": [], "open": ["classmethod"]}
    assert stub_of("import os\nclass Plain: pass\n") == ""


def test_every_module_written_in_pieces_has_a_stub_and_no_method_is_lost(stub_of):
    "What the stub calls a method is one at run time too."
    made = {p.stem: s for p in PACKAGE.glob("*.py") if (s := stub_of(p.read_text(encoding="utf-8")))}
    assert {"pretraining", "profiles", "evaluation", "injection"} <= made.keys()
    for name, stub in made.items():
        module = importlib.import_module(f"keepfit_nb.{name}")
        assert not re.search(r"@patch\b", stub), name
        for node in ast.parse(stub).body:
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef): assert inspect.getattr_static(getattr(module, node.name), inner.name, None) is not None, (name, node.name, inner.name)


@pytest.mark.slow
def test_users_of_the_wheel_get_the_types(tmp_path, stub_of):
    "As installed: package, list of public names, stubs and py.typed; the checker of someone else's code reads them, without our plugin."
    site = tmp_path / "site" / "keepfit_nb"
    shutil.copytree(PACKAGE, site, ignore=shutil.ignore_patterns("__pycache__"))
    for path in site.glob("*.py"):
        if stub := stub_of(path.read_text(encoding="utf-8")): path.with_suffix(".pyi").write_text(stub, encoding="utf-8")
    assert (site / "py.typed").exists()
    (tmp_path / "mine.py").write_text("from keepfit_nb import KeepFIT, open_run, read_set, clip_loss\nfrom keepfit_nb.injection import Settings\n"
        "model = KeepFIT.from_pretrained('runs/latest')\nreveal_type(model)\nreveal_type(model.caption([]))\nreveal_type(open_run('a', 'smoke').need('06_images'))\n"
        "reveal_type(open_run('a', 'smoke').section('injection', Settings).heads)\nmodel.classify()\nmodel.nonsense_()\n")
    skipped = "".join(f"[mypy-{m}.*]\nfollow_imports = skip\n" for m in HEAVY)
    (tmp_path / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\nfollow_imports = silent\nmypy_path = site\n" + skipped)
    out = mypy("mine.py", cwd=tmp_path, PYTHONPATH="")
    mine = [l for l in out.splitlines() if l.startswith("mine.py")]
    revealed = [m[1] for l in mine if (m := re.search(r'Revealed type is "(.+)"', l))]
    assert revealed == ["keepfit_nb.pretraining.KeepFIT", "list[str]", "pathlib.Path", "int"], out
    assert any("classify" in l and "[call-arg]" in l for l in mine), out


def test_public_names():
    import keepfit_nb
    listed = {a.name: n.module for n in ast.parse((PACKAGE / "__init__.pyi").read_text()).body if isinstance(n, ast.ImportFrom) for a in n.names if a.asname == a.name}
    assert keepfit_nb.__all__ == ["__version__", *listed] and len(listed) > 40
    modules = {p.stem for p in PACKAGE.glob("*.py")}
    assert not listed.keys() & modules, "a module of that name would hide it"
    for name, module in listed.items():
        thing = getattr(keepfit_nb, name)
        assert thing is getattr(importlib.import_module(f"keepfit_nb.{module}"), name) and callable(thing)
        assert inspect.getdoc(thing) and not name.startswith("_"), name
        assert thing.__module__ == f"keepfit_nb.{module}", f"{name} is of {thing.__module__}: list it there"
    with pytest.raises(AttributeError, match="public names"): keepfit_nb.KeepFit
    assert set(listed) <= set(dir(keepfit_nb))


def test_what_is_not_public_is_in_no_list_or_underscored():
    "Each module's own list holds what its chapter defines, and nothing private."
    for path in PACKAGE.glob("*.py"):
        if path.stem.startswith("_"): continue
        names = next((ast.literal_eval(n.value) for n in ast.parse(path.read_text(encoding="utf-8")).body
                      if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"), [])
        assert not [n for n in names if n.startswith("_")], path.name


def test_importing_the_package_stays_light():
    code = "import sys, keepfit_nb; assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(len(keepfit_nb.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and int(done.stdout) > 40, done.stderr
