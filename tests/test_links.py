"""Markdown files: their links, and what they say of versions."""

import re

import pytest

from mmdet_ebm.environment import SUPPORTED_VERSIONS
from mmdet_ebm.version import __version__

from .small_models import ROOT

FOLDERS = ('docs', 'studies', 'benchmarks', 'configs', 'tools')
FILES = sorted(
    [
        *ROOT.glob('*.md'),
        *(path for name in FOLDERS for path in (ROOT / name).rglob('*.md')),
    ]
)
CODE = re.compile(r'^ *```.*?^ *```$|`[^`\n]+`', re.M | re.S)
LINK = re.compile(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"')


def anchors(text):
    """What GitHub calls the headings of a text, which the site does, too."""
    text = re.sub(r'^ *```.*?^ *```$', '', text, flags=re.M | re.S)
    found = []
    for heading in re.findall(r'^#+ +(.+?) *$', text, re.M):
        heading = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading)
        slug = re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        found.append(f'{slug}-{found.count(slug)}' if slug in found else slug)
    return found


def broken_links(path):
    """Links of a file to files or headings that are not there."""
    text = CODE.sub('', path.read_text())
    broken = []
    for link in (a or b for a, b in LINK.findall(text)):
        if re.match(r'[a-z]+:', link):
            continue  # to elsewhere
        name, _, anchor = link.partition('#')
        target = (path.parent / name).resolve() if name else path
        if (
            not target.exists()
            or not target.is_relative_to(ROOT)
            or (anchor and anchor not in anchors(target.read_text()))
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize(
    'path', FILES, ids=[path.relative_to(ROOT).as_posix() for path in FILES]
)
def test_links_lead_somewhere(path):
    assert broken_links(path) == []


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'docs').glob('*.md')), ids=lambda path: path.name
)
def test_no_section_of_a_page_stands_there_twice(path):
    text = re.sub(r'^ *```.*?^ *```$', '', path.read_text(), flags=re.M | re.S)
    headings = re.findall(r'^#+ +(.+?) *$', text, re.M)
    assert len(set(headings)) == len(headings)


def test_broken_links_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), 'ROOT', tmp_path)
    (tmp_path / 'b.md').write_text(
        '# Any `Detector`, *now*\n# Twice\n# Twice\n```\n# no heading\n```\n'
    )
    page = tmp_path / 'a.md'
    page.write_text(
        '## Here\n[1](b.md) [2](b.md#any-detector-now) [3](#here) '
        '[4](https://example.org/x.md) [5](b.md#twice-1) '
        '`[6](none.md)`\n```\n[7](none.md)\n```\n'
        '[8](none.md) [9](b.md#no-heading) [10](#there) ![11](../x.png) '
        '<img src="none.png">'
    )
    assert broken_links(page) == [
        'none.md',
        'b.md#no-heading',
        '#there',
        '../x.png',
        'none.png',
    ]


def test_every_page_is_in_the_sites_navigation():
    navigation = (ROOT / 'mkdocs.yml').read_text().partition('\nnav:')[2]
    pages = re.findall(r': (\S+\.md)$', navigation, re.M)
    written = {path.name for path in (ROOT / 'docs').glob('*.md')}
    assert written and written <= set(pages)


def bounds(low, high):
    return f'>={low}' + (f',<{high}' if high else '')


def test_the_table_of_versions_is_what_importing_checks():
    page = (ROOT / 'docs/install.md').read_text()
    rows = dict(re.findall(r'^\| (\w+) \| (>=\S+) \|', page, re.M))
    python = re.search(
        r'^python_requires = (\S+)$', (ROOT / 'setup.cfg').read_text(), re.M
    )
    assert rows == {
        'python': python[1],
        **{
            name: bounds(low, high)
            for name, (low, high, _) in SUPPORTED_VERSIONS.items()
        },
    }


@pytest.mark.parametrize('name', SUPPORTED_VERSIONS)
def test_requirements_have_the_bounds_that_importing_checks(name):
    low, high, _ = SUPPORTED_VERSIONS[name]
    if name == 'mmcv':
        high = '2.2.0'  # the mmdet of that extra refuses newer ones
    requirements = (ROOT / 'setup.cfg').read_text().split()
    assert name + bounds(low, high) in requirements


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / 'CITATION.cff').read_text()
    assert re.search(r'^version: (\S+)$', citation, re.M)[1] == __version__
    changelog = (ROOT / 'CHANGELOG.md').read_text()
    released = re.findall(r'^## (\d\S*)', changelog, re.M)
    assert released[0] == __version__
