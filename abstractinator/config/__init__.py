"""All settings of a run, as frozen dataclasses that are checked when built.

`configs/default.py` documents every setting and gives it a value, and the other
config files edit those values. See `Section` for what a new setting needs.
`cli.config_file` reads a config file and builds the `RunConfig`.
"""

from abstractinator.config.attention import AttentionConfig as AttentionConfig
from abstractinator.config.attention import StackConfig as StackConfig
from abstractinator.config.level import EntropyHeadsConfig as EntropyHeadsConfig
from abstractinator.config.level import ExpanderConfig as ExpanderConfig
from abstractinator.config.level import LevelConfig as LevelConfig
from abstractinator.config.level import PoolingConfig as PoolingConfig
from abstractinator.config.model import (
  ImplementationConfig as ImplementationConfig,
)
from abstractinator.config.model import ModelConfig as ModelConfig
from abstractinator.config.model import TopLMConfig as TopLMConfig
from abstractinator.config.quantizer import QuantizerConfig as QuantizerConfig
from abstractinator.config.run import DataConfig as DataConfig
from abstractinator.config.run import HealthConfig as HealthConfig
from abstractinator.config.run import LearningRatesConfig as LearningRatesConfig
from abstractinator.config.run import LossConfig as LossConfig
from abstractinator.config.run import MeshConfig as MeshConfig
from abstractinator.config.run import OptimizerConfig as OptimizerConfig
from abstractinator.config.run import RunConfig as RunConfig
from abstractinator.config.segmentation import (
  SegmentationConfig as SegmentationConfig,
)
