"Packaging: every fact comes from settings.ini; data/ and nbs/ travel inside the wheel, and stubs for classes written in pieces."
import ast
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup
from setuptools.command.build_py import build_py

ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
facts = ini["DEFAULT"]
lines = lambda key: [line.strip() for line in facts[key].splitlines() if line.strip()]


def stub_of(source: str) -> str:
    """A module with the methods that chapters add to a class later (`@patch`, `Book.f = f`) inside it, as editors and type checkers
    look for them; '' when it has none. The bodies stay, because the types of attributes are read from them."""
    tree = ast.parse(source); body, found = [], []
    classes, functions = ({n.name: n for n in tree.body if isinstance(n, kind)} for kind in (ast.ClassDef, ast.FunctionDef))
    patching = lambda d: getattr(d.func if isinstance(d, ast.Call) else d, "id", "") == "patch"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and any(map(patching, node.decorator_list)):
            flags = {k.arg for d in node.decorator_list if patching(d) and isinstance(d, ast.Call) for k in d.keywords}
            kind = "property" if "as_prop" in flags else "classmethod" if "cls_method" in flags else ""
            found.append((node.args.args[0].annotation.id, node.name, node, kind))
        elif isinstance(node, ast.Assign) and all(isinstance(t, ast.Attribute) and getattr(t.value, "id", "") in classes for t in getattr(node.targets[0], "elts", node.targets)):
            for to, value in zip(getattr(node.targets[0], "elts", node.targets), getattr(node.value, "elts", [node.value])):
                kind = value.func.id if isinstance(value, ast.Call) else ""
                found.append((to.value.id, to.attr, functions[(value.args[0] if kind else value).id], kind))
        else: body.append(node)
    for owner, name, function, kind in found:
        method = ast.parse(ast.unparse(function)).body[0]
        method.name, method.args.args[0].annotation = name, None
        method.decorator_list = [d for d in method.decorator_list if not patching(d)] + ([ast.Name(kind)] if kind else [])
        inside = classes[owner].body
        classes[owner].body = [n for n in inside if getattr(n, "name", "") != name] + [method]
    tree.body = body
    for node in body:                                             # in a stub, only `import a as a` hands a name on
        if isinstance(node, ast.ImportFrom) and node.names[0].name != "*": node.names = [ast.alias(n.name, n.asname or n.name) for n in node.names]
    return ast.unparse(tree) + "\n" if found else ""


class build_with_stubs(build_py):
    def run(self):
        super().run()
        if getattr(self, "editable_mode", False): return
        for path in (Path(self.build_lib) / facts["lib_name"]).glob("*.py"):
            if stub := stub_of(path.read_text(encoding="utf-8")): path.with_suffix(".pyi").write_text(stub, encoding="utf-8")


name, nbs, data = facts["lib_name"], facts["nbs_path"], facts["data_path"]
packages = {name: facts["lib_path"], f"{name}.nbs": nbs, f"{name}.nbs.profiles": f"{nbs}/profiles", f"{name}.data": data}
setup(name=name, version=facts["version"], description=facts["description"], license=facts["license"],
      keywords=facts["keywords"], author=facts["author"], python_requires=f">={facts['min_python']}",
      long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
      long_description_content_type="text/markdown", packages=list(packages), package_dir=packages, cmdclass={"build_py": build_with_stubs},
      package_data={name: ["py.typed", "*.pyi"], f"{name}.nbs": ["*.ipynb"], f"{name}.nbs.profiles": ["*.yaml"], f"{name}.data": ["**/*"]},
      install_requires=lines("requirements"), extras_require={"dev": lines("dev_requirements")},
      entry_points={"console_scripts": lines("console_scripts")})
