"""A typed client of Nightsweep's REST API. It returns the models in the `schemas` of each noun."""

from service.client.connection import AWAY, DEFAULT_SERVER
from service.client.errors import ClientError, RefusedError, UnexpectedAnswerError, UnreachableError
from service.client.rest import Client
from service.client.studies import Arrival

__all__ = [
    "AWAY",
    "DEFAULT_SERVER",
    "Arrival",
    "Client",
    "ClientError",
    "RefusedError",
    "UnexpectedAnswerError",
    "UnreachableError",
]
