"""The web page of a run."""

from ..helpers import write_image


def test_page_shows_all_pictures_and_what_is_missing(inferencer, tmp_path):
    write_image(tmp_path / 'in/a & b.png')
    (tmp_path / 'in/<odd>.jpg').write_text('not an image')
    inferencer(tmp_path / 'in', out_dir=tmp_path / 'out', compare=True)
    page = (tmp_path / 'out/index.html').read_text()
    assert 'src="vis/a%20%26%20b.png.jpg"' in page and 'a &amp; b.png' in page
    assert '&lt;odd&gt;.jpg: not an image' in page and 'dashed' in page
