"""Search, sampling, output constraints, the fast engine, the predictor, and explanations."""

from transduce import import_when_used

import_when_used(__name__, {})
