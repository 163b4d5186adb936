"""`circle.yaml`, said in Python: `furcula run circle.circle:flow` in the folder of the examples."""

import os
from pathlib import Path

from furcula import Flow, Options

from . import orders

PORT = int(os.environ.get("PORT") or 8080)

flow = Flow("circle", folder=Path(__file__).parent)
http = flow.use("http.listen", "http", port=PORT, routes=["POST /orders"], accepts=["xml"], timeout="5s")
auth = flow.use("auth.basic", "auth", options=Options(concurrency=16), users_file="users", realm="orders")
submit = flow.use("xml.transform", "submit", stylesheet="submit.xsl")
read = flow.use("xml.parse", "read")
execute = flow.module(orders.execute, "execute", concurrency=64, timeout="2s")
user = {"user": "{{ headers.auth.user }}"}
acknowledge = flow.use("xml.transform", "acknowledge", stylesheet="acknowledge.xsl", params=user)

http >> auth >> submit >> read >> execute >> acknowledge >> http
(auth.failed, submit.failed, read.failed, execute.failed, acknowledge.failed) >> http
