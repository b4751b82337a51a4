"""Do the fault drills in full, on the CPU: 4 to 20 minutes.

    python scripts/faults.py                  # all of them: what results/faults.json was made with
    python scripts/faults.py --only F1 F2     # some; written to outputs/faults.json
    python scripts/faults.py --quick          # all of them in a small size, as the tests do

One that fails does not stop the others. Then execute nbs/7_results/03_faults_results.ipynb again.
"""
import argparse, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tests'))

import drills.hostile, drills.inputs  # noqa: E402, E401, F401  (they register their drills)
from drills.runs import DRILLS, FULL, QUICK, in_order, run_drills  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description='Do the fault drills.')
    parser.add_argument('--only', nargs='+', default=[], choices=in_order(DRILLS), metavar='ROW',
        help=f"rows to do: {', '.join(in_order(DRILLS))}")
    parser.add_argument('--quick', action='store_true', help='a small size of everything')
    parser.add_argument('--out', type=Path,
        help='JSON file (default results/faults.json; outputs/faults.json when not all is done in full)')
    args = parser.parse_args()
    out = args.out or ROOT/('outputs' if args.only or args.quick else 'results')/'faults.json'
    rows = run_drills(out, args.only, QUICK if args.quick else FULL)['rows']
    failed = [r['id'] for r in rows if not r['passed']]
    print(f"{out}: {len(rows)-len(failed)} passed, {len(failed)} failed {' '.join(failed)}")
    sys.exit(bool(failed))


if __name__ == '__main__': main()
