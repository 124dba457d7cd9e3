"""FastAPI with AsyncSession: a request adds a user; an AsyncWorker in the same loop greets it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import String, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vitess_messages import MessageQueueMixin
from sqla_vitess_messages.aio import AsyncSubscriber, AsyncWorker

URL = os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///users.db")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "app_user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    greeted: Mapped[bool] = mapped_column(default=False)


class Welcome(MessageQueueMixin, Base):
    __tablename__ = "app_welcome"
    user_id: Mapped[int]


class NewUser(BaseModel):
    name: str


async def greet(message: Welcome, session: AsyncSession) -> None:
    (await session.get_one(User, message.user_id)).greeted = True


engine = create_async_engine(URL)
sessions = async_sessionmaker(engine)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncWorker(AsyncSubscriber(Welcome, URL), greet, sessions):
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/users", status_code=201)
async def add_user(new: NewUser) -> dict[str, int]:
    async with sessions() as session, session.begin():
        user = User(name=new.name)
        session.add(user)
        await session.flush()
        session.add(Welcome(user_id=user.id))
        return {"id": user.id}


@app.get("/users/greeted")
async def greeted() -> dict[str, int]:
    async with sessions() as session:
        return {"greeted": await session.scalar(select(func.count()).where(User.greeted)) or 0}
