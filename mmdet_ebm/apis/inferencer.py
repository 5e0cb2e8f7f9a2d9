"""Detect and refine on anything with images in it."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from tqdm import tqdm

from ..version import __version__
from .checks import require_energy_model
from .gallery import write_gallery
from .inputs import (
    InputsType,
    Source,
    UnreadableInput,
    count_frames,
    expand_inputs,
    read_frames,
    read_image,
)
from .items import EndOfVideo, Item, batches
from .model import build_model
from .pictures import PictureWriter
from .results import ImageResult, Summary, to_instances, to_prediction
from .store import ResultStore, frame_name

# Images per second also where it takes seconds per image.
_PROGRESS = (
    '{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, '
    '{rate_noinv_fmt}{postfix}]'
)


class EnergyDetInferencer:
    """Inference with the conventions of mmdet's ``DetInferencer``.

    ::

        inferencer = EnergyDetInferencer('energy.py', 'epoch_12.pth')
        result = inferencer('folder/', batch_size=4, out_dir='outputs')
        result['predictions'][0]['bboxes']

    Args:
        model: Config file or config; None takes the one that mmengine stored
            in the checkpoint.
        weights: Checkpoint file.
        device: For example 'cuda:0'; the first GPU, or the CPU without one.
        cfg_options: Changes to the config.
        show_progress: Whether to show a progress bar.

    Attributes:
        classes: Names of the labels.
        summary: Of the latest call.

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
    ) -> None:
        if weights is None:
            raise ValueError(
                'weights must name a checkpoint: random ones '
                'would detect nothing'
            )
        self.model = build_model(model, weights, device, cfg_options)
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
        # Images are read (and checked) once, for the model and the picture.
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
        no_save_vis: bool = False,
        pred_score_thr: float = 0.3,
        return_datasamples: bool = False,
        print_result: bool = False,
        no_save_pred: bool = False,
        out_dir: str | Path = '',
        recursive: bool = False,
        compare: bool = False,
        overwrite: bool = False,
    ) -> dict:
        """Predict, and keep all results in memory (:meth:`stream` does not).

        Args:
            inputs: See ``expand_inputs``.
            batch_size: As of :meth:`stream`.
            return_vis: Whether to return pictures.
            no_save_vis: As of :meth:`stream`.
            pred_score_thr: As of :meth:`stream`.
            return_datasamples: Return mmdet's ``DetDataSample`` rather than
                dicts; those of an earlier run have no meta information.
            print_result: Whether to print the predictions.
            no_save_pred: As of :meth:`stream`.
            out_dir: As of :meth:`stream`.
            recursive: As of :meth:`stream`.
            compare: As of :meth:`stream`.
            overwrite: As of :meth:`stream`.

        Returns:
            ``predictions`` and ``visualization`` (empty without
            ``return_vis``) with an entry for each image or frame in order,
            None for one that was skipped; ``names`` of the entries;
            ``skipped``, reasons by name.
        """
        results = []
        for result in self.stream(
            inputs,
            batch_size=batch_size,
            keep_pictures=return_vis,
            no_save_vis=no_save_vis,
            pred_score_thr=pred_score_thr,
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
        """Yield results as they are ready, not quite in order.

        Args:
            inputs: See ``expand_inputs``.
            batch_size: Images in a forward pass, at most; images whose
                padding would change the result are not put together.
            keep_pictures: Whether results carry their pictures.
            no_save_vis: Whether to write no pictures to ``out_dir``.
            pred_score_thr: Class score from which boxes are drawn;
                predictions hold all.
            no_save_pred: Whether to write no predictions to ``out_dir``; the
                next run cannot continue then.
            out_dir: Where to write, see ``ResultStore``; nowhere without one.
            recursive: Look into subfolders of folders.
            compare: Draw the boxes before the refinement as well.
            overwrite: Compute again what ``out_dir`` has.

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
        store = None
        if out_dir:
            store = ResultStore(out_dir, self._settings, overwrite)
            store.require_own_names(sources)
        pictures = PictureWriter(
            None if no_save_vis else store,
            self.classes,
            pred_score_thr,
            compare,
            always=keep_pictures,
        )
        done = {}
        with tqdm(
            total=sum(map(count_frames, sources)),
            unit=' images',
            bar_format=_PROGRESS,
            disable=not self.show_progress,
        ) as progress:
            for batch in batches(
                self._items(sources, store, pictures),
                batch_size,
                self._batch_key,
            ):
                if isinstance(batch, EndOfVideo):
                    pictures.close(batch.source)
                    if batch.complete and store is not None:
                        details = dict(num_frames=batch.num_frames)
                        if pictures.store is not None:
                            details['picture'] = pictures.settings
                        store.finish(
                            batch.source.name,
                            batch.source,
                            batch.signature,
                            **details,
                        )
                    continue
                self._predict([item for item in batch if item.data])
                for item in batch:
                    result = self._finish(item, store, pictures, no_save_pred)
                    self.summary.add(result)
                    if result.error is None:
                        done[result.index] = result.name
                    progress.update()
                    progress.set_postfix(
                        skipped=len(self.summary.skipped), refresh=False
                    )
                    yield result
        if store is not None and not no_save_pred:
            store.write_coco(
                (done[index] for index in sorted(done)), self.classes
            )
        if pictures.store is not None:
            write_gallery(
                store, sources, self.summary.skipped, pictures.legend
            )
        self.summary.seconds = time.perf_counter() - start

    # ---------------------------------------------------------- in the order

    def _items(
        self,
        sources: Sequence[Source],
        store: ResultStore | None,
        pictures: PictureWriter,
    ) -> Iterator[Item | EndOfVideo]:
        """Read what has to be read, and load what is finished."""
        index = 0
        for source in sources:
            signature = source.signature()
            if source.is_video:
                items = self._video_items(source, signature, store, pictures)
            else:
                items = self._image_items(source, signature, store, pictures)
            for item in items:
                if isinstance(item, Item):
                    item.result.index = index
                    index += 1
                yield item

    def _image_items(
        self,
        source: Source,
        signature: str,
        store: ResultStore | None,
        pictures: PictureWriter,
    ) -> Iterator[Item]:
        item = Item(ImageResult(source.name), source, signature)
        if store is not None:
            item.result.keep(store.finished(source.name, signature))
        if not item.result.kept or pictures.needs(source):
            try:
                self._prepare(item, read_image(source.content))
            except UnreadableInput as error:
                item.result.error = str(error)
        yield item

    def _video_items(
        self,
        source: Source,
        signature: str,
        store: ResultStore | None,
        pictures: PictureWriter,
    ) -> Iterator[Item | EndOfVideo]:

        def frame_item(number: int) -> Item:
            item = Item(
                ImageResult(frame_name(source.name, number)), source, signature
            )
            if store is not None:
                item.result.keep(store.finished(item.result.name, signature))
            return item

        if store is not None and not pictures.needs(source):
            finished = store.num_frames(source.name, signature)
            if finished:
                yield from map(frame_item, range(finished))
                return
        number, complete = 0, True
        try:
            for frame in read_frames(source.content):
                item = frame_item(number)
                self._prepare(item, frame)
                number += 1
                yield item
        except UnreadableInput as error:
            complete = False
            yield Item(
                ImageResult(source.name, error=str(error)), source, signature
            )
        yield EndOfVideo(source, signature, number, complete)

    def _prepare(self, item: Item, image: np.ndarray) -> None:
        """Hand an image on, and what the model takes if it is to see it."""
        item.image = image
        if item.result.kept:
            return
        try:
            item.data = self._pipeline(
                dict(img=image, img_id=0, img_path=item.source.path)
            )
        except Exception as error:
            reason = ' '.join(str(error).split())
            item.result.error = (
                f'the test pipeline failed on its {image.shape[1]} x '
                f'{image.shape[0]} pixels: {type(error).__name__}: {reason}'
            )

    def _batch_key(self, item: Item) -> object:
        """Items of one key may share a batch, and stay in order.

        A smaller image would be padded further in a batch than alone, and
        what is behind its border would change its features.
        """
        if item.source.is_video:
            return item.source.name
        if item.data is None:
            return None
        divisor = getattr(self.model.data_preprocessor, 'pad_size_divisor', 1)
        return tuple(
            math.ceil(side / divisor)
            for side in item.data['inputs'].shape[-2:]
        )

    @torch.no_grad()
    def _predict(self, items: Sequence[Item]) -> None:
        if not items:
            return
        try:
            samples = self.model.test_step(
                dict(
                    inputs=[item.data['inputs'] for item in items],
                    data_samples=[item.data['data_samples'] for item in items],
                )
            )
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            samples = None
        if samples is not None:
            for item, sample in zip(items, samples):
                sample.set_metainfo(dict(img_path=item.source.path))
                item.result.sample = sample
        elif len(items) > 1:  # outside of the handler, which holds memory
            for item in items:
                self._predict([item])
        else:
            height, width = items[0].data['inputs'].shape[-2:]
            items[0].result.error = (
                f'out of memory at {width} x {height} network-input pixels; '
                'make the Resize of the test pipeline smaller'
            )

    def _finish(
        self,
        item: Item,
        store: ResultStore | None,
        pictures: PictureWriter,
        no_save_pred: bool,
    ) -> ImageResult:
        """Save, draw and note what an item has become."""
        result, source = item.result, item.source
        if result.error is not None:
            return result
        if not result.kept:
            result.prediction = to_prediction(result.sample.pred_instances)
            if store is not None and not no_save_pred:
                store.save(result.name, result.prediction)
        details = {}
        if result.kept:
            details = store.details(result.name)
        if item.image is not None:
            details['size'] = [item.image.shape[1], item.image.shape[0]]
            if pictures.wanted:
                picture = pictures.draw(source, item.image, result.prediction)
                result.picture = picture if pictures.always else None
                result.redrawn = result.kept
                if not source.is_video:
                    details['picture'] = pictures.settings
        if store is not None:
            store.finish(result.name, source, item.signature, **details)
        return result


def _digest(weights: str | Path) -> str:
    if '://' in str(weights):
        return str(weights)
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        'not enough memory' in str(error) or "can't allocate" in str(error)
    )
