"""Docstrings as Markdown: formulas become MathML, roles become code.

Browsers draw MathML themselves, so that the site needs no script for it and
can be read offline.
"""

import re
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

_BLOCK = re.compile(
    r'^(?P<indent> *)\.\. math::(?P<first>[^\n]*)\n'
    r'(?P<rest>(?:(?P=indent) +\S[^\n]*(?:\n|\Z))*)',
    re.M,
)


class Docstrings(Extension):
    """Rewrites every docstring that is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """A docstring without what reStructuredText alone understands."""
    text = _BLOCK.sub(_block, text + '\n')
    text = re.sub(r':math:`([^`]+)`', _inline, text)
    # :class:`~mmdet_ebm.core.NCE` and the like
    text = re.sub(r':[a-z]+:`~?([^`]+)`', r'`\1`', text)
    # Marks of a block of code, which is indented: "for example::", or "::".
    text = re.sub(r'(?m)(?<=\S)::$', ':', text)
    text = re.sub(r'(?m)^ *::$', '', text)
    # [K][4] is no link; in code it is none anyway.
    return re.sub(r'(`+[^`]*`+)|\]\[', lambda match: match[1] or r']\[', text)


def _block(match: re.Match) -> str:
    latex = ' '.join((match['first'] + ' ' + match['rest']).split())
    formula = convert(latex, display='block')
    return f'{match["indent"]}<p class="math">{formula}</p>\n'


def _inline(match: re.Match) -> str:
    return f'<span>{convert(" ".join(match[1].split()))}</span>'
