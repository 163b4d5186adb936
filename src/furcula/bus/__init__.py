"""The Bus: named channels to publish on and to subscribe to, over any transport; and its blocking forms."""

from furcula.bus.blocking import Publisher, Subscriber
from furcula.bus.bus import Bus
from furcula.bus.subscription import Envelope, Subscription

__all__ = ["Bus", "Envelope", "Publisher", "Subscriber", "Subscription"]
