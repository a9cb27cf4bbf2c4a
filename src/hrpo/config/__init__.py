"""Every setting, its range, and how a settings file is read.

May import `common`.
"""

from hrpo.config.schema import CheckConfig as CheckConfig
from hrpo.config.schema import CheckpointConfig as CheckpointConfig
from hrpo.config.schema import CompareConfig as CompareConfig
from hrpo.config.schema import EvalConfig as EvalConfig
from hrpo.config.schema import LatentConfig as LatentConfig
from hrpo.config.schema import LossConfig as LossConfig
from hrpo.config.schema import ModelConfig as ModelConfig
from hrpo.config.schema import OptimizerConfig as OptimizerConfig
from hrpo.config.schema import RolloutConfig as RolloutConfig
from hrpo.config.schema import SftConfig as SftConfig
from hrpo.config.schema import TaskConfig as TaskConfig
from hrpo.config.schema import TrainConfig as TrainConfig
