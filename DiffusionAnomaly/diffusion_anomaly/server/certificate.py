"""The certificate that the server shows: the user's own, or one that it makes and whose fingerprint clients pin."""

from __future__ import annotations

import hashlib
import os
import ssl
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

from ..errors import InputError
from ..io.files import whole_file

CERTIFICATE, KEY = "certificate.pem", "key.pem"
INSTALL = "pip install 'diffusion-anomaly[serve]'"
_DAYS = 3650  # a pinned one is known by its fingerprint, not by its age


def own_certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """A self-signed certificate and its key in ``folder``, made where there is none, so that the fingerprint stays.

    Args:
        folder: of the server.
        host: name or address that clients use; only clients that check names look at it.

    Raises:
        InputError: when ``cryptography`` is not installed, or the folder cannot be written to.
    """
    certificate, key = folder / CERTIFICATE, folder / KEY
    if certificate.is_file() and key.is_file():
        return certificate, key
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise InputError(
            "A certificate cannot be made: the package cryptography is not installed.",
            f"Install it: {INSTALL}; or give --certificate and --key.",
        ) from None
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "diffusion-anomaly")])
    now = datetime.now(timezone.utc)
    try:
        known: x509.GeneralName = x509.IPAddress(ip_address(host))
    except ValueError:
        known = x509.DNSName(host)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([known, x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with whole_file(key) as partial:
        partial.touch(0o600)  # before the secret is in it
        partial.write_bytes(secret)
    with whole_file(certificate) as partial:
        partial.write_bytes(made.public_bytes(pem))
    return certificate, key


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and newer, with Python's choice of ciphers.

    Raises:
        InputError: when the files are no certificate and its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        # A key with a password would be asked for on the terminal.
        context.load_cert_chain(os.fspath(certificate), os.fspath(key), password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InputError(
            f"{certificate} and {key} are no certificate and its key: {error}.",
            "Give PEM files; the key without a password.",
        ) from error
    return context


def fingerprint(certificate: Path) -> str:
    """SHA256 of a PEM file's first certificate, in hexadecimal.

    Raises:
        InputError: when it is no such file.
    """
    try:
        text = certificate.read_text(encoding="ascii")
        begin, end = text.index("-----BEGIN CERTIFICATE"), text.index("-----END CERTIFICATE-----")
        der = ssl.PEM_cert_to_DER_cert(text[begin : end + len("-----END CERTIFICATE-----")])
    except (OSError, ValueError) as error:
        raise InputError(f"{certificate} is no PEM certificate: {error}.", "Give a PEM file.") from error
    return hashlib.sha256(der).hexdigest()
