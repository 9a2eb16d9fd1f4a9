"""``diffusion-anomaly`` and ``python -m diffusion_anomaly``: the command line as a process.

Streams and signals are settled before the imports that take seconds.
"""

from __future__ import annotations

import sys

from .errors import Cancelled, EngineError, InputError, MemoryExhausted
from .process import end_like_interrupt, has_current_folder, take_streams
from .system import is_out_of_memory


def main() -> int:
    """Run the command line; returns the exit code of ``errors``, never raises."""
    take_streams()
    end_like_interrupt()
    if not has_current_folder():
        return InputError.exit_code
    try:
        from .cli.main import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("error: Stopped by the user.\n")
        return Cancelled.exit_code
    except Exception as error:  # noqa: BLE001 - of an import: what commands raise has been told
        short = is_out_of_memory(error)
        why = "Memory ran out while the program was loaded" if short else "The program cannot be loaded"
        sys.stderr.write(f"error: {why} ({type(error).__name__}: {error}).\n")
        return MemoryExhausted.exit_code if short else EngineError.exit_code


if __name__ == "__main__":
    sys.exit(main())
