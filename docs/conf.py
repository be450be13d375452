"Sphinx settings of the book. `make docs` lays the sources out (docs/book.py) and calls Sphinx with this file."
import configparser
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).resolve().parent
ini = configparser.ConfigParser(delimiters=["="], interpolation=None)
ini.read(HERE.parent / "settings.ini", encoding="utf-8")
facts = ini["DEFAULT"]

project, release, author = facts["lib_name"], facts["version"], facts["author"]
project_copyright = f"{author}, {facts['license']}. For research and teaching, not for diagnosis"
language = "en"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
root_doc = "index"

# Notebooks: shown as they were committed, never run here.
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}                      # no widget player from another host: every widget has its static figure
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_update_mathjax = False                # the settings below say all

# Formulas: MathJax as one file inside the book, drawn as SVG, because browsers refuse fonts to pages from a plain folder.
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False, "ignoreHtmlClass": "document", "processHtmlClass": "math"}, "svg": {"fontCache": "local"},
                   "tex": {"inlineMath": [["\\(", "\\)"]], "displayMath": [["\\[", "\\]"]]}}

html_theme = "furo"
html_title = f"{project} {release}"
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_domain_indices = False
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_show_search_summary = False           # pages opened from a folder cannot be fetched for it; book.js says what a page promises
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00609c", "color-brand-content": "#00609c"},
    "dark_css_variables": {"color-brand-primary": "#6cb6ff", "color-brand-content": "#6cb6ff"},
    "navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style, pygments_dark_style = "tango", "github-dark"
suppress_warnings = ["myst.header", "misc.highlighting_failure", "mystnb.unknown_mime_type"]


def mathjax_files() -> list[Path]:
    "MathJax (Apache-2.0) as the package sphinx-mathjax-offline brings it."
    found = [f.locate() for f in distribution("sphinx-mathjax-offline").files if f.name == "tex-svg.js" and f.parent.name == "mathjax"]
    if not found: raise FileNotFoundError("tex-svg.js is not in the package sphinx-mathjax-offline; install the version that settings.ini names")
    return [Path(f) for f in found]
