"""Our layers with the original's weights, and pieces of the original."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.model.layers import SwiGLU


def close(got, want, tolerance, what=''):
  """Asserts that arrays are equal up to an absolute tolerance."""
  got, want = np.asarray(got), np.asarray(want)
  assert got.shape == want.shape, what
  np.testing.assert_allclose(got, want, rtol=0, atol=tolerance, err_msg=what)


def close_gradients(got, want, tolerance):
  """Asserts that gradients are those of the original, name by name.

  A parameter without a gradient there, which its computation does not read, has
  a gradient of zero here.

  Args:
    got: Gradients of our computation, by the original's names.
    want: Gradients of the original.
    tolerance: Absolute tolerance.
  """
  assert want
  assert not want.keys() - got.keys()
  for name, grad in got.items():
    if name in want:
      close(grad, want[name], tolerance, name)
    elif grad.dtype != jax.dtypes.float0:
      np.testing.assert_array_equal(grad, 0, err_msg=name)


def half_split(weight, axis):
  """Reorders rotary pairs (2i, 2i + 1) of an axis to (i, i + A/2)."""
  width = weight.shape[axis]
  order = np.r_[0:width:2, 1:width:2]
  return jnp.take(weight, order, axis=axis)


def with_one(x):
  """Appends a constant 1, which a weight turns into a bias."""
  return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def layer_norm(x, weight, bias):
  """Returns the layer norm of PyTorch."""
  mean = jnp.mean(x, -1, keepdims=True)
  x = (x - mean) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5)
  return x * weight + bias


def rms_norm(x, weight):
  """Returns the RMS norm of PyTorch, with its smallest epsilon."""
  square = jnp.mean(x * x, -1, keepdims=True)
  return x / jnp.sqrt(square + np.finfo(np.float32).eps) * weight


def swiglu(params, prefix, x):
  """Returns our SwiGLU with the original's weights and biases."""
  weight, bias = params[f'{prefix}w1.weight'], params[f'{prefix}w1.bias']
  gate_up = jnp.concatenate([weight.T, bias[None]])
  gate_up = gate_up.reshape(len(gate_up), 2, -1)
  down = params[f'{prefix}w2.weight'].T
  down = jnp.pad(down, ((0, 0), (0, 1)))
  variables = {
    'params': {'gate_up': {'kernel': gate_up}, 'down': {'kernel': down}}
  }
  module = SwiGLU(gate_up.shape[-1], 1, jnp.float32)
  out = module.apply(variables, with_one(x))
  return out[..., :-1] + params[f'{prefix}w2.bias']


def dense_attention(sees, is_real=None):
  """Returns an attention op with any mask, for masks that ours cannot have.

  Args:
    sees: True where a query sees a key, [B or 1, T, S] bool.
    is_real: False for keys and values that are zeroed, whether they are seen or
      not, [B, S] bool.
  """

  def run(q, k, v, *, scale, **_):
    if q is None:
      return jnp.einsum('bts,bshe->bthe', sees.astype(v.dtype), v)
    if is_real is not None:
      k, v = (x * is_real[..., None, None] for x in (k, v))
    heads = q.shape[2]
    k, v = (
      jnp.broadcast_to(x, (*x.shape[:2], heads, x.shape[3])) for x in (k, v)
    )
    score = jnp.einsum('bthd,bshd->bhts', q, k) * scale
    score = jnp.where(sees[:, None], score, -1e30)
    weight = jax.nn.softmax(score, axis=-1) * sees[:, None]
    return jnp.einsum('bhts,bshe->bthe', weight, v)

  return run


def below(params, prefix):
  """Returns the parameters below a prefix, by the rest of their names."""
  return {
    name.removeprefix(prefix): x
    for name, x in params.items()
    if name.startswith(prefix)
  }


def in_order(pattern, params):
  """Returns the prefixes of layers, in the order of the pattern's group 1."""
  found = (re.match(pattern, name) for name in params)
  number_of = {match[0]: int(match[1]) for match in found if match}
  return sorted(number_of, key=number_of.get)


def regular_params(p, heads):
  """Returns variables of `RegularAttention`; an input of 1 carries biases."""
  width = p['proj.weight'].shape[0]
  qkv = jnp.concatenate([p['qkv.weight'].T, p['qkv.bias'][None]])
  q, k, v = jnp.moveaxis(qkv.reshape(width + 1, 3, heads, -1), 1, 0)
  qkv = jnp.stack([half_split(q, -1), half_split(k, -1), v], axis=1)
  out = jnp.pad(p['proj.weight'].T, ((0, 0), (0, 1)))
  return {
    'params': {
      'qkv': {'kernel': qkv},
      'out': {'kernel': out.reshape(heads, -1, width + 1)},
    }
  }


def regular_cross_params(p, heads):
  """Returns variables of `RegularAttention` as cross-attention."""
  k, v = jnp.split(p['kv_proj.weight'].T, 2, axis=1)
  q, k, v = (x.reshape(len(x), heads, -1) for x in (p['q_proj.weight'].T, k, v))
  out = p['o_proj.weight'].T
  kernels = {
    'q': half_split(q, -1),
    'k': half_split(k, -1),
    'v': v,
    'out': out.reshape(heads, -1, out.shape[1]),
  }
  return {'params': {name: {'kernel': x} for name, x in kernels.items()}}


def latent_params(p, kv_name, prefix, is_scaled, last=None):
  """Returns variables of `LatentAttention`.

  Args:
    p: Parameters of the original.
    kv_name: Name of the map to the latent.
    prefix: Prefix of the names of the other parameters.
    is_scaled: Whether the original scales the scores, as ours does.
    last: Linear map after the last one, which is folded in; None for none.
  """
  heads, width, _ = p[f'{prefix}w_kc_q'].shape
  query_up = p[f'{prefix}W_qr']
  if not is_scaled:
    # No scale there but in the initial weights; ours is always explicit.
    query_up = query_up * np.sqrt(query_up.shape[-1])
  out = p[f'{prefix}out_proj.weight']
  if last is not None:
    out = last @ out
  kernels = {
    'q': p[f'{prefix}q_proj.weight'].T.reshape(-1, heads, width),
    'query_down': p[f'{prefix}w_kc_q'],
    'query_up': half_split(query_up, -1),
    'kv': p[kv_name].T,
    'k': half_split(jnp.moveaxis(p[f'{prefix}W_kr'], 0, 1), -1),
    'value_up': jnp.swapaxes(p[f'{prefix}w_kc_kv'], 1, 2),
    'out': out.T.reshape(heads, width, -1),
  }
  return {'params': {name: {'kernel': x} for name, x in kernels.items()}}
