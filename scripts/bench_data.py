"""Measure the data engine against the plain way, on the CPU: about ten minutes.

    python scripts/bench_data.py                     # pictures and films of the built-in world
    python scripts/bench_data.py --clips FOLDER      # and real mp4 files: what results/data.json was made with
    python scripts/bench_data.py --quick             # all of it in a minute, to see that it works

Let nothing else run meanwhile. Then execute nbs/7_results/02_data_results.ipynb again.
"""
import argparse
from pathlib import Path

from fvlm.databench import run_data_bench

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description='Measure the data engine against the plain way.')
    parser.add_argument('--clips', type=Path,
        help='folder with real mp4 files (default: only the built-in world)')
    parser.add_argument('--quick', action='store_true',
        help='seconds of everything; the numbers mean nothing')
    parser.add_argument('--out', type=Path,
        help='JSON file (default results/data.json, with --quick outputs/data.json)')
    args = parser.parse_args()
    out = args.out or (ROOT/'outputs'/'data.json' if args.quick else ROOT/'results'/'data.json')
    found = run_data_bench(out, args.clips, args.quick)
    for name, loader in found['loader'].items():
        print(f"{name}: {loader['ours']['frames_per_s']['median']:.0f} frames/s on one core, {loader['ratio']['median']:.2f} times the plain way")
    for name, padding in found['padding']['found'].items():
        print(f"{name}: {padding['useful']['median']:.1%} of the tokens are useful")
    print(f"{out}, {found['seconds']} s")


if __name__ == '__main__': main()
