"""Run the notebooks as tests, each in a process of its own, and tell which passed and how long they took.

    python scripts/test_notebooks.py                  # all, two at a time
    python scripts/test_notebooks.py 06_query 07      # those whose name starts so
    python scripts/test_notebooks.py --flags cuda     # with the cells under `#| cuda` (settings.ini: tst_flags)
"""
import argparse, os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# nbdev_test itself only names the notebooks that failed; its `test_nb` gives (passed, seconds), (True, 0) for "skipped".
ONE = """
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
passed, seconds = test_nb(Path(sys.argv[1]), skip_flags=get_config().tst_flags.split(), force_flags=sys.argv[2].split(), basepath=Path.cwd())
sys.stdout.flush(); sys.exit(1 if not passed else 77 if seconds == 0 else 0)
"""


def run_one(path, flags, timeout):
    "Run one notebook: its name, the word for how it went, seconds, and the end of what it said."
    start = time.time()
    proc = subprocess.Popen([sys.executable, '-c', ONE, path, flags], cwd=ROOT, text=True, errors='replace',
        start_new_session=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said = proc.communicate(timeout=timeout)[0]
        word = {0:'ok', 77:'skipped'}.get(proc.returncode, 'FAILED')
    except subprocess.TimeoutExpired:
        os.killpg(proc.pid, signal.SIGKILL)
        said, word = f'{proc.communicate()[0]}\nstopped after {timeout} s', 'FAILED'
    return path.stem, word, time.time()-start, '\n'.join(said.splitlines()[-40:])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='how the notebooks\' names start; default: all')
    parser.add_argument('--flags', default='', help='test flags whose cells run too, such as "cuda slow"')
    parser.add_argument('--workers', type=int, default=2, help='notebooks at a time')
    parser.add_argument('--timeout', type=int, default=400, help='seconds for one notebook')
    parser.add_argument('--counts', type=Path, help='file for "passed failed"')
    args = parser.parse_args()
    found = [p for p in sorted((ROOT/'nbs').glob('[!._]*.ipynb')) if not args.names
        or p.name.startswith(tuple(args.names))]
    if not found:
        sys.exit(f'no notebook in nbs/ {"starts with "+" or ".join(args.names) if args.names else ""}')
    tally = dict(ok=0, FAILED=0, skipped=0)
    with ThreadPoolExecutor(args.workers) as pool:
        for job in as_completed([pool.submit(run_one, p, args.flags, args.timeout) for p in found]):
            name, word, seconds, said = job.result()
            tally[word] += 1
            print(f'{word:<7} {name} {seconds:.1f} s', flush=True)
            if word == 'FAILED': print(said, flush=True)
    if args.counts: args.counts.write_text(f'{tally["ok"]} {tally["FAILED"]}\n')
    sys.exit(tally['FAILED'] > 0)


if __name__ == '__main__': main()
