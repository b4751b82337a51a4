"""The whole pipeline in a world of forty videos: stopped, killed, and called again until it is done.

And where it keeps its caches."""
import fcntl, json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

from fvlm.experiments.recipe import plan_steps, plan_text, read_recipe, stage_configs
from fvlm.model.foveated import load_tokenizer
from fvlm.world.backbones import tiny_llm, tiny_vit

ROOT = Path(__file__).resolve().parents[1]
CACHES = ('TMPDIR XDG_CACHE_HOME PIP_CACHE_DIR HF_HOME TORCH_HOME TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR '
          'CUDA_CACHE_PATH WANDB_DIR WANDB_CACHE_DIR WANDB_DATA_DIR WANDB_CONFIG_DIR MPLCONFIGDIR '
          'RAY_TMPDIR').split()
STAGE = '''
name: {name}
stage: {i}
model: {{vision: none, language: none, lambda_coarse: 0.2{init}}}
data: {{shards: lookup, frame_size: 40, text_share: 0, max_tokens: 128}}
train: {{steps: 3, batch_size: 4, log_every: 1, save_every: 2, eval_every: 2}}
eval: {{samples: 4, modes: [coarse, fine]}}
log: {{wandb: false}}
'''
RECIPE = '''
name: small
out: run
world: {lookup: 40, pretraining_steps: 1}
build: {size: 40, tokenizer: tiny, per_shard: 40}
stages:
  stage1: stage1.yaml
  stage2: {config: stage2.yaml, train.steps: 30, train.save_every: 10, train.eval_every: 0}
  stage3: stage3.yaml
evaluate: {samples: 8, modes: [coarse, fine]}
'''


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A recipe, random backbones, an empty home folder, and an environment whose Python writes its variables."
    home = tmp_path_factory.mktemp('pipe')
    for i in (1, 2, 3):
        init = ', init: none' if i > 1 else ''
        (home/f'stage{i}.yaml').write_text(STAGE.format(name=f'stage{i}', i=i, init=init))
    (home/'recipe.yaml').write_text(RECIPE)
    tokenizer, backbones = load_tokenizer('tiny'), home/'run'/'world'/'backbones'
    tiny_vit().save_pretrained(backbones/'vision')
    for part in (tiny_llm(len(tokenizer)), tokenizer): part.save_pretrained(backbones/'language')
    python = home/'venv'/'bin'/'python'
    python.parent.mkdir(parents=True)
    (home/'home').mkdir()
    python.write_text(f'#!/bin/sh\nenv >{home}/variables\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    stamp = subprocess.run('{ pwd; cat settings.ini constraints.txt setup.py; } | cksum', shell=True,
        cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (home/'venv'/'.fvlm-stamp').write_text(stamp)
    return home


def start(home, *arguments):
    "The command as a user gives it, with one variable for all caches."
    env = {k:v for k, v in os.environ.items() if k not in CACHES} | {
        'HOME':str(home/'home'), 'FVLM_CACHE':str(home/'cache'), 'FVLM_VENV':str(home/'venv'),
        'OMP_NUM_THREADS':'1', 'FVLM_QUIET':'1', 'PYTHONPATH':str(ROOT)}
    return subprocess.Popen(['bash', str(ROOT/'scripts'/'pipeline.sh'), 'recipe.yaml', *arguments], cwd=home,
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)

def ends(process, timeout=1200):
    output = process.communicate(timeout=timeout)[0]
    return process.returncode, output

def until(happens, process=None, timeout=900):
    stop = time.time()+timeout
    while not happens():
        assert process is None or process.poll() is None, process.stdout.read()[-3000:]
        assert time.time() < stop, 'it never happened'
        time.sleep(.02)

def rows(home, stage):
    return len(p.read_text().splitlines()) if (p := home/'run'/stage/'metrics.jsonl').is_file() else 0

def stamps(home):
    files = 'run/world/report.json', 'run/shards/lookup/report.json', 'run/stage1/summary.json'
    return {f:(home/f).stat().st_mtime_ns for f in files}

def is_free(home):
    "Does nobody hold the lock: neither the pipeline nor its step?"
    with open(home/'run'/'.lock') as f:
        try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError: return False
    return True


@pytest.mark.parametrize('name', ['pipeline.yaml', 'tiny/pipeline.yaml'])
def test_the_recipes_of_the_repository(name, tmp_path, monkeypatch):
    "Each stage continues the one before and reads what the recipe builds; the plan needs no files."
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(ROOT/'configs'/name, ['out=run', 'shards=tars'])
    configs = [c for _, _, c in stage_configs(recipe).values()]
    assert [c.stage for c in configs] == [1, 2, 3]
    assert [c.model.init for c in configs] == ['', 'run/stage1/model', 'run/stage2/model']
    assert all(f.strip().startswith('tars/') for c in configs for f in c.data.shards.split(','))
    assert plan_text(recipe, steps := plan_steps(recipe)).count('to do') == len(steps)
    assert list(tmp_path.iterdir()) == []


def test_stopped_killed_and_finished(home):
    process = start(home)
    until(lambda: rows(home, 'stage2') > 3, process)
    os.kill(process.pid, signal.SIGTERM)
    code, output = ends(process)
    assert code == os.EX_TEMPFAIL, output[-3000:]
    assert 'pipeline: stage2 was stopped; the same command continues' in output, output[-3000:]
    assert not (home/'run/stage2/summary.json').exists()
    assert not (home/'run/stage3').exists(), 'a stage began behind one that was stopped'
    first, seen = stamps(home), rows(home, 'stage2')

    process = start(home)
    until(lambda: rows(home, 'stage2') > seen+3, process)
    os.killpg(process.pid, signal.SIGKILL)
    output = process.stdout.read()
    assert all(f'pipeline: {n} is done' in output for n in ('world', 'data lookup', 'stage1')), output[-3000:]
    until(lambda: is_free(home))  # the stage has noticed that its parent is dead
    assert not (home/'run/stage2/summary.json').exists() and not (home/'run/stage3').exists()

    code, output = ends(start(home))
    assert code == 0 and 'pipeline: all steps are done' in output, output[-3000:]
    assert stamps(home) == first, 'a finished step was repeated'
    notes = json.loads((home/'run/pipeline.json').read_text())
    assert list(notes) == ['world', 'data lookup', 'stage1', 'stage2', 'stage3', 'evaluation', 'report']
    config = json.loads((home/'run/stage3/summary.json').read_text())['config']
    assert config['model']['init'] == 'run/stage2/model' and config['data']['shards'] == 'run/shards/lookup'
    found = json.loads((home/'run/evaluation.json').read_text())
    assert [(r['mode'], r['n']) for r in found['results']] == [('coarse', 8), ('fine', 8)]
    assert found['info']['cpu'] and found['paired'][0]['n'] == 8
    page = (home/'run/report.html').read_text()
    assert 'fine against coarse' in page and page.count('data:image/png') == 2 and 'What it took' in page


def test_one_variable_moves_all_caches(home):
    code, output = ends(start(home, '--dry-run'))
    assert code == 0 and 'disk' in output and 'all in FVLM_CACHE' in output, output[-3000:]
    variables = dict(l.partition('=')[::2] for l in (home/'variables').read_text().splitlines())
    for name in CACHES: assert variables[name].startswith(f'{home}/cache/'), name
    assert list((home/'home').rglob('*')) == [], 'something was written to the home folder'


def test_changed_settings_are_refused(home):
    if not (home/'run/pipeline.json').is_file(): pytest.skip('needs the finished run')
    code, output = ends(start(home, 'stages.stage1.train.steps=4'))
    assert code == 1 and 'Traceback' not in output
    assert 'stage1 was finished with train.steps=3, not 4' in output.splitlines()[-1]
