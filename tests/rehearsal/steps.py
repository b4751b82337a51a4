"""The steps of the dress rehearsal: `rehearse` makes everything, runs everything and returns the result.

The configs are the real ones. Changed are numbers of updates and samples, paths, processes for the data, and the
share of clips that may fail (a miniature has few good ones beside its broken ones). The models have the real
names, and the hub that serves them is a stand-in with tiny random ones: that is the other width.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from .runner import ROOT, Fault, Process, Rehearsal, read_json, until

LIBRARIES = ('av', 'matplotlib.pyplot', 'pandas', 'scipy.stats', 'seaborn', 'torch', 'torch.distributed',
             'transformers', 'huggingface_hub', 'fvlm.cli', 'fvlm.experiments.recipe',
             'fvlm.experiments.scaling')
MODELS = {'dinov2-small':'facebook/dinov2-small', 'dinov2-base':'facebook/dinov2-base',
    'dinov3-vits16':'facebook/dinov3-vits16-pretrain-lvd1689m',
    'smollm2-135m':'HuggingFaceTB/SmolLM2-135M-Instruct', 'smollm2-360m':'HuggingFaceTB/SmolLM2-360M-Instruct',
    'smollm2-1.7b':'HuggingFaceTB/SmolLM2-1.7B-Instruct'}
TOKENIZER = MODELS['smollm2-135m']
CONFIGS, SCRIPTS = ROOT/'configs', ROOT/'scripts'
MODES = 'coarse', 'fine', 'autoregressive'
TWO = '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'
# what is said of a clip that is left out -> the reason that the miniature was made with
REASONS = (('not a readable video|cannot be decoded|truncated|broken video', 'a truncated video'),
    ('no such file|not there|in no archive|no member', 'a video that is not there'),
    ("both answers are the same", 'both answers are the same'),
    ("its field|turn|answer|caption|empty", 'a missing field'))


def reason_of(why):
    return next((reason for pattern, reason in REASONS if re.search(pattern, why)), why)


@contextmanager
def stand_in_hub(folder):  # yields its address
    words = [sys.executable, str(ROOT/'tests'/'hub_server.py'), str(folder)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try: yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def set_variables(home, hub):
    "Before any large library is imported: they read these when they start."
    for name in ('FVLM_CACHE', 'HF_HUB_CACHE', 'HF_TOKEN', 'RANK', 'WORLD_SIZE'): os.environ.pop(name, None)
    os.environ.update(HF_ENDPOINT=hub, HF_HUB_OFFLINE='0', HF_HOME=str(home/'hf'), FVLM_QUIET='1',
        XDG_CACHE_HOME=str(home/'cache'), WANDB_MODE='disabled', HF_HUB_DISABLE_TELEMETRY='1',
        HF_HUB_DISABLE_PROGRESS_BARS='1', TOKENIZERS_PARALLELISM='false', OMP_NUM_THREADS='1',
        MKL_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', PYTHONPATH=str(ROOT))


def preload():
    for name in LIBRARIES: __import__(name)
    import torch
    torch.set_num_threads(1)


# fetch, build, check

def fetch_models(r):
    names = list(MODELS)[:1]+list(MODELS)[3:4] if r.quick else list(MODELS)
    seconds = r.run_all({f'fetch {n}':['fvlm', 'fetch', n, '--yes'] for n in names})
    for name in names:
        folder = r.home/'hf'/'hub'/f"models--{MODELS[name].replace('/', '--')}"/'snapshots'
        found = [p.name for p in folder.rglob('*') if p.exists() and not p.is_dir()]
        r.check(f'fetch {name}', {'config.json', 'model.safetensors'} <= set(found), f'there is only {found}')
    r.row('fetch models', len(names), len(seconds), seconds=sum(seconds.values()))


def fetch_row(r, mini, seconds):
    "A whole repository; what is counted are files."
    folder = r.work/'raw'/mini.name
    found = [f for f in mini.files if (folder/f).is_file()]
    r.row(f'fetch {mini.name} (files)', len(mini.files), len(found), seconds=seconds,
        expected=dict(samples_out=len(mini.files)))


def build_reports(folder):  # of a build, or of one per slice
    return [read_json(p) for p in sorted(Path(folder).rglob('report.json'))]


def build_row(r, name, minis, seconds, whole=True):
    "What a build says it found, against what its miniatures hold; `whole`: it has read all of them."
    reports, left_out = build_reports(r.work/'data'/name), Counter()
    for report in reports:
        for why, n in report['kinds'].items(): left_out[reason_of(why)] += n
    samples, frames = (sum(x[k] for x in reports) for k in ('samples', 'frames'))
    given = sum(m.records for m in minis)
    wanted = sum((m.left_out for m in minis), Counter())
    expected = dict(samples_out=sum(m.samples for m in minis), left_out=dict(sorted(wanted.items())))
    r.row(f'build {name}', given if whole else samples, samples, left_out, seconds, whole and expected or {})
    if whole:
        right = sum(m.frames for m in minis)
        r.check(f'build {name}', frames == right, f'{frames} frames are stored, expected {right}')
    return samples


def check_rows(r, sets):  # sets: name -> miniatures
    "`fvlm data check` of each, which must find nothing wrong, and note what was made to be noted."
    words = {f'check {n}':['fvlm', 'data', 'check', f'data/{n}', '--tokenizer', TOKENIZER] for n in sets}
    for (step, seconds), (name, minis) in zip(sorted_like(r.run_all(words), words), sets.items()):
        said = (r.logs/f'check-{name}.log').read_text()
        found = {m[2]:int(m[1].replace(',', '')) for m in re.finditer(r'^(?:bad|note): ([\d,]+) × (.*?):', said,
            re.M)}
        samples = read_json(r.work/'data'/name/'index.json')['samples']
        wanted = None if minis is None else dict(sorted(sum((m.notes for m in minis), Counter()).items()))
        r.row(step, samples, samples, found, seconds, {} if wanted is None else dict(left_out=wanted))


def sorted_like(found, order): return [(k, found[k]) for k in order]


# training

def metrics(folder):
    file = Path(folder)/'metrics.jsonl'
    return [json.loads(l) for l in file.read_text().splitlines()] if file.is_file() else []


def updates(folder): return max((row['step'] for row in metrics(folder)), default=0)


def train_row(r, step, folder, samples, seconds):
    "What a run says it has read: so many samples, none of them bad."
    read = read_json(Path(folder)/'summary.json')['summary']['read'].values()
    total, bad, too_long = (sum(s[k] for s in read) for k in ('samples', 'bad', 'too_long'))
    r.row(step, total, total-bad, {'bad':bad, 'too long, cut or left':too_long}, seconds,
        dict(samples_in=samples, samples_out=samples))
    losses = [v for row in metrics(folder) for k, v in row.items() if k == 'loss']
    r.check(step, losses and all(isinstance(x, float) and x < 50 for x in losses), f'losses are {losses[:5]}')


def weights(folder): return (Path(folder)/'model'/'model.safetensors').read_bytes()


def same_result(r, step, one, other):
    r.check(step, weights(one) == weights(other), f'the weights of {one} and {other} differ')
    a, b = ([(row['step'], row['loss']) for row in metrics(f) if 'loss' in row] for f in (one, other))
    r.check(step, a == b, f'the losses of {one} and {other} differ: {a} and {b}')


def kill_and_resume(r, name, words, folder, after, launch=()):
    "SIGKILL in the middle, then the same command again; -> seconds of both."
    process = r.begin(f'{name} killed', words, launch=launch)
    until(lambda: updates(folder) >= after, process)
    ranks = [pid for pid, line in process.children().items() if 'train.py' in line]
    process.kill(ranks[-1] if launch else 0)
    process.wait()
    first, at = time.time()-process.began, updates(folder)
    r.check(name, not (Path(folder)/'summary.json').exists(), 'it was over before it was killed')
    seconds = r.run(f'{name} resumed', words, launch=launch)
    r.row(f'{name}: killed after update', at, at, seconds=first)
    return first+seconds


def two_processes(r, words, samples):
    "The first stage by two processes: in one go, and killed in the middle."
    straight, killed = r.work/'two'/'straight', r.work/'two'/'killed'
    seconds = r.run('two processes', [*words, f'out={straight}'], launch=TWO)
    train_row(r, 'stage1, 2 processes', straight, samples, seconds)
    seconds = kill_and_resume(r, 'two processes', [*words, f'out={killed}'], killed, 3, TWO)
    train_row(r, 'stage1, 2 processes, killed', killed, samples, seconds)
    same_result(r, 'stage1, 2 processes, killed', straight, killed)


# evaluation

def test_samples(r, name):
    import numpy as np
    from fvlm.data.shards import Shards
    return len(Shards(str(r.work/'data'/name), 'test'))


def evaluation_rows(r, order, file, seconds):
    found = read_json(file)
    places = {}
    for row in found['results']: places.setdefault(row['data'], []).append(row)
    for name, rows in places.items():
        modes = {m:sum(x['n'] for x in rows if x['mode'] == m) for m in (*MODES, 'text')}
        without_frames = modes.pop('text')  # scored once
        left_out = {k.replace('_', ' '):rows[0][k] for k in ('bad', 'too_long', 'too_large')}
        there = test_samples(r, name)
        r.row(f'evaluate {name}, {order}', there, modes['fine']+without_frames, left_out, seconds/len(places),
            dict(samples_out=there-sum(left_out.values())))
        r.check(f'evaluate {name}', len(set(modes.values())) == 1 and there, f'items of the modes: {modes}')


# studies

def ablation_rows(r, names, samples, extra):
    words = [SCRIPTS/'ablate.py', '--base', CONFIGS/'ablations'/'baseline.yaml', '--jobs', r.jobs, '--out',
        'ablations', '--only', *names, *extra]
    seconds = r.run('ablations', words, timeout=1200)
    folders = sorted((r.work/'ablations'/'runs').glob('*/summary.json'))
    for file in folders: train_row(r, f'ablation {file.parent.name}', file.parent, samples, seconds/len(folders))
    return {f.parent.name for f in folders}


def scaling_cells(r, samples, extra):
    "One cell of the grid per arm, with the keys of the plan and two updates."
    r.run('scaling plan', [SCRIPTS/'scale.py', '--study', 'smollm2', '--plan', *extra])
    words = [ROOT/'tests'/'rehearsal'/'cells.py', *extra]
    seconds = r.run('scaling cells', words)
    for kind in ('foveated', 'grid16'):
        train_row(r, f'scaling cell 135M-{kind}', r.work/'cells'/f'135M-{kind}', samples, seconds/2)
