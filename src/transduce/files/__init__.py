"""Files written whole or not at all, locks, and files that certify themselves."""

from transduce import import_when_used

import_when_used(__name__, {})
