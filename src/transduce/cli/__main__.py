"""`python -m transduce.cli`, as in 0.1."""

import sys

from transduce.cli.main import main

sys.exit(main())
