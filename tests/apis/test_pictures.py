"""Pictures and videos that a run writes."""

import cv2
import pytest

from mmdet_ebm.apis.results_folder import ResultsFolder

from ..helpers import assert_same_detections, write_image, write_video


def test_pictures_follow_their_settings_without_computing(
    inferencer, folder, tmp_path, forwards
):
    def pictures(**options):
        inferencer(folder, recursive=True, out_dir=tmp_path / 'out', **options)
        return {
            path: path.read_bytes()
            for path in (tmp_path / 'out/vis').rglob('*.jpg')
        }

    assert pictures(no_save_vis=True) == {}
    forwards.clear()
    plain = pictures(pred_score_thr=0.0)
    assert len(plain) == 4
    compared = pictures(pred_score_thr=0.0, compare=True)
    assert all(plain[name] != compared[name] for name in plain)
    assert '(4 by an earlier run, 4 of them drawn again)' in str(
        inferencer.summary
    )
    assert pictures(pred_score_thr=0.0) == plain
    (tmp_path / 'out/vis/x.png.jpg').unlink()
    assert pictures(pred_score_thr=0.0) == plain
    assert not forwards


@pytest.mark.parametrize('video', [False, True])
def test_a_run_that_is_killed_while_it_draws_leaves_no_other_picture(
    inferencer, tmp_path, monkeypatch, video
):
    source, picture = (
        (write_video(tmp_path / 'x.mp4', 2), 'x.mp4.mp4')
        if video
        else (write_image(tmp_path / 'x.png'), 'x.png.jpg')
    )

    def run(**options):
        inferencer(
            source, pred_score_thr=0.0, out_dir=tmp_path / 'out', **options
        )
        return (tmp_path / 'out/vis' / picture).read_bytes()

    plain = run()
    finish = ResultsFolder.finish

    def finish_or_die(self, name, *arguments):
        if name == source.name:
            raise KeyboardInterrupt
        finish(self, name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ResultsFolder, 'finish', finish_or_die)
        with pytest.raises(KeyboardInterrupt):
            run(compare=True)
    assert (tmp_path / 'out/vis' / picture).read_bytes() != plain
    assert run() == plain


def test_video_becomes_a_video_and_continues(inferencer, tmp_path, forwards):
    clip = write_video(tmp_path / 'clip.mp4', 5)

    def run(**options):
        forwards.clear()
        return inferencer(
            clip, batch_size=2, out_dir=tmp_path / 'out', **options
        )

    result = run()
    assert forwards == [2, 2, 1]
    assert result['names'] == [f'clip.mp4/{i:06d}' for i in range(5)]
    written = cv2.VideoCapture(str(tmp_path / 'out/vis/clip.mp4.mp4'))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert written.get(cv2.CAP_PROP_FPS) == 10
    assert run()['predictions'] == result['predictions'] and not forwards
    # Cut off: frames are kept, the video is written anew.
    (tmp_path / 'out/preds/clip.mp4/000003.json').unlink()
    (tmp_path / 'out/vis/clip.mp4.mp4').unlink()
    for one, other in zip(run()['predictions'], result['predictions']):
        assert_same_detections(one, other)
    assert forwards == [1]
    assert (
        cv2.VideoCapture(str(tmp_path / 'out/vis/clip.mp4.mp4')).get(
            cv2.CAP_PROP_FRAME_COUNT
        )
        == 5
    )


def test_each_video_gets_its_own_frames(inferencer, tmp_path):
    for name, count in (('a.mp4', 3), ('b.mp4', 2)):
        (tmp_path / 'in').mkdir(exist_ok=True)
        write_video(tmp_path / 'in' / name, count)
    write_image(tmp_path / 'in/between.png')
    inferencer(tmp_path / 'in', batch_size=4, out_dir=tmp_path / 'out')
    for name, count in (('a.mp4', 3), ('b.mp4', 2)):
        video = cv2.VideoCapture(str(tmp_path / f'out/vis/{name}.mp4'))
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == count
    assert len(list((tmp_path / 'out/vis').iterdir())) == 3
