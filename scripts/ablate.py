"""The ablations: runs that differ from a baseline in one thing each.

    python scripts/speedrun.py --only data     # once: videos and backbones
    python scripts/ablate.py                   # all of them in it, one seed, two at a time
    python scripts/ablate.py --seeds 3         # and two more seeds of LR1, A1, A6 and B1
    python scripts/ablate.py --only A1 B1 --seeds 3    # these and the baseline alone

On real data and a GPU:

    python scripts/ablate.py --base configs/ablations/baseline.yaml --jobs 1 --out outputs/ablations-135m

Writes results.csv (a row per evaluation and mode), result.json and curves.png. A second call skips what is
done, an interrupted one continues; keys of the config can be overridden, such as train.steps=100.
"""
import argparse, sys
from pathlib import Path

import pandas as pd
from transformers.utils.logging import disable_progress_bar

from fvlm.config import ConfigError, load_config
from fvlm.data.plan import PlanError
from fvlm.data.remote import ShardError
from fvlm.experiments.ablations import ABLATIONS, plot_study, run_ablations
from fvlm.training.trainer import TrainError

FOLDER = Path(__file__).resolve().parent.parent/'configs'/'ablations'


def main():
    about = 'Runs that differ from a baseline in one thing each.'
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument('--base', type=Path, default=FOLDER/'tiny.yaml',
        help='baseline (default configs/ablations/tiny.yaml)')
    parser.add_argument('--only', nargs='+', default=list(ABLATIONS), metavar='RUN',
        help=f"of {' '.join(ABLATIONS)}; the baseline LR1 is always run")
    parser.add_argument('--seeds', type=int, default=1, help='how many (default 1)')
    parser.add_argument('--repeat', nargs='+', default=['LR1', 'A1', 'A6', 'B1'], metavar='RUN',
        help='runs that have more than one seed (default LR1 A1 A6 B1)')
    parser.add_argument('--out', type=Path, default=Path('outputs/ablations'),
        help='folder (default outputs/ablations)')
    parser.add_argument('--jobs', type=int, default=2, help='runs at a time (default 2)')
    args, overrides = parser.parse_known_args()
    disable_progress_bar()
    names = [n for n in args.only if '=' not in n]
    overrides += [n for n in args.only if '=' in n]
    try:
        result = run_ablations(load_config(args.base, overrides), FOLDER, names, list(range(args.seeds)),
            args.out, args.jobs, repeated=args.repeat)
    except (ConfigError, PlanError, ShardError, TrainError, FileNotFoundError) as e: sys.exit(f'ablate: {e}')
    plot_study(pd.read_csv(args.out/'results.csv')).savefig(args.out/'curves.png')
    for s in result['summary']:
        print(f"{s['run']:4} {s['mode']:6} loss {s['loss']:.3f}  difference {s['difference']:+.3f}  "
              f"{s['verdict']}  ({s['seconds']:.0f} s)")


if __name__ == '__main__': main()
