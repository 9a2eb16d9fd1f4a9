"""Who may use the server: a token a user, of which the server keeps the SHA256 alone.

A token is 256 random bits, so that no slow hash is needed: there is nothing to guess. The file is looked at with every
request, so that a token that was revoked is refused at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.files import whole_file
from ..io.typed_json import parse

log = logging.getLogger(__name__)

PREFIX = "da_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST = 200  # characters of what may be a token


@dataclass(frozen=True)
class User:
    """Whose a request is.

    Attributes:
        name: for the log.
        digest: of the token: a new token of the same name is another user.
    """

    name: str
    digest: str


class Tokens:
    """The users of a file. Any thread may ask.

    A file that is damaged, cannot be read or is gone lets nobody in, but takes nobody's token back: ``users`` raises
    then, so that what belongs to users is kept until it is put right.

    >>> import tempfile
    >>> tokens = Tokens(Path(tempfile.mkdtemp()) / "tokens.json")
    >>> token = tokens.add("anna")
    >>> tokens.user_of(token).name, tokens.user_of("da_guess"), tokens.revoke("anna"), tokens.user_of(token)
    ('anna', None, True, None)

    Args:
        path: JSON, made by the first ``add``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None  # of the file that the users are from
        self._trouble = ""  # that was last logged
        self._users: dict[str, User] = {}
        self._lock = threading.Lock()
        # Of its own: those of the event loop may all be waiting for a slow disk to take voxels.
        self._thread = ThreadPoolExecutor(1, "tokens")

    def user_of(self, token: str) -> User | None:
        """Whose token it is; None for nobody's, and for each while the file cannot be read."""
        if not 0 < len(token) <= _LONGEST:
            return None
        try:
            return self._look().get(_digest(token))
        except InputError:  # logged
            return None

    def users(self) -> set[User]:
        """Whose token is good just now.

        Raises:
            InputError: when that is not known, since the file is damaged, cannot be read, or is gone.
        """
        return set(self._look().values())

    async def find_user(self, token: str) -> User | None:
        """As ``user_of``, in a thread for this alone."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.user_of, token)

    async def find_users(self) -> set[User]:
        """As ``users``, in a thread for this alone."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.users)

    def names(self) -> list[str]:
        """Of all users, sorted.

        Raises:
            InputError: when the file is damaged or cannot be read.
        """
        return sorted(entry["name"] for entry in self._entries())

    def add(self, name: str) -> str:
        """A new user's token, which is in no file.

        Raises:
            InputError: for a name that cannot be or has a token already, and for a file that cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"{name!r} is no name for a token.", "Use 1 to 40 letters, digits, dots, dashes.")
        entries = self._entries()
        if any(entry["name"] == name for entry in entries):
            raise InputError(f"{name} has a token already.", f"Take it back first: --revoke {name}")
        token = PREFIX + secrets.token_urlsafe(32)
        made = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._write([*entries, {"name": name, "sha256": _digest(token), "made": made}])
        return token

    def revoke(self, name: str) -> bool:
        """Take a user's token back; False when there is none of that name."""
        entries = self._entries()
        left = [entry for entry in entries if entry["name"] != name]
        if len(left) == len(entries):
            return False
        self._write(left)
        return True

    def _entries(self) -> list[dict[str, Any]]:
        """The file's content; nothing where there is no file yet.

        Raises:
            InputError: when it is damaged or cannot be read.
        """
        try:
            return self._read()
        except InputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise

    def _read(self) -> list[dict[str, Any]]:
        """The file's content.

        Raises:
            InputError: when it is damaged, cannot be read, or is not there.
        """
        try:
            content = parse(self._path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{self._path} cannot be read: {error}.", "Put it right, or move it away.") from error
        entries = content.get("tokens") if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
            raise InputError(f"{self._path} is no list of tokens.", "Put it right, or move it away.")
        return entries

    def _write(self, entries: list[dict[str, Any]]) -> None:
        with whole_file(self._path) as partial:
            partial.touch(0o600)
            partial.write_text(json.dumps({"tokens": entries}, indent=2) + "\n", encoding="ascii")
        self._seen = None

    def _look(self) -> dict[str, User]:
        """Users by the digest of their token; the file is read again if it is another one now.

        Raises:
            InputError: when it is damaged or cannot be read, and when it was there and is gone; logged once.
        """
        with self._lock:
            try:
                self._look_again()
            except InputError as error:
                if error.what != self._trouble:
                    log.error("nobody is let in: %s", error.what)
                self._trouble = error.what
                raise
            self._trouble = ""
            return self._users

    def _look_again(self) -> None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            if self._seen is None and not self._users:  # no token was made yet
                return
            raise InputError(f"{self._path} is gone.", "Put it back, or end the server.") from None
        except OSError as error:
            raise InputError(f"{self._path} cannot be read: {error}.", "Put it right.") from error
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen != self._seen:
            self._users = {entry["sha256"]: User(entry["name"], entry["sha256"]) for entry in self._read()}
            self._seen = seen  # after it was read, or a failure would be taken for a file without users


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("sha256"), str)
        and _DIGEST.fullmatch(entry["sha256"]) is not None
    )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
