from .class_folders import Builtin as Builtin
from .class_folders import ClassFolders as ClassFolders
from .folder_pairs import Folders as Folders
from .hugging_face import HuggingFace as HuggingFace
from .row_data import Parquet as Parquet
from .shapes.source import Shapes as Shapes
from .shards import Shards as Shards
from .tables import Files as Files
