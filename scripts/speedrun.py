"""The main experiment: videos, shards, three stages, fair controls, report.

    python scripts/speedrun.py                 # about twenty minutes on two cores
    python scripts/speedrun.py --smoke         # all of it, tiny, in two minutes
    python scripts/speedrun.py --seeds 3       # what results/speedrun.json was made with
    python scripts/speedrun.py --only data     # videos, shards and backbones alone

A second call skips what is done, an interrupted one continues.
"""
import argparse, shutil, time
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from fvlm.experiments.report import load_result, verdict, write_report
from fvlm.experiments.speedrun import FULL, SMOKE, Workspace, speedrun
from fvlm.model.foveated import FoveatedVLM, load_tokenizer

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description='The main experiment of fvlm, offline, on a laptop.')
    parser.add_argument('--smoke', action='store_true',
        help='a few updates of everything, to see that it works')
    parser.add_argument('--seeds', type=int, default=1, help='how many seeds (default 1)')
    parser.add_argument('--out', type=Path,
        help='folder (default outputs/speedrun, with --smoke outputs/smoke)')
    parser.add_argument('--workers', type=int, default=2, help='processes (default 2)')
    parser.add_argument('--only', choices=['data'], help='stop after videos, shards and backbones')
    args = parser.parse_args()
    disable_progress_bar()
    start, out = time.time(), args.out or Path('outputs')/('smoke' if args.smoke else 'speedrun')
    space = Workspace(out, ROOT/'configs'/'tiny', SMOKE if args.smoke else FULL)
    result = speedrun(space, list(range(args.seeds)), workers=args.workers, only_data=args.only=='data')
    if result is None: return print(f'videos, shards and backbones are in {out}')
    stage3 = space.run('stage3', 0)
    shutil.copytree(stage3/'model', out/'model', dirs_exist_ok=True)
    for name in ('metrics.csv', 'metrics.jsonl', 'summary.json'): shutil.copy(stage3/name, out/name)
    result = load_result(out/'result.json')
    write_report(result, out, FoveatedVLM.from_pretrained(out/'model'), load_tokenizer(out/'model'))
    for line in verdict(result): print(line)
    print(f'the report is {out}/report.html; {time.time()-start:.0f} s')


if __name__ == '__main__': main()
