"""DICOMweb by dicomweb-client: a study found by QIDO-RS, fetched by WADO-RS, and results stored by STOW-RS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..io.dicom.planes import PROJECTIONS
from ..text import counted, printable
from .config import INSTALL, Destination
from .refusals import PASSING, Refused, Unreachable

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SECONDS = 60
# What may be otherwise later: a server that is busy or starts, and access that somebody has to grant.
_PASSING = frozenset({401, 403, 404, 408, 425, 429, 500, 502, 503, 504, 507})


class WebClient:
    """One DICOMweb service.

    Args:
        url: of the service, without ``/studies``.
        user, password: for basic authentication.
        token: for bearer authentication.
        authorities: PEM file of who may sign the service's certificate.

    Raises:
        InputError: when dicomweb-client is not installed, or the URL is none.
    """

    def __init__(
        self, url: str, user: str | None = None, password: str = "", token: str = "", authorities: str | None = None
    ) -> None:
        try:
            from dicomweb_client.api import DICOMwebClient  # type: ignore[import-not-found]
            from dicomweb_client.session_utils import (  # type: ignore[import-not-found]
                add_certs_to_session,
                create_session,
            )
        except ImportError:
            raise InputError("DICOMweb needs packages that are not installed.", f"Install them: {INSTALL}") from None
        session = create_session()
        if user is not None:
            session.auth = (user, password)
        if authorities is not None:
            session = add_certs_to_session(session, ca_bundle=authorities)
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self.title = printable(url)
        try:
            self._client = DICOMwebClient(url.rstrip("/"), session=session, headers=headers, timeout=_SECONDS)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{printable(url)} is no URL of a DICOMweb service.", "Such as https://pacs/dicom-web."
            ) from error
        self._client.set_http_retry_params(retry=False)  # a study's state says when it is tried again

    @classmethod
    def of(cls, destination: Destination) -> WebClient:
        """The service of a destination, with what the environment holds for it.

        Raises:
            InputError: when a variable is not set.
        """
        password, token = (
            secret_of(variable) if variable else ""
            for variable in (destination.password_variable, destination.token_variable)
        )
        return cls(str(destination.url), destination.user, password, token, destination.authorities)

    def check(self) -> None:
        """Ask for a study, of which nothing is kept.

        Raises:
            Unreachable, Refused: when the service does not answer as it should.
        """
        with self._asked():
            self._client.search_for_studies(limit=1)

    def find_study(self, **filters: str) -> str:
        """The UID of the one study that fits, such as ``PatientID="7", StudyDate="20250102"``, by QIDO-RS.

        Raises:
            InputError: when none fits or several do.
            Unreachable, Refused: when the service does not answer as it should.
        """
        with self._asked():
            found = self._client.search_for_studies(search_filters=filters, fields=["StudyInstanceUID"])
        studies = sorted({uid for one in found if (uid := _value(one, "0020000D"))})
        if len(studies) != 1:
            listed = f": {', '.join(studies[:10])}" if studies else ""
            raise InputError(
                f"{counted(len(studies), 'study fits', 'studies fit')} {' and '.join(filters)}{listed}.",
                "Choose one with --study and its UID.",
            )
        return studies[0]

    def fetch(self, study: str, folder: Path, series: str | None = None) -> int:
        """Fetch the images of a study, or of one series of it, into a folder, a file an instance, by WADO-RS.

        Args:
            study: study instance UID.
            folder: where to.
            series: series instance UID; None fetches every series that may be a scan.

        Returns:
            The number of instances.

        Raises:
            InputError: when there is none.
            Unreachable, Refused: when the service does not answer as it should.
        """
        count = 0
        with self._asked():
            found = [series] if series else self._scans(study)
            for uid in found:
                for data in self._client.iter_series(study, uid):
                    _save(data, folder / f"{count:05d}.dcm")
                    count += 1
        if not count:
            what = f"series {series}" if series else "MR, CT or X-ray images"
            raise InputError(f"{self.title} has no {what} of the study {study}.", "Look at its UID.")
        return count

    def _scans(self, study: str) -> list[str]:
        """The series that may be scans, by their modality."""
        found = self._client.search_for_series(study, fields=["Modality"])
        wanted = {"MR", "CT", "", *PROJECTIONS}
        return [uid for one in found if _value(one, "00080060") in wanted and (uid := _value(one, "0020000E"))]

    def store(self, path: Path) -> None:
        """Store a DICOM file, by STOW-RS.

        Raises:
            Unreachable, Refused: when it is not stored.
        """
        from pydicom import dcmread

        with self._asked():
            answer = self._client.store_instances([dcmread(path)])
        for item in answer.get("FailedSOPSequence") or ():
            code = int(item.get("FailureReason") or 0)
            said = f"{path.name}, failure reason 0x{code:04X}"
            if code in PASSING:
                raise Unreachable(f"{self.title} did not store {said}.", "Look at its log and its disk.")
            raise Refused(said)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """What goes wrong between here and the service, in the engine's words."""
        from requests.exceptions import HTTPError, InvalidSchema, InvalidURL, RequestException

        where = self.title
        try:
            yield
        except HTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            told = f"{where} answers with HTTP status {code}."
            if code in _PASSING:
                raise Unreachable(told, "Look at its address and access, and whether it runs.") from error
            raise Refused(told, "Look at its log.") from error
        except ValueError as error:  # of an answer in no format that DICOMweb has
            raise Unreachable(f"{where} answers with something that is not DICOMweb.", "Is its URL right?") from error
        except (InvalidURL, InvalidSchema) as error:
            raise Refused(f"{where} is no URL of a service.", "Correct it.") from error
        except RequestException as error:
            raise Unreachable(
                f"{where} does not answer ({type(error).__name__}).", "Does it run, and is its certificate known here?"
            ) from error


def secret_of(variable: str) -> str:
    """A password or token out of the environment, so that none stands in a file.

    Raises:
        InputError: when the variable is not set.
    """
    value = os.environ.get(variable)
    if value is None:
        raise InputError(
            f"The environment variable {printable(variable)} is not set.", "Set it to the password or token."
        )
    return value


def _value(one: dict[str, Any], tag: str) -> str:
    """The first value of an element in DICOM JSON; empty where there is none."""
    values = one.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _save(data: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
