"""`python -m memexp`, the form that torchrun starts."""

from memexp.cli import main

raise SystemExit(main())
