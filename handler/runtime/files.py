"""What a start needs of the file system, looked at before anything is started, so that the setting is named."""

import os
import ssl
import tempfile
from pathlib import Path

from dnc_serve.handler.api.access import Access
from dnc_serve.handler.api.state_seal import StateSeal
from dnc_serve.handler.config import TOKENS_VARIABLE, ServeConfig

ROOM_BYTES = 8 << 20  # an exported model and the beginnings of a store


class FileUnusable(Exception):
    """A configured file or folder can't be used; the message names the setting, and says what was expected."""


def check_files(config: ServeConfig) -> None:
    """Raises FileUnusable for tokens, keys and certificates that no endpoint would open with, and for a state folder
    that takes nothing. Changes nothing."""
    try:
        Access(config.tokens, os.environ.get(TOKENS_VARIABLE, ""))
    except OSError as exc:
        raise FileUnusable(f"tokens is {config.tokens!r}; expected a file of tokens ({exc.strerror})") from exc
    except ValueError as exc:
        raise FileUnusable(str(exc)) from exc
    try:
        StateSeal(config.state_keys)
    except OSError as exc:
        raise FileUnusable(f"state_keys is {config.state_keys!r}; expected a file of keys ({exc.strerror})") from exc
    except ValueError as exc:
        raise FileUnusable(str(exc)) from exc
    if config.tls_certificate:
        _check_certificate(config)
    _check_state_dir(config.state_dir)


def _check_certificate(config: ServeConfig) -> None:
    """As gRPC would only say that it can't listen."""
    for setting in ("tls_certificate", "tls_key", "tls_client_ca"):
        path = getattr(config, setting)
        try:
            text = Path(path).read_bytes() if path else b"-----BEGIN"
        except OSError as exc:
            raise FileUnusable(f"{setting} is {path!r}; expected a PEM file ({exc.strerror})") from exc
        if b"-----BEGIN" not in text:
            raise FileUnusable(f"{setting} is {path!r}; expected a PEM file, and this has nothing of it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key with a passphrase would be asked for at the terminal.
        context.load_cert_chain(config.tls_certificate, config.tls_key, password="")
    except ssl.SSLError as exc:
        raise FileUnusable(
            f"tls_certificate is {config.tls_certificate!r} and tls_key {config.tls_key!r}; expected a certificate "
            f"chain and its key, without a passphrase ({exc.reason or exc})"
        ) from exc
    if config.tls_client_ca:
        try:
            context.load_verify_locations(config.tls_client_ca)
        except ssl.SSLError as exc:
            raise FileUnusable(
                f"tls_client_ca is {config.tls_client_ca!r}; expected certificates ({exc.reason or exc})"
            ) from exc


def _check_state_dir(folder: Path) -> None:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(bytes(ROOM_BYTES))
    except OSError as exc:
        raise FileUnusable(
            f"state_dir is {str(folder)!r}; expected a folder that can be written to, with room ({existing}: "
            f"{exc.strerror})"
        ) from exc
