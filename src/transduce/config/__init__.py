"""Every setting of a run; TOML, overrides, and what a resumed run may change."""

from transduce import import_when_used

import_when_used(__name__, {})
