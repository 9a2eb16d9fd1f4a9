"""``dicom-node`` and ``dicom-web``: DICOM over the network."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import Cancelled, EngineError, InputError
from .arguments import Method, Model, Settings, Threshold, as_folder, method_of, parse_settings
from .console import Terminal, err, out, plain


def add_commands(app: typer.Typer) -> None:
    """Have the command line know them."""
    app.command()(dicom_node)
    app.command()(dicom_web)


def dicom_node(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; see the how-to page on the node.")],
    check: Annotated[
        bool, typer.Option("--check", help="Check file, model, folder, port and, by C-ECHO and QIDO-RS, destinations.")
    ] = False,
) -> None:
    """Receive studies by C-STORE or from a watched folder, and send results back.

    It works until it is stopped, by Ctrl-C or SIGTERM, and goes on where it was when it is started again.
    """
    from ..detection.detector import Detector
    from ..detection.planning import Options
    from ..dicom_network.config import read_config
    from ..dicom_network.logs import logged
    from ..dicom_network.node import Node, check_destinations, check_own
    from ..results.dicom import check_installed

    asked = read_config(config)
    check_installed(asked.wants_pdf)
    options: dict[str, Any] = dict(asked.detection)
    options["method"] = options.get("method") or method_of(options.get("model"))
    detector = Detector(Options(**options))
    if check:
        out.print(plain(f"{config} is valid; the model is {detector.plan.bundle.name}."))
        own, wrong = check_own(asked), check_destinations(asked)
        for name, what in own.items():
            out.print(plain(f"{name}: {what or 'can be used'}"))
        for name, what in wrong.items():
            out.print(plain(f"{name}: {what or 'answers'}"))
        raise typer.Exit(EngineError.exit_code if any((own | wrong).values()) else 0)
    with logged(Path(asked.log or Path(asked.folder) / "node.log")):
        try:
            Node(asked, detector).run()
        except (KeyboardInterrupt, Cancelled):
            err.print(plain("Stopped; what is waiting goes on when the node is started again."))


def dicom_web(
    url: Annotated[str, typer.Argument(metavar="URL", help="DICOMweb service, such as https://pacs/dicom-web.")],
    study: Annotated[str | None, typer.Option(metavar="UID", help="The study.")] = None,
    patient_id: Annotated[str | None, typer.Option(metavar="ID", help="Instead: the patient with one study.")] = None,
    accession: Annotated[str | None, typer.Option(metavar="NUMBER", help="Instead: the accession number.")] = None,
    series: Annotated[
        str | None, typer.Option(metavar="UID", help="Which series; default: the one that the model knows.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", parser=as_folder, help="Keep images and results here."),
    ] = None,
    keep_back: Annotated[bool, typer.Option("--no-store", help="Do not send the results back.")] = False,
    objects: Annotated[
        list[str] | None,
        typer.Option(
            "--object",
            metavar="KIND",
            help="Send only this: segmentation, anomaly_map, findings, or report, a PDF; repeatable.",
        ),
    ] = None,
    user: Annotated[str | None, typer.Option(help="For basic authentication.")] = None,
    password_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the password.")
    ] = None,
    token_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with a bearer token.")
    ] = None,
    authorities: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Who may sign the service's certificate.")
    ] = None,
    method: Method = None,
    model: Model = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:0.")] = "auto",
    threshold: Threshold = None,
    settings: Settings = None,
    force: Annotated[
        bool, typer.Option("--force", help="Look at a scan that the model seems not to know, with a warning.")
    ] = False,
) -> None:
    """Fetch a study by DICOMweb, find anomalies in it, and store the results in it.

    Found by QIDO-RS, fetched by WADO-RS, stored by STOW-RS.
    """
    from ..detection.detector import Detector
    from ..detection.planning import Options
    from ..dicom_network.config import Destination
    from ..dicom_network.one_study import look_at
    from ..dicom_network.web import WebClient
    from ..results.dicom import DEFAULT_KINDS, KINDS, check_installed

    given = {"StudyInstanceUID": study, "PatientID": patient_id, "AccessionNumber": accession}
    filters = {name: value for name, value in given.items() if value is not None}
    if not filters:
        raise InputError("No study is named.", "Give --study and its UID, --patient-id or --accession.")
    wanted = objects or list(DEFAULT_KINDS)
    if unknown := [name for name in wanted if name not in KINDS]:
        raise InputError(f"There is no object {unknown[0]!r}.", f"Known are {', '.join(KINDS)}.")
    check_installed("report" in wanted)
    options = Options(
        method=method or method_of(model),
        model=model,
        device=device,
        threshold=threshold,
        overrides=parse_settings(settings or []),
        force=force,
    )
    server = Destination(
        url=url,
        authorities=None if authorities is None else str(authorities),
        user=user,
        password_variable=password_variable,
        token_variable=token_variable,
    )
    detector = Detector(options)
    client = WebClient.of(server)
    with ExitStack() as stack:
        folder = output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        uid = study or client.find_study(**filters)
        start = time.perf_counter()
        listener = stack.enter_context(Terminal())
        listener.begin(folder / "images", several=False)
        kinds = [] if keep_back else wanted
        result, files, stored = look_at(client, uid, detector, listener, folder, series=series, objects=kinds)
        listener.result(result, files, time.perf_counter() - start)
        if not keep_back:
            out.print(plain(f"{', '.join(stored)} stored in study {uid}"))
