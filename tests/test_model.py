"""Measurements of the model that need the profiler, which writes to the terminal."""
import pytest, torch, torch.nn.functional as F
from torch.testing import assert_close
from fvlm.model.loss import cross_entropy_sum, token_losses

A, V, H = 512, 4096, 32

def largest(call): # bytes that one operation allocates
    with torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profile: call()
    return max(event.self_cpu_memory_usage for event in profile.function_events)

def states():
    torch.manual_seed(0)
    h_AH, weight_VH = torch.randn(A,H), torch.randn(V,H)
    return h_AH.requires_grad_(), weight_VH.requires_grad_(), torch.randint(0, V, (A,))

def plain(h_AH, weight_VH, target_A): return F.cross_entropy(h_AH@weight_VH.T, target_A, reduction='sum')

FUSED = pytest.param(True, marks=pytest.mark.skipif(not hasattr(torch.nn, 'LinearCrossEntropyOptions'),
                                                    reason='torch before 2.13'))

@pytest.mark.parametrize('fused', [False, FUSED])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_logits_of_all_states_never_exist(fused, dtype):
    "The largest tensor of loss and backward is the weight's gradient or a chunk of logits."
    h_AH, weight_VH, target_A = states()
    logits = A*V*dtype.itemsize
    found = largest(lambda: cross_entropy_sum(h_AH.to(dtype), weight_VH, target_A, 32, fused).backward())
    assert max(V*H*4, 32*V*4)<=found<=logits//4
    assert largest(lambda: plain(h_AH.to(dtype), weight_VH.to(dtype), target_A).backward())>=logits

def test_evaluation_takes_states_in_chunks():
    h_AH, weight_VH, target_A = states()
    with torch.no_grad():
        found = largest(lambda: token_losses(h_AH[None], target_A[None], weight_VH, chunk=32))
    assert found<=A*V

@pytest.mark.parametrize('fused', [False, FUSED])
def test_value_and_gradients_are_those_of_plain_cross_entropy(fused):
    h_AH, weight_VH, target_A = states()
    results = []
    for loss_of in (plain, lambda *args: cross_entropy_sum(*args, 100, fused)):
        loss = loss_of(h_AH, weight_VH, target_A)
        results.append((loss.detach(), *torch.autograd.grad(loss, (h_AH, weight_VH))))
    for found,want in zip(results[1], results[0]):
        assert_close(found, want, rtol=0, atol=want.abs().max().item()*A*torch.finfo(want.dtype).eps)
