"The book: built whole, readable without a network, searchable; its reference pages true. Its how-to pages are run by tests/test_howto.py."
import json, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOWTO = sorted((ROOT / "docs" / "howto").glob("*.md"))
read = lambda path: path.read_text(encoding="utf-8")
links = lambda text: re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text)


# ---- reference pages

def test_glossary_is_long_and_says_each_term_once():
    terms = re.findall(r"^- \*\*(.+?)\*\*", read(ROOT / "docs" / "glossary.md"), re.M)
    bare = [t.rstrip(".").lower() for t in terms]
    assert len(bare) >= 80 and len(set(bare)) == len(bare)


def test_glossary_spells_diseases_and_lesions_as_the_table_does():
    from keepfit_nb.categories import canonical
    import csv
    names = {r["name"] for r in csv.DictReader((ROOT / "data" / "categories.csv").open(encoding="utf-8"))}
    page = read(ROOT / "docs" / "glossary.md").split("## ")
    for title in ("Diseases", "Lesions"):
        part = next(p for p in page if p.startswith(title))
        for term in re.findall(r"^- \*\*(.+?)\*\*", part, re.M):
            for word in term.rstrip(".").split(", "):
                known = canonical(word)
                assert known not in names or known == word, f"{word!r} is called {known!r} in data/categories.csv"


def cited(text): return {m.rstrip(".,;:") for m in re.findall(r"(?:arXiv[: ]*|abs/)(\d{4}\.\d{4,5})", text)} | {m.rstrip(".,;:") for m in re.findall(r"doi[.:/ ]*(?:org/)?(10\.\d{4,9}/[^\s\"'\],;]+)", text)}


def test_every_paper_that_is_named_is_in_the_references():
    page = cited(read(ROOT / "docs" / "references.md"))
    for path in [*sorted((ROOT / "nbs").glob("[0-9]*.ipynb")), ROOT / "data" / "sources.yaml"]:
        text = "\n".join("".join(c["source"]) for c in json.loads(read(path))["cells"]) if path.suffix == ".ipynb" else read(path)
        missing = {c.rstrip(")") for c in cited(text)} - {c.rstrip(")") for c in page}
        assert not missing, f"{path.name} names {sorted(missing)}: add them to docs/references.md"


def test_a_reference_links_to_what_it_says():
    for said, goes in re.findall(r"\[(?:arXiv |doi )?([^\]]+)\]\(https://(?:arxiv\.org/abs|doi\.org)/([^\s]+?)\)(?=[\s,.]|$)", read(ROOT / "docs" / "references.md")): assert said == goes


def test_notation_names_what_exists():
    "Every name in the notation table of chapter 00 occurs in the modules."
    code = "\n".join(read(p) for p in (ROOT / "keepfit_nb").glob("*.py"))
    table = next(s for c in json.loads(read(ROOT / "nbs" / "00_profiles.ipynb"))["cells"] if "## Notation" in (s := "".join(c["source"])))
    names = [n for row in re.findall(r"^\| \$.+$", table, re.M) for n in re.findall(r"`([^`]+)`", row.split("|")[2])]
    assert len(names) >= 20 and not [n for n in names for word in re.findall(r"\w+", n) if not re.search(rf"\b{word}\b", code)]


@pytest.mark.parametrize("path", [ROOT / "docs" / "glossary.md", ROOT / "docs" / "references.md", ROOT / "docs" / "lab.md", ROOT / "docs" / "first_hour.md", *HOWTO], ids=lambda p: p.stem)
def test_links_of_the_pages_lead_somewhere(path):
    assert not [link for link in links(read(path)) if not (path.parent / link).exists()]


# ---- the figure

def test_figure_of_the_method_links_to_chapters():
    svg = read(ROOT / "docs" / "method.svg"); import method
    pages = set(re.findall(r'href="([^"#]+\.html)"', svg))
    assert len(pages) >= 10 and all((ROOT / "nbs" / p.replace(".html", ".ipynb")).exists() for p in pages)
    assert pages == {f"{box[-1]}.html" for box in method.BOXES.values()} and 'role="img"' in svg and "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)


# ---- laying out

def pictures(cells): return [c for c in cells if any(k.startswith("image/") for o in c.get("outputs", []) for k in o.get("data", {}))]


def test_every_figure_says_what_it_shows():
    "An author's sentence, no two alike, goes with each figure of a chapter into the book; a figure without one is described by the words around it."
    import book
    said = {}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        for cell in pictures(json.loads(read(path))["cells"]):
            alt = book.said_alt("".join(cell["source"])); where = f"{path.name}, cell {cell.get('id')}"
            assert 30 <= len(alt) <= 320, f"{where}: a line `#| fig-alt: …` of 30 to 320 letters should say what its figure shows"
            assert alt not in said, f"{where} says the same as {said.get(alt)}"
            said[alt] = where
    assert len(said) > 200
    shown = [c["metadata"]["mystnb"]["image"]["alt"] for c in pictures(book.staged(ROOT / "nbs" / "10_contrastive.ipynb")["cells"])]
    assert shown and set(shown) <= set(said)
    guess = book.figure_alt("plt.plot(x); ax.set_title('loss')", "How it learns", "The curve falls. It ends near zero.", "")
    assert guess == "How it learns. Loss. It ends near zero."


def test_boilerplate_is_left_out_and_boxes_are_boxes():
    import book
    text = json.dumps(book.staged(ROOT / "nbs" / "07_encoders.ipynb"))
    assert "google.colab" not in text and "default_exp" not in text and "colab-badge.svg" not in text and "#| export" not in text
    assert text.count("{admonition} Where earlier code went wrong") == 3


def test_docments_become_tables():
    import api
    page, count = api.module_page(ROOT / "keepfit_nb" / "contrastive.py", "10_contrastive")
    assert count >= 6 and "py:function} share_targets(categories)" in page and "(batch, batch), rows sum to 1" in page
    assert "../10_contrastive.ipynb" in page


# ---- the whole book

@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book") / "html"
    done = subprocess.run([sys.executable, ROOT / "nbs" / "make_docs.py", "--html", folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr, "\n".join(line for line in done.stderr.splitlines() if "WARNING" in line)[:3000]
    return folder


@pytest.mark.slow
def test_book_has_every_chapter_and_module(html):
    for path in (ROOT / "nbs").glob("[0-9]*.ipynb"): assert (html / f"{path.stem}.html").exists() and (html / "exercises" / f"{path.stem}.html").exists()
    for path in (ROOT / "keepfit_nb").glob("[a-z]*.py"): assert (html / "api" / f"{path.stem}.html").exists()
    assert sum(f.stat().st_size for f in html.rglob("*") if f.is_file()) < 60e6


@pytest.mark.slow
def test_book_asks_no_other_host_for_anything(html):
    "Only links that a reader follows lead out; nothing is loaded, neither by pages nor by style sheets."
    loads = re.compile(r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?(?:src|data)=[\"']?(?:https?:)?//|<link\b[^>]*?href=[\"']?(?:https?:)?//|@import\s+[\"'(]|url\(\s*[\"']?(?:https?:)?//", re.I)
    for f in [*html.rglob("*.html"), *html.rglob("*.css")]:
        found = loads.search(re.sub(r"<pre>.*?</pre>", "", read(f), flags=re.S))
        assert not found, f"{f.relative_to(html)}: {found.group()}"


@pytest.mark.slow
def test_every_picture_has_words_and_every_link_a_page(html):
    for f in html.rglob("*.html"):
        text = re.sub(r"<pre>.*?</pre>", "", read(f), flags=re.S)
        assert not [i for i in re.findall(r"<img\b[^>]*>", text) if not re.search(r'alt="[^"]{4,}"', i) or re.search(r'alt="_images|alt="\.\.', i)], f.name
        for link in re.findall(r'href="([^"#]+?)(?:#[^"]*)?"', text):
            if not re.match(r"\w+:", link): assert (f.parent / link.split("?")[0]).exists(), f"{f.name}: {link}"


def dom(address: str, tmp_path) -> str:
    done = subprocess.run([shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}", "--host-resolver-rules=MAP * ~NOTFOUND",
                           "--virtual-time-budget=20000", "--dump-dom", address], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on this machine")
def test_a_browser_opens_it_from_the_folder(html, tmp_path):
    page = dom((html / "10_contrastive.html").as_uri(), tmp_path)
    assert page.count("<mjx-container") >= 20 and "data-mjx-error" not in page, "formulas are not drawn"
    found = dom((html / "search.html").as_uri() + "?q=jaccard", tmp_path)
    assert re.search(r'<ul[^>]*class="search".*?href="10_contrastive\.html', found, re.S), "search does not answer"


def brightness(page, selector: str, what: str) -> float:
    "0 (black) to 255 (white) of a colour as the browser computed it; a transparent one is that of what lies behind."
    colour = page.evaluate("""([s, what]) => { let e = document.querySelector(s);
        while (what == 'backgroundColor' && e.parentElement && getComputedStyle(e)[what] == 'rgba(0, 0, 0, 0)') e = e.parentElement;
        return getComputedStyle(e)[what]; }""", [selector, what])
    assert colour != "rgba(0, 0, 0, 0)", selector
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on this machine")
def test_dark_and_light_and_a_walk_through_the_sidebar(html):
    "A reader whose system is dark gets a dark page, formulas, code and the method's figure included; the sidebar leads from the first page to a chapter."
    pytest.importorskip("playwright")
    import lab_browser as lab
    for scheme, dark in (("dark", True), ("light", False)):
        with lab.chromium_page(color_scheme=scheme) as page:
            page.goto((html / "index.html").as_uri())
            tree = page.locator(".sidebar-tree"); tree.get_by_role("link", name="Learning", exact=True).click(); page.wait_for_url("**/part5.html")
            tree.get_by_role("link", name=re.compile("^10 ·")).first.click(); page.wait_for_url("**/10_contrastive.html")
            page.wait_for_selector("mjx-container", state="attached")
            assert page.locator("h1").first.inner_text().startswith("10 ·") and tree.locator("li.current-page").inner_text().startswith("10 ·")
            for ink, ground in (("article p", "article"), ("mjx-container", "article"), ("div.highlight pre", "div.highlight pre"), (".sidebar-tree a", ".sidebar-drawer")):
                text, back = brightness(page, ink, "color"), brightness(page, ground, "backgroundColor")
                assert (back < 60 and text > 130) if dark else (back > 200 and text < 130), f"{scheme}: {ink} {text:.0f} on {back:.0f}"
