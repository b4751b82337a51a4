"""Bad data: each case is refused when shards are built or indexed, or becomes a counted placeholder when they are read; nothing else changes."""
import io, json, os, pickle, resource, struct, tarfile, tempfile, zlib
from pathlib import Path
import av, numpy as np, pytest, torch
from PIL import Image
from fvlm.world.backbones import tiny_tokenizer
from fvlm.data.chat import IGNORE
from fvlm.config import DataConfig
from fvlm.data.loader import Batches, SampleCounter, DataError
from fvlm.data.shards import FrameSpec, Shards, index_shard, write_index, write_shard

TOKENIZER, OUTSIDE = tiny_tokenizer(), Path(tempfile.gettempdir())
GOOD = dict(key='good', source='s', frames=1, media=[dict(type='image', frames=1)], split='train',
            chats=[dict(key='good',
            messages=[dict(role='user', content=[dict(type='image'), dict(type='text', text='what?')]),
            dict(role='assistant', content='a dog')])])


def picture(size=(40, 40), mode='RGB', format='JPEG', **how):
    out = io.BytesIO()
    Image.new(mode, size).save(out, format, **how)
    return out.getvalue()

def png_header(width, height):
    "A PNG of some hundred bytes that claims to be enormous."
    chunk = lambda kind, data: struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0))+chunk(
        b'IDAT', zlib.compress(b'\0'*1000))+chunk(b'IEND', b'')

def jpeg_header(width, height):
    data = bytearray(picture())
    at = data.index(b'\xff\xc0')
    data[at+5:at+9] = struct.pack('>HH', height, width)
    return bytes(data)

def changed(**fields):
    return json.dumps({**GOOD, 'key': 'bad', 'chats': [dict(GOOD['chats'][0], key='bad')], **fields}).encode()

def talk(*messages): return changed(chats=[dict(key='bad', messages=list(messages))])

class Canary:
    def __reduce__(self): return os.mkdir, (str(OUTSIDE/'fvlm-out-canary'),)

USER, ANSWER = GOOD['chats'][0]['messages']
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
    "All samples as one batch, with the census of it."
    shards = Shards(home, '')
    batch, census = Batches(shards, TOKENIZER, DataConfig(max_tokens=64))[
        list(range(len(shards)))], SampleCounter(shards.names['sources'])
    census.add(batch)
    return batch, census


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
# What the index lets through, for a picture is not decoded there: a placeholder when it is read.
PLACEHOLDERS = {
    'not a jpeg': (dict(json=changed(), **{'000.jpg': b'no picture'}), 'UnidentifiedImageError'),
    'jpeg cut short': (dict(json=changed(), **{'000.jpg': picture((400, 400))[:900]}), 'OSError'),
    'empty jpeg': (dict(json=changed(), **{'000.jpg': b''}), 'UnidentifiedImageError'),
    'png of 64k by 64k': (dict(json=changed(), **{'000.jpg': png_header(65000, 65000)}), 'ShardError'),
    'jpeg of 64k by 64k': (dict(json=changed(), **{'000.jpg': jpeg_header(64000, 64000)}), 'ShardError'),
    'png of 20k by 20k': (dict(json=changed(), **{'000.jpg': png_header(20000, 20000)}), 'ShardError'),
    'gif': (dict(json=changed(), **{'000.jpg': picture(format='GIF', mode='P')}), 'UnidentifiedImageError'),
    'tiff': (dict(json=changed(), **{'000.jpg': picture(format='TIFF')}), 'UnidentifiedImageError'),
    'bmp': (dict(json=changed(), **{'000.jpg': picture(format='BMP')}), 'UnidentifiedImageError'),
    'png damaged inside': (dict(json=changed(), **{'000.jpg': picture((400, 400), format='PNG',
    compress_level=0)[:9000]}), 'OSError'),
    'frames of two sizes': (dict(json=changed(frames=2, media=[dict(type='video', frames=2)],
    chats=[dict(key='bad', messages=[dict(role='user', content=[dict(type='video', frames=2)]), ANSWER])]),
    **{'000.jpg': picture(), '001.jpg': picture((48, 40))}), 'RuntimeError'),
    'prompt longer than the limit': (dict(json=changed(chats=[dict(key='bad', messages=LONG)], media=[],
    frames=0)), 'ChatError'),
}
# What can be seen without decoding: refused by the index, with the others kept.
REFUSED = {
    'bad json': (dict(FRAME, json=b'{"key": "bad"'), 'JSONDecodeError'),
    'json is a list': (dict(FRAME, json=b'[1, 2]'), 'AttributeError'),
    'json is not text': (dict(FRAME, json=b'\xff\xfe\x00'), 'UnicodeDecodeError'), 'json missing': (FRAME,
    'no JSON'),
    'json of endless depth': (dict(FRAME, json=b'['*200_000), 'RecursionError'),
    'pickle called json': (dict(FRAME, json=pickle.dumps(Canary())), ''),
    'no chats and no answer': (dict(FRAME, json=b'{"key": "bad", "source": "s"}'), 'assistant'),
    'unknown role': (dict(FRAME, json=talk(dict(USER, role='judge'), ANSWER)), "unknown role 'judge'"),
    'empty answer': (dict(FRAME, json=talk(USER, dict(ANSWER, content=''))), 'is empty'),
    'no user turn': (dict(json=changed(media=[], chats=[dict(key='bad', messages=[ANSWER])])),
    'the prompt is empty'),
    'no answer': (dict(FRAME, json=talk(USER)), 'the last turn is no answer'),
    'content is NaN': (dict(FRAME, json=talk(USER, dict(ANSWER, content=float('nan')))), ''),
    'frames is NaN': (dict(FRAME, json=changed(media=[dict(type='video', frames=float('nan'))])),
    'announced'),
    'zero frames stored': (dict(json=changed()), '0 frames stored, 1 announced'),
    'more frames than announced': (dict(FRAME, json=changed(), **{'001.jpg': picture()}),
    '2 frames stored, 1 announced'),
    'a video of no frame in the chat': (
    dict(FRAME, json=talk(dict(role='user', content=[dict(type='video', frames=0)]), ANSWER)), '0 announced'),
    'the chat speaks of more frames': (
    dict(FRAME, json=talk(dict(role='user', content=[dict(type='video', frames=9)]), ANSWER)), '9 announced'),
    'a flat sample without its frames': (
    dict(json=b'{"key": "bad", "user": "what?", "assistant": "a dog", "source": "s", "frame_count": 5}'),
    '5 announced'),
    'source is a list': (dict(FRAME, json=changed(source=['s'])), 'not a name'),
    'unknown split': (dict(FRAME, json=changed(split='secret')), 'split'),
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
    assert resource.getrusage(
        resource.RUSAGE_SELF).ru_maxrss-peak < 400_000, 'more than 400 MB for one bad sample'


@pytest.mark.parametrize('name', PLACEHOLDERS)
def test_placeholder(tmp_path, name):
    files, reason = PLACEHOLDERS[name]
    assert folder(tmp_path, ('bad', files)) == []
    batch, census = read(tmp_path)
    assert (batch['labels'][1] != IGNORE).sum() == 0 and (batch['labels'][0] != IGNORE).sum() > 0
    assert census.counts[0].tolist()[::4] == [2, 1]
    assert reason == batch['meta'][1]['bad'], batch['meta'][1]
    with pytest.raises(DataError, match='1 of 2 samples cannot be used'): census.check(.1, at_least=1)


@pytest.mark.parametrize('name', REFUSED)
def test_refused(tmp_path, name):
    files, reason = REFUSED[name]
    bad = folder(tmp_path, ('bad', files))
    assert [b['key'] for b in bad] == ['bad'] and reason in bad[0]['why'] and '\n' not in bad[0]['why'].strip(
        )
    batch, census = read(tmp_path)
    assert census.counts[0].tolist()[::4] == [1, 0]


@pytest.mark.parametrize('name', MEMBERS)
def test_members(tmp_path, name):
    bad = folder(tmp_path, ('bad', {'json': MEMBERS[name]}))
    assert len(bad) == 1 and bad[0]['key'] == '00000.tar'
    assert read(tmp_path)[1].counts[0].tolist()[::4] == [1, 0]


@pytest.mark.parametrize('damage', [zero, cut, lambda path, rows: path.unlink(),
    swap(b'"key": "bad", "source"', b'"key": "bad"; "source"'), swap(b'bad.json', b'bad/../x')],
    ids=['zeroed', 'cut short', 'gone', 'json broken', 'name changed'])
def test_damaged_after_it_was_indexed(tmp_path, damage):
    assert folder(tmp_path, ('bad', dict(FRAME, json=changed())), damage=damage) == []
    batch, census = read(tmp_path)
    assert 'bad' in batch['meta'][1] and census.counts[0][4] >= 1


def test_frames_of_another_size(tmp_path):
    "They cannot stand in one batch with the others."
    folder(tmp_path, ('bad', {'000.jpg': picture((48, 48)), 'json': changed()}))
    batch, census = read(tmp_path)
    assert census.counts[0][4] == 1 and 'build all shards with one --size' in batch['meta'][1]['why']


@pytest.mark.parametrize('picture_', [picture(mode='L'), picture(mode='CMYK'),
    picture(mode='RGBA', format='PNG'), picture(mode='P', format='PNG'), picture(mode='1', format='PNG'),
    picture(mode='LA', format='PNG')], ids=['grey', 'CMYK', 'RGBA', 'palette', 'one bit', 'grey with alpha'])
def test_odd_but_fine(tmp_path, picture_):
    folder(tmp_path, ('bad', {'000.jpg': picture_, 'json': changed()}))
    batch, census = read(tmp_path)
    assert census.counts[0][4] == 0 and batch['pixel_values_videos'].shape == (2, 3, 40, 40)


def test_seventy_frames_and_foreign_members(tmp_path):
    "More than 64 frames are no error in a shard; a pickle beside them is never opened."
    chat = [dict(key='bad', messages=[dict(role='user', content=[dict(type='video', frames=70)]), ANSWER])]
    files = {f'{t:03d}.jpg': picture() for t in range(70)} | dict(pkl=pickle.dumps(Canary()),
        json=changed(frames=70, media=[dict(type='video', frames=70)], chats=chat))
    assert folder(tmp_path, ('bad', files)) == []
    shards = Shards(tmp_path, '')
    assert len(Batches(shards, TOKENIZER, DataConfig(max_tokens=128))[[1]]['pixel_values_videos']) == 70


def test_gzip_bomb_is_no_shard(tmp_path):
    import gzip
    path = tmp_path/'00000.tar'
    with gzip.open(path, 'wb') as f:
        for _ in range(64): f.write(bytes(1 << 20))
    bad = []
    assert index_shard(path, TOKENIZER, bad) == [] and len(bad) == 1


def video(path, frames=3, size=(64, 48), codec='libx264', rate=1):
    with av.open(str(path), 'w') as box:
        s = box.add_stream(codec, rate=rate)
        s.width, s.height, s.pix_fmt = *size, 'yuv420p'
        black = av.VideoFrame.from_ndarray(np.zeros((size[1], size[0], 3), np.uint8),
            format='rgb24').reformat(format='yuv420p')
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

SECRET = 'file:///etc/hostname'
FILMS = {
    'missing': lambda p: None, 'empty': lambda p: p.write_bytes(b''),
    'text called mp4': lambda p: p.write_text('hello '*100),
    'playlist called mp4': lambda p: p.write_text(
    f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{SECRET}\n#EXT-X-ENDLIST\n'),
    'concat script called mp4': lambda p: p.write_text(f"ffconcat version 1.0\nfile '{SECRET}'\n"),
    'cut short': half, 'sound alone': sound, 'image of 64k by 64k': lambda p: p.write_bytes(png_header(65000,
    65000)),
    'image of 20k by 20k': lambda p: p.write_bytes(png_header(20000, 20000)),
    'directory': lambda p: p.mkdir(),
}

@pytest.mark.parametrize('name', FILMS)
def test_films_that_cannot_be_cut(tmp_path, name):
    path = tmp_path/'film.mp4'
    FILMS[name](path)
    show = lambda key, film: dict(key=key, source='s', media=[dict(type='video', path=str(film))],
        chats=[dict(key=key, question='what?', answer='a dog')])
    video(tmp_path/'fine.mp4')
    failed = write_shard(tmp_path/'00000.tar', [show('fine', tmp_path/'fine.mp4'), show('bad', path)],
        FrameSpec(40))
    assert [f['key'] for f in failed] == ['bad'] and str(path) in failed[0]['why'] and '\n' not in failed[0][
        'why']
    assert [r['key'] for r in index_shard(tmp_path/'00000.tar')] == ['fine']


@pytest.mark.parametrize('address', ['pipe:cat /etc/hostname', 'http://localhost:1/x.mp4',
    'concat:a.mp4|b.mp4', 'file:/etc/hostname'])
def test_addresses_are_not_followed(tmp_path, address):
    clip = dict(key='bad', source='s', media=[dict(type='video', path=address)],
        chats=[dict(key='bad', question='what?', answer='a dog')])
    assert len(write_shard(tmp_path/'00000.tar', [clip], FrameSpec(40))) == 1


def test_an_hour_of_black(tmp_path):
    "Sixty-four frames of it, and memory for no more."
    video(tmp_path/'hour.mp4', 3600)
    clip = dict(key='hour', source='s', media=[dict(type='video', path=str(tmp_path/'hour.mp4'))],
        chats=[dict(key='hour', question='what?', answer='nothing')])
    assert write_shard(tmp_path/'00000.tar', [clip], FrameSpec(40)) == []
    assert index_shard(tmp_path/'00000.tar')[0]['frames'] == 64
