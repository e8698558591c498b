"""Export to CTranslate2, ONNX and Hugging Face, each with a certificate that compares outputs; import from Marian."""

from typing import TYPE_CHECKING

from transduce import import_when_used

if TYPE_CHECKING:
    from transduce.export.certificate import Certificate, Engine, Exported, Lines, certify
    from transduce.export.folder import copy_run, export, export_run

_HOMES = {
    "Certificate": "certificate",
    "Engine": "certificate",
    "Exported": "certificate",
    "Lines": "certificate",
    "certify": "certificate",
    "copy_run": "folder",
    "export": "folder",
    "export_run": "folder",
}
__all__ = [*_HOMES]
import_when_used(__name__, _HOMES)
