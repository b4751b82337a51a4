"""Train one stage.

    python scripts/train.py --config configs/tiny/stage1.yaml train.lr.connector=1e-3
    torchrun --nproc_per_node 2 scripts/train.py --config configs/tiny/stage1.yaml

`python scripts/speedrun.py --only data` makes the videos and backbones that `configs/tiny` names.
A run that was interrupted continues. Asked to stop (SIGTERM, Ctrl-C), all processes save the same update and
exit with 0 (torchrun itself reports a Ctrl-C as an error of its own, after they have saved). Every setting
is a key of the config.
"""
import argparse, sys

import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from fvlm.config import ConfigError, load_config
from fvlm.data.loader import DataError
from fvlm.data.plan import PlanError
from fvlm.data.remote import ShardError
from fvlm.evaluation.metrics import validate
from fvlm.training.checkpoint import CheckpointError
from fvlm.training.distributed import PeerError, Stopped
from fvlm.training.guards import MemoryRefusal
from fvlm.training.tracking import LogError
from fvlm.training.trainer import TrainError, train

ERRORS = (ConfigError, PlanError, ShardError, DataError, CheckpointError, TrainError, PeerError,
    MemoryRefusal, LogError, FileNotFoundError)


def main():
    parser = argparse.ArgumentParser(description='Train one stage.',
        epilog='Any key of the config can be overridden: train.steps=100')
    parser.add_argument('--config', required=True, help='YAML file')
    args, overrides = parser.parse_known_args()
    disable_progress_bar()
    try: train(load_config(args.config, overrides), validate)
    except ERRORS as e: sys.exit(f'train: {e}')
    except Stopped as e: print(f'train: {e}')
    finally:
        if dist.is_initialized(): dist.destroy_process_group()


if __name__ == '__main__': main()
