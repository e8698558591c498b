"""JSON that stands within a script element of HTML and can neither end it nor begin anything."""

import json
from typing import Any

# `</script` ends the element, `<!--<script` keeps its end from being seen (HTML, 13.2.5: script data double escaped);
# the last two end a line in old JavaScript.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def json_in_html(content: dict[str, Any]) -> str:
    """As JSON and as JavaScript it says the same; what is no text, such as half of a surrogate pair, becomes "?"."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
    return text.encode("utf-8", "replace").decode()  # the name of a folder may hold bytes that are no text
