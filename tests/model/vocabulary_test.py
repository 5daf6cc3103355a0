"""Vocabularies against plain computations, in every form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from abstractinator.model.vocabulary import Vocabulary
from abstractinator.types import Special
from tests.helpers.jitted import jit
from tests.helpers.relative_error import relative_error

WIDTH = 8

PLAIN = Vocabulary((60,), WIDTH, None, 'dot', True, jnp.float32)
FORMS = {
  'plain': PLAIN,
  'low-rank': dataclasses.replace(PLAIN, code_dim=5),
  'low-rank-squared': dataclasses.replace(
    PLAIN, code_dim=5, distance='squared'
  ),
  'digits': dataclasses.replace(PLAIN, sizes=(5, 4, 3)),
  'digits-low-rank-squared': dataclasses.replace(
    PLAIN, sizes=(5, 4, 3), code_dim=6, distance='squared'
  ),
  'digits-apart': dataclasses.replace(
    PLAIN, sizes=(10, 6), code_dim=6, residual_conditioning=False
  ),
  'codebooks': dataclasses.replace(
    PLAIN, sizes=(5, 4, 3), code_dim=6, has_tables=False
  ),
}
forms = pytest.mark.parametrize(
  'form',
  [
    pytest.param(
      form,
      id=name,
      # The next form has a narrow table, others are scored by products.
      marks=[pytest.mark.nightly] if name == 'low-rank' else [],
    )
    for name, form in FORMS.items()
  ],
)
# All ids: ordinary ones, BOS, EOS, PAD.
IDS = jnp.arange(63)
BOS, EOS, PAD = (60 + x for x in Special)

SHAPES = {
  'plain': {'embed/embedding': (63, 8), 'head/kernel': (8, 63)},
  'low-rank': {
    'stage_0/embedding': (60, 5),
    'special/embedding': (3, 5),
    'kernel': (5, 8),
    'log_scale': (),
  },
  'digits': {
    'stage_0/embedding': (5, 8),
    'stage_1/embedding': (4, 8),
    'stage_2/embedding': (3, 8),
    'special/embedding': (3, 8),
    'log_scale': (),
  },
  'codebooks': {
    'special/embedding': (3, 6),
    'kernel': (6, 8),
    'log_scale': (),
  },
}


def codebooks_of(form, seed=5):
  if form.has_tables:
    return None
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(rng.normal(size=(size, form.code_dim)), jnp.float32)
    for size in form.sizes
  )


def initial(form):
  # A copy, whose dictionaries tests may change.
  return jax.tree.map(lambda x: x, initialized(form))


@functools.cache
def initialized(form):
  def everything(module, ids, h, codebooks):
    module.embed(ids, codebooks)
    return module.predict(h, ids, codebooks)

  zeros = jnp.zeros((1,), jnp.int32)
  return jit(form.init, method=everything)(
    jax.random.key(0), zeros, jnp.zeros((1, form.d_model)), codebooks_of(form)
  )['params']


def strong(params):
  """Returns parameters whose predictions are far from uniform."""
  params = jax.tree.map(lambda x: x, params)
  if 'head' in params:
    params['head']['kernel'] *= 30
  else:
    params['log_scale'] += 2.0
  return params


def states(count, seed=0, width=WIDTH):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(count, width)), jnp.float32)


@functools.cache
def jitted(form, method):
  return jax.jit(functools.partial(form.apply, method=method))


def apply(form, params, method, *args):
  return jitted(form, method)(
    {'params': params}, *args, codebooks=codebooks_of(form)
  )


def nats(form, params, h, ids):
  predicted = apply(form, params, 'predict', h, ids)
  return jitted(form, 'nats')({'params': params}, predicted, ids)


def digits_of(form, number):
  """Returns the digits of an id; a special has its row of the first table."""
  if number >= 60:
    return [form.sizes[0] + number - 60]
  digits = []
  for size in form.sizes:
    digits.append(number % size)
    number //= size
  return digits


def tables_of(form, params):
  if not form.is_tied:
    return (params['head']['kernel'].T,)
  tables = codebooks_of(form) or tuple(
    params[f'stage_{m}']['embedding'] for m in range(len(form.sizes))
  )
  first = jnp.concatenate([tables[0], params['special']['embedding']])
  return (first, *tables[1:])


def digit_logits(form, params, frozen, h, digits):
  """Computes logits of the digits of one id, given the true ones before."""
  tables = tables_of(form, params)
  if not form.is_tied:
    return [tables[0] @ h]
  rest = h if form.code_dim is None else params['kernel'] @ h
  scale = jnp.exp(params['log_scale']) / form.d_model
  scale /= 1 if form.distance == 'dot' else 2
  found = []
  for stage, table in enumerate(tables):
    if form.distance == 'dot':
      score = table @ rest
    else:
      score = -jnp.sum((rest - table) ** 2, axis=1)
    found.append(score * scale)
    if form.residual_conditioning and stage < len(digits):
      # No gradient passes through the entries that are subtracted.
      rest = rest - tables_of(form, frozen)[stage][digits[stage]]
  return found


def plain_nats(form, params, frozen, h, number):
  digits = digits_of(form, number)
  scores = digit_logits(form, params, frozen, h, digits)
  return -sum(
    jax.nn.log_softmax(score)[digit]
    for score, digit in zip(scores, digits, strict=False)
  )


@pytest.mark.parametrize('name', SHAPES)
def test_parameters_by_path_and_shape(name):
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(initial(FORMS[name]))
  }
  assert shapes == SHAPES[name]


@forms
def test_probabilities_of_all_ids_add_up_to_one(form):
  h = jnp.repeat(states(1), len(IDS), axis=0)
  cost = nats(form, strong(initial(form)), h, IDS)
  assert float(jnp.std(cost)) > 0.1
  np.testing.assert_allclose(jnp.sum(jnp.exp(-cost)), 1.0, rtol=1e-5)


@forms
def test_nats_and_best_match_a_plain_computation(form):
  params, h = strong(initial(form)), states(len(IDS))
  cost = nats(form, params, h, IDS)
  want = [plain_nats(form, params, params, h[i], i) for i in range(len(IDS))]
  np.testing.assert_allclose(cost, want, rtol=2e-5, atol=2e-5)
  best = apply(form, params, 'predict', h, IDS).best
  for number in range(len(IDS)):
    digits = digits_of(form, number)
    scores = digit_logits(form, params, params, h[number], digits)
    guess = [int(jnp.argmax(score)) for score in scores[: len(digits)]]
    # Right exactly where each digit is, given the true ones before it.
    assert (int(best[number]) == number) == (guess == digits)


@forms
def test_greedy_ids_go_on_from_their_own_digits_and_are_no_bos_or_pad(form):
  params, h = strong(initial(form)), states(200, seed=1)
  got = np.asarray(apply(form, params, 'predict', h).best)
  for number in range(0, 200, 10):
    digits = []
    for stage in range(len(form.sizes)):
      scores = digit_logits(form, params, params, h[number], digits)[stage]
      if stage == 0:
        barred = jnp.array([form.sizes[0] + x for x in (Special.BOS, 2)])
        scores = scores.at[barred].set(-jnp.inf)
      digits.append(int(jnp.argmax(scores)))
      if digits[0] >= form.sizes[0]:
        break
    assert digits_of(form, int(got[number])) == digits
  assert not np.isin(got, [BOS, PAD]).any()
  assert len(set(got)) > 5


def test_a_greedy_id_can_be_the_end():
  for form in (FORMS['plain'], FORMS['digits']):
    params = initial(form)
    h = jnp.ones((1, WIDTH))
    if form.is_tied:
      params['special']['embedding'] = jnp.full((3, WIDTH), 9.0)
    else:
      kernel = params['head']['kernel']
      params['head']['kernel'] = kernel.at[:, 60:].set(9.0)
    assert int(apply(form, params, 'predict', h).best[0]) == EOS


@forms
def test_an_id_is_embedded_as_the_sum_of_its_entries(form):
  params = initial(form)
  got = apply(form, params, 'embed', IDS)
  if form.is_tied:
    tables = tables_of(form, params)
    want = jnp.stack(
      [
        sum(t[d] for t, d in zip(tables, digits_of(form, i), strict=False))
        for i in range(len(IDS))
      ]
    )
    if form.code_dim is not None:
      want = want @ params['kernel']
  else:
    want = params['embed']['embedding']
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert len(np.unique(np.round(got, 5), axis=0)) == len(IDS)


@pytest.mark.parametrize(
  ('name', 'width'),
  [
    # Each form at one width, each kind of table at the wider one.
    pytest.param(
      name,
      width,
      marks=[pytest.mark.nightly]
      * ((width == 512) != (name in ('plain', 'digits', 'codebooks'))),
    )
    for name in FORMS
    for width in (512, 32)
  ],
)
def test_the_first_loss_is_near_that_of_a_uniform_guess(name, width):
  """The state is the embedding of the id before, at any width."""
  form = dataclasses.replace(FORMS[name], d_model=width)
  params = initial(form)
  ids = jnp.asarray(np.random.default_rng(0).permutation(60))
  h = apply(form, params, 'embed', jnp.roll(ids, 1))
  h /= jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True))
  uniform = np.log(form.sizes[0] + 3) + np.log(form.sizes[1:]).sum()
  assert abs(float(jnp.mean(nats(form, params, h, ids))) - uniform) < 0.25


@forms
def test_gradients_of_nats(form):
  """They are those of a plain computation, which differences confirm."""
  params = strong(initial(form))
  h, ids = states(4), jnp.array([7, 33, 59, EOS])

  def ours(params, h):
    return jnp.sum(nats(form, params, h, ids))

  @jax.jit
  def plain(moving, h):
    return sum(
      plain_nats(form, moving, params, h[i], number)
      for i, number in enumerate(np.asarray(ids).tolist())
    )

  check_grads(plain, (params, h), order=1, modes=['rev'], atol=2e-2, rtol=2e-2)
  got = jax.jit(jax.grad(ours, argnums=(0, 1)))(params, h)
  want = jax.grad(plain, argnums=(0, 1))(params, h)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    got,
    want,
  )


@forms
def test_gradients_of_embeddings(form):
  target = states(len(IDS), seed=2)

  def loss(params):
    return jnp.sum(target * apply(form, params, 'embed', IDS))

  params = initial(form)
  check_grads(loss, (params,), order=1, modes=['rev'], atol=2e-2, rtol=2e-2)


def test_codebooks_that_are_given_get_no_gradient():
  form = FORMS['codebooks']
  params, h, ids = initial(form), states(3), jnp.array([7, 33, EOS])

  def loss(params, codebooks):
    out = form.apply(
      {'params': params}, h, ids, codebooks=codebooks, method='predict'
    )
    x = form.apply({'params': params}, ids, codebooks, method='embed')
    cost = form.apply({'params': params}, out, ids, method='nats')
    return jnp.sum(cost) + jnp.sum(x * h)

  of_params, of_codebooks = jit(jax.grad(loss, argnums=(0, 1)))(
    params, codebooks_of(form)
  )
  for grad in of_codebooks:
    assert not np.any(grad)
  for grad in jax.tree.leaves(of_params):
    assert np.any(grad)


def test_bfloat16_computes_float32_logits():
  for name in ('plain', 'low-rank', 'digits'):
    form = dataclasses.replace(FORMS[name], dtype=jnp.bfloat16)
    params, h = strong(initial(form)), states(9).astype(jnp.bfloat16)
    predicted = apply(form, params, 'predict', h, IDS[:9])
    exact = apply(FORMS[name], params, 'predict', jnp.float32(h), IDS[:9])
    for got, want in zip(predicted.logits, exact.logits, strict=True):
      assert got.dtype == jnp.float32
      assert relative_error(got, want) < 0.006
    embedded = apply(form, params, 'embed', IDS)
    assert embedded.dtype == jnp.bfloat16
    want = apply(FORMS[name], params, 'embed', IDS)
    assert relative_error(embedded, want) < 0.006
