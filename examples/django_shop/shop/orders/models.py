from django.db import models


class Order(models.Model):
    customer = models.CharField(max_length=100)
    cents = models.IntegerField()


class Receipt(models.Model):
    order = models.OneToOneField(Order, on_delete=models.CASCADE)
    text = models.CharField(max_length=200)
