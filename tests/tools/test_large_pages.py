"""torch is asked for large pages before it can have looked."""

import ast

import pytest

from ..small_models import ROOT

# Nothing of these imports torch.
STANDARD = {
    'argparse',
    'collections.abc',
    'dataclasses',
    'json',
    'os',
    'pathlib',
    'sys',
}


@pytest.mark.parametrize(
    'name',
    [
        'tools/train.py',
        'tools/test.py',
        'tools/infer.py',
        'benchmarks/__main__.py',
    ],
)
def test_large_pages_are_asked_for_before_torch_is_imported(name):
    imported = set()
    for statement in ast.parse((ROOT / name).read_text()).body:
        match statement:
            case ast.Import():
                imported.update(alias.name for alias in statement.names)
            case ast.ImportFrom():
                imported.add(statement.module)
            case ast.Expr(value=ast.Call()):
                break
    assert ast.unparse(statement) == (
        "os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')"
    )
    assert imported <= STANDARD
