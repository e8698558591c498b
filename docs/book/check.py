"""Looks at every page of the built book in headless Chromium, wide and on a phone: docs/book/check.py [FOLDER]

A page is wrong if it is wider than its frame, a picture lacks words for those who cannot see it, a link leads nowhere,
code runs past the edge, a formula was not rendered, or a heading, list or table of the text came out as plain lines. A
live page is wrong if nothing moves when it is used.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path

WIDTHS = (1280, 420)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
OFFLINE = ("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=8000")
LOOK = """<script>addEventListener("load", () => setTimeout(() => {
  const all = (what, is) => [...document.querySelectorAll(what)].filter(is || (() => true));
  const begin = element => element.textContent.trim().slice(0, 60);
  const wrong = [];
  const tell = (what, elements) => elements.forEach(element => wrong.push(`${what}: ${element}`));
  const root = document.documentElement, math = document.getElementById("math");
  if (root.scrollWidth > innerWidth) tell(`wider than ${innerWidth} pixels`, [root.scrollWidth]);
  const isMute = img => /^(|No description has been provided.*)$/.test(img.alt.trim());  // nbconvert's, for none
  tell("no alt text", all("article img, body > img", isMute).map(img => img.src.slice(0, 60)));
  const leadsHere = a => a.pathname === location.pathname && a.hash;
  const isMissing = a => !document.getElementById(decodeURIComponent(a.hash.slice(1)));
  const isLost = a => /\\.ipynb$/.test(a.pathname) || (leadsHere(a) && isMissing(a));
  const inBook = all("a[href]", a => a.href.startsWith("file:"));
  tell("link to nowhere", inBook.filter(isLost).map(a => a.getAttribute("href")));
  tell("code past the edge", all(".jp-InputArea-editor pre", pre => pre.scrollWidth > pre.clientWidth + 1).map(begin));
  tell("formula", all(".katex-error").map(begin));
  const prose = all(".jp-RenderedMarkdown p, article > p", p => !p.querySelector("code"));
  const holds = (what, p) => what.test(p.innerHTML);
  tell("formula not rendered", prose.filter(p => !p.querySelector(".katex") && holds(/\\$[^$]+\\$/, p)).map(begin));
  tell("not a list, table or heading", prose.filter(p => holds(/(^|\\n)\\s*([-*] |\\d+\\. |#+ |\\|)/, p)).map(begin));
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
# A window cannot be as narrow as a phone, a frame can.
FRAME = """<script>addEventListener("message", said => { document.body.dataset.found = JSON.stringify(said.data); });
</script><body><iframe src="PAGE" width="WIDTH" height="900"></iframe></body>"""


def main() -> int:
    """Exit status 1 if something is wrong, which is told; 0 without a look where there is no Chromium."""
    parser = argparse.ArgumentParser(description="Looks at every page of the book.")
    parser.add_argument("folder", nargs="?", default="build/book", metavar="FOLDER")
    folder = Path(parser.parse_args().folder).absolute()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("the book was not looked at: there is no Chromium")
        return 0
    pages = [path for path in sorted(folder.rglob("*.html")) if path.name != "404.html"]
    wrong = [line for page in pages for width in WIDTHS for line in look_at(browser, page, width)]
    print("\n".join(wrong) if wrong else f"{len(pages)} pages looked at, {' and '.join(map(str, WIDTHS))} pixels wide")
    return 1 if wrong else 0


def look_at(browser: str, page: Path, width: int) -> list[str]:
    """What is wrong with a page in a frame of that width."""
    copy, frame = page.with_name(f"looked-at-{page.name}"), page.with_name(f"frame-of-{page.name}")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    frame.write_text(FRAME.replace("PAGE", copy.name).replace("WIDTH", str(width)), encoding="utf-8")
    try:
        with tempfile.TemporaryDirectory() as profile:
            words = [browser, *OPTIONS, *OFFLINE, f"--user-data-dir={profile}", "--window-size=1400,1000", "--dump-dom"]
            shown = subprocess.run([*words, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    finally:
        copy.unlink()
        frame.unlink()
    found = re.search(r'data-found="([^"]*)"', shown.stdout)
    lines = json.loads(unescape(found[1])) if found else ["it did not load"]
    lines += [f"link to nowhere: {name}" for name in sorted(set(links_of(page))) if not (page.parent / name).exists()]
    return [f"{page.name}, {width} pixels: {line}" for line in lines]


def links_of(page: Path) -> list[str]:
    """Relative addresses of the pages that a page leads to, without what stands behind a #."""
    found = re.findall(r"""<a [^>]*href=["']?([^"'#?\s>]+\.html)\b""", page.read_text(encoding="utf-8"))
    return [unescape(link) for link in found if "//" not in link]


if __name__ == "__main__":
    sys.exit(main())
