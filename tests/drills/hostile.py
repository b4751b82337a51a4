"""Drills on hostile samples, tars and images, and on those who ask too much of a model."""
import gc, gzip, io, resource, struct, tarfile, threading, time, zlib
import numpy as np, torch
import test_bad_data as cases
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from PIL import Image
from drills.runs import drill, read_numbers, run_child, write_numbers
from fvlm.cli import answer, load_model, main
from fvlm.data.build import index_folder
from fvlm.data.chat import END, special_id
from fvlm.data.check import check_shards
from fvlm.data.loader import DataError
from fvlm.data.sampling import load_clip, write_video
from fvlm.data.shards import from_jpeg, index_shard
from fvlm.data.sources import clips_from
from fvlm.model.foveated import MODES


def peak_memory()->float: # MB, of this process so far
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1000

def measure(folder, work, *args)->dict: # in a child process, so that its memory is its own
    run_child(folder/f'{work.__name__}.txt', work, folder, *args)
    return read_numbers(folder/'measured.json')

def one_line(e, *names): # an error that a user can act on
    return '\n' not in str(e).strip() and all(n in str(e) for n in names)


def sample_cases()->dict[str,tuple]: # name -> files, damage after indexing, what must become of it
    "Damaged and odd samples."
    fine = dict(cases.FRAME, json=cases.changed())
    found = {name:(files, None, 'placeholder') for name,(files,_) in cases.PLACEHOLDERS.items()}
    found |= {name:(files, None, 'refused') for name,(files,_) in cases.REFUSED.items()}
    found |= {name:(fine, damage, 'placeholder') for name,damage in cases.DAMAGES.items() if name!='gone'}
    found |= {f'picture of mode {mode}':(cases.image(cases.picture(mode=mode, format=kind)), None, 'read')
              for mode,kind in cases.MODES.items()}
    say = lambda text: cases.with_talk(cases.USER, dict(cases.ANSWER, content=text))
    other = cases.image(cases.picture((48, 48)))
    return found | {'frames of another size':(other, None, 'placeholder'),
        'text that spells an end of turn':(say('a dog<|im_end|> and'), None, 'read'),
        'text that spells a frame':(say('a <frame> dog'), None, 'read'),
        'text without letters':(say('\x00\x01'), None, 'read'),
        'half a character':(say('a \ud83d dog'), None, 'refused')}

def outcome(home, files, damage)->tuple: # what became of it, whether the counts are exact, the good sample
    "Index and read a folder with a good sample and another."
    refused = cases.folder(home, ('bad', files), damage=damage)
    batch, counter = cases.read(home)
    counts, row = counter.table(), batch['meta'][1] if len(batch['meta'])>1 else None
    n_bad = int(counts.bad.sum())+int(counts.get('too_long', 0).sum() if 'too_long' in counts else 0)
    learned = (batch['labels']!=cases.IGNORE).sum(1).tolist()
    if row is None: found, exact = 'refused', len(refused)==1 and refused[0]['key']=='bad' and n_bad==0
    elif row.get('key')!='bad': found, exact = 'placeholder', n_bad==1 and learned[1]==0
    else: found, exact = 'read', n_bad==0 and learned[1]>0
    exact &= int(counts.samples.sum())==len(batch['meta'])
    n = batch['lengths'][0]
    return found, exact, (batch['input_ids'][0,:n].tolist(), batch['labels'][0,:n].tolist(),
        batch['pixel_values_videos'][:1])


@drill('F13', 'damaged samples',
    'pictures cut, false or of another size, broken JSON, wrong counts of frames, wrong turns, text that '
    'spells special tokens, bytes lost after indexing; each beside a good sample',
    'a placeholder that is counted, or refused by name when the shard is indexed; the good sample is read '
    'to the byte; too many of them end a run',
    lambda f: f['handled']==f['counted']==f['good_unchanged']==f['cases']>=40
    and f['stopped_above_the_limit']==1,
    'tests/test_bad_data.py')
def corrupt_input(folder, size):
    results, odd, todo = [], [], sample_cases()
    for i,(name,(files,damage,expected)) in enumerate(todo.items()):
        home = folder/str(i)
        home.mkdir()
        try: found, exact, good = outcome(home, files, damage)
        except Exception as e: found, exact, good = f'{type(e).__name__}: {e}', False, None
        alone = folder/f'{i}-alone'
        alone.mkdir()
        cases.folder(alone)
        batch, _ = cases.read(alone)
        n = batch['lengths'][0]
        whole = good is not None and good[:2]==(batch['input_ids'][0,:n].tolist(),
            batch['labels'][0,:n].tolist()) and torch.equal(good[2], batch['pixel_values_videos'][:1])
        results.append((found==expected, exact, whole))
        if not all(results[-1]): odd.append(f'{name}: {found}'[:200])
    handled, exact, whole = (sum(column) for column in zip(*results))
    home = folder/'limit'
    home.mkdir()
    cases.folder(home, ('bad', cases.image(b'no picture')))
    stopped = 0
    try: cases.read(home)[1].check(.01, at_least=1)
    except DataError as e: stopped = int(one_line(e, '1 of 2'))
    return dict(cases=len(todo), handled=handled, counted=exact, good_unchanged=whole,
        stopped_above_the_limit=stopped, odd=odd)


def write_tar(path, members): # (name, content or None, {field: value}); a claimed size may be false
    with tarfile.open(path, 'w', format=tarfile.GNU_FORMAT) as tar:
        for name,content,fields in members:
            m = tarfile.TarInfo(name)
            m.size = len(content or b'')
            for k,v in fields.items(): setattr(m, k, v)
            tar.addfile(m, io.BytesIO(content) if content else None)

def whole_sample(key, **fields): # writes a tar that would be a good sample but for the fields of its frame
    text, picture = cases.changed(), None if fields else cases.picture()
    return lambda path: write_tar(path, [(f'{key}.json', text, {}), (f'{key}.000.jpg', picture, fields)])

def many_members(path, n, one_clip): # a tar with so many empty files
    with open(path, 'wb') as f:
        for i in range(n):
            m = tarfile.TarInfo(f'bad.{i}.jpg' if one_clip else f'clip{i}.jpg')
            f.write(m.tobuf(tarfile.USTAR_FORMAT))
        f.write(bytes(1024))

def sparse_tar(path): # one file of a terabyte that is all hole
    m = tarfile.TarInfo('bad.000.jpg')
    m.type, m.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(m.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b'00000000000\0', b'00000000000\0'
    header[483:495] = b'\x80'+(10**12).to_bytes(11, 'big')
    header[148:156] = b' '*8
    header[148:156] = f'{sum(header):06o}\0 '.encode()
    path.write_bytes(bytes(header)+bytes(1024))

def pax_tar(path): # a name of megabytes, in an extended header
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
        m = tarfile.TarInfo('bad.json')
        m.pax_headers = dict(path='x'*5_000_000, comment='y'*20_000_000)
        tar.addfile(m)

def gzip_tar(path): # a gigabyte of zeros
    with gzip.open(path, 'wb', compresslevel=1) as f:
        for _ in range(1000): f.write(bytes(1_000_000))

def hostile_tars(outside, members)->dict[str,Callable]: # name -> writes a tar
    "Tars that want to do harm."
    link, hard = (dict(type=t, linkname='/etc/passwd') for t in (tarfile.SYMTYPE, tarfile.LNKTYPE))
    through = [('dir', None, dict(link, linkname=str(outside))), ('dir/out.json', cases.changed(), {}),
        ('dir/out.000.jpg', cases.picture(), {})]
    sample = whole_sample
    return dict(traversal=sample(f'../../../..{outside}/out'), absolute=sample(f'{outside}/out'),
        traversal_inside=sample('a/../../out'), symlink=sample('bad', **link),
        hard_link=sample('bad', **hard),
        through_a_link=lambda p: write_tar(p, through),
        character_device=sample('bad', type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        block_device=sample('bad', type=tarfile.BLKTYPE, devmajor=8, devminor=0),
        pipe=sample('bad', type=tarfile.FIFOTYPE), directory=sample('bad', type=tarfile.DIRTYPE),
        petabyte=sample('bad', size=10**15), negative=sample('bad', size=-1),
        large_picture=sample('bad', size=300_000_000),
        large_json=lambda p: write_tar(p, [('bad.json', cases.changed()+b' '*9_000_000, {}),
            ('bad.000.jpg', cases.picture(), {})]),
        sparse=sparse_tar, long_name=pax_tar, gzip_bomb=gzip_tar,
        many_files=lambda p: many_members(p, members, True),
        many_clips=lambda p: many_members(p, members, False))

def read_hostile_tars(folder, members): # runs in a child process
    outside, results = folder/'outside', {}
    outside.mkdir()
    before = peak_memory()
    for name,write in hostile_tars(outside, members).items():
        home = folder/name
        home.mkdir()
        path, bad, taken = home/'00000.tar', [], 0
        with suppress(ValueError): write(path)
        if not path.exists() or not path.stat().st_size: path.write_bytes(b'\xff'*2048)
        readers = dict(index=lambda: index_shard(path, bad=bad), index_folder=lambda: index_folder(home),
            check=lambda: check_shards(home),
            convert=lambda: list(clips_from('tars', path, home, 's', bad)))
        for reader,read in readers.items():
            try: found = read()
            except (ValueError, OSError): found = None # refused as a whole, in words
            except Exception as e: found, results[name,reader] = None, f'{type(e).__name__}: {e}'[:200]
            rows = dict(index=lambda f: len(f), index_folder=lambda f: f['samples'],
                check=lambda f: int(f.ok), convert=lambda f: len(f))[reader]
            if found is not None and rows(found): results[name,reader] = 'taken'
        path.unlink()
    wrong = [f'{n} by {r}: {why}' for (n,r),why in results.items()]
    tars = len(hostile_tars(outside, members))
    write_numbers(folder/'measured.json', dict(tars=tars, readers=len(readers),
        not_refused=len(wrong), files_outside=len(list(outside.iterdir())),
        grown_mb=round(peak_memory()-before), members=members, odd=wrong))

@drill('F15', 'tars that want to do harm',
    'names that lead out, links, devices, false sizes, sparse files, a gigabyte of zeros in gzip, names '
    'of megabytes, far too many members; read by indexing, `fvlm data index` and `check`, the converter',
    'nothing of them is taken, no file is written, at most 512 MB more than before',
    lambda f: f['not_refused']==0 and f['files_outside']==0 and f['grown_mb']<512, 'tests/test_bad_data.py')
def harmful_tars(folder, size): return measure(folder, read_hostile_tars, size.members)


def png_chunk(kind, data):
    return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))

def large_png(side, kind=b'', data=b''): # real pixels, one bit each; with a further chunk
    rows = zlib.compressobj(9)
    body = b''.join(rows.compress(bytes(1+side//8)) for _ in range(side))+rows.flush()
    return b'\x89PNG\r\n\x1a\n'+png_chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0))+(
        png_chunk(kind, data) if kind else b'')+png_chunk(b'IDAT', body)+png_chunk(b'IEND', b'')

def fits_image(): # an image in the format of astronomers whose header claims a gigabyte of pixels
    cards = ('SIMPLE  =                    T', 'BITPIX  =                    8',
        'NAXIS   =                    2',
        'NAXIS1  =                32768', 'NAXIS2  =                32768', 'END')
    return ''.join(f'{c:<80}' for c in cards).ljust(2880).encode()

def animation(kind, side, frames): # that many pictures of one side in a file of some kilobytes
    out = io.BytesIO()
    pages = [Image.new('P' if kind=='GIF' else 'RGB', (side, side), i) for i in range(frames)]
    pages[0].save(out, kind, save_all=True, append_images=pages[1:])
    return out.getvalue()

def exif_jpeg(): # orientation out of range, and an entry that claims gigabytes
    entries = struct.pack('<HHII', 0x112, 3, 1, 99)+struct.pack('<HHII', 0x9286, 7, 2**32-2, 2**31)
    exif = b'Exif\0\0II*\0'+struct.pack('<IH', 8, 2)+entries+bytes(4)
    return cases.picture(exif=exif)

def image_bombs()->dict[str,tuple[bytes,bool]]: # name -> bytes, whether a small first picture may be read
    "Small files that want much memory."
    text = b'a\0\0'+zlib.compress(bytes(100_000_000), 9)
    deep = bytearray(cases.picture((16, 16), 'P', 'GIF'))
    deep[6:10] = struct.pack('<HH', 65535, 65535)
    return dict(jpeg_header=(cases.jpeg_header(64250, 64250), False),
        png_header=(cases.png_header(65000, 65000), False), png_12k=(large_png(12_000), False),
        png_20k=(large_png(20_000), False), fits=(fits_image(), False),
        fits_in_gzip=(gzip.compress(fits_image()), False),
        text_in_png=(large_png(64, b'zTXt', text), True), colours_in_png=(large_png(64, b'iCCP', text), True),
        animated_gif=(animation('GIF', 64, 500), True), animated_webp=(animation('WEBP', 64, 500), True),
        animated_png=(animation('PNG', 64, 500), True), gif_header=(bytes(deep), False),
        wide_and_flat=(cases.png_header(2**31-1, 1), False), no_width=(cases.png_header(0, 65000), False),
        exif=(exif_jpeg(), True), tiff_header=(b'II*\0\x08\0\0\0\x02\0'+struct.pack('<HHII', 256, 4, 1, 64250)
            +struct.pack('<HHII', 257, 4, 1, 64250)+bytes(4), False))

def open_image_bombs(folder): # runs in a child process
    odd, todo, took, quiet = [], image_bombs(), [0.], cases.picture()
    for name,(data,_) in todo.items(): (folder/f'{name}.jpg').write_bytes(data)
    load_clip(quiet, 40)
    from_jpeg(quiet)
    readers = dict(stored=lambda name: from_jpeg(todo[name][0]).shape[1:], bytes=lambda name:
        load_clip(todo[name][0], 40, name=name).frames_TCHW.shape[2:],
        file=lambda name: load_clip(folder/f'{name}.jpg', 40).frames_TCHW.shape[2:])
    del quiet
    before = peak_memory()
    refused = small = 0
    for name,(data,may) in todo.items():
        for reader,read in readers.items():
            start, h, w = time.monotonic(), 0, 0
            try: h, w = read(name)
            except (ValueError, OSError): refused += 1
            except Exception as e: odd.append(f'{name} by {reader}: {type(e).__name__}')
            took.append(time.monotonic()-start)
            if h*w and may: small += 1
            elif h*w: odd.append(f'{name} by {reader}: read')
    write_numbers(folder/'measured.json', dict(images=len(todo), readers=len(readers), refused=refused,
        read_small=small, grown_mb=round(peak_memory()-before, 1), most_ms=round(1000*max(took), 1),
        bytes_of_all=sum(len(d) for d,_ in todo.values()), odd=odd))

@drill('F17', 'images that unfold',
    'headers that claim 64,250 pixels a side, a real 20,000 by 20,000 PNG, FITS, animations, texts and '
    'entries that unfold; read as stored frames, from bytes and from files',
    'refused from the header, or the small first picture is read; less than 50 MB more than before',
    lambda f: f['odd']==[] and f['refused']+f['read_small']==f['images']*f['readers'] and f['grown_mb']<50,
    'tests/test_bad_data.py')
def unfolding_images(folder, size): return measure(folder, open_image_bombs)


def live_bytes()->int: # of all tensors in this process, each storage once
    gc.collect()
    found = {}
    for x in gc.get_objects():
        with suppress(ReferenceError, RuntimeError, AttributeError, NotImplementedError):
            if isinstance(x, torch.Tensor):
                found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    return sum(found.values())

def refuse(attempt)->str: # '' if the attempt was refused in one line
    try: attempt()
    except (ValueError, OSError) as e: return '' if one_line(e) else 'more than a line'
    except Exception as e: return type(e).__name__
    return 'taken'

def interrupted(model, ask, after)->bool: # whether an interrupt at that call of the LLM came through
    calls = []
    def hook(*_):
        calls.append(1)
        if len(calls)==after: raise KeyboardInterrupt
    handle = model.language.base_model.register_forward_pre_hook(hook)
    try: ask()
    except KeyboardInterrupt: return True
    finally: handle.remove()
    return False

def never_ending(model, tokenizer, ask): # what a model answers that cannot end its turn
    end = special_id(tokenizer, END)
    def hook(_, inputs, logits): logits[..., end] = -1e9
    handle = model.language.lm_head.register_forward_hook(hook)
    try: return ask()
    finally: handle.remove()

def abuse(folder, threads): # runs in a child process
    model, tokenizer = load_model('tiny')
    rng = np.random.default_rng(0)
    clip = write_video(folder/'clip.mp4', rng.integers(0, 255, (8, 80, 80, 3), np.uint8))
    ask = lambda question='which shape is red?', **more: answer(model, tokenizer, clip, question, **more)
    wanted = [ask(f'which shape is {c}?', mode=m) for c in ('red','blue') for m in MODES]
    before, peak = live_bytes(), peak_memory()
    requests = dict(frames=lambda: ask(n=10_000), many_frames=lambda: ask(n=10**9),
        no_frames=lambda: ask(n=-1),
        nothing=lambda: ask(''), spaces=lambda: ask(' \n\t'), huge=lambda: ask('why '*1_000_000),
        long=lambda: ask('why '*20_000), mode=lambda: ask(mode='fastest'),
        order=lambda: ask(order='sideways'),
        endless=lambda: ask(fps=float('nan')), none=lambda: ask(max_tokens=0))
    odd = [f'{name}: {why}' for name,work in requests.items() if (why := refuse(work))]
    words = dict(frames=['--frames', '10000'], empty=['--max-tokens', '0'], fps=['--fps', 'nan'])
    codes = [main(['ask', str(clip), 'what?', *more]) for more in words.values()]
    codes.append(main(['ask', str(clip), '']))
    held = live_bytes()-before
    longest = len(never_ending(model, tokenizer, lambda: ask('why '*490, max_tokens=10**9)).tokens)
    cancelled = sum(interrupted(model, lambda: ask(mode=m), at) for m in MODES for at in (1, 2, 3))
    left = live_bytes()-before
    again, barrier, wrong = [None]*threads, threading.Barrier(threads), []
    def work(i):
        barrier.wait()
        try: again[i] = ask(f"which shape is {('red','blue')[i//3%2]}?", mode=MODES[i%3])
        except Exception as e: wrong.append(f'{type(e).__name__}: {e}'[:200])
    crowd = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for t in crowd: t.start()
    for t in crowd: t.join()
    same = sum(a is not None and a.text==wanted[i%6].text and abs(a.probability-wanted[i%6].probability)<1e-3
        for i,a in enumerate(again))
    del again[:], crowd
    write_numbers(folder/'measured.json', dict(requests=len(requests)+len(codes),
        refused=len(requests)-len(odd)+codes.count(2), tokens_of_endless_answer=longest,
        context=model.config.text_config.max_position_embeddings, bytes_after_refusals=held,
        cancelled=cancelled,
        bytes_after_cancelling=left, threads=threads, same_answers=same,
        bytes_after_threads=live_bytes()-before,
        grown_mb=round(peak_memory()-peak), odd=odd+wrong[:3]))

@drill('F23', 'asking too much',
    '10,000 frames, empty and huge questions and impossible options in Python and `fvlm ask`; an interrupt '
    'in the middle of an answer, in each mode; 50 threads at once',
    'refused in one line; an answer without end stops at the context; an interrupted one leaves no keys and '
    'values behind; each thread gets the answer that it gets alone; tensors in memory after = before',
    lambda f: f['refused']==f['requests'] and f['cancelled']==9 and f['same_answers']==f['threads']
    and 0<f['tokens_of_endless_answer']<f['context'] and f['grown_mb']<500
    and f['bytes_after_refusals']==f['bytes_after_cancelling']==f['bytes_after_threads']==0)
def ask_too_much(folder, size): return measure(folder, abuse, size.threads)
