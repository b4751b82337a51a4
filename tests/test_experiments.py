"""Experiments with real processes: the job runner, and all ablations with two updates each."""
import json, shutil
from pathlib import Path

import pandas as pd
import pytest
from transformers.utils.logging import disable_progress_bar

from fvlm.config import load_config
from fvlm.experiments.ablations import ABLATIONS, run_ablations, with_keys
from fvlm.experiments.runner import Job, run_jobs
from fvlm.experiments.speedrun import VideoSet, video_jobs
from fvlm.world.backbones import tiny_llm, tiny_tokenizer, tiny_vit
from fvlm.world.scenes import World

FOLDER = Path(__file__).resolve().parents[1]/'configs'/'ablations'


def test_jobs_run_in_processes_and_stop_at_a_failure(tmp_path, capfd):
    (tmp_path/'a').touch()
    def copy(name, source, *after):
        return Job(name, shutil.copy, (tmp_path/source, tmp_path/name), tmp_path/name, after)
    run_jobs([copy('c', 'b', 'b'), copy('b', 'a')], 2)
    assert (tmp_path/'c').is_file()
    with pytest.raises(FileNotFoundError, match='nowhere'):
        run_jobs([copy('bad', 'nowhere'), copy('next', 'a', 'bad')], 1, 'demo')
    assert not (tmp_path/'next').exists()
    line, = [l for l in capfd.readouterr().err.splitlines() if 'failed' in l]
    assert line.startswith('demo: bad failed (FileNotFoundError')


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "A baseline with forty videos per data set, random backbones and two updates."
    home = tmp_path_factory.mktemp('ablations')
    disable_progress_bar()
    for task in ('caption', 'lookup'):
        run_jobs(video_jobs(task, VideoSet(task, (World(glyphs=3),), 40), home), 0)
    tokenizer = tiny_tokenizer()
    tiny_vit().save_pretrained(home/'backbones'/'vision')
    for part in (tiny_llm(len(tokenizer)), tokenizer): part.save_pretrained(home/'backbones'/'language')
    return home, with_keys(load_config(FOLDER/'tiny.yaml'), {
        'data.shards':', '.join(str(home/'shards'/n) for n in ('caption', 'lookup', 'pictures', 'text')),
        'model.vision':f'{home}/backbones/vision', 'model.language':f'{home}/language', 'train.steps':2,
        'train.batch_size':8, 'train.log_every':1, 'train.eval_every':1, 'eval.samples':16})


def test_all_ablations(tiny):
    home, base = tiny
    result = run_ablations(base, FOLDER, out=home/'study', workers=2)
    rows = pd.read_csv(home/'study'/'results.csv')
    modes = rows.groupby('run')['mode'].agg(set)
    for n in ABLATIONS:
        assert modes[n]-{'text'} == ({'coarse'} if n in ('A6', 'B1') else {'coarse', 'fine'}), n
    assert set(rows.run) == set(ABLATIONS) and len(result['summary']) == len(ABLATIONS)
    assert rows.loss.notna().all()
    curves = rows.groupby('run').loss.agg(tuple)
    assert curves.is_unique, 'a key without effect: two ablations have the same losses'
    lr = rows.groupby('run')[['lr_connector', 'lr_vision', 'lr_language']].max().isna()
    assert lr.loc['F1'].tolist() == [False, True, True] and lr.loc['F2'].tolist() == [False, False, True]

    before = {p:p.stat().st_mtime_ns for p in (home/'study'/'runs').glob('*/metrics.jsonl')}
    again = run_ablations(base, FOLDER, out=home/'study', workers=2)
    assert before == {p:p.stat().st_mtime_ns for p in before}, 'a finished run was repeated'
    saved = json.loads((home/'study'/'result.json').read_text())
    assert again['summary'] == result['summary'] == saved['summary']
