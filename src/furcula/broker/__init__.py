"""The Broker: put an event from anywhere, and it goes to every configured sink whose profile matches."""

from furcula.broker.broker import Broker, BrokerStatistics
from furcula.broker.credentials import decrypted, encrypted, new_key, profiles_of_environment, profiles_of_file
from furcula.broker.ingress import DeliveryFailed, Ingress, IngressContext
from furcula.broker.internal import InternalQueues
from furcula.broker.log import BrokerHandler
from furcula.broker.profiles import Profile, Profiles

__all__ = [
    "Broker",
    "BrokerHandler",
    "BrokerStatistics",
    "DeliveryFailed",
    "Ingress",
    "IngressContext",
    "InternalQueues",
    "Profile",
    "Profiles",
    "decrypted",
    "encrypted",
    "new_key",
    "profiles_of_environment",
    "profiles_of_file",
]
