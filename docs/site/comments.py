"""An extension of griffe: the comment beside an attribute is its documentation, where it has no docstring."""

from typing import Any

import griffe

_FOR_TOOLS = ("type:", "noqa", "fmt:")


class CommentsAsDocstrings(griffe.Extension):
    """Gives attributes, such as the fields of a dataclass, the comments at the ends of their lines."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called by griffe for each attribute of a class or module, once it is known."""
        if attr.docstring is None and attr.endlineno is not None:
            _, _, comment = attr.lines_collection[attr.filepath][attr.endlineno - 1].partition("  # ")
            if comment and not comment.startswith(_FOR_TOOLS):
                attr.docstring = griffe.Docstring(comment, parent=attr)
