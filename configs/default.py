"""The main job: one level on text that every Python installation carries.

    python train.py

Hardware: 2 CPU cores, under 6 minutes. Parameters: 944,832. Expect: 12.0 MB of
state, 22.2 GFLOP a step. On held-out documents the entropy model ends near 2.2
bits/byte and the expander near 1.5, with 4.5 bytes to a segment and every code
in use. Every setting of a run stands here once; the other files edit it.
Lengths are in ids (bytes at the first level), entropies in bits, intervals in
optimizer steps.
"""

import ml_collections


def get_attention() -> ml_collections.ConfigDict:
  """How a stack makes its queries, keys and values."""
  return ml_collections.ConfigDict(
    dict(
      # 'regular', or 'mla': keys and values out of one narrow latent vector an
      # id; a cache holds it, for all heads, in the place of values.
      form='regular',
      # Of 'mla' only: width of that latent, of the compressed query of a head,
      # and of the space scores are taken in, which is even.
      kv_dim=ml_collections.config_dict.placeholder(int),
      query_dim=ml_collections.config_dict.placeholder(int),
      retrieval_dim=ml_collections.config_dict.placeholder(int),
    )
  )


def get_level() -> ml_collections.ConfigDict:
  """One level over bytes."""
  level = ml_collections.ConfigDict()
  level.d_model = 96

  # Causal transformer over ids; its entropy says where segments begin.
  level.entropy_model = ml_collections.ConfigDict(
    # A window of w sees w previous ids and the id itself; None sees all.
    dict(num_layers=2, num_heads=3, window=32, ffn_dim=288)
  )
  level.entropy_model.attention = get_attention()
  level.entropy_heads = ml_collections.ConfigDict(
    dict(
      # Whether logits are products with the embeddings of the ids.
      tie_to_embedding=False,
      # Of the mixture that predicts the next id's embedding; 0 for none.
      gaussian_components=0,
      # Layers of its own between the stack and the mixture.
      gaussian_layers=0,
      # Whether its loss leaves the stack alone.
      gaussian_detach=False,
      # What log variances are clipped to.
      gaussian_log_variance_min=-8.0,
      gaussian_log_variance_max=8.0,
      # Whose entropy cuts segments: 'logit', in bits, or 'gaussian', in bits
      # per dimension; and how that distribution is filtered before, 0 and 1
      # for not at all.
      source='logit',
      temperature=1.0,
      top_k=0,
      top_p=1.0,
    )
  )
  level.segmentation = ml_collections.ConfigDict(
    dict(
      # Where an id opens a segment, decided before it is seen.
      # 'entropy_delta': its entropy is above that of the id before by more than
      # the threshold. 'entropy_threshold': it is above the threshold.
      # 'equal_information': the bits of the segment so far and the entropy are
      # above it. 'stride': after as many ids. 'space': at words; a threshold
      # above 0 merges the short ones, one below 0 cuts the long ones, by as
      # many ids.
      rule='space',
      # Start of the calibration, or the threshold itself without a target.
      threshold=0.0,
      # Mean ids per segment to calibrate to; None keeps the threshold.
      target_length=ml_collections.config_dict.placeholder(float),
      # How far a step moves the threshold, per relative error: bits with the
      # entropy rules, a part of it with 'equal_information' and 'stride', parts
      # of 4 target lengths with 'space'.
      calibration_step=0.05,
      min_length=1,
      max_length=16,
      # Slots of a row are sized for segments of this mean length.
      capacity_length=3.0,
    )
  )
  level.segmentation.target_length = 4.5

  # Sliding-window transformer whose states are pooled per segment.
  level.encoder = ml_collections.ConfigDict(
    dict(num_layers=2, num_heads=3, window=32, ffn_dim=288)
  )
  level.encoder.attention = get_attention()
  level.pooling = ml_collections.ConfigDict(
    # Each learned query makes one vector, and so one code, of a segment.
    dict(num_heads=3, num_queries=1)
  )
  level.quantizer = ml_collections.ConfigDict(
    dict(
      # 'vq': the nearest entry of a codebook. 'rvq': `depth` codebooks, each
      # for what the ones before it leave. 'fsq': no codebook, one number per
      # dimension, rounded to one of its `levels`.
      kind='vq',
      # Width of the space codes live in; None for d_model. 'fsq' has one
      # dimension a level.
      code_dim=ml_collections.config_dict.placeholder(int),
      # Entries of a codebook.
      codebook_size=1024,
      # Stages of 'rvq', 1 to 4.
      depth=2,
      # Of 'fsq'; their product is the number of codes.
      levels=(8, 5, 5, 5),
      # 'ema': entries are moving averages of their vectors. 'gradient': they
      # are parameters, moved by the loss term `codebook`; never replaced.
      codebook='ema',
      # Whether only the direction of a vector counts.
      cosine=False,
      # 'normal': random entries that vectors of the first step replace.
      # 'kmeans': centers of the vectors of the first step.
      start='normal',
      decay=0.97,
      # Every so many steps, codes unused for so many steps are replaced.
      reset_interval_steps=10,
      reset_after_steps=40,
      # So are codes used less than this fraction of the mean.
      reset_usage=0.0,
      # Entries of the first codebook that are never chosen.
      forbidden=(),
      # Entries of the first codebook that are never replaced.
      protected=(),
    )
  )
  # The original has 64; at this size 32 measured better, see docs/results.md.
  level.quantizer.code_dim = 32

  level.expander = ml_collections.ConfigDict(
    dict(
      num_layers=2,
      num_heads=3,
      ffn_dim=288,
      # 'segment': an id sees the ids of its own segment, so that all segments
      # decode at once. 'window': the last `window` ids. 'full': all ids of its
      # document.
      context='segment',
      window=32,
      # How many codes before its own an id attends to.
      lookback=0,
      # Who says where segments end in decoding: 'head', a head of the expander,
      # whose bits count; 'entropy', the entropy model, run over the ids decoded
      # so far, for free but one id after the other.
      ends='head',
      # Part of the ids fed in training that are hidden, so that codes must
      # carry the text.
      byte_dropout=0.0,
      # Width of a space that ids are embedded from and compared in, by one
      # table and one matrix both ways; None for a table of width d_model and a
      # head of its own.
      code_dim=ml_collections.config_dict.placeholder(int),
      # How states and entries of that table are compared: 'dot' or 'squared',
      # the negative squared distance.
      distance='dot',
      # Of ids of several digits: whether a digit is compared with what the
      # digits before it leave of the state.
      residual_conditioning=True,
      # Of ids to ids and of ids to codes.
      attention=get_attention(),
    )
  )

  # Parts of other runs. A frozen level is that of `load_base_from` below and
  # stays as it is; so does a frozen entropy model. One that is loaded and not
  # frozen learns on. Of the first level only.
  level.freeze = False
  level.freeze_entropy_model = False
  level.load_entropy_model_from = ml_collections.config_dict.placeholder(str)
  return level


def get_upper_level() -> ml_collections.ConfigDict:
  """One level over the codes of another; lengths are in codes."""
  level = get_level()
  # Codes are compared with what embeds them, the codebooks below.
  level.entropy_heads.tie_to_embedding = True
  # Codes have no words.
  level.segmentation.rule = 'entropy_delta'
  level.segmentation.target_length = 3.0
  level.segmentation.max_length = 8
  # Of the slots of the level below, of which a part stays empty.
  level.segmentation.capacity_length = 2.0
  return level


def get_top_lm() -> ml_collections.ConfigDict:
  """A language model over top codes: `config.model.top_lm = get_top_lm()`."""
  top_lm = ml_collections.ConfigDict(
    dict(
      # 'discrete': cross-entropy of the digits of codes. 'continuous': squared
      # error of their vectors.
      mode='discrete',
      # Whether the expander of the top level also predicts ids from codes that
      # the top LM predicts, and not only from the true ones.
      expand=False,
      d_model=96,
      stack=dict(
        num_layers=2,
        num_heads=3,
        # None sees all codes of a document.
        window=ml_collections.config_dict.placeholder(int),
        ffn_dim=288,
      ),
    )
  )
  top_lm.stack.attention = get_attention()
  return top_lm


def get_config() -> ml_collections.ConfigDict:
  """The whole run."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  # 'all'; 'entropy_model': that of the first level alone, to be loaded;
  # 'top_lm': the top LM alone, from codes of frozen levels, of which
  # `data.train` is a directory that `abstractinator encode --data` wrote.
  config.objective = 'all'
  # Directory of the run that has the frozen levels; see `freeze` above.
  config.load_base_from = ml_collections.config_dict.placeholder(str)

  # How long: passes over the data, but no more optimizer steps than this.
  config.num_epochs = 1.0
  config.max_steps = ml_collections.config_dict.placeholder(int)
  config.max_steps = 700
  config.log_interval = 20
  config.eval_interval = 250
  # Held-out batches of an evaluation during training, and of the one at its
  # end: rows in an order that the seed shuffles, None for all of them.
  config.eval_batches = 16
  config.final_eval_batches = ml_collections.config_dict.placeholder(int)
  config.final_eval_batches = 100
  config.checkpoint_interval = 100
  config.max_to_keep = 2
  # Parts of a batch that a step goes through one after the other: less memory,
  # the same step.
  config.microbatches = 1

  config.data = ml_collections.ConfigDict(
    dict(
      # Comma-separated globs and data sets; empty for the standard library's
      # sources. Of several corpora with weights, '0.7:GLOBS;0.3:GLOBS'.
      train='',
      # Held-out files; empty to hold out a fraction of the documents above.
      validation='',
      # A large part: documents differ, and a rate held on some is to hold on
      # others.
      validation_fraction=0.2,
      # How many ids there are: 256 for bytes. Others come from .npy files.
      vocab_size=256,
      # Whether a row holds as many documents as fit, or begins one and is
      # padded.
      packing=True,
      sequence_length=256,
      batch_size=16,
      read_threads=2,
      prefetch_batches=8,
    )
  )

  config.model = ml_collections.ConfigDict(
    dict(
      # Bottom first: the ids of a level are the codes of the one before.
      levels=(get_level(),),
      # A language model over the codes of the last level, see `get_top_lm`.
      top_lm=ml_collections.config_dict.placeholder(ml_collections.ConfigDict),
      # Compute type; parameters and statistics are float32 always.
      dtype='float32',
      # What computes each op; 'auto' goes by the platform.
      implementation=dict(
        # 'reference', 'xla', 'pallas', 'pallas_interpret', 'cudnn', 'splash'.
        attention='auto',
        # 'reference', 'xla', 'xla_deterministic' (the same bits twice, on GPU
        # too), 'pallas', 'pallas_interpret'.
        segment_pool='auto',
        # 'reference', 'gather', 'halo'.
        segment_cross='auto',
        # 'reference', 'xla'.
        nearest_code='auto',
        # What blocks keep for the backward pass: 'none' computes nothing twice,
        # 'dots' keeps matrix products, 'blocks' only what goes into a block.
        remat='none',
        # Whether the blocks of a stack are compiled once, as a loop.
        scan_layers=False,
      ),
    )
  )

  config.loss = ml_collections.ConfigDict(
    dict(
      entropy_model=1.0,
      # Nats per dimension, where the entropy model has a Gaussian head.
      gaussian=0.0,
      expander=1.0,
      end=1.0,
      commitment=0.25,
      # Of a codebook learned by gradient; 0 nats otherwise.
      codebook=1.0,
      # Of the top LM; those that it does not have are 0 nats. `expander` and
      # `end` above are averaged over levels, the others summed.
      top_lm_code=1.0,
      top_lm_vector=1.0,
      top_lm_end=1.0,
      # Of `top_lm.expand`.
      top_lm_expander=0.02,
      # A level joins the objective so many steps after the one below, and the
      # top LM after the last; 0 trains all from the start.
      curriculum_steps=0,
      # Whether a level stops learning as the next one joins.
      curriculum_stops=False,
    )
  )

  config.optimizer = ml_collections.ConfigDict(
    dict(
      # 'adamw', or 'muon': orthogonal updates of the matrices of blocks, and
      # AdamW for all else.
      kind='adamw',
      # After a linear warm-up: 'cosine' down to `final_fraction` of it at the
      # end of the run; 'warmup_stable_decay', linearly to that in the last
      # `decay_fraction` of the steps; 'constant'.
      schedule='cosine',
      learning_rate=3e-3,
      final_fraction=0.1,
      warmup_steps=50,
      decay_fraction=0.2,
      # Of the parts of all levels; `compressor` is what is left of one.
      relative_rates=dict(
        entropy_model=1.0, compressor=1.0, expander=1.0, top_lm=1.0
      ),
      weight_decay=0.01,
      beta1=0.9,
      beta2=0.98,
      clip_norm=1.0,
      # Of a moving average of the parameters, per step, that evaluation and the
      # commands use; 0 for none.
      ema_decay=0.0,
    )
  )

  config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1, tensor=1))

  config.health = ml_collections.ConfigDict(
    dict(
      # Whether the log, TensorBoard and `health/*` of metrics.jsonl tell what
      # may be wrong with a run, see `training/health.py`.
      alarms=True,
      # Steps before which nothing is wrong yet; a level that joins later by
      # `loss.curriculum_steps` counts from there.
      after_steps=100,
    )
  )
  return config
