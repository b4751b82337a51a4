"""The dress rehearsal: raw data to report with the real configs, on miniatures, offline, in minutes.

    python scripts/rehearse.py                   # everything; writes outputs/rehearsal/rehearsal.json
    python scripts/rehearse.py --quick           # the smaller form that the tests run
    python scripts/rehearse.py --true-shapes     # and three updates of the 135M model's real shapes; writes
                                                 # results/rehearsal.json

Ends in a table: step, samples in, samples out, seconds, what was left out for which reason. A count that is
not what the miniatures were made to give is a fault: its step is named, and the exit code is 1.
"""
import argparse, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # of this checkout, also for the processes that it starts

from tests.rehearsal.steps import rehearse


def main():
    parser = argparse.ArgumentParser(description='The dress rehearsal: every step, on miniatures, offline.')
    parser.add_argument('--quick', action='store_true', help='the smaller form')
    parser.add_argument('--true-shapes', action='store_true', help='three updates of the real shapes, too')
    parser.add_argument('--home', type=Path, default=ROOT/'outputs'/'rehearsal',
        help='folder of everything, deleted first (default outputs/rehearsal)')
    parser.add_argument('--out', type=Path,
        help='result (default rehearsal.json in --home, with --true-shapes in results/)')
    args = parser.parse_args()
    official = args.true_shapes and not args.quick
    out = args.out or (ROOT/'results' if official else args.home)/'rehearsal.json'
    faults = rehearse(args.home.resolve(), out.resolve(), args.quick, args.true_shapes)
    for fault in faults: print(f'rehearse: {fault}')
    return bool(faults)


if __name__ == '__main__': sys.exit(main())
