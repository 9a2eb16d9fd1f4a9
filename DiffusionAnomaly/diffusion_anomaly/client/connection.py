"""HTTPS to a server: pinned or checked by authority, and patient with a network that comes and goes.

Of Requests' environment only the proxies count: neither ``.netrc`` nor a bundle of authorities may take the place of
what the user said.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from requests import certs
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from ..errors import EngineError, InputError
from ..text import printable
from .address import Server
from .wire import PREFIX, Order, error_of

CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0  # an event stream says something every 10 seconds
PATIENCE_SECONDS = 300.0  # without a word from the server
FIRST_SECONDS = 15.0  # the same before it has ever said one: a wrong address is no broken connection
_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0)
_PIECE = 1 << 18  # bytes
_MOST_JSON = 16 << 20
_LONGEST_EVENT = 64 << 20
_MOST_RESULT = 4 << 30
_PASSING = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, 504}
_BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)

Stop = Callable[[], None]
"""Raises when the user wants no more; asked several times a second."""


class _Bearer(AuthBase):
    """The token, so that ``.netrc`` has no say."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Pinned(HTTPAdapter):
    """Takes one certificate and no other, also through a proxy."""

    def __init__(self, fingerprint: str) -> None:
        self._pin = fingerprint
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        super().init_poolmanager(*arguments, **keywords, assert_fingerprint=self._pin)

    def proxy_manager_for(self, proxy: str, **keywords: Any) -> Any:
        return super().proxy_manager_for(proxy, **keywords, assert_fingerprint=self._pin)


class Connection:
    """Requests to a server, for one thread each.

    Args:
        server: which one.
        patience: seconds to go on trying when it does not answer.
        on_silence: is told, once each time, that a server that has answered does so no more and is asked again.
    """

    def __init__(
        self,
        server: Server,
        patience: float = PATIENCE_SECONDS,
        on_silence: Callable[[str], object] = lambda message: None,
    ) -> None:
        self.server = server
        self._patience = patience
        self._on_silence = on_silence
        self._answered, self._silent = False, False
        self._session = requests.Session()
        # Requests would let its environment take the place of True.
        self._verify: bool | str = False if server.fingerprint else server.authorities or certs.where()
        if server.fingerprint:
            self._session.mount("https://", _Pinned(server.fingerprint))

    def another(self) -> Connection:
        """A connection to the same server, for another thread."""
        other = Connection(self.server, self._patience, self._on_silence)
        other._answered = self._answered
        return other

    def close(self) -> None:
        self._session.close()

    def models(self, stop: Stop = lambda: None) -> list[dict[str, Any]]:
        """What the server offers.

        Raises:
            InputError: when it cannot be reached or does not know the token.
        """
        answer = self._json("GET", "/models", stop=stop)
        listed = answer.get("models")
        if not isinstance(listed, list):
            raise self._odd("a list of models is missing")
        return listed

    def order(self, order: Order, stop: Stop) -> str:
        """Open a job; its name."""
        answer = self._json("POST", "/jobs", json=order.to_json(), stop=stop)
        if not isinstance(name := answer.get("job"), str) or not re.fullmatch(r"[0-9a-f]{32}", name):
            raise self._odd("the job has no name")
        return name

    def send(self, job: str, number: int, pieces: Callable[[], Iterable[bytes]], gzipped: bool, stop: Stop) -> None:
        """Upload an input; from its beginning again where the connection breaks.

        Args:
            job, number: which one.
            pieces: gives the bytes anew with each call.
            gzipped: whether they are compressed.
            stop: see ``Stop``.
        """
        headers = {"Content-Type": "application/octet-stream"}
        if gzipped:
            headers["Content-Encoding"] = "gzip"
        try:
            self._json(
                "PUT",
                f"/jobs/{job}/inputs/{number}",
                data=pieces,
                headers=headers,
                stop=stop,
                broken=lambda: self._ask(job, stop),
            )
        except _ThereAlready:  # it arrived, and the answer was lost
            return

    def _ask(self, job: str, stop: Stop) -> None:
        """Raise why a job has failed, if it has. A server that refuses half a body cuts the connection with it."""
        error = self._json("GET", f"/jobs/{job}", stop=stop).get("error")
        if isinstance(error, dict):
            code, what, hint = (str(error.get(key, "")) for key in ("code", "what", "hint"))
            raise error_of(code, self._says(what), hint)

    def events(self, job: str, stop: Stop) -> Iterator[dict[str, Any]]:
        """What the job tells, each event once, across broken connections; None between two for a word that is none."""
        last, since = 0, time.monotonic()
        tries = 0
        while True:
            broken: EngineError = self._odd("its events end before the job does")
            try:
                headers = {"Last-Event-ID": str(last), "Accept": "text/event-stream"}
                with self._request("GET", f"/jobs/{job}/events", headers=headers, stop=stop) as answer:
                    for number, event in _events(answer, stop):
                        since, tries = time.monotonic(), 0
                        if number is not None:
                            last = number
                        if event is None:
                            yield {}
                            continue
                        yield event
                        if event.get("event") in ("result", "error"):
                            return
            except _BROKEN as error:
                broken = self._unreachable(error)
            if time.monotonic() - since > self._patience:
                raise broken
            self._tell_silence()
            self._pause(tries, stop)
            tries += 1

    def fetch(self, job: str, kind: str, path: Path, size: int, stop: Stop, sha256: Callable[[], Any]) -> str:
        """Download a result; its digest.

        Args:
            job, kind: which one.
            path: where to.
            size: that the server has told; more is not read.
            stop: see ``Stop``.
            sha256: makes a new hash.
        """
        if not 0 <= size <= _MOST_RESULT:
            raise self._odd(f"a result has {size} bytes")
        for tries in range(len(_PAUSES)):
            try:
                with self._request("GET", f"/jobs/{job}/results/{kind}", stop=stop) as answer:
                    digest, left = sha256(), size
                    with path.open("wb") as file:
                        for piece in answer.iter_content(_PIECE):
                            stop()
                            left -= len(piece)
                            if left < 0:
                                raise self._odd("a result is longer than it said")
                            digest.update(piece)
                            file.write(piece)
                if left == 0:
                    return digest.hexdigest()
            except _BROKEN as error:
                if tries == len(_PAUSES) - 1:
                    raise self._unreachable(error) from error
            self._pause(tries, stop)
        raise self._odd("a result is cut short")

    def delete(self, job: str) -> None:
        """Have the server stop it and delete everything of it; one that is not reached deletes it in its time."""
        with (
            contextlib.suppress(EngineError, requests.RequestException),
            self._session.delete(
                f"{self.server.address}{PREFIX}/jobs/{job}",
                auth=_Bearer(self.server.token),
                verify=self._verify,
                timeout=2.0,
                allow_redirects=False,
            ),
        ):
            pass

    def _json(self, method: str, path: str, **keywords: Any) -> dict[str, Any]:
        with self._request(method, path, **keywords) as answer:
            try:
                body = _body(answer)
            except _BROKEN as error:
                raise self._unreachable(error) from error
            return self._parsed(body)

    def _parsed(self, body: bytes) -> dict[str, Any]:
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise self._odd("its answer is no JSON object")
        return content

    @contextlib.contextmanager
    def _request(
        self,
        method: str,
        path: str,
        *,
        stop: Stop,
        data: Callable[[], Iterable[bytes]] | None = None,
        broken: Callable[[], None] = lambda: None,
        **keywords: Any,
    ) -> Iterator[requests.Response]:
        """One request, tried again while the server is not reached or busy, unless ``broken`` raises then."""
        since, tries = time.monotonic(), 0
        while True:
            stop()
            failure: Exception | None = None
            try:
                answer = self._session.request(
                    method,
                    f"{self.server.address}{PREFIX}{path}",
                    auth=_Bearer(self.server.token),
                    verify=self._verify,
                    timeout=(CONNECT_SECONDS, READ_SECONDS),
                    allow_redirects=False,
                    stream=True,
                    data=None if data is None else data(),
                    **keywords,
                )
            except _BROKEN as error:
                # A handshake that broke off is no verdict on a certificate.
                if any(word in str(error).lower() for word in ("fingerprint", "certificate")):
                    raise self._distrusted(error) from error
                failure = error
            except requests.RequestException as error:
                raise self._unreachable(error) from error
            else:
                self._answered, self._silent = True, False
                if answer.status_code < 300:
                    with answer:
                        yield answer
                    return
                with answer:
                    refusal = self._refusal(answer)
                if answer.status_code not in _PASSING and not isinstance(refusal, _Busy):
                    raise refusal
                failure = refusal
            if time.monotonic() - since > (self._patience if self._answered else min(self._patience, FIRST_SECONDS)):
                raise failure if isinstance(failure, EngineError) else self._unreachable(failure)
            if not isinstance(failure, EngineError):
                self._tell_silence()
            self._pause(tries, stop)
            tries += 1
            if not isinstance(failure, EngineError) or isinstance(failure, _Busy):
                broken()

    def _tell_silence(self) -> None:
        """Say that the server is silent, unless that was said of this silence or it has never answered."""
        if self._answered and not self._silent:
            self._silent = True
            self._on_silence(f"{self.server.name} does not answer; it is asked again for {self._patience:.0f} s.")

    def _refusal(self, answer: requests.Response) -> EngineError:
        """What a server's refusal means."""
        try:
            said = self._parsed(_body(answer))["error"]
            code, what, hint = (str(said[key]) for key in ("code", "what", "hint"))
        except (EngineError, KeyError, TypeError, requests.RequestException) as error:
            what = f"{self.server.name} answered with HTTP status {answer.status_code}."
            # A server that ends a connection with a body unread may cut its own answer short.
            if answer.status_code == HTTPStatus.CONFLICT and isinstance(error, requests.RequestException):
                return _Busy(what)
            return InputError(what, "Is it a server of this program? A proxy may be between.")
        if code == "there_already":
            return _ThereAlready(what)
        if code == "busy" and answer.status_code == HTTPStatus.CONFLICT:
            return _Busy(self._says(what), hint)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return InputError(
                f"The server {self.server.name} does not know the job any more.",
                "It was started anew, or the results were not taken in time; run it again.",
            )
        return error_of({"token": "bad_input", "too_large": "bad_input"}.get(code, code), self._says(what), hint)

    def _says(self, what: str) -> str:
        return f"The server {self.server.name} says: {what}"

    def _odd(self, what: str) -> InputError:
        return InputError(
            f"The server {self.server.name} gave an answer that is none: {what}.",
            "Client and server may be of different versions; update both.",
        )

    def _unreachable(self, error: Exception | None) -> InputError:
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
        return InputError(
            f"The server {self.server.name} cannot be reached: {reason}",
            "Is it running, and is the address right? HTTPS_PROXY names a proxy.",
        )

    def _distrusted(self, error: Exception) -> InputError:
        if self.server.fingerprint:
            return InputError(
                f"The server at {self.server.name} shows another certificate than the one with your fingerprint.",
                "Nothing was sent. Ask whoever runs the server for its fingerprint, by another way than the network.",
            )
        return InputError(
            f"The certificate of {self.server.name} is not trusted: {printable(str(error))[:300]}",
            "Give the fingerprint that the server printed, or the authority that signed it. Nothing was sent.",
        )

    def _pause(self, tries: int, stop: Stop) -> None:
        """A while before the next try, in which the user is heard."""
        end = time.monotonic() + _PAUSES[min(tries, len(_PAUSES) - 1)]
        while (left := end - time.monotonic()) > 0:
            stop()
            time.sleep(min(left, 0.1))


class _ThereAlready(EngineError):  # noqa: N818 - what the server says
    """An upload whose answer was lost."""


class _Busy(EngineError):  # noqa: N818 - what the server says
    """The upload is on its way already.

    Said to one that is sent again until the server has noticed that the first one's connection broke, for up to the 20
    ``stall_seconds`` of its limits. Also an answer of that status which was cut short, so that the job has to be asked
    what is wrong.
    """


def _body(answer: requests.Response) -> bytes:
    """An answer that is read whole, within bounds."""
    body = b""
    for piece in answer.iter_content(_PIECE):
        body += piece
        if len(body) > _MOST_JSON:
            break
    return body


def _events(answer: requests.Response, stop: Stop) -> Iterator[tuple[int | None, dict[str, Any] | None]]:
    """Server-sent events, and None for a comment."""
    pending = b""
    for piece in answer.iter_content(None):
        stop()
        pending += piece
        if len(pending) > _LONGEST_EVENT:
            raise requests.ConnectionError("an event has no end")
        *blocks, pending = pending.replace(b"\r\n", b"\n").split(b"\n\n")
        for block in blocks:
            number, data = None, b""
            for line in block.split(b"\n"):
                name, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if name == b"id" and value.isdigit():
                    number = int(value)
                elif name == b"data":
                    data += value
            try:
                event = json.loads(data) if data else None
            except ValueError:
                event = None
            yield number, event if isinstance(event, dict) else None
