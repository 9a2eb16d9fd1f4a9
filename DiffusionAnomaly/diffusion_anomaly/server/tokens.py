"""Who may use the server: a token a user, of which the server keeps the SHA256 alone.

A token is 256 random bits, so that no slow hash is needed: there is nothing to guess. The file is looked at with every
request, so that a token that was revoked is refused at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import threading
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
    """The users of a file. A file that is not there or damaged lets nobody in. Any thread may ask.

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
        self._seen: tuple[int, int, int] | None = None
        self._users: dict[str, User] = {}
        self._lock = threading.Lock()

    def user_of(self, token: str) -> User | None:
        """Whose token it is; None for nobody's."""
        if not 0 < len(token) <= _LONGEST:
            return None
        return self._look().get(_digest(token))

    def users(self) -> set[User]:
        """Whose token is good just now."""
        return set(self._look().values())

    def names(self) -> list[str]:
        """Of all users, sorted."""
        return sorted(user.name for user in self.users())

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
        """The file's content.

        Raises:
            InputError: when it is damaged or cannot be read.
        """
        try:
            content = parse(self._path.read_bytes())
        except FileNotFoundError:
            return []
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
        """Users by the digest of their token; the file is read again if it is another one now."""
        with self._lock:
            seen = None
            with contextlib.suppress(OSError):
                status = os.stat(self._path)
                seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen is None or seen != self._seen:
                self._seen = seen
                try:
                    self._users = {entry["sha256"]: User(entry["name"], entry["sha256"]) for entry in self._entries()}
                except InputError as error:
                    log.error("nobody is let in: %s", error.what)
                    self._users = {}
            return self._users


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("sha256"), str)
        and _DIGEST.fullmatch(entry["sha256"]) is not None
    )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
