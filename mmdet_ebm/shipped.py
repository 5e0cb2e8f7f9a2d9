"""The configs and tools that come with the package, checkout or wheel.

They lie in the folder ``.mim`` of the package, where OpenMMLab's projects keep
theirs: links to the checkout's folders there, copies in a wheel. Nothing here
needs torch or mmdet.
"""

import ast
from fnmatch import fnmatchcase
from pathlib import Path

_SHIPPED = Path(__file__).parent / '.mim'


def shipped_configs(pattern: str = '') -> list[Path]:
    """Paths of the shipped configs, without the parts they are made of.

    Args:
        pattern: Only configs whose path below ``configs`` contains it; may
            hold the wildcards ``*``, ``?`` and ``[...]``.
    """
    folder = _folder('configs')
    return sorted(
        path
        for path in folder.rglob('*.py')
        if '_base_' not in path.parts
        and fnmatchcase(path.relative_to(folder).as_posix(), f'*{pattern}*')
    )


def find_config(name: str) -> Path:
    """The shipped config of a name.

    Args:
        name: File name of the config, with or without the folders above it:
            ``a.py``, ``bccd/a.py`` and ``configs/bccd/a.py`` are the same.

    Raises:
        FileNotFoundError: If no shipped config has the name, or several have.
    """
    wanted = Path(name).parts
    found = [
        path
        for path in shipped_configs()
        if path.parts[-len(wanted) :] == wanted
    ]
    if len(found) != 1:
        raise FileNotFoundError(
            f'expected the name of one shipped config, got {name!r}, which '
            f'fits {len(found)} of them; python -m mmdet_ebm configs lists all'
        )
    return found[0]


def shipped_tools() -> dict[str, Path]:
    """Names of the shipped tools, in order, and the files that they are."""
    tools = {path.stem: path for path in _folder('tools').rglob('*.py')}
    return {name: tools[name] for name in sorted(tools) if name[0] != '_'}


def summary(tool: Path) -> str:
    """First line of a tool's docstring."""
    docstring = ast.get_docstring(ast.parse(tool.read_text('utf-8')))
    return (docstring or '').partition('\n')[0]


def _folder(name: str) -> Path:
    folder = _SHIPPED / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f'expected a folder {folder}, or a link to one; there is none. '
            'A checkout on Windows has it only with '
            'git config core.symlinks true.'
        )
    return folder
