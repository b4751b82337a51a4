"""What needs real processes: invariants 11 (a run that is killed), 12 (two processes), 16 (bad input) and
19 (processes that differ).

Runs of one process are made inside of pytest. All runs of two processes share one start of `torchrun`, which
executes this file as a script.
"""
import os, runpy, shutil, signal, subprocess, sys, time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock
import pytest, torch, torch.distributed as dist
from safetensors.torch import load_file
from torch.testing import assert_close
from fvlm.config import load_config
from fvlm.data.build import build_shards
from fvlm.data.shards import FrameSpec, clips_of
from fvlm.evaluation.metrics import validate
from fvlm.model.foveated import load_tokenizer
from fvlm.training import trainer
from fvlm.training.distributed import PeerError
from fvlm.training.tracking import read_metrics
from fvlm.training.trainer import Processes, Run, prepare_run, train
from fvlm.world.backbones import build_backbones
from fvlm.world.scenes import World, make_scene, render

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = str(ROOT/'scripts'/'train.py')
ENV = {**os.environ, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1', 'WANDB_MODE':'offline', 'FVLM_QUIET':'1',
    'PYTHONPATH':str(ROOT)}
RATES = 'train.lr.connector=1e-5', 'train.lr.language=1e-5', 'train.lr.vision=0'
MIXED = ('data.shards={home}/shards,{home}/texts', 'data.text_share=0.4', 'train.micro_batch=3',
    'train.eval_every=4')
RUNS = dict( # name -> overrides of the config
    plain=(), mixed=(*MIXED, 'data.window=64', 'train.token_budget=90'), sharded=MIXED,
    accumulated=('train.micro_batch=3',), steady=('train.steps=9', *RATES),
    changing=('train.steps=9', 'train.save_every=3', *RATES),
    saved=('train.save_every=3',), saved_sharded=(*MIXED, 'train.save_every=3', 'train.parallel=fsdp'),
    straight=('train.steps=12', 'train.save_every=3'),
    killed=('train.steps=12', 'train.save_every=3'))


class Died(BaseException):
    "In place of a kill, in all processes at once."

@contextmanager
def dies_after(step):
    "Training ends without a word when so many updates have been made."
    train_step = Run.train_step
    def mortal(self, *args):
        if self.step == step: raise Died
        return train_step(self, *args)
    with mock.patch.object(Run, 'train_step', mortal):
        try: yield
        except Died: pass

def overrides(home, kind, name):
    return [f'out={home}/{name}', *(o.format(home=home) for o in RUNS[kind])]

def train_here(home, kind, name=None, *more):
    return train(load_config(home/'run.yaml', [*overrides(home, kind, name or kind), *more]), validate)

def refusal(home, name, rank, change, *more):
    "A start in which the two processes differ; the line goes to a file."
    with change:
        try: train_here(home, 'plain', name, *more)
        except PeerError as e: (home/f'{name}-said-{rank}.txt').write_text(str(e))

@contextmanager
def other_weights():
    "One weight is changed by the smallest possible amount."
    def build(cfg, build=trainer.build_model):
        model, tokenizer = build(cfg)
        weight = model.query_out.weight
        with torch.no_grad(): weight[0,0] = torch.nextafter(weight[0,0], torch.tensor(9.))
        return model, tokenizer
    with mock.patch.object(trainer, 'build_model', build): yield

def stop_and_resume(home, kind):
    "The run in one go; one that dies after update 4 and goes on."
    train_here(home, kind, f'{kind}-straight')
    with dies_after(4): train_here(home, kind, f'{kind}-resumed')
    train_here(home, kind, f'{kind}-resumed')

def two_processes(home):
    "What `torchrun` executes: all runs of two processes, one after the other."
    torch.set_num_threads(1)
    rank = int(os.environ['RANK'])
    for kind in ('plain', 'mixed'): train_here(home, kind, f'{kind}-two')
    train_here(home, 'sharded', 'sharded-two', 'train.parallel=fsdp')
    with dies_after(7): train_here(home, 'changing')
    for kind in ('saved', 'saved_sharded'): stop_and_resume(home, kind)
    own_disk = f'out={home}/disk-{rank}/run'
    with dies_after(4): train_here(home, 'saved', 'disk', own_disk)
    train_here(home, 'saved', 'disk', own_disk)
    refusal(home, 'weights', rank, other_weights() if rank else nullcontext())
    refusal(home, 'config', rank, nullcontext(), f'train.lr.connector={1+rank}e-3')
    refusal(home, 'data', rank, nullcontext(), *(['data.max_samples=9'] if rank else []))
    if rank: shutil.copytree(home/'saved-straight'/'checkpoints', home/'disk-1'/'newer'/'checkpoints')
    refusal(home, 'newer', rank, nullcontext(), f'out={home}/disk-{rank}/newer')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A small world, its backbones and a config."
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp('world')
    scenes = [render(make_scene('lookup', i, World(glyphs=3)), home/'videos') for i in range(40)]
    build_backbones(home/'backbones', steps=2)
    tokenizer = load_tokenizer(home/'backbones'/'language')
    clips = [clip for scene in scenes for clip in clips_of(scene, home/'videos')]
    build_shards(clips, home/'shards', FrameSpec(40), tokenizer=tokenizer)
    say = lambda i: [dict(role='user', content=f'say {i} '*(1+i % 7)), dict(role='assistant', content=f'{i}')]
    texts = [dict(key=f'text-{i}', source='talk', media=[], chats=[dict(key=f'text-{i}', messages=say(i))])
        for i in range(60)]
    build_shards(texts, home/'texts', FrameSpec(40), tokenizer=tokenizer)
    rates = 'connector: 1.0e-3, vision: 1.0e-4, language: 1.0e-3'
    (home/'run.yaml').write_text(f'''
name: run
model: {{vision: {home}/backbones/vision, language: {home}/backbones/language, lambda_coarse: 0.2}}
data: {{shards: {home}/shards, frame_size: 40, text_share: 0}}
train: {{steps: 8, batch_size: 8, log_every: 1, refine: 0.5, lr: {{{rates}}}}}
eval: {{samples: 4, modes: [fine]}}
log: {{wandb: false}}
''')
    return home

@pytest.fixture(scope='module')
def runs(home):
    "All runs of one and of two processes."
    with dies_after(4): train_here(home, 'changing')  # its last checkpoint is of update 3
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', __file__]
    two = subprocess.Popen([*command, str(home)], env=ENV, stderr=subprocess.PIPE, text=True)
    for kind in ('plain', 'mixed', 'sharded', 'accumulated', 'steady'): train_here(home, kind)
    errors = two.communicate(timeout=600)[1]
    assert two.returncode == 0, errors[-3000:]
    train_here(home, 'changing')
    start = prepare_run(load_config(home/'run.yaml', [f'out={home}/start']), Processes())
    start.model.save_pretrained(home/'start'/'model')
    return home

def weights(run): return load_file(run/'model'/'model.safetensors')

def log(run, event='train'): return read_metrics(run).query(f"event=='{event}'")

def assert_same_training(home, one, two):
    """The weights of two runs differ by much less than they moved, and so do their logs. (Not by a fixed
    number: AdamW makes a step of the size of the learning rate out of the smallest rounding error.)"""
    start, one_weights, two_weights = (weights(home/name) for name in ('start', one, two))
    assert one_weights.keys() == two_weights.keys()
    distance = lambda a, b: sum((a[n].float()-b[n].float()).square().sum() for n in one_weights).sqrt().item()
    assert distance(one_weights, two_weights) < .01*distance(one_weights, start)
    one_log, two_log = log(home/one), log(home/two)
    for column in ('loss', 'grad_norm', 'grad_norms.connector', 'grad_norms.vision', 'grad_norms.language'):
        a, b = (torch.tensor(rows[column].to_numpy()) for rows in (one_log, two_log))
        assert_close(a, b, rtol=1e-2, atol=0, msg=lambda m: f'{column}: {m}')
    for column in ('step', 'tokens', 'samples', 'bad'):
        assert one_log[column].tolist() == two_log[column].tolist(), column


def test_two_processes_are_one(runs):
    "Invariant 12: the same clips per update give the same losses, gradients and weights."
    assert_same_training(runs, 'plain', 'plain-two')


def test_accumulation_is_a_larger_batch(runs):
    "Invariant 14 through the whole loop."
    assert_same_training(runs, 'plain', 'accumulated')


def test_two_processes_are_one_with_text_and_budgets(runs):
    "Invariant 12 where processes have different numbers of micro-batches, some without a single frame."
    assert_same_training(runs, 'mixed', 'mixed-two')
    rows = [log(runs/name) for name in ('mixed', 'mixed-two')]
    for column in ('share_samples.talk', 'share_tokens.talk'):
        assert rows[0][column].tolist() == rows[1][column].tolist(), column
    assert abs(rows[0]['share_samples.talk'].iloc[-1]-.4) <= 1/64


def test_a_sharded_model_is_one(runs):
    "FSDP2: two processes with half a model each compute what one computes, evaluations too."
    assert_same_training(runs, 'sharded', 'sharded-two')
    a, b = (torch.tensor(log(runs/n, 'eval')['fine.loss'].to_numpy()) for n in ('sharded', 'sharded-two'))
    assert len(a) == 2
    assert_close(a, b, rtol=1e-2, atol=0)


def test_one_two_one_processes(runs):
    "A run continued by two processes and then by one again reads the same samples in the same updates."
    a, b = log(runs/'steady'), log(runs/'changing')
    assert a.step.tolist() == b.step.tolist() == list(range(1, 10)) and a.tokens.tolist() == b.tokens.tolist()
    assert_close(torch.tensor(a.loss.to_numpy()), torch.tensor(b.loss.to_numpy()), rtol=1e-3, atol=0)


def assert_same_bits(one, two):
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys()
    for n in one: assert torch.equal(one[n], two[n]), n

@pytest.mark.parametrize('kind', ['saved', 'saved_sharded'])
def test_two_processes_resume_bit_for_bit(runs, kind):
    "Invariant 11 with two processes, each with the whole model or with half of it."
    assert_same_bits(runs/f'{kind}-straight', runs/f'{kind}-resumed')
    one, two = (log(runs/f'{kind}-{n}') for n in ('straight', 'resumed'))
    assert (one.step.tolist(), one.loss.tolist()) == (two.step.tolist(), two.loss.tolist())


def test_processes_with_disks_of_their_own(runs):
    "Only rank 0 has a checkpoint on its disk; a run that died goes on from it in both processes."
    assert not list((runs/'disk-1').glob('run/checkpoints/step-*'))
    assert_same_bits(runs/'saved-straight', runs/'disk-0'/'run')


@pytest.mark.parametrize('name, words', [
    ('weights', 'rank 1 has weights '), ('config', 'rank 1 has config '), ('data', 'rank 1 has data '),
    ('newer', 'rank 1 has a checkpoint of update 8 in ')])
def test_processes_that_differ_refuse_to_start(runs, name, words):
    "Invariant 19: one line, the same from both."
    lines = [(runs/f'{name}-said-{rank}.txt').read_text() for rank in (0, 1)]
    for line in lines: assert line.startswith(words) and '\n' not in line and 'rank 0 has ' in line, line
    assert not list(runs.glob(f'{name}/checkpoints/*')) and not (runs/name/'summary.json').exists()


def test_kill_9_changes_nothing(home):
    "Invariant 11: a process killed after its first checkpoint, then resumed: the same weights, bit for bit."
    train_here(home, 'straight')
    command = [sys.executable, SCRIPT, '--config', str(home/'run.yaml'), *overrides(home, 'killed', 'killed')]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True)
    metrics = home/'killed'/'metrics.jsonl'
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count('\n') >= 5):
        time.sleep(.02)
    if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (home/'killed'/'summary.json').exists()
    train_here(home, 'killed')
    one, two = weights(home/'straight'), weights(home/'killed')
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    one, two = log(home/'straight'), log(home/'killed')
    assert (one.step.tolist(), one.loss.tolist()) == (two.step.tolist(), two.loss.tolist())


@pytest.mark.parametrize('override, words', [
    ('train.lr.conector=1e-3', "did you mean 'train.lr.connector'"),
    ('train.steps=many', 'expected a whole number'),
    ('data.shards=/no/such/folder', 'no index there'),
    ('model.vision=/no/such/model', "no vision model at '/no/such/model'")])
def test_bad_input_is_one_line(home, override, words):
    "Invariant 16: the error names the cause, in one line without a traceback."
    arguments = [SCRIPT, '--config', str(home/'run.yaml'), f'out={home}/bad', override]
    with mock.patch.object(sys, 'argv', arguments), pytest.raises(SystemExit) as end:
        runpy.run_path(SCRIPT, run_name='__main__')
    line = str(end.value)
    assert line.startswith('train: ') and words in line and '\n' not in line, line


if __name__ == '__main__': two_processes(Path(sys.argv[1]))
