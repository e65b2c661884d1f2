"""What every trainer shares: modules of functions that know no data set. See README.md."""

__version__ = "0.1.0"
