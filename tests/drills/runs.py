"""Drills on a run itself: lost processes, lost disks, numbers that are not finite."""
import ctypes, errno, json, math, multiprocessing, os, resource, shutil, signal, socket
import sys, tempfile, threading, time
import numpy as np, torch, torch.distributed as dist, safetensors.torch as st
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import count, product
from pathlib import Path
from unittest import mock
from einops import rearrange
from torch import Tensor
from fvlm.training import checkpoint as checkpoint_module
from fvlm.data import shards as shards_module
from fvlm.training import trainer as trainer_module
from fvlm.world.backbones import tiny_llm, tiny_tokenizer, tiny_vit
from fvlm.training.checkpoint import (CheckpointError, find_checkpoints, latest_checkpoint, load_checkpoint,
    save_checkpoint, verify)
from fvlm.config import Config, ConfigError, load_config, write_atomic
from fvlm.training.guards import MemoryRefusal
from fvlm.data.loader import Batches, DataError
from fvlm.model.foveated import FoveatedVLM, load_tokenizer
from fvlm.data.plan import PlanError
from fvlm.training.distributed import PeerError, Processes, Stopped
from fvlm.world.scenes import World, make_scene
from fvlm.data.index import write_index
from fvlm.data.remote import ShardError
from fvlm.data.shards import FrameSpec, Shards, fingerprint, index_shard, to_jpeg, write_shard
from fvlm.training.tracking import run_info
from fvlm.training.trainer import TrainError, train


@dataclass(frozen=True)
class Drill:
    "One fault and how it is judged."
    id:str # of the row
    fault:str # in a few words
    injected:str # how it is brought about
    expected:str # what must come of it
    rule:Callable # measured numbers -> bool
    work:Callable # (folder, size) -> measured numbers
    also:str='' # tests of the same fault elsewhere

DRILLS = {}

def drill(
    id:str, # of the row, such as F1
    fault:str, injected:str, expected:str, # see `Drill`
    rule:Callable, # measured numbers -> bool
    also:str='', # tests of the same fault elsewhere
)->Callable: # decorator
    "Put a function into the registry."
    def keep(work):
        DRILLS[id] = Drill(id, fault, injected, expected, rule, work, also)
        return work
    return keep


@dataclass(frozen=True)
class Size:
    "How much of everything."
    kills:int=20 # of a run in three stages
    steps:int=12 # updates of a stage
    every:int=3 # each such point of a save
    cuts:int=4 # places where a file is cut
    disks:int=4 # sizes of a disk that is too small
    stops:int=24 # updates of a run that is stopped after each
    workers:tuple=(0,1,2,4,6) # data processes
    legs:tuple=((1,0),(2,1),(4,2),(1,6)) # processes and data processes of a run that changes them
    places:int=5 # where a run is asked to stop
    falls:int=4 # ways in which a process is lost
    long:int=300 # updates of a run with some poison in it
    poisons:int=3 # poisoned updates
    batch:int=16 # its samples per update; in few tokens, one hard answer is a spike
    clips:int=2400 # videos that it reads
    members:int=200_000 # files of a tar that has too many
    threads:int=50 # that ask a model at once
    seed:int=0 # of everything random

FULL = Size()
QUICK = Size(kills=3, steps=4, every=9, cuts=2, disks=3, stops=12, places=2, falls=2, long=72, poisons=1,
    batch=4, clips=48, workers=(0,2), legs=((1,0),(2,1),(1,2)), members=20_000, threads=12)


def video_clip(
    i:int, # number
)->dict: # a clip: key, source, split, media, chats
    "A clip of one to three frames with its question."
    scene = make_scene('lookup', i, World(glyphs=4, frames=1+i%3))
    frames = [to_jpeg(rearrange(torch.from_numpy(f), 'h w c -> c h w')) for f in scene.frames()]
    q = scene.questions[0]
    return dict(key=f'video-{i}', source='videos', split='validation' if i%6==5 else 'train',
        media=[dict(type='video', frames=frames)], chats=[dict(key=f'video-{i}', question=q.question,
        answer=q.answer)])

def text_clip(
    i:int, # number
)->dict: # a clip without media
    "A conversation of some length."
    words = [dict(role='user', content=f'say {i} '*(i%5+1)), dict(role='assistant', content=f'{i}')]
    return dict(key=f'text-{i}', source='text', split='train', media=[],
        chats=[dict(key=f'text-{i}', messages=words)])


def make_shards(
    folder:Path, # gets the tars and the index
    clips:list[dict], # what goes in
    number:int, # of shards
    tokenizer, # to count tokens
)->Path: # the folder
    "A folder of shards."
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder/f'{i:05d}.tar' for i in range(number)]
    for i,p in enumerate(paths): write_shard(p, clips[i::number], FrameSpec(40))
    write_index(folder, ((p.name, index_shard(p, tokenizer)) for p in paths),
        tokenizer=fingerprint(tokenizer))
    return folder

def make_world(
    folder:Path, # gets `shards`, `vision` and `language`
)->Path: # the same
    "All that a run needs, if it is not there yet."
    if (folder/'shards'/'index.json').is_file(): return folder
    tokenizer = tiny_tokenizer()
    tiny_vit().save_pretrained(folder/'vision')
    tiny_llm(len(tokenizer)).save_pretrained(folder/'language')
    tokenizer.save_pretrained(folder/'language')
    clips = [video_clip(i) for i in range(48)]+[text_clip(i) for i in range(24)]
    make_shards(folder/'shards', clips, 4, tokenizer)
    return folder

def shared_world(
    folder:Path, # of a drill
)->Path: # of the world that all drills beside it share
    "The world that all drills of a folder share."
    return make_world(folder.parent/'world')


SAVE_EVERY = 3 # updates
TIMEOUT = 15 # seconds that a process waits for another, or for a batch

def settings(
    world:Path, # from `make_world`
    out:Path, # folder of the run
    *more:str, # overrides
)->Config:
    "The configuration of a run."
    return load_config(overrides=['name=drill', f'out={out}', f'model.vision={world}/vision',
        f'model.language={world}/language', f'data.shards={world}/shards',
        'data.frame_size=40', 'data.text_share=0.25', 'data.window=32', 'train.batch_size=4',
        'train.token_budget=120', 'train.precision=fp32',
        'train.lr.connector=1e-3', 'train.lr.language=1e-3', 'train.lr.vision=1e-4', 'train.log_every=1',
        f'train.save_every={SAVE_EVERY}', 'log.wandb=false', *more])

def data_parts(
    world:Path, # from `make_world`
)->tuple: # shards, tokenizer, plan
    "What a run reads."
    cfg, tokenizer = settings(world, world), load_tokenizer(world/'language')
    shards = Shards(cfg.data.shards)
    return shards, tokenizer, trainer_module.make_plan(cfg, shards, tokenizer)


SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['drills.runs'])
QUIET = dict(FVLM_QUIET='1', WANDB_MODE='offline', OMP_NUM_THREADS='1')


def _child_main(log_file, env, work, args): # entry point of a child process
    os.environ.update(env)
    torch.set_num_threads(1)
    with open(log_file, 'ab', 0) as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    work(*args)


class Child:
    "A process that runs one function."
    def __init__(self,
        log_file:Path, # gets its output
        work:Callable, # a function of this module
        *args, # of it
        **env, # variables of its environment
    ):
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file, self.began = log_file, time.monotonic()
        self.process = SERVER.Process(target=_child_main, args=(log_file, QUIET|env, work, args))
        self.process.start()

    def on(self): return self.process.is_alive()
    def kill(self, how=signal.SIGKILL):
        with suppress(ProcessLookupError): os.kill(self.process.pid, how)

    def end(self,
        limit:float=120, # seconds
    )->int|None: # exit code, negative for a signal; none if it had to be ended here
        "Wait for the end."
        self.process.join(limit)
        late = self.on()
        if late:
            self.kill()
            self.process.join()
        return None if late else self.process.exitcode

    def words(self): return self.log_file.read_text(errors='replace')


def free_port()->str: # of this machine
    "A port that nobody listens to."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])

def start_ranks(
    home:Path, # gets their output
    ranks:int, # how many
    work:Callable, # a function of this module
    *args, # of it
    agent:bool=False, # what they tell one another is kept here, as by `torchrun`, and not by process 0
)->list[Child]:
    "Several processes of one run."
    where = dict(WORLD_SIZE=str(ranks), MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(),
        TORCHELASTIC_USE_AGENT_STORE=str(agent))
    store = dist.TCPStore('127.0.0.1', int(where['MASTER_PORT']), is_master=True,
        wait_for_workers=False) if agent else None
    children = [Child(home/f'rank{r}.txt', work, *args, RANK=str(r), LOCAL_RANK=str(r), **where)
        for r in range(ranks)]
    for l in children: l.store = store
    return children


ERRORS = (ConfigError, PlanError, ShardError, DataError, CheckpointError, TrainError, PeerError,
    MemoryRefusal,
    FileNotFoundError)

def evaluate_two(
    model, tokenizer, cfg, # as an evaluation gets them
    times:int=1, # how often to look
)->dict: # loss
    "An evaluation of two samples."
    b = Batches(Shards(cfg.data.shards, 'validation'), tokenizer, cfg.data)[[0,1]]
    with torch.no_grad():
        for _ in range(times):
            out = model(input_ids=b['input_ids'], pixel_values_videos=b['pixel_values_videos'],
                frame_index=b['frame_index'], labels=b['labels'], coarse_length=b['coarse_length'])
    return dict(loss=out.loss.item())

def write_numbers(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers))
def read_numbers(path): return json.loads(path.read_text())

def train_rank(
    cfg:Config, # of the run
    trouble:Callable=nullcontext, # a context in which the run is made
    *args, # of it
    evaluate:Callable=None, # as for `train`
):
    "One process of a run, as the script would end it."
    models = []
    keep = lambda cfg, build=trainer_module.build_model: (models.append(built := build(cfg)), built)[1]
    try:
        with trouble(*args), mock.patch.object(trainer_module, 'build_model', keep): train(cfg, evaluate)
    except ERRORS as e:
        print(f'train: {e}')
        sys.exit(1)
    except Stopped as e: print(f'train: {e}')
    finally:
        flat = torch.cat([p.detach().flatten() for m,_ in models for p in m.parameters()] or [torch.zeros(0)])
        numbers = dict(sum=flat.double().sum().item(), odd=int((~flat.isfinite()).sum()))
        write_numbers(Path(cfg.out)/f"rank{os.environ.get('RANK', 0)}.json", numbers)


class DrillError(RuntimeError):
    "The drill itself could not be done."

def ended_with_line(child, *words): # it ended with one line that names them
    last = (child.words().strip().splitlines() or [''])[-1]
    return last.startswith('train: ') and all(w in last for w in words) and 'Traceback' not in child.words()

def run_child(
    log_file:Path, # gets its output
    work:Callable, # a function of this module
    *args, # of it
    **env, # variables of its environment
)->None:
    "Run a child process that must end with 0."
    child = Child(log_file, work, *args, **env)
    if code:=child.end(300) or child.process.exitcode:
        raise DrillError(f'{work.__name__} ended with {code}: {child.words()[-1500:]}')

def wait_for(
    true:Callable, # without arguments
    limit:float=120, # seconds
)->bool: # whether it came true
    "Wait for something."
    end = time.monotonic()+limit
    while not (done:=true()) and time.monotonic()<end: time.sleep(.002)
    return bool(done)


def count_bits(
    a:dict[str,Tensor], # by name
    b:dict[str,Tensor], # by name
)->int: # that differ; a tensor that is missing or has another shape counts in full
    "Count differing bits."
    raw = lambda t: t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    one = lambda x, y: 8*max(x.nbytes, y.nbytes) if x.shape!=y.shape or x.dtype!=y.dtype else int(
        np.unpackbits(raw(x)^raw(y)).sum())
    nothing = torch.zeros(0)
    return sum(one(a.get(k, nothing), b.get(k, nothing)) for k in a.keys()|b.keys())

def log_rows(
    run:Path, # folder of a run
)->list[dict]: # without times and memory
    "The log, as far as it can be repeated."
    results = [json.loads(l) for l in (run/'metrics.jsonl').read_text().splitlines()]
    return [{k:v for k,v in r.items() if not any(w in k for w in ('second','waited','memory'))}
        for r in results]

def compare(
    a:Path, # folder of a run
    b:Path, # of the other
)->dict: # bits and rows that differ
    "What two finished runs do not have in common."
    last = [find_checkpoints(r/'checkpoints')[-1] for r in (a,b)]
    files = [[r/'model'/'model.safetensors', c/'optimizer.safetensors', c/'rng.safetensors'] for r,
        c in zip((a,b), last)]
    rows = [log_rows(r) for r in (a,b)]
    odd = sum(x!=y for x,y in zip(*rows))+abs(len(rows[0])-len(rows[1]))
    return dict(bits=sum(count_bits(st.load_file(x), st.load_file(y)) for x,y in zip(*files)), rows=odd)


STAGES = (('model.frozen=[vision,language]', 'data.mix=[videos=1]', 'data.text_share=0'),
    ('model.frozen=[vision]', 'train.refine=0.5'), ('model.lambda_coarse=0.2', 'data.mix=[videos=2,text=1]'))

def stage_configs(
    world:Path, # from `make_world`
    home:Path, # gets a folder for each stage
    steps:int, # updates of a stage
)->list[Config]: # one per stage
    "A run in three stages."
    start = lambda n: [f'model.init={home}/stage{n-1}/model'] if n>1 else []
    return [settings(world, home/f'stage{n}', f'stage={n}', f'train.steps={steps}', *more, *start(n)) for n,
        more in enumerate(STAGES, 1)]

def run_stages(
    world:Path, home:Path, steps:int, # as for `stages`
):
    "Train them one after the other, from wherever they stand."
    for cfg in stage_configs(world, home, steps): train(cfg)


def position_of(run): # updates in its newest whole checkpoint
    at = latest_checkpoint(run/'checkpoints')
    return int(at.name.rpartition('-')[2]) if at else 0

def position(
    home:Path, # of a run in stages
)->tuple[int,int]: # updates in the logs, updates in whole checkpoints
    "How far a run in stages has come."
    logs, runs = [p.read_bytes() for p in home.glob('stage*/metrics.jsonl')], sorted(home.glob('stage*'))
    return sum(l.count(b'\n') for l in logs), sum(map(position_of, runs))

def saving(home):
    return any('.part' in p.name for p in home.glob('stage*/checkpoints/.*'))


def kill_at(
    home:Path, # of a run in stages
    child:Child, # that makes it
    rows:int, # kill when the log has so many
    inside:bool, # and then wait for a save
    delay:float, # and then for so many seconds
)->dict: # updates logged, updates lost, whether a save was under way
    "Kill a child process at a moment."
    lines = lambda: sum(p.read_bytes().count(b'\n') for p in home.glob('stage*/metrics.jsonl'))
    wait_for(lambda: lines()>=rows or not child.on())
    if inside: wait_for(lambda: saving(home) or not child.on())
    time.sleep(delay)
    child.kill()
    child.end()
    logged, saved = position(home)
    return dict(logged=logged, lost=logged-saved, saving=saving(home))

@drill('F1', 'kill -9 in the middle of a run',
    'SIGKILL at random moments of three stages; every third kill waits for a save',
       'resumed each time; weights, optimiser, random numbers and log as in an undisturbed run; at most the '
       'updates since the save before the one at work are lost',
       lambda f: f['kills']==f['wanted'] and f['bits']==f['rows']==0 and f['most_lost']<=2*f['save_every'],
       'tests/test_processes.py::test_kill_9_changes_nothing')
def kill_anywhere(folder, size):
    world, rng, undisturbed, killed, all_ = shared_world(folder), np.random.default_rng(
        size.seed), folder/'calm', folder/'killed', 3*size.steps
    run_child(folder/'calm.txt', run_stages, world, undisturbed, size.steps)
    moments, results = sorted(rng.integers(0, all_-1, size.kills).tolist()), []
    for i,rows in enumerate(moments):
        child = Child(folder/f'life{i}.txt', run_stages, world, killed, size.steps)
        results.append(kill_at(killed, child, rows, i%3==2, rng.uniform(0, .01 if i%3==2 else .3)))
    run_child(folder/'end.txt', run_stages, world, killed, size.steps)
    apart = [compare(undisturbed/f'stage{n}', killed/f'stage{n}') for n in (1,2,3)]
    return dict(kills=sum(f['logged']<all_ for f in results), wanted=size.kills,
        inside_saves=sum(f['saving'] for f in results), updates=all_,
                **{k:sum(a[k] for a in apart) for k in ('bits','rows')},
                most_lost=max(f['lost'] for f in results), save_every=SAVE_EVERY)


CHANGES = 'os.rename', 'os.mkdir', 'os.rmdir', 'os.remove'

def act_at_change(
    at:int, # the number of the change at which to act; -1: never
    act:Callable, # what to do then
)->list[str]: # grows with every change to the disk
    "From now on, this process is struck at one change to the disk."
    seen, sync, write = [], os.fsync, st.serialize_file
    def point(what):
        seen.append(what)
        if len(seen)-1==at: act()
    def hook(event, args):
        if event in CHANGES or event=='open' and isinstance(args[2], int) and args[2]&(os.O_WRONLY|os.O_RDWR):
            point(event)
    def slow_write(tensors, path, *more, **named):
        write(tensors, path, *more, **named)
        os.truncate(path, Path(path).stat().st_size//2)
        point('half written')
        write(tensors, path, *more, **named)
    os.fsync = lambda handle: (point('fsync'), sync(handle))
    st.serialize_file = slow_write
    sys.addaudithook(hook)
    return seen


FORK = multiprocessing.get_context('fork')

def tiny_run(
    world:Path, # from `make_world`
)->tuple: # model, optimiser with a state, tokenizer
    "What a checkpoint is made of."
    model, tokenizer = FoveatedVLM.from_backbones(str(world/'vision'), str(world/'language'))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.)
    for p in model.parameters(): p.grad = torch.ones_like(p)
    optimizer.step()
    return model, optimizer, tokenizer

def fill_weights(model, value): # all weights become this number
    with torch.no_grad():
        for p in model.parameters(): p.fill_(value)

def save(home, run, step, value, keep=1): # a checkpoint whose weights are all `value`
    model, optimizer, tokenizer = run
    fill_weights(model, value)
    return save_checkpoint(home, step, model, optimizer, tokenizer, dict(value=value), keep)

def run_fork(work, *args)->int: # exit code of a fork that does it
    p = FORK.Process(target=work, args=args)
    p.start()
    p.join()
    return p.exitcode


def recovers(
    home:Path, # of checkpoints
    run:tuple, # from `tiny_run`; changed in place
    values:tuple, # that the weights may have
)->bool: # the newest loads, is of one piece, and the next save leaves nothing else behind
    "Whether training can continue from what is on disk."
    at = latest_checkpoint(home)
    if at is None: return False
    fill_weights(run[0], 0)
    value = load_checkpoint(at, *run[:2])['state']['value']
    whole = all(bool((p==value).all()) for p in run[0].parameters())
    save(home, run, 9, 9)
    return whole and value in values and sorted(p.name for p in home.iterdir())==['step-00000009']

def interrupted_save(home, run, step, at, act, log_file): # runs in a fork
    seen = act_at_change(at, act)
    try: save(home, run, step, 2)
    except Exception as e: seen.append(f'{type(e).__name__}: {e}')
    log_file.write_text('\n'.join(seen))

def kill_self(): os.kill(os.getpid(), signal.SIGKILL)
def raise_disk_full(): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
def raise_io_error(): raise OSError(errno.EIO, os.strerror(errno.EIO))


def interrupted_saves(
    world:Path, # from `make_world`
    home:Path, # for checkpoints
    act:Callable, # at the point
    steps:tuple, # of the save: 2 is a new one, 1 replaces the first
    every:int, # points
)->Iterator[dict]: # of each save: exit code, last line, whether it recovers, whether old files are kept
    "A save, struck at every point."
    run, log_file = tiny_run(world), home/'said'
    save(home/'first', run, 1, 1)
    digest = lambda: {p.name:checkpoint_module._sha256(p) for at in find_checkpoints(home/'now')[:1]
        for p in at.iterdir()}
    def reset():
        shutil.rmtree(home/'now', ignore_errors=True)
        shutil.copytree(home/'first', home/'now')
    for step in steps:
        reset()
        run_fork(interrupted_save, home/'now', run, step, -1, act, log_file)
        for at in range(0, len(log_file.read_text().splitlines()), every):
            reset()
            log_file.write_text('')
            old = digest()
            code = run_fork(interrupted_save, home/'now', run, step, at, act, log_file)
            yield dict(code=code, said=log_file.read_text().rpartition('\n')[2], same=digest()==old,
                sound=recovers(home/'now', run, (1,2)))

def kill_saves(world, home, every): # runs in a child process
    results = list(interrupted_saves(world, home, kill_self, (2,1), every))
    killed = sum(f['code']==-signal.SIGKILL for f in results)
    write_numbers(home/'found.json', dict(points=len(results), killed=killed,
        recovered=sum(f['sound'] for f in results)))

@drill('F2', 'kill -9 inside a save',
    'SIGKILL at every open, write, fsync, rename and removal of a save, of a new checkpoint and of one that '
    'replaces another',
    'the newest whole checkpoint loads, the next save works and removes what was left, without help',
       lambda f: f['points']==f['killed']==f['recovered']>0)
def kill_in_save(folder, size):
    run_child(folder/'said.txt', kill_saves, shared_world(folder), folder, size.every)
    return read_numbers(folder/'found.json')


def mount_small_disk(
    folder:Path, # becomes an empty disk, for this process alone
    size:int, # bytes
)->bool: # whether the system lets us
    "A file system of a given size."
    libc, uid = ctypes.CDLL(None, use_errno=True), os.getuid()
    NEWNS, NEWUSER = 0x20000, 0x10000000
    if libc.unshare(NEWNS if uid==0 else NEWNS|NEWUSER): return False
    if uid:
        with suppress(OSError): Path('/proc/self/uid_map').write_text(f'0 {uid} 1')
    private = libc.mount(b'none', b'/', None, 0x4000|0x40000, None) # what happens here is not seen outside
    return not private and not libc.mount(b'none', str(folder).encode(), b'tmpfs', 0, f'size={size}'.encode())

def bounded_save(home, run, limit, disk, log_file): # runs in a fork: a save with too little room
    first = home/'first'
    need = sum(p.stat().st_size for p in first.rglob('*') if p.is_file())
    if disk and not mount_small_disk(home/'disk', need+int(limit*need)): return
    place = home/'disk' if disk else home/'now'
    shutil.copytree(first, place, dirs_exist_ok=True)
    old = {p:checkpoint_module._sha256(p) for p in find_checkpoints(place)[0].iterdir()}
    if not disk: resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit*need), resource.RLIM_INFINITY))
    try:
        save(place, run, 2, 2, keep=2)
        why = ''
    except Exception as e: why = f'{type(e).__name__}: {e}'
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    same = all(p.is_file() and checkpoint_module._sha256(p)==d for p,d in old.items())
    write_numbers(log_file, dict(said=why, same=same, sound=disk or recovers(place, run, (1,))))


def one_line_errors(results): # of saves that failed: one line that names the folder
    return [f['said'].startswith('CheckpointError') and 'step-0000000' in f['said']
        and 'older checkpoints are untouched' in f['said'] for f in results]

def fill_saves(world, home, every, disks): # runs in a child process
    results = [f for act in (raise_disk_full, raise_io_error)
        for f in interrupted_saves(world, home, act, (2,), every)]
    bounded, run = [], tiny_run(world)
    (home/'disk').mkdir()
    for disk,limit in product((True,False), np.linspace(.02, .9 if disks>1 else .5, disks)):
        shutil.rmtree(home/'now', ignore_errors=True)
        limit = limit if disk else limit*.6 # a file is at most two thirds of all
        run_fork(bounded_save, home, run, float(limit), disk, log_file:=home/f'{disk}{limit:.3f}.json')
        if log_file.exists(): bounded.append(dict(read_numbers(log_file), disk=disk))
    failed = [f for f in results if 'Error' in f['said']]
    write_numbers(home/'found.json', dict(errors=len(results), saves_failed=len(failed),
        small_disks=sum(f['disk'] for f in bounded), file_limits=sum(not f['disk'] for f in bounded),
        one_line=sum(one_line_errors(failed+bounded)), of=len(failed+bounded), old_changed=sum(not f['same']
        for f in failed+bounded), sound=sum(f['sound'] for f in results+bounded), tried=len(results+bounded)))

@drill('F3', 'disk full, or an I/O error, inside a save',
    'ENOSPC and EIO at every point of a save; a limit on file size; a disk that is too small',
    'one line that names the folder, the older checkpoint is the same to the byte, and the next save works',
       lambda f: f['saves_failed']>0 and f['one_line']==f['of'] and f['old_changed']==0
       and f['sound']==f['tried'])
def no_room(folder, size):
    run_child(folder/'said.txt', fill_saves, shared_world(folder), folder, size.every, size.disks)
    return read_numbers(folder/'found.json')


@contextmanager
def damaged(
    path:Path, # a file
    how:Callable, # bytes -> bytes, or None to remove it
):
    "A damaged file, restored afterwards."
    good = path.read_bytes()
    bad = how(good)
    if bad is None: path.unlink()
    else: path.write_bytes(bad)
    try: yield
    finally: path.write_bytes(good)

def flip(at): return lambda data: data[:at]+bytes([data[at]^1])+data[at+1:] # one bit
def cut_off(at): return lambda data: data[:at]

def refuses_and_falls_back(
    home:Path, # with two checkpoints
    name:str, # of the damaged file
)->bool: # refused with its name, and the older one is taken
    "Whether the damage is seen."
    older, newer = find_checkpoints(home)
    try: verify(newer)
    except CheckpointError as e: told = name in str(e) and '\n' not in str(e)
    else: return False
    with open(os.devnull, 'w') as quiet, mock.patch('sys.stdout', quiet):
        return told and latest_checkpoint(home)==older


@drill('F4', 'a damaged checkpoint',
    'one bit turned in each file; each file cut off at several places; each file removed',
       'refused by its digest, with the name of the file; the run falls back to the checkpoint before',
       lambda f: f['damages']==f['noticed']>0)
def damage(folder, size):
    run = tiny_run(shared_world(folder))
    for step in (1,2): save(folder, run, step, step, keep=2)
    newer, rng, results = find_checkpoints(folder)[1], np.random.default_rng(size.seed), []
    for path in sorted(newer.iterdir()):
        n = path.stat().st_size
        for how in (flip(int(rng.integers(n))),
                *map(cut_off, sorted({0, n-1, *rng.integers(n, size=size.cuts-2).tolist()})),
                lambda data: None):
            with damaged(path, how): results.append(refuses_and_falls_back(folder, path.name))
    return dict(files=len(list(newer.iterdir())), damages=len(results), noticed=sum(results))


def pair(
    world:Path, # from `make_world`
    out:Path, # of the run
    *more:str, # overrides
)->Config: # two micro-batches for each of two processes, an evaluation after four updates
    "The settings of a run in two processes."
    return settings(world, out, 'train.steps=6', 'train.micro_batch=1', 'train.eval_every=4',
        f'train.timeout={TIMEOUT}', *more)

def run_pair(
    log_file:Path, # folder for what they say
    cfg:Config, # from `pair`
    trouble:Callable=nullcontext, # what happens in them
    *args, # of it
    limit:float=120, # seconds
)->tuple[list[Child],list]: # the two, and their exit codes
    "Run two processes to their end."
    children = start_ranks(log_file, 2, train_and_evaluate, cfg, trouble, *args)
    return children, [l.end(limit) for l in children]

def train_and_evaluate(cfg, trouble, *args):
    def evaluate(model, tokenizer, cfg, procs):
        found = evaluate_two(model, tokenizer, cfg)
        procs.gather('done', 'evaluation')
        return found
    train_rank(cfg, trouble, *args, evaluate=evaluate)

def undisturbed_pair(
    world:Path, # from `make_world`
)->Path: # folder of the run
    "The undisturbed run of two processes, if it is not there yet."
    run = world.parent/'pair'
    if not (run/'summary.json').exists():
        children, codes = run_pair(run/'said', pair(world, run))
        if codes!=[0,0]:
            raise DrillError(f'an undisturbed pair ended with {codes}: {children[0].words()[-1500:]}')
    return run

def rank_here(): return int(os.environ.get('RANK', 0)) # which process this is


@contextmanager
def replaced(
    owner, name:str, # of a function
    change:Callable, # (number of the call, the function, its arguments) -> result
):
    "Replace a function, restored afterwards."
    real, calls = getattr(owner, name), count(1)
    with mock.patch.object(owner, name, lambda *a, **k: change(next(calls), real, *a, **k)): yield


PLACES = 'waiting', 'evaluation', 'accumulation', 'update', 'save'

def sigterm_at(
    where:str, # of `PLACES`
    log_file:Path, # gets the time of the signal
):
    "SIGTERM to one process, at some place."
    def send():
        log_file.write_text(str(time.monotonic()))
        os.kill(os.getpid(), signal.SIGTERM)
    def at(n): return lambda i, real, *a, **k: (send() if i==n else None, real(*a, **k))[1]
    def slowly(i, real, *a):
        send() if where=='evaluation' else None
        return real(*a, times=2000)
    def waiting(i, real, self, text, name='an exchange'):
        if name=='evaluation': threading.Timer(.5, send).start()
        return real(self, text, name)
    here = sys.modules[__name__]
    places = {(1,'update'): (trainer_module, 'accumulate', at(2)), (1,'accumulation'): (Tensor, 'backward',
        at(4)),
        (0,'save'): (trainer_module, 'take_snapshot', at(1)), (0,'evaluation'): (here, 'evaluate_two',
        slowly),
        (0,'waiting'): (here, 'evaluate_two', slowly), (1,'waiting'): (Processes, 'gather', waiting)}
    place = places.get((rank_here(), where))
    return replaced(*place) if place else nullcontext()

@drill('F5', 'a preempted machine',
    'SIGTERM to one of two processes, in an update, between micro-batches, in an evaluation, in a save',
    'both end with 0 within 30 s, one checkpoint; started again, the run is as in an undisturbed run',
       lambda f: f['ended_well']==f['asked']==f['saved']==f['same_bits'] and f['most_seconds']<30)
def take_away(folder, size):
    world, results = shared_world(folder), []
    undisturbed = undisturbed_pair(world)
    for where in PLACES[:size.places]:
        cfg = pair(world, folder/where)
        _, codes = run_pair(folder/f'{where}-said', cfg, sigterm_at, where, folder/f'{where}-at')
        seconds, stopped = time.monotonic()-float((folder/f'{where}-at').read_text()), not (
            Path(cfg.out)/'summary.json').exists()
        saved = latest_checkpoint(Path(cfg.out)/'checkpoints') is not None
        run_pair(folder/f'{where}-again', cfg)
        results.append(dict(seconds=seconds, well=codes==[0,0], saved=saved and stopped,
            same=compare(undisturbed, Path(cfg.out))['bits']==0))
    seconds = [f['seconds'] for f in results]
    return dict(asked=len(results), ended_well=sum(f['well'] for f in results),
        saved=sum(f['saved'] for f in results), same_bits=sum(f['same'] for f in results),
        median_seconds=round(float(np.median(seconds)), 2), most_seconds=round(max(seconds), 2))


NOT_FINITE = {2:'nan gradient', 3:'inf gradient', 5:'nan loss'}

def make_not_finite(
    always:bool, # every update, not only those of `SPOILED`
):
    "Values that are not finite, in process 1."
    def change(i, real, model, *more):
        sums, kind = real(model, *more), 'nan gradient' if always else NOT_FINITE.get(i, '')
        worst = math.inf if 'inf' in kind else math.nan
        if 'gradient' in kind:
            next(p.grad for p in model.parameters() if p.grad is not None).view(-1)[0] = worst
        return dict(sums, loss=sums['loss']*worst) if 'loss' in kind else sums
    return replaced(trainer_module, 'accumulate', change) if rank_here()==1 else nullcontext()

@drill('F9', 'a value that is not finite',
    'NaN and infinity in gradient and loss of one of two processes; then in every update',
    'all processes skip the update and log its samples; no weight is touched; a run with nothing else ends '
    'with one line',
       lambda f: f['left_out']==f['spoiled']==f['told_samples'] and f['odd_weights']==f['weights_apart']==0
       and f['ended_in_one_line']==2)
def no_numbers(folder, size):
    world = shared_world(folder)
    _, codes = run_pair(folder/'said', pair(world, folder/'run'), make_not_finite, False)
    if codes!=[0,0]: raise DrillError(f'the run ended with {codes}')
    skips, ends = [r for r in log_rows(folder/'run') if r['event']=='skip'], [
        read_numbers(folder/'run'/f'rank{r}.json') for r in (0,1)]
    children, codes = run_pair(folder/'said-always', pair(world, folder/'always', 'train.steps=20',
        'train.eval_every=0'), make_not_finite, True)
    return dict(spoiled=len(NOT_FINITE), left_out=sum(r['step'] in NOT_FINITE for r in skips),
        told_samples=sum(len(r['keys'].split())==4 for r in skips), odd_weights=sum(e['odd'] for e in ends),
                weights_apart=abs(ends[0]['sum']-ends[1]['sum']),
                ended_in_one_line=sum(c==1 and ended_with_line(l, 'in a row', 'not finite') for l,
                c in zip(children, codes)))


def poison_updates(
    steps:dict, # number of the update -> labels or gradient
):
    "Updates that would spoil the weights."
    def change(i, real, model, batches, *more):
        if steps.get(i)=='labels':
            for b in batches:
                b['labels'] = torch.where(b['labels']<0, b['labels'], torch.randint(4, 400, b['labels'].shape,
                    generator=torch.Generator().manual_seed(i)))
        sums = real(model, batches, *more)
        if steps.get(i)=='gradient':
            for p in model.parameters(): p.grad = None if p.grad is None else 100*p.grad
        return sums
    return replaced(trainer_module, 'accumulate', change)

@drill('F10', 'a poisoned update',
    'random answers, or a gradient a hundred times too large, in some updates of a long run',
    'these are left out, and no other', lambda f: f['caught']==f['poisoned'] and f['false_alarms']==0)
def poisoned(folder, size):
    world, steps = shared_world(folder), size.long
    at = np.linspace(max(70, steps*3//20), steps-1, size.poisons).astype(int).tolist()
    doses = dict(zip(at, ('gradient','labels')*len(at)))
    clips = [video_clip(i) for i in range(size.clips)]+[text_clip(i) for i in range(size.clips//3)]
    make_shards(folder/'shards', clips, 4, load_tokenizer(world/'language')) # too many to memorise
    cfg = settings(world, folder/'run', f'data.shards={folder}/shards', f'train.steps={steps}',
        f'train.batch_size={size.batch}', 'train.token_budget=480',
        'train.save_every=0', 'train.lr.connector=3e-4', 'train.lr.language=3e-4')
    child = Child(folder/'said.txt', train_rank, cfg, poison_updates, doses)
    if code:=child.end(1500) or child.process.exitcode:
        raise DrillError(f'ended with {code}: {child.words()[-1000:]}')
    rows = log_rows(folder/'run')
    skipped = {r['step'] for r in rows if r['event']=='skip'}
    losses = [r['loss'] for r in rows if r['event']=='train']
    return dict(updates=steps, poisoned=len(doses), caught=len(skipped&set(doses)),
        false_alarms=len(skipped-set(doses)), first_loss=round(losses[0], 2), last_loss=round(losses[-1], 3))


def limit_memory(
    most:int, # samples that process 1 has memory for, in update 3
):
    "Too little memory."
    step = []
    def backward(i, real, self, *more):
        step[:] = [self.step]
        return real(self, *more)
    def forward(i, real, self, *more, **named):
        if step==[2] and torch.is_grad_enabled() and len(named['input_ids'])>most:
            raise torch.OutOfMemoryError('CUDA out of memory, or so it seems')
        return real(self, *more, **named)
    both = ExitStack()
    if rank_here()==1:
        both.enter_context(replaced(trainer_module.Run, 'backward', backward))
        both.enter_context(replaced(FoveatedVLM, 'forward', forward))
    return both

@drill('F11', 'no memory in one process',
    'a fake limit on the samples that one of two processes can hold, in one update',
    'both repeat the update in smaller pieces; the same gradient, no sample lost; if nothing fits, one line '
    'and a checkpoint',
       lambda f: f['ended']==[0,0] and f['redone']>0 and f['samples_lost']==f['weights_apart']==0
       and f['gradient_apart']<1e-4 and f['ended_in_one_line']==2 and f['saved']==2)
def no_memory(folder, size):
    world, runs = shared_world(folder), {}
    cfg = lambda name: pair(world, folder/name, 'train.micro_batch=2', 'train.eval_every=0', 'train.steps=4')
    for name,most in dict(calm=9, scarce=1).items():
        runs[name] = run_pair(folder/f'{name}-said', cfg(name), limit_memory, most)[1], log_rows(folder/name)
    undisturbed, less = ([r for r in runs[k][1] if r['event']=='train'] for k in ('calm','scarce'))
    ends = [read_numbers(folder/'scarce'/f'rank{r}.json')['sum'] for r in (0,1)]
    apart = lambda k: abs(less[2][k]-undisturbed[2][k])/abs(undisturbed[2][k])
    children, codes = run_pair(folder/'none-said', cfg('none'), limit_memory, 0)
    return dict(ended=runs['scarce'][0], redone=json.loads((folder/'scarce'/'summary.json').read_text())[
        'summary']['redone'], samples_lost=undisturbed[-1]['samples']-less[-1]['samples'],
        weights_apart=abs(ends[0]-ends[1]),
                gradient_apart=max(apart('grad_norm'), apart('loss')),
                ended_in_one_line=sum(c==1 and ended_with_line(l, 'memory') for l,c in zip(children, codes)),
                saved=int(position_of(folder/'none')))


RANK_ENDS = (1, 'SIGKILL', 'update'), (0, 'SIGKILL', 'save'), (1, 'SIGSTOP', 'update'), (0, 'SIGSTOP', 'save')

def end_rank(
    who:int, how:str, where:str, # of `ENDS`
    log_file:Path, # gets the time
):
    "The end of one process."
    def end():
        log_file.write_text(str(time.monotonic()))
        os.kill(os.getpid(), getattr(signal, how))
    name = dict(update='accumulate', save='take_snapshot')[where]
    n = dict(update=5, save=1)[where]
    return replaced(trainer_module, name, lambda i, real, *a, **k: (end() if i==n else None, real(*a, **k))[
        1]) if rank_here()==who else nullcontext()

@drill('F12', 'a dead or hung process', 'SIGKILL or SIGSTOP to one of two processes, in an update or a save',
    'the other ends in time, in a line that says where; started again, the run is as in an undisturbed run',
       lambda f: f['ended_in_one_line']==f['falls']==f['same_bits'] and f['most_seconds_dead']<f['limit']
       and f['most_seconds_hung']<2*f['limit'])
def lose_one(folder, size):
    world, results = shared_world(folder), []
    undisturbed = undisturbed_pair(world)
    for who,how,where in RANK_ENDS[:size.falls]:
        name = f'{how}-{where}'
        cfg = pair(world, folder/name)
        children = start_ranks(folder/f'{name}-said', 2, train_and_evaluate, cfg, end_rank, who, how, where,
            folder/f'{name}-at', agent=how=='SIGSTOP')
        code = children[1-who].end(3*TIMEOUT+60)
        seconds = time.monotonic()-float((folder/f'{name}-at').read_text())
        children[who].kill()
        children[who].end()
        run_pair(folder/f'{name}-again', cfg)
        told = code==1 and ended_with_line(children[1-who], 'rank', 'update')
        same = compare(undisturbed, Path(cfg.out))['bits']==0
        results.append(dict(hung=how=='SIGSTOP', seconds=seconds, told=told, same=same))
    most = lambda hung: round(max((f['seconds'] for f in results if f['hung']==hung), default=0.), 1)
    return dict(falls=len(results), ended_in_one_line=sum(f['told'] for f in results),
        same_bits=sum(f['same'] for f in results), most_seconds_dead=most(False),
        most_seconds_hung=most(True),
        limit=TIMEOUT)


def child_pids(
    pid:int, # of a process
)->list[int]: # process numbers
    "The processes that a process has started."
    with suppress(OSError):
        return [int(c) for c in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    return []

def stuck_disk(after): # readers whose disk does not answer any more, after so many samples
    return replaced(shards_module, 'read_piece', lambda i, real, *a, **k: (
        time.sleep(10**6) if i==after else None, real(*a, **k))[1])

def hurt_worker(
    folder:Path, # of the drill
    cfg:Config, # of the run, with workers
    how:str, # killed or stuck
)->dict: # seconds from the last row of the log to the end, whether it ended with an error, and said why
    "Hurt one worker of a run."
    trouble = (stuck_disk, 14) if how=='stuck' else ()
    child, log = Child(folder/f'{how}.txt', train_rank, cfg, *trouble), Path(cfg.out)/'metrics.jsonl'
    if not wait_for(lambda: not child.on() or log.exists() and log.read_bytes().count(b'\n')>=2) or not (
            workers:=child_pids(child.process.pid)):
        raise DrillError(f'no worker: {child.words()[-1500:]}')
    if how=='killed': os.kill(workers[0], signal.SIGKILL)
    code = child.end(4*TIMEOUT)
    return dict(seconds=round(time.time()-log.stat().st_mtime, 1), ended=code==1, told=ended_with_line(child))


@drill('F14', 'a data worker killed or stuck',
    'SIGKILL to a worker that reads; in another run the disk does not answer its workers any more',
    'the run ends with a line within its timeout; started again it reads the same samples',
       lambda f: f['ended']==f['told']==2 and f['most_seconds']<f['limit'] and f['bits']==f['rows']==0)
def hurt_workers(folder, size):
    world, steps = shared_world(folder), 4*size.steps
    cfg = lambda name, *more: settings(world, folder/name, f'train.steps={steps}', *more)
    run_child(folder/'calm.txt', train, cfg('calm'))
    results = []
    for how in ('killed','stuck'):
        c = cfg(how, 'train.workers=2', f'train.timeout={TIMEOUT}')
        results.append(hurt_worker(folder, c, how))
        run_child(folder/f'{how}-again.txt', train, c)
    apart = [compare(folder/'calm', folder/n) for n in ('killed','stuck')]
    return dict(ended=sum(f['ended'] for f in results), told=sum(f['told'] for f in results),
        most_seconds=max(f['seconds'] for f in results), limit=2*TIMEOUT, **{k:sum(a[k] for a in apart)
        for k in ('bits','rows')})


class Dashboard:
    "A stand-in for wandb that fails in some way."
    def __init__(self, how): self.how = how
    def Settings(self, **_): pass
    def finish(self): pass
    def init(self, **_):
        if self.how=='never there': raise ConnectionError('no network')
        return self
    def log(self, *_, **__):
        if self.how=='fails later': raise RuntimeError('the server\nis gone')
        if self.how=='hangs': time.sleep(10**6)

def with_dashboard(cfg, how): # runs in a child process
    sys.modules['wandb'] = Dashboard(how)
    train(cfg)


def fill_disk(disk): # until it is full
    with suppress(OSError), open(disk/'ballast', 'wb', 0) as f:
        while True: f.write(bytes(512))

def lock_disk(disk): # nothing can be written any more
    if ctypes.CDLL(None, use_errno=True).mount(None, str(disk).encode(), None, 32|1, None):
        raise DrillError('cannot make the disk read-only')

# runs in a child process: from row 4 on the disk of the run is full or read-only
def bad_disk(cfg, how, after):
    disk, log = Path(cfg.out), trainer_module.Tracker.log
    disk.mkdir(parents=True, exist_ok=True)
    if not mount_small_disk(disk, 64_000_000): return
    def sabotaged(self, step, *args, **values):
        if step==4: how(disk)
        return log(self, step, *args, **values)
    why = 'went on'
    with mock.patch.object(trainer_module.Tracker, 'log', sabotaged):
        try: train(cfg)
        except Exception as e: why = f'{type(e).__name__}: {e}'
    shutil.copytree(disk, after, ignore=shutil.ignore_patterns('ballast'))
    (after/'why').write_text(why)


@drill('F21', 'logging that fails',
    'a dashboard that is never there, fails later, or hangs; the disk of the run full or read-only from some '
    'row on',
    'training and its log are as they would have been, if need be after another attempt; each step is in the '
    'table once',
       lambda f: f['dashboards_survived']==3 and f['disks_told']==f['disks']
       and f['bits']==f['rows']==f['table_rows_odd']==0)
def no_log(folder, size):
    world, steps, survived, told = shared_world(folder), 2*size.steps, 0, []
    cfg = lambda name, *more: settings(world, folder/name, f'train.steps={steps}', *more)
    run_child(folder/'calm.txt', train, cfg('calm'))
    for how in ('never there','fails later','hangs'):
        child = Child(folder/f'{how}.txt', with_dashboard, cfg(how, 'log.wandb=true'), how)
        survived += child.end(TIMEOUT+40)==0 and compare(folder/'calm', folder/how)==dict(bits=0, rows=0)
    for how in (fill_disk,lock_disk):
        run_child(folder/f'{how.__name__}.txt', bad_disk, cfg(f'disk-{how.__name__}'), how,
            folder/how.__name__)
        if not (folder/how.__name__/'why').exists(): continue
        why = (folder/how.__name__/'why').read_text()
        told.append(('metrics' in why or 'checkpoints' in why) and '\n' not in why
            and not why.startswith('OSError'))
        run_child(folder/f'{how.__name__}-again.txt', train, cfg(how.__name__))
    apart = [compare(folder/'calm', folder/how) for how in ('fill','lock') if (folder/how/'why').exists()]
    table = lambda run: [l.split(',')[:2] for l in (run/'metrics.csv').read_text().splitlines()]
    return dict(dashboards_survived=survived, disks=len(told), disks_told=sum(told),
        **{k:sum(a[k] for a in apart) for k in ('bits','rows')},
                table_rows_odd=sum(table(folder/how)!=table(folder/'calm') for how in ('fill','lock')
                if (folder/how).exists()))


def run_drill(
    id:str, # of the row
    folder:Path, # for its files, and the world beside it
    size:Size=FULL, # how much of everything
)->dict: # the row of the table
    "Do one drill and judge it."
    d, start = DRILLS[id], time.monotonic()
    shutil.rmtree(folder/id, ignore_errors=True)
    (folder/id).mkdir(parents=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: results, why = d.work(folder/id, size), ''
    except Exception as e: results, why = {}, f'{type(e).__name__}: {e}'.strip()[-1000:]
    torch.set_num_threads(threads)
    told = {k:getattr(d, k) for k in ('id','fault','injected','expected')}
    return dict(told, passed=bool(results) and bool(d.rule(results)), measured=results, error=why,
        seconds=round(time.monotonic()-start, 1), test=f'tests/test_faults.py::test_drill[{id}]', also=d.also)


def in_order(ids): return sorted(ids, key=lambda i: int(i[1:])) # F2 before F10

def run_drills(
    out:str|Path, # JSON file that is written
    only:tuple=(), # rows to do; none: all
    size:Size=FULL, # how much of everything
    say:Callable=print, # gets a line per drill
)->dict: # what the file holds
    "Do the drills and write what came out."
    if unknown:=set(only)-set(DRILLS):
        raise DrillError(f"there is no drill {sorted(unknown)[0]}; there are {', '.join(in_order(DRILLS))}")
    rows, start = [], time.time()
    with tempfile.TemporaryDirectory() as home:
        for id in in_order(only or DRILLS):
            rows.append(row:=run_drill(id, Path(home), size))
            shutil.rmtree(Path(home)/id, ignore_errors=True)
            why = row['error'] or ('' if row['passed'] else row['measured'])
            word = 'passed' if row['passed'] else 'FAILED'
            say(f"{word} {id} {row['fault']}, {row['seconds']:.0f} s {why}")
    command = 'python scripts/faults.py'+(f" --only {' '.join(in_order(only))}" if only else '')
    result = dict(info=run_info(), command=command, size=asdict(size), seconds=round(time.time()-start),
        rows=rows)
    write_atomic(out, json.dumps(result, indent=1)+'\n')
    return json.loads(Path(out).read_text())


def fault_table(
    result:dict, # from `run_drills`
)->list[dict]: # a row per drill
    "The drills for people."
    word = lambda v: f'{v:.2g}' if isinstance(v, float) and 0<abs(v)<.01 else f'{v:g}' if isinstance(v,
        float) else f'{v:,}' if isinstance(v, int) else ', '.join(map(str, v)) if isinstance(v,
        list) else str(v)
    say = lambda m: '; '.join(f"{k.replace('_',' ')} {word(v)}" for k,v in m.items() if v!=[])
    return [{'':r['id'], 'fault':r['fault'], 'how it is brought about':r['injected'],
        'expected':r['expected'], 'measured':r['error'] or say(r['measured']),
             'passed':'yes' if r['passed'] else '**no**', 'seconds':round(r['seconds'])}
             for r in result['rows']]
