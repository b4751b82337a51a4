"""Evaluate a trained model on the same items in all its modes, and compare the modes item by item.

    python scripts/evaluate.py outputs/stage3/model data/llava-video data/cauldron --out outputs/results.json
    python scripts/evaluate.py tiny outputs/speedrun/shards/lookup --out outputs/tiny.json --samples 300
    torchrun --nproc_per_node=8 scripts/evaluate.py outputs/stage3/model data/cauldron --out outputs/all.json

Frames and their order are as the model was trained. Writes FILE as JSON, with code and machine, and beside
it the same numbers as a table (.csv); what could not be scored is counted in both.
"""
import argparse, sys
from pathlib import Path

import pandas as pd
from transformers.utils.logging import disable_progress_bar

from fvlm.config import TrainConfig
from fvlm.data.build import number_option
from fvlm.data.loader import DataError
from fvlm.data.index import SPLITS
from fvlm.evaluation.exam import evaluate_model, save_evaluation
from fvlm.model.foveated import MODES
from fvlm.training.distributed import join_processes


def options():
    parser = argparse.ArgumentParser(description='Evaluate a model in all its modes.')
    add, whole = parser.add_argument, number_option()
    add('model', help='tiny, a folder, or a name on the hub')
    add('shards', nargs='+', help='folders of shards')
    add('--out', type=Path, required=True, metavar='FILE', help='a .json file')
    add('--split', choices=SPLITS, default='test', help='part of the shards (default test)')
    add('--samples', type=whole, default=1000, metavar='N', help='of each folder, at most (default 1000)')
    add('--modes', nargs='+', choices=MODES, default=MODES, help='modes to score (default all)')
    add('--order', help='where the frames stand (default: as trained)',
        choices=['question_first', 'video_first', 'mixed', 'frames_front'])
    add('--image-frames', type=whole, metavar='N', help='frames an image is shown for (default: as trained)')
    add('--max-tokens', type=whole, metavar='N', help='most text tokens of a sample (default 1024)')
    add('--frame-budget', type=whole, default=256, metavar='N', help='most frames in a batch (default 256)')
    return parser.parse_args()


def main():
    args = options()
    disable_progress_bar()
    try:
        if args.out.suffix != '.json': raise ValueError(f'--out {args.out}: end it in .json')
        procs = join_processes()
        found = evaluate_model(args.model, args.shards, args.split, args.samples, args.modes, args.order,
            args.image_frames, args.max_tokens, TrainConfig(frame_budget=args.frame_budget), procs)
        if procs.rank: return
        save_evaluation(found, args.out)
    except (ValueError, OSError, DataError) as e: sys.exit(f"evaluate: {' '.join(str(e).split())}")
    columns = 'data task mode n accuracy lo hi chance loss bad too_long too_large'.split()
    print(pd.DataFrame(found['results'])[columns].to_string(index=False, float_format='{:.3f}'.format))
    for p in found['paired']:
        print(f"{p['data']}: {p['a']} - {p['b']} {100*p['difference']:+.1f} points "
              f"({100*p['lo']:+.1f} to {100*p['hi']:+.1f}), p {p['p']:.3g}, {p['n']} items")


if __name__ == '__main__': main()
