"KeepFIT V2 in notebooks. The only module written by hand: the version, and the public names as __init__.pyi lists them."
import ast
from pathlib import Path

__version__ = "0.1.0"

# One list for people, type checkers and this module: name → the module that has it.
_PUBLIC = {name.name: node.module for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
           if isinstance(node, ast.ImportFrom) for name in node.names}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    "Import a public name when it is first used, so that `import keepfit_nb` stays light."
    if name in _PUBLIC:
        from importlib import import_module
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__():
    return sorted([*globals(), *_PUBLIC])
