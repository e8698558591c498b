"""A trained run as other programs read it, with a certificate of how far their answers are the run's."""

from transduce.export.certificate import Certificate, Engine, Exported, Lines, certify
from transduce.export.folder import export_run

__all__ = ["Certificate", "Engine", "Exported", "Lines", "certify", "export_run"]
