"""The shop over HTTP.

uvicorn --factory shop.web:create_app
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from easybus import Bus

from .bus import create_bus
from .events import OrderPlaced, orders
from .models import Item, Order
from .settings import Settings


class NewOrder(BaseModel):
    """What a customer sends."""

    item: str
    quantity: int = Field(gt=0)


class Delivery(BaseModel):
    """What comes to the shelf."""

    quantity: int = Field(gt=0)


class OrderState(BaseModel):
    """What a customer may see of an order."""

    id: UUID
    reserved: bool


def _bus(request: Request) -> Bus:
    return request.app.state.bus


def _sessions(request: Request) -> async_sessionmaker[AsyncSession]:
    return request.app.state.sessions


TheBus = Annotated[Bus, Depends(_bus)]
Sessions = Annotated[async_sessionmaker[AsyncSession], Depends(_sessions)]
api = APIRouter()


@api.post("/orders", status_code=201)
async def place_order(new: NewOrder, sessions: Sessions, bus: TheBus) -> OrderState:
    """The order and the event are one transaction: both are there, or neither."""
    placed = OrderPlaced(uuid4(), new.item, new.quantity)
    async with sessions.begin() as session:
        session.add(Order(id=placed.order, item=placed.item, quantity=placed.quantity))
        await bus.send(orders, placed, within=session)
    return OrderState(id=placed.order, reserved=False)


@api.get("/orders/{id}")
async def order_state(id: UUID, sessions: Sessions) -> OrderState:
    """Whether the order is reserved yet."""
    async with sessions() as session:
        order = await session.get(Order, id)
    if order is None:
        raise HTTPException(404)
    return OrderState(id=order.id, reserved=order.reserved)


@api.post("/items/{name}/deliveries", status_code=204)
async def take_delivery(name: str, delivery: Delivery, sessions: Sessions) -> None:
    """More of an item, or the first of it."""
    async with sessions.begin() as session:
        item = await session.get(Item, name, with_for_update=True)
        if item is None:
            session.add(Item(name=name, left=delivery.quantity))
        else:
            item.left += delivery.quantity


def create_app(settings: Settings | None = None) -> FastAPI:
    """The web application; its bus is open while it serves, to send and to relay what was committed."""
    settings = settings or Settings.from_environment()
    engine = create_async_engine(settings.sqlalchemy_url)
    bus = create_bus(settings, engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with bus:
            yield
        await engine.dispose()

    app = FastAPI(title="shop", lifespan=lifespan)
    app.state.bus, app.state.engine = bus, engine
    app.state.sessions = async_sessionmaker(engine)
    app.include_router(api)
    return app
