"""Files that are complete or not there, whatever interrupts the writing."""

import json
from pathlib import Path

from boltons.fileutils import atomic_save, mkdir_p


def write_text(path: str | Path, text: str) -> None:
    """Write a file; its folder is made. An old one stays until it is done."""
    path = Path(path)
    mkdir_p(path.parent)
    # overwrite_part: what an interrupted writer has left.
    with atomic_save(str(path), text_mode=True, overwrite_part=True) as file:
        file.write(text)


def write_json(path: str | Path, value: object) -> None:
    """:func:`write_text` of a value, as JSON."""
    write_text(path, json.dumps(value, indent=1))
