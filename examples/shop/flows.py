"""`syslog.yaml`, said in Python: `furcula run shop.flows:flow`."""

from furcula import Flow

from .enrich import add_owner

flow = Flow("syslog")
listen = flow.use("syslog.listen", udp="127.0.0.1:5514", tcp="127.0.0.1:5514")
parse = flow.use("modify", "parse", extract={"path": "data.message", "pattern": r"order (?P<order>\d+): (?P<event>.+)"})
keep = flow.use("match", "keep", where="data.severity", not_in=["info", "debug"])
enrich = flow.module(add_owner, "enrich", concurrency=8, timeout="2s")
dead = flow.use("file.write", "dead", path="dead.ndjson")

listen >> parse >> keep >> enrich >> flow.use("file.write", "out", path="errors.ndjson")
(parse.failed, enrich.failed) >> dead
