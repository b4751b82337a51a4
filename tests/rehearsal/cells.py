"""Two updates of one cell of the scaling grid per arm: python tests/rehearsal/cells.py [key=value ...]

`scripts/scale.py` buys updates with FLOPs, millions of them for tiny models; here the plan is the same and
the number of updates is not.
"""
import sys
from dataclasses import replace
from pathlib import Path

from fvlm.config import load_config
from fvlm.evaluation.metrics import validate
from fvlm.experiments.ablations import with_keys
from fvlm.experiments.scaling import STUDIES, plan_cells, prepare_scaling
from fvlm.training.trainer import train

FOLDER = Path(__file__).resolve().parents[2]/'configs'/'scaling'


def main(overrides):
    template, grid = STUDIES['smollm2']
    base = load_config(FOLDER/template, overrides)
    grid = replace(grid, sizes={'135M':grid.sizes['135M']}, budgets={'C1':grid.budgets['C1']})
    for cell in plan_cells(base, grid, prepare_scaling(base, grid, 64), [0], 'cells'):
        train(with_keys(cell.cfg, {'out':f'cells/{cell.size}-{cell.kind}', 'train.steps':2}), validate)


if __name__ == '__main__': main(sys.argv[1:])
