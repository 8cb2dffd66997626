"""The project's bus, in Django's own database."""

from easybus import Bus, schedule
from easybus.django import database_url

bus = Bus(database_url(), service="shop", retry=schedule(1, 10, 60))
