"""What the data engine costs on one CPU core, side by side with a reference pipeline in the same run.

    python benchmarks/data.py                  # images and videos of the built-in world: about 15 minutes
    python benchmarks/data.py --clips FOLDER   # and real mp4 files, as in results/bench_data.json
    python benchmarks/data.py --quick          # all of it in a minute, to see that it works

Let nothing else run meanwhile; then execute nbs/7_results/02_data_results.ipynb again.

The reference ("plain" in the file) is what one finds in public code: webdataset reads the tars, Pillow
decodes, pixels become normalised float32 on the CPU, the chat template is applied twice, all is padded to the
longest clip, DistributedSampler shuffles. "plain, simplejpeg" is the same with our JPEG decoder. Ours reads
token ids that were stored when the shards were built, which is a part of what is compared.
tests/test_bench_data.py checks that both yield the same frames and tokens. The ways take turns, and
ratios are taken within a turn: what disturbs one disturbs the other. Time is processor time. Memory is
measured in a process of its own, by the kernel's high-water mark (`ru_maxrss` would be inherited from the
parent), or by looking at its anonymous memory every few milliseconds.

Letters: B samples in a batch, T frames in a clip, S tokens in a sequence, n samples in an index.
"""
import argparse, gc, io, json, os, re, shutil, subprocess, sys, tempfile, threading, time
from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from unittest.mock import patch

import av, numpy as np, PIL, simplejpeg, torch, webdataset as wds
from einops import rearrange
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DistributedSampler

from fvlm.config import DataConfig, write_atomic
from fvlm.data import loader as loader_module, shards as shards_module
from fvlm.data.build import build_shards
from fvlm.data.chat import FRAME, IGNORE
from fvlm.data.loader import Batches, train_batches
from fvlm.data.plan import Plan
from fvlm.data.sampling import VideoError, sample_times
from fvlm.data.index import ROW, write_index
from fvlm.data.shards import (FrameSpec, Shards, clips_of, cut_media, fingerprint, index_shard, to_jpeg,
    write_shard)
from fvlm.model.encoder import IMAGE_MEAN, IMAGE_STD
from fvlm.training.tracking import progress, run_info
from fvlm.world.backbones import FRAME_SIZE, tiny_tokenizer
from fvlm.world.scenes import World, make_scene, render

ROOT = Path(__file__).resolve().parents[1]
SIDE = 224  # pixels of a frame
SOURCES = 'images', 'videos', 'text'
TEMPLATE = 30  # tokens of a conversation that are not its words
STAGES = 'read', 'decode', 'normalise', 'tokenise', 'collate', 'rest'
# times the reference rate, on the mixture and on equal lengths; share of tokens that are not padding;
# seconds to open 100,000 shards; real videos per second of one core
AIMS = dict(loader=3.5, equal=2.5, useful=.9, open=3., real=15.)
PLANNED = dict(text_share=.14, token_budget=4096, frame_budget=128)
RANDOM = dict(text_share=.14, window=0, micro_batch=8)


# padding: samples, updates and draws; orders: samples of an index; opened: shards of an index;
# written: samples of an index, and how often; batches: read for their memory
FULL = dict(repeats=7, fresh=5, samples=256, equal=64, videos=120, copies=2, padding=(100_000, 150, 5),
    orders=(10**5, 10**6, 10**7), opened=(10**3, 10**4, 10**5), written=((10**6, 5), (10**7, 1)),
    batches=200, buffer=5000)
QUICK = dict(repeats=2, fresh=1, samples=16, equal=4, videos=4, copies=1, padding=(3000, 4, 2),
    orders=(10**4,), opened=(10, 100), written=((10**3, 1), (10**4, 1)), batches=3, buffer=40)


# -- measuring

def race(ways, repeats):
    "Call `ways` (name -> function) in turn: name -> a dict per turn with seconds, wall and what came back."
    for way in ways.values(): way()
    found = {name: [] for name in ways}
    for r in range(repeats):
        for name in list(ways)[::1-2*(r % 2)]:
            gc.collect()
            wall, start = time.perf_counter(), time.process_time()
            more = ways[name]() or {}
            found[name].append(dict(more, seconds=time.process_time()-start, wall=time.perf_counter()-wall))
    return found


def spread(values):
    "Least, median and largest of a few measurements, in four digits."
    v = np.array(list(values), float)
    digits = lambda x: float(f'{x:.4g}')
    return dict(min=digits(v.min()), median=digits(np.median(v)), max=digits(v.max()), n=len(v))


def spread_ratio(over, under):
    "The same of ratios, turn by turn."
    return spread(a/b for a, b in zip(over, under, strict=True))


def gains(runs, reference='plain', name='ratio'):
    "How many times faster `ours` is than the reference, by processor time and by the clock on the wall."
    return {n: spread_ratio(*([r[key] for r in runs[way]] for way in (reference, 'ours')))
        for n, key in ((name, 'seconds'), (f'{name}_wall', 'wall'))}


class Watch:
    "Seconds of processor time by stage: around a block, a function, or each step of an iterator."
    def __init__(self): self.seconds = Counter()

    @contextmanager
    def __call__(self, stage):
        start = time.process_time()
        try: yield
        finally: self.seconds[stage] += time.process_time()-start

    def wrap(self, stage, function):
        def timed(*args, **kwargs):
            with self(stage): return function(*args, **kwargs)
        return timed

    def each(self, stage, items):
        step = self.wrap(stage, partial(next, iter(items), None))
        while (item := step()) is not None: yield item


@contextmanager
def timed_loader(watch):
    "Time the functions that the real loader calls, while it runs; what lies between them is the rest."
    parts = dict(read_piece=(shards_module, 'read'), read_members=(shards_module, 'read'),
        _from_jpegs=(shards_module, 'decode'), encode_chat=(loader_module, 'tokenise'),
        collate=(loader_module, 'collate'))
    with ExitStack() as stack:
        for name, (module, stage) in parts.items():
            stack.enter_context(patch.object(module, name, watch.wrap(stage, getattr(module, name))))
        yield


@contextmanager
def memory_growth(found):
    "Put into `found` how many bytes a block takes at its peak and keeps (mapped files left out); Linux only."
    def memory(name): return 1024*int(re.search(rf'^{name}:\s+(\d+)', status.read_text(), re.M)[1])
    status = Path('/proc/self/status')
    gc.collect()
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts again
    now, anon = memory('VmRSS'), memory('RssAnon')
    yield
    found.update(peak=memory('VmHWM')-now, kept=memory('RssAnon')-anon)


@contextmanager
def anonymous_memory(found):
    "Put into `found` by how many bytes the memory that is no file has grown at most in a block; Linux only."
    def now(): return 1024*int(re.search(r'^RssAnon:\s+(\d+)', status.read_text(), re.M)[1])
    def watch():
        while not done.wait(.005): found['peak'] = max(found['peak'], now()-before)
    status, done = Path('/proc/self/status'), threading.Event()
    gc.collect()
    before, found['peak'] = now(), 0
    watcher = threading.Thread(target=watch)
    watcher.start()
    try: yield
    finally:
        done.set()
        watcher.join()


def in_fresh_process(name, **arguments):
    "Run a function of this file in a process of its own, on one core."
    words = [sys.executable, '-W', 'ignore', __file__, '--measure', name, json.dumps(arguments)]
    env = os.environ | dict(OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false')
    done = subprocess.run(words, stdout=subprocess.PIPE, env=env, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# -- data that looks like the real thing

def histogram(n, seed=0):
    """Lengths of a mixture like that of the stages: as many images as videos, 14 % text, long tails.

    Arrays `[n]`: kind (place in `SOURCES`), frames (stored), shown (steps), tokens (of text)."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, n, p=(.43, .43, .14))
    T = np.clip(np.round(rng.lognormal(np.log(3.5), .85, n)), 1, 64)
    frames, shown = np.choose(kind, (1, T, 0)).astype(int), np.choose(kind, (8, T, 0)).astype(int)
    words = rng.lognormal(np.log(np.where(kind < 2, 120, 300)), .6)
    tokens = np.minimum(words+TEMPLATE, 1024-shown).astype(int)
    return dict(kind=kind, frames=frames, shown=shown, tokens=tokens)


def readable_clips(folder):
    "Each mp4 below a folder that can be decoded, with at most 64 of its frames as JPEGs."
    found = {}
    for path in sorted(Path(folder).rglob('*.mp4')) if folder else []:
        try: found[path] = cut_media(dict(type='video', path=path), FrameSpec(SIDE, 64))
        except VideoError: pass
    if folder and not found: raise ValueError(f'{folder}: no readable mp4 in it; give a folder with clips')
    return found


def drawn_images(n):
    "Scenes of the built-in world as JPEGs, as large as real frames and with clutter."
    world = World(size=SIDE, glyphs=8, clutter=14, frames=1)
    frames = (make_scene('lookup', i, world).frames()[0] for i in range(n))
    return [to_jpeg(rearrange(torch.from_numpy(f), 'h w c -> c h w')) for f in frames]


def make_clips(rows, pool, tokenizer, seed=0):
    "Clips with the lengths of `rows` (from `histogram`); frames come from `pool`, words from captions."
    rng = np.random.default_rng(seed)
    captions = [q.answer for i in range(200) for q in make_scene('caption', i).questions]
    each = np.mean([len(ids) for ids in tokenizer(captions).input_ids])
    for i, (kind, T, tokens) in enumerate(zip(rows['kind'], rows['frames'], rows['tokens'])):
        words = rng.choice(captions, 2+int((tokens-TEMPLATE)/each))
        first, key = rng.integers(len(pool)), f'{i:06d}'
        frames = [pool[(first+t) % len(pool)] for t in range(T)]
        media = {'images': [dict(type='image', data=frames[0])] if frames else [],
            'videos': [dict(type='video', frames=frames)], 'text': []}[SOURCES[kind]]
        user = [dict(type='text', text=words[0]), *(dict(type=m['type']) for m in media)]
        messages = [dict(role='user', content=user), dict(role='assistant', content=' '.join(words[1:]))]
        yield dict(key=key, source=SOURCES[kind], split='train', media=media,
            chats=[dict(key=key, messages=messages)])


def make_shards(folder, clips, tokenizer, copies=1):
    "A folder with a shard of these clips and an index; to a reader a copy of the tar is another shard."
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f'{i:05d}.tar' for i in range(copies)]
    if failed := write_shard(folder/names[0], clips, FrameSpec(SIDE), tokenizer):
        raise ValueError(f"{failed[0]['key']}: {failed[0]['why']}")
    for name in names[1:]: shutil.copy(folder/names[0], folder/name)
    rows = index_shard(folder/names[0], tokenizer)
    write_index(folder, ((n, rows) for n in names), tokenizer=fingerprint(tokenizer))
    return folder


def make_index(folder, n, per_shard=1000):
    "The index of n samples whose shards do not exist."
    folder = Path(folder)
    folder.mkdir(parents=True)
    table = np.lib.format.open_memmap(folder/'index.npy', 'w+', ROW, (n,))
    for a in range(0, n, 10**6):
        part, i = table[a:a+10**6], np.arange(a, min(a+10**6, n))
        h = histogram(len(i), seed=a)
        columns = dict(shard=i//per_shard, offset=i % per_shard*60_000, length=60_000, frames=h['frames'],
            images=h['kind'] == 0, tokens=h['tokens'], source=h['kind'])
        for name, values in columns.items(): part[name] = values
    table.flush()
    shards = [f'{i:05d}.tar' for i in range(-(-n//per_shard))]
    about = dict(samples=n, shards=shards, sources=SOURCES, tasks=[''])
    write_atomic(folder/'index.json', json.dumps(about)+'\n')
    return folder


# -- the reference pipeline

_MEAN, _STD = (rearrange(torch.tensor(c), 'c -> c 1 1') for c in (IMAGE_MEAN, IMAGE_STD))


def plain_pixels(image_HWC):
    "ImageNet's normalisation on the CPU, float32 `[3,h,w]`, with as few copies as torchvision makes."
    x = rearrange(torch.from_numpy(image_HWC), 'h w c -> c h w').contiguous().float().div_(255)
    return x.sub_(_MEAN).div_(_STD)


def plain_ids(meta, tokenizer):
    "Token ids and labels of a stored clip, by the chat template of the tokenizer."
    text = lambda p: p['text'] if p['type'] == 'text' else FRAME*p.get('frames', 1)
    messages = meta['chats'][0]['messages']
    turns = [dict(role=m['role'], content=''.join(map(text, m['content']))) for m in messages]
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    prompt = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
    return ids, [IGNORE]*len(prompt)+ids[len(prompt):]


def pillow_pixels(data): return np.array(Image.open(io.BytesIO(data)).convert('RGB'))


def plain_sample(sample, tokenizer, watch, decode):
    "A sample of webdataset, decoded, normalised and tokenised."
    with watch('decode'):
        images = [decode(sample[k]) for k in sorted(k for k in sample if k.endswith('jpg'))]
    with watch('normalise'): frames = [plain_pixels(i) for i in images]
    with watch('tokenise'): ids, labels = plain_ids(json.loads(sample['json']), tokenizer)
    return dict(frames=frames, ids=ids, labels=labels)


def plain_collate(samples, pad_id, watch):
    "Everything padded to the longest: pixels `[B,T,3,h,w]`, mask `[B,T]`, ids and labels `[B,S]`."
    with watch('collate'):
        B, T = len(samples), max(len(s['frames']) for s in samples)
        pixels, mask = torch.zeros(B, T, 3, SIDE, SIDE), torch.zeros(B, T, dtype=torch.bool)
        for b, s in enumerate(samples):
            for t, frame in enumerate(s['frames']): pixels[b,t], mask[b,t] = frame, True
        rows = {k: pad_sequence([torch.tensor(s[k]) for s in samples], batch_first=True, padding_value=pad)
            for k, pad in (('ids', pad_id), ('labels', IGNORE))}
        return dict(pixels=pixels, mask=mask, **rows)


def plain_batches(folder, tokenizer, batch_size=8, buffer=0, watch=None, decode=pillow_pixels):
    "A webdataset pipeline; a buffer holds samples that are shuffled before they are decoded."
    watch, tars = watch or Watch(), sorted(map(str, Path(folder).glob('*.tar')))
    data = wds.WebDataset(tars, resampled=buffer > 0, shardshuffle=False).shuffle(buffer, initial=buffer)
    data = data.compose(partial(watch.each, 'read'))
    data = data.map(partial(plain_sample, tokenizer=tokenizer, watch=watch, decode=decode))
    collate = partial(plain_collate, pad_id=tokenizer.pad_token_id, watch=watch)
    return data.batched(batch_size, collation_fn=collate)


def plain_square(frame, spec):
    "The middle square of a decoded frame as a JPEG."
    image, out = Image.fromarray(frame.to_ndarray(format='rgb24', threads=1)), io.BytesIO()
    side = min(image.size)
    x, y = (image.width-side)//2, (image.height-side)//2
    square = image.crop((x, y, x+side, y+side)).resize((spec.size, spec.size), Image.Resampling.BICUBIC)
    square.save(out, 'JPEG', quality=spec.quality, subsampling=0 if spec.size < 128 else 2)
    return out.getvalue()


def plain_cut(path, spec):
    "Decode a whole video and keep the frame on the screen at each instant, as JPEGs."
    with av.open(str(path)) as box:
        stream = box.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = sample_times(float(stream.duration*stream.time_base), spec.n, spec.fps, spec.cap)
        out, shown = [], None
        for frame in box.decode(stream):
            zero = frame.time if shown is None else zero
            while len(out) < len(wanted) and shown and frame.time-zero > wanted[len(out)]+.001:
                out.append(plain_square(shown, spec))
            shown = frame
        return out+[plain_square(shown, spec) for _ in wanted[len(out):]]


def decode_only(path, spec):
    "Decode a video up to the last frame that is wanted, and do nothing with it: how many frames that are."
    with av.open(str(path)) as box:
        stream = box.streams.video[0]
        stream.codec_context.thread_count = 1
        last = sample_times(float(stream.duration*stream.time_base), spec.n, spec.fps, spec.cap)[-1]
        for n, frame in enumerate(box.decode(stream), 1):
            zero = frame.time if n == 1 else zero
            if frame.time-zero > last+.001: break
        return n


def plain_build(clips, path, spec):
    "Write clips of one video each as a tar; the number of frames."
    frames = 0
    with wds.TarWriter(str(path)) as tar:
        for c in clips:
            jpegs = plain_cut(c['media'][0]['path'], spec)
            meta = dict(key=c['key'], source=c['source'], frames=len(jpegs), chats=c['chats'])
            tar.write({'__key__': c['key'], 'json': json.dumps(meta).encode(),
                **{f'{t:03d}.jpg': j for t, j in enumerate(jpegs)}})
            frames += len(jpegs)
    return frames


# -- what is measured

def bench_loader(folder, tokenizer, repeats, batch_size=8):
    "From shards to batches, the cache off. Ours does not normalise: the first layer does it on the device."
    shards = Shards(folder, cache_bytes=0)
    batches, n = Batches(shards, tokenizer, DataConfig(frame_size=SIDE)), len(shards)
    frames = int(shards.column('frames').sum())

    def ours():
        with timed_loader(watch := Watch()):
            parts = [list(range(i, min(i+batch_size, n))) for i in range(0, n, batch_size)]
            pixels = [batches[p]['pixel_values_videos'] for p in parts]
        return dict(stages=watch.seconds, bytes=sum(p.nbytes for p in pixels if p is not None))

    def plain(decode):
        watch, sizes = Watch(), []
        for b in plain_batches(folder, tokenizer, batch_size, watch=watch, decode=decode):
            sizes.append((b['pixels'].nbytes, b['mask'].numel()))
        return dict(stages=watch.seconds, bytes=sum(s[0] for s in sizes), slots=sum(s[1] for s in sizes))

    references = dict(plain=pillow_pixels, simplejpeg=simplejpeg.decode_jpeg)
    runs = race(dict(ours=ours, **{k: partial(plain, d) for k, d in references.items()}), repeats)
    rates = {way: dict(by_stage(r, frames), pixel_bytes=r[0]['bytes']) for way, r in runs.items()}
    return dict(samples=n, frames=frames, slots=runs['plain'][0]['slots'],
        jpeg_bytes=round(shards.column('length').sum()/frames), **rates, **gains(runs),
        **gains(runs, 'simplejpeg', 'ratio_simplejpeg'))


def by_stage(runs, frames):
    "Frames per second of processor time, share of the core, and milliseconds per frame of each stage."
    stages = [{**r['stages'], 'rest': r['seconds']-sum(r['stages'].values())} for r in runs]
    return dict(frames_per_s=spread(frames/r['seconds'] for r in runs),
        core_share=spread(r['seconds']/r['wall'] for r in runs),
        ms_per_frame={s: spread(1000*p.get(s, 0.)/frames for p in stages) for s in STAGES})


def bench_build(clips, spec, tokenizer, repeats):
    "From videos to shards. Ours also checks, counts tokens, indexes, and writes all or nothing."
    with tempfile.TemporaryDirectory() as home:
        path = (Path(home)/f'{i}' for i in count())

        def ours():
            report = build_shards(clips, next(path), spec, tokenizer=tokenizer)
            return dict(frames=report['frames'], failed=report['failed'])

        def plain(): return dict(frames=plain_build(clips, next(path), spec), failed=0)
        def decode():
            return dict(frames=sum(decode_only(c['media'][0]['path'], spec) for c in clips), failed=0)
        runs = race(dict(ours=ours, plain=plain, decode=decode), repeats)
    rates = {way: dict(videos_per_s=spread(len(clips)/r['seconds'] for r in rs),
        frames_per_s=spread(r['frames']/r['seconds'] for r in rs), frames=rs[0]['frames'],
        failed=rs[0]['failed']) for way, rs in runs.items()}
    shares = gains(runs, 'decode', 'decode_share')
    return dict(videos=len(clips), side=spec.size, **rates, **gains(runs), **shares)


def scene_clips(n, folder):
    "Videos of the built-in world as clips."
    return [c for i in range(n) for c in clips_of(render(make_scene('lookup', i), folder), folder)]


def real_clips(paths, copies):
    "Real videos as clips, each with a question."
    chat = dict(key='0', question='What is it?', answer='A video.')
    return [dict(key=f'{p.stem}-{i}', source='real', split='train', chats=[chat],
        media=[dict(type='video', path=str(p))]) for i in range(copies) for p in paths]


def useful(plan, steps):
    "The share of the tokens in the first updates that are not padding."
    micro = [plan.lengths[m] for s in range(steps) for m in plan.micro(s)]
    return float(sum(l.sum() for l in micro)/sum(len(l)*l.max() for l in micro))


def bench_padding(n, steps, repeats, sizes=(32, 256)):
    "Useful share of tokens in random batches and as planned; arithmetic on several draws of the histogram."
    draws, shares, example = [histogram(n, seed) for seed in range(repeats)], {}, {}
    for name, B, settings in (('random', sizes[0], RANDOM), *((f'planned {B}', B, PLANNED) for B in sizes)):
        plans = [Plan(lengths=h['tokens']+h['shown'], frames=h['frames'], source=h['kind'], names=SOURCES,
            batch_size=B, seed=1, **settings) for h in draws]
        shares[name] = [useful(p, steps) for p in plans]
        if B == sizes[0]: example[name] = [np.sort(plans[0].lengths[m]).tolist() for m in plans[0].micro(3)]
    found = {k: dict(useful=spread(v), ratio=spread_ratio(v, shares['random'])) for k, v in shares.items()}
    return dict(samples=n, updates=steps, random=RANDOM, planned=PLANNED, found=found, example=example)


def order_run(folder, way, later, batch_size=32):
    "Ask for the first update of a run and for later ones."
    found, watch, at = {}, Watch(), []
    with memory_growth(found):
        if way == 'ours':
            with watch('open'): shards = Shards(folder)
            with watch('plan'):
                plan = Plan(lengths=shards.lengths(image_frames=8), frames=shards.column('frames'),
                    source=shards.column('source'), names=shards.names['sources'], **PLANNED)
            update = lambda step: np.concatenate(plan.micro(step))
        else:
            with watch('open'): n = json.loads((Path(folder)/'index.json').read_text())['samples']
            with watch('plan'): sampler = DistributedSampler(range(n), num_replicas=1, rank=0)

            def update(step):
                epoch, start = divmod(step*batch_size, n)
                sampler.set_epoch(epoch)
                return list(islice(sampler, start, start+batch_size))
        with watch('first'): first = update(0)
        for step in later:
            start = time.process_time()
            update(step)
            at.append(time.process_time()-start)
    return dict(found, **watch.seconds, later=at, samples=[int(i) for i in first])


def bench_plan(sizes, repeats, folder):
    "What the order of a run costs, for indexes of several sizes."
    out = []
    for n in sizes:
        home, runs = make_index(Path(folder)/f'{n}', n), dict(ours=[], plain=[])
        for r in range(repeats):
            later = np.random.default_rng(r).integers(1, 10*n//32, 5).tolist()
            for way in list(runs)[::1-2*(r % 2)]:
                runs[way].append(in_fresh_process('order_run', folder=str(home), way=way, later=later))
        all_of = lambda way, m: np.concatenate([np.atleast_1d(r[m]) for r in runs[way]])
        ways = {way: {m: spread(all_of(way, m)) for m in ('open', 'plan', 'first', 'later', 'peak', 'kept')}
            for way in runs}
        ratio = {m: spread_ratio(*([np.median(r[m]) for r in runs[way]] for way in ('plain', 'ours')))
            for m in ('first', 'later', 'peak')}
        out.append(dict(samples=n, index_bytes=(home/'index.npy').stat().st_size, **ways, ratio=ratio))
        shutil.rmtree(home)
    return out


def open_run(folders):
    "Open folders of shards, joined with commas."
    start = time.process_time()
    shards = Shards(folders)
    return dict(seconds=time.process_time()-start, samples=len(shards))


def bench_open(counts, repeats, folder, per_shard=10):
    "What it costs to open so many shards, in one folder and in two that are joined."
    found = []
    for n in counts:
        whole = make_index(Path(folder)/f'open{n}', n*per_shard, per_shard)
        halves = [make_index(Path(folder)/f'half{n}-{i}', n//2*per_shard, per_shard) for i in range(2)]
        ways = dict(one=str(whole), two=','.join(map(str, halves)))
        runs = [{k: in_fresh_process('open_run', folders=f)['seconds'] for k, f in ways.items()}
            for _ in range(repeats)]
        found.append(dict(shards=n, samples=n*per_shard, **{k: spread(r[k] for r in runs) for k in ways}))
    return found


def index_run(folder, n, per_shard=1000):
    "Write the index of n samples that come as a build gives them, a quarter of them twice in content."
    row = dict(source='s', task='', split='', offset=512, length=60_000, chat=0, frames=8, images=0,
        tokens=160)
    def rows(first): return [dict(row, key=f'sample {i}', group=f'video {i}',
        content=f'{(i if i % 4 else i//8)*2654435761+1:016x}') for i in range(first, min(first+per_shard, n))]
    found = {}
    with anonymous_memory(found):
        start = time.process_time()
        write_index(folder, ((f'{i:06d}.tar', rows(i)) for i in range(0, n, per_shard)))
        found['seconds'] = time.process_time()-start
    return found


def bench_index(sizes, folder):
    "Memory and time for writing an index, and by the line through both sizes for 10⁸ samples."
    found = []
    for n, repeats in sizes:
        home = Path(folder)/f'index{n}'
        home.mkdir()
        runs = [in_fresh_process('index_run', folder=str(home), n=n) for _ in range(repeats)]
        found.append(dict(samples=n, **{k: spread(r[k] for r in runs) for k in ('peak', 'seconds')}))
        shutil.rmtree(home)
    few, many = found
    def line(key):
        slope = (many[key]['median']-few[key]['median'])/(many['samples']-few['samples'])
        return dict(each=float(f'{slope:.4g}'), at=10**8,
            total=float(f'{few[key]["median"]+slope*(10**8-few["samples"]):.4g}'))
    return dict(sizes=found, line={k: line(k) for k in ('peak', 'seconds')})


def read_run(folder, way, batches, buffer):
    "Read batches of eight: ours without or with its cache of clips, or plain."
    torch.set_num_threads(1)
    found, tokenizer, frames, samples = {}, tiny_tokenizer(), 0, 0
    with memory_growth(found):
        if way == 'plain': stream = plain_batches(folder, tokenizer, buffer=buffer)
        else:
            shards = Shards(folder, **({} if way == 'cached' else dict(cache_bytes=0)))
            plan = Plan(shards.lengths(), shards.column('frames'), shards.column('source'),
                shards.names['sources'], batch_size=8)
            stream = train_batches(shards, plan, tokenizer, DataConfig(frame_size=SIDE), stop=batches)
        for b in islice(stream, batches):
            mask = b['mask'] if way == 'plain' else b['frame_index'] >= 0
            frames, samples = frames+int(mask.sum()), samples+len(mask)
    return dict(found, frames=frames, samples=samples)


def bench_memory(folder, batches, repeats, buffer):
    "How much memory reading takes; the reference fills its shuffle buffer first."
    runs = dict(ours=[], cached=[], plain=[])
    for r in range(repeats):
        for way in list(runs)[::1-2*(r % 2)]:
            arguments = dict(folder=str(folder), way=way, batches=batches, buffer=buffer)
            runs[way].append(in_fresh_process('read_run', **arguments))
    peaks = {way: [r['peak'] for r in v] for way, v in runs.items()}
    ways = {way: dict(v[-1], peak=spread(peaks[way]), kept=spread(r['kept'] for r in v))
        for way, v in runs.items()}
    ratio = {way: spread_ratio(peaks['plain'], peaks[way]) for way in ('ours', 'cached')}
    return dict(batches=batches, buffer=buffer, **ways, ratio=ratio)


# -- all of it

def sections(size, clips, home):
    "Name of a section of the file -> what measures it."
    tokenizer, pool = tiny_tokenizer(), sum(clips.values(), []) or drawn_images(64)
    mixed = histogram(size['samples'])
    equal = dict(kind=np.ones(size['equal'], int), frames=np.full(size['equal'], 8),
        tokens=mixed['tokens'][np.arange(size['equal']) % size['samples']])

    def shards(name, rows, copies=1):
        return make_shards(home/name, make_clips(rows, pool, tokenizer), tokenizer, copies)

    def build():
        sets = dict(scenes=(scene_clips(size['videos'], home/'videos'), FRAME_SIZE))
        if clips: sets['real'] = real_clips(clips, size['copies']), SIDE
        return {k: bench_build(clips, FrameSpec(side), tokenizer, size['repeats'])
            for k, (clips, side) in sets.items()}

    copies = -(-8*size['batches']//size['samples'])+1
    return dict(
        loader=lambda: {k: bench_loader(shards(k, rows), tokenizer, size['repeats'])
            for k, rows in dict(mixed=mixed, equal=equal).items()},
        build=build,
        padding=lambda: bench_padding(*size['padding']),
        plan=lambda: bench_plan(size['orders'], size['fresh'], home/'orders'),
        open=lambda: bench_open(size['opened'], size['fresh'], home),
        index=lambda: bench_index(size['written'], home),
        memory=lambda: bench_memory(shards('many', mixed, copies), size['batches'], size['fresh'],
            size['buffer']))


def run(out, clips=None, quick=False):
    "Measure all sections and write the file."
    size, start, load, found = QUICK if quick else FULL, time.time(), os.getloadavg(), {}
    torch.set_num_threads(1)
    real = readable_clips(clips)
    libraries = dict(pillow=PIL, simplejpeg=simplejpeg, webdataset=wds, av=av)
    info = dict(run_info(), threads=1, **{k: m.__version__ for k, m in libraries.items()})
    with tempfile.TemporaryDirectory() as home:
        parts = sections(size, real, Path(home))
        with progress(len(parts), 'data benchmark', 'section') as bar:
            for name, part in parts.items():
                found[name] = part()
                bar.update()
    info['load'] = dict(start=load, end=os.getloadavg())
    command = 'python benchmarks/data.py'+' --clips FOLDER'*bool(clips)+' --quick'*quick
    result = dict(info=info, command=command, quick=quick, size=size, aims=AIMS,
        clips=dict(used=[p.name for p in real]), seconds=round(time.time()-start), **found)
    write_atomic(out, json.dumps(result, indent=1, allow_nan=False)+'\n')
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--clips', type=Path, help='folder with real mp4 files too')
    parser.add_argument('--quick', action='store_true', help='a minute; the numbers mean nothing')
    parser.add_argument('--out', type=Path, help='default results/bench_data.json; with --quick in outputs/')
    parser.add_argument('--measure', nargs=2, metavar=('FUNCTION', 'JSON'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        function = {f.__name__: f for f in (order_run, read_run, open_run, index_run)}[args.measure[0]]
        return print(json.dumps(function(**json.loads(args.measure[1]))))
    out = args.out or ROOT/('outputs' if args.quick else 'results')/'bench_data.json'
    result = run(out, args.clips, args.quick)
    for name, r in result['loader'].items():
        rate, ratio = r['ours']['frames_per_s']['median'], r['ratio']['median']
        fast = r['ratio_simplejpeg']['median']
        print(f'{name}: {rate:.0f} frames/s on one core, {ratio:.2f} times the reference, '
            f'{fast:.2f} times the one with simplejpeg')
    print(f"{out}, {result['seconds']} s")


if __name__ == '__main__': main()
