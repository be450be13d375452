"README.md from nbs/index.ipynb and the HTML book (docs/book.py), both from the committed outputs; nothing is executed here."
import argparse, os, re, sys
from pathlib import Path

from nbconvert import MarkdownExporter
from traitlets.config import Config

os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
ROOT = Path(__file__).resolve().parent.parent
CLEAN = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": ["hide-input"], "remove_cell_tags": ["hide-cell"]},
                "RegexRemovePreprocessor": {"patterns": [r"\s*\Z", r"#\|\s*default_exp"]}})


def readme():
    "README.md as text and its pictures: {path: bytes}."
    exporter = MarkdownExporter(config=CLEAN)
    text, resources = exporter.from_filename(str(ROOT / "nbs" / "index.ipynb"), resources={"unique_key": "readme", "output_files_dir": "docs"})
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    text = re.sub(r"\]\((?!https?:|#|docs/readme)([\w./-]+\.(?:ipynb|md|yaml|png))\)", lambda m: f"]({os.path.normpath('nbs/' + m[1])})", text)
    text = re.sub(r"!\[(?:png|jpeg)\]\(([^)]+)\)(\s+\*)([^*]+)\*", lambda m: f"![{m[3].split('. ')[0].rstrip('.')}]({m[1]}){m[2]}{m[3]}*", text)      # the caption is the alt text
    pictures = {ROOT / k: v for k, v in resources.get("outputs", {}).items()}
    return "<!-- made from nbs/index.ipynb by `make docs`; edit there -->\n" + text + "\n", pictures


def write_html(folder, only=()):
    "The book: see docs/book.py."
    sys.path.insert(0, str(ROOT / "docs"))
    from book import build
    return build(folder, tuple(only))


def main():
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--check", action="store_true", help="exit 1 when README.md is not what index.ipynb says")
    ask.add_argument("--html", type=Path, help="only write the HTML pages, into this folder")
    ask.add_argument("--chapters", default="", help="with --html: only these, by number (00,10,12.2), to look at a page in seconds")
    args = ask.parse_args()
    if args.html: return print(write_html(args.html, [n for n in args.chapters.split(",") if n]), "pages")
    text, pictures = readme(); target = ROOT / "README.md"
    if args.check:
        old = [p for p, data in pictures.items() if not p.exists() or p.read_bytes() != data]
        if not target.exists() or target.read_text(encoding="utf-8") != text or old: sys.exit("README.md is out of date: run `make docs` and commit")
        return print("README.md is up to date")
    target.write_text(text, encoding="utf-8")
    for path, data in pictures.items(): path.parent.mkdir(exist_ok=True); path.write_bytes(data)
    print(f"README.md written, {len(pictures)} pictures; {write_html(ROOT / '_docs')} pages in _docs/, begin at _docs/index.html")


if __name__ == "__main__": main()
