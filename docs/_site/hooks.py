"""What the site has beside the pages in docs/: see mkdocs.yml.

The Markdown files of the project's root become pages, README.md the first one,
and each package gets a page of its docstrings. Links are rewritten for that.
"""

import ast
import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('core', 'ops', 'models', 'apis', 'evaluation', 'tracking')
_WITH_HEADING = """\
    options:
      show_root_heading: true
      show_root_toc_entry: true
      show_root_full_path: false
"""
_WITHOUT_MEMBERS = '    options:\n      members: false\n'
# Code is left alone; else [text](target), an image or a link.
_LINK = re.compile(
    r'(?P<code>^```.*?^```|`[^`\n]+`)'
    r'|(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)',
    re.M | re.S,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted(ROOT.glob('*.md')):
        files.append(
            File.generated(config, _page_of(path.name), abs_src_path=str(path))
        )
    files.append(
        File.generated(
            config,
            'LICENSE.md',
            content=f'```text\n{(ROOT / "LICENSE").read_text()}```\n',
        )
    )
    for package in PACKAGES:
        files.append(
            File.generated(
                config, f'api/{package}.md', content=_reference(package)
            )
        )
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Links between the project's files, as links between pages."""
    uri = page.file.src_uri
    is_root = (ROOT / uri).exists() or uri == 'index.md'
    folder = '' if is_root else posixpath.dirname(f'docs/{uri}')

    def rewrite(link: re.Match) -> str:
        if link['code'] or re.match(r'[a-z]+:|#', link['target']):
            return link[0]
        path, hash_, anchor = link['target'].partition('#')
        target = _page_of(posixpath.normpath(posixpath.join(folder, path)))
        if files.get_file_from_path(target) is None:
            if not (ROOT / target).exists():
                return link[0]  # leads nowhere, which mkdocs will say
            return link['text']  # a file of the checkout, without a page
        start = posixpath.dirname(uri) or '.'
        target = os.path.relpath(target, start)
        return f'{link["image"]}[{link["text"]}]({target}{hash_}{anchor})'

    return _LINK.sub(rewrite, markdown)


def _reference(package: str) -> str:
    """Page of the public names; then formulas and sources of its modules."""
    folder = ROOT / 'mmdet_ebm' / package
    parts = [f'# mmdet_ebm.{package}', f'::: mmdet_ebm.{package}']
    exported = _exported(folder / '__init__.py')
    modules = []
    for path in sorted(folder.rglob('*.py')):
        tree = ast.parse(path.read_text('utf-8'))
        name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        if path.parent == folder and path.stem in exported:
            # The name is the function's; mkdocstrings finds its module.
            parts.append(f'::: {name}.{path.stem}\n{_WITH_HEADING}')
        docstring = ast.get_docstring(tree) or ''
        if path.name != '__init__.py' and '\n' in docstring:
            modules.append(f'### {name}\n\n::: {name}\n{_WITHOUT_MEMBERS}')
    if modules:
        parts += ['## Modules', *modules]
    return '\n\n'.join(parts) + '\n'


def _exported(path: Path) -> list[str]:
    """``__all__`` of a module, without importing it."""
    for node in ast.parse(path.read_text('utf-8')).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '__all__':
            return ast.literal_eval(node.value)
    return []


def _page_of(path: str) -> str:
    """Page of a file of the project."""
    return {'README.md': 'index.md', 'LICENSE': 'LICENSE.md'}.get(
        path, path.removeprefix('docs/')
    )
