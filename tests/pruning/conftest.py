import sys
from pathlib import Path

# `importmode=importlib` leaves sys.path alone; the networks that these tests share are a plain module beside them
sys.path.insert(0, str(Path(__file__).parent))
