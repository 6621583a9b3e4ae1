"""The hash by which a file of weights is known."""

import hashlib
from pathlib import Path


def sha256(path: str | Path) -> str:
    """Hash of a file's bytes, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
