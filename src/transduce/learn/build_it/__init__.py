"""The lesson `build_it`: a Transformer in thirteen pieces, with a picture, an example and a checker for each."""

from typing import TYPE_CHECKING

from transduce import import_when_used

if TYPE_CHECKING:
    from transduce.learn.build_it.example import ready, run
    from transduce.learn.build_it.pictures import picture
    from transduce.learn.build_it.shipping import shipped
    from transduce.learn.build_it.words import SpokenWords

_HOMES = {
    "SpokenWords": "words",
    "picture": "pictures",
    "ready": "example",
    "run": "example",
    "shipped": "shipping",
}
__all__ = [*_HOMES]
import_when_used(__name__, _HOMES)
