from django.contrib import admin

from .models import Order, Receipt

admin.site.register([Order, Receipt])
