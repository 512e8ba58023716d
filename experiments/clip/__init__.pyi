from .from_store import Trained as Trained
from .model import OpenCLIP as OpenCLIP
from .model import SmallCLIP as SmallCLIP
from .model import TrainedModel as TrainedModel
