"""Atomic writes, locks, and files that carry their own hash."""

from transduce import import_when_used

import_when_used(__name__, {})
