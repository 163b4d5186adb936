"""A Wishbone flow: datagrams on port 19283 are put in capitals and printed. Ctrl-C stops it.

python examples/compat/wishbone_udp.py
echo hello > /dev/udp/127.0.0.1/19283
"""

from typing import Any

from furcula.compat.wishbone.main import Wishbone
from furcula.compat.wishbone.module import Module


class Capitals(Module):
    def consume(self, message: dict[str, Any]) -> None:
        message["data"] = message["data"].strip().upper()
        self.sendData(message)

    def shutdown(self) -> None:
        print("goodbye", flush=True)


if __name__ == "__main__":
    wb = Wishbone()
    wb.registerModule(("furcula.compat.wishbone.module", "UDPServer", "udp"), address="127.0.0.1", port=19283)
    wb.registerModule(("__main__", "Capitals", "capitals"))
    wb.registerModule(("furcula.compat.wishbone.module", "STDOUT", "stdout"), prefix="> ")
    wb.connect(wb.udp.outbox, wb.capitals.inbox)
    wb.connect(wb.capitals.outbox, wb.stdout.inbox)
    wb.start()
