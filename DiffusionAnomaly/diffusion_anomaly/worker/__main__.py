"""``python -m diffusion_anomaly.worker JOBDIR`` is the background process."""

from __future__ import annotations

import sys

from ..errors import Cancelled, InputError
from ..process import end_like_interrupt, has_current_folder, lower_priority, take_streams


def run() -> int:
    """Run the worker; a signal before it stands ends it without a traceback."""
    take_streams()
    end_like_interrupt()
    if not has_current_folder():
        return InputError.exit_code
    lower_priority()
    try:
        from .main import main

        return main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("stopped by a signal\n")
        return Cancelled.exit_code


if __name__ == "__main__":
    sys.exit(run())
