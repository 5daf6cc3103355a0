"""The main job: one level and a top LM on text that every Python carries.

    python train.py

Hardware: 2 CPU cores, 4 minutes. Parameters: 2,384,896. Expect: 22.8 MB
of state, 18.5 GFLOP a step. On held-out documents it prints what the bytes cost
without codes (the entropy model) and with codes paid for (the total), in
bits/byte, and how many bytes come back from codes alone.

This file documents every setting of a run; the other files of `configs/` edit
its values. Each setting is described by the comment above it, with its unit and
the values that are allowed. Lengths and windows are in ids (bytes at the first
level, codes above), intervals in optimizer steps, entropies in bits. Integers
are at most 2^31 - 1, rates and weights at most 1e9; sizes that no device has
room for, such as a width above 65536, are refused as well.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_attention() -> ml_collections.ConfigDict:
  """Attention of a stack."""
  return ml_collections.ConfigDict(
    dict(
      # Form of attention. 'regular': each head has its own keys and values.
      # 'mla' (multi-head latent attention): the keys and values of all heads
      # come from one narrow latent vector an id, which is all a cache holds
      # besides the keys.
      form='regular',
      # Width of the latent vector; a positive number with 'mla', else None.
      kv_dim=placeholder(int),
      # Width of the compressed query of a head; a positive number with 'mla',
      # else None.
      query_dim=placeholder(int),
      # Width of the keys and queries that scores are computed from; a positive
      # even number with 'mla', else None.
      retrieval_dim=placeholder(int),
    )
  )


def get_level() -> ml_collections.ConfigDict:
  """One level over bytes."""
  level = ml_collections.ConfigDict()
  # Width of the vectors of the level; a multiple of the heads of its stacks.
  level.d_model = 96

  # The entropy model: a causal transformer that predicts the next id. Segments
  # begin where its entropy says so.
  level.entropy_model = ml_collections.ConfigDict(
    dict(
      # Number of blocks; 1 or more.
      num_layers=2,
      # Attention heads; a divisor of d_model. With 'regular' attention
      # d_model / num_heads is even.
      num_heads=3,
      # Ids before itself that an id attends to; 1 or more, None for all ids of
      # its document.
      window=32,
      # Hidden width of the feed-forward layers; 1 or more.
      ffn_dim=288,
    )
  )
  level.entropy_model.attention = get_attention()
  level.entropy_heads = ml_collections.ConfigDict(
    dict(
      # True computes logits as products with the embeddings of the ids. False
      # gives them a matrix of their own; above the first level only True is
      # allowed.
      tie_to_embedding=False,
      # Components of a Gaussian mixture that predicts the embedding of the next
      # id; 0 for no such head.
      gaussian_components=0,
      # Blocks between the stack and the mixture; 0 or more, 0 with no mixture.
      gaussian_layers=0,
      # True keeps the gradient of the mixture's loss out of the stack.
      gaussian_detach=False,
      # Least log variance of a component, in nats; -40 to 40, and below the
      # largest.
      gaussian_log_variance_min=-8.0,
      # Largest log variance of a component, in nats; -40 to 40.
      gaussian_log_variance_max=8.0,
      # Prediction whose entropy the segmentation reads: 'logit' (bits) or
      # 'gaussian' (bits per dimension), which needs a mixture and does not go
      # with the rule 'equal_information'.
      source='logit',
      # Temperature of that prediction; 1e-6 or more. It divides logits, and
      # scales the standard deviations of a mixture.
      temperature=1.0,
      # Number of most likely ids that are kept before the entropy is taken; 0
      # keeps all, and is the only value allowed with source 'gaussian'.
      top_k=0,
      # Total probability of the most likely ids that are kept before the
      # entropy is taken; above 0, at most 1. 1 keeps all, and is the only value
      # allowed with source 'gaussian'.
      top_p=1.0,
    )
  )
  level.segmentation = ml_collections.ConfigDict(
    dict(
      # Rule by which an id opens a segment. It is decided before the id is
      # seen.
      # 'entropy_delta': the entropy exceeds that of the id before by more than
      # the threshold, in bits.
      # 'entropy_threshold': the entropy exceeds the threshold, in bits.
      # 'equal_information': the surprisals of the segment so far and the
      # entropy add up to more than the threshold, in bits.
      # 'stride': a segment has `threshold` ids, 1 or more; a fraction is met on
      # average.
      # 'space': a word begins, as in SpaceByte; first level of bytes only. A
      # threshold above 0 merges words until that many ids beyond min_length are
      # in the segment; one below 0 cuts long words that many ids before
      # max_length.
      rule='space',
      # Threshold of the rule, in the unit that the rule names; -1e5 to 1e5, and
      # above 0 with 'equal_information'. The calibration starts from it.
      threshold=0.0,
      # Mean ids a segment that the calibration moves the threshold towards;
      # at least capacity_length and min_length, at most max_length. None keeps
      # the threshold.
      target_length=placeholder(float),
      # Change of the threshold in a step, per relative error of the mean
      # length; above 0, at most 1. Its unit: bits with the entropy rules, the
      # threshold itself with 'equal_information' and 'stride', 4 target lengths
      # with 'space'.
      calibration_step=0.05,
      # Least ids of a segment, except for the last of a document; 1 or more.
      min_length=1,
      # Most ids of a segment; min_length or more.
      max_length=16,
      # Mean ids a segment that a row has slots for; 1 to max_length. A row of n
      # ids has ceil(n / capacity_length) slots.
      capacity_length=3.0,
    )
  )
  level.segmentation.target_length = 4.5

  # The encoder: a sliding-window transformer, whose states are pooled into one
  # or more vectors a segment. Its settings are those of `entropy_model`.
  level.encoder = ml_collections.ConfigDict(
    dict(num_layers=2, num_heads=3, window=32, ffn_dim=288)
  )
  level.encoder.attention = get_attention()
  # Ids that the encoder sees at an id. 'document': earlier ones of its
  # document, in its window. 'segment': earlier ones of its segment, so that a
  # code is a function of its segment alone.
  level.encoder_context = 'document'
  level.pooling = ml_collections.ConfigDict(
    dict(
      # Heads of the attention of learned queries to the ids of a segment; a
      # divisor of d_model.
      num_heads=3,
      # Learned queries; 1 or more. Each makes one code of every segment.
      num_queries=1,
    )
  )
  level.quantizer = ml_collections.ConfigDict(
    dict(
      # Kind of quantizer. 'vq': the nearest entry of a codebook. 'rvq': `depth`
      # codebooks, each for the residual that the ones before it leave. 'fsq':
      # no codebook; every dimension is rounded to one of a few values.
      # 'dictionary': each of the commonest segments of the training text has a
      # code, from which it comes back exactly, and all others share the last
      # code. They are counted before the first step. First level only, with one
      # code a segment, and with rule 'stride' or 'space' or a frozen entropy
      # model; not with a top LM of mode 'continuous' or with `expand`.
      kind='vq',
      # Width of codebook entries; 1 or more, None for d_model. 'fsq' ignores
      # it: its width is the number of `levels`.
      code_dim=placeholder(int),
      # Entries of a codebook; 1 or more, 2 or more with 'dictionary'.
      codebook_size=1024,
      # Codebooks of 'rvq'; 1 to 4.
      depth=2,
      # Values of each dimension of 'fsq', each 2 or more. Their product is the
      # number of codes.
      levels=(8, 5, 5, 5),
      # Learning of codebook entries. 'ema': entries are moving averages of the
      # vectors they stand for. 'gradient': entries are parameters that the loss
      # term `codebook` moves, and no entry is replaced; not with 'fsq'.
      # Entries of 'dictionary' are embeddings in either case.
      codebook='ema',
      # True compares directions only: vectors and entries are normalised; not
      # with 'fsq'.
      cosine=False,
      # Temperature, in squared distances, of the soft assignment of segments
      # to entries in the loss term `rate`; above 0, None for no such term. It
      # needs a prediction of the codes: a discrete top LM, or a level above.
      # 'dictionary' ignores it.
      rate_temperature=placeholder(float),
      # Initial entries. 'normal': random entries, which vectors of the first
      # step replace. 'kmeans': the k-means centers of the vectors of the first
      # step; only with codebook 'ema', not with 'fsq'.
      start='normal',
      # Decay of the moving averages in a step; 0 <= value < 1.
      decay=0.97,
      # Steps between two replacements of dead entries; 1 or more.
      reset_interval_steps=10,
      # Steps without a use after which an entry is dead; 1 or more.
      reset_after_steps=40,
      # Use, as a fraction of the mean use of an entry, below which an entry is
      # dead, too; 0 <= value < 1.
      reset_usage=0.0,
      # Entries of the first codebook that are never chosen, as numbers from 0;
      # not with 'fsq'.
      forbidden=(),
      # Entries of the first codebook that are never replaced, as numbers from
      # 0; only with codebook 'ema', not with 'fsq'.
      protected=(),
    )
  )
  # The original has 64; at this size 32 measured better, see docs/results.md.
  level.quantizer.code_dim = 32

  # The expander: a causal transformer that decodes ids from codes. Settings
  # without a comment are as those of `entropy_model`.
  level.expander = ml_collections.ConfigDict(
    dict(
      num_layers=2,
      num_heads=3,
      ffn_dim=288,
      # Earlier ids that an id attends to. 'segment': those of its own segment,
      # so that all segments decode in parallel. 'window': the last `window`
      # ids. 'full': all ids of its document.
      context='segment',
      # Ids before itself that an id attends to with context 'window'; 1 or
      # more.
      window=32,
      # Segments before its own whose codes an id attends to; 0 or more.
      lookback=0,
      # Source of the ends of segments when codes are decoded. 'head': a head of
      # the expander, whose bits count. 'entropy': the entropy model of the
      # first level, run over the ids decoded so far; it costs no bits, but ids
      # decode one after the other.
      ends='head',
      # Prediction that the expander builds on. 'none': it starts anew.
      # 'entropy_model': it reads the states of the entropy model, and its
      # logits start as those of the entropy model; first level only, with ends
      # 'entropy'.
      base='none',
      # State added to the codes that ids attend to, by a map that starts at 0.
      # 'top_lm': the one from which the top LM predicts the code; last level
      # only. Codes then decode one after the other.
      conditioning='none',
      # Fraction of the ids fed in training that are hidden, so that codes must
      # carry the text; 0 <= value < 1.
      byte_dropout=0.0,
      # Width of a space in which ids are embedded and compared, by one table
      # and one matrix in either direction; 1 or more. None for a table of width
      # d_model and a separate output matrix. Above the first level: None, or
      # the width of the codebooks below.
      code_dim=placeholder(int),
      # Comparison of states with the entries of that table: 'dot' product, or
      # 'squared', the negative squared distance, which needs a code_dim.
      distance='dot',
      # True compares a later digit of a code with the residual that the digits
      # before it leave of the state. Bytes have one digit.
      residual_conditioning=True,
      # Attention of ids to ids and of ids to codes.
      attention=get_attention(),
    )
  )

  # True takes the level from the run `load_base_from` and keeps its parameters
  # and statistics as they are; at an upper level only if those below are
  # frozen, too.
  level.freeze = False
  # True keeps the entropy model as it is loaded; first level only.
  level.freeze_entropy_model = False
  # Directory of a run whose entropy model this level starts from; it learns on
  # unless it is frozen. First level only; None for no such run.
  level.load_entropy_model_from = placeholder(str)
  return level


def get_upper_level() -> ml_collections.ConfigDict:
  """One level over the codes of another; lengths are in codes."""
  level = get_level()
  # Codes are predicted by comparison with the codebooks that embed them.
  level.entropy_heads.tie_to_embedding = True
  # Codes have no words.
  level.segmentation.rule = 'entropy_delta'
  level.segmentation.target_length = 3.0
  level.segmentation.max_length = 8
  # A row of this level has all code slots of the level below, some of which
  # stay empty.
  level.segmentation.capacity_length = 2.0
  return level


def get_top_lm() -> ml_collections.ConfigDict:
  """A language model over top codes: `config.model.top_lm = get_top_lm()`."""
  top_lm = ml_collections.ConfigDict(
    dict(
      # Prediction of the next code. 'discrete': cross-entropy of its digits.
      # 'continuous': squared error of its vector.
      mode='discrete',
      # Vectors that it reads. 'codes': those of the codes so far. 'segments':
      # those of the segments so far before quantization, with a gradient to the
      # encoder; to go on after a code, its segment has to be decoded.
      inputs='codes',
      # Prediction that the top LM builds on. 'none': it starts anew.
      # 'entropy_model': it reads the state from which the entropy model
      # predicts the first id of a segment, and the logits of the codes of a
      # dictionary start as those of the first ids of their segments; one level
      # only, with ends 'entropy'.
      base='none',
      # True trains the expander of the last level on the codes that the top LM
      # predicts as well as on the true ones.
      expand=False,
      # Width of the vectors of the top LM; a multiple of its heads.
      d_model=96,
      # The transformer, with the settings of `entropy_model`. A window is in
      # codes; None attends to all codes of a document.
      stack=dict(
        num_layers=2,
        num_heads=3,
        window=placeholder(int),
        ffn_dim=288,
      ),
    )
  )
  top_lm.stack.attention = get_attention()
  return top_lm


def get_settings() -> ml_collections.ConfigDict:
  """Every setting of a run, with the values that other configs start from."""
  config = ml_collections.ConfigDict()
  # Seed of every random choice; 0 or more.
  config.seed = 0
  # Parts that learn. 'all': every part that is not frozen. 'entropy_model':
  # the entropy model of a single level, for other runs to load. 'top_lm': the
  # top LM alone, from codes of frozen levels; `data.train` is then a directory
  # that `abstractinator encode --data` wrote.
  config.objective = 'all'
  # Directory of the run that frozen levels come from; None without such levels.
  config.load_base_from = placeholder(str)

  # Passes over the training data; above 0, fractions included.
  config.num_epochs = 1.0
  # Most optimizer steps of the run; 1 or more, None for no limit.
  config.max_steps = placeholder(int)
  config.max_steps = 700
  # Steps between two lines of the log; 1 or more.
  config.log_interval = 20
  # Steps between two evaluations; 1 or more.
  config.eval_interval = 250
  # Held-out batches of an evaluation during training; 1 or more. Rows come in
  # an order that the seed shuffles.
  config.eval_batches = 16
  # Held-out batches of the evaluation at the end; 1 or more, None for all.
  config.final_eval_batches = placeholder(int)
  config.final_eval_batches = 100
  # Steps between two checkpoints; a multiple of log_interval.
  config.checkpoint_interval = 100
  # Checkpoints that are kept, the latest ones; 1 or more.
  config.max_to_keep = 2
  # Parts of a batch that a step processes one after the other; a divisor of
  # data.batch_size. More parts take less memory and make the same step, but for
  # the loss term `rate`, whose mean assignment is that of a part.
  config.microbatches = 1

  config.data = ml_collections.ConfigDict(
    dict(
      # Training documents: comma-separated globs, and data sets 'hf:NAME';
      # empty for the sources of Python's standard library.
      # '0.7:GLOBS;0.3:GLOBS' mixes corpora by weight. A comma or semicolon in a
      # path is written '?'.
      train='',
      # Held-out files, as globs; empty to hold out a fraction of the training
      # documents.
      validation='',
      # Fraction of the training documents that is held out; 0 <= value < 1, and
      # above 0 without validation files. It is large here because documents
      # differ, and results on a few would not hold for others.
      validation_fraction=0.2,
      # Number of ordinary ids; 256 for bytes. Other ids come from .npy files.
      vocab_size=256,
      # True packs as many documents into a row as fit. False begins a row with
      # each document and pads it.
      packing=True,
      # Ids of a row; 1 or more.
      sequence_length=256,
      # Rows of a batch, over all devices and microbatches; 1 or more.
      batch_size=16,
      # Threads that read batches ahead; 0 reads in the main thread.
      read_threads=2,
      # Batches that the threads keep ready; 1 or more.
      prefetch_batches=8,
    )
  )

  config.model = ml_collections.ConfigDict(
    dict(
      # Levels, bottom first; the ids of a level are the codes of the one below.
      levels=(get_level(),),
      # Language model over the codes of the last level, see `get_top_lm`; None
      # for none.
      top_lm=placeholder(ml_collections.ConfigDict),
      # Type of computations: 'float32' or 'bfloat16'. Parameters and statistics
      # are always float32.
      dtype='float32',
      # Implementation of each op; 'auto' chooses by the platform. The tables of
      # docs/kernels.md say which platform supports which.
      implementation=dict(
        # 'auto', 'reference', 'xla', 'pallas', 'pallas_interpret', 'cudnn' or
        # 'mosaic_gpu' (for Hopper GPUs, not yet measured).
        attention='auto',
        # 'auto', 'reference', 'xla', 'pallas' (equal bits in every run, on GPU
        # too) or 'pallas_interpret'.
        segment_pool='auto',
        # 'auto', 'reference', 'gather' or 'halo'.
        segment_cross='auto',
        # 'auto', 'reference' or 'xla'.
        nearest_code='auto',
        # Intermediate results that blocks keep for the backward pass. 'none':
        # all of them. 'dots': matrix products. 'blocks': the inputs of blocks.
        # The others are computed a second time.
        remat='none',
        # True compiles the blocks of a stack once, as a loop.
        scan_layers=False,
      ),
    )
  )

  config.loss = ml_collections.ConfigDict(
    dict(
      # Weights of the terms of the objective, 0 or more. All terms are per id
      # of the first level. A term that a model does not have is 0. `expander`
      # and `end` are averaged over levels, the others summed.
      #
      # Cross-entropy of the entropy model, in nats.
      entropy_model=1.0,
      # Negative log density of the Gaussian head, in nats per dimension; above
      # 0 with source 'gaussian', 0 without such a head.
      gaussian=0.0,
      # Cross-entropy of the expander, in nats.
      expander=1.0,
      # Binary cross-entropy of the ends of segments, in nats.
      end=1.0,
      # Squared distance of segments to their codes; it moves the segments.
      commitment=0.25,
      # Cost of the codes under what predicts them, expected under the soft
      # assignment of segments to entries, less the entropy of the mean
      # assignment, in nats; it moves the segments. See `rate_temperature`.
      rate=0.3,
      # Steps in which the weight `rate` rises from 0; 0 or more.
      rate_warmup_steps=100,
      # Squared distance of segments to their codes; it moves the entries of a
      # codebook that learns by gradient, and is then above 0.
      codebook=1.0,
      # Cross-entropy of the codes that a discrete top LM predicts, in nats.
      top_lm_code=1.0,
      # Squared error of the vectors that a continuous top LM predicts.
      top_lm_vector=1.0,
      # Binary cross-entropy of the ends of documents at the top LM, in nats.
      top_lm_end=1.0,
      # Cross-entropy of the expander from predicted codes, in nats; see
      # `top_lm.expand`.
      top_lm_expander=0.02,
      # Steps after which the next level starts to learn, and the top LM after
      # the last level; 0 trains all from the start, and no level may be frozen
      # otherwise. In a run that ends before the last one starts, all get equal
      # parts of it, and it says so.
      curriculum_steps=0,
      # True stops a level when the next one starts; False while
      # curriculum_steps is 0.
      curriculum_stops=False,
    )
  )

  config.optimizer = ml_collections.ConfigDict(
    dict(
      # 'adamw', or 'muon': orthogonal updates of the matrices of blocks, AdamW
      # for all other parameters.
      kind='adamw',
      # Learning rate after a linear warm-up. 'cosine': it falls along a cosine
      # until the end of the run. 'warmup_stable_decay': it stays, then falls
      # linearly in the last `decay_fraction` of the steps. 'constant': it
      # stays.
      schedule='cosine',
      # Largest learning rate; above 0.
      learning_rate=3e-3,
      # Learning rate at the end of the run, as a fraction of the largest; 0 to
      # 1. 'constant' ignores it.
      final_fraction=0.1,
      # Steps of the warm-up; 0 or more. A run that it does not fit into warms
      # up for half of its steps, and says so.
      warmup_steps=50,
      # Fraction of the steps in which 'warmup_stable_decay' falls; 0 to 1.
      decay_fraction=0.2,
      # Factors on the learning rate of each part, above 0, for all levels.
      # `compressor` is all of a level that is neither of the other two.
      relative_rates=dict(
        entropy_model=1.0, compressor=1.0, expander=1.0, top_lm=1.0
      ),
      # Decoupled weight decay, times the learning rate; 0 or more. It applies
      # to kernels, not to embeddings, scales and biases.
      weight_decay=0.01,
      # Decay of the first moment of a gradient in a step; 0 <= value < 1.
      beta1=0.9,
      # Decay of the second moment of a gradient in a step; 0 <= value < 1.
      beta2=0.98,
      # Largest global norm of the gradients; above 0.
      clip_norm=1.0,
      # Decay in a step of a moving average of the parameters, which evaluation
      # and the commands use; 0 <= value < 1, and 0 for no average.
      ema_decay=0.0,
    )
  )

  # Devices along each axis of the mesh; a positive number, or -1 on one axis
  # for all devices that remain. `data` shares out the rows of a batch, `fsdp`
  # rows and parameters, `tensor` heads and hidden units.
  config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1, tensor=1))

  config.health = ml_collections.ConfigDict(
    dict(
      # True reports in the log, TensorBoard and `health/*` of metrics.jsonl
      # what may be wrong with a run, see `training/health.py`.
      alarms=True,
      # Steps before the first alarm; 0 or more. For a level that starts later
      # by `loss.curriculum_steps` they count from its start.
      after_steps=100,
    )
  )
  return config


def get_config() -> ml_collections.ConfigDict:
  """The main job: every part of the pyramid, codes that pay for themselves."""
  config = get_settings()
  config.max_steps = 1000
  config.data.batch_size = 8
  config.optimizer.kind = 'muon'
  config.optimizer.learning_rate = 1e-2

  (level,) = config.model.levels
  # Most of the work predicts bytes; codes add little to it.
  level.entropy_model.num_layers = 4
  level.entropy_model.window = 64
  level.encoder.num_layers = 1
  # The commonest segments: no codes that were learned in as many steps say as
  # much at this price, see docs/results.md.
  level.quantizer.kind = 'dictionary'
  level.quantizer.codebook_size = 4096
  level.quantizer.cosine = True
  level.expander.context = 'window'
  level.expander.window = 64
  level.expander.ends = 'entropy'
  level.expander.base = 'entropy_model'
  level.expander.conditioning = 'top_lm'

  top_lm = get_top_lm()
  top_lm.inputs = 'segments'
  top_lm.base = 'entropy_model'
  top_lm.d_model = 128
  top_lm.stack.num_layers = 3
  top_lm.stack.num_heads = 4
  top_lm.stack.ffn_dim = 384
  top_lm.stack.window = 128
  config.model.top_lm = top_lm
  return config
