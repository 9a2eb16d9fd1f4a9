"""Real processes without their seconds of importing: forked from one that has imported everything, then run as ``-m``.

A line of JSON in, the process id out. Each process is a session of its own, so that whatever it leaves can be found.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import tempfile


def serve() -> None:
    """Fork for every line until there are no more."""
    import torch

    import diffusion_anomaly.cli.main
    import diffusion_anomaly.detection.calibration
    import diffusion_anomaly.models.verification
    import diffusion_anomaly.results.report
    import diffusion_anomaly.worker.main  # noqa: F401
    import training.__main__
    import training.package.build
    import training.stages.brain  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that nobody has to be waited for
    print("ready", flush=True)  # noqa: T201 - the answer
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
        print(child, flush=True)  # noqa: T201


def _become(order: dict[str, object]) -> None:
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for module in [name for name in sys.modules if name in ("diffusion_anomaly.__main__", "training.__main__")]:
        del sys.modules[module]  # run anew
    waiting, _ = os.pipe()  # nobody writes to it and nobody closes it
    log = os.open(str(order["log"]), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for target, source in ((0, waiting), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ["TMPDIR"] = str(order["temporary"])
    tempfile.tempdir = None
    os.chdir(str(order["folder"]))
    sys.argv = [str(order["module"]), *map(str, order["arguments"])]  # type: ignore[call-overload]
    code = 1
    try:
        runpy.run_module(str(order["module"]), run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        code = 130
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
