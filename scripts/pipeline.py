"""Raw data to report: shards, three stages, an evaluation and a page, from one file.

    python scripts/pipeline.py configs/tiny/pipeline.yaml --dry-run    # plan, cost, disk; writes nothing
    python scripts/pipeline.py configs/tiny/pipeline.yaml              # do it; the built-in world, offline
    python scripts/pipeline.py configs/pipeline.yaml out=/data/run shards=/data/shards processes=2

`bash scripts/pipeline.sh` does the same, makes the environment first and keeps all caches in FVLM_CACHE.
A second call skips what is done. Exit codes: 0 all done, 1 something failed, 75 stopped on request (SIGTERM,
Ctrl-C): the same command continues. Keys of the file can be overridden, also those of the stages:
stages.stage1.train.steps=100, every_stage.train.workers=8.
"""
import argparse, sys

from transformers.utils.logging import disable_progress_bar

from fvlm.config import ConfigError
from fvlm.data.remote import ShardError
from fvlm.experiments.recipe import (check_disk, check_finished, disk_needs, make_world, plan_steps,
                                     plan_text, read_recipe, remember, write_recipe_report)
from fvlm.experiments.runner import run_commands


def main():
    parser = argparse.ArgumentParser(description='Raw data to report, from one file.',
        epilog='Any key can be overridden: out=/data/run')
    parser.add_argument('config', help='YAML file, such as configs/pipeline.yaml')
    parser.add_argument('--dry-run', action='store_true',
        help='show plan, cost and disk need, and do nothing')
    parser.add_argument('--do', choices=['world', 'report'],
        help='one step that is no script of its own, whatever is done')
    args, overrides = parser.parse_known_args()
    disable_progress_bar()
    try:
        recipe = read_recipe(args.config, overrides)
        if args.do:
            dict(world=make_world, report=write_recipe_report)[args.do](recipe)
            return 0
        steps = plan_steps(recipe)
        print(plan_text(recipe, steps), flush=True)
        check_finished(recipe.out, steps)
        check_disk(disk_needs(recipe, steps))
        if args.dry_run: return 0
        return run_commands(steps, recipe.out, lambda step, seconds: remember(recipe.out, step, seconds))
    except (ConfigError, ShardError, FileNotFoundError) as e:
        sys.exit(f"pipeline: {' '.join(str(e).split())}")


if __name__ == '__main__': sys.exit(main())
