"""Who is asking: modules that stand behind `http.listen` and let through whoever shows the right credentials.

Each puts `{"scheme": ..., "user": ...}` at `headers.auth`, takes the credentials out of the request, so that they
travel no further, and refuses everybody else with a 401. `credentials` is what they share.
"""
