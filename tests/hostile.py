"""Texts that must stay text, wherever they are shown."""

HOSTILE = [
    "</script><b>x</b>",
    "<!--<script>",
    "a&amp;b",
    "a\u2028b\u2029c",
    "\u202eabc\x00\t",
    "]]>",
    "EXPLANATION_JSON",
]
