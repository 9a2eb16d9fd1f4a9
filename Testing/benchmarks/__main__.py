"""``python -m Testing.benchmarks``: see ``benchmark``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from benchmark import main

if __name__ == "__main__":
    sys.exit(main())
