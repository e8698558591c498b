"""The command line: `main` and `parser`, and a module for each group of subcommands, imported when called."""

from transduce import import_when_used

import_when_used(__name__, {})
