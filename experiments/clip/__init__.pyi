from .from_store import Trained as Trained
from .model import ModelSpec as ModelSpec
from .model import TrainedModel as TrainedModel
from .open_clip_model import OpenCLIP as OpenCLIP
from .saved_model import load_model as load_model
from .small_clip import SmallCLIP as SmallCLIP
