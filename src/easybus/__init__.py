"""easybus: a message bus on the broker or database that a team already runs."""

__version__ = "0.1.0"
