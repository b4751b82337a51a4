"""What needs real processes: two under torchrun, and one that is killed. Laws 11, 12 and 16."""
import os, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from torch.testing import assert_close
from fvlm.world.backbones import build_backbones
from fvlm.data.build import build_shards
from fvlm.model.foveated import load_tokenizer
from fvlm.world.scenes import World, make_scene, render
from fvlm.data.shards import FrameSpec, clips_of
from fvlm.training.tracking import read_metrics

ROOT = Path(__file__).resolve().parents[1]
TRAIN = str(ROOT/'scripts'/'train.py')
ENV = {**os.environ, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1', 'WANDB_MODE':'offline', 'FVLM_QUIET':'1',
    'PYTHONPATH':str(ROOT)}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A small world, its backbones and a config."
    home = tmp_path_factory.mktemp('world')
    clips = [c for i in range(40) for c in clips_of(render(make_scene('lookup', i, World(glyphs=3)),
        home/'films'), home/'films')]
    build_backbones(home/'backbones', steps=2)
    tokenizer = load_tokenizer(home/'backbones'/'language')
    build_shards(clips, home/'shards', FrameSpec(40), tokenizer=tokenizer)
    say = lambda i: [dict(role='user', content=f'say {i} '*(1+i % 7)), dict(role='assistant', content=f'{i}')]
    texts = [dict(key=f'text-{i}', source='talk', media=[], chats=[dict(key=f'text-{i}', messages=say(i))])
        for i in range(60)]
    build_shards(texts, home/'texts', FrameSpec(40), tokenizer=tokenizer)
    (home/'run.yaml').write_text(f'''
name: run
model: {{vision: {home}/backbones/vision, language: {home}/backbones/language, lambda_coarse: 0.2}}
data: {{shards: {home}/shards, frame_size: 40, text_share: 0}}
train: {{steps: 8, batch_size: 8, log_every: 1, refine: 0.5, lr: {{connector: 1.0e-3, vision: 1.0e-4, language: 1.0e-3}}}}
eval: {{samples: 4, modes: [fine]}}
log: {{wandb: false}}
''')
    return home


def command(home, name, *overrides, processes=1):
    start = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
        f'--nproc_per_node={processes}'] if processes > 1 else [sys.executable]
    return [*start, TRAIN, '--config', str(home/'run.yaml'), f'out={home}/{name}', *overrides]

def train(home, name, *overrides, **how):
    done = subprocess.run(command(home, name, *overrides, **how), env=ENV, capture_output=True, text=True,
        timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return weights(home/name)

def weights(run): return load_file(run/'model'/'model.safetensors')


def test_two_processes_are_one(home):
    "Law 12: the same clips per update give the same losses and weights, whoever reads them."
    one, two = train(home, 'one'), train(home, 'two', processes=2)
    assert_close(two, one, rtol=2e-3, atol=2e-4)
    losses = [read_metrics(home/n).query("event=='train'") for n in ('one', 'two')]
    assert_close(*(torch.tensor(l.loss.to_numpy()) for l in losses), rtol=1e-3, atol=1e-3)
    assert [l.tokens.tolist() for l in losses][0] == [l.tokens.tolist() for l in losses][1]
    start = load_file(home/'backbones'/'language'/'model.safetensors')['model.embed_tokens.weight']
    assert (one['language.model.embed_tokens.weight']-start).abs().max() > 1e-3  # it did learn


def test_accumulation_is_a_larger_batch(home):
    "Law 14 through the whole loop."
    assert_close(train(home, 'accumulated', 'train.micro_batch=3'), weights(home/'one'), rtol=2e-3, atol=2e-4)


def test_two_processes_are_one_with_text_and_budgets(home):
    "Law 12 where processes have different numbers of micro-batches, some of them without a single frame."
    keys = f'data.shards={home}/shards,{home}/texts', 'data.text_share=0.4', 'data.window=64', 'train.token_budget=90', 'train.micro_batch=3'
    assert_close(train(home, 'mixed-two', *keys, processes=2), train(home, 'mixed-one', *keys), rtol=2e-3,
        atol=2e-4)
    rows = [read_metrics(home/n).query("event=='train'") for n in ('mixed-one', 'mixed-two')]
    for column in ('tokens', 'samples', 'bad', 'share_samples.talk', 'share_tokens.talk'):
        assert rows[0][column].tolist() == rows[1][column].tolist(), column
    assert abs(rows[0]['share_samples.talk'].iloc[-1]-.4) <= 1/64


def test_a_spread_model_is_one(home):
    "FSDP2: two processes with half a model each do what one does, stop together when one is told, and go on as one."
    keys = f'data.shards={home}/shards,{home}/texts', 'data.text_share=0.4', 'train.micro_batch=3', 'train.eval_every=4'
    one = train(home, 'spread-one', *keys)
    assert_close(train(home, 'spread-two', *keys, 'train.parallel=fsdp', processes=2), one, rtol=2e-3,
        atol=2e-4)
    rows = [read_metrics(home/n) for n in ('spread-one', 'spread-two')]
    for column in ('loss', 'fine.loss', 'grad_norm', 'grad_norms.connector'):
        a, b = (torch.tensor(r[column].dropna().to_numpy()) for r in rows)
        assert len(a) and len(a) == len(b)
        assert_close(a, b, rtol=2e-3, atol=1e-3)


def test_one_two_one_processes(home):
    "A run that goes on with two processes and then with one again reads the same samples in the same updates."
    keys = 'train.steps=9', 'train.save_every=3', 'train.lr.connector=1e-5', 'train.lr.language=1e-5', 'train.lr.vision=0'
    train(home, 'steady', *keys)
    for processes, stop in ((1, 3), (2, 6), (1, 9)):
        process = subprocess.Popen(command(home, 'changing', *keys, processes=processes), env=ENV,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        done = lambda: (home/'changing'/'checkpoints').exists() and any(p.name.endswith(f'{stop:07d}')
            for p in (home/'changing'/'checkpoints').iterdir())
        while process.poll() is None and not (done() and stop < 9): time.sleep(.02)
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    a, b = (read_metrics(home/n).query("event=='train'") for n in ('steady', 'changing'))
    assert a.step.tolist() == b.step.tolist() and a.tokens.tolist() == b.tokens.tolist()
    assert_close(torch.tensor(a.loss.to_numpy()), torch.tensor(b.loss.to_numpy()), rtol=1e-3, atol=1e-3)


def test_kill_9_changes_nothing(home):
    "Law 11: killed at some moment after the first checkpoint, then resumed: the same weights, bit for bit."
    keys = 'train.steps=24', 'train.save_every=3'
    straight = train(home, 'straight', *keys)
    for _ in range(2):
        process = subprocess.Popen(command(home, 'killed', *keys), env=ENV, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True)
        log, target = home/'killed'/'metrics.jsonl', 5+len(read_metrics(home/'killed')) if (
            home/'killed'/'metrics.jsonl').exists() else 5
        while process.poll() is None and not (log.exists() and log.read_text().count('\n') >= target):
            time.sleep(.02)
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (home/'killed'/'summary.json').exists(), 'it was never killed'
    killed = train(home, 'killed', *keys)
    assert straight.keys() == killed.keys()
    for name in straight: assert torch.equal(straight[name], killed[name]), name
    a, b = (read_metrics(home/n) for n in ('straight', 'killed'))
    assert (a.step.tolist(), a.loss.dropna().tolist()) == (b.step.tolist(), b.loss.dropna().tolist())


@pytest.mark.parametrize('override, words', [
    ('train.lr.conector=1e-3', "did you mean 'train.lr.connector'"),
    ('train.steps=many', 'expected a whole number'),
    ('data.shards=/no/such/folder', 'no index there'), ('model.vision=/no/such/eye',
    "no vision model at '/no/such/eye'")])
def test_bad_input_is_one_line(home, override, words):
    "Law 16: the culprit is named, without a traceback."
    done = subprocess.run(command(home, 'bad', override), env=ENV, capture_output=True, text=True,
        timeout=120)
    lines = [l for l in done.stderr.splitlines() if l.startswith('train: ')]
    assert done.returncode and len(lines) == 1 and words in lines[
        0] and 'Traceback' not in done.stderr, done.stderr[-2000:]
