"""Checksums of the files of a folder, which detect damage before a library reads the files."""

import hashlib
import json
from pathlib import Path

FILE = "files.json"


def record(folder: Path) -> None:
    """Writes the SHA-256 of every file below a folder to its `files.json`."""
    (folder / FILE).write_text(json.dumps({name: _digest(file) for name, file in _files(folder).items()}))


def find_damage(folder: Path) -> str | None:
    """Describes the first file of a folder that is missing or has changed since `record`.

    Returns:
      None if all files are as recorded, or if there is no record: the process was killed before it was written.
      Folders of older versions have the sizes of files in place of checksums.
    """
    try:
        recorded = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return None
    files = _files(folder)
    for name, expected in recorded.items():
        if name not in files:
            return f"{name} is missing"
        size = files[name].stat().st_size
        if isinstance(expected, int) and size != expected:
            return f"{name} has {size} bytes, expected {expected}"
        if isinstance(expected, str) and _digest(files[name]) != expected:
            return f"{name} is not as it was written"
    return None


def _files(folder: Path) -> dict[str, Path]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / FILE)
    return {str(file.relative_to(folder)): file for file in files}


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
