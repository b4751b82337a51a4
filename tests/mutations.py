"""Break one line at a time and see whether a test notices: the breakages of tests/mutations.yaml, each
with the check that must catch it.

    python tests/mutations.py                # all of them, about ten minutes; writes results/mutations.json
    python tests/mutations.py --only M1 M7   # some of them; writes outputs/mutations.json

Each is one replacement in an exported cell of a notebook, made and exported in a copy of the repository.
It is caught when the notebook or test named beside it fails, while the same check passes without it.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PARTS = 'nbs', 'fvlm', 'scripts', 'tests', 'configs', 'results'


@dataclass
class Mutation:
    "One broken line."
    id: str
    what: str  # what is broken
    notebook: str  # path below nbs/ without its suffix
    good: str  # text of one exported cell, found once
    bad: str  # what replaces it
    check: str  # the notebook (path below nbs/) or test file (tests/...) that must fail


def read_mutations():
    return [Mutation(**m) for m in yaml.safe_load((ROOT/'tests/mutations.yaml').read_text(encoding='utf-8'))]


def copy_of_repository(folder):
    for part in PARTS: shutil.copytree(ROOT/part, folder/part, symlinks=True)
    for file in ('settings.ini', 'setup.py', 'README.md', '_quarto.yml'): shutil.copy(ROOT/file, folder)
    return folder


def environment(folder):
    "The copy's package comes first, whatever is installed."
    quiet = dict(PYTHONPATH=str(folder), HF_HUB_OFFLINE='1', WANDB_MODE='offline', OMP_NUM_THREADS='1')
    return os.environ | quiet


def run(folder, *command):
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment(folder),
                          capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def run_check(folder, check):
    "Exit status and output of a notebook or a test file in the copy."
    pytest = '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider'
    if check.startswith('tests/'): return run(folder, *pytest, check)
    return run(folder, 'scripts/test_notebooks.py', check)


def apply(folder, mutation):
    "Break the line in the copy's notebook and export it; returns the notebook's text before."
    path = folder/'nbs'/f'{mutation.notebook}.ipynb'
    before = path.read_text(encoding='utf-8')
    nb = json.loads(before)
    hits = [c for c in nb['cells'] if c['cell_type'] == 'code' and mutation.good in ''.join(c['source'])]
    hits = [c for c in hits if ''.join(c['source']).startswith('#| export')]
    found = sum(''.join(c['source']).count(mutation.good) for c in hits)
    if found != 1:
        raise SystemExit(f'{mutation.id}: {mutation.good!r} is in {found} exported places, not 1')
    broken = ''.join(hits[0]['source']).replace(mutation.good, mutation.bad)
    hits[0]['source'] = broken.splitlines(keepends=True)
    path.write_text(json.dumps(nb), encoding='utf-8')
    return before


def export(folder, notebook):
    code = "import sys; from nbdev.export import nb_export; nb_export(sys.argv[1], 'fvlm')"
    status, said = run(folder, '-c', code, f'nbs/{notebook}.ipynb')
    if status: raise SystemExit(f'{notebook}: cannot be exported: {said[-500:]}')


def reason(text):
    "The last line of a failure that names an error."
    lines = [l.strip() for l in text.splitlines() if 'Error' in l or 'FAILED' in l]
    return lines[-1][:200] if lines else ''


def try_mutation(folder, mutation, healthy):
    "Row of the table: was the breakage caught?"
    start = time.time()
    if mutation.check not in healthy: healthy[mutation.check] = run_check(folder, mutation.check)[0] == 0
    before = apply(folder, mutation)
    try:
        export(folder, mutation.notebook)
        status, said = run_check(folder, mutation.check)
    finally:
        (folder/'nbs'/f'{mutation.notebook}.ipynb').write_text(before, encoding='utf-8')
        export(folder, mutation.notebook)
    caught = healthy[mutation.check] and status != 0
    failure = reason(said) if status else ''
    return asdict(mutation) | dict(caught=caught, passes_unbroken=healthy[mutation.check], failure=failure,
                                   seconds=round(time.time()-start, 1))


def main():
    parser = argparse.ArgumentParser(description='Break one line at a time and see whether a test notices.')
    parser.add_argument('--only', nargs='+', default=[], metavar='ID', help='some of them')
    args = parser.parse_args()
    from fvlm.training.tracking import run_info
    chosen = [m for m in read_mutations() if not args.only or m.id in args.only]
    rows, healthy = [], {}
    with tempfile.TemporaryDirectory() as tmp:
        folder = copy_of_repository(Path(tmp))
        for m in chosen:
            rows.append(try_mutation(folder, m, healthy))
            word = 'caught' if rows[-1]['caught'] else 'SURVIVED'
            print(f'{m.id:4} {word:8} {m.what} ({m.check})', flush=True)
    out = ROOT/('outputs' if args.only else 'results')/'mutations.json'
    out.parent.mkdir(exist_ok=True)
    result = dict(command='python tests/mutations.py', info=run_info(), rows=rows)
    out.write_text(json.dumps(result, indent=1) + '\n')
    survived = [r['id'] for r in rows if not r['caught']]
    print(f'{out.relative_to(ROOT)}: {len(rows)-len(survived)} of {len(rows)} caught', *survived)
    sys.exit(bool(survived))


if __name__ == '__main__': main()
