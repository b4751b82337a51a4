"""Shards behind a server that fails in every way a server can: no wrong sample, no run lost to a hiccup."""
import subprocess, sys, urllib.request
from itertools import count
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from safetensors.torch import load_file
from fvlm.config import Config, DataConfig, LogConfig, ModelConfig, TrainConfig
from fvlm.data import remote as module
from fvlm.data.check import check_shards
from fvlm.data.loader import Batches, SampleCounter, eval_batches, open_shards, plan_index, train_batches
from fvlm.data.plan import Plan
from fvlm.data.index import ROW, write_index
from fvlm.data.remote import ShardError, UnreachableError, read_piece
from fvlm.data.shards import FrameSpec, Shards, fingerprint, index_shard, write_shard
from fvlm.training import trainer
from fvlm.world.backbones import build_backbones, tiny_tokenizer

TOKENIZER, N = tiny_tokenizer(), 10


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Ten samples that differ in nothing but their colour and their answer, in two shards."
    home, clips = tmp_path_factory.mktemp('remote'), []
    for i in range(N):
        Image.new('RGB', (16, 16), (20*i, 0, 255-20*i)).save(home/f'{i}.png')
        messages = [dict(role='user', content=[dict(type='image'), dict(type='text', text='which?')]),
                    dict(role='assistant', content=str(i))]
        clips.append(dict(key=f'k{i}', source='s', split='train',
                          chats=[dict(key=f'k{i}', messages=messages)],
                          media=[dict(type='image', path=str(home/f'{i}.png'))]))
    folder = home/'shards'
    folder.mkdir()
    for n in range(2): assert write_shard(folder/f'{n}.tar', clips[n::2], FrameSpec(40)) == []
    write_index(folder, [(f'{n}.tar', index_shard(folder/f'{n}.tar', TOKENIZER)) for n in range(2)],
                tokenizer=fingerprint(TOKENIZER))
    return folder

@pytest.fixture(scope='module')
def address(home):
    server = subprocess.Popen([sys.executable, Path(__file__).with_name('faulty_server.py'), home],
                              stdout=subprocess.PIPE, text=True)
    yield f'http://127.0.0.1:{int(server.stdout.readline())}'
    server.kill()
    server.wait()

@pytest.fixture(autouse=True)
def impatient(monkeypatch, request):
    "No pauses, and short patience where a server is known to hang."
    monkeypatch.setattr(module, '_pause', lambda tries: None)
    if any(f in request.node.name for f in ('hang', 'drip')): monkeypatch.setattr(module, '_TIMEOUT', .5)


def requests(address):
    with urllib.request.urlopen(f'{address}/requests') as answer: return int(answer.read())

def contents(shards):
    samples = (shards[i] for i in range(len(shards)))
    return [(s['row']['key'], s['messages'], s['pixels'].sum().item()) for s in samples]

def train(folder, workers, retries=6, steps=4):
    "What two epochs of training read: keys and pixels of each batch, and the count."
    data = DataConfig(shards=folder, frame_size=40, cache_mb=0, retries=retries)
    shards = open_shards(data)
    plan = Plan(**plan_index(shards, data), batch_size=5)
    counter, read = SampleCounter(shards.names['sources']), []
    for b in train_batches(shards, plan, TOKENIZER, data, stop=steps, workers=workers):
        counter.add(b)
        read.append(([m['key'] for m in b['meta']], b['pixel_values_videos'].sum((1, 2, 3)).tolist()))
    return read, counter


# Faults after which the same samples come, and how often each of the ten reads is repeated.
HARMLESS = {'none': 0, 'whole': 0, 'slow': 0, '503-1': 1, '503-3': 3, '429-2': 2, '408-1': 1, 'drop-2': 2,
            'hang-1': 1, 'drip-1': 1, 'unsaid-2': 2}
ids = count()

@pytest.mark.parametrize('workers', (0, 2))
@pytest.mark.parametrize('fault', HARMLESS)
def test_the_same_samples(home, address, fault, workers):
    "From a disk and from a server, in the main process and in forked workers; retries are counted."
    expected, counter = train(str(home), 0)
    found, remote = train(f'{address}/{fault}.{next(ids)}', workers)
    assert found == expected and len(set(sum((keys for keys, _ in found), []))) == N
    assert remote.counts.tolist() == counter.counts.tolist()
    assert counter.retries == 0
    if fault not in ('hang-1', 'drip-1'): assert remote.retries == N*HARMLESS[fault]
    else: assert remote.retries >= N  # more on a machine that is busy


@pytest.mark.parametrize('workers', (0, 2))
def test_fsspec_after_a_fork(home, address, workers, monkeypatch):
    "The addresses that fsspec reads: its event loop of the parent does not live in a worker."
    monkeypatch.setattr(module, '_read_http', module._read_address)
    expected, _ = train(str(home), 0)
    assert train(f'{address}/none', workers)[0] == expected
    assert train(f'{address}/503-2.{next(ids)}', workers)[1].retries == 2*N


# What a server does wrong for ever: each sample is refused with a reason, at once, and none is another one.
LASTING = {'404': 'HTTPError: 404', '403': 'HTTPError: 403', 'first': 'the server sent',
           'nameless': "'no range'", 'short': 'where the index has', 'lie': "holds sample 'k"}

@pytest.mark.parametrize('fault', LASTING)
def test_never_a_wrong_sample(home, address, fault):
    shards, right = Shards(f'{address}/{fault}', cache_bytes=0), contents(Shards(home))
    asked, refused = requests(address), 0
    for i in range(N):
        try: s = shards[i]
        except ShardError as e:
            assert LASTING[fault] in str(e) and address in str(e) and '\n' not in str(e)
            assert not isinstance(e, UnreachableError)
            refused += 1
        else: assert (s['row']['key'], s['messages'], s['pixels'].sum().item()) == right[i]
    assert refused == N-2*(fault == 'first')  # the first piece of each shard is the right one
    assert shards.retried == 0 and requests(address) == asked+N+1
    data = DataConfig(max_bad=1)
    batch = Batches(shards, TOKENIZER, data)[list(range(N))]
    assert sum('bad' in m for m in batch['meta']) == refused


def test_an_index_of_before(home, address, tmp_path):
    "It has no keys: it is read and checked as before, and nothing is compared."
    for p in home.iterdir(): (tmp_path/p.name).write_bytes(p.read_bytes())
    old = np.array([r[:-1] for r in np.load(home/'index.npy').tolist()], ROW.descr[:-1])
    np.save(tmp_path/'index.npy', old)
    assert contents(Shards(tmp_path)) == contents(Shards(home))
    assert contents(Shards(f'{tmp_path},{home}')) == 2*contents(Shards(home))
    assert check_shards(tmp_path, TOKENIZER).ok


def test_a_tar_exchanged_under_an_index(home, tmp_path):
    "By one with other samples of the same lengths: none is taken for another, and the check says so."
    for old, new in zip('01', '10'): (tmp_path/f'{new}.tar').write_bytes((home/f'{old}.tar').read_bytes())
    for name in ('index.npy', 'index.json'): (tmp_path/name).write_bytes((home/name).read_bytes())
    shards = Shards(tmp_path)
    for i in range(N):
        says = f"{tmp_path}/[01].tar at byte .*: holds sample 'k.', not the one of the index"
        with pytest.raises(ShardError, match=says): shards[i]
    assert not shards.cache  # nothing of it is kept
    report = check_shards(tmp_path, TOKENIZER)
    assert report.reasons['row differs'] == N and "key 'k1' in the shard" in str(report.findings)


def test_fsspec_never_gives_a_wrong_sample(home, address, monkeypatch):
    "A server that ignores Range, read by fsspec: an error."
    monkeypatch.setattr(module, '_read_http', module._read_address)
    for fault in ('whole', 'short'):
        shards = Shards(f'{address}/{fault}', cache_bytes=0)
        for i in range(N):
            with pytest.raises(ShardError, match='where the index has'): shards[i]


def test_a_large_file_is_not_read_for_a_piece(home, address, monkeypatch):
    monkeypatch.setattr(module, '_MAX_WHOLE', 9000)
    with pytest.raises(ShardError, match=f'{address}/whole/0.tar: the server ignores Range'):
        Shards(f'{address}/whole')[0]
    assert len(read_piece(f'{address}/whole/0.tar')) > 9000  # all of it was asked for


@pytest.mark.parametrize('workers', (0, 2))
@pytest.mark.parametrize('fault', ('503', 'hang', 'drop', 'drip', 'unsaid'))
def test_a_server_that_stays_away_ends_the_run(address, fault, workers):
    "In one line, and not by ten placeholders."
    with pytest.raises(UnreachableError) as e: train(f'{address}/{fault}', workers, retries=1)
    assert address in str(e.value) and '2 tries' in str(e.value) and 'same command' in str(e.value)
    assert '\n' not in str(e.value) and 'Caught' not in str(e.value)


def test_the_same_command_goes_on(home, address, tmp_path, monkeypatch):
    "The server goes away after update 3 of 6: one line, no harm; then the run is as if it was never stopped."
    build_backbones(tmp_path/'backbones', steps=1)
    language, vision = tmp_path/'backbones/language', tmp_path/'backbones/vision'
    def run(name, folder):
        cfg = Config(name, out=str(tmp_path/name),
            model=ModelConfig(vision=str(vision), language=str(language)),
            data=DataConfig(shards=folder, frame_size=40, text_share=0, retries=2, cache_mb=0),
            train=TrainConfig(steps=6, batch_size=4, save_every=1), log=LogConfig(wandb=False))
        trainer.train(cfg)
        return load_file(tmp_path/name/'model/model.safetensors')
    train_step, down = trainer.Run.train_step, home/'down'
    def and_then_away(self, *args):
        if self.step == 3: down.touch()
        return train_step(self, *args)
    with monkeypatch.context() as m:
        m.setattr(trainer.Run, 'train_step', and_then_away)
        try:
            with pytest.raises(UnreachableError, match='3 tries'): run('remote', f'{address}/down')
        finally: down.unlink(missing_ok=True)
    assert not (tmp_path/'remote/model').exists()
    found, expected = run('remote', f'{address}/down'), run('local', str(home))
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_nobody_listens():
    with pytest.raises(UnreachableError, match='3 tries'): Shards('http://127.0.0.1:9', retries=2)


def test_the_index_is_read_again_too(home, monkeypatch):
    "A hiccup while a run starts."
    whole, calls = module._read_file, []
    def read(*args):
        calls.append(args)
        if len(calls) in (1, 3, 4): raise OSError(116, 'Stale file handle')
        return whole(*args)
    monkeypatch.setattr(module, '_read_file', read)
    shards = Shards(home)
    assert shards.retried == 1 and len(contents(shards)) == N and shards.retried == 3


def test_evaluation_reads_again(home, address):
    shards = Shards(f'{address}/503-2.{next(ids)}')
    counter = SampleCounter(shards.names['sources'])
    batches = eval_batches(shards, TOKENIZER, DataConfig(), counter=counter)
    keys = [m['key'] for b in batches for m in b['meta']]
    assert sorted(keys) == [f'k{i}' for i in range(N)] and counter.retries == 2*N
    away = Shards(f'{address}/503', retries=1)
    with pytest.raises(UnreachableError): list(eval_batches(away, TOKENIZER, DataConfig()))


def test_what_the_install_brings(address):
    "The check lists a folder with fsspec, whose http needs a package that the requirements must name."
    words = Path(__file__).parents[1].joinpath('settings.ini').read_text().split()
    assert 'fsspec[http]' in words and 'requests' in words
    report = check_shards(f'{address}/none', TOKENIZER)
    assert report.ok, report.findings
