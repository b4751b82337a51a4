"""The steps of the dress rehearsal: `rehearse` makes everything, runs everything and returns the result.

The configs are the real ones. Changed are numbers of updates and samples, paths, processes for the data, what
follows from few and small files (slices, clips in a shard), and the share of clips that may fail (a miniature
has few good ones beside its broken ones). The models have the real names, and the hub that serves them is a
stand-in with tiny random ones: that is the other width.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from .runner import ROOT, Fault, Process, Rehearsal, read_json, until

LIBRARIES = ('av', 'matplotlib.pyplot', 'pandas', 'scipy.stats', 'seaborn', 'torch', 'torch.distributed',
             'transformers', 'huggingface_hub', 'fvlm.cli', 'fvlm.experiments.recipe',
             'fvlm.experiments.scaling')
MODELS = {'dinov2-small':'facebook/dinov2-small', 'dinov2-base':'facebook/dinov2-base',
    'dinov3-vits16':'facebook/dinov3-vits16-pretrain-lvd1689m',
    'smollm2-135m':'HuggingFaceTB/SmolLM2-135M-Instruct',
    'smollm2-360m':'HuggingFaceTB/SmolLM2-360M-Instruct',
    'smollm2-1.7b':'HuggingFaceTB/SmolLM2-1.7B-Instruct'}
TOKENIZER = MODELS['smollm2-135m']
CONFIGS, SCRIPTS = ROOT/'configs', ROOT/'scripts'
MODES = 'coarse', 'fine', 'autoregressive'
TWO = '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'
# what is said of a clip that is left out -> the reason that the miniature was made with
REASONS = (('not a readable video|cannot be decoded|truncated|broken video', 'a truncated video'),
    ('its status is|failed_to_download', 'failed_to_download'),
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
    for name in ('FVLM_CACHE', 'HF_HUB_CACHE', 'HF_TOKEN', 'TRANSFORMERS_OFFLINE', 'RANK', 'WORLD_SIZE'):
        os.environ.pop(name, None)
    os.environ.update(HF_ENDPOINT=hub, HF_HUB_OFFLINE='0', HF_HOME=str(home/'hf'), FVLM_QUIET='1',
        XDG_CACHE_HOME=str(home/'cache'), WANDB_MODE='disabled', HF_HUB_DISABLE_TELEMETRY='1',
        HF_HUB_DISABLE_PROGRESS_BARS='1', TOKENIZERS_PARALLELISM='false', OMP_NUM_THREADS='1',
        NO_PROXY='127.0.0.1', no_proxy='127.0.0.1',
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


def fetch_slice(r, mini):
    "Half of a data set's media, all its tables."
    words = ['fvlm', 'fetch', mini.name, '--slice', '1/2', '--out', 'slice', '--yes']
    seconds, tables = r.run('fetch a slice', words), len(mini.files)-len(mini.media)
    found = [f for f in mini.files if (r.work/'slice'/f).is_file()]
    r.row(f'fetch {mini.name}, slice 1/2 (files)', len(mini.files), len(found), seconds=seconds,
        expected=dict(samples_out=tables+len(mini.media)//2))


def fetch_row(r, mini, seconds):
    "A whole repository; what is counted are files."
    folder = r.work/'raw'/mini.name
    found = [f for f in mini.files if (folder/f).is_file()]
    r.row(f'fetch {mini.name} (files)', len(mini.files), len(found), seconds=seconds,
        expected=dict(samples_out=len(mini.files)))


AGAIN, ABSENT = 'the same row again', 'a video that is not there'
PRESENT = 'webvid',  # built with `--present`, which passes rows without their video and counts none of them


def build_reports(folder):  # of a build, or of one per slice
    return [read_json(p) for p in sorted(Path(folder).rglob('report.json'))]


def build_row(r, name, minis, seconds, whole=True):
    "What a build says it found, against what its miniatures hold; `whole`: it has read all of them."
    reports, left_out = build_reports(r.work/'data'/name), Counter()
    for report in reports:
        for why, n in report['kinds'].items(): left_out[reason_of(why)] += n
    samples, frames = (sum(x[k] for x in reports) for k in ('samples', 'frames'))
    notes = r.work/'data'/name/'prepare.json'  # of slices: clips whose media are in none
    if notes.is_file(): left_out[ABSENT] += read_json(notes)['absent']
    given = sum(m.records for m in minis)
    wanted = sum((m.left_out+Counter({AGAIN:m.repeats}) for m in minis), Counter())
    rest = given+sum(m.extra for m in minis)-samples-left_out.total()
    if whole: left_out[ABSENT if name in PRESENT else AGAIN] += rest
    expected = dict(samples_out=sum(m.samples for m in minis), left_out=dict(sorted(wanted.items())))
    r.row(f'build {name}', given if whole else samples, samples, left_out, seconds, whole and expected or {})
    if whole:
        right = sum(m.frames for m in minis)
        r.check(f'build {name}', frames == right, f'{frames} frames are stored, expected {right}')
    return samples


def check_rows(r, sets):  # sets: name -> miniatures
    """`fvlm data check` of each, which must find nothing wrong, and note what was made to be noted.

    Returns the notes on sets without miniatures of their own.
    """
    notes = Counter()
    sets = {n:m for n, m in sets.items() if (r.work/'data'/n/'index.json').is_file()}  # without: a fault
    words = {f'check {n}':['fvlm', 'data', 'check', f'data/{n}', '--tokenizer', TOKENIZER] for n in sets}
    for (step, seconds), (name, minis) in zip(sorted_like(r.run_all(words), words), sets.items()):
        said = (r.logs/f'check-{name}.log').read_text()
        lines = re.findall(r'^(?:bad|note): ([\d,]+) × (.*?):', said, re.M)
        found = {reason:int(n.replace(',', '')) for n, reason in lines}
        samples = read_json(r.work/'data'/name/'index.json')['samples']
        wanted = None if minis is None else dict(sorted(sum((m.notes for m in minis), Counter()).items()))
        r.row(step, samples, samples, found, seconds, {} if wanted is None else dict(left_out=wanted))
        notes.update(found if wanted is None else {})
    return notes


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


def begin_until(r, name, words, folder, after, launch=()):
    "A run that has made so many updates and goes on; on a busy machine that can take more than one try."
    for left in (2, 1, 0):
        process = r.begin(f'{name} killed', words, launch=launch)
        try: until(lambda: updates(folder) >= after, process)
        except Fault:
            if process.poll() or not left: raise
        if process.poll() is None and not (Path(folder)/'summary.json').exists(): return process
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def kill_and_resume(r, name, words, folder, after, launch=()):
    "SIGKILL in the middle, then the same command again; -> seconds of both."
    process = begin_until(r, name, words, folder, after, launch)
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
    one, two = (read_json(f/'summary.json')['summary']['read'] for f in (r.work/'straight', straight))
    r.check('stage1, 2 processes', one == two, f'they read {two}, one process {one}')


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
    for file in folders:
        train_row(r, f'ablation {file.parent.name}', file.parent, samples, seconds/len(folders))
    return {f.parent.name for f in folders}


def scaling_cells(r, samples, extra):
    "One cell of the grid per arm, with the keys of the plan and two updates."
    r.run('scaling plan', [SCRIPTS/'scale.py', '--study', 'smollm2', '--plan', *extra])
    words = [ROOT/'tests'/'rehearsal'/'cells.py', *extra]
    seconds = r.run('scaling cells', words)
    for kind in ('foveated', 'grid16'):
        train_row(r, f'scaling cell 135M-{kind}', r.work/'cells'/f'135M-{kind}', samples, seconds/2)


# the whole

SEED, UPDATES, BATCH = 0, 8, 32  # the batch is that of the configs
FEW = ['train.log_every=1', 'train.workers=1', 'eval.samples=8']
RECIPE = ['out=run', 'shards=data', 'build.max_bad=0.5', 'build.per_shard=16', 'build.workers=0',
    'data.openvid.slices=3', 'data.cauldron.slices=2', 'data.llava-video.slices=4', 'data.vista.slices=4',
    'data.finevideo.slices=2', *(f'data.{n}.expect.clips=100' for n in ('openvid', 'webvid', 'cauldron',
        'llava-video', 'vista', 'finevideo', 'smoltalk1', 'smoltalk2', 'smoltalk3', 'smoltalk')),
    f'every_stage.train.steps={UPDATES}', 'every_stage.train.save_every=2',
    *(f'every_stage.{x}' for x in FEW)]
STUDY = ['train.steps=2', 'train.log_every=1', 'train.workers=0', 'eval.samples=8']
OTHERS = {  # data sets that no recipe reads -> kind, and the table or folder of tables in `raw/NAME`
    'webvid-tars':('tars', ''), 'sharegpt4video':('sharegpt4video', 'sharegpt4video_40k.jsonl'),
    'sharegptvideo':('sharegptvideo', 'video_instruction/train'), 'rlaif-v':('rlaif_v', ''),
    'rlaif-v-formatted':('rlaif_v', '')}


def other_sets(r, minis):
    "Fetched, built and checked one by one, as one would by hand."
    fetched = r.run_all({f'fetch {n}':['fvlm', 'fetch', n, '--yes'] for n in OTHERS if minis[n].repo})
    shutil.copytree(r.home/'hub'/'webvid-tars', r.work/'raw'/'webvid-tars')
    for name in OTHERS:
        if minis[name].repo: fetch_row(r, minis[name], fetched[f'fetch {name}'])
    fetch_slice(r, minis['llava-video'])
    words = {}
    for name, (kind, table) in OTHERS.items():
        words[f'build {name}'] = ['fvlm', 'data', 'build', f'raw/{name}/{table}'.rstrip('/'), f'data/{name}',
            '--kind', kind, '--media', f'raw/{name}', '--tokenizer', TOKENIZER, '--per-shard', 16,
            '--max-bad', .5]
    seconds = r.run_all(words)
    for name in OTHERS: build_row(r, name, [minis[name]], seconds[f'build {name}'])
    check_rows(r, {n:[minis[n]] for n in OTHERS})


def recipe_steps():
    from fvlm.experiments.recipe import plan_steps, read_recipe
    return {s.name:s for s in plan_steps(read_recipe(CONFIGS/'pipeline.yaml', RECIPE))}


def run_recipe(r):  # -> name of each step to its seconds
    "The recipe as a user starts it, killed in the middle of the first stage and started again."
    words = [ROOT/'tests'/'rehearsal'/'small_hub.py', SCRIPTS/'pipeline.py', CONFIGS/'pipeline.yaml', *RECIPE]
    stage1 = r.work/'run'/'stage1'
    process = r.begin('pipeline', words, fresh=True)
    until(lambda: updates(stage1) >= 3, process, 900)
    pid, = [pid for pid, line in process.children().items() if 'train.py' in line]
    process.kill(pid)
    code, at = process.wait(), updates(stage1)
    r.check('pipeline', code == 1 and 'stage1 ended with exit code -9' in process.tail(),
        f'after the kill it ended with {code}; {process.tail()}')
    r.row('stage1: killed after update', at, at, seconds=time.time()-process.began)
    r.run('pipeline again', words, fresh=True)
    return {name:step['seconds'] for name, step in read_json(r.work/'run'/'pipeline.json').items()}


def run_recipe_quickly(r, steps):
    "The steps of the recipe one by one; data sets side by side."
    apart = {n:s.words for n, s in steps.items() if n.startswith('data ') and 'smoltalk' not in n}
    seconds = r.run_all(apart)
    for name in steps:  # the four sets of one download, one after the other
        if name.startswith('data ') and name not in seconds: seconds[name] = r.run(name, steps[name].words)
    words, out = [*steps['stage1'].words], r.work/'run'/'stage1'
    seconds['stage1'] = kill_and_resume(r, 'stage1', words, out, 3)
    for name in ('stage2', 'stage3', 'evaluation', 'report'): seconds[name] = r.run(name, steps[name].words)
    return seconds


def recipe_rows(r, minis, steps, seconds):
    shares = [n for n in (s.removeprefix('data ') for s in steps if s.startswith('data '))
        if n.startswith('smoltalk')]
    wholes = [n for n in (s.removeprefix('data ') for s in steps if s.startswith('data ')) if n not in shares]
    for name in wholes:
        build_row(r, name, [minis[name]], seconds[f'data {name}'])
        left = [f for f in minis[name].files if (r.work/'raw'/name/f).is_file() and f in minis[name].media]
        r.check(f'build {name}', not left, f'the media of the slices are still there: {left}')
    parts = [build_row(r, n, [minis['smoltalk']], seconds[f'data {n}'], whole=False) for n in shares]
    r.row('smoltalk, all shares', minis['smoltalk'].samples, sum(parts),
        expected=dict(samples_out=minis['smoltalk'].samples))
    notes = check_rows(r, {n:[minis[n]] for n in wholes} | {n:None for n in shares})
    r.check('check smoltalk', notes == minis['smoltalk'].notes, f'in all shares {notes} were noted')
    for name in ('stage1', 'stage2', 'stage3'):
        train_row(r, name, r.work/'run'/name, UPDATES*BATCH, seconds[name])


def empty(home):
    "Delete what an earlier rehearsal has left, and nothing else."
    mark = home/'.rehearsal'
    if home.exists() and not mark.is_file() and any(home.iterdir()):
        raise Fault(f'{home} holds other things; give a new folder with --home')
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    mark.touch()


def rehearse(home, out, quick=False, true_shapes=False):  # -> what differed, in words
    "Everything; writes `out` when nothing differed."
    try: empty(home)
    except Fault as e: return [str(e)]
    start = time.time()
    with stand_in_hub(home/'hub') as hub:
        set_variables(home, hub)
        preload()
        r = Rehearsal(home, quick)
        os.chdir(r.work)
        try: all_steps(r)
        except Fault as e: r.faults.append(str(e))
        except Exception: r.faults.append(traceback.format_exc())
        shapes = true_shapes and not r.faults and run_true_shapes(r)
    from fvlm.training.tracking import run_info
    result = dict(info=run_info(), quick=quick, seed=SEED, config='configs/pipeline.yaml', overrides=RECIPE,
        study_overrides=STUDY, seconds=round(time.time()-start, 1), steps=r.rows)
    if shapes: result['true_shapes'] = shapes
    wrong = sum(not row['ok'] for row in r.rows)
    print(f'{len(r.rows)} steps, {wrong} of them wrong, {time.time()-start:.0f} s')
    if not r.faults:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1)+'\n')
    return r.faults


def all_steps(r):
    from .miniatures import make_data
    from .models import make_models
    began = time.time()
    minis, models = make_data(r.home/'hub', r.quick), make_models(r.home/'hub')
    print(f"{'':6}{'step':34}{'in':>8}{'out':>8}{'':>8}    left out")
    count = sum(m.records for m in minis.values())
    r.row('miniatures', count, count, seconds=time.time()-began)
    fetch_models(r)
    other_sets(r, minis)
    shutil.copytree(r.home/'hub'/'webvid'/'videos', r.work/'raw'/'webvid'/'videos')
    steps = recipe_steps()
    seconds = run_recipe_quickly(r, steps) if r.quick else run_recipe(r)
    recipe_rows(r, minis, steps, seconds)
    straight = r.work/'straight'
    took = r.run('stage1 without a kill', [*steps['stage1'].words, f'out={straight}'])
    train_row(r, 'stage1 without a kill', straight, UPDATES*BATCH, took)
    same_result(r, 'stage1', straight, r.work/'run'/'stage1')
    evaluation_rows(r, 'question_first', r.work/'run'/'evaluation.json', seconds['evaluation'])
    other_order(r, steps['evaluation'])
    page = (r.work/'run'/'report.html').read_text()
    whole = all(f'stage{i}' in page for i in (1, 2, 3)) and 'data:image/png' in page
    r.check('report', whole, 'it does not show all stages')
    r.row('report (pages)', 1, 1, seconds=seconds['report'])
    if not r.quick: two_processes(r, steps['stage1'].words, UPDATES*BATCH)
    studies(r)


def other_order(r, step):
    words = [w for w in step.words]
    words[words.index('--order')+1], words[words.index('--out')+1] = 'video_first', 'video_first.json'
    seconds = r.run('evaluation, video first', words)
    evaluation_rows(r, 'video_first', r.work/'video_first.json', seconds)


def studies(r):
    from fvlm.experiments.ablations import ABLATIONS
    names = ['A1', 'B1'] if r.quick else list(ABLATIONS)
    done = {n.split('-')[0] for n in ablation_rows(r, names, 2*BATCH, STUDY)}
    r.check('ablations', done == {*names, 'LR1'}, f'only {sorted(done)} were run')
    files = {p.stem for p in (CONFIGS/'ablations').glob('*.yaml')}-{n.lower() for n in ABLATIONS}
    for name in () if r.quick else sorted(files-{'baseline', 'tiny'}):
        file = CONFIGS/'ablations'/f'{name}.yaml'
        words = [SCRIPTS/'train.py', '--config', file, *STUDY, f'out=more/{name}']
        train_row(r, f'ablation {name}', r.work/'more'/name, 2*BATCH, r.run(f'ablation {name}', words))
    scaling_cells(r, 2*BATCH, STUDY[1:])
    if not r.quick: other_configs(r)


OTHER_DATA = {  # folders of shards that other configs name -> data set of `fvlm fetch`, options of its build
    **{f'data256/{n}':(n, '--size', 256) for n in ('openvid', 'webvid')},
    **{f'data8/{n}':(n, '--frames', 8) for n in ('openvid', 'webvid')},
    **{f'data/{n}8':(n, '--cap', 8) for n in ('openvid', 'webvid')},
    'data256x8/llava-video':('llava-video', '--size', 256, '--frames', 8)}
OTHER_CONFIGS = {  # -> samples of an update
    **{f'{n}/stage1':BATCH for n in ('360m', '1.7b', 'dinov2-base', 'dinov3', 'uniform8')},
    'stage1_24gb':8, 'stage1_2x80gb':BATCH, 'stage1_converging':BATCH, 'first_document/24gb':8}


def other_configs(r):
    "Two updates of each further configuration of stage 1, on shards cut as its comment says."
    for folder, (name, *options) in OTHER_DATA.items():  # two of them can share a download
        words = [SCRIPTS/'prepare.py', name, folder, *options, '--keep-raw', '--tokenizer', TOKENIZER,
            '--max-bad', .5, '--per-shard', 16]
        r.run(f'data {folder}', words)
    for folder in ('data256', 'data8'):
        shutil.copytree(r.work/'data'/'smoltalk1', r.work/folder/'smoltalk1')
    words = {f'config {n}':[SCRIPTS/'train.py', '--config', CONFIGS/f'{n}.yaml', *STUDY, f'out=more/{n}']
        for n in OTHER_CONFIGS}
    seconds = r.run_all(words)
    for name, batch in OTHER_CONFIGS.items():
        train_row(r, f'config {name}', r.work/'more'/name, 2*batch, seconds[f'config {name}'])


def run_true_shapes(r):
    "Alone on the machine, with all its cores."
    file, cores = r.work/'true_shapes.json', {'OMP_NUM_THREADS':str(os.cpu_count())}
    code = ('import json, sys; from tests.rehearsal.true_shapes import true_shapes; '
        'json.dump(true_shapes(), open(sys.argv[1], "w"))')
    seconds = r.run('true shapes', ['-c', code, file], fresh=True, env=cores)
    shapes = read_json(file)
    count = shapes['updates']*shapes['samples_per_update']
    r.row('true shapes', count, count, seconds=seconds)
    return shapes
