"API pages from docments: a function's comments beside its arguments become a table. The modules are read, never imported."
import ast, io, re, tokenize
from pathlib import Path


def comments_of(code: str) -> dict[int, str]:
    "Trailing comments by line number."
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokenize.generate_tokens(io.StringIO(code).readline)
            if t.type == tokenize.COMMENT and t.line[:t.start[1]].strip()}


def cell(text: str) -> str: return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("$", "\\$").strip()
def code(text: str) -> str:
    text = re.sub(r"\s+", " ", text).replace("|", "\\|").strip()
    return f"`` {text} ``" if "`" in text else f"`{text}`" if text else ""


def prose(text: str) -> str:
    "A docstring as markdown: no accidental headings, formulas or quotes."
    text = "\n".join(line.strip() for line in (text or "").splitlines())
    return re.sub(r"^([#>+-])", r"\\\1", text, flags=re.M).replace("$", "\\$").replace("<", "&lt;") if "`" not in text else re.sub(r"^([#>])", r"\\\1", text, flags=re.M).replace("$", "\\$")


def table(rows, heads) -> list[str]:
    return ["", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *("| " + " | ".join(r) + " |" for r in rows), ""] if rows else []


def arguments(fn) -> list[tuple[str, ast.arg, ast.expr | None]]:
    a = fn.args; plain = a.posonlyargs + a.args
    pairs = list(zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults))
    out = [(x.arg, x, d) for x, d in pairs]
    if a.vararg: out.append((f"*{a.vararg.arg}", a.vararg, None))
    out += [(x.arg, x, d) for x, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: out.append((f"**{a.kwarg.arg}", a.kwarg, None))
    return out


def signature(fn, drop_first=False) -> str:
    words, star = [], False
    for name, arg, default in arguments(fn)[1 if drop_first else 0:]:
        if arg in fn.args.kwonlyargs and not star and not fn.args.vararg: words.append("*")
        star |= arg in fn.args.kwonlyargs or name.startswith("*")
        words.append(name + ("=" + ast.unparse(default) if default is not None else ""))
    return f"({', '.join(words)})"


def function_block(fn, notes, owner="") -> list[str]:
    method = bool(owner) and not any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in fn.decorator_list)
    rows = []
    for name, arg, default in arguments(fn)[1 if method else 0:]:
        last = default or arg
        alone = [a for _, a, d in arguments(fn) if (d or a).end_lineno == last.end_lineno][-1] is arg and last.end_lineno != fn.body[0].lineno
        note = notes.get(last.end_lineno, "") if alone else ""
        rows.append((code(name), code(ast.unparse(arg.annotation)) if arg.annotation else "", code(ast.unparse(default)) if default is not None else "", cell(note)))
    if fn.returns is not None:
        note = notes.get(fn.returns.end_lineno, "") if fn.returns.end_lineno != fn.body[0].lineno else ""
        rows.append(("*returns*", code(ast.unparse(fn.returns)), "", cell(note)))
    kind = "method" if owner else "function"
    if any(isinstance(d, ast.Name) and d.id in ("property",) or isinstance(d, ast.Attribute) and d.attr == "cached_property" for d in fn.decorator_list):
        head = [f"````{{py:property}} {owner}.{fn.name}"]
    else: head = [f"````{{py:{kind}}} {owner + '.' if owner else ''}{fn.name}{signature(fn, method)}"]
    told = [r for r in rows if r[1] or r[3]]
    return [*head, "", prose(ast.get_docstring(fn)), *table(told, ("argument", "type", "default", "what it is")), "````", ""]


def class_block(node, notes) -> list[str]:
    rows = [(code(n.target.id), code(ast.unparse(n.annotation)), code(ast.unparse(n.value)) if n.value else "", cell(notes.get(n.end_lineno, "")))
            for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and not n.target.id.startswith("_")]
    bases = ", ".join(ast.unparse(b) for b in node.bases)
    out = [f"````{{py:class}} {node.name}", "", prose(ast.get_docstring(node)) + (f" *Based on* {code(bases)}." if bases else ""),
           *table(rows, ("field", "type", "default", "what it is")), "````", ""]
    for n in node.body:
        if isinstance(n, ast.FunctionDef) and n.name == "__init__" and len(n.args.args) > 1: out += ["", *function_block(n, notes, node.name)]
        elif isinstance(n, ast.FunctionDef) and not n.name.startswith("_"): out += function_block(n, notes, node.name)
    return out


def module_page(path: Path, chapter: str) -> tuple[str, int]:
    "The page of one module, and how many names it documents."
    text = path.read_text(encoding="utf-8"); tree, notes = ast.parse(text), comments_of(text)
    blocks, count = [], 0
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and any(isinstance(d, ast.Name) and d.id == "patch" for d in node.decorator_list):
            owner = ast.unparse(node.args.args[0].annotation).strip("'\"").split("|")[0].strip(); block = function_block(node, notes, owner)
        elif isinstance(node, ast.FunctionDef): block = function_block(node, notes)
        elif isinstance(node, ast.ClassDef): block = class_block(node, notes)
        else: continue
        if node.name.startswith("_"): continue
        blocks += block; count += 1
    head = [f"# keepfit_nb.{path.stem}", "", prose(ast.get_docstring(tree) or ""), "", f"Written and tried in chapter [{chapter.split('_')[0]}](../{chapter}.ipynb)." if chapter else "", "",
            f"```{{py:module}} keepfit_nb.{path.stem}", "```", ""]
    return "\n".join(head + blocks), count


def public_names(package: Path) -> list[str]:
    "The list of `__init__.pyi` as markdown: a table under each of its headings."
    said = lambda module, name: next((ast.get_docstring(n) or "" for n in ast.parse((package / f"{module}.py").read_text(encoding="utf-8")).body
                                      if getattr(n, "name", "") == name), "")
    out, rows = [], []
    for line in [*(package / "__init__.pyi").read_text(encoding="utf-8").splitlines(), "# "]:
        if line.startswith("# "):
            out += table(rows, ("name", "of module", "what it is")); rows = []
            if line[2:]: out += ["", f"### {line[2:]}", ""]
        elif found := re.fullmatch(r"from \.(\w+) import (.+)", line):
            rows += [(f"`{n.split()[0]}`", f"[{found[1]}]({found[1]}.md)", cell(said(found[1], n.split()[0]).split("\n")[0])) for n in found[2].split(", ")]
    return out


def api_pages(package: Path, chapter_of: dict[str, str]) -> dict[str, str]:
    "{page name: markdown} for every module that documents something, and an index in the order of the chapters."
    order = {m: i for i, m in enumerate(chapter_of)}
    pages, rows = {}, []
    for path in sorted(package.glob("*.py"), key=lambda p: order.get(p.stem, 999)):
        if path.stem.startswith("_"): continue
        pages[path.stem], count = module_page(path, chapter_of.get(path.stem, ""))
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append((chapter_of.get(path.stem, "").split("_")[0], f"[{path.stem}]({path.stem}.md)", str(count), cell(doc.split("\n")[0])))
    index = ["# The library", "", "The public names first: `from keepfit_nb import KeepFIT, clip_loss`. They stay; type checkers and editors know them and what they take. "
             "Below stands every module in the order of the chapters, with all that its chapter defines: `from keepfit_nb.contrastive import share_targets`. "
             "Such a name may change when its chapter does, and one that begins with an underscore without notice.",
             "", "## The public names", *public_names(package), "", "## Module by module",
             *table(rows, ("chapter", "module", "names", "what it does")), "```{toctree}", ":hidden:", "", *[r[1].split("[")[1].split("]")[0] for r in rows], "```", ""]
    return pages | {"index": "\n".join(index)}
