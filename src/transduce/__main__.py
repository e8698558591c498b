"""`python -m transduce`, which is also how `torchrun -m transduce train ...` starts it."""

import sys

from transduce.cli.main import main

sys.exit(main())
