"""Three updates of stage 1 with the true shapes of its two backbones, beside what the cost model predicts.

    python -m tests.rehearsal.true_shapes            # about three minutes on two cores, 4 GB of memory

DINOv2-small and SmolLM2-135M are made from their config classes, with random weights; `configs/stage1.yaml`
is the real one, with a few samples per update. The training runs in a process of its own, so that the most
memory which it ever held is that of the training and not of what ran before.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/stage1.yaml'
FRAMES, UPDATES, BATCH, MICRO = 8, 3, 2, 1
VISION = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
LANGUAGE = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, vocab_size=49_153, tie_word_embeddings=True, max_position_embeddings=8192,
    rope_theta=1e5)  # 49,152 entries and `<frame>`
# memory that was freed is used again, and not given back to the kernel, which would have to clear it anew
KEEP_PAGES = dict(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_='17179869184', MALLOC_TOP_PAD_='67108864')
SMALL = dict(vision=dict(VISION, hidden_size=48, num_hidden_layers=2),
    language=dict(LANGUAGE, hidden_size=72, intermediate_size=96, num_hidden_layers=2))  # for a quick test


def make_backbones(folder, vision, language):
    import torch
    from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM
    from fvlm.model.foveated import load_tokenizer
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**vision)).save_pretrained(folder/'vision')
    LlamaForCausalLM(LlamaConfig(**language, pad_token_id=2)).save_pretrained(folder/'language')
    load_tokenizer('tiny').save_pretrained(folder/'language')


def make_data(folder, count):
    "Captions of about 150 tokens of rendered videos, and texts alone, in shards of the names of stage 1."
    from fvlm.data.build import build_shards
    from fvlm.data.shards import FrameSpec, clips_of
    from fvlm.model.foveated import load_tokenizer
    from fvlm.world.scenes import World, make_scene, render
    sets = {n:[] for n in ('openvid', 'webvid', 'smoltalk1')}
    for i in range(count):
        records = render(make_scene('caption', i, World(frames=FRAMES, glyphs=4)), folder/'videos')
        for clip in clips_of(records, folder/'videos'):
            for chat in clip['chats']: chat['answer'] = ' '.join([chat['answer']]*6)
            sets[('openvid', 'webvid')[i%2]].append(clip)
            if i < 8: sets['smoltalk1'].append(dict(clip, key=f'text{i}', media=[], chats=[
                dict(c, key=f"text-{c['key']}") for c in clip['chats']]))
    for name, clips in sets.items():
        build_shards(clips, folder/'data'/name, FrameSpec(224), tokenizer=load_tokenizer('tiny'))
    return ', '.join(str(folder/'data'/n) for n in sets)


def overrides(folder, shards):
    return [f'out={folder}/run', f'data.shards={shards}', f'model.vision={folder}/vision',
        f'model.language={folder}/language', f'train.steps={UPDATES}', f'train.batch_size={BATCH}',
        f'train.micro_batch={MICRO}', 'train.log_every=1', 'train.workers=0', 'train.eval_every=0',
        'train.save_every=0', 'train.precision=fp32', 'log.wandb=false']


def predict(cfg):  # FLOPs of each update; parts of the memory; the sample that the memory is predicted for
    "What the cost model says of the very samples that the updates will read."
    from fvlm.data.chat import IGNORE, prepare_tokenizer
    from fvlm.data.loader import Batches
    from fvlm.evaluation.cost import (CostModel, SampleSize, architecture, count_parameters, sample_flops,
        training_memory)
    from fvlm.model.foveated import load_tokenizer
    from fvlm.training.trainer import open_data
    tokenizer = load_tokenizer(cfg.model.language)
    prepare_tokenizer(tokenizer)
    shards, plan = open_data(cfg, tokenizer)
    batches = Batches(shards, tokenizer, cfg.data)
    def size(s):
        places = [i for i, t in enumerate(s['ids']) if t == batches.frame_id]
        return SampleSize(len(places), len(s['ids'])-len(places), sum(t != IGNORE for t in s['labels'][1:]),
            len(set(s['frames'])), min(places, default=0))
    def sizes(numbers): return [size(batches.read(int(i))) for i in numbers]
    def cost(s): return sample_flops(cfg, s.frames, s.tokens, s.answers, s.U, s.before)
    flops = [sum(map(cost, sizes(plan.update(u)))) for u in range(UPDATES)]
    parts = [sizes(m) for u in range(UPDATES) for m in plan.micro(u, 1)]
    largest = max(parts, key=lambda m: (sum(s.U for s in m), max(s.tokens for s in m)))
    sample = max((s for s in largest if s.U), key=lambda s: s.tokens)
    arch = architecture(cfg)
    memory = training_memory(CostModel(arch, cfg.model.frozen, cfg.data.frame_size), sample,
        sum(s.U > 0 for s in largest))
    parameters = {g:n for g, (n, _) in count_parameters(arch).items()}
    return dict(flops=flops, memory=memory, sample=asdict(sample), parameters=parameters)


def measure(folder, threads):
    "Train, in this process; the peak is that of the last update, before anything is saved."
    import torch
    from fvlm.config import load_config
    from fvlm.training.tracking import peak_memory, read_metrics, run_info
    from fvlm.training.trainer import train
    from transformers.utils.logging import disable_progress_bar
    disable_progress_bar()
    torch.set_num_threads(threads)
    before = peak_memory('cpu')*1e9
    train(load_config(ROOT/CONFIG, json.loads((folder/'overrides.json').read_text())))
    log = read_metrics(folder/'run')
    log = log[log.event == 'train']
    return dict(seconds=log.seconds_per_step.tolist(), loss=log.loss.tolist(), before=before,
        peak=log.peak_memory.max()*1e9, info=run_info())


def true_shapes(threads=2, vision=VISION, language=LANGUAGE):
    "Seconds and memory of three updates, measured and predicted; plain numbers, fit for JSON."
    from fvlm.config import load_config
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        make_backbones(folder, vision, language)
        keys = overrides(folder, make_data(folder, 24))
        (folder/'overrides.json').write_text(json.dumps(keys))
        with chdir(ROOT): predicted = predict(load_config(CONFIG, keys))
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), WANDB_MODE='disabled', HF_HUB_OFFLINE='1',
            FVLM_QUIET='1', PYTHONPATH=str(ROOT), **KEEP_PAGES)
        words = [sys.executable, '-m', 'tests.rehearsal.true_shapes', str(folder), str(threads)]
        done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True)
        if done.returncode: raise RuntimeError(f'true shapes: {done.stderr[-2000:]}')
        measured = json.loads((folder/'measured.json').read_text())
    shown = [k.replace(home, 'FOLDER') for k in keys]
    seconds = statistics.median(measured['seconds'])
    flops = statistics.mean(predicted['flops'])
    memory = dict(predicted['memory'], total=sum(predicted['memory'].values()))
    return dict(config=CONFIG, overrides=shown, vision=vision, language=language, updates=UPDATES,
        samples_per_update=BATCH, micro_batch=MICRO, threads=threads, parameters=predicted['parameters'],
        seconds=measured['seconds'], seconds_per_update=seconds, loss=measured['loss'],
        predicted_flops_per_update=flops, flops_per_second=flops/seconds, predicted_memory=memory,
        predicted_for=predicted['sample'], peak_memory=measured['peak'], memory_before=measured['before'],
        peak_less_before=measured['peak']-measured['before'],
        measured_over_predicted=(measured['peak']-measured['before'])/memory['total'], info=measured['info'])


if __name__ == '__main__':
    if len(sys.argv) == 3:
        result = measure(Path(sys.argv[1]), int(sys.argv[2]))
        (Path(sys.argv[1])/'measured.json').write_text(json.dumps(result))
    else: print(json.dumps(true_shapes(), indent=1))
