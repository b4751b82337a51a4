"""Drills on what a run reads: damaged and malicious files, impossible settings."""
import importlib.util, json, os, shutil, signal, socket, struct, time, zipfile
import av, fvlm, numpy as np, torch
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from unittest import mock
from torch import Tensor
from fvlm.training import checkpoint as checkpoint_module
from fvlm.training.checkpoint import load_checkpoint
from fvlm.config import Config, ConfigError, load_config
from drills.runs import (SAVE_EVERY, DrillError, damaged, data_parts, drill, log_rows, make_shards, save,
    settings,
    shared_world, start_ranks, text_clip, tiny_run, train_rank, wait_for)
from fvlm.data.loader import Batches, train_batches
from fvlm.model.foveated import FoveatedVLM, load_tokenizer
from fvlm.training.distributed import Processes
from fvlm.data.sampling import load_clip, write_video
from fvlm.data.shards import Shards
from fvlm.training.trainer import build_model, make_plan, accumulate


def keys_of(
    read:tuple, # shards, tokenizer, plan
    span:tuple, # first update, and the one to stop before
    ranks:int=1, # processes
    workers:int=0, # data processes of each
)->list[list[str]]: # per update, sorted
    "The samples of each update, over all processes."
    (shards, tokenizer, plan), (start, stop), cfg = read, span, load_config(overrides=['name=keys'])
    updates = [[] for _ in range(start, stop)]
    for rank in range(ranks):
        step = 0
        for b in train_batches(shards, plan, tokenizer, cfg.data, start=start, stop=stop, workers=workers,
                rank=rank, ranks=ranks):
            updates[step] += [m['key'] for m in b['meta']]
            step += b['last']
        if step!=stop-start:
            raise DrillError(f'rank {rank} of {ranks} made {step} updates instead of {stop-start}')
    return [sorted(u) for u in updates]

def train_until(
    home:Path, # gets their output
    cfg:Config, # of the run
    ranks:int, # processes
    stop:int, # kill them when this checkpoint is there
)->None:
    "A part of a run."
    children = start_ranks(home, ranks, train_rank, cfg)
    there = lambda: (Path(cfg.out)/'checkpoints'/f'step-{stop:08d}').is_dir()
    wait_for(lambda: there() or not any(l.on() for l in children))
    if stop<cfg.train.steps:
        for l in children: l.kill()
    codes = [l.end() for l in children]
    if not there():
        last = children[0].words()[-1500:]
        raise DrillError(f'{ranks} processes ended with {codes} before update {stop}: {last}')


@drill('F6', 'other numbers of processes and workers',
    'a run is killed and resumed with other numbers of each',
       'the same samples in the same updates; losses equal up to rounding', lambda f: f['order_differs']==0
       and f['most_loss_apart']<1e-3,
       'tests/test_data_order.py, tests/test_processes.py::test_one_two_one_processes')
def change_processes(folder, size):
    world, steps, losses = shared_world(folder), SAVE_EVERY*len(size.legs), {}
    undisturbed, changing = (settings(world, folder/n, f'train.steps={steps}', 'train.lr.connector=1e-5',
        'train.lr.language=1e-5', 'train.lr.vision=0') for n in ('calm','changing'))
    order = [keys_of(data_parts(world), (SAVE_EVERY*i,SAVE_EVERY*(i+1)), ranks, workers) for i,
        (ranks,workers) in enumerate(size.legs)]
    train_until(folder/'calm', undisturbed, 1, steps)
    for i,(ranks,workers) in enumerate(size.legs, 1):
        train_until(folder/f'leg{i}', changing, ranks, SAVE_EVERY*i)
    for cfg in (undisturbed, changing):
        losses[cfg.out] = [r['loss'] for r in log_rows(Path(cfg.out)) if r['event']=='train']
    apart = [abs(x-y) for x,y in zip(*losses.values(), strict=True)]
    return dict(legs=len(size.legs), updates=steps, order_differs=sum(a!=b for a,b in zip(sum(order, []),
        keys_of(data_parts(world), (0,steps)))), most_loss_apart=float(f'{max(apart):.3g}'))


@drill('F7', 'numbers of workers that do not divide the shards',
    '72 shards, 1, 2 and 4 processes with up to 6 workers each',
    'in one epoch each sample comes exactly once',
       lambda f: f['once']==f['samples']*f['ways'],
       'tests/test_data_order.py::test_each_sample_once_and_in_the_same_update')
def count_samples(folder, size):
    n, tokenizer = 144, load_tokenizer(shared_world(folder)/'language')
    shards = Shards(make_shards(folder/'many', [text_clip(i) for i in range(n)], 72, tokenizer))
    plan = make_plan(settings(folder, folder, 'train.batch_size=8', 'data.text_share=0'), shards, tokenizer)
    ways, once = list(product((1,2,4), size.workers)), 0
    for ranks,workers in ways:
        seen = sum(keys_of((shards,tokenizer,plan), (0,n//8), ranks, workers), [])
        once += sum(seen.count(f'text-{i}')==1 for i in range(n))
    return dict(shards=72, samples=n, ways=len(ways), once=once, share=once/n/len(ways))


def batches_equal(a, b): # two batches, to the byte
    same = lambda x, y: torch.equal(x, y) and x.dtype==y.dtype if torch.is_tensor(x) and torch.is_tensor(
        y) else x==y
    return a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)

@drill('F8', 'stopped between any two updates', 'a mixed, sorted and packed run is stopped after each update',
    'the next batch is the same to the byte',
       lambda f: f['same']==f['stops']>0, 'tests/test_data_order.py::test_the_next_batch_after_any_step')
def stop_anywhere(folder, size):
    shards, tokenizer, plan = data_parts(shared_world(folder))
    data, stop = settings(folder, folder).data, size.stops+1
    whole = list(train_batches(shards, plan, tokenizer, data, stop=stop))
    firsts = [0]+[i+1 for i,b in enumerate(whole) if b['last']]
    same = 0
    for step in range(1, stop):
        state = json.loads(json.dumps(plan.state(step)))
        _, _, reset = data_parts(shared_world(folder))
        b = next(iter(train_batches(shards, reset, tokenizer, data, start=reset.check(state), stop=stop)))
        same += batches_equal(b, whole[firsts[step]])
    return dict(stops=stop-1, micro_batches=len(whole), same=same)


def payload(
    canary:Path, # a folder that would be made
)->dict[str,bytes]: # kind of file -> content
    "Files that do something when they are unpickled."
    raw = f'cos\nmkdir\n(S{str(canary)!r}\ntR.'.encode()
    box = canary.with_suffix('.zip')
    with zipfile.ZipFile(box, 'w') as z:
        z.writestr('archive/data.pkl', raw)
        z.writestr('archive/version', '3')
    head = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117).encode()+b'\n'
    return dict(pickle=raw, torch=box.read_bytes(), numpy=b'\x93NUMPY\x01\x00'+struct.pack('<H', len(head))
        +head+raw)


def header(text, size=None, data=bytes(8)):
    return struct.pack('<Q', len(text) if size is None else size)+text.encode()+data
ONE = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
HEADERS = dict(
    endless=header('{'+ONE+'}', 2**64-1), longer_than_the_file=header('{'+ONE+'}', 10**6),
    hundred_megabytes=header('{'+ONE+'}', 10**8+1), no_json=header('hello'), empty=b'', short=b'\x08\x00',
    twice=header('{'+ONE+','+ONE+'}'), overlap=header('{'+ONE+','+ONE.replace('"a"', '"b"')+'}'),
    outside=header('{'+ONE.replace('0,8', '0,800')+'}'),
    backwards=header('{'+ONE.replace('0,8', '8,0')+'}'), wrong_size=header('{'+ONE.replace('[2]', '[9]')+'}'),
    negative=header('{'+ONE.replace('[2]', '[-2]')+'}'),
    overflow=header('{'+ONE.replace('[2]', '[4294967296,4294967296,4]')+'}'),
    hole=header('{'+ONE.replace('0,8', '4,8').replace('[2]','[1]')+'}'), deep=header('{"a":'+'['*10**5+'}'),
    unknown_type=header('{'+ONE.replace('F32', 'P64')+'}'))


@contextmanager
def time_limit(
    seconds:int, # until it is over
):
    "Interrupt what hangs with an error that no library handles."
    def late(*_): raise DrillError(f'no answer for {seconds} s')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

def refused(
    attempt:Callable, # without arguments
    *names:str, # one of which the error should hold
)->str: # '' (taken, or it hangs), 'clear' (one line with the name) or 'refused'
    "Whether an attempt fails, and how."
    with open(os.devnull, 'w') as quiet, mock.patch('sys.stdout', quiet), mock.patch('sys.stderr', quiet):
        try:
            with time_limit(8): attempt()
        except DrillError: return ''
        except Exception as e:
            return 'clear' if isinstance(e, (ValueError,FileNotFoundError)) and '\n' not in str(e).strip(
                ) and any(n in str(e) for n in names) else 'refused'
    return ''


def forged_checkpoint(
    folder:Path, # a good checkpoint
    name:str, # of a file in it
    data:bytes, # its new content
    load:Callable, # (folder) -> anything
)->str: # as `refused`
    "A checkpoint with a forged file and a manifest that fits it."
    manifest = folder/'manifest.json'
    with damaged(folder/name, lambda _: data), damaged(manifest, lambda old: old):
        if name!=manifest.name:
            manifest.unlink()
            checkpoint_module._seal(folder)
        return refused(lambda: load(folder), folder.name, name)

def everything_read(
    home:Path, # for files
    world:Path, # from `make_world`
)->Iterator[tuple]: # folder, name of a file in it, what reads the folder
    "Everything that reads a file from outside."
    run = tiny_run(world)
    at = save(home/'run', run, 1, 1)
    for name in ('model.safetensors','optimizer.safetensors','rng.safetensors','trainer.json',
            'manifest.json'):
        yield at, name, lambda f: load_checkpoint(f, *run[:2])
    for kind in ('vision','language'):
        shutil.copytree(world/kind, home/kind)
        build = dict(vision=lambda f: FoveatedVLM.from_backbones(str(f), str(world/'language')),
            language=lambda f: FoveatedVLM.from_backbones(str(world/'vision'), str(f)))[kind]
        for name in ('model.safetensors','config.json'): yield home/kind, name, build
    for name in ('tokenizer.json','tokenizer_config.json'): yield home/'language', name, load_tokenizer
    shutil.copytree(world/'shards', home/'shards')
    for name in ('index.json','index.npy'): yield home/'shards', name, Shards


@drill('F16', 'a program in place of data',
    'pickles in the place of every file that is read, with a manifest that fits; false safetensors headers',
    'refused, and nothing is executed',
       lambda f: f['refused']==f['files'] and f['executed']==0,
       'tests/test_bad_data.py, tests/test_repo.py::test_no_dangerous_calls')
def hostile_files(folder, size):
    canary, world, results = folder/'canary', shared_world(folder), {}
    for place,name,read in everything_read(folder, world):
        kinds = payload(canary) | (HEADERS if name.endswith('.safetensors') else {})
        for kind,data in kinds.items():
            if (place/'manifest.json').exists():
                results[place.name,name,kind] = forged_checkpoint(place, name, data, read)
            else:
                with damaged(place/name, lambda _: data):
                    results[place.name,name,kind] = refused(lambda: read(place), place.name, name)
    for kind in ('vision','language'): # weights that are a pickle, and no others
        place = folder/kind
        (place/'model.safetensors').unlink()
        (place/'pytorch_model.bin').write_bytes(payload(canary)['torch'])
        pair = [str(place if kind==k else world/k) for k in ('vision','language')]
        results[kind,'pytorch_model.bin','torch'] = refused(lambda: FoveatedVLM.from_backbones(*pair), kind)
    return dict(files=len(results), refused=sum(map(bool, results.values())),
        in_one_line=sum(v=='clear' for v in results.values()), executed=int(canary.exists()))


def playlists(
    video:Path, # the video that they name
    port:str, # of a server on this machine
)->dict[str,str]: # kind -> content of a file called .mp4
    "Playlists, scripts and session descriptions that name a video."
    hls = lambda *what: '#EXTM3U\n#EXT-X-TARGETDURATION:1\n'+''.join(f'{w}\n'
        for w in what)+'#EXT-X-ENDLIST\n'
    web, local = f'http://127.0.0.1:{port}/video.mp4', f'file://{video}'
    dash = ('<?xml version="1.0"?><MPD type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet>'
        f'<Representation id="0" bandwidth="1"><BaseURL>{local}</BaseURL></Representation></AdaptationSet>'
        '</Period></MPD>')
    sdp = (f'v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {port} RTP/AVP 96\n'
        'a=rtpmap:96 H264/90000\n')
    return dict(hls=hls('#EXTINF:1,', video.name), hls_file=hls('#EXTINF:1,', local),
        hls_web=hls('#EXTINF:1,', web), hls_key=hls(f'#EXT-X-KEY:METHOD=AES-128,URI="{web}"', '#EXTINF:1,',
        video.name),
        hls_master=f'#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{web}\n',
        concat=f"ffconcat version 1.0\nfile '{video.name}'\n",
        concat_file=f"ffconcat version 1.0\nfile '{video}'\n", dash=dash,
        sdp=sdp, subtitles='1\n00:00:00,000 --> 00:00:01,000\nhello\n')

def addresses(video, port): # in the place of a path
    return [f'http://127.0.0.1:{port}/video.mp4', f'concat:{video}|{video}', f'file:{video}',
        f'subfile,,start,0,end,9,,:{video}', f'pipe:{video}', f'cache:{video}', f'crypto:{video}',
        'data:video/mp4;base64,AAAA', '/dev/zero']


def wide_video(path): # a video 16,384 pixels wide
    with av.open(str(path), 'w') as box:
        stream = box.add_stream('mjpeg', rate=1)
        stream.width, stream.height, stream.pix_fmt = 16384, 16, 'yuvj420p'
        for frame in (av.VideoFrame(16384, 16, 'yuvj420p'), None): box.mux(stream.encode(frame))

def long_video(path): # ten hours of black, a frame per minute
    write_video(path, np.zeros((600,16,16,3), np.uint8), fps=1/60)


@drill('F18', 'videos that are something else',
    'playlists, scripts, addresses in place of a video; endless files, 16,384 pixels, ten hours, half a file',
    'refused, no file that they name is read, no connection made; a long video costs as much as a short one',
       lambda f: f['refused']==f['videos'] and f['calls']==0 and f['frames_of_ten_hours']<=64
       and f['most_seconds']<10, 'tests/test_bad_data.py')
def hostile_videos(folder, size):
    video, results, took = write_video(folder/'video.mp4', np.zeros((30,16,16,3), np.uint8)), {}, [0.]
    def attempt(name, clip):
        start = time.monotonic()
        results[name] = refused(lambda: load_clip(clip, 8))
        took.append(time.monotonic()-start)
    wide_video(folder/'wide.mp4')
    long_video(folder/'long.mp4')
    (folder/'half.mp4').write_bytes(video.read_bytes()[:-400])
    (folder/'endless.mp4').symlink_to('/dev/zero')
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.setblocking(False)
        port = str(server.getsockname()[1])
        for kind,text in playlists(video, port).items():
            (folder/f'{kind}.mp4').write_text(text)
            attempt(kind, folder/f'{kind}.mp4')
            attempt(f'{kind} as bytes', text.encode())
        for a in addresses(video, port): attempt(a, a)
        for name in ('wide','half','endless'): attempt(name, folder/f'{name}.mp4')
        calls = sum(1 for _ in iter(lambda: refused(server.accept), 'refused'))
    start, frames = time.monotonic(), len(load_clip(folder/'long.mp4', 8).frames_TCHW)
    return dict(videos=len(results), refused=sum(map(bool, results.values())), calls=calls,
        good_frames=len(load_clip(video, 8).frames_TCHW), frames_of_ten_hours=frames,
                most_seconds=round(max(took+[time.monotonic()-start]), 2),
                followed=[k for k,v in results.items() if not v])


def wrong_settings(
    canary:Path, # a folder that would be made
)->dict[str,str]: # what the complaint must hold -> text of the file
    "Files that must not be taken."
    bomb = 'a: &a [x,x,x,x,x,x,x,x,x]\n'+''.join(f'{n}: &{n} [*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p}]\n'
        for p,n in zip('abcdefg','bcdefgh'))
    return {'line 2':f'name: a\nout: !!python/object/apply:os.mkdir [{canary}]\n',
        'line 3':'name: a\nmodel:\n  init: !!python/name:os.system\n',
        'tag:yaml.org':f'!!python/object/new:os.mkdir [{canary}]\n',
        'aliases':bomb, 'stands twice':'name: a\nname: b\n', 'train.stepps':'name: a\ntrain: {stepps: 3}\n',
        'train.steps in':'name: a\ntrain: {steps: many}\n',
        'train.lr.connector in':'name: a\ntrain: {lr: {connector: .nan}}\n',
        'train.lr.vision in':'name: a\ntrain: {lr: {vision: .inf}}\n',
        'got -1':'name: a\ntrain: {steps: -1}\n', 'model.pooler':'name: a\nmodel: {pooler: depp}\n',
        'train.lr':'name: a\ntrain: {lr: 0.1}\n',
        'a list instead':'- name\n- a\n', 'has no name':'out: somewhere\n', 'base':'name: a\nbase: [x]\n',
        'in a circle':'name: a\nbase: wrong.yaml\n', 'line 2 cannot':'name: [a\n', 'bytes':'name: a\n#'
        +'x'*1_100_000,
        'no such file':'name: a\nbase: nowhere.yaml\n',
        'model.frozen':'name: a\nmodel: {frozen: [vision, vision]}\n',
        'log.wandb':'name: a\nlog: {wandb: perhaps}\n', 'line 2 cannot be':'name: a\n{a: b}: c\n'}


@drill('F19', 'a malicious or malformed configuration',
    'objects of Python, aliases that unfold, unknown keys, wrong types, NaN and infinity, broken YAML',
    'refused in one line with the file and the key or line',
       lambda f: f['named']==f['files'] and f['executed']==0)
def hostile_settings(folder, size):
    path, canary, odd = folder/'wrong.yaml', folder/'canary', []
    for word,text in wrong_settings(canary).items():
        path.write_text(text)
        try:
            load_config(path)
            why = ''
        except ConfigError as e: why = str(e)
        except Exception as e: why = type(e).__name__
        if not (word in why and '.yaml' in why and '\n' not in why): odd.append(f'{word}: {why}')
    files = len(wrong_settings(canary))
    return dict(files=files, named=files-len(odd), executed=int(canary.exists()), odd=odd)


SNIPPETS = ('import pickle', 'from pickle import loads', 'import cloudpickle as p', 'torch.load(f)',
    'torch.load(f, weights_only=False)', 'from torch import load', 'yaml.load(f)',
    'yaml.load(f, yaml.Loader)',
    'yaml.unsafe_load(f)', 'from yaml import load', 'eval(text)', 'exec(text)', 'import dill', 'os.system(c)',
    'os.popen(c)', 'subprocess.run(c, shell=True)', 'AutoModel.from_pretrained(n, trust_remote_code=True)',
    'np.load(f, allow_pickle=True)', 'pd.read_pickle(f)', 'tar.extractall(d)', 'tar.extract(m, d)')

def static_gate(
    root:Path, # of the repository
)->Callable: # source text -> the dangers in it
    "The static gate, from the tests."
    path = root/'tests'/'test_repo.py'
    if not path.exists():
        raise DrillError(f'{path.name} is not beside the package; run this drill in the repository')
    spec = importlib.util.spec_from_file_location('fvlm_gate', path)
    gate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gate)
    return lambda text: [what for _,what in gate.dangers(text)]


@drill('F20', 'a dangerous call in the code',
    'snippets with one such call each, then every file of the package and the scripts',
    'each snippet is caught, and nothing is found in the code',
       lambda f: f['caught']==f['snippets'] and f['findings']==0 and f['files']>30,
       'tests/test_repo.py::test_no_dangerous_calls')
def scan_code(folder, size):
    root = Path(fvlm.__file__).parents[1]
    dangers = static_gate(root)
    files = [p for part in ('fvlm','scripts') for p in sorted((root/part).rglob('*.py'))]
    missed = [s for s in SNIPPETS if not dangers(s)]
    return dict(snippets=len(SNIPPETS), caught=len(SNIPPETS)-len(missed), files=len(files),
        findings=sum(len(dangers(p.read_text(encoding='utf-8'))) for p in files), missed=missed)


def gradient(
    model, # in double precision
    pieces:list[dict], # micro-batches
    naive:bool=False, # each by itself, then the mean
)->Tensor: # all of it in one row
    "The gradient of an update."
    model.zero_grad()
    for batches in ([b] for b in pieces) if naive else (pieces,): accumulate(model, batches, Processes())
    g = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return g/len(pieces) if naive else g


@drill('F22', 'gradients that depend on micro-batches',
    'the samples of an update in 1, 2, 4 and 8 micro-batches, in two orders', 'the same gradient to 1e-6',
       lambda f: f['most_apart']<1e-6<f['naive_apart'],
       'tests/test_processes.py::test_accumulation_is_a_larger_batch')
def cut_update(folder, size):
    world = shared_world(folder)
    shards, tokenizer, plan = data_parts(world)
    cfg = settings(world, folder, 'model.lambda_coarse=0.2')
    model = build_model(cfg)[0].double().train()
    read, numbers = Batches(shards, tokenizer, cfg.data), np.concatenate([plan.update(0), plan.update(1)])
    cut = lambda order, n: [read[p] for p in np.array_split(order, n)]
    whole = gradient(model, cut(numbers, 1))
    apart = lambda g: ((g-whole).norm()/whole.norm()).item()
    orders = numbers, np.random.default_rng(size.seed).permutation(numbers)
    results = [apart(gradient(model, cut(o, n))) for o in orders for n in (1,2,4,8)]
    return dict(ways=len(results), samples=len(numbers), most_apart=max(results),
        naive_apart=apart(gradient(model, cut(numbers, 4), naive=True)))
