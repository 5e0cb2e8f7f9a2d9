"""Detect and refine on images, folders and videos."""

import errno
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmcv.transforms import Compose
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.visualization import Visualizer
from tqdm import tqdm

from ..version import __version__
from .batching import EndOfVideo, PendingImage, group_into_batches
from .checks import listed, require_energy_model
from .gallery import write_gallery
from .inputs import InputsType, count_frames, expand_inputs
from .model import build_model
from .pictures import PictureWriter
from .reading import InputReader
from .results import (
    ImageResult,
    Summary,
    is_prediction,
    to_instances,
    to_prediction,
)
from .results_folder import ResultsFolder

# Shows images per second even if one takes seconds.
_PROGRESS = (
    '{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, '
    '{rate_noinv_fmt}{postfix}]'
)
# A threshold that no score reaches.
_NEVER = 2.0
# Of results that this folder or disk has no place for, because of their name;
# other results it may have.
_UNFIT_NAME = (
    errno.EEXIST,
    errno.EILSEQ,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
)


class EnergyDetInferencer:
    """Inference with the conventions of mmdet's ``DetInferencer``.

    ::

        inferencer = EnergyDetInferencer('energy.py', 'epoch_12.pth')
        result = inferencer('folder/', batch_size=4, out_dir='outputs')
        result['predictions'][0]['bboxes']

    Args:
        model: Config file or config; None takes the one that mmengine stored
            in the checkpoint, if ``run_stored_config`` is True.
        weights: Checkpoint file.
        device: For example 'cuda:0'; None takes the first GPU, or the CPU if
            there is none.
        cfg_options: Changes to the config.
        show_progress: Whether to show a progress bar.
        run_stored_config: Run the text in the checkpoint as a config, which
            is Python code. Only for checkpoints whose maker you trust.

    Attributes:
        classes: Names of the labels.
        summary: Counts of the latest call.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If config and checkpoint do not go together.
    """

    def __init__(
        self,
        model: str | Path | Config | None = None,
        weights: str | Path | None = None,
        device: str | None = None,
        cfg_options: dict | None = None,
        show_progress: bool = True,
        run_stored_config: bool = False,
    ) -> None:
        if weights is None:
            raise ValueError(
                'weights must name a checkpoint: random ones '
                'would detect nothing'
            )
        self.model = build_model(
            model,
            weights,
            device,
            cfg_options,
            run_stored_config,
            'if asked',
        )
        require_energy_model(self.model)
        self.classes = tuple(self.model.dataset_meta['classes'])
        self.show_progress = show_progress
        self.summary = Summary()
        pipeline = [
            step
            for step in get_test_pipeline_cfg(self.model.cfg)
            if 'LoadAnnotations' not in step['type']
        ]
        self._settings = dict(
            version=__version__,
            checkpoint=_digest(weights),
            classes=self.classes,
            pipeline=pipeline,
            model={
                key: value
                for key, value in self.model.cfg.model.items()
                if key != 'train_cfg'
            },
        )
        if pipeline[0]['type'].split('.')[-1] != 'LoadImageFromFile':
            raise ValueError(
                'the test pipeline must begin with '
                f'LoadImageFromFile, not {pipeline[0]["type"]}'
            )
        # An image is read and checked once, for the model and the picture.
        loader = dict(
            type='mmdet.LoadImageFromNDArray',
            to_float32=pipeline[0].get('to_float32', False),
        )
        self._pipeline = Compose([loader, *pipeline[1:]])
        self._num_arrays = 0

    def __call__(
        self,
        inputs: InputsType,
        batch_size: int = 1,
        return_vis: bool = False,
        show: bool = False,
        wait_time: float = 0.0,
        no_save_vis: bool = False,
        draw_pred: bool = True,
        pred_score_thr: float = 0.3,
        return_datasamples: bool = False,
        print_result: bool = False,
        no_save_pred: bool = False,
        out_dir: str | Path = '',
        texts: None = None,
        stuff_texts: None = None,
        custom_entities: bool = False,
        tokens_positive: None = None,
        *,
        recursive: bool = False,
        compare: bool = False,
        overwrite: bool = False,
    ) -> dict:
        """Predict, and return all results; :meth:`stream` needs less memory.

        Args:
            inputs: See ``expand_inputs``.
            batch_size: As in :meth:`stream`, like the arguments below that
                are not listed.
            return_vis: Whether to return pictures.
            show: Whether to show each picture in a window.
            wait_time: Seconds that it is shown; 0 waits for a key.
            draw_pred: Whether pictures have boxes.
            return_datasamples: Return mmdet's ``DetDataSample`` rather than
                dicts; those of an earlier run have no meta information.
            print_result: Whether to print the predictions.
            texts: Of models that are told what to look for; None.
            stuff_texts: The same.
            custom_entities: The same; False.
            tokens_positive: The same; None.

        Returns:
            ``predictions`` and ``visualization`` (empty without
            ``return_vis``) with an entry for each image or frame in order,
            None for one that was skipped; ``names`` of the entries;
            ``skipped``, reasons by name.

        Raises:
            ValueError: If one of the last four arguments is given, or as of
                :meth:`stream`.
        """
        prompts = dict(
            texts=texts,
            stuff_texts=stuff_texts,
            custom_entities=custom_entities or None,
            tokens_positive=tokens_positive,
        )
        given = [name for name, value in prompts.items() if value is not None]
        if given:
            raise ValueError(
                f'{listed(given)}: only for models that are told what to look '
                'for, such as GLIP; an energy model has the classes of its '
                'detector'
            )
        results = []
        for result in self.stream(
            inputs,
            batch_size=batch_size,
            keep_pictures=return_vis or show,
            no_save_vis=no_save_vis,
            pred_score_thr=pred_score_thr if draw_pred else _NEVER,
            no_save_pred=no_save_pred,
            out_dir=out_dir,
            recursive=recursive,
            compare=compare,
            overwrite=overwrite,
        ):
            if result.kept and return_datasamples:
                result.sample = DetDataSample(
                    pred_instances=to_instances(result.prediction)
                )
            elif not return_datasamples:
                result.sample = None  # do not hold the memory
            if show and result.picture is not None:
                Visualizer().show(result.picture, result.name, wait_time)
                if not return_vis:
                    result.picture = None
            results.append(result)
        results.sort(key=lambda result: result.index)
        predictions = [
            r.sample if return_datasamples else r.prediction for r in results
        ]
        if print_result:
            print(predictions)
        return dict(
            predictions=predictions,
            visualization=[r.picture for r in results] if return_vis else [],
            names=[r.name for r in results],
            skipped=self.summary.skipped,
        )

    def stream(
        self,
        inputs: InputsType,
        batch_size: int = 1,
        keep_pictures: bool = False,
        no_save_vis: bool = False,
        pred_score_thr: float = 0.3,
        no_save_pred: bool = False,
        out_dir: str | Path = '',
        recursive: bool = False,
        compare: bool = False,
        overwrite: bool = False,
    ) -> Iterator[ImageResult]:
        """Yield each result as soon as it is ready.

        Images of different sizes may overtake each other; ``index`` of a
        result is its place in the order of the inputs.

        Args:
            inputs: See ``expand_inputs``.
            batch_size: Most images in a forward pass. Images are put together
                only if padding does not change the result.
            keep_pictures: Whether results carry their pictures.
            no_save_vis: Whether to write no pictures to ``out_dir``.
            pred_score_thr: Class score from which boxes are drawn;
                predictions hold all.
            no_save_pred: Whether to write no predictions to ``out_dir``; the
                next run cannot continue then.
            out_dir: Folder to write to, see ``ResultsFolder``; '' writes
                nothing.
            recursive: Look into subfolders of folders.
            compare: Draw the boxes before the refinement as well.
            overwrite: Remove the results in ``out_dir`` first.

        Raises:
            FileNotFoundError: If an input does not exist.
            ValueError: If ``out_dir`` holds results of another model or of
                other files of the same name.
        """
        if batch_size < 1:
            raise ValueError(f'batch_size must be positive, got {batch_size}')
        start = time.perf_counter()
        self.summary = Summary()
        sources = expand_inputs(inputs, recursive, self._num_arrays, out_dir)
        self._num_arrays += sum(source.path is None for source in sources)
        folder = None
        if out_dir:
            folder = ResultsFolder(out_dir, self._settings, overwrite)
            folder.require_own_names(sources)
        pictures = PictureWriter(
            None if no_save_vis else folder,
            self.classes,
            pred_score_thr,
            compare,
            always=keep_pictures,
        )
        images = InputReader(self._pipeline, folder, pictures).read(sources)
        divisor = getattr(self.model.data_preprocessor, 'pad_size_divisor', 1)
        done = {}
        with tqdm(
            total=sum(map(count_frames, sources)),
            unit=' images',
            bar_format=_PROGRESS,
            # None: if it is no terminal.
            disable=None if self.show_progress else True,
        ) as progress:
            for batch in group_into_batches(images, batch_size, divisor):
                if isinstance(batch, EndOfVideo):
                    _finish_video(batch, folder, pictures)
                    continue
                self._predict([pending for pending in batch if pending.data])
                for pending in batch:
                    result = _finish_image(
                        pending, folder, pictures, not no_save_pred
                    )
                    self.summary.add(result)
                    if result.error is None:
                        done[result.index] = result.name
                    progress.update()
                    progress.set_postfix(
                        skipped=len(self.summary.skipped), refresh=False
                    )
                    yield result
        if folder is not None and not no_save_pred:
            folder.write_coco(
                (done[index] for index in sorted(done)), self.classes
            )
        if pictures.folder is not None:
            write_gallery(
                folder, sources, self.summary.skipped, pictures.legend
            )
        self.summary.seconds = time.perf_counter() - start

    @torch.no_grad()
    def _predict(self, batch: Sequence[PendingImage]) -> None:
        """Run the model; images that do not fit together run one by one."""
        if not batch:
            return
        try:
            samples = self.model.test_step(
                dict(
                    inputs=[pending.data['inputs'] for pending in batch],
                    data_samples=[
                        pending.data['data_samples'] for pending in batch
                    ],
                )
            )
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            samples = None
        # The error holds memory, so what follows is outside of its handler.
        if samples is not None:
            for pending, sample in zip(batch, samples):
                sample.set_metainfo(dict(img_path=pending.source.path))
                pending.result.sample = sample
        elif len(batch) > 1:
            for pending in batch:
                self._predict([pending])
        else:
            height, width = batch[0].data['inputs'].shape[-2:]
            batch[0].result.error = (
                f'out of memory at {width} x {height} network-input pixels; '
                'make the Resize of the test pipeline smaller'
            )


def _finish_image(
    pending: PendingImage,
    folder: ResultsFolder | None,
    pictures: PictureWriter,
    save_prediction: bool,
) -> ImageResult:
    """Save and draw the result of an image or frame, and note it as done."""
    result = pending.result
    if result.error is not None:
        return result
    if not result.kept:
        result.prediction = to_prediction(result.sample.pred_instances)
        if not is_prediction(result.prediction):
            result.error = 'the model gave boxes or scores that are not finite'
    if result.error is None:
        try:
            _write(pending, folder, pictures, save_prediction)
        except OSError as error:
            if error.errno not in _UNFIT_NAME:
                raise
            result.error = f'its results cannot be written: {error.strerror}'
    if result.error is not None:
        result.prediction = result.sample = None
    return result


def _write(
    pending: PendingImage,
    folder: ResultsFolder | None,
    pictures: PictureWriter,
    save_prediction: bool,
) -> None:
    result, source = pending.result, pending.source
    if folder is not None and save_prediction and not result.kept:
        folder.save(result.name, result.prediction)
    details = folder.details(result.name) if result.kept else {}
    if pending.image is not None:
        height, width = pending.image.shape[:2]
        details['size'] = [width, height]
        if pictures.wanted:
            picture = pictures.draw(source, pending.image, result.prediction)
            result.picture = picture if pictures.always else None
            result.redrawn = result.kept
            if not source.is_video:
                details['picture'] = pictures.settings
    if folder is not None:
        folder.finish(result.name, source, pending.signature, details)


def _finish_video(
    end: EndOfVideo, folder: ResultsFolder | None, pictures: PictureWriter
) -> None:
    """Finish the video of pictures; note the source, if it was complete."""
    pictures.close(end.source)
    if end.complete and folder is not None:
        details = dict(num_frames=end.num_frames)
        if pictures.folder is not None:
            details['picture'] = pictures.settings
        folder.finish(end.source.name, end.source, end.signature, details)


def _digest(weights: str | Path) -> str:
    if '://' in str(weights):
        return str(weights)
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        'not enough memory' in str(error) or "can't allocate" in str(error)
    )
