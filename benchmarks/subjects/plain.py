"""The plainest app with a database: FastAPI, SQLAlchemy with its defaults, and nothing that bounds a wait."""

import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The tables."""


class Guest(Base):
    """The table that the service's migrations have made."""

    __tablename__ = "guests"

    name: Mapped[str] = mapped_column(primary_key=True)
    visits: Mapped[int]


class Name(BaseModel):
    """What is sent to be greeted."""

    name: str


app = FastAPI()
sessions = async_sessionmaker(create_async_engine(os.environ["DATABASE_URL"]), expire_on_commit=False)


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as made:
        yield made


Session = Annotated[AsyncSession, Depends(session)]


@app.post("/greetings")
async def greet(body: Name, session: Session) -> dict[str, str]:
    first = insert(Guest).values(name=body.name, visits=1)
    again = {"visits": Guest.visits + 1}
    await session.execute(first.on_conflict_do_update(index_elements=[Guest.name], set_=again))
    await session.commit()
    return {"text": f"Good day, {body.name}."}


@app.get("/guests/{name}")
async def visits(name: str, session: Session) -> dict[str, int]:
    return {"visits": await session.scalar(select(Guest.visits).where(Guest.name == name)) or 0}
