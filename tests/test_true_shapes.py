"""The measurement of the true shapes, tried on small ones: the numbers are there and belong together."""
import math

from tests.rehearsal.true_shapes import LANGUAGE, SMALL, UPDATES, VISION, true_shapes
from fvlm.evaluation.cost import _published


def test_the_shapes_are_the_published_ones():
    vision, language = _published('facebook/dinov2-small'), _published('HuggingFaceTB/SmolLM2-135M')
    assert all(vision[k] == v for k, v in VISION.items())
    assert all(v == language[k]+(k == 'vocab_size') for k, v in LANGUAGE.items() if k in language)


def test_it_measures_and_predicts():
    found = true_shapes(1, **SMALL)
    assert len(found['seconds']) == UPDATES and all(map(math.isfinite, found['loss']))
    memory = found['predicted_memory']
    kept = memory['weights']+memory['gradients']+memory['AdamW']
    assert 4*sum(found['parameters'].values()) == memory['weights'] and memory['total'] > kept
    assert found['peak_less_before'] > kept  # a process cannot hold less than that
    assert found['predicted_for']['frames'] == 8 and found['predicted_flops_per_update'] > 1e9
    assert not any('/tmp' in k for k in found['overrides'])
