from .clean import Clean as Clean
from .clean import Threshold as Threshold
from .defences import Defence as Defence
from .defences import Defences as Defences
from .groups import Grouping as Grouping
from .inversion import Invert as Invert
from .retrain import CleanAndRetrain as CleanAndRetrain
from .scan import Scan as Scan
