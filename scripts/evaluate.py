"""A trained model on the same items in all its modes: accuracy with chance and interval, loss, and the modes compared item by item.

    python scripts/evaluate.py outputs/stage3/model data/llava-video data/cauldron --out outputs/evaluation.json
    python scripts/evaluate.py tiny outputs/speedrun/shards/lookup --out outputs/evaluation.json --samples 300 --modes coarse fine

Writes FILE as JSON, with code and machine, and beside it the same numbers as a table (.csv).
"""
import argparse, sys
from pathlib import Path

import pandas as pd
from transformers.utils.logging import disable_progress_bar

from fvlm.config import DataConfig
from fvlm.data.build import number_option
from fvlm.evaluation.exam import evaluate_model, save_evaluation
from fvlm.model.foveated import MODES
from fvlm.data.shards import SPLITS


def main():
    parser = argparse.ArgumentParser(description='Measure a model in all its modes.')
    parser.add_argument('model', help='tiny, a folder, or a name on the hub')
    parser.add_argument('shards', nargs='+', help='folders of shards')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE', help='a .json file')
    parser.add_argument('--split', choices=SPLITS, default='test',
        help='which part of the shards (default test)')
    parser.add_argument('--samples', type=number_option(), default=1000, metavar='N',
        help='of each folder, at most (default 1000)')
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES, help='ways to look (default all)')
    parser.add_argument('--order', choices=['question_first', 'video_first', 'mixed', 'frames_front'],
        default='question_first', help='where the frames stand')
    parser.add_argument('--image-frames', type=number_option(), default=1, metavar='N',
        help='for how many frames an image is shown (default 1)')
    parser.add_argument('--max-tokens', type=number_option(), default=1024, metavar='N',
        help='longest sequence (default 1024)')
    args = parser.parse_args()
    disable_progress_bar()
    how = DataConfig(order=args.order, image_frames=args.image_frames, max_tokens=args.max_tokens)
    try:
        if args.out.suffix != '.json': raise ValueError(f'--out {args.out}: end it in .json')
        found = evaluate_model(args.model, args.shards, args.split, args.samples, tuple(args.modes), how)
        save_evaluation(found, args.out)
    except (ValueError, OSError) as e: sys.exit(f"evaluate: {' '.join(str(e).split())}")
    columns = ['data', 'task', 'mode', 'n', 'accuracy', 'lo', 'hi', 'chance', 'loss']
    print(pd.DataFrame(found['results'])[columns].to_string(index=False, float_format='{:.3f}'.format))
    for p in found['paired']:
        print(f"{p['data']}: {p['a']} - {p['b']} {100*p['difference']:+.1f} points ({100*p['lo']:+.1f} to {100*p['hi']:+.1f}), p {p['p']:.3g}, {p['n']} items")


if __name__ == '__main__': main()
