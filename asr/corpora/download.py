"""Large files from the network: fetched, resumed, and checked against a published checksum."""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import logging
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from asr.errors import AsrError

__all__ = ["bytes_bar", "fetch", "make_folder", "md5_of"]

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
CHECKSUM_TRIES = 2
MAX_WAIT_SECONDS = 120.0
PASSING_STATUSES = frozenset({408, 425, 429})  # besides 5xx: the same request may succeed a little later


@dataclass(frozen=True)
class _Transfer:
    """What stays the same over all attempts to download one file."""

    url: str
    part: Path
    size: int | None
    room_bytes: int
    timeout_seconds: float
    progress: bool


class _InterruptedError(Exception):
    """An attempt ended early and a further one may succeed, at the earliest after `wait_seconds`."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


def fetch(
    url: str,
    path: str | Path,
    *,
    md5: str,
    size: int | None = None,
    room_bytes: int = 0,
    attempts: int = 5,
    backoff_seconds: float = 2.0,
    timeout_seconds: float = 60.0,
    progress: bool = True,
) -> Path:
    """`path`, holding the whole file behind `url` with the checksum `md5`.

    What is already in `path` + ".part" is not downloaded again, and a `path` with the right checksum is not
    downloaded at all. The file appears under its own name only once its checksum is right.

    url: http or https; proxies are taken from the environment.
    path: where the file shall lie; missing folders are made.
    md5: published checksum, 32 hexadecimal digits.
    size: bytes of the whole file, used where the server does not tell.
    room_bytes: bytes that must stay free beside the file, such as those it unpacks to.
    attempts: how many times in a row an attempt may bring nothing new before giving up.
    backoff_seconds: wait after the first failure; doubled with every further one, up to two minutes.
    timeout_seconds: how long a silent connection is waited for.
    progress: show a bar on stderr.

    Raises AsrError if the address is wrong, the server keeps failing, the disk is too small, or the checksum is
    wrong twice.
    """
    path = Path(path)
    if not _is_web_address(url):
        raise AsrError(f"{url}: only addresses that begin with http:// or https:// can be downloaded")
    if path.is_file() and md5_of(path) == md5.lower():
        return path
    part = path.with_name(path.name + ".part")
    make_folder(path.parent)
    transfer = _Transfer(url, part, size, room_bytes, timeout_seconds, progress)
    _download_and_check(transfer, md5.lower(), attempts, backoff_seconds)
    part.replace(path)
    return path


def _is_web_address(url: str) -> bool:
    try:
        return urllib.parse.urlsplit(url).scheme in ("http", "https")
    except ValueError:  # a bracket that stays open
        return False


def md5_of(path: str | Path) -> str:
    """The MD5 checksum of a file as 32 hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def make_folder(folder: Path) -> None:
    """Make it and those above it; raises AsrError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AsrError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error


def _download_and_check(transfer: _Transfer, md5: str, attempts: int, backoff_seconds: float) -> None:
    """Leave a part with the right checksum; a wrong one is fetched once more from its first byte."""
    found = ""
    for _ in range(CHECKSUM_TRIES):
        _download(transfer, attempts, backoff_seconds)
        found = md5_of(transfer.part)
        if found == md5:
            return
        log.warning("%s: the checksum is %s and not %s; the download is thrown away", transfer.url, found, md5)
        transfer.part.unlink()
    raise AsrError(
        f"{transfer.url}: the checksum is {found} after two downloads, but {md5} is published; "
        "try again later or choose another mirror"
    )


def _download(transfer: _Transfer, attempts: int, backoff_seconds: float) -> None:
    """Leave the whole file in the part, over as many connections as it takes."""
    failures, furthest = 0, _size_of(transfer.part)
    while True:
        try:
            return _receive(transfer)
        except _InterruptedError as interruption:
            received = _size_of(transfer.part)
            # Failures count in a row: 30 GB over a line that breaks every hour must still arrive. Only bytes beyond
            # all earlier ones count as success, or a server that cannot resume would be asked for ever.
            failures = 1 if received > furthest else failures + 1
            furthest = max(furthest, received)
            if failures >= attempts:
                raise _given_up(transfer, attempts, interruption) from interruption
            wait = max(interruption.wait_seconds, backoff_seconds * 2 ** (failures - 1))
            wait = min(wait, MAX_WAIT_SECONDS)
            log.warning("%s: %s; trying again in %.0f s", transfer.url, interruption, wait)
            time.sleep(wait)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _given_up(transfer: _Transfer, attempts: int, interruption: _InterruptedError) -> AsrError:
    return AsrError(
        f"{transfer.url}: {attempts} attempts in a row failed, the last with: {interruption}; "
        f"run the same command again to go on from {_size_of(transfer.part) / 1e9:.2f} GB in {transfer.part}"
    )


def _receive(transfer: _Transfer) -> None:
    """Make one attempt: raises _InterruptedError where another may help, AsrError where it cannot."""
    offset = _size_of(transfer.part)
    try:
        with _open(transfer, offset) as response:
            _store(response, transfer, offset)
    except urllib.error.HTTPError as error:
        error.close()
        # 416: the server has nothing beyond what the part holds, so it is whole or wrong, and the checksum tells.
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or offset == 0:
            raise _refusal(transfer.url, error) from error
    except (http.client.InvalidURL, ValueError) as error:  # ours, or where a server sends us; or an absurd length
        raise AsrError(f"{transfer.url}: cannot be fetched: {error}; check the address") from error
    except (http.client.HTTPException, OSError) as error:
        raise _failure(transfer.url, error) from error


def _open(transfer: _Transfer, offset: int) -> Any:
    # No If-Range: openslr.org redirects to mirrors that need not agree on an ETag, and a part would be thrown away
    # at every change of mirror. A file that changed meanwhile has a wrong checksum and is fetched anew.
    request = urllib.request.Request(transfer.url, headers={"User-Agent": "bigru-asr"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    return urllib.request.urlopen(request, timeout=transfer.timeout_seconds)


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """The exception for a status that is no success."""
    answer = f"the server answers {error.code} ({error.reason})"
    if error.code >= 500 or error.code in PASSING_STATUSES:
        return _InterruptedError(answer, _retry_after_seconds(error.headers.get("Retry-After")))
    return AsrError(f"{url}: {answer}; check the address or choose another mirror")


def _retry_after_seconds(header: str | None) -> float:
    """The seconds that a Retry-After header asks for (a number or a date), 0 where it asks nothing."""
    if not header:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (OverflowError, ValueError):
        return 0.0


def _failure(url: str, error: Exception) -> Exception:
    """The exception for a connection that could not be made or broke."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return AsrError(f"{url}: the server's certificate cannot be trusted ({reason.verify_message}); check the clock")
    return _InterruptedError(str(reason) or type(reason).__name__)


def _store(response: Any, transfer: _Transfer, offset: int) -> None:
    """Write the body of `response` into the part, from byte `offset` on if the server agreed to that."""
    start, total = _extent(response)
    if start not in (0, offset):
        raise _InterruptedError(f"the server sends from byte {start} on and not from byte {offset}")
    total = transfer.size if total is None else total
    if total is not None:
        _require_room(transfer, total - start)
    received = start + _copy(response, transfer, start, total)
    if total is not None and received < total:
        raise _InterruptedError(f"the connection broke after {received} of {total} bytes")


def _extent(response: Any) -> tuple[int, int | None]:
    """The first byte that the body of `response` brings and the size of the whole file (None: unknown)."""
    # Content-Range: bytes 1000-332954389/332954390
    resumed = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if response.status == http.client.PARTIAL_CONTENT and resumed:
        start, total = resumed.groups()
        return int(start), None if total == "*" else int(total)
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _require_room(transfer: _Transfer, download_bytes: int) -> None:
    folder = transfer.part.parent
    needed, free = download_bytes + transfer.room_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise AsrError(
            f"{folder}: {needed / 1e9:.2f} GB needed for {transfer.url} and what it unpacks to, but only "
            f"{free / 1e9:.2f} GB free; make room or choose another folder"
        )


def _copy(response: Any, transfer: _Transfer, start: int, total: int | None) -> int:
    """Write the body of `response` from byte `start` of the part on; return the number of bytes written."""
    written = 0
    with _open_part(transfer.part, "ab" if start else "wb") as file, _bar(transfer, start, total) as bar:
        # read1 gives what has come so far; read would lose a chunk where a line breaks. What is too long need not end.
        while (total is None or start + written <= total) and (chunk := response.read1(CHUNK_BYTES)):
            _write(file, chunk, transfer.part)
            bar.update(len(chunk))
            written += len(chunk)
    return written


def _open_part(part: Path, mode: str) -> Any:
    try:
        # Unbuffered: a full disk then shows at write, never at close, where it would pass for a network failure.
        return open(part, mode, buffering=0)
    except OSError as error:
        raise _unwritable(part, error) from error


def _write(file: Any, chunk: bytes, part: Path) -> None:
    try:
        remaining = memoryview(chunk)
        while remaining:
            remaining = remaining[file.write(remaining) :]
    except OSError as error:
        raise _unwritable(part, error) from error


def _unwritable(part: Path, error: OSError) -> AsrError:
    return AsrError(f"{part}: cannot be written ({error.strerror}); make room or choose another folder")


def _bar(transfer: _Transfer, start: int, total: int | None) -> tqdm[Any]:
    return bytes_bar(transfer.part.name.removesuffix(".part"), total, transfer.progress, initial=start)


def bytes_bar(name: str, total: int | None, progress: bool, initial: int = 0) -> tqdm[Any]:
    """A bar with rate and time left, drawn rarely where stderr is a log file."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        desc=name, total=total, initial=initial, unit="B", unit_scale=True, mininterval=interval, disable=not progress
    )
