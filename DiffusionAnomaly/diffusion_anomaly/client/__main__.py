"""``python -m diffusion_anomaly.client JOBDIR`` is the worker of a program whose server does the work.

It speaks the worker's protocol, so that whoever starts it need not know the difference. The server's address, the token
and the certificate's fingerprint come from the environment, which other users cannot see as they can see arguments.
"""

from __future__ import annotations

import os
import sys

from ..errors import Cancelled, EngineError, InputError
from ..process import end_like_interrupt, has_current_folder, take_streams
from .wire import VARIABLES


def run() -> int:
    """Run the worker; a signal before it stands ends it without a traceback."""
    take_streams()
    end_like_interrupt()
    if not has_current_folder():
        return InputError.exit_code
    try:
        from ..worker.main import main
        from .forwarding import Forwarder

        given = (os.environ.get(name, "") for name in VARIABLES)
        return main(sys.argv[1:], Forwarder(*given), "diffusion_anomaly.client")
    except KeyboardInterrupt:
        sys.stderr.write("stopped by a signal\n")
        return Cancelled.exit_code
    except EngineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(run())
