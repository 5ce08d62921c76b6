# The public names of extract; lazy_loader imports each when it is first used, and type checkers read this file.
from .model.load import load_reasoner as load_reasoner
from .model.own import Captured as Captured
from .model.own import OwnModel as OwnModel
from .model.own import ReadOut as ReadOut
from .model.reasoner import Reasoner as Reasoner
from .model.thinking import Thinking as Thinking
