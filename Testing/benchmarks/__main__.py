"""``python -m Testing.benchmarks``: see ``benchmark``."""

import sys

from .benchmark import main

if __name__ == "__main__":
    sys.exit(main())
