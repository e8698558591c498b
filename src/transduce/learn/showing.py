"""What a notebook shows that is no figure: text, source code, a page of HTML; each readable without a browser, too."""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transduce.inference.explain_page import framed


@dataclass(frozen=True)
class Shown:
    """Something to show: as plain text, and as HTML or Markdown where that is understood."""

    plain: str
    html: str = ""
    markdown: str = ""

    def __repr__(self) -> str:
        return self.plain

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, str]:
        bundle = {"text/plain": self.plain, "text/html": self.html, "text/markdown": self.markdown}
        return {kind: content for kind, content in bundle.items() if content}


def text(line: str) -> Shown:
    """A line, shown literally."""
    return Shown(line)


def code(source: str) -> Shown:
    """Python source, highlighted."""
    return Shown(source, markdown=f"```python\n{source.rstrip()}\n```")


def source_of(*things: type | Callable[..., Any]) -> Shown:
    """The source of classes and functions as they are installed: never a copy of it."""
    return code("\n\n".join(textwrap.dedent(inspect.getsource(thing)).rstrip() for thing in things))


def page(document: str, *, height: int, plain: str) -> Shown:
    """A self-contained page in a frame of its own; `plain` says what it shows, for readers that have no frames."""
    # Jupyter leaves frames out until the reader has run the cell, or has said that the notebook is trusted.
    note = '<p style="color:#666">A page to play with. In Jupyter, if there is none above this line, run the cell.</p>'
    return Shown(plain, html=framed(document, height) + note)


def guessed(*guesses: object) -> str:
    """What the reader guessed, in brackets behind a number that was asked for; nothing while it is still `...`."""
    made = [str(guess) for guess in guesses if guess is not ...]
    return f"   (you guessed {', '.join(made)})" if made else ""
