"""Write the generated detection set in COCO format."""

import argparse

from mmdet_ebm.datasets import DigitsConfig, generate_digits


def parse_args() -> argparse.Namespace:
    default = DigitsConfig()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('out_dir', nargs='?', default='data/digits')
    for split, number in default.num_images.items():
        parser.add_argument(
            f'--num-{split}', type=int, default=number, help=f'{split} images'
        )
    parser.add_argument(
        '--annotation-noise',
        type=float,
        nargs='*',
        default=[],
        help='for each of these standard deviations in relative box space, '
        'also write annotations/train_noise-SIGMA.json',
    )
    parser.add_argument('--seed', type=int, default=default.seed)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    config = DigitsConfig(
        num_images=dict(
            train=args.num_train, val=args.num_val, test=args.num_test
        ),
        annotation_noise=tuple(args.annotation_noise),
        seed=args.seed,
    )
    print(f'digits in {generate_digits(args.out_dir, config)}')


if __name__ == '__main__':
    main()
