"""A VPN server that stock OpenVPN clients connect to, without root."""

from ginnel.server.clients import Client
from ginnel.server.config import Listen, Publish, ServerConfig
from ginnel.server.service import Server

__all__ = ["Client", "Listen", "Publish", "Server", "ServerConfig"]
