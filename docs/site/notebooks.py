"""Notebooks for the site, with what mkdocs-jupyter would lose: words for pictures, links to headings and to pages."""

import json
import re
from html import escape
from typing import Any

from mkdocs_jupyter.utils import slugify


def for_the_web(text: str) -> str:
    """A notebook as JSON, as mkdocs-jupyter needs it."""
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
