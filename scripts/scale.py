"""The scaling grid: three sizes, four budgets of FLOPs, one token from a look against sixteen pooled ones.

    python scripts/speedrun.py --only data     # once: videos and backbones of the built-in world
    python scripts/scale.py                    # all 24 cells in it, one seed, two at a time
    python scripts/scale.py --budgets C1 C2    # the cheap half first; a later call adds the rest
    python scripts/scale.py --seeds 2          # a second seed for each
    python scripts/scale.py --plan             # what would run, and nothing else
    python scripts/scale.py --study smollm2 --jobs 1    # real data, a GPU

Writes results.csv (a row per evaluation and mode), result.json, isoflop.png and frontier.png. A second call
skips what is done, an interrupted one continues; keys of the template can be overridden, such as
eval.samples=1000.
"""
import argparse, sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
from transformers.utils.logging import disable_progress_bar

from fvlm.config import ConfigError, load_config
from fvlm.data.plan import PlanError
from fvlm.data.remote import ShardError
from fvlm.experiments.scaling import (STUDIES, describe_fit, plan_cells, plot_frontier, plot_isoflop,
                                      prepare_scaling, run_scaling)
from fvlm.training.trainer import TrainError

FOLDER = Path(__file__).resolve().parent.parent/'configs'/'scaling'


def show_plan(base, grid, seeds, out):
    for c in plan_cells(base, grid, prepare_scaling(base, grid), seeds, out):
        print(f'{c.run:24} seed {c.cfg.train.seed}  {c.params/1e6:8.1f} M  {c.flops:9.3g} FLOPs a sample  '
              f'{c.cfg.train.steps:8,} updates  {c.samples:10,} samples  {c.spent:9.3g} FLOPs')


def main():
    parser = argparse.ArgumentParser(description='A grid of sizes and compute budgets.')
    parser.add_argument('--study', choices=list(STUDIES), default='tiny',
        help='template and grid (default tiny)')
    parser.add_argument('--seeds', type=int, default=1, help='how many (default 1)')
    parser.add_argument('--out', type=Path,
        help="folder (default: the template's, outputs/scaling or outputs/scaling-smollm2)")
    budgets = ['C1', 'C2', 'C3', 'C4']
    parser.add_argument('--budgets', nargs='+', default=budgets, choices=budgets, help='which (default all)')
    parser.add_argument('--jobs', type=int, default=2, help='runs at a time (default 2)')
    parser.add_argument('--plan', action='store_true',
        help='say what would run; makes the language models and texts of the built-in world')
    args, overrides = parser.parse_known_args()
    disable_progress_bar()
    template, grid = STUDIES[args.study]
    grid = replace(grid, budgets={b:grid.budgets[b] for b in grid.budgets if b in args.budgets})
    seeds = list(range(args.seeds))
    try:
        base = load_config(FOLDER/template, overrides)
        out = args.out or Path(base.out)
        if args.plan: return show_plan(base, grid, seeds, out)
        result = run_scaling(base, grid, seeds, out, args.jobs)
    except (ConfigError, PlanError, ShardError, TrainError, FileNotFoundError) as e: sys.exit(f'scale: {e}')
    points = pd.DataFrame(result['points']).astype(dict(lo=float, hi=float))
    plot_isoflop(points).savefig(out/'isoflop.png')
    plot_frontier(points, result['fits']).savefig(out/'frontier.png')
    for kind, fits in result['fits'].items():
        for part in ('frontier', 'size_and_samples'): print(f'{kind:9}{describe_fit(fits[part])}')


if __name__ == '__main__': main()
