"""Compysition's full circle: its imports changed, its undefined names repaired, nothing else. Ctrl-C stops it.

It listens on port 8080. In the folder of the examples:

    python compat/compysition_full_circle.py
    curl -u ada:lovelace -H 'content-type: application/xml' -d @circle/order.xml http://127.0.0.1:8080/orders
"""

from mymodules.module import BasicAuth, SomeRequestExecutor  # type: ignore[import-not-found]
from myprojectresources import my_xsl_files as xsls  # type: ignore[import-not-found]

from furcula.compat.compysition import Director
from furcula.compat.compysition.module import Transformer, WSGIServer

director = Director()
wsgi = director.register_module(WSGIServer, "wsgi")
auth = director.register_module(BasicAuth, "auth")
submit_transform = director.register_module(Transformer, "submit_transform", xsls["submit"])
acknowledge_transform = director.register_module(Transformer, "acknowledge_transform", xsls["acknowledge.xsl"])
request_executor = director.register_module(SomeRequestExecutor, "request_executor")

director.connect(wsgi, auth)
director.connect(auth, submit_transform)
director.connect_error(auth, wsgi)  # Redirect auth errors to the wsgi server as a 401 Unaothorized Error
director.connect(submit_transform, request_executor)
director.connect_error(submit_transform, wsgi)
director.connect(request_executor, acknowledge_transform)
director.connect(acknowledge_transform, wsgi)

director.start()
director.block()
