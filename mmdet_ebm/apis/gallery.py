"""A web page with the pictures of a run. It needs no network."""

import os
from collections.abc import Iterable
from html import escape
from urllib.parse import quote

from .inputs import Source
from .results import printable
from .results_folder import ResultsFolder, write_file

_PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 14px sans-serif; margin: 1em; }}
main {{ display: grid; gap: 1em;
  grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }}
figure {{ margin: 0; }}
img, video {{ width: 100%; }}
</style>
<h1>{title}</h1>
<p>{legend}</p>
{skipped}
<main>
{figures}
</main>
"""


def write_gallery(
    folder: ResultsFolder,
    sources: Iterable[Source],
    skipped: dict[str, str],
    legend: str,
) -> None:
    """Write ``index.html`` with the pictures and videos of a folder.

    Args:
        folder: Holds the pictures.
        sources: Images and videos; those without a picture are left out.
        skipped: Reasons by name.
        legend: What the pictures show.
    """
    figures = []
    for source in sources:
        file = folder.picture_file(source.name, source.is_video)
        if not os.path.exists(file):  # also where the name is too long
            continue
        link = quote(bytes(file.relative_to(folder.path)))
        shown = (
            f'<video controls src="{link}"></video>'
            if source.is_video
            else f'<a href="{link}"><img loading="lazy" src="{link}"></a>'
        )
        figures.append(
            f'<figure>{shown}<figcaption>{escape(source.name)}'
            '</figcaption></figure>'
        )
    reasons = ''.join(
        f'<li>{escape(name)}: {escape(reason)}</li>'
        for name, reason in skipped.items()
    )
    page = _PAGE.format(
        title=f'{len(figures)} images and videos',
        legend=escape(legend),
        skipped=f'<p>Skipped:</p><ul>{reasons}</ul>' if reasons else '',
        figures='\n'.join(figures),
    )
    write_file(folder.path / 'index.html', printable(page))
