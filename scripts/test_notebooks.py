"""Run the notebooks as tests, each in a process of its own, and tell which passed and how long they took.

    python scripts/test_notebooks.py                          # all, two at a time
    python scripts/test_notebooks.py 2_model 4_training/02    # those below nbs/ whose path starts so
    python scripts/test_notebooks.py --flags cuda             # with the cells under `#| cuda`

The processes are forked from one that has imported the large libraries: seconds saved for each notebook.
"""
import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT/'nbs'
LIBRARIES = ('av', 'matplotlib.pyplot', 'pandas', 'scipy.stats', 'seaborn', 'torch', 'torch.distributed',
             'transformers')


def run_one(path, flags, log):
    "In a process of its own: run one notebook; 0 passed, 1 failed, 77 all of it is skipped."
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2): os.dup2(file, stream)
    from nbdev.config import get_config
    from nbdev.test import test_nb
    # nbdev_test only names failed notebooks; its `test_nb` gives (passed, seconds), (True, 0) if skipped
    skip = get_config().tst_flags.split()
    passed, seconds = test_nb(path, skip_flags=skip, force_flags=flags, basepath=path.parent)
    sys.stdout.flush()
    os._exit(0 if passed and seconds else 77 if passed else 1)


def start(path, flags, logs):
    process = multiprocessing.get_context('fork').Process(target=run_one, args=(path, flags, logs/path.stem))
    process.start()
    return dict(process=process, path=path, log=logs/path.stem, began=time.time())


def finish(job, timeout):
    "The word for how a job ended; None while it runs. One that takes too long is killed with its children."
    late = time.time()-job['began'] > timeout
    if job['process'].is_alive() and not late: return None
    if late:
        os.killpg(job['process'].pid, signal.SIGKILL)
        with open(job['log'], 'a') as log: log.write(f'\nstopped after {timeout} s')
    job['process'].join()
    return {0: 'ok', 77: 'skipped'}.get(job['process'].exitcode, 'FAILED')


def run_all(paths, flags, workers, timeout):
    "Run notebooks, `workers` at a time; yields path, word, seconds and the end of the output."
    waiting, running = list(paths), []
    with tempfile.TemporaryDirectory() as logs:
        while waiting or running:
            while waiting and len(running) < workers: running.append(start(waiting.pop(0), flags, Path(logs)))
            wait([job['process'].sentinel for job in running], timeout=1)
            for job in list(running):
                if not (word := finish(job, timeout)): continue
                running.remove(job)
                text = job['log'].read_text(errors='replace') if job['log'].exists() else ''
                yield job['path'], word, time.time()-job['began'], '\n'.join(text.splitlines()[-40:])


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument('names', nargs='*', help='how the paths below nbs/ start; default: all')
    parser.add_argument('--flags', default='', help='test flags whose cells run too, such as "cuda slow"')
    parser.add_argument('--workers', type=int, default=2, help='notebooks at a time')
    parser.add_argument('--timeout', type=int, default=300, help='seconds for one notebook')
    parser.add_argument('--counts', type=Path, help='file for "passed failed"')
    args = parser.parse_args()
    below = {p.relative_to(NBS).as_posix(): p for p in sorted(NBS.rglob('*.ipynb'))}
    found = [p for name, p in below.items() if name.startswith(tuple(args.names) or '')
             and not any(piece[0] in '._' for piece in name.split('/'))]
    if not found: sys.exit(f'no notebook in nbs/ starts with {" or ".join(args.names)}')
    for name in LIBRARIES: __import__(name)
    os.chdir(ROOT)
    tally = dict(ok=0, FAILED=0, skipped=0)
    for path, word, seconds, text in run_all(found, args.flags.split(), args.workers, args.timeout):
        tally[word] += 1
        print(f'{word:<7} {path.relative_to(NBS)} {seconds:.1f} s', flush=True)
        if word == 'FAILED': print(text, flush=True)
    if args.counts: args.counts.write_text(f'{tally["ok"]} {tally["FAILED"]}\n')
    sys.exit(tally['FAILED'] > 0)


if __name__ == '__main__': main()
