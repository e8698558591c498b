"""Parallel text: files and named data sets, read as pairs and turned into batches."""

from transduce import import_when_used

import_when_used(__name__, {})
