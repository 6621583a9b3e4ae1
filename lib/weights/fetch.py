"""Files from the network: whole, checked and under their final name, or not there at all."""

import http.client
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from lib.errors import WeightsError
from lib.weights.digest import sha256

TIMEOUT_S = 30.0
CHUNK = 1 << 18
TRIES = 5  # of a connection that is cut, as long as each brings something
_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
Progress = Callable[[int, int | None], None]


class _Cut(Exception):
    """The connection ended before the file did."""


def fetch(
    url: str, path: str | Path, expected: str = "", page: str = "", progress: Progress | None = None, timeout: float = TIMEOUT_S
) -> str:
    """Downloads `url` to `path`, through `path`.part, which a later call goes on with.

    A part is gone on with where the server says that the file is still the same (its ETag or date is kept in `path`.part.tag), or
    where `expected` will tell; else the download starts anew. A file that is there already is only checked.

    Args:
        expected: SHA-256 of the file, or its first digits; "" = not known.
        page: where a person finds the file, for messages.
        progress: called with the bytes on disk and their total (None = not told by the server).
        timeout: seconds without an answer.

    Returns:
        SHA-256 of the file.

    Raises:
        WeightsError: not reached, refused, cut off, a web page instead of a file, another hash, or `path` holds another file;
            there is nothing new at `path` then.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"{path}: is a directory, expected the place of a file; choose another --out")
    if path.exists():
        return _checked(path, expected, "it was left as it is; move it away and run this again")
    if not url.lower().startswith(("http://", "https://")):
        raise WeightsError(f"{url}: is no link that can be followed; expected http:// or https://")
    part, tag = (path.with_name(f"{path.name}.{end}") for end in ("part", "part.tag"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not tag.is_file() and not expected:
            part.unlink(missing_ok=True)
        for attempt in range(1, TRIES + 1):
            before = _size(part)
            try:
                _get(url, part, tag, page, path, progress, timeout)
                break
            except _Cut as cut:
                if _size(part) <= before or attempt == TRIES:
                    raise WeightsError(f"{url}: {cut}; {_size(part):,} bytes are kept in {part}; run this again") from cut
        try:
            digest = _checked(part, expected, f"what {url} sent was removed; try again, or {by_hand(page or url, path)}")
        except WeightsError:
            part.unlink()
            tag.unlink(missing_ok=True)
            raise
        _rename(part, path)
        tag.unlink(missing_ok=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror or error}); free some space or choose another --out") from error
    return digest


def by_hand(page: str, path: str | Path) -> str:
    """What a person has to do where a program cannot."""
    return f"open {page} in a browser, follow its link to the file, and save it as {path}"


def _checked(path: Path, expected: str, otherwise: str) -> str:
    try:
        found = sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not found.startswith(expected.lower()):
        raise WeightsError(f"{path}: has SHA-256 {found}, expected {expected}{'...' if len(expected) < 64 else ''}; {otherwise}")
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _rename(part: Path, path: Path) -> None:
    try:
        os.link(part, path)  # unlike a rename, this never replaces a file that appeared meanwhile
    except OSError as error:
        if path.exists():
            raise WeightsError(f"{path}: appeared while it was downloaded; the download is kept as {part}") from error
        part.rename(path)  # a file system without links
    else:
        part.unlink()


def _get(url: str, part: Path, tag: Path, page: str, path: Path, progress: Progress | None, timeout: float) -> None:
    """One request: what is missing in `part`, or all of it where the server does not send pieces."""
    have = _size(part)
    headers = {"User-Agent": "parallax-download", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag.is_file():  # else the whole file comes
            headers["If-Range"] = tag.read_text()
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not have:
            raise WeightsError(f"{url}: {_refused(error, page, path)}") from error
        if (error.headers.get("Content-Range") or "").rpartition("/")[2] == str(have):
            return  # all of it was there
        part.unlink()  # longer than the file: of another one
        return _get(url, part, tag, page, path, progress, timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WeightsError(f"{url}: {_unreachable(error, timeout)}, or {by_hand(page or url, path)}") from error
    with answer:
        resumed = answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        chunk = _read(answer)
        if "html" in (answer.headers.get("Content-Type") or "") or (not resumed and chunk.lstrip().lower().startswith(_PAGE)):
            raise WeightsError(
                f"{url}: sent a web page instead of the file, as Google Drive does for large files (it asks for a confirmation); "
                f"{by_hand(page or url, path)}"
            )
        if not chunk and not start and not total:
            raise WeightsError(f"{url}: the server sent an empty file; {by_hand(page or url, path)}")
        if not resumed:
            part.unlink(missing_ok=True)
            _remember(answer.headers, tag)
        done = start
        with part.open("ab") as file:
            while chunk:
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
                chunk = _read(answer)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise _Cut(f"the connection was cut after {done:,} of {total:,} bytes")


def _remember(headers: http.client.HTTPMessage, tag: Path) -> None:
    """Keeps what tells one state of a file from another: a strong ETag, else the date."""
    etag = headers.get("ETag") or ""
    mark = etag if etag.startswith('"') else headers.get("Last-Modified") or ""
    tag.unlink(missing_ok=True)
    if mark:
        tag.write_text(mark.strip())


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"the connection was cut ({type(error).__name__})") from error


def _refused(error: urllib.error.HTTPError, page: str, path: Path) -> str:
    if error.code in (404, 410):
        other = by_hand(page, path) if page else "look for another link and give it as --url"
        return f"no such file there any more ({error.code}); {other}"
    if error.code in (401, 403):
        return f"the server wants a login or a browser ({error.code}); {by_hand(page or error.url, path)}"
    return f"the server answered {error.code} {error.reason}; try again later, or {by_hand(page or error.url, path)}"


def _unreachable(error: Exception, timeout: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"no answer within {timeout:.0f} s; try again later"
    if isinstance(reason, socket.gaierror):
        return "the name of the server is not known; check the network and the link"
    return f"cannot be reached ({reason}); check the network and the link"
