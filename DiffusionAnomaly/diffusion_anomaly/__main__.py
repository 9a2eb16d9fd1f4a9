"""``diffusion-anomaly`` and ``python -m diffusion_anomaly``: the command line as a process.

Streams and signals are settled before the imports that take seconds.
"""

from __future__ import annotations

import sys

from .errors import Cancelled
from .process import end_like_interrupt, take_streams


def main() -> int:
    """Run the command line; returns the exit code of ``errors``, never raises."""
    take_streams()
    end_like_interrupt()
    try:
        from .cli.main import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("error: Stopped by the user.\n")
        return Cancelled.exit_code


if __name__ == "__main__":
    sys.exit(main())
