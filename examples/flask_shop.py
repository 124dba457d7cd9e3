"""Flask with Session: a request adds an order, and a worker process ships it."""

from __future__ import annotations

import os

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue
from sqlalchemy import String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vitess_messages import MessageQueueMixin, Subscriber, Worker, emits

URL = os.environ.get("DATABASE_URL", "sqlite:///shop.db")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "shop_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(100))
    shipped: Mapped[bool] = mapped_column(default=False)


class Shipment(MessageQueueMixin, Base):
    __tablename__ = "shop_shipment"
    order_id: Mapped[int]


@emits(Order, "insert")
def ship(order: Order) -> Shipment:
    """Enqueue a shipment for each order that is inserted, anywhere in the program."""
    return Shipment(order_id=order.id)


engine = create_engine(URL)
Base.metadata.create_all(engine)
sessions = sessionmaker(engine)
app = Flask(__name__)


@app.post("/orders")
def add_order() -> ResponseReturnValue:
    with sessions.begin() as session:
        order = Order(item=request.get_json()["item"])
        session.add(order)
        session.flush()
        return jsonify(id=order.id), 201


@app.get("/orders/shipped")
def shipped() -> ResponseReturnValue:
    with sessions() as session:
        count = session.scalar(select(func.count()).where(Order.shipped))
        return jsonify(shipped=count)


def handle(message: Shipment, session: Session) -> None:
    session.get_one(Order, message.order_id).shipped = True


worker = Worker(Subscriber(Shipment, URL), handle, sessions, concurrency=2)
