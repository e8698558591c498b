"""Builds the web book out of the committed notebooks: docs/book/build.py [FOLDER]   (default: build/book)

Pages are the notebooks with their outputs, in the order of the book. KaTeX, which renders the formulas, comes from the
npm registry when the book is built; the pages themselves ask nobody for anything.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from mkdocs_jupyter.utils import slugify

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parents[1] / "notebooks"
KATEX = "katex@0.19.1"


def main() -> int:
    """Builds it; the exit status of mkdocs."""
    parser = argparse.ArgumentParser(description="Builds the web book.")
    parser.add_argument("folder", nargs="?", default="build/book", metavar="FOLDER")
    folder = Path(parser.parse_args().folder).absolute()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "pages"
        source.mkdir()
        for path in NOTEBOOKS.glob("*.ipynb"):
            (source / path.name).write_text(for_the_web(path.read_text(encoding="utf-8")), encoding="utf-8")
        for path in (HERE / "index.md", HERE / "book.css", HERE / "formulas.js"):
            shutil.copy(path, source)
        shutil.copytree(HERE / "live", source / "live")
        fetch_katex(source / "katex")
        settings = (HERE / "mkdocs.yml").read_text(encoding="utf-8")
        (Path(name) / "mkdocs.yml").write_text(settings, encoding="utf-8")
        words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-f", f"{name}/mkdocs.yml"]
        environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # its own advertisement
        status = subprocess.run([*words, "-d", str(folder)], env=environment, cwd=name, check=False).returncode
    if status == 0:
        print(f"the book begins at {folder / 'index.html'}")
    return status


def for_the_web(text: str) -> str:
    """A notebook as JSON, with what mkdocs-jupyter would lose: words for pictures, links to headings and to pages."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            # nbconvert's own template of a picture knows no alt text, whatever the metadata of the output say.
            if "image/png" in output.get("data", {}):
                output["data"]["text/html"] = image(output["data"]["image/png"], output["metadata"]["image/png"])
        if cell["cell_type"] == "markdown":
            lines = "".join(cell["source"])
            lines = re.sub(r"\]\(#([^)\s]+)\)", lambda link: f"](#{slugify(link[1])})", lines)  # as Jupyter names them
            cell["source"] = re.sub(r"\]\((\w+)\.ipynb", r"](\1.html", lines)
    return json.dumps(notebook)


def image(content: str, metadata: dict[str, Any]) -> str:
    """HTML of a picture in base64, with the width and the words of its metadata."""
    size_and_words = f'width="{metadata["width"]}" alt="{escape(metadata["alt"])}"'
    return f'<img src="data:image/png;base64,{content.strip()}" {size_and_words}>'


def fetch_katex(folder: Path) -> None:
    """Puts what a page needs of KaTeX into the folder: style, scripts, and fonts in the one form that browsers take."""
    with tempfile.TemporaryDirectory() as name:
        packed = subprocess.run(
            ["npm", "pack", "--silent", KATEX], cwd=name, check=True, capture_output=True, text=True
        )
        with tarfile.open(Path(name) / packed.stdout.strip()) as archive:
            archive.extractall(name, filter="data")
        dist = Path(name) / "package/dist"
        folder.mkdir()
        for path in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js"):
            shutil.copy(dist / path, folder)
        (folder / "fonts").mkdir()
        for font in (dist / "fonts").glob("*.woff2"):
            shutil.copy(font, folder / "fonts")


if __name__ == "__main__":
    sys.exit(main())
