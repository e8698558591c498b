"""All settings of a run: TOML, overrides, and which of them a resumed run may change."""

from transduce import import_when_used

import_when_used(__name__, {})
