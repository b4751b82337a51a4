"""Raw data to report: shards, three stages, an examination and a page, from one file.

    python scripts/pipeline.py configs/tiny/pipeline.yaml --dry-run           # plan, cost and disk; nothing is written
    python scripts/pipeline.py configs/tiny/pipeline.yaml                     # do it; the built-in world, offline
    python scripts/pipeline.py configs/pipeline.yaml out=/data/run shards=/data/shards processes=2

`bash scripts/pipeline.sh` does the same, makes the environment first and keeps all caches in FVLM_CACHE.
A second call skips what is done. Exit codes: 0 all done, 1 something failed, 75 stopped on request (SIGTERM, Ctrl-C): the same command goes on.
Keys of the file can be overridden, also those of the stages: stages.stage1.train.steps=100, every_stage.train.workers=8.
"""
import argparse, sys

from transformers.utils.logging import disable_progress_bar

from fvlm.config import ConfigError
from fvlm.experiments.pipeline import make_world, run_steps, write_pipeline_report
from fvlm.experiments.recipe import check_disk, check_done, disk_needs, read_recipe, show_plan, steps_of
from fvlm.data.shards import ShardError


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
            (make_world if args.do == 'world' else write_pipeline_report)(recipe)
            return 0
        steps = steps_of(recipe)
        print(show_plan(recipe, steps), flush=True)
        check_done(recipe.out, steps)
        check_disk(disk_needs(recipe, steps))
        return 0 if args.dry_run else run_steps(steps, recipe.out)
    except (ConfigError, ShardError, FileNotFoundError) as e:
        sys.exit(f"pipeline: {' '.join(str(e).split())}")


if __name__ == '__main__': sys.exit(main())
