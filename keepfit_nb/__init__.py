"KeepFIT V2 in notebooks. The only module written by hand: version and lazy public names."
__version__ = "0.1.0"

_PUBLIC = {"KeepFIT": "pretraining"}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    "Import a public name when it is first used, so that `import keepfit_nb` stays light."
    if name in _PUBLIC:
        from importlib import import_module
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__():
    return sorted([*globals(), *_PUBLIC])
