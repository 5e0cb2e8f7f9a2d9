"""Run the tools that come with the package, from any folder.

    python -m mmdet_ebm TOOL ARGUMENTS    as python tools/TOOL.py ARGUMENTS
    python -m mmdet_ebm TOOL --help       what the arguments of a tool are
    python -m mmdet_ebm configs [PATTERN] full paths of the shipped configs

Where a tool is given a config that is no file here, such as
faster-rcnn_r50_fpn_nce-plus_coco.py, it gets the shipped config of that name.
The command mmdet_ebm is the same as python -m mmdet_ebm.
"""

import runpy
import sys
from pathlib import Path

from .shipped import find_config, shipped_configs, shipped_tools, summary


def main() -> int:
    """Do what the command line says; gives the exit status."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print(_help())
        return 0
    if name == 'configs':
        return _list_configs(arguments)
    tools = shipped_tools()
    if name not in tools:
        return _fail(
            f'expected configs or one of {", ".join(tools)}; got {name!r}', 2
        )
    _run(tools[name], arguments)
    return 0


def _help() -> str:
    tools = shipped_tools()
    width = max(map(len, tools))
    lines = [f'  {name:{width}}  {summary(tools[name])}' for name in tools]
    return '\n'.join([__doc__, 'Tools:', *lines])


def _list_configs(arguments: list[str]) -> int:
    if len(arguments) > 1:
        return _fail(f'expected one PATTERN at most, got {arguments}', 2)
    paths = shipped_configs(*arguments)
    if not paths:
        return _fail(f'no shipped config matches {arguments[0]!r}', 1)
    print(*paths, sep='\n')
    return 0


def _run(tool: Path, arguments: list[str]) -> None:
    """As ``python TOOL ARGUMENTS`` does, but in this process."""
    sys.argv = [str(tool), *map(_resolved, arguments)]
    sys.path.insert(0, str(tool.parent))
    runpy.run_path(str(tool), run_name='__main__')


def _resolved(argument: str) -> str:
    """Path of the shipped config, where the argument names one."""
    if not argument.endswith('.py') or Path(argument).exists():
        return argument
    try:
        return str(find_config(argument))
    except FileNotFoundError:
        return argument  # the tool will say what it needs


def _fail(message: str, status: int) -> int:
    print(f'mmdet_ebm: error: {message}', file=sys.stderr)
    return status


if __name__ == '__main__':
    sys.exit(main())
