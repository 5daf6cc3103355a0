"""FlexAttention of torch, a peer on GPU: a causal window, compiled for it."""

import dataclasses
from typing import Any

import jax

from abstractinator.benchmarks.op import Call
from abstractinator.types import Array


@dataclasses.dataclass(frozen=True)
class _Launched:
  """What torch has begun to compute, in a form that jax can wait for."""

  tensors: tuple[Any, ...]

  def block_until_ready(self) -> None:
    import torch

    torch.cuda.synchronize()


def calls(
  q_BSHA: Array, k_BSHA: Array, v_BSHA: Array, *, window: int | None
) -> dict[str, Call]:
  """Its forward pass, and that with the backward pass; see `op.Problem`.

  It gets queries, keys and values with heads in front, as it wants them.
  """
  import torch
  from torch._inductor import config
  from torch.nn.attention import flex_attention as flex

  # Its workers would be forks of a process with the threads of jax.
  config.compile_threads = 1
  q, k, v = (
    torch.from_dlpack(x).transpose(1, 2).contiguous().requires_grad_()
    for x in (q_BSHA, k_BSHA, v_BSHA)
  )
  size = q.shape[2]

  def sees(batch, head, query, key):
    del batch, head
    is_past = query >= key
    return is_past if window is None else is_past & (query - key <= window)

  mask = flex.create_block_mask(sees, None, None, size, size, device='cuda')
  compiled = torch.compile(flex.flex_attention, dynamic=False)

  def forward():
    with torch.no_grad():
      return _Launched((compiled(q, k, v, block_mask=mask),))

  def both():
    out = compiled(q, k, v, block_mask=mask)
    grads = torch.autograd.grad(out, (q, k, v), out.detach())
    return _Launched((out.detach(), *grads))

  # To compile it is to call it.
  both()
  forward()

  def arrays(launched):
    launched.block_until_ready()
    return [
      jax.dlpack.from_dlpack(x.transpose(1, 2).contiguous())
      for x in launched.tensors
    ]

  return {
    'forward': Call(forward, None, arrays),
    'both': Call(both, None, arrays),
  }
