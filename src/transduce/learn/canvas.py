"""One look for all pictures: a color for each role, kept from the first to the last page."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

QUERY, KEY, VALUE = "#7b3fa0", "#d1701c", "#1f7a53"
ENCODER, DECODER = "#2b6cb0", "#b5443a"
NEUTRAL, FAINT, INK = "#8a8f98", "#e6e8eb", "#1f2328"
SERIES = ("#2b6cb0", "#b5443a", "#1f7a53", "#d1701c", "#7b3fa0", "#5b6770")  # of curves, told apart by markers as well
MARKERS = "osD^"
WEIGHTS = "Blues"  # of what lies between 0 and 1
SIGNED = "RdBu_r"  # of what has a sign; centred on 0
_NUM_COLORS = 256  # of a picture
_SHARPNESS = 2  # pixels of a picture for each pixel on the page

_LOOK: Any = {
    "figure.dpi": 100,
    "font.size": 10,
    "axes.edgecolor": NEUTRAL,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Picture(Figure):
    """A figure that a notebook shows by itself, without pyplot and whatever its backend is: sharp, and with a text for
    those who cannot see it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=_SHARPNESS * self.dpi, metadata={"Software": None})
        light = io.BytesIO()  # a palette is enough for what is drawn, and a third of the bytes
        Image.open(content).convert("RGB").quantize(_NUM_COLORS, dither=Image.Dither.NONE).save(light, format="png")
        width, height = (round(size * self.dpi) for size in self.get_size_inches())
        return light.getvalue(), {"width": width, "height": height, "alt": self.alt}

    @property
    def alt(self) -> str:
        """What is shown, in words: titles, axes, and the names of curves."""
        title = self.get_suptitle()
        panels = [words for axes in self.axes if (words := _in_words(axes))]
        if not panels:
            panels = [text.get_text() for axes in self.axes for text in axes.texts if text.get_text().strip()]
        return " ".join(" ".join([f"{title}:" if title else "Figure:", "; ".join(panels)]).split())


def _in_words(axes: Axes) -> str:
    """Title, labels and legend of one panel; nothing if it has none of them."""
    parts = [axes.get_title(), axes.get_title(loc="left")]
    if axes.get_ylabel() or axes.get_xlabel():
        parts.append(f"{axes.get_ylabel() or 'values'} by {axes.get_xlabel() or 'place'}")
    names = [str(line.get_label()) for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return ", ".join(filter(None, [*parts, *names]))


def canvas(rows: int = 1, columns: int = 1, *, width: float = 9.0, height: float = 3.2) -> tuple[Picture, list[Axes]]:
    """A picture with rows x columns axes in reading order; sizes in inches."""
    with mpl.rc_context(_LOOK):
        figure = Picture(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def name_ticks(axes: Axes, *, queries: Sequence[str], keys: Sequence[str]) -> None:
    """Tokens at the rows (queries) and columns (keys) of a matrix that `axes` shows. Raises ValueError if they do not
    fit it: a map with wrong labels is worse than none."""
    shape = np.shape(np.asarray(axes.images[-1].get_array()))[:2]
    if shape != (len(queries), len(keys)):
        raise ValueError(f"a map of {shape[0]} queries by {shape[1]} keys got {len(queries)} and {len(keys)} tokens.")
    axes.set_yticks(range(len(queries)), [literally(token) for token in queries])
    axes.set_xticks(range(len(keys)), [literally(token) for token in keys], rotation=60, ha="right")


def literally(text: str) -> str:
    """Text as matplotlib is to be given it: what stands between two dollars it would read as a formula."""
    return text.replace("$", r"\$")
