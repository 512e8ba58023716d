from .sweep import Sweep as Sweep
from .tracking import Tracker as Tracker
