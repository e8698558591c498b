"""Loading of a trained run, under its former name."""

from transduce.runs.run import load

__all__ = ["load"]
