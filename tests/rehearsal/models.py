"""Tiny random models under the names of the real ones: `root/models/OWNER/NAME/...`, as the hub has them."""
import json
from pathlib import Path

import torch
from transformers import (Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel, LlamaConfig,
    LlamaForCausalLM)

from fvlm.data.chat import chat_tokenizer
from .miniatures import WORDS, text

VISION = {'facebook/dinov2-small':32, 'facebook/dinov2-base':48,
          'facebook/dinov3-vits16-pretrain-lvd1689m':32}  # name -> width
LANGUAGE = {'HuggingFaceTB/SmolLM2-135M-Instruct':(48, 2), 'HuggingFaceTB/SmolLM2-360M-Instruct':(64, 2),
            'HuggingFaceTB/SmolLM2-1.7B-Instruct':(96, 2)}  # name -> width, layers
PROCESSOR = dict(image_processor_type='BitImageProcessor', do_resize=True, size=dict(shortest_edge=256),
    do_center_crop=True, crop_size=dict(height=224, width=224), do_rescale=True, rescale_factor=1/255,
    do_normalize=True, image_mean=[.485, .456, .406], image_std=[.229, .224, .225], resample=3)


def tokenizer():
    "In SmolLM2's chat format and without `<frame>`, as the real one; each of `WORDS` is one token."
    return chat_tokenizer([*WORDS, *(f' {w}' for w in WORDS), *(text(60, i) for i in range(40))]*3, 700,
        frame=False)


def vision(name, width):
    if 'dinov3' in name:
        return DINOv3ViTModel(DINOv3ViTConfig(hidden_size=width, intermediate_size=2*width,
            num_hidden_layers=2, num_attention_heads=2, patch_size=16, image_size=224, num_register_tokens=4))
    return Dinov2Model(Dinov2Config(hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
        mlp_ratio=2, image_size=518, patch_size=14))


def language(width, layers, vocabulary):
    return LlamaForCausalLM(LlamaConfig(hidden_size=width, intermediate_size=2*width,
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1, vocab_size=vocabulary,
        tie_word_embeddings=True, max_position_embeddings=8192, rope_theta=1e5, bos_token_id=1,
        eos_token_id=2, pad_token_id=2))


def save_words(words, folder):
    "A tokenizer in the files that the real ones have."
    words.save_pretrained(folder, save_jinja_files=False)
    (folder/'special_tokens_map.json').write_text(json.dumps(words.special_tokens_map, indent=1, default=str))


def make_models(root):  # name -> parameters
    "The six models that the configs name."
    sizes, words = {}, tokenizer()
    for i, name in enumerate([*VISION, *LANGUAGE]):
        folder = Path(root)/'models'/name
        torch.manual_seed(i)
        model = vision(name, VISION[name]) if name in VISION else language(*LANGUAGE[name], len(words))
        model.save_pretrained(folder)
        if name in VISION: (folder/'preprocessor_config.json').write_text(json.dumps(PROCESSOR, indent=1))
        else: save_words(words, folder)
        (folder/'README.md').write_text('A miniature.\n')
        sizes[name] = sum(p.numel() for p in model.parameters())
    return sizes
