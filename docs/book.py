"The book: chapters, how-to pages, reference pages and API pages laid out as sources for Sphinx. Nothing is executed here."
import json, re, shutil, sys
from functools import cache
from pathlib import Path

from api import api_pages

ROOT = Path(__file__).resolve().parent.parent
NBS, DOCS = ROOT / "nbs", ROOT / "docs"
PARTS = [("Names and records", "00", "02z", "What a disease is called, what a record is, and how nothing leaks from training into a test."),
         ("A simulated eye", "03", "03z", "A retina, three cameras, an expert who describes it, a printer of atlases: all with a known truth."),
         ("Reading an atlas", "04", "04z", "From the page of a printed atlas to image–text pairs."),
         ("Sources and images", "05", "06z", "Public sets and your own, checked at the door; pictures decoded once and augmented on the device."),
         ("Learning", "07", "13z", "Encoders, the training loop, the losses, the spark, and the model that comes out."),
         ("Judging", "14", "20z", "Zero-shot to fine-tuning, retrieval, explanations, ablation: with intervals."),
         ("Telling and running", "21", "99", "The report, the command line, the schedule.")]


def read(path) -> dict: return json.loads(Path(path).read_text(encoding="utf-8"))
def source(cell) -> str: return "".join(cell["source"])
def number(stem) -> str: return stem.split("_")[0]
def module(stem) -> str: return re.sub(r"^\d+[a-z]?(\.\d+)?_", "", stem)


ONLY: tuple[str, ...] = ()      # numbers of the chapters to build; empty: all (an author looks at one page in seconds)


@cache
def chapters() -> tuple[Path, ...]:
    "Chapter notebooks in reading order."
    return tuple(p for p in sorted(NBS.glob("[0-9][0-9]*_*.ipynb")) if not ONLY or number(p.stem) in ONLY)


def solutions() -> list[Path]:
    return [p for p in sorted((NBS / "exercises").glob("*.ipynb")) if not ONLY or number(p.stem) in ONLY]


def title_and_promise(path) -> tuple[str, str]:
    first = source(read(path)["cells"][0])
    promise = re.search(r"^> (.+)$", first, re.M)
    return re.match(r"#\s+(.+)", first)[1].strip(), promise[1].strip() if promise else ""


# --- one notebook ---------------------------------------------------------------------------------------------------

def sentences(text: str) -> list[str]:
    "Plain sentences of a markdown text: no tables, code, formulas, links or headings."
    text = re.sub(r"```.*?```|\$\$.*?\$\$|^\s*[|#>].*$|^- ", " ", text, flags=re.S | re.M)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"[*`_$\\]", "", text)
    return [s.strip() for s in re.split(r"(?<=[.?!])\s+", re.sub(r"\s+", " ", text)) if len(s.strip()) > 3]


def said_alt(code: str) -> str:
    "What the author says a figure shows, for readers who do not see it: the line `#| fig-alt: …` of its cell, as Quarto knows it."
    found = re.search(r"^#\|\s*fig-alt:\s*(.+?)\s*$", code, re.M)
    return found[1].replace('"', "'") if found else ""


def figure_alt(code: str, heading: str, before: str, after: str) -> str:
    "What a figure shows, from the words around it, where its author did not say: heading, titles set in the code, its italic caption or the sentence that leads to it."
    caption = re.match(r"\s*\*([^*].+?)\*", after, re.S)
    shown = re.findall(r"(?:set_title|suptitle)\(\s*f?[\"']([^\"'{}]+)[\"']|title=f?[\"']([^\"'{}]+)[\"']", code)
    titles = list(dict.fromkeys(t.strip() for pair in shown for t in pair if t.strip()))
    near = sentences(caption[1]) if caption else sentences(before)[-1:]
    parts = [heading, "; ".join(titles[:4]), " ".join(near)]
    text = ". ".join(p[:1].upper() + p[1:] for p in (p.strip(" .:;") for p in parts) if p)
    return (text[:297] + "…" if len(text) > 300 else text + ".").replace('"', "'").replace("\n", " ")


def boxes(text: str) -> str:
    "Boxes of the chapters (why it is so, where earlier code went wrong) as admonitions."
    out = []
    for part in re.split(r"\n{2,}", text):
        m = re.match(r"(?:> )?\*\*(Where earlier code went wrong|Why it is so)\.\*\*\s*", part)
        body = re.sub(r"^> ?", "", part, flags=re.M) if m else part
        if m: body = re.sub(r"^\*\*[^*]+\.\*\*\s*", "", body)
        out.append(f"::::{{admonition}} {m[1]}\n:class: {'tip' if m[1].startswith('Why') else 'warning'}\n{body}\n::::" if m else part)
    return "\n\n".join(out)


def method_figure() -> str:
    "The method's figure inside the page, so that its boxes are links."
    return "```{raw} html\n<figure class=\"method\">\n" + (DOCS / "method.svg").read_text(encoding="utf-8").strip() + "\n</figure>\n```"


def relink(text: str, here: str = "") -> str:
    "Links of the checkout become links of the book, where nbs/ and docs/ are one folder. `here`: the page's folder in the book."
    up = "../" * (here.count("/") + 1 if here else 0)
    text = re.sub(r"!\[[^\]]*\]\((?:\.\./)*(?:docs/)?method\.png\)", lambda m: method_figure(), text)
    text = re.sub(r"\]\((?:\.\./)+(?:nbs|docs)/", f"]({up}", text)
    return re.sub(r"\]\((?:\.\./)*(CONTRIBUTING\.md)", rf"]({up}\1", text)


def staged(path: Path, solution: bool = False) -> dict:
    "A chapter as it is read in the book: its boilerplate left out, its figures described, its title numbered."
    nb, heading, before, cells = read(path), "", "", []
    todo = [c for c in nb["cells"] if "hide-cell" not in c["metadata"].get("tags", []) and source(c).strip()
            and not re.match(r"#\|\s*default_exp", source(c)) and '"google.colab" in sys.modules' not in source(c)]
    for i, cell in enumerate(todo):
        text, meta = source(cell), dict(cell["metadata"])
        if cell["cell_type"] == "markdown":
            text = re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]", "[Open in Colab]", text)
            if i == 0 and path.stem != "index" and not solution: text = re.sub(r"^# ", f"# {number(path.stem)} · ", text)
            heading = (re.findall(r"^#{1,4} (.+)$", text, re.M) or [heading])[-1]; before = text
            text = relink(boxes(text), "exercises" if solution else "")
        else:
            tags = [t for t in meta.get("tags", []) if t != "hide-input"] + ["remove-input"] * ("hide-input" in meta.get("tags", []))
            if re.search(r"^#\|\s*export", text, re.M): tags.append("exported")
            alt = said_alt(text); text = re.sub(r"^#\|[^\n]*\n?", "", text, flags=re.M)
            meta = {"tags": tags}
            for out in cell.get("outputs", []):
                for kind in ("text/markdown",):
                    if kind in out.get("data", {}): out["data"][kind] = relink("".join(out["data"][kind]))
            if any(k.startswith("image/") for out in cell.get("outputs", []) for k in out.get("data", {})):
                after = source(todo[i + 1]) if i + 1 < len(todo) and todo[i + 1]["cell_type"] == "markdown" else ""
                meta["mystnb"] = {"image": {"alt": alt or figure_alt(text, heading, before, after)}}
        cells.append({**cell, "source": text, "metadata": meta})
    return {**nb, "cells": cells}


def closing(path: Path) -> dict:
    "The last cell of a chapter in the book: its place in the library, its solutions."
    words = [f"the functions of this chapter: {{doc}}`keepfit_nb.{module(path.stem)} <api/{module(path.stem)}>`"] if (ROOT / "keepfit_nb" / f"{module(path.stem)}.py").exists() else []
    if (NBS / "exercises" / path.name).exists(): words.append(f"{{doc}}`the solutions <exercises/{path.stem}>`")
    words.append("words: {doc}`glossary`"); words.append("papers: {doc}`references`")
    return {"cell_type": "markdown", "id": "book-closing", "metadata": {}, "source": ":::{rst-class} closing\n:::\n" + "See also " + " · ".join(words)}


# --- the whole ------------------------------------------------------------------------------------------------------

def tree(names, caption="", hidden=True, depth=1, titles=None) -> str:
    lines = ["```{toctree}"] + [":hidden:"] * hidden + ([f":caption: {caption}"] if caption else []) + [f":maxdepth: {depth}", ""]
    return "\n".join(lines + [f"{titles[n]} <{n}>" if titles and n in titles else n for n in names] + ["```"])


def part_of(stem: str) -> int:
    return next(i for i, (_, low, high, _) in enumerate(PARTS) if low <= number(stem) <= high)


def part_page(i: int) -> str:
    title, _, _, about = PARTS[i]; mine = [p for p in chapters() if part_of(p.stem) == i]
    rows = [f"| {number(p.stem)} | [{title_and_promise(p)[0]}]({p.name}) | {title_and_promise(p)[1]} |" for p in mine]
    return "\n".join([f"# {title}", "", about, "", "| | chapter | what it promises |", "|---|---|---|", *rows, "", tree([p.stem for p in mine])]) + "\n"


def sources() -> dict[str, str | bytes]:
    "Every file of the book's source: {path: content}."
    out: dict[str, str | bytes] = {}
    for p in chapters():
        nb = staged(p); nb["cells"].append(closing(p)); out[p.name] = json.dumps(nb, ensure_ascii=False)
    for p in solutions(): out[f"exercises/{p.name}"] = json.dumps(staged(p, True), ensure_ascii=False)
    for i in range(len(PARTS)): out[f"part{i + 1}.md"] = part_page(i)
    for p in sorted(DOCS.rglob("*.md")): out[str(p.relative_to(DOCS))] = relink(p.read_text(encoding="utf-8"), "/".join(p.relative_to(DOCS).parts[:-1]))
    for p in [*DOCS.glob("*.png"), *DOCS.glob("*.svg"), *DOCS.glob("screenshots/*.webp")]: out[str(p.relative_to(DOCS))] = p.read_bytes()
    for p in (NBS / "profiles").glob("*.yaml"): out[f"profiles/{p.name}"] = p.read_bytes()
    out["CONTRIBUTING.md"] = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    where = {module(p.stem): p.stem for p in sorted(NBS.glob("[0-9][0-9]*_*.ipynb"))}
    out |= {f"api/{name}.md": text for name, text in api_pages(ROOT / "keepfit_nb", where).items()
            if not ONLY or name == "index" or number(where.get(name, "_")) in ONLY}
    out["exercises/index.md"] = "# Solutions\n\nThe worked exercises of every chapter; each is executed by the tests.\n\n" + tree([p.stem for p in solutions()], hidden=False)
    front = staged(NBS / "index.ipynb")
    howto = [f"howto/{p.stem}" for p in sorted((DOCS / "howto").glob("*.md"))]
    nav = [tree([f"part{i + 1}" for i in range(len(PARTS))], "The chapters"), tree(["first_hour", "lab", *howto], "How to"),
           tree([n for n in ("glossary", "references", "api/index", "exercises/index", "CONTRIBUTING") if f"{n}.md" in out], "Reference")]
    front["cells"].append({"cell_type": "markdown", "id": "book-nav", "metadata": {}, "source": "\n\n".join(nav)})
    out["index.ipynb"] = json.dumps(front, ensure_ascii=False)
    promises = {p.stem: title_and_promise(p)[1] for p in chapters()}
    out["_static/book.js"] = (DOCS / "book.js").read_text(encoding="utf-8").replace("/*PROMISES*/{}", json.dumps(promises, ensure_ascii=False))
    out["_static/book.css"] = (DOCS / "book.css").read_text(encoding="utf-8")
    return out


def lay_out(folder: Path) -> None:
    "Write the sources where they changed, so that Sphinx reads only those again; remove what is gone."
    from conf import mathjax_files
    files = sources() | {f"_static/mathjax/{f.name}": f.read_bytes() for f in mathjax_files()}
    for name, content in files.items():
        data, path = content.encode() if isinstance(content, str) else content, folder / name
        if not path.exists() or path.read_bytes() != data: path.parent.mkdir(parents=True, exist_ok=True); path.write_bytes(data)
    for path in folder.rglob("*"):
        if path.is_file() and str(path.relative_to(folder)) not in files: path.unlink()


def build(target: Path, only: tuple[str, ...] = (), work: Path | None = None) -> int:
    "The book (or only some chapters of it) as HTML in `target`; returns the number of pages."
    global ONLY
    ONLY = tuple(only); chapters.cache_clear()
    try:
        import furo, myst_nb  # noqa: F401
        from sphinx.application import Sphinx
    except ImportError as err:
        sys.exit(f"the book needs {err.name}, one of the development packages of settings.ini: run `make install`")
    work = (work or ROOT / "build" / ("book" if not ONLY else "book-" + "-".join(ONLY))).resolve(); lay_out(work / "source")
    app = Sphinx(work / "source", DOCS, work / "html", work / "doctrees", "html", status=None,
                 confoverrides={"html_static_path": [str(work / "source" / "_static")]} | ({"suppress_warnings": ["myst", "mystnb", "toc", "misc"]} if ONLY else {}))
    app.build()
    if app.statuscode: sys.exit("the book was not built: see the messages above")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(work / "html", target, ignore=shutil.ignore_patterns(".buildinfo", "objects.inv", "*.ipynb", ".doctrees"))
    return len(list(target.rglob("*.html")))
