"""The command."""

from transduce import import_when_used

import_when_used(__name__, {})
