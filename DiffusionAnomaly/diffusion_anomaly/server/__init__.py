"""A server that lends its GPU: HTTPS in, the workers' protocol behind it.

FastAPI and uvicorn do the HTTP; detections run in the processes of ``worker``. What is defended against whom is on the
documentation's page on security.
"""
