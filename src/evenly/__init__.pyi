from evenly import keras as keras
from evenly.backends import use_backend as use_backend
from evenly.nn import functional as functional
from evenly.nn.batchnorm import BatchNorm as BatchNorm
from evenly.nn.batchnorm import BatchNorm1d as BatchNorm1d
from evenly.nn.batchnorm import BatchNorm2d as BatchNorm2d
from evenly.nn.batchnorm import BatchNorm3d as BatchNorm3d
from evenly.nn.batchnorm import SyncBatchNorm as SyncBatchNorm
from evenly.nn.instancenorm import InstanceNorm1d as InstanceNorm1d
from evenly.nn.instancenorm import InstanceNorm2d as InstanceNorm2d
from evenly.nn.instancenorm import InstanceNorm3d as InstanceNorm3d
from evenly.nn.modules import GroupNorm as GroupNorm
from evenly.nn.modules import LayerNorm as LayerNorm
from evenly.nn.modules import RMSNorm as RMSNorm
from evenly.nn.renorm import Renorm as Renorm
from evenly.tools.adapt import adapt as adapt
from evenly.tools.convert import convert as convert
from evenly.tools.convert import revert as revert
from evenly.tools.diagnose import diagnose as diagnose
from evenly.tools.finding import Diagnosis as Diagnosis
from evenly.tools.freeze import freeze as freeze
from evenly.tools.freeze import unfreeze as unfreeze
from evenly.tools.pool_statistics import pool_statistics as pool_statistics
from evenly.tools.recalibrate import recalibrate as recalibrate
from evenly.tools.xray import xray as xray
from evenly.versions import show_versions as show_versions

__version__: str
