"""Miniature copies of every data set that the recipes name, in the layout of the real one.

`make_data(root)` writes `root/datasets/OWNER/NAME/...` as the hub has it, with WebVid's videos (which no hub
has) under `root/webvid`, and returns what a build of each must find. These numbers are written down here,
where the files are made; nothing is asked of the code that reads them.
"""
import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from .media import image, truncated, video

WORDS = ('the a red green blue round small large dog cat bird car road tree house water cloud hand street '
         'man woman child ball box door open close run walk stand hold see near far left right above below '
         'and then while slowly quickly again two three many').split()
# lengths of videos in seconds, and the frames they give at one a second, at most 64
LENGTHS = ((1, 1), (2, 2), (2.75, 3), (.25, 1), (2, 2), (4, 4), (1, 1), (12, 12), (3, 3), (2, 2))
LONG = 70, 64
CUT, ABSENT, NO_TEXT = 'a truncated video', 'a video that is not there', 'a missing field'
SAME, FAILED = 'both answers are the same', 'failed_to_download'


@dataclass
class Miniature:
    "A data set, and what must come of it."
    name:str  # of `fvlm fetch`
    repo:str  # on the hub; empty: not there
    kind:str  # of `fvlm data build`
    files:list = field(default_factory=list)  # of the repository that a fetch brings
    records:int = 0  # rows of its tables
    clips:int = 0
    samples:int = 0  # conversations
    frames:int = 0  # stored ones: of a video at most 64, of an image 1
    left_out:Counter = field(default_factory=Counter)  # reason -> how often
    notes:Counter = field(default_factory=Counter)  # of `fvlm data check`, which are no faults
    repeats:int = 0  # rows that say the same as an earlier one
    extra:int = 0  # conversations beyond one for each row

    @property
    def media(self):
        "Those of `files` that a slice has its part of: archives, and tables that hold the media themselves."
        return [f for f in self.files if f.endswith(('.zip', '.tar', '.tar.gz', '.parquet')) or '_parta' in f]


    def add(self, frames, samples=1, records=None):
        records = samples if records is None else records
        self.records, self.extra = self.records+records, self.extra+samples-records
        self.clips, self.samples, self.frames = self.clips+1, self.samples+samples, self.frames+frames

    def repeat(self): self.records, self.repeats = self.records+1, self.repeats+1

    def refuse(self, why, records=1):
        self.records += records
        self.left_out[why] += records


def text(tokens, seed=0):
    "A text of exactly so many tokens of the stand-in tokenizer: each word is one."
    return ' '.join(WORDS[(seed*7+i*(1+seed % 5)) % len(WORDS)] for i in range(tokens))


def length(i): return LENGTHS[i % len(LENGTHS)]


class Repository:
    "A folder that is filled as a repository of the hub."
    def __init__(self, root, name, repo, kind):
        self.folder = Path(root)/'datasets'/repo if repo else Path(root)/name
        self.mini = Miniature(name, repo, kind)
        if repo: self.write('README.md', b'A miniature.\n', wanted=False)

    def write(self, path, data, wanted=True):
        target = self.folder/path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
        if wanted: self.mini.files.append(path)

    def csv(self, path, rows):
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        self.write(path, file.getvalue())

    def json(self, path, rows): self.write(path, json.dumps(rows, indent=1))

    def jsonl(self, path, rows): self.write(path, ''.join(json.dumps(r)+'\n' for r in rows))

    def parquet(self, path, rows, schema=None, group=3):
        target = self.folder/path
        target.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows, schema), target, row_group_size=group)
        self.mini.files.append(path)

    def zip(self, path, members, pieces=0):
        file = io.BytesIO()
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as out:
            for name, data in members.items():
                out.writestr(zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), data)
        data = file.getvalue()
        if not pieces: return self.write(path, data)
        size = -(-len(data)//pieces)  # as `split` leaves them; `cat` joins them again
        for i in range(pieces): self.write(f'{path[:-4]}_parta{"abc"[i]}', data[i*size:(i+1)*size])

    def tar(self, path, members):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode='w') as out:
            for name, data in members.items():
                about = tarfile.TarInfo(name)
                about.size = len(data)
                out.addfile(about, io.BytesIO(data))
        data = file.getvalue()
        self.write(path, gzip.compress(data, 1, mtime=0) if path.endswith('.gz') else data)


def openvid(root, count):
    "Two tables, of which the second repeats the best rows; zips, one of them in two pieces."
    r = Repository(root, 'openvid', 'nkp37/OpenVid-1M', 'openvid')
    rows, parts = [], [{}, {}, {}]
    def row(name, caption, seconds):
        rows.append({'video':name, 'caption':caption, 'aesthetic score':5.1, 'motion score':2.3,
            'temporal consistency score':.97, 'camera motion':'static', 'frame':round(24*seconds), 'fps':24.,
            'seconds':seconds})
    for i in range(count):
        name, (seconds, frames) = f'video_{i:03d}_0_0to{24*(i+1)}.mp4', LONG if i == 2 else length(i)
        row(name, text((1, 40, 900)[i] if i < 3 else 20+i, i), seconds)
        folder = 'mnt/bn/yh-volume0/dataset/OpenVid/OpenVid_part1/'
        parts[i % 3][f'{folder}{name}' if i % 3 == 1 else name] = video(1000+i, seconds)
        r.mini.add(frames)
    rows.append(rows[3])
    r.mini.repeat()
    row('cut.mp4', text(30), 4)
    parts[0]['cut.mp4'] = truncated(video(1900, 4))
    r.mini.refuse(CUT)
    row('clip_without_caption.mp4', '', 2)
    parts[1]['clip_without_caption.mp4'] = video(1901, 2)
    r.mini.refuse(NO_TEXT)
    row('nowhere.mp4', text(12), 2)
    r.mini.refuse(ABSENT)
    r.csv('data/train/OpenVid-1M.csv', rows)
    r.csv('data/train/OpenVidHD.csv', rows[:count//3])
    r.zip('OpenVid_part0.zip', parts[0])
    r.zip('OpenVid_part1.zip', parts[1])
    r.zip('OpenVid_part73.zip', parts[2], pieces=2)
    return r.mini


def webvid(root, count):
    "Tables on the hub; the videos, which nobody may publish, as `videos/PAGE_DIR/ID.mp4`."
    r = Repository(root, 'webvid', 'TempoFunk/webvid-10M', 'webvid')
    rows, home = [], Path(root)/'webvid'/'videos'
    for i in range(count):
        page, (seconds, frames) = f'{i//4*4:06d}_{i//4*4+3:06d}', length(i+1)
        rows.append(dict(videoid=20000+i, contentUrl=f'https://ak.picdn.net/{20000+i}.mp4',
            duration=f'PT00H00M{int(seconds):02d}S', page_dir=page, name=text(4+i % 12, i)))
        (home/page).mkdir(parents=True, exist_ok=True)
        (home/page/f'{20000+i}.mp4').write_bytes(video(2000+i, seconds, 'h265' if i == 5 else 'h264'))
        r.mini.add(frames)
    rows.append(dict(rows[0], videoid=29999, page_dir='nowhere'))
    r.mini.refuse(ABSENT)
    r.csv('data/train/partitions/0000.csv', rows[:count//2])
    r.csv('data/train/partitions/0001.csv', rows[count//2:])
    return r.mini


def webvid_tars(root, count):
    "The same kind of videos as `video2dataset` leaves them: tars, and a table beside each."
    r = Repository(root, 'webvid-tars', '', 'tars')
    for part in range(2):
        members, rows = {}, []
        for i in range(part*count//2, (part+1)*count//2):
            key, (seconds, frames) = f'{part:05d}{i:04d}', length(i+2)
            about = dict(videoid=30000+i, url=f'https://ak.picdn.net/{30000+i}.mp4', caption=text(5+i, i),
                key=key, status='success', error_message=None)
            members |= {f'{key}.mp4':video(3000+i, seconds), f'{key}.txt':about['caption'].encode(),
                f'{key}.json':json.dumps(about).encode()}
            rows.append(about)
            r.mini.add(frames)
        if part:
            about = dict(about, key='000019999', videoid=39999, status=FAILED, error_message='404')
            members |= {'000019999.txt':b'gone', '000019999.json':json.dumps(about).encode()}
            r.mini.refuse(FAILED)
        r.tar(f'{part:05d}.tar', members)
        r.parquet(f'{part:05d}.parquet', rows)
        r.json(f'{part:05d}_stats.json', dict(count=len(rows), successes=len(rows), failed_to_download=0))
    r.mini.files = [f for f in r.mini.files if f.endswith('.tar')]
    return r.mini


def _human(question, answer): return [{'from':'human', 'value':question}, {'from':'gpt', 'value':answer}]


def llava_video(root, count):
    "Three tables name the same videos: captions, open questions, multiple choice. All four codecs."
    r = Repository(root, 'llava-video', 'lmms-lab/LLaVA-Video-178K', 'llava_video')
    codecs = ('h264', 'mp4'), ('h265', 'mp4'), ('vp9', 'webm'), ('av1', 'mp4'), ('h264', 'mkv')
    for part, (folder, source) in enumerate({'0_30_s_academic_v0_1':'academic_source/Charades',
            '30_60_s_youtube_v0_1':'liwei_youtube_videos/videos'}.items()):
        captions, open_questions, choices, media = [], [], [], [{}, {}]
        for i in range(count//2):
            codec, ending = codecs[i % len(codecs)]
            seconds, frames = LONG if (part, i) == (1, 2) else length(i+part)
            name = f'{source}/V{part}{i:03d}.{ending}'
            media[i % 2][name] = video(4000+100*part+i, seconds, codec, ending)
            about = dict(id=f'{folder}-{i}', data_source=folder, video=name)
            captions.append(about | dict(conversations=_human('<image>\nDescribe it.', text(60+i, i))))
            open_questions += [about | dict(conversations=_human(f'<image>\n{text(5, q)}?', text(3, i+q)))
                for q in range(2)]
            choices.append(about | dict(conversations=_human(f'<image>\n{text(8, i)}?\nA. red\nB. blue',
                'A.')))
            r.mini.add(frames, samples=4)
        if part == 0:
            media[0][f'{source}/CUT.mp4'] = truncated(video(4900, 3))
            captions.append(dict(id='cut', data_source=folder, video=f'{source}/CUT.mp4',
                conversations=_human('<image>\nDescribe it.', text(9))))
            r.mini.refuse(CUT)
        r.json(f'{folder}/{folder}_cap_processed.json', captions)
        stem = folder.removesuffix('_v0_1')
        r.json(f'{folder}/{stem}_oe_v0_1_qa_processed.json', open_questions)
        r.json(f'{folder}/{stem}_mc_v0_1_qa_processed.json', choices)
        for i in (0, 1): r.tar(f'{folder}/{folder}_videos_{i+1}.tar.gz', media[i])
    return r.mini


def vista(root, count):
    "Subsets with a table and tars each; the field `image` names the video, and nothing marks its place."
    r = Repository(root, 'vista', 'TIGER-Lab/VISTA-400K', 'vista')
    for part, subset in enumerate(('temporal_niah_qa', 'long_video_caption')):
        rows, media = [], [{}, {}]
        for i in range(count//2):
            seconds, frames = length(i+3+part)
            name = f'{i:05d}.mp4'  # the same names in each subset
            media[i % 2][name] = video(5000+100*part+i, seconds)
            rows.append(dict(id=f'{subset}-{i}', image=name,
                conversations=_human(f'{text(10, i)}?', text(6, i))))
            r.mini.add(frames)
        r.json(f'{subset}.json', rows)
        for i in (0, 1): r.tar(f'{subset}/{subset}_{i+1}.tar', media[i])
    return r.mini


_PLACE = pa.struct([('start_timestamp', pa.string()), ('end_timestamp', pa.string())])
_FINEVIDEO = pa.schema([('mp4', pa.binary()), ('json', pa.struct([
    ('content_fine_category', pa.string()),
    ('content_metadata', pa.struct([
        ('characterList', pa.list_(pa.struct([('characterId', pa.string()), ('description', pa.string()),
            ('name', pa.string())]))),
        ('description', pa.string()), ('fps', pa.float64()),
        ('qAndA', pa.list_(pa.struct([('answer', pa.string()), ('question', pa.string())]))),
        ('scenes', pa.list_(pa.struct([('activities', pa.list_(pa.struct([('description', pa.string()),
            ('timestamp', _PLACE)]))), ('sceneId', pa.int64()), ('timestamps', _PLACE),
            ('title', pa.string())]))),
        ('storylines', pa.struct([('climax', pa.string()), ('description', pa.string()),
            ('scenes', pa.list_(pa.int64()))])),
        ('title', pa.string()), ('trimmingSuggestions', pa.list_(pa.string()))])),
    ('content_parent_category', pa.string()), ('duration_seconds', pa.int64()),
    ('original_json_filename', pa.string()), ('original_video_filename', pa.string()),
    ('resolution', pa.string()), ('text_to_speech', pa.string()), ('youtube_age_limit', pa.int64()),
    ('youtube_categories', pa.list_(pa.string())), ('youtube_channel', pa.string()),
    ('youtube_description', pa.string()), ('youtube_title', pa.string()),
    ('youtube_upload_date', pa.string()), ('youtube_view_count', pa.int64())]))])


def finevideo(root, count):
    "The videos themselves in a column of the tables; everything known about them in another."
    r = Repository(root, 'finevideo', 'HuggingFaceFV/finevideo', 'finevideo')
    rows = []
    for i in range(count):
        seconds, frames = LONG if i == 4 else length(i)
        questions = [dict(question=f'{text(7, i+q)}?', answer=text(5, q)) for q in range(i % 3)]
        scene = dict(sceneId=1, title=text(3, i), activities=[dict(description=text(6, i),
            timestamp=dict(start_timestamp='00:00:00.000', end_timestamp='00:00:01.000'))])
        content = dict(title=text(4, i), description=text(30+i, i), fps=4., qAndA=questions, scenes=[scene],
            storylines=dict(climax=text(4), description=text(8), scenes=[1]))
        about = dict(content_metadata=content,
            content_fine_category='Cooking', content_parent_category='Food', duration_seconds=int(seconds),
            original_video_filename=f'fine_{i}.mp4', resolution='96x72', youtube_title=text(5, i),
            youtube_description=text(9), youtube_categories=['Howto'], youtube_view_count=10+i)
        rows.append(dict(mp4=video(6000+i, seconds), json=about))
        r.mini.add(frames, samples=1+len(questions), records=1)
    rows.append(dict(rows[0], mp4=truncated(video(6900, 3)), json=dict(rows[0]['json'],
        original_video_filename='cut.mp4')))
    r.mini.refuse(CUT)
    half = len(rows)//2
    for i, part in enumerate((rows[:half], rows[half:])):
        r.parquet(f'data/train-{i:05d}-of-00002.parquet', part, _FINEVIDEO)
    return r.mini


def sharegpt4video(root, count):
    "Long captions in steps, and one of the whole video."
    r = Repository(root, 'sharegpt4video', 'ShareGPT4Video/ShareGPT4Video', 'sharegpt4video')
    rows, media = [], dict(panda={}, pixabay={})
    for i in range(count):
        seconds, frames = length(i+5)
        origin = 'panda' if i % 2 else 'pixabay'
        media[origin][f'{i:04d}.mp4'] = video(7000+i, seconds)
        steps = [dict(idx=str(k), content=text(12, i+k)) for k in range(2)]
        rows.append(dict(video_id=f'v{i}', video_path=f'{origin}/{i:04d}.mp4', timestamp=['00:00:00.000'],
            keyframe=[0], captions=[*steps, dict(idx='-1', content=text(80+i, i))],
            zip_folder=f'{origin}/{origin}_videos_1.zip'))
        r.mini.add(frames)
    r.jsonl('sharegpt4video_40k.jsonl', rows)
    for origin, members in media.items(): r.zip(f'zip_folder/{origin}/{origin}_videos_1.zip', members)
    return r.mini


def sharegptvideo(root, count):
    "Videos as folders of frames in archives, named by captions, questions and preference pairs."
    r = Repository(root, 'sharegptvideo', 'ShareGPTVideo/train_video_and_instruction', 'sharegptvideo')
    sft, captions, pairs, media = [], [], [], [{}, {}]
    for i in range(count):
        name, frames = f'v_{i:04d}-Scene-001', (1, 4, 10, 3)[i % 4]
        for f in range(frames): media[i % 2][f'{name}/c01_{f+1:04d}.jpeg'] = image(8000+100*i+f)
        sft.append(dict(id=f'{name}-qa', video=name, conversations=_human(f'<video>\n{text(6, i)}?',
            text(9, i))))
        captions.append(dict(id=f'{name}-cap', video=name, conversations=_human('<video>\nDescribe it.',
            text(50, i))))
        pairs.append(dict(id=f'{name}-dpo', video=name, prompt=f'<video>\n{text(5, i)}?', answer=text(7, i),
            chosen=text(8, i), chosen_score=5, rejected=text(6, i+3), rejected_score=2))
        r.mini.add(frames, samples=3)
    r.jsonl('video_instruction/train/sft/video_240k_caption_15k.jsonl', sft)
    r.jsonl('video_instruction/train/pretrain/video_caption_pretrain.jsonl', captions)
    r.jsonl('video_instruction/train/dpo/sft_dpo_17k.jsonl', pairs)
    for i in (0, 1): r.tar(f'train_300k/chunk_{i}.tar.gz', media[i])
    return r.mini


_IMAGE = pa.struct([('bytes', pa.binary()), ('path', pa.string())])


def cauldron(root, count):
    "Images in the tables, none to ten of them in a row, and some turns about them."
    r = Repository(root, 'cauldron', 'HuggingFaceM4/the_cauldron', 'cauldron')
    schema = pa.schema([('images', pa.list_(_IMAGE)), ('texts', pa.list_(pa.struct([('user', pa.string()),
        ('assistant', pa.string()), ('source', pa.string())])))])
    for part, subset in enumerate(('ai2d', 'nlvr2')):
        rows = []
        for i in range(count//2):
            images = (1, 1, 2)[i % 3] if part == 0 else (0, 1, 2, 3, 10)[i % 5]
            shown = [dict(bytes=image(9000+1000*part+20*i+k, 'png' if k % 2 else 'jpeg'), path=None)
                for k in range(images)]
            turns = [dict(user=f'{text(6, i+t)}?', assistant=text((1, 4)[t], i), source=subset)
                for t in range(1+i % 2)]
            rows.append(dict(images=shown, texts=turns))
            r.mini.add(images)
        if part == 0:
            unanswered = dict(user=text(4), assistant='', source=subset)
            rows.append(dict(images=rows[0]['images'], texts=[unanswered]))
            r.mini.refuse(NO_TEXT)
        r.parquet(f'{subset}/train-00000-of-00001-{part:016x}.parquet', rows, schema)
    return r.mini


def smoltalk(root, count):
    "Conversations without anything to see, of 1 to 3,000 tokens; other folders repeat rows and are not read."
    r = Repository(root, 'smoltalk', 'HuggingFaceTB/smoltalk', 'smoltalk')
    sizes, rows = (1, 5, 30, 120, 400, 12, 60, 9), []
    for i in range(count):
        prompt = 3000 if i == 7 else sizes[i % len(sizes)]
        answer = 1500 if i == 11 else 3+i % 20
        def turn(role, words): return dict(content=words, role=role)
        turns = [turn('user', text(prompt, i)), turn('assistant', text(answer, i+1))]
        if i % 4 == 1: turns += [turn('user', text(6, i)), turn('assistant', text(4))]
        if i % 5 == 2: turns.insert(0, turn('system', text(8, i)))
        rows.append(dict(messages=turns, source='smol-magpie-ultra'))
        r.mini.add(0)
    r.mini.notes.update({'long prompt':1, 'long answer':1})
    half = count//2
    for i, part in enumerate((rows[:half], rows[half:])):
        r.parquet(f'data/all/train-{i:05d}-of-00002.parquet', part)
    wanted = list(r.mini.files)
    r.parquet('data/all/test-00000-of-00001.parquet', rows[:2])
    r.parquet('data/everyday-conversations/train-00000-of-00001.parquet', rows[:5])
    r.mini.files = wanted
    return r.mini


def rlaif_v(root, count):
    "Two answers to a question about an image; the worse one is kept as `rejected`."
    r = Repository(root, 'rlaif-v', 'openbmb/RLAIF-V-Dataset', 'rlaif_v')
    rows = []
    for i in range(count):
        rows.append(dict(ds_name='LLaVA', image=dict(bytes=image(12000+i), path=f'{i}.jpg'),
            question=f'{text(6, i)}?', chosen=text(12, i), rejected=text(9, i+1), origin_dataset='coco',
            origin_split='train', idx=i, image_path=f'coco/{i}.jpg'))
        r.mini.add(1)
    rows.append(dict(rows[0], idx=count, rejected=rows[0]['chosen']))
    r.mini.refuse(SAME)
    r.parquet('RLAIF-V-Dataset_000.parquet', rows)
    return r.mini


def rlaif_v_formatted(root, count):
    "The same pairs as turns of a conversation."
    r = Repository(root, 'rlaif-v-formatted', 'HuggingFaceH4/rlaif-v_formatted', 'rlaif_v')
    turns = pa.list_(pa.struct([('content', pa.list_(pa.struct([('index', pa.int64()), ('text', pa.string()),
        ('type', pa.string())]))), ('role', pa.string())]))
    columns = dict(images=pa.list_(_IMAGE), prompt=turns, chosen=turns, rejected=turns)
    schema = pa.schema([*columns.items()])
    part = lambda kind, words=None: dict(index=0 if kind == 'image' else None, text=words, type=kind)
    rows = []
    for i in range(count):
        rows.append(dict(images=[dict(bytes=image(13000+i), path=None)],
            prompt=[dict(role='user', content=[part('image'), part('text', f'{text(6, i)}?')])],
            chosen=[dict(role='assistant', content=[part('text', text(12, i))])],
            rejected=[dict(role='assistant', content=[part('text', text(9, i+1))])]))
        r.mini.add(1)
    r.parquet('data/train-00000-of-00001.parquet', rows, schema)
    return r.mini


DATA = dict(  # name -> (maker, size in full, size of the quick form)
    openvid=(openvid, 36, 12), webvid=(webvid, 32, 12), webvid_tars=(webvid_tars, 8, 4),
    llava_video=(llava_video, 20, 10), vista=(vista, 16, 6), finevideo=(finevideo, 12, 6),
    sharegpt4video=(sharegpt4video, 12, 4), sharegptvideo=(sharegptvideo, 12, 4), cauldron=(cauldron, 40, 20),
    smoltalk=(smoltalk, 60, 24), rlaif_v=(rlaif_v, 10, 4), rlaif_v_formatted=(rlaif_v_formatted, 10, 4))


def make_data(root, quick=False):  # name of `fvlm fetch` -> `Miniature`
    "All data sets below `root`."
    made = [make(root, (full, small)[quick]) for make, full, small in DATA.values()]
    return {m.name:m for m in made}
