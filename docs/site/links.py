"""Links of the pages: in their sources from file to file of the repository, on the site from page to page."""

import os
import re
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
PAGES = Path("docs/site/pages")
# Documents of the repository that are pages of the site.
DOCUMENTS = {
    "docs/CLUSTER.md": "howto/cluster.md",
    "docs/RESULTS.md": "results/results.md",
    "benchmarks/README.md": "results/benchmarks.md",
    "docs/LOG.md": "results/log.md",
    "docs/PAPER.md": "design/paper.md",
    "docs/ARCHITECTURE.md": "design/architecture.md",
    "docs/TEACHING.md": "notebooks/teaching.md",
    "CONTRIBUTING.md": "design/contributing.md",
    "CHANGELOG.md": "design/changelog.md",
}
_FENCED = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "sh", ".json": "json", ".md": "markdown"}
_PICTURES = (".png", ".svg")


class BrokenLinkError(Exception):
    """A link whose target is not in the repository."""


class SiteLinks:
    """The rewriting of links, which collects the files of the repository that the site needs for them."""

    def __init__(self, site_pages: set[str]) -> None:
        self.site_pages = site_pages  # by their paths on the site
        self.files: set[str] = set()  # of the repository, each shown on a page of its own
        self.pictures: set[str] = set()

    def rewritten(self, text: str, source: str, page: str) -> str:
        """`text`, written for `source` in the repository, for `page` on the site.

        Raises BrokenLinkError for a link that leads to no file and no page.
        """
        parts = _FENCED.split(text)  # code stands at the odd places
        return "".join(
            part if i % 2 else _LINK.sub(lambda m: self._link(m, source, page), part) for i, part in enumerate(parts)
        )

    def _link(self, link: re.Match[str], source: str, page: str) -> str:
        before, target, anchor, after = link[1], link[2], link[3] or "", link[4]
        if ":" in target:
            return link[0]
        path = os.path.normpath(PurePosixPath(source).parent / target)
        to = self._page_of(path)
        if to is None:
            raise BrokenLinkError(f"{source}: {target} is neither a file of the repository nor a page of the site.")
        return before + os.path.relpath(to, PurePosixPath(page).parent) + anchor + after

    def _page_of(self, path: str) -> str | None:
        """The place on the site of a file of the repository, or of a page that is made when the site is built."""
        inside = path.removeprefix(f"{PAGES}/")
        if inside != path and inside in self.site_pages:
            return inside
        if path.startswith("docs/site/live/") and (ROOT / path).is_file():
            return f"notebooks/{path.removeprefix('docs/site/')}"
        if path in DOCUMENTS:
            return DOCUMENTS[path]
        if path.startswith("notebooks/") and path in self.site_pages:
            return path
        if not (ROOT / path).is_file():
            return None
        if path.endswith(_PICTURES):
            self.pictures.add(path)
            return path
        self.files.add(path)
        return page_of_file(path)


def page_of_file(path: str) -> str:
    """The page that shows a file of the repository."""
    return f"files/{path}.md"


def shown_file(path: str) -> str:
    """The Markdown of a page that shows a file of the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n~~~~~~{language}\n{text.rstrip()}\n~~~~~~\n"
