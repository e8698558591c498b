"""Builds the documentation site: docs/site/build.py [FOLDER]   (default: build/docs)

Its pages are those in docs/site/pages, documents of the repository (`links.DOCUMENTS`), the notebooks with their
outputs, and what `reference` makes from the code. KaTeX, which renders the formulas, and a script for the search come
from the npm registry when the site is built; the pages themselves ask nobody for anything, and can be opened from a
folder.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from links import DOCUMENTS, PAGES, ROOT, BrokenLinkError, SiteLinks, page_of_file, shown_file
from notebooks import for_the_web
from reference import reference_pages

HERE = Path(__file__).parent
KATEX, WORKER = "katex@0.19.1", "iframe-worker@1.0.4"
# Where the theme would load a script from, which lets search work in pages that are opened from a folder.
WORKER_ELSEWHERE, WORKER_HERE = "https://unpkg.com/iframe-worker/shim", "iframe-worker.js"


def main() -> int:
    """Builds it; the exit status of mkdocs."""
    parser = argparse.ArgumentParser(description="Builds the documentation site.")
    parser.add_argument("folder", nargs="?", default="build/docs", metavar="FOLDER")
    folder = Path(parser.parse_args().folder).absolute()
    if shutil.which("npm") is None:
        print("the site needs npm, to fetch KaTeX for the formulas: install Node.js", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        try:
            write_pages(Path(name) / "pages")
        except BrokenLinkError as error:
            print(error, file=sys.stderr)
            return 1
        shutil.copy(HERE / "mkdocs.yml", name)
        words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-f", f"{name}/mkdocs.yml"]
        # Its own advertisement is none of our warnings.
        environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        environment |= {"TRANSDUCE_SOURCE": str(ROOT / "src"), "TRANSDUCE_COMMENTS": str(HERE / "comments.py")}
        status = subprocess.run([*words, "-d", str(folder)], env=environment, cwd=name, check=False).returncode
    if status == 0:
        keep_scripts_here(folder)
        print(f"the site begins at {folder / 'index.html'}")
    return status


def write_pages(folder: Path) -> None:
    """Writes all that mkdocs makes the site of. Raises BrokenLinkError."""
    pages = page_sources()
    notebooks = {f"notebooks/{path.name}": path for path in (ROOT / "notebooks").glob("*.ipynb")}
    links = SiteLinks({*pages, *notebooks})
    for page, (source, text) in pages.items():
        _write(folder / page, links.rewritten(text, source, page))
    for page, path in notebooks.items():
        _write(folder / page, for_the_web(path.read_text(encoding="utf-8")))
    for file in sorted(links.files):
        _write(folder / page_of_file(file), shown_file(file))
    for picture in sorted(links.pictures):
        _copy(ROOT / picture, folder / picture)
    for path in (HERE / "site.css", HERE / "formulas.js"):
        shutil.copy(path, folder)
    shutil.copytree(HERE / "live", folder / "notebooks/live")
    fetch_scripts(folder)


def page_sources() -> dict[str, tuple[str, str]]:
    """The pages in Markdown, by their paths on the site: the file that the links of each start from, and its text."""
    pages = {page: (source, ROOT / source) for source, page in DOCUMENTS.items()}
    for path in sorted((ROOT / PAGES).rglob("*.md")):
        pages[str(path.relative_to(ROOT / PAGES))] = (str(path.relative_to(ROOT)), path)
    texts = {page: (source, path.read_text(encoding="utf-8")) for page, (source, path) in pages.items()}
    return texts | {page: (str(PAGES / page), text) for page, text in reference_pages()}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def fetch_scripts(folder: Path) -> None:
    """Puts what pages need of KaTeX (with fonts in the one form that browsers take) and the worker into the folder."""
    with tempfile.TemporaryDirectory() as name:
        dist = _unpacked(KATEX, Path(name)) / "dist"
        for path in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js"):
            _copy(dist / path, folder / "katex" / Path(path).name)
        for font in (dist / "fonts").glob("*.woff2"):
            _copy(font, folder / "katex/fonts" / font.name)
    with tempfile.TemporaryDirectory() as name:
        _copy(_unpacked(WORKER, Path(name)) / "shim/index.js", folder / WORKER_HERE)


def _unpacked(package: str, folder: Path) -> Path:
    """The files of a package of the npm registry."""
    words = ["npm", "pack", "--silent", package]
    packed = subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)
    with tarfile.open(folder / packed.stdout.strip()) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def keep_scripts_here(folder: Path) -> None:
    """Lets the pages load the script of the search from the site itself."""
    for page in folder.rglob("*.html"):
        here = os.path.relpath(folder / WORKER_HERE, page.parent)
        page.write_text(page.read_text(encoding="utf-8").replace(WORKER_ELSEWHERE, here), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
