"""Look inside in the browser: boxes, energy maps and the density of each box.

Opens a page for this machine alone, http://127.0.0.1:7860 or the next free
port. Drop an image there, or choose one of FOLDER. The page shows detections
before and after; click a box to see its log-density, the path of the ascent
and how sure its sides are; move it, and change the density. Ctrl-C ends it.
"""

import argparse
import logging
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split


from mmdet_ebm.apis import build_model
from mmdet_ebm.apis.checks import exit_with_message, require_energy_model
from mmdet_ebm.engine import screen
from mmdet_ebm.engine.config_options import add_model_arguments


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument(
        'folder',
        nargs='?',
        type=Path,
        help='images to choose from (default: only dropped ones)',
    )
    parser.add_argument(
        '--pred-score-thr',
        type=float,
        default=0.3,
        help='draw boxes from this score on at first (default: 0.3)',
    )
    parser.add_argument(
        '--port', type=int, help='default: the first free one from 7860 on'
    )
    parser.add_argument(
        '--open', action='store_true', help='also open the page in a browser'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with screen.few_lines(), exit_with_message():
        try:
            from mmdet_ebm.explorer.page import build_page, serve
        except ImportError as error:
            raise ValueError(str(error)) from error
        logging.getLogger('httpx').setLevel(logging.WARNING)
        model = build_model(
            args.config, args.checkpoint, args.device, args.cfg_options
        )
        require_energy_model(model)
        page = build_page(model, args.folder, args.pred_score_thr)
        serve(page, args.port, args.open)


if __name__ == '__main__':
    main()
