"""``python -m dualprox``, the same as the ``dualprox`` command."""

import sys

from .lab.cli import main

sys.exit(main())
