"""Checks every page of the built site, and looks at it in headless Chromium: docs/site/check.py [FOLDER]

Every link must lead to a page, an anchor or a file of the site, and no page may ask another server for anything. In
the browser, wide and on a phone, a page is wrong if it is wider than its frame, a picture lacks words for those who
cannot see it, code runs past the edge, a formula was not rendered, or a heading, list or table of the text came out as
plain lines. A live page is wrong if nothing moves when it is used.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

WIDTHS = (1280, 400)
PAGES_AT_ONCE = 10  # in one browser, one after the other
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
OFFLINE = ("--disable-background-networking", "--disable-component-update")
# Of time that passes at once while a page has nothing to do.
VIRTUAL_MILLISECONDS_PER_PAGE = 8000
LOOK = """<script>addEventListener("load", () => setTimeout(() => {
  const all = (what, is) => [...document.querySelectorAll(what)].filter(is || (() => true));
  const begin = element => element.textContent.trim().slice(0, 60);
  const wrong = [];
  const tell = (what, elements) => elements.forEach(element => wrong.push(`${what}: ${element}`));
  const root = document.documentElement, math = document.getElementById("math");
  if (root.scrollWidth > innerWidth) tell(`wider than ${innerWidth} pixels`, [root.scrollWidth]);
  const isMute = img => /^(|No description has been provided.*)$/.test(img.alt.trim());  // nbconvert's, for none
  tell("no alt text", all("article img, body > img", isMute).map(img => img.src.slice(0, 60)));
  tell("no picture", all("img", img => !img.naturalWidth).map(img => img.src.slice(0, 60)));
  tell("code past the edge", all(".jp-InputArea-editor pre", pre => pre.scrollWidth > pre.clientWidth + 1).map(begin));
  tell("formula", all(".katex-error").map(begin));
  const prose = all(".jp-RenderedMarkdown p, article > p", p => !p.querySelector("code"));
  const holds = (what, p) => what.test(p.innerHTML);
  tell("formula not rendered", prose.filter(p => !p.querySelector(".katex") && holds(/\\$[^$]+\\$/, p)).map(begin));
  const isPlain = p => holds(/(^|\\n)\\s*([-*] |\\d+\\. |#+ |\\||:::)/, p);
  tell("not a list, table or heading", prose.filter(isPlain).map(begin));
  tell("empty heading", all("h1, h2, h3, h4", h => !h.textContent.trim()).map(h => h.id));
  for (const input of math ? all("input") : []) {
    const before = document.body.innerHTML;
    if (input.type === "checkbox") input.click();
    else input.value = input.value === input.max ? input.min : input.max;
    input.dispatchEvent(new Event("input"));
    if (document.body.innerHTML === before) tell("nothing moves", [input.id]);
  }
  parent.postMessage(wrong, "*");
}, 500));</script>"""
# A window cannot be as narrow as a phone, a frame can. One page and width after the other is shown in it.
FRAME = """<body><script>
const views = VIEWS, found = views.map(() => ["it did not load"]);
let number = -1;
const next = () => {
  document.body.dataset.found = JSON.stringify(found);
  document.querySelector("iframe")?.remove();
  if (++number === views.length) return;
  const frame = document.createElement("iframe");
  [frame.src, frame.width, frame.height] = [...views[number], 900];
  document.body.append(frame);
};
addEventListener("message", said => { if (Array.isArray(said.data)) { found[number] = said.data; next(); } });
next();
</script></body>"""


def main() -> int:
    """Exit status 1 if anything is wrong, after printing it; without a look where there is no Chromium."""
    parser = argparse.ArgumentParser(description="Checks every page of the site.")
    parser.add_argument("folder", nargs="?", default="build/docs", metavar="FOLDER")
    folder = Path(parser.parse_args().folder).absolute()
    pages = [path for path in sorted(folder.rglob("*.html")) if path.name != "404.html"]
    wrong = wrong_links(pages, folder)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("the pages were not looked at: there is no Chromium")
    else:
        remaining = iter(pages)
        while some := list(islice(remaining, PAGES_AT_ONCE)):
            wrong += look_at(browser, some, folder)
    looked = "" if browser is None else f", and looked at {' and '.join(map(str, WIDTHS))} pixels wide"
    print("\n".join(wrong) if wrong else f"{len(pages)} pages checked{looked}")
    return 1 if wrong else 0


# --- links -----------------------------------------------------------------------------------------------------------


class Addresses(HTMLParser):
    """The anchors of a page, the addresses that it links to, and those that it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif tag == "link" and "href" in values and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.add(values["href"])
        elif tag in ("script", "img", "iframe", "source", "video") and "src" in values:
            self.loaded.add(values["src"])


def wrong_links(pages: list[Path], folder: Path) -> list[str]:
    """Links and pictures that lead nowhere, and what is loaded from elsewhere."""
    addresses = {page: Addresses(page.read_text(encoding="utf-8")) for page in pages}
    wrong = []
    for page, found in addresses.items():
        for address in sorted(found.links | found.loaded):
            if problem := _problem(address, page, addresses, is_loaded=address in found.loaded):
                wrong.append(f"{page.relative_to(folder)}: {problem}: {address[:120]}")
    for path in sorted(folder.rglob("*.css")):
        found_in_style = re.findall(r"url\(\s*[\"']?(https?:|//)[^)]*", path.read_text(encoding="utf-8"))
        wrong += [f"{path.relative_to(folder)}: loads from elsewhere"] * bool(found_in_style)
    return wrong


def _problem(address: str, page: Path, addresses: dict[Path, Addresses], *, is_loaded: bool) -> str:
    if re.match(r"(https?:)?//", address):
        return "loaded from elsewhere" if is_loaded else ""
    if re.match(r"[a-z]+:", address):  # data:, mailto:
        return ""
    path, _, anchor = address.partition("#")
    target = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
    if target.is_dir():
        target /= "index.html"
    if not target.is_file() or target.suffix == ".ipynb":
        return "link to nowhere"
    return "" if target not in addresses or unquote(anchor) in addresses[target].anchors else "no such anchor"


# --- looks -----------------------------------------------------------------------------------------------------------


def look_at(browser: str, pages: list[Path], folder: Path) -> list[str]:
    """What is wrong with the pages in frames of each width."""
    copies = {page: page.with_name(f"looked-at-{page.name}") for page in pages}
    views = [(page, width) for page in pages for width in WIDTHS]
    frame = folder / "frame.html"
    try:
        for page, copy in copies.items():
            copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
        shown = json.dumps([(copies[page].relative_to(folder).as_posix(), width) for page, width in views])
        frame.write_text(FRAME.replace("VIEWS", shown), encoding="utf-8")
        lines = list(_lines_of(browser, frame, len(views)))
    finally:
        for path in (*copies.values(), frame):
            path.unlink(missing_ok=True)
    return [
        f"{page.relative_to(folder)}, {width} pixels: {line}"
        for (page, width), found in zip(views, lines, strict=True)
        for line in found
    ]


def _lines_of(browser: str, frame: Path, num_views: int) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory() as profile:
        budget = f"--virtual-time-budget={num_views * VIRTUAL_MILLISECONDS_PER_PAGE}"
        words = [browser, *OPTIONS, *OFFLINE, budget, f"--user-data-dir={profile}", "--window-size=1400,1000"]
        shown = subprocess.run(
            [*words, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=300, check=True
        )
    found = re.search(r'data-found="([^"]*)"', shown.stdout)
    yield from json.loads(unescape(found[1])) if found else [["it did not load"]] * num_views


if __name__ == "__main__":
    sys.exit(main())
