"""Bad data is refused when shards are built, or becomes a counted placeholder; the check finds it."""
import gzip, io, json, os, pickle, resource, struct, tarfile, tempfile, zlib
from pathlib import Path
import av, numpy as np, pytest, torch
from PIL import Image
from fvlm.config import DataConfig
from fvlm.data.chat import IGNORE
from fvlm.data.check import check_shards
from fvlm.data.loader import Batches, SampleCounter, DataError
from fvlm.data.index import write_index
from fvlm.data.shards import FrameSpec, Shards, index_shard, write_shard
from fvlm.world.backbones import tiny_tokenizer

TOKENIZER, OUTSIDE = tiny_tokenizer(), Path(tempfile.gettempdir())
USER = dict(role='user', content=[dict(type='image'), dict(type='text', text='what?')])
ANSWER = dict(role='assistant', content='a dog')
GOOD = dict(key='good', source='s', frames=1, media=[dict(type='image', frames=1)], split='train',
            chats=[dict(key='good', messages=[USER, ANSWER])])


def picture(size=(40, 40), mode='RGB', format='JPEG', **options):
    out = io.BytesIO()
    Image.new(mode, size).save(out, format, **options)
    return out.getvalue()

def png_header(width, height):
    "A PNG of some hundred bytes that claims to be enormous."
    chunk = lambda kind, data: struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n'+header+chunk(b'IDAT', zlib.compress(b'\0'*1000))+chunk(b'IEND', b'')

def jpeg_header(width, height):
    data = bytearray(picture())
    at = data.index(b'\xff\xc0')
    data[at+5:at+9] = struct.pack('>HH', height, width)
    return bytes(data)

def bmp_header(width, height):
    data = bytearray(picture(format='BMP'))
    data[18:26] = struct.pack('<ii', width, height)
    return bytes(data)

def changed(**fields):
    return json.dumps({**GOOD, 'key': 'bad', 'chats': [dict(GOOD['chats'][0], key='bad')], **fields}).encode()

def talk(*messages): return changed(chats=[dict(key='bad', messages=list(messages))])

class Canary:
    def __reduce__(self): return os.mkdir, (str(OUTSIDE/'fvlm-out-canary'),)

FRAME = {'000.jpg': picture()}


def tar(path, *samples):
    "A raw tar; a sample is (key, {ending: bytes or TarInfo})."
    with tarfile.open(path, 'w') as t:
        for key, files in samples:
            for ending, data in files.items():
                m = tarfile.TarInfo(f'{key}.{ending}')
                if isinstance(data, dict):
                    for k, v in data.items(): setattr(m, k, v)
                    t.addfile(m)
                else:
                    m.size = len(data)
                    t.addfile(m, io.BytesIO(data))

def folder(home, *samples, damage=None):
    "A shard folder: one good sample, the given ones, and what happened to the file after it was indexed."
    path, bad = home/'00000.tar', []
    tar(path, ('good', dict(FRAME, json=json.dumps(GOOD).encode())), *samples)
    rows = index_shard(path, TOKENIZER, bad)
    write_index(home, [(path.name, rows)])
    if damage: damage(path, rows)
    return bad

def read(home):
    "All samples as one batch, and the count of it."
    shards = Shards(home, '')
    batch = Batches(shards, TOKENIZER, DataConfig(max_tokens=64))[list(range(len(shards)))]
    counter = SampleCounter(shards.names['sources'])
    counter.add(batch)
    return batch, counter


def zero(path, rows):
    data = bytearray(path.read_bytes())
    r = rows[1]
    data[r['offset']:r['offset']+r['length']] = bytes(r['length'])
    path.write_bytes(data)
def cut(path, rows): path.write_bytes(path.read_bytes()[:rows[1]['offset']+700])
def swap(old, new):
    def damage(path, rows):
        data = path.read_bytes()
        assert data.count(old)==1 and len(old)==len(new)
        path.write_bytes(data.replace(old, new))
    return damage

LONG = [dict(role='user', content='why '*100), ANSWER]

def image(data): return dict(json=changed(), **{'000.jpg': data})
def video_turn(frames): return dict(role='user', content=[dict(type='video', frames=frames)])
def with_json(**fields): return dict(FRAME, json=changed(**fields))
def with_talk(*messages): return dict(FRAME, json=talk(*messages))
def text_only(*messages):
    return dict(json=changed(frames=0, media=[], chats=[dict(key='bad', messages=list(messages))]))

TWO_SIZES = changed(frames=2, media=[dict(type='video', frames=2)],
                    chats=[dict(key='bad', messages=[video_turn(2), ANSWER])])
FLAT = b'{"key": "bad", "user": "what?", "assistant": "a dog", "source": "s", "frame_count": 5}'
# What the index lets through, because it does not decode pictures: a placeholder when it is read.
PLACEHOLDERS = {
    'not a jpeg': (image(b'no picture'), 'UnidentifiedImageError'),
    'jpeg cut short': (image(picture((400, 400))[:900]), 'ValueError'),
    'empty jpeg': (image(b''), 'UnidentifiedImageError'),
    'png of 64k by 64k': (image(png_header(65000, 65000)), 'ShardError'),
    'jpeg of 64k by 64k': (image(jpeg_header(64000, 64000)), 'ShardError'),
    'png of 20k by 20k': (image(png_header(20000, 20000)), 'ShardError'),
    'gif': (image(picture(format='GIF', mode='P')), 'UnidentifiedImageError'),
    'tiff': (image(picture(format='TIFF')), 'UnidentifiedImageError'),
    'bmp': (image(picture(format='BMP')), 'UnidentifiedImageError'),
    'png damaged inside': (image(picture((400, 400), format='PNG', compress_level=0)[:9000]), 'OSError'),
    'frames of two sizes': ({'000.jpg': picture(), '001.jpg': picture((48, 40)), 'json': TWO_SIZES},
                            'ShardError'),
}
# What can be seen without decoding: refused by the index, with the others kept.
REFUSED = {
    'bad json': (dict(FRAME, json=b'{"key": "bad"'), 'JSONDecodeError'),
    'json is a list': (dict(FRAME, json=b'[1, 2]'), 'AttributeError'),
    'json is not text': (dict(FRAME, json=b'\xff\xfe\x00'), 'UnicodeDecodeError'),
    'json missing': (FRAME, 'no JSON'),
    'json of endless depth': (dict(FRAME, json=b'['*200_000), 'RecursionError'),
    'pickle called json': (dict(FRAME, json=pickle.dumps(Canary())), ''),
    'no chats and no answer': (dict(FRAME, json=b'{"key": "bad", "source": "s"}'), 'assistant'),
    'unknown role': (with_talk(dict(USER, role='judge'), ANSWER), "unknown role 'judge'"),
    'empty answer': (with_talk(USER, dict(ANSWER, content='')), 'is empty'),
    'no user turn': (text_only(ANSWER), 'the prompt is empty'),
    'no answer': (with_talk(USER), 'the last turn is not an answer'),
    'content is NaN': (with_talk(USER, dict(ANSWER, content=float('nan'))), ''),
    'frames is NaN': (with_json(media=[dict(type='video', frames=float('nan'))]), 'announced'),
    'zero frames stored': (dict(json=changed()), '0 frames stored, 1 announced'),
    'more frames than announced': (with_json() | {'001.jpg': picture()}, '2 frames stored, 1 announced'),
    'a video of no frame in the chat': (with_talk(video_turn(0), ANSWER), '0 announced'),
    'the chat announces more frames': (with_talk(video_turn(9), ANSWER), '9 announced'),
    'a flat sample without its frames': (dict(json=FLAT), '5 announced'),
    'source is a list': (with_json(source=['s']), 'not a name'),
    'unknown split': (with_json(split='secret'), 'split'),
}
# Members that no shard should have: the shard is refused from there on.
MEMBERS = {
    'symbolic link': dict(type=tarfile.SYMTYPE, linkname='/etc/passwd'),
    'hard link': dict(type=tarfile.LNKTYPE, linkname='good.json'),
    'character device': dict(type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    'pipe': dict(type=tarfile.FIFOTYPE),
    'path that leads out': dict(name=f'../../../{OUTSIDE}/fvlm-out.json'),
    'absolute path': dict(name=f'{OUTSIDE}/fvlm-out.json'),
    'directory': dict(type=tarfile.DIRTYPE), 'a petabyte': dict(size=10**15),
    'json of 9 MB': dict(name='bad.json', size=9_000_000),
}


@pytest.fixture(autouse=True)
def nothing_else_happens(tmp_path):
    "No file outside the folder of the test, no code of the data executed, memory bounded."
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert not [p for root in {OUTSIDE, tmp_path.parent} for p in root.glob('fvlm-out*')]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-peak
    assert grown < 400_000, f'{grown/1000:.0f} MB for one bad sample'


@pytest.mark.parametrize('name', PLACEHOLDERS)
def test_placeholder(tmp_path, name):
    files, reason = PLACEHOLDERS[name]
    assert folder(tmp_path, ('bad', files)) == []
    batch, counter = read(tmp_path)
    assert (batch['labels'][1] != IGNORE).sum() == 0 and (batch['labels'][0] != IGNORE).sum() > 0
    assert counter.counts[0].tolist()[::4] == [2, 1]
    assert reason == batch['meta'][1]['bad'], batch['meta'][1]
    with pytest.raises(DataError, match='1 of 2 samples cannot be used'): counter.check(.1, at_least=1)


def test_too_long_is_not_bad(tmp_path):
    "Left out and counted under its own name; no number of them stops a run."
    assert folder(tmp_path, ('bad', text_only(*LONG))) == []
    batch, counter = read(tmp_path)
    assert (batch['labels'][1] != IGNORE).sum() == 0 and (batch['labels'][0] != IGNORE).sum() > 0
    assert counter.counts[0].tolist()[::4] == [2, 0] and counter.counts[0][5] == 1
    assert batch['meta'][1]['too_long'] == 'left'
    counter.check(0, at_least=1)
    assert check_shards(tmp_path, TOKENIZER, max_tokens=64).reasons['long prompt'] == 1


@pytest.mark.parametrize('name', REFUSED)
def test_refused(tmp_path, name):
    files, reason = REFUSED[name]
    bad = folder(tmp_path, ('bad', files))
    assert [b['key'] for b in bad] == ['bad']
    assert reason in bad[0]['why'] and '\n' not in bad[0]['why'].strip()
    batch, counter = read(tmp_path)
    assert counter.counts[0].tolist()[::4] == [1, 0]


@pytest.mark.parametrize('name', MEMBERS)
def test_members(tmp_path, name):
    bad = folder(tmp_path, ('bad', {'json': MEMBERS[name]}))
    assert len(bad) == 1 and bad[0]['key'] == '00000.tar'
    assert read(tmp_path)[1].counts[0].tolist()[::4] == [1, 0]


@pytest.mark.parametrize('name', PLACEHOLDERS | REFUSED | MEMBERS)
def test_the_check_finds_it(tmp_path, name):
    "`fvlm data check` fails for each of these, and not for the good sample alone."
    files = {'json': MEMBERS[name]} if name in MEMBERS else (PLACEHOLDERS | REFUSED)[name][0]
    folder(tmp_path, ('bad', files))
    report = check_shards(tmp_path, TOKENIZER, max_tokens=64)
    assert not report.ok and not any(f['key'] == 'good' for f in report.findings)


def test_the_check_passes_what_is_good(tmp_path):
    folder(tmp_path)
    report = check_shards(tmp_path, TOKENIZER)
    assert report.ok and report.decoded == 1


def test_the_check_in_two_processes(tmp_path):
    "The same report as in one, and progress for each shard."
    for i in range(3):
        sample = dict(FRAME, json=changed(key=f'k{i}') if i else b'[]')
        tar(tmp_path/f'{i}.tar', (f'k{i}', sample))
    write_index(tmp_path, [(f'{i}.tar', index_shard(tmp_path/f'{i}.tar', TOKENIZER)) for i in (1, 2)])
    done = []
    one = check_shards(tmp_path, TOKENIZER)
    two = check_shards(tmp_path, TOKENIZER, workers=2, track=done.append)
    assert one == two and done == [1, 1, 1]
    assert one.reasons == {'bad JSON': 1, 'not in the index': 1, 'same content': 1}


DAMAGES = dict(zeroed=zero, cut=cut, gone=lambda path, rows: path.unlink(),
               json=swap(b'"key": "bad", "source"', b'"key": "bad"; "source"'),
               name=swap(b'bad.json', b'bad/../x'))

@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_damaged_after_it_was_indexed(tmp_path, damage):
    assert folder(tmp_path, ('bad', dict(FRAME, json=changed())), damage=damage) == []
    batch, counter = read(tmp_path)
    assert 'bad' in batch['meta'][1] and counter.counts[0][4] >= 1


@pytest.mark.parametrize('frames', (1, 3))
def test_a_chat_that_shows_other_frames(tmp_path, frames):
    "Changed behind the index; a placeholder, not the end of a run."
    part = b'"content": [{"type": "video", "frames": %d}'
    damage = swap(part % 2, part % frames)
    two = {'000.jpg': picture(), '001.jpg': picture(), 'json': TWO_SIZES}
    assert folder(tmp_path, ('bad', two), damage=damage) == []
    batch, counter = read(tmp_path)
    assert counter.counts[0][4] == 1 and f'{frames} frames in the chat, 2 stored' in batch['meta'][1]['why']


def test_frames_of_another_size(tmp_path):
    "They cannot be in one batch with the others."
    folder(tmp_path, ('bad', image(picture((48, 48)))))
    batch, counter = read(tmp_path)
    assert counter.counts[0][4] == 1 and 'build all shards with one --size' in batch['meta'][1]['why']


MODES = dict(L='JPEG', CMYK='JPEG', RGBA='PNG', P='PNG', LA='PNG') | {'1': 'PNG'}

@pytest.mark.parametrize('mode', MODES)
def test_odd_but_fine(tmp_path, mode):
    folder(tmp_path, ('bad', image(picture(mode=mode, format=MODES[mode]))))
    batch, counter = read(tmp_path)
    assert counter.counts[0][4] == 0 and batch['pixel_values_videos'].shape == (2, 3, 40, 40)


def test_seventy_frames_and_foreign_members(tmp_path):
    "More than 64 frames are no error in a shard; a pickle beside them is never opened."
    meta = changed(frames=70, media=[dict(type='video', frames=70)],
                   chats=[dict(key='bad', messages=[video_turn(70), ANSWER])])
    files = {f'{t:03d}.jpg': picture() for t in range(70)} | dict(pkl=pickle.dumps(Canary()), json=meta)
    assert folder(tmp_path, ('bad', files)) == []
    shards = Shards(tmp_path, '')
    data = DataConfig(max_tokens=128, max_frames=70)
    assert len(Batches(shards, TOKENIZER, data)[[1]]['pixel_values_videos']) == 70


def test_gzip_bomb_is_no_shard(tmp_path):
    path = tmp_path/'00000.tar'
    with gzip.open(path, 'wb') as f:
        for _ in range(64): f.write(bytes(1 << 20))
    bad = []
    assert index_shard(path, TOKENIZER, bad) == [] and len(bad) == 1


def video(path, frames=3, size=(64, 48), codec='libx264', rate=1):
    with av.open(str(path), 'w') as box:
        s = box.add_stream(codec, rate=rate)
        s.width, s.height, s.pix_fmt = *size, 'yuv420p'
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        black = av.VideoFrame.from_ndarray(pixels, format='rgb24').reformat(format='yuv420p')
        for t in range(frames):
            black.pts = t
            box.mux(s.encode(black))
        box.mux(s.encode(None))

def sound(path):
    with av.open(str(path), 'w') as box:
        s = box.add_stream('aac', rate=8000)
        f = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
        f.rate = 8000
        box.mux(s.encode(f))
        box.mux(s.encode(None))

def half(path):
    video(path, 60, rate=10)
    path.write_bytes(path.read_bytes()[:1500])

def animation(format):
    out, first = io.BytesIO(), Image.new('RGB', (40, 40))
    first.save(out, format, save_all=True, append_images=[Image.new('RGB', (40, 40), 'red')], duration=1000)
    return out.getvalue()

SECRET = 'file:///etc/hostname'
PLAYLIST = f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{SECRET}\n#EXT-X-ENDLIST\n'
VIDEOS = {
    'missing': lambda p: None,
    'empty': lambda p: p.write_bytes(b''),
    'text called mp4': lambda p: p.write_text('hello '*100),
    'playlist called mp4': lambda p: p.write_text(PLAYLIST),
    'concat script called mp4': lambda p: p.write_text(f"ffconcat version 1.0\nfile '{SECRET}'\n"),
    'cut short': half,
    'sound only': sound,
    'image of 64k by 64k': lambda p: p.write_bytes(png_header(65000, 65000)),
    'image of 20k by 20k': lambda p: p.write_bytes(png_header(20000, 20000)),
    'directory': lambda p: p.mkdir(),
    'tiff cut short': lambda p: p.write_bytes(picture((400, 400), format='TIFF')[:9000]),
    'tiff of fractions': lambda p: p.write_bytes(picture(mode='F', format='TIFF')),
    'bmp of 60k by 60k': lambda p: p.write_bytes(bmp_header(60000, 60000)),
    'animated webp': lambda p: p.write_bytes(animation('WEBP')),
    'animated png': lambda p: p.write_bytes(animation('PNG')),
    'gif cut short': lambda p: p.write_bytes(picture((400, 400), 'P', 'GIF')[:100]),
}

def video_clip(key, path):
    return dict(key=key, source='s', media=[dict(type='video', path=str(path))],
                chats=[dict(key=key, question='what?', answer='a dog')])


@pytest.mark.parametrize('name', VIDEOS)
def test_videos_that_cannot_be_cut(tmp_path, name):
    path, fine = tmp_path/'bad.mp4', tmp_path/'fine.mp4'
    VIDEOS[name](path)
    video(fine)
    clips = [video_clip('fine', fine), video_clip('bad', path)]
    (failed,) = write_shard(tmp_path/'00000.tar', clips, FrameSpec(40))
    assert failed['key'] == 'bad' and str(path) in failed['why'] and '\n' not in failed['why']
    assert [r['key'] for r in index_shard(tmp_path/'00000.tar')] == ['fine']


@pytest.mark.parametrize('format', ('WEBP', 'PNG'))
def test_an_animation_as_an_image(tmp_path, format):
    "Its first frame; only as a video it is refused."
    path = tmp_path/'a.png'
    path.write_bytes(animation(format))
    clip = video_clip('a', path)
    (failed,) = write_shard(tmp_path/'video.tar', [clip], FrameSpec(40))
    assert failed['why'] == f'{path}: an animated {format}; convert it to mp4 or GIF'
    clip['media'][0]['type'] = 'image'
    assert write_shard(tmp_path/'image.tar', [clip], FrameSpec(40)) == []
    assert index_shard(tmp_path/'image.tar')[0]['frames'] == 1


ADDRESSES = 'pipe:cat /etc/hostname', 'http://localhost:1/x.mp4', 'concat:a.mp4|b.mp4', 'file:/etc/hostname'

@pytest.mark.parametrize('address', ADDRESSES)
def test_addresses_are_not_followed(tmp_path, address):
    assert len(write_shard(tmp_path/'00000.tar', [video_clip('bad', address)], FrameSpec(40))) == 1


def test_an_hour_of_black(tmp_path):
    "Sixty-four frames of it, and memory for no more."
    video(tmp_path/'hour.mp4', 3600)
    clip = video_clip('hour', tmp_path/'hour.mp4')
    assert write_shard(tmp_path/'00000.tar', [clip], FrameSpec(40)) == []
    assert index_shard(tmp_path/'00000.tar')[0]['frames'] == 64
