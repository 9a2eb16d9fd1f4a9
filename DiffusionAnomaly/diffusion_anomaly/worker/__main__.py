"""``python -m diffusion_anomaly.worker JOBDIR`` is the background process."""

from __future__ import annotations

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
