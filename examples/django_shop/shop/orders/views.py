"""The order and the message that tells of it are one transaction."""

import json

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from shop.bus import bus

from .events import OrderPlaced, orders
from .models import Order


@csrf_exempt
@require_POST
def place_order(request: HttpRequest) -> JsonResponse:
    try:
        given = json.loads(request.body)
        customer, cents = str(given["customer"]), int(given["cents"])
    except (ValueError, TypeError, KeyError):
        return JsonResponse({"error": 'send {"customer": "ann", "cents": 950}'}, status=400)
    with transaction.atomic():
        order = Order.objects.create(customer=customer, cents=cents)
        bus.blocking.send(orders, OrderPlaced(order.pk), within=connection)
    return JsonResponse({"order": order.pk}, status=201)
