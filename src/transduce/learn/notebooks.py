"""Where the notebooks lie, and how each of them begins."""

from transduce.files.shipped import shipped_folder

INSTALL_FROM = ""  # what pip is to install where the package is missing; empty as long as there is no public home
FOLDER = shipped_folder("notebooks")


def first_cell() -> str:
    """The code of a notebook's first cell: it does nothing where the package and what notebooks need are there."""
    begin = 'import importlib.util\n\nif importlib.util.find_spec("transduce") is None:'
    if INSTALL_FROM:
        return f"{begin}\n    %pip install --quiet {INSTALL_FROM}"
    return (
        f"{begin}\n"
        "    raise ImportError(\"the package transduce is missing: in its folder, run  pip install '.[learn]'\")\n"
        'if importlib.util.find_spec("matplotlib") is None:\n'
        "    raise ImportError(\"notebooks need more than the package: run  pip install 'transduce[learn]'\")"
    )
