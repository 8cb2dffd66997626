"""Requests, handlers and retries on virtual time: `python manage.py test`."""

from typing import Any
from unittest import skipUnless

from django.contrib.auth.models import User
from django.db import OperationalError, connection
from django.test import TransactionTestCase
from shop.orders.models import Order, Receipt

from easybus.django.testing import testing


class Shop(TransactionTestCase):
    def order(self, customer: str, cents: int = 950) -> Any:
        return self.client.post("/orders/", {"customer": customer, "cents": cents}, content_type="application/json")

    def test_an_order_has_one_receipt(self) -> None:
        with testing() as t:
            self.assertEqual(self.order("ann").status_code, 201)
            t.drain()
            self.assertEqual([receipt.text for receipt in Receipt.objects.all()], ["ann: 9.50"])

    @skipUnless(connection.vendor == "sqlite", "a server's own clock nobody can move")
    def test_what_fails_is_tried_again_later(self) -> None:
        failing = [OperationalError("the database is busy")] * 2

        def create(create: Any = Receipt.objects.create, **values: Any) -> Any:
            if failing:
                raise failing.pop()
            return create(**values)

        with testing() as t:
            Receipt.objects.create = create  # type: ignore[method-assign]
            try:
                self.order("bob")
                t.drain()
                self.assertEqual(Receipt.objects.count(), 0)
                t.advance(seconds=60)
            finally:
                del Receipt.objects.create
            self.assertEqual(Receipt.objects.count(), 1)

    def test_an_order_of_nobody_is_a_dead_letter_in_the_admin_and_can_be_replayed(self) -> None:
        self.client.force_login(User.objects.create_superuser("operator"))
        with testing() as t:
            self.order("")
            t.drain()
            self.assertEqual([letter.reason for letter in t.dead("receipts")], ["an order of nobody"])
            self.assertContains(self.client.get("/admin/easybus/deadletter/"), "an order of nobody")
            address = self.client.get("/admin/easybus/deadletter/").context["letters"][0].address
            Order.objects.update(customer="carol")  # mended by a person
            given = {"action": "retry", "letter": [address]}
            self.assertContains(self.client.post("/admin/easybus/deadletter/", given, follow=True), "marked for retry")
            t.drain()
            self.assertEqual([receipt.text for receipt in Receipt.objects.all()], ["carol: 9.50"])
            self.assertEqual(t.dead("receipts"), [])

    def test_a_wrong_order_sends_nothing(self) -> None:
        with testing() as t:
            self.assertEqual(self.client.post("/orders/", {}, content_type="application/json").status_code, 400)
            t.drain()
            self.assertEqual(len(t.sent("orders")), 0)
